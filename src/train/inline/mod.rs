//! The default trainer: the update of step `t` is done before step `t + 1` begins.

use std::collections::HashMap;

use burn::tensor::Tensor;

use super::{
    config::{TrainRows, TrainingConfig},
    error::TrainError,
    slots::{Misfit, SlotRows, SlotTensors, Slots},
    state::{Learned, LiveSlot, TrainerState},
    trainer::{OnlineTrainer, Prediction},
};
use crate::{
    bank::{DistillerBank, Sharing, Slot, SlotKey},
    hidden::HiddenStates,
    id::{CompletionId, PromptId},
};

/// Predicts and learns on the caller's thread.
#[derive(Clone, Debug)]
pub(crate) struct InlineTrainer<S> {
    slots: S,
    bank: DistillerBank<LiveSlot>,
    config: TrainingConfig,
}

impl<S: Slots> InlineTrainer<S> {
    pub(crate) fn new(slots: S, sharing: Sharing, config: TrainingConfig) -> Self {
        Self { slots, bank: DistillerBank::new(sharing), config }
    }

    /// Gives the slots of these rows a place, and creates them if necessary.
    pub(crate) fn start(&mut self, rows: &[CompletionId]) {
        for &row in rows {
            self.begin(row);
        }
        self.seat(&self.bank.groups(rows));
    }

    /// Returns the work of a step with these rows, one entry per slot. Every slot has a place afterwards.
    fn work(&mut self, rows: &[CompletionId]) -> Vec<SlotRows> {
        let groups = self.bank.groups(rows);
        self.seat(&groups);
        let work = groups.into_iter().filter_map(|(key, rows)| {
            let slot = self.bank.get_mut(key)?;
            Some(SlotRows { slot: slot.tensors?, done: slot.age, rows })
        });
        let mut work: Vec<SlotRows> = work.collect();
        // Sorted by place, so that no slots have to be selected if all of them have work.
        work.sort_unstable_by_key(|slot| slot.slot);
        work
    }

    /// Gives a place to every slot that has none.
    // Places are dense, `0..slots.len()`, because a stack computes all of its slots in one product, and would compute
    // holes too. Released slots leave holes, which are closed here at the latest.
    fn seat(&mut self, groups: &[(SlotKey, Vec<usize>)]) {
        self.close_holes();
        let mut next = self.slots.len();
        for (key, _) in groups {
            if let Some(slot) = self.bank.get_mut(*key).filter(|slot| slot.tensors.is_none()) {
                slot.tensors = Some(next);
                next += 1;
            }
        }
        // One call for all new slots, because each call copies a whole stack.
        if next > self.slots.len() {
            self.slots.add(next - self.slots.len());
        }
    }

    /// Moves the slots together and frees the memory of those that have been released.
    fn close_holes(&mut self) {
        let mut taken: Vec<&mut usize> =
            self.bank.states_mut().filter_map(|slot| slot.tensors.as_mut()).collect();
        if taken.len() == self.slots.len() {
            return;
        }
        // In the order of the places, so that the kept slots keep their order.
        taken.sort_unstable();
        let places: Vec<usize> = taken.iter().map(|place| **place).collect();
        for (at, place) in taken.into_iter().enumerate() {
            *place = at;
        }
        self.slots.keep(&places);
    }

    /// Frees the memory of slots that were released.
    // Closing the holes of a stack copies every slot that is left. The stack therefore waits until at least half of its
    // places are holes: it is never more than twice as large as the slots in use, and a release copies one slot on
    // average.
    fn free(&mut self) {
        let used = self.bank.slots().filter(|slot| slot.state.tensors.is_some()).count();
        if self.slots.moves_for_free() || 2 * used <= self.slots.len() {
            self.close_holes();
        }
    }

    /// Restarts the slots of the rows `failed` from their initial parameters, except those that also have a row in
    /// `fine`. A slot that still has its initial parameters stays as it is, because the new ones would be the same.
    /// The rows that a slot has gathered for its next update are kept.
    pub(super) fn restart_slots(
        &mut self,
        failed: &[CompletionId],
        fine: &[CompletionId],
    ) -> Learned {
        let mut done = Learned::default();
        let fine: Vec<SlotKey> = self.bank.groups(fine).into_iter().map(|(key, _)| key).collect();
        for (key, _) in self.bank.groups(failed) {
            let slot = self.bank.get_mut(key).filter(|slot| slot.updates > 0 || slot.is_fitted);
            let Some(slot) = slot.filter(|_| !fine.contains(&key)) else {
                continue;
            };
            done.restarts += 1;
            done.updates_undone = done.updates_undone.saturating_add(slot.updates);
            let (gathered, first_rows) =
                (std::mem::take(&mut slot.gathered), std::mem::take(&mut slot.first_rows));
            *slot = LiveSlot { gathered, first_rows, ..LiveSlot::default() };
        }
        if done.restarts > 0 {
            self.free();
        }
        done
    }

