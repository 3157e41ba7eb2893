//! Tables with a frame of lines, headlines in capitals and centred, cells to the right.

/// Text of a table.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|title| title.to_uppercase()).collect();
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(column, title)| {
            rows.iter()
                .map(|row| width(&row[column]))
                .chain([width(title)])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |left: char, middle: char, right: char| {
        let parts: Vec<_> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", parts.join(&middle.to_string()))
    };
    let row = |cells: Vec<String>| format!("│{}│\n", cells.join("│"));
    let mut text = line('┌', '┬', '┐');
    text.push_str(&row(header
        .iter()
        .zip(&widths)
        .map(|(title, wanted)| {
            let free = wanted - width(title);
            let left = free / 2;
            format!(" {}{title}{} ", " ".repeat(left), " ".repeat(free - left))
        })
        .collect()));
    if !rows.is_empty() {
        text.push_str(&line('├', '┼', '┤'));
    }
    for cells in rows {
        text.push_str(&row(cells
            .iter()
            .zip(&widths)
            .map(|(cell, wanted)| format!(" {}{cell} ", " ".repeat(wanted - width(cell))))
            .collect()));
    }
    text.push_str(&line('└', '┴', '┘'));
    text
}

/// Bytes as people read them, as Go's `humanize.Bytes`.
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
    let rounded = (value * 10.0 + 0.5).floor() / 10.0;
    if rounded < 10.0 {
        format!("{rounded:.1} {}", UNITS[unit])
    } else {
        format!("{rounded:.0} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_humanize_writes_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (25, "25 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (2_147_483_648, "2.1 GB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
