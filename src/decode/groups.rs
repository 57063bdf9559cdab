//! Groups of requests that share a distiller, which outlives each of them.

use super::{Decoder, RequestError};
use crate::{
    causal_lm::CausalLm,
    error::ConfigError,
    id::{GroupId, PromptId},
};

/// The groups that are known, least recently used first.
pub(super) struct Groups {
    known: Vec<Group>,
    most: usize,
}

struct Group {
    id: GroupId,
    /// The prompt id of all of its requests, which is what they share.
    prompt: PromptId,
    /// The index of the next completion.
    next: u64,
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { known: Vec::new(), most: usize::MAX }
    }

    /// The prompt id and the first index for `completions` more completions of a group that is known.
    pub(super) fn extend(&mut self, id: GroupId, completions: u64) -> Option<(PromptId, u64)> {
        let at = self.known.iter().position(|group| group.id == id)?;
        let mut group = self.known.remove(at);
        let first = group.next;
        let place = (group.prompt, first);
        // The largest index is the sampler's, which holds the distiller with it.
        group.next = first.checked_add(completions).filter(|&next| next < u64::MAX)?;
        self.known.push(group);
        Some(place)
    }
}

impl<M: CausalLm> Decoder<M> {
    /// Limits the number of [groups](crate::Request::with_group) that are kept, at least 1. A request of a new group
    /// then evicts the least recently used one that has no completion waiting, running or paused, and is refused if
    /// there is none. The default is no limit: groups are kept until [`release_group`](Self::release_group).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `groups` is 0.
    pub fn with_max_groups(mut self, groups: usize) -> Result<Self, ConfigError> {
        ConfigError::at_least_one("max_groups", groups)?;
        self.groups.most = groups;
        Ok(self)
    }

    /// The groups that are kept, least recently used first.
    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.known.iter().map(|group| group.id).collect()
    }

    /// Forgets a group. Its distiller is freed when its last running completion has ended, and a later request of the
    /// same group begins with a new one.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownGroup`] when the group is not kept.
    pub fn release_group(&mut self, group: GroupId) -> Result<(), RequestError> {
        let at = self.groups.known.iter().position(|known| known.id == group);
        let at = at.ok_or(RequestError::UnknownGroup { group })?;
        let group = self.groups.known.remove(at);
        self.sampler.unhold(group.prompt);
        Ok(())
    }

    /// Checks that a request of this group can be taken.
    pub(super) fn check_group(&self, group: GroupId) -> Result<(), RequestError> {
        if !self.sampler.sharing().is_per_prompt() {
            return Err(RequestError::GroupSharing { sharing: self.sampler.sharing() });
        }
        let is_known = self.groups.known.iter().any(|known| known.id == group);
        let is_full = self.groups.known.len() >= self.groups.most;
        if !is_known && is_full && self.evictable().is_none() {
            return Err(RequestError::GroupLimit { limit: self.groups.most });
        }
        Ok(())
    }

    /// Adds a group whose first request has this prompt id.
    pub(super) fn found_group(&mut self, id: GroupId, prompt: PromptId, completions: u64) {
        if self.groups.known.len() >= self.groups.most
            && let Some(evicted) = self.evictable()
        {
            // It is known, so this cannot fail.
            let _ = self.release_group(evicted);
        }
        self.sampler.hold(prompt);
        self.groups.known.push(Group { id, prompt, next: completions });
    }

    /// The least recently used group without completions.
    fn evictable(&self) -> Option<GroupId> {
        let known = self.sampler.completions();
        let has_completions = |prompt| known.iter().any(|completion| completion.prompt == prompt);
        let idle = self.groups.known.iter().find(|group| !has_completions(group.prompt));
        idle.map(|group| group.id)
    }
}
