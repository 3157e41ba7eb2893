//! `--namespace`: a prefix that clients do not see, in front of every key.
//!
//! As clientv3's package `namespace`: key-value calls, watches and the keys of leases have it; locks, elections,
//! permissions and everything about the cluster do not.

use bytes::{BufMut, Bytes, BytesMut};
use metastore_proto::EncodedKeyValue;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse, request_op, response_op,
};
use metastore_proto::mvccpb::Event;

/// The end of a range that has no end.
const NO_END: &[u8] = b"\0";

/// The prefix; often empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace(Bytes);

impl Namespace {
    /// With this prefix.
    pub fn new(prefix: &str) -> Self {
        Self(Bytes::copy_from_slice(prefix.as_bytes()))
    }

    /// A namespace inside of this one.
    pub fn inside(&self, prefix: &Self) -> Self {
        Self(self.key(&prefix.0))
    }

    /// All keys that are in it, as a key and the end of a range.
    pub fn everything(&self) -> (Bytes, Bytes) {
        (self.0.clone(), self.end())
    }

    /// Whether keys are the same on both sides.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A key as the cluster knows it.
    pub fn key(&self, key: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.0.len() + key.len());
        bytes.put_slice(&self.0);
        bytes.put_slice(key);
        bytes.freeze()
    }

    /// The end of a range as the cluster knows it; a range without end ends with the namespace.
    pub fn range_end(&self, range_end: &[u8]) -> Bytes {
        match range_end {
            [] => Bytes::new(),
            NO_END => self.end(),
            end => self.key(end),
        }
    }

    /// The first key behind the namespace.
    fn end(&self) -> Bytes {
        let mut end = self.0.to_vec();
        for byte in end.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return end.into();
            }
        }
        Bytes::from_static(NO_END)
    }

    /// A key as clients know it; nothing for a key outside.
    pub fn strip<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(&self.0[..])
    }

    /// # Errors
    /// `key is not provided`.
    pub fn range(&self, request: &mut RangeRequest) -> Result<(), EtcdError> {
        self.interval(&mut request.key, &mut request.range_end)
    }

    /// # Errors
    /// `key is not provided`.
    pub fn put(&self, request: &mut PutRequest) -> Result<(), EtcdError> {
        self.interval(&mut request.key, &mut Bytes::new())
    }

    /// # Errors
    /// `key is not provided`.
    pub fn delete_range(&self, request: &mut DeleteRangeRequest) -> Result<(), EtcdError> {
        self.interval(&mut request.key, &mut request.range_end)
    }

    fn interval(&self, key: &mut Bytes, range_end: &mut Bytes) -> Result<(), EtcdError> {
        if key.is_empty() {
            return Err(EtcdError::EmptyKey);
        }
        *key = self.key(key);
        *range_end = self.range_end(range_end);
        Ok(())
    }

    /// # Errors
    /// `key is not provided`: with the prefix an empty key would become one.
    pub fn txn(&self, request: &mut TxnRequest) -> Result<(), EtcdError> {
        for Compare { key, range_end, .. } in &mut request.compare {
            self.interval(key, range_end)?;
        }
        for operation in request.success.iter_mut().chain(&mut request.failure) {
            self.operation(operation)?;
        }
        Ok(())
    }

    fn operation(&self, operation: &mut RequestOp) -> Result<(), EtcdError> {
        use request_op::Request;
        match &mut operation.request {
            Some(Request::RequestRange(range)) => self.range(range),
            Some(Request::RequestPut(put)) => self.put(put),
            Some(Request::RequestDeleteRange(delete)) => self.delete_range(delete),
            Some(Request::RequestTxn(txn)) => self.txn(txn),
            // The cluster says what it thinks of an operation that is none.
            None => Ok(()),
        }
    }

    /// Shows clients their own keys.
    pub fn strip_range(&self, response: &mut RangeResponse) {
        for pair in &mut response.kvs {
            self.strip_pair(pair);
        }
    }

    /// Shows clients their own keys.
    pub fn strip_put(&self, response: &mut PutResponse) {
        if let Some(pair) = &mut response.prev_kv {
            self.strip_pair(pair);
        }
    }

    /// Shows clients their own keys.
    pub fn strip_delete_range(&self, response: &mut DeleteRangeResponse) {
        for pair in &mut response.prev_kvs {
            self.strip_pair(pair);
        }
    }

    /// Shows clients their own keys.
    pub fn strip_txn(&self, response: &mut TxnResponse) {
        use response_op::Response;
        for operation in &mut response.responses {
            match &mut operation.response {
                Some(Response::ResponseRange(range)) => self.strip_range(range),
                Some(Response::ResponsePut(put)) => self.strip_put(put),
                Some(Response::ResponseDeleteRange(delete)) => self.strip_delete_range(delete),
                Some(Response::ResponseTxn(txn)) => self.strip_txn(txn),
                None => {}
            }
        }
    }

    /// Shows clients their own keys.
    pub fn strip_event(&self, event: &mut Event) {
        for pair in [&mut event.kv, &mut event.prev_kv].into_iter().flatten() {
            self.strip_pair(pair);
        }
    }

    /// A pair that cannot be read or is not in the namespace stays as it is; the cluster sends neither.
    fn strip_pair(&self, pair: &mut EncodedKeyValue) {
        let Ok(mut fields) = pair.decode() else {
            return;
        };
        let Some(key) = self.strip(&fields.key) else {
            return;
        };
        fields.key = fields.key.slice_ref(key);
        *pair = EncodedKeyValue::from(&fields);
    }
}

