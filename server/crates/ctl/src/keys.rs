//! Ranges of keys.

/// The first key after all keys with a prefix; `\0`, which means all, when there is none.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return end;
        }
        end.pop();
    }
    vec![0]
}

/// Key and end of a range as the flags `--prefix` and `--from-key` choose it.
pub fn range(key: &[u8], end: Option<&[u8]>, prefix: bool, from_key: bool) -> (Vec<u8>, Vec<u8>) {
    if (prefix || from_key) && key.is_empty() {
        return (vec![0], vec![0]);
    }
    let end = match (prefix, from_key) {
        (true, _) => prefix_end(key),
        (_, true) => vec![0],
        _ => end.unwrap_or_default().to_vec(),
    };
    (key.to_vec(), end)
}
