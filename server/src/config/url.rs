//! The URLs of options: where a member listens and what it advertises.

use std::fmt;
use std::net::IpAddr;

/// How a listener is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix domain socket.
    Unix,
    /// TLS over a Unix domain socket.
    Unixs,
}

impl Scheme {
    /// The text before `://`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Unix => "unix",
            Self::Unixs => "unixs",
        }
    }

    /// True for schemes whose traffic is encrypted.
    #[must_use]
    pub const fn is_secure(self) -> bool {
        matches!(self, Self::Https | Self::Unixs)
    }
}

/// One URL of an option such as `--listen-client-urls`.
///
/// Only what etcd accepts there can be expressed: a scheme with `host:port`, or a socket path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenUrl {
    /// How to reach it.
    pub scheme: Scheme,
    /// A name or an address without brackets; for Unix sockets the part of the path in front of the
    /// first slash, which is usually empty.
    pub host: String,
    /// The port; 0 lets the system choose. Always 0 for Unix sockets.
    pub port: u16,
    /// `host:port` or the socket path exactly as written. The member id is a hash over this text
    /// (`identity.rs`), so it must survive unchanged.
    authority: String,
}

impl ListenUrl {
    /// Parses one URL by etcd's rules.
    ///
    /// # Errors
    ///
    /// Etcd's text, for example `URL address does not have the form "host:port": http://a`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((scheme, rest)) = split_scheme(text)? else {
            return Err(format!(
                "URL scheme must be http, https, unix, or unixs: {text}"
            ));
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => {
                return Err(format!(
                    "URL scheme must be http, https, unix, or unixs: {text}"
                ));
            }
        };
        let authority = rest.strip_prefix("//").unwrap_or(rest);
        match scheme {
            Scheme::Unix | Scheme::Unixs => Ok(Self {
                scheme,
                host: authority.split('/').next().unwrap_or_default().to_owned(),
                port: 0,
                authority: authority.to_owned(),
            }),
            Scheme::Http | Scheme::Https => {
                let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
                let (address, path) = authority.split_at(end);
                let Some((host, port)) = split_host_port(address) else {
                    return Err(format!(
                        "URL address does not have the form \"host:port\": {text}"
                    ));
                };
                let Ok(port) = (if port.is_empty() {
                    Ok(0)
                } else {
                    port.parse::<u16>()
                }) else {
                    return Err(format!(
                        "parse {text:?}: invalid port {:?} after host",
                        format!(":{port}")
                    ));
                };
                if !path.is_empty() {
                    return Err(format!("URL must not contain a path: {text}"));
                }
                Ok(Self {
                    scheme,
                    host: host.to_owned(),
                    port,
                    authority: address.to_owned(),
                })
            }
        }
    }

    /// Parses a comma list. The result is sorted by text, as etcd sorts it.
    ///
    /// # Errors
    ///
    /// As [`ListenUrl::parse`], for the first bad element.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut urls = text
            .split(',')
            .map(Self::parse)
            .collect::<Result<Vec<Self>, String>>()?;
        urls.sort_by_cached_key(ToString::to_string);
        Ok(urls)
    }

    /// A URL from its parts, for callers that replace the host of another one.
    #[must_use]
    pub fn from_parts(scheme: Scheme, host: &str, port: u16) -> Self {
        let authority = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        Self {
            scheme,
            host: host.to_owned(),
            port,
            authority,
        }
    }

    /// `host:port` as written (an IPv6 address keeps its brackets); the path for Unix sockets.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path of the socket for `unix` and `unixs`, else nothing.
    #[must_use]
    pub fn socket_path(&self) -> Option<&str> {
        self.is_unix().then_some(self.authority.as_str())
    }

    /// True for Unix domain sockets.
    #[must_use]
    pub const fn is_unix(&self) -> bool {
        matches!(self.scheme, Scheme::Unix | Scheme::Unixs)
    }

    /// What to bind to: the address of the host, `localhost` being 127.0.0.1 without asking anybody;
    /// nothing for Unix sockets and for names, which the validation does not let pass.
    #[must_use]
    pub fn bind_address(&self) -> Option<IpAddr> {
        if self.is_unix() {
            return None;
        }
        match self.host.as_str() {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            host => host
                .split('%')
                .next()
                .and_then(|address| address.parse().ok()),
        }
    }
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme.as_str(), self.authority)
    }
}

