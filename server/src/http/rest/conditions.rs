//! `If-Match` and `If-None-Match`: entity tags are revisions.
//!
//! The tag of a key is the revision of its last change in quotes; a key that does not exist has `"0"`,
//! so that a client can say "only if nobody has made it" in either header.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use metastore_proto::etcdserverpb::{Compare, compare};

use super::problem::Problem;

/// The tags that one header lists.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    /// `*`: any key that exists.
    Any,
    /// These revisions; a tag that is none of ours matches nothing.
    Revisions(Vec<i64>),
}

impl Tags {
    fn read(headers: &HeaderMap, name: &HeaderName, weak: bool) -> Result<Option<Self>, Problem> {
        let mut revisions = Vec::new();
        let mut given = false;
        for value in headers.get_all(name) {
            given = true;
            let text = value.to_str().unwrap_or_default();
            if text.trim() == "*" {
                return Ok(Some(Self::Any));
            }
            for tag in text.split(',') {
                let tag = tag.trim();
                let strong = tag.strip_prefix("W/");
                let quoted = strong
                    .unwrap_or(tag)
                    .strip_prefix('"')
                    .and_then(|tag| tag.strip_suffix('"'))
                    .ok_or_else(|| {
                        Problem::bad_request(&format!(
                            "{name}: {tag} is no entity tag; write \"REVISION\" with its quotes, or *"
                        ))
                    })?;
                // A weak tag never matches where a strong comparison is asked for.
                if strong.is_some() && !weak {
                    continue;
                }
                revisions.extend(quoted.parse::<i64>().ok().filter(|number| *number >= 0));
            }
        }
        Ok(given.then_some(Self::Revisions(revisions)))
    }

    fn matches(&self, revision: i64) -> bool {
        match self {
            Self::Any => revision > 0,
            Self::Revisions(revisions) => revisions.contains(&revision),
        }
    }
}

/// The conditions of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    present: Option<Tags>,
    absent: Option<Tags>,
}

impl Conditions {
    /// Reads both headers.
    ///
    /// # Errors
    /// A value that is no entity tag.
    pub fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Self {
            present: Tags::read(headers, &header::IF_MATCH, false)?,
            absent: Tags::read(headers, &header::IF_NONE_MATCH, true)?,
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.present.is_none() && self.absent.is_none()
    }

    /// Whether `If-Match` refuses a key that last changed at `revision`; 0: does not exist.
    pub fn if_match_fails(&self, revision: i64) -> bool {
        self.present
            .as_ref()
            .is_some_and(|tags| !tags.matches(revision))
    }

    /// Whether `If-None-Match` names this revision: the client has it already.
    pub fn is_known(&self, revision: i64) -> bool {
        self.absent
            .as_ref()
            .is_some_and(|tags| tags.matches(revision))
    }

    /// Whether a transaction can check them without looking first: `If-Match` with several tags
    /// means "one of them", and a transaction can only say "all of them".
    pub fn needs_look(&self) -> bool {
        matches!(&self.present, Some(Tags::Revisions(revisions)) if revisions.len() != 1)
    }

    /// The comparisons of a transaction that holds them. `seen`: the revision that a look found, for
    /// conditions that need one.
    pub fn compares(&self, key: &Bytes, seen: Option<i64>) -> Vec<Compare> {
        let mut compares = Vec::new();
        match (&self.present, seen) {
            (Some(_), Some(revision)) => compares.push(changed_at(key, revision, true)),
            (Some(Tags::Any), None) => compares.push(changed_at(key, 0, false)),
            (Some(Tags::Revisions(revisions)), None) => {
                compares.extend(
                    revisions
                        .iter()
                        .map(|revision| changed_at(key, *revision, true)),
                );
            }
            (None, _) => {}
        }
        match &self.absent {
            Some(Tags::Any) => compares.push(changed_at(key, 0, true)),
            Some(Tags::Revisions(revisions)) => {
                compares.extend(
                    revisions
                        .iter()
                        .map(|revision| changed_at(key, *revision, false)),
                );
            }
            None => {}
        }
        compares
    }
}

/// Whether the key was, or was not, last changed at this revision; a missing key has 0.
pub fn changed_at(key: &Bytes, revision: i64, equal: bool) -> Compare {
    let result = if equal {
        compare::CompareResult::Equal
    } else {
        compare::CompareResult::NotEqual
    };
    Compare {
        result: result.into(),
        target: compare::CompareTarget::Mod.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
    }
}

/// The entity tag of a revision.
pub fn entity_tag(revision: i64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{revision}\"")).expect("digits and quotes are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: HeaderName, value: &'static str) -> Result<Conditions, Problem> {
        let headers = [(name, HeaderValue::from_static(value))];
        Conditions::read(&headers.into_iter().collect())
    }

    #[test]
    fn tags_are_compared_strongly_for_writes_and_weakly_for_reads() {
        let conditions = read(header::IF_MATCH, "\"5\", W/\"7\"").expect("valid");
        assert!(!conditions.if_match_fails(5));
        assert!(conditions.if_match_fails(7), "a weak tag");
        let conditions = read(header::IF_NONE_MATCH, "W/\"7\",\"other\"").expect("valid");
        assert!(conditions.is_known(7) && !conditions.is_known(0));
        let conditions = read(header::IF_MATCH, "*").expect("valid");
        assert!(conditions.if_match_fails(0) && !conditions.if_match_fails(1));
        assert!(read(header::IF_MATCH, "5").is_err());
    }
}
