//! How Go's `ServeMux` looks at a path before it looks for a handler: etcd's HTTP answers through one.
//!
//! Empty segments and dots are taken out with a redirect, `/v3` leads to `/v3/`, and escapes count as
//! the letters that they stand for. The plain HTTP API is ours alone, its keys may hold anything, and
//! nothing of this happens to it.

use http::{Method, Request, StatusCode, Uri, Version, header};

use super::answer::{Answer, PLAIN_TEXT, error, text};

/// Bytes that Go leaves as they are when it writes a path, beside letters and digits.
const UNESCAPED: &[u8] = b"$&+,-./:;=@_~";
/// Bytes that a path may hold as they came; one with others is written anew.
const UNESCAPED_IF_RAW: &[u8] = b"!'()*[]%";

/// The answer to a path with an escape that is none: Go's server gives it before anybody sees the request.
pub fn malformed<B>(request: &Request<B>) -> Option<Answer> {
    unescape(request.uri().path()).is_none().then(bad_request)
}

/// What else Go's server answers before anybody sees the request: an expectation that it does not know, and
/// questions about the server as a whole.
pub fn answered_by_server<B>(request: &Request<B>) -> Option<Answer> {
    let expected = request.headers().get(header::EXPECT);
    if request.version() < Version::HTTP_2 && expected.is_some_and(|words| !is_known(words)) {
        return Some(closing(StatusCode::EXPECTATION_FAILED, Answer::default()));
    }
    let is_about_server = request.method() == Method::OPTIONS && request.uri().path() == "*";
    is_about_server.then(Answer::default)
}

/// Whether an expectation is the one that everybody knows, or none at all.
fn is_known(words: &header::HeaderValue) -> bool {
    let mut tokens = words.as_bytes().split(|byte| *byte == b',');
    words.is_empty() || tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"100-continue"))
}

/// What happens to a request before a handler is looked for: an answer that ends it, or nothing after
/// its path was written in plain letters.
pub fn admit<B>(request: &mut Request<B>, trees: &[&str]) -> Option<Answer> {
    let raw = request.uri().path();
    if request.method() == Method::CONNECT {
        return None;
    }
    if raw == "*" {
        return Some(closing(StatusCode::BAD_REQUEST, Answer::default()));
    }
    let plain = unescape(raw)?;
    let escaped = match is_valid(raw) {
        true => raw.to_owned(),
        false => escape(&plain),
    };
    let clean = clean(&escaped);
    let tree = trees.iter().find(|tree| {
        let name = tree.trim_end_matches('/');
        unescape(&clean).is_some_and(|path| path == name.as_bytes())
    });
    if let Some(tree) = tree {
        return Some(redirect(request, tree));
    }
    if clean != escaped {
        // As Go does it: what is escaped already is escaped once more.
        return Some(redirect(request, &escape(clean.as_bytes())));
    }
    if raw.contains('%') {
        set_plain_path(request, &escaped);
    }
    None
}

/// Replaces the escapes of a path that can be written without. A segment with a slash in it stays as it
/// is, because it is no two segments; only the gateway, once the first segment has led there, does not
/// look at escapes any more.
fn set_plain_path<B>(request: &mut Request<B>, escaped: &str) {
    let slash: &[char] = match escaped.split('/').nth(1).and_then(unescape).as_deref() {
        Some(b"v3") => &[],
        _ => &['/'],
    };
    let segments: Vec<String> = escaped
        .split('/')
        .map(|segment| {
            let plain = unescape(segment).and_then(|plain| String::from_utf8(plain).ok());
            plain
                .filter(|plain| !plain.contains(['?', '#', '%']) && !plain.contains(slash))
                .unwrap_or_else(|| segment.to_owned())
        })
        .collect();
    set_path(request, &segments.join("/"));
}