/// URLs as one comma list, the form of the options.
#[must_use]
pub fn join(urls: &[ListenUrl]) -> String {
    urls.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// Splits off the scheme as Go's `url.Parse` does; `None` when there is none.
fn split_scheme(text: &str) -> Result<Option<(&str, &str)>, String> {
    let Some(colon) = text.find(':') else {
        return Ok(None);
    };
    let (scheme, rest) = (&text[..colon], &text[colon + 1..]);
    if scheme.is_empty() {
        return Err(format!("parse {text:?}: missing protocol scheme"));
    }
    if scheme.contains(['/', '?', '#']) {
        return Ok(None);
    }
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    if !is_scheme {
        return Err(format!(
            "parse {text:?}: first path segment in URL cannot contain colon"
        ));
    }
    Ok(Some((scheme, rest)))
}

/// Go's `net.SplitHostPort`: the host loses its brackets, the port may be empty.
fn split_host_port(address: &str) -> Option<(&str, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return Some((host, after.strip_prefix(':')?));
    }
    let (host, port) = address.rsplit_once(':')?;
    (!host.contains(':')).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_keep_their_text_and_name_their_parts() {
        for (text, host, port) in [
            ("http://localhost:2379", "localhost", 2379),
            ("http://0.0.0.0:0", "0.0.0.0", 0),
            ("https://[::1]:2380", "::1", 2380),
            ("http://:2379", "", 2379),
            ("unix:///run/metastore.sock", "", 0),
            ("unix://localhost:m0", "localhost:m0", 0),
        ] {
            let url = ListenUrl::parse(text).expect(text);
            assert_eq!((url.host.as_str(), url.port), (host, port), "{text}");
            assert_eq!(url.to_string(), text);
        }
        let socket = ListenUrl::parse("unix:///run/metastore.sock").expect("valid");
        assert_eq!(socket.socket_path(), Some("/run/metastore.sock"));
    }

    #[test]
    fn bad_urls_are_refused_with_the_text_of_etcd() {
        for (text, message) in [
            ("", "URL scheme must be http, https, unix, or unixs: "),
            (
                "mailto://127.0.0.1:2379",
                "URL scheme must be http, https, unix, or unixs: mailto://127.0.0.1:2379",
            ),
            (
                "localhost:1234",
                "URL scheme must be http, https, unix, or unixs: localhost:1234",
            ),
            (
                "http://127.0.0.1",
                "URL address does not have the form \"host:port\": http://127.0.0.1",
            ),
            (
                "http://127.0.0.1:2379/path",
                "URL must not contain a path: http://127.0.0.1:2379/path",
            ),
            (
                "http://127.0.0.1:2379/",
                "URL must not contain a path: http://127.0.0.1:2379/",
            ),
            (
                "://127.0.0.1:2379",
                "parse \"://127.0.0.1:2379\": missing protocol scheme",
            ),
            (
                "127.0.0.1:1234",
                "parse \"127.0.0.1:1234\": first path segment in URL cannot contain colon",
            ),
            (
                "http://a:x",
                "parse \"http://a:x\": invalid port \":x\" after host",
            ),
        ] {
            assert_eq!(ListenUrl::parse(text).expect_err(text), message);
        }
    }

    #[test]
    fn lists_are_sorted_by_text() {
        let urls = ListenUrl::parse_list("http://b:1, http://a:2").expect("valid");
        assert_eq!(join(&urls), "http://a:2,http://b:1");
    }
}