    /// Returns the places in `rows` of the rows to learn from.
    fn rows_to_train(&self, rows: &[CompletionId]) -> Vec<usize> {
        match self.config.train_rows {
            TrainRows::All => (0..rows.len()).collect(),
            TrainRows::FirstPerPrompt => {
                let mut first: HashMap<PromptId, usize> = HashMap::new();
                for (at, row) in rows.iter().enumerate() {
                    let best = first.entry(row.prompt).or_insert(at);
                    if row.index < rows[*best].index {
                        *best = at;
                    }
                }
                let mut first: Vec<usize> = first.into_values().collect();
                // A `HashMap` has no fixed order, and the order of the rows decides how sums over them are rounded.
                first.sort_unstable();
                first
            }
        }
    }

    /// Does one update of each slot that has work.
    fn update(
        &mut self,
        rows: &[CompletionId],
        hidden: &HiddenStates,
    ) -> Result<Learned, TrainError> {
        if rows.is_empty() {
            return Ok(Learned::default());
        }
        let work = self.work(rows);
        let updates = self.slots.update(&work, hidden)?;
        if updates > 0 {
            // A device that queues work submits it in batches: without a flush, the end of the update would stay in
            // the queue until the next forward pass. The flush does not wait for the device, and does nothing on a
            // CPU. A failure to submit is reported by the next read.
            let _ = hidden.device().flush();
            for (key, _) in self.bank.groups(rows) {
                // All slots have the same network and the same frozen parameters, so if one has changed, all have.
                if let Some(slot) = self.bank.get_mut(key) {
                    // A snapshot from elsewhere may contain any number.
                    slot.updates = slot.updates.saturating_add(1);
                    slot.age = slot.age.saturating_add(1);
                }
            }
        }
        let rows = if updates > 0 { rows.len() } else { 0 };
        Ok(Learned { updates, rows, ..Learned::default() })
    }

    /// Collects the first rows of each slot whose distiller can be fitted, and fits the slots that have enough rows.
    fn fit(&mut self, rows: &[CompletionId], hidden: &HiddenStates) -> Learned {
        let mut learned = Learned::default();
        let wanted = self.slots.rows_to_fit();
        if wanted == 0 || rows.is_empty() {
            return learned;
        }
        self.work(rows); // gives every slot a place
        for (key, members) in self.bank.groups(rows) {
            let Some(slot) = self.bank.get_mut(key).filter(|slot| !slot.is_fitted) else {
                continue;
            };
            slot.first_rows.push(hidden.at(&members));
            let seen: usize = slot.first_rows.iter().map(HiddenStates::rows).sum();
            if seen < wanted {
                continue;
            }
            let first_rows = HiddenStates::concat(&std::mem::take(&mut slot.first_rows));
            // Set also if the fit fails: it is counted and not tried again, and no more rows are collected.
            slot.is_fitted = true;
            if slot.tensors.is_some_and(|place| self.slots.fit(place, &first_rows)) {
                // The optimizer starts again, so bias correction and schedules count from here. `updates` still counts
                // everything that the slot has learned.
                slot.age = 0;
                learned.fits += 1;
            } else {
                learned.fits_failed += 1;
            }
        }
        learned
    }

    /// Adds the step's rows to those that their slots have gathered, and returns the rows of the slots that have
    /// enough.
    fn gather(
        &mut self,
        rows: &[CompletionId],
        hidden: &HiddenStates,
    ) -> Option<(Vec<CompletionId>, HiddenStates)> {
        let mut due = Vec::new();
        let mut states = Vec::new();
        for (key, members) in self.bank.groups(rows) {
            let Some(slot) = self.bank.get_mut(key) else {
                continue;
            };
            slot.gathered.push(hidden.at(&members));
            // Each entry is one step. Every slot counts its own steps, so prompts that started at different times
            // update at different steps.
            if slot.gathered.len() >= self.config.update_every {
                let gathered = std::mem::take(&mut slot.gathered);
                let count: usize = gathered.iter().map(HiddenStates::rows).sum();
                // From here on only the slot of a row matters, so the slot's first row stands for all of them.
                due.extend(std::iter::repeat_n(rows[members[0]], count));
                states.extend(gathered);
            }
        }
        (!states.is_empty()).then(|| (due, HiddenStates::concat(&states)))
    }

    /// Copies the parameters of `theirs` in `other` to the slot of `row`, with a fresh optimizer state.
    pub(super) fn start_from(&mut self, row: CompletionId, other: &Self, theirs: CompletionId) {
        let Some(place) = other.bank.of(theirs).and_then(|slot| slot.tensors) else {
            return;
        };
        let parameters = other.slots.export(place).parameters;
        if let Some(work) = self.work(&[row]).first() {
            let fresh = self.slots.export(work.slot);
            // Both slots come from the same template, so the shapes match.
            let _ = self.slots.import(work.slot, SlotTensors { parameters, ..fresh });
            // Mark it as fitted: a fit would overwrite the parameters that were just copied.
            let key = self.bank.groups(&[row]).first().map(|&(key, _)| key);
            if let Some(slot) = key.and_then(|key| self.bank.get_mut(key)) {
                slot.is_fitted = true;
            }
        }
    }

