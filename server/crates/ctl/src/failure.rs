//! Why a command ends without success, and with which exit code.

/// etcdctl's exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Something failed.
    Error = 1,
    /// No connection.
    BadConnection = 2,
    /// What was read from the standard input is wrong.
    InvalidInput = 3,
    /// A valid flag has a value that is not supported.
    BadFeature = 4,
    /// It was interrupted.
    Interrupted = 5,
    /// Reading or writing files failed.
    InputOutput = 6,
    /// The arguments are wrong.
    BadArguments = 128,
}

/// Why a command ends.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// What is said about it; empty: nothing more.
    pub message: String,
}

impl Failure {
    /// A failure with a code.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code: code as u8,
            message: message.into(),
        }
    }

    /// A general failure.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Error, message)
    }

    /// Wrong arguments.
    pub fn arguments(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadArguments, message)
    }

    /// Everything was said already.
    pub fn silent(code: u8) -> Self {
        Self {
            code,
            message: String::new(),
        }
    }
}

/// A status as clientv3 shows it: etcd's errors with their text only.
pub fn status_text(status: &tonic::Status) -> String {
    let message = status.message();
    if message.starts_with("etcdserver: ") {
        return message.to_owned();
    }
    let code = match status.code() {
        tonic::Code::DeadlineExceeded => return "context deadline exceeded".to_owned(),
        tonic::Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {message}")
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::error(status_text(&status))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(ExitCode::InputOutput, error.to_string())
    }
}
