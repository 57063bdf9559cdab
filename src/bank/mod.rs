//! Which rows share a distiller, and how long the distiller is kept.

mod adaptive;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

pub use adaptive::{AdaptiveConfig, AdaptiveStart};

use crate::id::{CompletionId, PromptId};

/// Which completions share a distiller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Sharing {
    /// One distiller for all prompts, kept until the sampler is reset.
    Global,
    /// One distiller for each prompt, trained by all of its completions: what one completion has said is no longer
    /// novel for the others. The paper's main setting.
    #[default]
    PerPrompt,
    /// One distiller for each completion.
    PerCompletion,
    /// One distiller for each prompt and one for all prompts, mixed by how well they predict. The paper finds the
    /// first better on mathematics and the second on code, and leaves the choice open. This mode is not in the paper.
    Adaptive(AdaptiveConfig),
}

impl Sharing {
    /// Whether each prompt has a distiller of its own, which can be held.
    pub(crate) fn is_per_prompt(self) -> bool {
        matches!(self, Self::PerPrompt | Self::Adaptive(_))
    }

    /// Returns the slot that a completion's rows predict with and train. With adaptive sharing it is the prompt's own
    /// slot.
    pub(crate) fn slot(self, completion: CompletionId) -> SlotKey {
        match self {
            Self::Global => SlotKey::Everyone,
            Self::PerPrompt | Self::Adaptive(_) => SlotKey::Prompt(completion.prompt),
            Self::PerCompletion => SlotKey::Completion(completion),
        }
    }
}

/// The key of a slot, which is one distiller in use: the completions that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SlotKey {
    /// All completions.
    Everyone,
    /// The completions of one prompt.
    Prompt(PromptId),
    /// One completion.
    Completion(CompletionId),
}

/// One slot: its key, the completions that share it, and the data `S`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Slot<S> {
    pub(crate) key: SlotKey,
    pub(crate) members: BTreeSet<CompletionId>,
    #[serde(flatten)]
    pub(crate) state: S,
}

impl<S> Slot<S> {
    /// Returns the same slot with its data converted by a function that can fail.
    pub(crate) fn try_map<T, E>(
        self,
        change: impl FnOnce(S) -> Result<T, E>,
    ) -> Result<Slot<T>, E> {
        Ok(Slot { key: self.key, members: self.members, state: change(self.state)? })
    }
}

/// All distillers in use, each with the data `S`.
///
/// Slots are created when first needed and dropped when their last completion ends, so there is no capacity limit, and
/// nothing is left over for the next user of a slot.
#[derive(Clone, Debug)]
pub(crate) struct DistillerBank<S> {
    sharing: Sharing,
    slots: BTreeMap<SlotKey, Slot<S>>,
}

impl<S> DistillerBank<S> {
    pub(crate) fn new(sharing: Sharing) -> Self {
        Self { sharing, slots: BTreeMap::new() }
    }

    /// Adds a completion to its slot, which is created if necessary. The slot lives at least as long as the
    /// completion.
    pub(crate) fn join(&mut self, row: CompletionId, fresh: impl FnOnce() -> S) {
        let key = self.key(row);
        let fresh = || Slot { key, members: BTreeSet::new(), state: fresh() };
        self.slots.entry(key).or_insert_with(fresh).members.insert(row);
    }

    /// Ends a completion. Drops its slot if no other completion needs it, and returns the data of a dropped slot.
    pub(crate) fn leave(&mut self, row: CompletionId) -> Option<S> {
        let key = self.key(row);
        let slot = self.slots.get_mut(&key)?;
        slot.members.remove(&row);
        if !slot.members.is_empty() || key == SlotKey::Everyone {
            return None;
        }
        self.slots.remove(&key).map(|slot| slot.state)
    }

    /// Whether a completion has begun and has not ended.
    pub(crate) fn has(&self, row: CompletionId) -> bool {
        self.slots.get(&self.key(row)).is_some_and(|slot| slot.members.contains(&row))
    }

    /// Returns the data of the slot of `row`, if it has one.
    pub(crate) fn of(&self, row: CompletionId) -> Option<&S> {
        self.slots.get(&self.key(row)).map(|slot| &slot.state)
    }

    /// Every completion that has joined a slot, in ascending order.
    pub(crate) fn completions(&self) -> Vec<CompletionId> {
        let members = self.slots.values().flat_map(|slot| slot.members.iter().copied());
        let mut rows: Vec<CompletionId> = members.collect();
        rows.sort_unstable();
        rows
    }

