//! Why a request failed, on its way from the store or consensus to a gRPC status.

use metastore_proto::error_text::EtcdError;
use metastore_store::ReadError;
use metastore_store::engine::EngineError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// An error that etcd has, with its code and text.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// An error that etcd sends as code Unknown with this text.
    #[error("{0}")]
    Unknown(String),
    /// The request could not even be proposed within its time; etcd sends Go's own words for it.
    #[error("context deadline exceeded")]
    NotProposed,
    /// What etcd has and MetaStore does not have yet.
    #[error("etcdserver: {0} is not implemented by MetaStore yet, see docs/limitations.md")]
    Unimplemented(&'static str),
    /// The engine failed; the process is about to end.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<ReadError> for RequestError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Etcd(error) => Self::Etcd(error),
            ReadError::Engine(error) => Self::Engine(error),
        }
    }
}

impl From<RequestError> for tonic::Status {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Etcd(error) => error.into(),
            RequestError::NotProposed => Self::deadline_exceeded(error.to_string()),
            RequestError::Unimplemented(_) => Self::unimplemented(error.to_string()),
            RequestError::Unknown(_) | RequestError::Engine(_) => Self::unknown(error.to_string()),
        }
    }
}
