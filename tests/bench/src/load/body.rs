//! Prepared requests: encoded once, then copied and patched for each call.

use std::io::Write;
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use metastore_proto::etcdserverpb::{PutRequest, RangeRequest};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, RngCore};

use crate::client::frame;

/// Length of every key.
pub const KEY_BYTES: usize = 26;

/// Random bytes that values are cut from. Values must not compress, or the engine that compresses
/// would look smaller than it is with real data; 1 MiB is far beyond the window of its compressor.
const VALUE_POOL_BYTES: usize = 1024 * 1024;

/// The keys of a run: `prefix` and a number, zero-padded to [`KEY_BYTES`].
#[derive(Clone, Debug)]
pub struct KeySpace {
    /// What all keys begin with; shorter than [`KEY_BYTES`].
    pub prefix: String,
    /// Number of keys.
    pub keys: u64,
}

impl KeySpace {
    /// The key with a number.
    pub fn key(&self, number: u64) -> Vec<u8> {
        let digits = KEY_BYTES - self.prefix.len();
        format!("{}{number:0digits$}", self.prefix).into_bytes()
    }

    /// The first key behind the prefix, as `range_end`.
    pub fn end(&self) -> Vec<u8> {
        let mut end = self.prefix.clone().into_bytes();
        *end.last_mut().expect("the prefix is not empty") += 1;
        end
    }
}

/// A framed request in which a key, and perhaps a value, is replaced for each call.
#[derive(Clone, Debug)]
pub struct Template {
    body: Vec<u8>,
    digits: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

impl Template {
    /// A put of `value_bytes` random bytes.
    pub fn put(keys: &KeySpace, value_bytes: usize) -> Self {
        let request = PutRequest {
            key: keys.key(0).into(),
            value: vec![0; value_bytes].into(),
            ..Default::default()
        };
        let mut template = Self::find_key(keys, &request);
        // The value is the last field of the request.
        template.value = template.body.len() - value_bytes..template.body.len();
        template
    }

    /// A read of one key.
    pub fn get(keys: &KeySpace, serializable: bool) -> Self {
        let request = RangeRequest {
            key: keys.key(0).into(),
            serializable,
            ..Default::default()
        };
        Self::find_key(keys, &request)
    }

    /// The request for the key with this number.
    pub fn fill(&self, number: u64, random: &mut StdRng) -> Bytes {
        let mut body = BytesMut::from(self.body.as_slice());
        let mut rest = number;
        for digit in body[self.digits.clone()].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        if !self.value.is_empty() {
            body[self.value.clone()].copy_from_slice(random_value(self.value.len(), random));
        }
        body.freeze()
    }

    /// As [`Template::fill`], with `stamp` in the first eight bytes of the value.
    pub fn fill_stamped(&self, number: u64, stamp: u64, random: &mut StdRng) -> Bytes {
        let mut body = BytesMut::from(self.fill(number, random));
        let mut value = &mut body[self.value.clone()];
        value
            .write_all(&stamp.to_be_bytes())
            .expect("a value has room for a stamp");
        body.freeze()
    }

    fn find_key(keys: &KeySpace, request: &impl Message) -> Self {
        let body = frame(request).to_vec();
        let key = keys.key(0);
        let start = body
            .windows(key.len())
            .position(|window| window == key)
            .expect("the request holds the key");
        Self {
            body,
            digits: start + keys.prefix.len()..start + KEY_BYTES,
            value: 0..0,
        }
    }
}

/// Random bytes; two calls hardly ever give the same ones.
pub fn random_value(length: usize, random: &mut StdRng) -> &'static [u8] {
    static POOL: OnceLock<Vec<u8>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let mut pool = vec![0; VALUE_POOL_BYTES];
        rand::rng().fill_bytes(&mut pool);
        pool
    });
    let start = random.random_range(0..pool.len() - length);
    &pool[start..start + length]
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_filled_template_is_the_request_of_that_key() {
        let keys = KeySpace {
            prefix: "bench/".to_owned(),
            keys: 10,
        };
        let mut random = StdRng::from_os_rng();
        let body = Template::put(&keys, 256).fill_stamped(1234, 7, &mut random);
        let put = PutRequest::decode(&body[5..]).unwrap();
        assert_eq!(put.key.as_ref(), b"bench/00000000000000001234");
        assert_eq!(put.value.len(), 256);
        assert_eq!(&put.value[..8], &[0, 0, 0, 0, 0, 0, 0, 7]);
        let get =
            RangeRequest::decode(&Template::get(&keys, true).fill(9, &mut random)[5..]).unwrap();
        assert_eq!(get.key.as_ref(), keys.key(9));
        assert!(get.serializable);
    }
}
