//! The few protobuf fields that the load program looks at, read in place.

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'message> {
    /// A number; fixed-width ones do not occur in the messages of the API.
    Varint(u64),
    /// A string, bytes or a message.
    Bytes(&'message [u8]),
}

/// The fields of an encoded message, in order. Ends at the first thing that is malformed.
pub fn fields(message: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    let mut rest = message;
    std::iter::from_fn(move || {
        let tag = varint(&mut rest)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut rest)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(length)?;
                rest = after;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    })
}

/// The number in a field of a message; 0, as in protobuf, when it is absent.
pub fn number(message: &[u8], wanted: u64) -> u64 {
    fields(message)
        .find_map(|field| match field {
            (found, Value::Varint(value)) if found == wanted => Some(value),
            _ => None,
        })
        .unwrap_or_default()
}

/// The bytes in a field of a message; empty when it is absent.
pub fn bytes(message: &[u8], wanted: u64) -> &[u8] {
    fields(message)
        .find_map(|field| match field {
            (found, Value::Bytes(value)) if found == wanted => Some(value),
            _ => None,
        })
        .unwrap_or_default()
}

/// The revision in the header of an answer; every answer has its header in field 1.
pub fn header_revision(answer: &[u8]) -> i64 {
    number(bytes(answer, 1), 3).cast_signed()
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use metastore_proto::etcdserverpb::{RangeResponse, ResponseHeader};
    use prost::Message;

    use super::*;

    #[test]
    fn fields_of_an_answer_are_read_in_place() {
        let answer = RangeResponse {
            header: Some(ResponseHeader {
                member_id: u64::MAX,
                revision: 1_000_000,
                ..Default::default()
            }),
            count: 300,
            more: true,
            ..Default::default()
        }
        .encode_to_vec();
        assert_eq!(header_revision(&answer), 1_000_000);
        assert_eq!(number(&answer, 4), 300);
        assert_eq!(number(&answer, 9), 0);
        assert_eq!(fields(&answer[..answer.len() - 1]).count(), 2);
    }
}
