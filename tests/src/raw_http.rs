//! Plain HTTP/1.1, by hand: the tests compare what is on the wire, so nothing may be tidied up on the
//! way.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longest wait for an answer or a line of one.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// One request.
#[derive(Clone, Debug, Default)]
pub struct HttpRequest {
    /// Method.
    pub method: String,
    /// Path and query, sent as they are.
    pub target: String,
    /// Headers beside Host, Content-Length and Connection; one of these three replaces ours.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl HttpRequest {
    /// A request without a body.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            ..Self::default()
        }
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn has(&self, name: &str) -> bool {
        self.headers
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    fn head(&self, address: &str) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in [
            ("Host", address.to_owned()),
            ("Content-Length", self.body.len().to_string()),
            ("Connection", "close".to_owned()),
        ] {
            if !self.has(name) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head + "\r\n"
    }

    /// Sends it to `host:port` and reads the head of the answer.
    pub async fn open(&self, address: &str) -> HttpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream
            .write_all(self.head(address).as_bytes())
            .await
            .expect("it reads the head");
        // A server that refuses a body may close before it has read it all.
        let _ = stream.write_all(&self.body).await;
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let line = read_line(&mut reader).await;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines
            .first()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .unwrap_or_else(|| panic!("no status line: {lines:?}"));
        let headers = lines[1..]
            .iter()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        HttpStream {
            status,
            headers,
            reader,
            pending: Vec::new(),
        }
    }

    /// Sends it and reads the whole answer.
    pub async fn send(&self, address: &str) -> HttpAnswer {
        let mut stream = self.open(address).await;
        let body = stream.rest(self.method == "HEAD").await;
        HttpAnswer {
            status: stream.status,
            headers: stream.headers,
            body,
        }
    }
}

async fn read_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = Vec::new();
    tokio::time::timeout(
        crate::deadline(ANSWER_LIMIT),
        reader.read_until(b'\n', &mut line),
    )
    .await
    .expect("a line in time")
    .expect("an open connection");
    String::from_utf8_lossy(&line).into_owned()
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl HttpAnswer {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(other, _)| other == name)
        .map(|(_, value)| value.as_str())
}

/// An answer that is still coming.
#[derive(Debug)]
pub struct HttpStream {
    /// Status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The connection, behind the head.
    pub reader: BufReader<TcpStream>,
    pending: Vec<u8>,
}

impl HttpStream {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// More of the body; nothing at its end.
    async fn piece(&mut self) -> Option<Vec<u8>> {
        if self.header("transfer-encoding") != Some("chunked") {
            let mut piece = vec![0; 64 * 1024];
            let length = self.reader.read(&mut piece).await.unwrap_or(0);
            piece.truncate(length);
            return (length > 0).then_some(piece);
        }
        let line = read_line(&mut self.reader).await;
        let length = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
        let mut piece = vec![0; length + 2];
        self.reader.read_exact(&mut piece).await.ok()?;
        piece.truncate(length);
        (length > 0).then_some(piece)
    }

    /// The next line of the body; nothing at its end.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let piece = tokio::time::timeout(crate::deadline(ANSWER_LIMIT), self.piece())
                .await
                .expect("a line in time");
            match piece {
                Some(piece) => self.pending.extend(piece),
                None if self.pending.is_empty() => return None,
                None => {
                    let line = std::mem::take(&mut self.pending);
                    return Some(String::from_utf8_lossy(&line).into_owned());
                }
            }
        }
    }

    async fn rest(&mut self, no_body: bool) -> Vec<u8> {
        let mut body = Vec::new();
        let length = self
            .header("content-length")
            .and_then(|length| length.parse::<usize>().ok());
        if no_body || length == Some(0) {
            return body;
        }
        let reading = async {
            while let Some(piece) = self.piece().await {
                body.extend(piece);
                if length.is_some_and(|length| body.len() >= length) {
                    break;
                }
            }
        };
        tokio::time::timeout(crate::deadline(ANSWER_LIMIT), reading)
            .await
            .expect("a whole answer in time");
        body
    }
}