    /// Whether the slot of `row` has parameters of its own.
    pub(super) fn is_seated(&self, row: CompletionId) -> bool {
        self.bank.of(row).is_some_and(|slot| slot.tensors.is_some())
    }

    /// Returns the prompts that have slots, in ascending order.
    pub(super) fn prompts(&self) -> Vec<PromptId> {
        let prompts = self.bank.slots().filter_map(|slot| match slot.key {
            SlotKey::Prompt(prompt) => Some(prompt),
            _ => None,
        });
        prompts.collect()
    }
}

impl<S: Slots> OnlineTrainer for InlineTrainer<S> {
    fn begin(&mut self, row: CompletionId) {
        self.bank.join(row, LiveSlot::default);
    }

    fn release(&mut self, row: CompletionId) {
        if self.bank.leave(row).is_some_and(|slot| slot.tensors.is_some()) {
            self.free();
        }
    }

    fn has(&self, row: CompletionId) -> bool {
        self.bank.has(row)
    }

    fn reset(&mut self) {
        self.bank.clear();
        self.slots.keep(&[]);
    }

    fn distillers(&self) -> usize {
        self.bank.len()
    }

    fn state_bytes(&self) -> usize {
        self.slots.state_bytes()
    }

    fn bytes_for(&self, completions: &[CompletionId]) -> usize {
        self.bank.groups(completions).len().saturating_mul(self.slots.bytes_per_slot())
    }

    fn updates(&self, row: CompletionId) -> u64 {
        self.bank.of(row).map_or(0, |slot| slot.updates)
    }

    fn completions(&self) -> Vec<CompletionId> {
        self.bank.completions()
    }

    fn waiting_rows(&self) -> usize {
        self.bank.slots().flat_map(|slot| &slot.state.gathered).map(HiddenStates::rows).sum()
    }

    fn predict(
        &mut self,
        rows: &[CompletionId],
        shallow: &Tensor<2>,
    ) -> Result<Prediction, TrainError> {
        for &row in rows {
            self.begin(row);
        }
        let work = self.work(rows);
        Ok(Prediction { expected: self.slots.predict(&work, shallow)?, parts: Vec::new() })
    }

    fn learn(
        &mut self,
        rows: &[CompletionId],
        hidden: &HiddenStates,
        _parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError> {
        let train = self.rows_to_train(rows);
        let picked: Vec<CompletionId> = train.iter().map(|&at| rows[at]).collect();
        let hidden = hidden.at(&train);
        let mut learned = if self.config.update_every == 1 {
            self.update(&picked, &hidden)?
        } else {
            match self.gather(&picked, &hidden) {
                Some((rows, hidden)) => self.update(&rows, &hidden)?,
                None => Learned::default(),
            }
        };
        learned += self.fit(&picked, &hidden);
        Ok(learned)
    }

    fn warm_up(
        &mut self,
        row: CompletionId,
        hidden: &HiddenStates,
        updates: usize,
        is_first: bool,
    ) -> Result<Learned, TrainError> {
        self.begin(row);
        let rows = vec![row; hidden.rows()];
        // The fit replaces the parameters, so updates before it would be lost.
        let mut learned = if is_first { self.fit(&rows, hidden) } else { Learned::default() };
        for _ in 0..updates {
            learned += self.update(&rows, hidden)?;
        }
        Ok(learned)
    }

    fn restart(
        &mut self,
        failed: &[CompletionId],
        fine: &[CompletionId],
        _broken: &[Vec<bool>],
    ) -> Result<Learned, TrainError> {
        Ok(self.restart_slots(failed, fine))
    }

    fn finish(&mut self) -> Result<Learned, TrainError> {
        Ok(Learned::default())
    }

    fn export(&mut self) -> Result<TrainerState, TrainError> {
        let tensors = |place| Ok(self.slots.export(place));
        let export =
            |slot: &Slot<LiveSlot>| slot.clone().try_map(|state| state.try_with_tensors(tensors));
        Ok(TrainerState::new(self.bank.slots().map(export).collect::<Result<_, _>>()?))
    }

    fn import(&mut self, state: TrainerState) -> Result<(), Misfit> {
        self.reset();
        self.adopt(state)
    }

    fn adopt(&mut self, state: TrainerState) -> Result<(), Misfit> {
        self.close_holes();
        let used = self.slots.len();
        let mut all = Vec::new();
        // Places are not part of a snapshot. They are given out again here, after those in use.
        let mut place = |tensors| {
            all.push(tensors);
            Ok::<_, Misfit>(used + all.len() - 1)
        };
        let slots = state.slots.into_iter();
        let slots = slots.map(|slot| slot.try_map(|state| state.try_with_tensors(&mut place)));
        let slots = slots.collect::<Result<Vec<_>, _>>()?;
        if let Err(misfit) = self.slots.append(all) {
            // A store that appends one slot after the other has added those before the misfit.
            self.close_holes();
            return Err(misfit);
        }
        slots.into_iter().for_each(|slot| self.bank.restore(slot));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