    /// Every slot, in the order of the keys.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot<S>> {
        self.slots.values()
    }

    /// The data of every slot, in the order of the keys.
    pub(crate) fn states_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.slots.values_mut().map(|slot| &mut slot.state)
    }

    /// Restores a slot that [`slots`](Self::slots) returned.
    pub(crate) fn restore(&mut self, slot: Slot<S>) {
        self.slots.insert(slot.key, slot);
    }

    /// Drops every slot.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    /// The number of slots in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the rows of each slot, as positions in `rows`, with the slots in the order of their first row.
    pub(crate) fn groups(&self, rows: &[CompletionId]) -> Vec<(SlotKey, Vec<usize>)> {
        let mut groups: Vec<(SlotKey, Vec<usize>)> = Vec::new();
        let mut place = HashMap::new();
        for (at, &row) in rows.iter().enumerate() {
            let key = self.key(row);
            let group = *place.entry(key).or_insert(groups.len());
            if group == groups.len() {
                groups.push((key, Vec::new()));
            }
            groups[group].1.push(at);
        }
        groups
    }

    pub(crate) fn get_mut(&mut self, key: SlotKey) -> Option<&mut S> {
        self.slots.get_mut(&key).map(|slot| &mut slot.state)
    }

    fn key(&self, row: CompletionId) -> SlotKey {
        self.sharing.slot(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bank(sharing: Sharing) -> DistillerBank<u32> {
        let mut bank = DistillerBank::new(sharing);
        for (fresh, row) in [
            (7, CompletionId::new(0, 0)),
            (8, CompletionId::new(0, 1)),
            (9, CompletionId::new(1, 2)),
        ] {
            bank.join(row, || fresh);
        }
        bank
    }

    #[test]
    fn sharing_decides_how_many_slots_there_are() {
        assert_eq!(bank(Sharing::Global).len(), 1);
        assert_eq!(bank(Sharing::PerPrompt).len(), 2);
        assert_eq!(bank(Sharing::PerCompletion).len(), 3);
    }

    #[test]
    fn a_slot_is_dropped_with_its_last_completion_and_comes_back_fresh() {
        let mut bank = bank(Sharing::PerPrompt);
        let key = SlotKey::Prompt(PromptId(0));
        assert_eq!(bank.leave(CompletionId::new(0, 0)), None);
        assert_eq!(bank.get_mut(key), Some(&mut 7));
        assert_eq!(bank.leave(CompletionId::new(0, 1)), Some(7), "the caller frees its memory");
        assert_eq!(bank.get_mut(key), None);
        bank.join(CompletionId::new(0, 5), || 70);
        assert_eq!(bank.get_mut(key), Some(&mut 70));
    }

    #[test]
    fn the_global_slot_stays_until_the_bank_is_cleared() {
        let mut bank = bank(Sharing::Global);
        for row in [CompletionId::new(0, 0), CompletionId::new(0, 1), CompletionId::new(1, 2)] {
            bank.leave(row);
        }
        assert_eq!(bank.get_mut(SlotKey::Everyone), Some(&mut 7));
        bank.clear();
        assert_eq!(bank.len(), 0);
    }

    #[test]
    fn completions_have_their_prompts_with_every_sharing() {
        let rows = [CompletionId::new(0, 0), CompletionId::new(0, 1), CompletionId::new(1, 2)];
        for sharing in [Sharing::Global, Sharing::PerPrompt, Sharing::PerCompletion] {
            assert_eq!(bank(sharing).completions(), rows, "{sharing:?}");
        }
    }

    #[test]
    fn groups_are_in_the_order_of_their_first_rows() {
        let bank = bank(Sharing::PerPrompt);
        let rows = [CompletionId::new(1, 2), CompletionId::new(0, 1), CompletionId::new(0, 0)];
        let groups = bank.groups(&rows);
        assert_eq!(groups[0], (SlotKey::Prompt(PromptId(1)), vec![0]));
        assert_eq!(groups[1], (SlotKey::Prompt(PromptId(0)), vec![1, 2]));
    }

    #[test]
    fn ending_a_completion_twice_or_an_unknown_one_changes_nothing() {
        let mut bank = bank(Sharing::PerPrompt);
        bank.leave(CompletionId::new(0, 0));
        bank.leave(CompletionId::new(0, 0));
        bank.leave(CompletionId::new(42, 42));
        assert_eq!(bank.len(), 2);
    }
}
