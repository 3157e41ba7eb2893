//! Sizes for people, in the words of etcd's tools.

/// A size with its unit, in powers of 1000: `97 B`, `1.2 kB`, `24 MB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    match value < 10.0 {
        true => format!("{value:.1} {}", UNITS[unit]),
        false => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn sizes_are_those_of_etcdutl() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (97, "97 B"),
            (1000, "1.0 kB"),
            (20480, "20 kB"),
            (1_234_567, "1.2 MB"),
            (82_854_982, "83 MB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
