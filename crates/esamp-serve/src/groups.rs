//! The names of groups, and the ids that the engine knows them by.

use std::hash::{BuildHasher, RandomState};

use axum::http::HeaderMap;
use esamp::GroupId;

use crate::{
    error::ApiError,
    fields::{Fields, shown},
    keys::Client,
};

/// Gives groups their ids: a hash of the client and the name, with a key that is drawn when the server starts. So there
/// is no table that could grow or disagree with the engine's about which groups are kept. Two names have the same id
/// with a probability of 2⁻⁶⁴, and nobody can look for such names without the key.
#[derive(Debug, Default)]
pub struct Groups(RandomState);

impl Groups {
    /// The id of a group. Clients with different keys have different groups.
    pub fn id(&self, client: Client, name: &str) -> GroupId {
        GroupId(self.0.hash_one((client, name)))
    }
}

/// The longest name of a group, in bytes.
const LONGEST_NAME: usize = 256;

/// The header with the name of a group, for balancers that do not read bodies.
const HEADER: &str = "X-Esamp-Group";

/// The name of the group that a request asks for: in its body, in the header, or the same in both.
pub(crate) fn requested(
    headers: &HeaderMap,
    esamp: &mut Fields,
) -> Result<Option<String>, ApiError> {
    let field = esamp.text("group")?;
    let mut sent = headers.get_all(HEADER).iter();
    let header = match (sent.next(), sent.next()) {
        (None, _) => None,
        (Some(name), None) => match std::str::from_utf8(name.as_bytes()) {
            Ok(name) => Some(name.to_owned()),
            Err(_) => return Err(ApiError::field(HEADER, "UTF-8", "other bytes")),
        },
        (Some(_), Some(_)) => return Err(ApiError::field(HEADER, "one such header", "several")),
    };
    if let (Some(header), Some(field)) = (&header, &field)
        && header != field
    {
        let expected = format!("the value of esamp.group, {}", shown(&field.as_str().into()));
        return Err(ApiError::field(HEADER, &expected, &shown(&header.as_str().into())));
    }
    let place = if field.is_some() { "esamp.group" } else { HEADER };
    match field.or(header) {
        Some(name) if !(1..=LONGEST_NAME).contains(&name.len()) => {
            let expected = format!("a string of 1 to {LONGEST_NAME} bytes");
            Err(ApiError::field(place, &expected, &format!("{} bytes", name.len())))
        }
        name => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_client_and_a_name() {
        let groups = Groups::default();
        let a = groups.id(Client(0), "a");
        assert_eq!(groups.id(Client(0), "a"), a);
        assert_ne!(groups.id(Client(0), "b"), a);
        assert_ne!(groups.id(Client(1), "a"), a);
        assert_ne!(Groups::default().id(Client(0), "a"), a, "another server");
    }
}
