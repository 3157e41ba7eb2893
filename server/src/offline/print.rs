//! Output formats of etcdutl.

use super::{EXIT_BAD_FEATURE, Failure};

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Values between commas.
    Simple,
    /// One JSON object.
    Json,
    /// A table with a border.
    Table,
    /// One line for each value.
    Fields,
}

impl Format {
    /// Reads `--write-out`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let refused = |text: &str| {
            Err(Failure {
                text: text.to_owned(),
                status: EXIT_BAD_FEATURE,
            })
        };
        match text {
            "simple" => Ok(Self::Simple),
            "json" => Ok(Self::Json),
            "table" => Ok(Self::Table),
            "fields" => Ok(Self::Fields),
            "protobuf" => refused("protobuf not supported as output format"),
            _ => refused("unsupported output format"),
        }
    }
}

/// One value of a result, as each format shows it.
pub(super) struct Column {
    /// Heading of the table.
    pub heading: &'static str,
    /// Name in the format `fields`.
    pub field: &'static str,
    /// Name in JSON.
    pub json: &'static str,
    /// In `simple` and `table`.
    pub text: String,
    /// In `fields` and JSON.
    pub value: serde_json::Value,
}

/// Writes one result.
pub(super) fn print(format: Format, columns: &[Column]) {
    match format {
        Format::Simple => {
            let texts: Vec<&str> = columns.iter().map(|column| column.text.as_str()).collect();
            println!("{}", texts.join(", "));
        }
        Format::Json => {
            // Built by hand because a JSON object would sort its names.
            let fields: Vec<String> = columns
                .iter()
                .map(|column| format!("\"{}\":{}", column.json, column.value))
                .collect();
            println!("{{{}}}", fields.join(","));
        }
        Format::Table => print_table(columns),
        Format::Fields => {
            for column in columns {
                match &column.value {
                    serde_json::Value::String(text) => println!("\"{}\" : {text}", column.field),
                    value => println!("\"{}\" : {value}", column.field),
                }
            }
        }
    }
}

fn print_table(columns: &[Column]) {
    let widths: Vec<usize> = columns
        .iter()
        .map(|column| column.heading.len().max(column.text.len()))
        .collect();
    let border = |left: &str, middle: &str, right: &str| {
        let lines: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        println!("{left}{}{right}", lines.join(middle));
    };
    let row = |cells: Vec<String>| println!("│ {} │", cells.join(" │ "));
    border("┌", "┬", "┐");
    row(columns
        .iter()
        .zip(&widths)
        .map(|(column, width)| format!("{:^width$}", column.heading.to_uppercase()))
        .collect());
    border("├", "┼", "┤");
    row(columns
        .iter()
        .zip(&widths)
        .map(|(column, width)| format!("{:>width$}", column.text))
        .collect());
    border("└", "┴", "┘");
}
