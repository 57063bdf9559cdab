//! Groups of requests that share a distiller, which outlives each of them.

use std::{collections::HashSet, path::Path};

use super::{Decoder, GroupError, RequestError};
use crate::{
    causal_lm::CausalLm,
    error::ConfigError,
    id::{GroupId, PromptId},
    snapshot::SnapshotPrecision,
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

    /// Writes what the distiller of a group has learned to a file, so that [`load_group`](Self::load_group) continues
    /// the group after a restart. Completions of the group that wait or run are not in it, except what the distiller
    /// has learned from them so far; their indices are not given again. The decoder continues unchanged.
    ///
    /// The file has the form of a [sampler's snapshot](crate::Sampler::save), with `format: esamp group`, and is
    /// written in the same way. What all prompts share ([`Sharing::Adaptive`](crate::Sharing::Adaptive)) is not in it.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownGroup`] when the group is not kept, and the errors of
    /// [`Sampler::save`](crate::Sampler::save).
    pub fn save_group(
        &mut self,
        group: GroupId,
        path: impl AsRef<Path>,
        precision: SnapshotPrecision,
    ) -> Result<(), GroupError> {
        let known = self.groups.known.iter().find(|known| known.id == group);
        let known = known.ok_or(RequestError::UnknownGroup { group })?;
        Ok(self.sampler.save_prompt(known.prompt, known.next, path.as_ref(), precision)?)
    }

    /// Reads a group that [`save_group`](Self::save_group) has written and keeps it as `group`, which need not be the
    /// id that it had. With [`SnapshotPrecision::F32`] its later requests get the tokens that they would have got
    /// without the restart. Two exceptions: with [`Sharing::Adaptive`](crate::Sharing::Adaptive) they also depend on
    /// what all prompts share, and with [`Staleness::Background`](crate::optim::Staleness::Background) an update that
    /// was under way is visible one step earlier.
    ///
    /// # Errors
    ///
    /// [`GroupError`] when the file cannot be read or is damaged, when the sampler that wrote it had other settings or
    /// another model's width, when the group is kept already, or when it cannot be kept, for the same reasons as that
    /// of a request. [`GroupError::MemoryLimit`] when its distiller would exceed the
    /// [memory limit](Self::with_memory_limit): no other group is evicted for it, so release one first. Nothing has
    /// changed then.
    pub fn load_group(&mut self, group: GroupId, path: impl AsRef<Path>) -> Result<(), GroupError> {
        if self.groups.known.iter().any(|known| known.id == group) {
            return Err(RequestError::KnownGroup { group }.into());
        }
        self.check_group(group)?;
        let prompt = PromptId(self.next_prompt);
        let after = self.next_prompt.checked_add(1).ok_or(RequestError::NoPromptId)?;
        self.check_memory_with(prompt)?;
        let next = self.sampler.load_prompt(prompt, path.as_ref())?;
        self.next_prompt = after;
        self.found_group(group, prompt, next);
        Ok(())
    }

    /// Checks that a request of this group can be taken.
    pub(super) fn check_group(&self, group: GroupId) -> Result<(), RequestError> {
        if !self.sampler.sharing().is_per_prompt() {
            return Err(RequestError::GroupSharing { sharing: self.sampler.sharing() });
        }
        let is_known = self.groups.known.iter().any(|known| known.id == group);
        let is_full = self.groups.known.len() >= self.groups.most;
        if !is_known && is_full && self.idle_groups().is_empty() {
            return Err(RequestError::GroupLimit { limit: self.groups.most });
        }
        Ok(())
    }

    /// Adds a group whose first request has this prompt id, and which has had this number of completions.
    pub(super) fn found_group(&mut self, id: GroupId, prompt: PromptId, completions: u64) {
        if self.groups.known.len() >= self.groups.most
            && let Some(&(evicted, _)) = self.idle_groups().first()
        {
            // It is known, so this cannot fail.
            let _ = self.release_group(evicted);
        }
        self.sampler.hold(prompt);
        self.groups.known.push(Group { id, prompt, next: completions });
    }

    /// The groups without completions, least recently used first, with the prompt id of their requests.
    pub(super) fn idle_groups(&self) -> Vec<(GroupId, PromptId)> {
        let used: HashSet<PromptId> =
            self.sampler.completions().iter().map(|completion| completion.prompt).collect();
        let idle = self.groups.known.iter().filter(move |group| !used.contains(&group.prompt));
        idle.map(|group| (group.id, group.prompt)).collect()
    }
}
