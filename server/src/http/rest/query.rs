//! Query parameters. One that is unknown or repeated is refused: it is a typing error more often than
//! a wish that may be ignored.

use http::Uri;

use super::path;
use super::problem::Problem;

/// The parameters of one request.
pub struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Reads the query of `uri`.
    ///
    /// # Errors
    /// A parameter that is not in `known`, or that comes twice.
    pub fn read(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let mut parameters: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&') {
            if pair.is_empty() {
                continue;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) {
                return Err(Problem::bad_request(&format!(
                    "unknown query parameter {name:?}; known: {}",
                    known.join(", ")
                )));
            }
            if parameters.iter().any(|(other, _)| other == name) {
                return Err(Problem::bad_request(&format!(
                    "query parameter {name:?} is given twice"
                )));
            }
            let value = path::decode(&value.replace('+', "%20"))?;
            parameters.push((name.to_owned(), value.to_vec()));
        }
        Ok(Self(parameters))
    }

    /// A parameter's bytes.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().find(|(other, _)| other == name)?;
        Some(value)
    }

    /// A whole number that is not below `minimum`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn integer(&self, name: &str, minimum: i64) -> Result<Option<i64>, Problem> {
        let Some(value) = self.bytes(name) else {
            return Ok(None);
        };
        std::str::from_utf8(value)
            .ok()
            .and_then(|value| value.parse().ok())
            .filter(|number| *number >= minimum)
            .map(Some)
            .ok_or_else(|| {
                Problem::bad_request(&format!(
                    "query parameter {name:?} must be a whole number from {minimum}"
                ))
            })
    }

    /// A switch: absent is false; present without a value is true.
    ///
    /// # Errors
    /// When it is neither `true` nor `false`.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.bytes(name) {
            None | Some(b"false") => Ok(false),
            Some(b"" | b"true") => Ok(true),
            Some(_) => Err(Problem::bad_request(&format!(
                "query parameter {name:?} must be true or false"
            ))),
        }
    }
}