fn set_path<B>(request: &mut Request<B>, path: &str) {
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    // One that is no URI in plain letters names nothing that exists.
    if let Ok(path_and_query) = path_and_query.parse() {
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// Go's `path.Clean`, with the slash at the end kept.
fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut clean = format!("/{}", segments.join("/"));
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    clean
}

fn is_valid(raw: &str) -> bool {
    raw.bytes().all(|byte| {
        byte.is_ascii_alphanumeric()
            || UNESCAPED.contains(&byte)
            || UNESCAPED_IF_RAW.contains(&byte)
    })
}

fn escape(path: &[u8]) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path {
        if byte.is_ascii_alphanumeric() || UNESCAPED.contains(byte) {
            escaped.push(char::from(*byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// The bytes of a path; nothing when an escape is none.
fn unescape(path: &str) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        plain.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(plain)
}

/// Go's answer to a request that it cannot read. Its connection ends.
fn bad_request() -> Answer {
    let status = StatusCode::BAD_REQUEST;
    closing(status, text(status, PLAIN_TEXT, "400 Bad Request"))
}

fn closing(status: StatusCode, mut answer: Answer) -> Answer {
    *answer.status_mut() = status;
    let close = header::HeaderValue::from_static("close");
    answer.headers_mut().insert(header::CONNECTION, close);
    answer
}

fn redirect<B>(request: &Request<B>, path: &str) -> Answer {
    let location = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let Ok(target) = header::HeaderValue::from_str(&location) else {
        return error(StatusCode::BAD_REQUEST, "400 Bad Request");
    };
    let status = StatusCode::TEMPORARY_REDIRECT;
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        let shown = location
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&#34;")
            .replace('\'', "&#39;");
        let body = match *request.method() {
            Method::GET => format!("<a href=\"{shown}\">Temporary Redirect</a>.\n\n"),
            _ => String::new(),
        };
        answer = text(status, "text/html; charset=utf-8", body);
    }
    answer.headers_mut().insert(header::LOCATION, target);
    answer
}

/// A path is refused, redirected to a path that is not redirected again, or answered.
#[cfg(any(test, feature = "fuzzing"))]
pub fn assert_leads_somewhere(path: &[u8]) {
    let Ok(mut request) = Request::get(path).body(()) else {
        return;
    };
    if !request.uri().path().starts_with('/') {
        return;
    }
    let key = crate::http::rest::decode_path(request.uri().path());
    assert_eq!(key.is_none(), malformed(&request).is_some());
    let Some(answer) = admit(&mut request, &["/v3/"]) else {
        return;
    };
    let Some(target) = answer.headers().get(header::LOCATION) else {
        return assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    };
    let Ok(target) = target.to_str() else { return };
    assert!(
        target.starts_with('/') && !target.starts_with("//"),
        "{target}"
    );
    let mut next = Request::get(target).body(()).expect("a path");
    let again = admit(&mut next, &["/v3/"]);
    assert!(again.is_none(), "{target} is no end");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> Result<String, String> {
        let mut request = Request::get(path).body(()).expect("a request");
        match admit(&mut request, &["/v3/"]) {
            None => Ok(request.uri().to_string()),
            Some(answer) => Err(format!(
                "{} {}",
                answer.status().as_u16(),
                answer
                    .headers()
                    .get(header::LOCATION)
                    .map_or("", |target| target.to_str().expect("text"))
            )),
        }
    }

    /// A path is refused, redirected to a path that is not redirected again, or answered.
    #[test]
    fn mutated_paths_lead_somewhere() {
        let corpus: [&[u8]; 6] = [
            b"/v3/kv/range?x=y",
            b"//v3/../a/./b%20c",
            b"/kv/registry/pods/%c3%a4?wait=3",
            b"/livez/serializable_read?verbose&exclude=a",
            b"/v3beta/watch",
            b"/debug/pprof/profile?seconds=1",
        ];
        let words: [&[u8]; 14] = [
            b"/../",
            b"/./",
            b"//",
            b"%2F",
            b"%2e%2e",
            b"%",
            b"%zz",
            b"?",
            b"#",
            b"/v3",
            b"/v3/",
            b"\xc3\xa4",
            b";",
            b"%00",
        ];
        crate::mutation::mutated(&corpus, &words, assert_leads_somewhere);
    }

    #[test]
    fn only_expectations_that_nobody_knows_are_refused() {
        for (words, version, refused) in [
            ("100-continue", Version::HTTP_11, false),
            ("foo, 100-CONTINUE", Version::HTTP_11, false),
            ("", Version::HTTP_11, false),
            ("foo", Version::HTTP_11, true),
            ("100-continues", Version::HTTP_11, true),
            ("foo", Version::HTTP_2, false),
        ] {
            let request = Request::get("/version")
                .version(version)
                .header(header::EXPECT, words)
                .body(())
                .expect("a request");
            let answer = answered_by_server(&request);
            assert_eq!(answer.is_some(), refused, "{words} {version:?}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_by_go() {
        for (path, expected) in [
            ("/health", Ok("/health")),
            ("/he%61lth?x=%61", Ok("/health?x=%61")),
            ("/a%2Fb%61", Ok("/a%2Fb%61")),
            ("//health", Err("307 /health")),
            ("/a/../health?x=y", Err("307 /health?x=y")),
            ("/../..", Err("307 /")),
            ("/v3//kv/./range/", Err("307 /v3/kv/range/")),
            ("/v3", Err("307 /v3/")),
            ("//v3?a", Err("307 /v3/?a")),
            ("/a//b%20c", Err("307 /a/b%2520c")),
            ("/a//(b)", Err("307 /a/%28b%29")),
            ("/a%2Fb", Ok("/a%2Fb")),
            ("/v3/a%2Fb", Ok("/v3/a/b")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(asked(path), expected, "{path}");
        }
    }
}
