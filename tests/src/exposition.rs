//! Prometheus' text format, as a scraper reads it.

use std::collections::{BTreeMap, BTreeSet};

/// Labels with their values.
pub type Labels = BTreeMap<String, String>;

/// One metric family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// What the `# TYPE` line says.
    pub kind: String,
    /// What the `# HELP` line says.
    pub help: String,
    /// Samples by name (a histogram has three) and labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

impl Family {
    /// The sets of label names that samples have, without `le`.
    pub fn label_names(&self) -> BTreeSet<Vec<String>> {
        self.samples
            .keys()
            .map(|(_, labels)| {
                labels
                    .keys()
                    .filter(|name| *name != "le")
                    .cloned()
                    .collect()
            })
            .collect()
    }

    /// The upper bounds of buckets. Empty unless it is a histogram.
    pub fn bounds(&self) -> Vec<f64> {
        let mut bounds: Vec<f64> = self
            .samples
            .keys()
            .filter_map(|(_, labels)| labels.get("le"))
            .map(|bound| match bound.as_str() {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().expect("a bound is a number"),
            })
            .collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        bounds
    }
}

/// Reads an exposition.
///
/// # Panics
/// When it is not well formed, or a sample stands outside of its family.
pub fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(
                !families.contains_key(name),
                "the family {name} stands twice"
            );
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            current = name.to_owned();
            families.entry(current.clone()).or_default().kind = kind.to_owned();
        } else if !line.is_empty() {
            let (name, labels, value) = sample(line);
            assert!(
                name.starts_with(&current),
                "{name} stands in the family {current}"
            );
            let family = families.get_mut(&current).expect("a family has a head");
            let before = family.samples.insert((name, labels), value);
            assert!(before.is_none(), "a sample stands twice: {line}");
        }
    }
    families
}

fn sample(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
    let value = value.parse().expect("a value is a number");
    let Some((name, labels)) = series.split_once('{') else {
        return (series.to_owned(), Labels::new(), value);
    };
    let labels = labels.strip_suffix('}').expect("labels end with a brace");
    (name.to_owned(), parse_labels(labels), value)
}

fn parse_labels(mut rest: &str) -> Labels {
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (name, quoted) = rest.split_once("=\"").expect("a label has a value");
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next().expect("a value ends with a quote") {
                (position, '"') => break position,
                (_, '\\') => match characters.next().expect("an escaped character").1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    labels
}