#[cfg(test)]
mod tests {
    use metastore_proto::KeyValue;

    use super::*;

    #[test]
    fn a_range_stays_inside_the_namespace() {
        for (prefix, range_end, wanted) in [
            (&b"ns/"[..], &b""[..], &b""[..]),
            (b"ns/", b"b", b"ns/b"),
            (b"ns/", b"\0", b"ns0"),
            (b"a\xff\xff", b"\0", b"b\0\0"),
            (b"\xff\xff", b"\0", b"\0"),
        ] {
            let namespace = Namespace(Bytes::from_static(prefix));
            assert_eq!(namespace.range_end(range_end), wanted, "{prefix:?}");
        }
    }

    #[test]
    fn transactions_are_prefixed_at_every_depth() {
        let namespace = Namespace::new("ns/");
        let put = |key: &'static str| RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest {
                key: key.into(),
                ..Default::default()
            })),
        };
        let nested = TxnRequest {
            failure: vec![put("b")],
            ..Default::default()
        };
        let mut request = TxnRequest {
            compare: vec![Compare {
                key: "a".into(),
                range_end: "\0".into(),
                ..Default::default()
            }],
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestTxn(nested)),
            }],
            failure: Vec::new(),
        };
        namespace.txn(&mut request).expect("keys");
        assert_eq!(request.compare[0].key, "ns/a");
        assert_eq!(request.compare[0].range_end, "ns0");
        let Some(request_op::Request::RequestTxn(nested)) = &request.success[0].request else {
            panic!("still a transaction");
        };
        assert_eq!(nested.failure[0], put("ns/b"));
        assert_eq!(
            namespace.put(&mut PutRequest::default()),
            Err(EtcdError::EmptyKey)
        );
    }

    #[test]
    fn answers_lose_the_prefix() {
        let namespace = Namespace::new("ns/");
        let fields = |key: &'static str| KeyValue {
            key: key.into(),
            value: "v".into(),
            mod_revision: 7,
            ..Default::default()
        };
        let mut event = Event {
            r#type: 0,
            kv: Some(EncodedKeyValue::from(&fields("ns/a"))),
            prev_kv: Some(EncodedKeyValue::from(&fields("ns/a"))),
        };
        namespace.strip_event(&mut event);
        for pair in [event.kv, event.prev_kv] {
            assert_eq!(pair.expect("there").decode(), Ok(fields("a")));
        }
    }
}
