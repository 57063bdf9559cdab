//! The names of groups, and the ids that the engine knows them by.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::HeaderMap;
use esamp::GroupId;

use crate::{
    error::ApiError,
    fields::{Fields, shown},
    keys::Client,
};

/// A bounded table of names. Clients with different keys have different groups.
#[derive(Debug)]
pub struct Groups {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Least recently used first.
    known: Vec<Known>,
    next: u64,
}

#[derive(Debug)]
struct Known {
    client: Client,
    name: String,
    id: GroupId,
    /// Requests of the group that are being served.
    users: usize,
}

/// A group that is in use, and is therefore not forgotten.
#[derive(Debug)]
pub struct GroupUse {
    pub id: GroupId,
    /// The group that it has taken the place of.
    forgotten: Option<Known>,
    /// Whether the engine has taken a request of the group.
    is_kept: bool,
    groups: Arc<Groups>,
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

impl Groups {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default() })
    }

    /// The group of this name. A new one takes the place of the least recently used one that is not in use.
    pub fn enter(self: &Arc<Self>, client: Client, name: &str) -> Result<GroupUse, ApiError> {
        let mut state = self.lock();
        let at = state.known.iter().position(|group| group.client == client && group.name == name);
        let mut forgotten = None;
        let mut group = match at {
            Some(at) => state.known.remove(at),
            None => {
                if state.known.len() >= self.most {
                    let Some(idle) = state.known.iter().position(|group| group.users == 0) else {
                        let most = self.most;
                        let message =
                            format!("esamp.group: expected at most {most} in use at once");
                        return Err(ApiError::busy(message).with_param("esamp.group"));
                    };
                    forgotten = Some(state.known.remove(idle));
                }
                let id = GroupId(state.next);
                state.next += 1;
                Known { client, name: name.to_owned(), id, users: 0 }
            }
        };
        group.users += 1;
        let id = group.id;
        state.known.push(group);
        drop(state);
        Ok(GroupUse { id, forgotten, is_kept: false, groups: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GroupUse {
    /// Keeps the group, because the engine has taken a request of it. Returns the one whose place it has taken.
    pub fn keep(&mut self) -> Option<GroupId> {
        self.is_kept = true;
        self.forgotten.as_ref().map(|group| group.id)
    }
}

impl Drop for GroupUse {
    fn drop(&mut self) {
        let mut state = self.groups.lock();
        let Some(at) = state.known.iter().position(|group| group.id == self.id) else {
            return;
        };
        state.known[at].users -= 1;
        // A request that was refused has taken nobody's place.
        if !self.is_kept
            && state.known[at].users == 0
            && let Some(group) = self.forgotten.take()
        {
            state.known.remove(at);
            state.known.insert(0, group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_group_that_is_idle_is_forgotten() {
        let groups = Groups::new(2);
        let id = |client, name: &str| groups.enter(Client(client), name).unwrap().id;
        let (a, b) = (id(0, "a"), id(0, "b"));
        assert_eq!((id(0, "a"), a == b), (a, false));
        drop(groups.enter(Client(0), "refused").unwrap());
        assert_eq!((id(0, "b"), id(0, "a")), (b, a), "a refused request takes nobody's place");
        let mut c = groups.enter(Client(0), "c").unwrap();
        assert_eq!(c.keep(), Some(b));
        drop(c);
        assert_eq!(id(0, "a"), a);
        assert_ne!(id(0, "b"), b);
        assert_ne!(id(1, "b"), id(0, "b"), "another client");
    }

    #[test]
    fn groups_in_use_are_kept_and_a_full_table_is_busy() {
        let groups = Groups::new(1);
        let first = groups.enter(Client(0), "a").unwrap();
        assert_eq!(groups.enter(Client(0), "a").unwrap().id, first.id);
        let error = groups.enter(Client(0), "b").unwrap_err();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (429, Some("esamp.group")));
        drop(first);
        assert!(groups.enter(Client(0), "b").is_ok());
    }
}
