//! The background trainer: updates run on a separate thread, for machines with a stream or cores to spare.

mod protocol;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use burn::tensor::Tensor;
use protocol::{Change, Done, Job, Lesson, Replacement, Restart, ended};
pub use worker::TrainingWorker;
pub(crate) use worker::spawn;

use super::{
    error::TrainError,
    slots::Misfit,
    state::{Learned, TrainerState},
    trainer::{OnlineTrainer, Prediction},
};
use crate::{hidden::HiddenStates, id::CompletionId};

/// Learns on a worker thread, one update per step, exactly one step late.
///
/// There are two copies of the trainer: `visible` predicts, and the worker's copy learns.
/// [`learn`](OnlineTrainer::learn) of step `t` first waits for the update of step `t − 1`, makes it visible, and then
/// sends step `t` to the worker. So step `t + 1` always predicts with the update of step `t − 1`, regardless of the
/// timing of the threads, and at most one lesson is pending. (Steps in which nothing is learned do not count.) What
/// the caller does in between, such as releasing a completion or learning from a prompt, is applied to both copies,
/// between the same two updates.
#[derive(Debug)]
pub(crate) struct BackgroundTrainer<T> {
    visible: T,
    jobs: SyncSender<Job>,
    /// The state that the worker continues from, until it has taken it.
    replacement: Replacement<T>,
    results: Receiver<Done<T>>,
    /// Whether the worker has a lesson, or its result is in `arrived`.
    under_way: bool,
    /// The result of the pending lesson, if it was received before it became visible. Exporting a snapshot receives it
    /// early.
    arrived: Option<Done<T>>,
    /// Changes since the last lesson was sent. The next lesson carries them to the worker.
    changes: Vec<Change>,
    /// The size of the worker's copy in bytes, after the last job that it was sent.
    worker_bytes: usize,
    /// The error that ended the worker, if it has ended. Every later call returns it again.
    failed: Option<TrainError>,
}

impl<T: OnlineTrainer + Clone + 'static> BackgroundTrainer<T> {
    /// Makes a trainer and its worker, which both start from the state of `trainer`.
    pub(crate) fn pair(trainer: T) -> (Self, TrainingWorker) {
        // At most one lesson and one `Replace` are pending, so sending never blocks: a caller that supplies the
        // worker's thread may reset or load any number of times before the worker runs.
        let (jobs, to_do) = sync_channel(2);
        let replacement = Replacement::default();
        // At most one lesson is pending, so the worker always has room for its result and never waits for the caller
        // to take it.
        let (done, results) = sync_channel(1);
        let worker = TrainingWorker::new(trainer.clone(), to_do, replacement.clone(), done);
        let worker_bytes = trainer.state_bytes();
        let background = Self {
            visible: trainer,
            jobs,
            replacement,
            results,
            under_way: false,
            arrived: None,
            changes: Vec::new(),
            worker_bytes,
            failed: None,
        };
        (background, worker)
    }

    /// Waits for the pending lesson, if there is one, and makes its result visible.
    fn join(&mut self) -> Result<Learned, TrainError> {
        self.check()?;
        if !self.under_way {
            return Ok(Learned::default());
        }
        self.receive();
        self.under_way = false;
        match self.arrived.take().unwrap_or_else(|| Err(ended())) {
            Ok((trainer, mut learned)) => {
                self.visible = trainer;
                self.worker_bytes = self.visible.state_bytes();
                // The worker made this copy before the changes since the lesson was sent. The list is kept, because
                // the worker's own copy still lacks them.
                for change in &self.changes {
                    let done = change.apply(&mut self.visible)?;
                    if let Change::Restart(rows) = change {
                        // It undoes the updates of this result too, which were not visible when it was counted.
                        let more = done.updates_undone.saturating_sub(rows.undone);
                        learned.updates_undone = learned.updates_undone.saturating_add(more);
                    }
                }
                Ok(learned)
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Waits for the result of the pending lesson without making it visible.
    fn receive(&mut self) {
        if self.under_way && self.arrived.is_none() {
            self.arrived = self.results.recv().ok();
        }
    }

    fn hand_over(&mut self, job: Job) -> Result<(), TrainError> {
        if self.jobs.send(job).is_err() {
            self.failed = Some(ended());
            return Err(ended());
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TrainError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Applies a change to the visible copy now and queues it for the worker, which applies it before its next lesson.
    fn change(&mut self, change: Change) -> Result<Learned, TrainError> {
        let learned = change.apply(&mut self.visible)?;
        // A change that fails here is not queued: it would fail in the worker too, and end it.
        self.changes.push(change);
        Ok(learned)
    }

    /// Returns the index of a completion's `Begin` in the list of changes if the `Begin` can be removed instead of
    /// queueing the `Release` that follows now, as if the completion had never existed.
    ///
    /// Returns `None` if another completion of the prompt has ended since, because this completion kept the slot
    /// alive, or if this completion has warmed up a slot that others may share. For a completion that came with a
    /// loaded slot, also if another one has begun since, because it uses that slot.
    fn unsent_begin(&self, row: CompletionId) -> Option<usize> {
        let adopts = |change: &Change| match change {
            Change::Adopt(state) => state.slots.iter().any(|slot| slot.members.contains(&row)),
            _ => false,
        };
        let is_begin = |change: &Change| {
            adopts(change) || matches!(change, Change::Begin(other) if *other == row)
        };
        let at = self.changes.iter().rposition(is_begin)?;
        let is_adopted = adopts(&self.changes[at]);
        let ends = |change: &Change| matches!(change, Change::Release(other) if other.prompt == row.prompt);
        let warms = |change: &Change| matches!(change, Change::WarmUp(prompt) if prompt.0 == row);
        let uses = |change: &Change| {
            is_adopted && matches!(change, Change::Begin(other) if other.prompt == row.prompt)
        };
        let matters = |change: &Change| ends(change) || warms(change) || uses(change);
        (!self.changes[at..].iter().any(matters)).then_some(at)
    }

    /// Makes the worker continue from the visible state, after a reset or a load. That state includes the queued
    /// changes, so they are dropped.
    fn replace(&mut self) -> Result<(), TrainError> {
        self.changes.clear();
        self.replace_with(self.visible.clone())
    }

    /// Makes the worker continue from another state. If it has not taken the previous one, that one is dropped.
    fn replace_with(&mut self, state: T) -> Result<(), TrainError> {
        self.worker_bytes = state.state_bytes();
        if self.replacement.put(state) { Ok(()) } else { self.hand_over(Job::Replace) }
    }
}

impl<T: OnlineTrainer + Clone + 'static> OnlineTrainer for BackgroundTrainer<T> {
    fn begin(&mut self, row: CompletionId) {
        // A second `Begin` changes nothing, so it is not queued: the list must stay short in a sampler that decodes
        // for days without learning.
        if !self.visible.has(row) {
            let _ = self.change(Change::Begin(row));
        }
    }

    fn release(&mut self, row: CompletionId) {
        // Completions without steering never begin here, and steered ones may end before there was anything to learn.
        // Neither produces a lesson that would empty the list, so it would grow without bound if their ends were
        // queued.
        if !self.visible.has(row) {
            return;
        }
        match self.unsent_begin(row) {
            Some(at) => {
                self.changes.remove(at);
                self.visible.release(row);
            }
            None => {
                let _ = self.change(Change::Release(row));
            }
        }
    }

    fn reset(&mut self) {
        // Wait for the pending lesson, so that its result cannot arrive after the reset. After a failure there is no
        // worker to reset, and the error is kept.
        if self.join().is_ok() {
            self.visible.reset();
            let _ = self.replace();
        }
    }

    fn distillers(&self) -> usize {
        self.visible.distillers()
    }

    fn state_bytes(&self) -> usize {
        // The worker's copy still has the slots that have ended since its last job.
        self.visible.state_bytes() + self.worker_bytes
    }

    fn bytes_for(&self, completions: &[CompletionId]) -> usize {
        self.visible.bytes_for(completions).saturating_mul(2)
    }

    fn updates(&self, row: CompletionId) -> u64 {
        self.visible.updates(row)
    }

    fn completions(&self) -> Vec<CompletionId> {
        self.visible.completions()
    }

    fn has(&self, row: CompletionId) -> bool {
        self.visible.has(row)
    }

    fn waiting_rows(&self) -> usize {
        self.visible.waiting_rows()
    }

    fn predict(
        &mut self,
        rows: &[CompletionId],
        shallow: &Tensor<2>,
    ) -> Result<Prediction, TrainError> {
        // `visible` could still predict after the worker has failed, but the sampler would then go on without ever
        // learning again, and only its counters would show it.
        self.check()?;
        // `visible.predict` would also begin unknown rows, but without telling the worker.
        for &row in rows {
            self.begin(row);
        }
        self.visible.predict(rows, shallow)
    }

    fn learn(
        &mut self,
        rows: &[CompletionId],
        hidden: &HiddenStates,
        parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError> {
        // Wait as late as possible: the worker has had the time since the previous call, which includes a forward pass
        // of the model. Waiting before the prediction instead would make the lag 0, and then nothing would run
        // concurrently. Not waiting at all would make the lag, and with it the tokens, depend on the speed of the
        // worker (docs/design/staleness.md).
        // `learned` describes the lesson that has just become visible. That of this lesson is returned by the next
        // call.
        let learned = self.join()?;
        let changes = std::mem::take(&mut self.changes);
        let (rows, hidden, parts) = (rows.to_vec(), hidden.clone(), parts.to_vec());
        self.worker_bytes = self.visible.state_bytes();
        self.hand_over(Job::Learn(Box::new(Lesson { changes, rows, hidden, parts })))?;
        self.under_way = true;
        Ok(learned)
    }

    fn warm_up(
        &mut self,
        row: CompletionId,
        hidden: &HiddenStates,
        updates: usize,
        is_first: bool,
    ) -> Result<Learned, TrainError> {
        // This does not wait for the pending lesson: its updates would be counted as updates of the warm-up.
        self.check()?;
        self.change(Change::WarmUp(Box::new((row, hidden.clone(), updates, is_first))))
    }

    fn restart(
        &mut self,
        failed: &[CompletionId],
        fine: &[CompletionId],
        broken: &[Vec<bool>],
    ) -> Result<Learned, TrainError> {
        let _unwritten = self.visible.clone();
        let done = self.visible.restart(failed, fine, broken)?;
        let (failed, fine, broken) = (failed.to_vec(), fine.to_vec(), broken.to_vec());
        let rows = Restart { failed, fine, broken, undone: done.updates_undone };
        // A distiller that cannot predict anything is restarted at every step, and there is never a lesson that would
        // empty the list. Twice in a row is the same as once.
        let is_queued =
            matches!(self.changes.last(), Some(Change::Restart(last)) if **last == rows);
        if done.restarts > 0 && !is_queued {
            self.changes.push(Change::Restart(Box::new(rows)));
        }
        Ok(done)
    }

    fn finish(&mut self) -> Result<Learned, TrainError> {
        let learned = self.join()?;
        // No lesson is pending, so the worker can continue from the visible copy, and the memory of slots that have
        // ended since its last job is freed.
        if !self.changes.is_empty() {
            self.replace()?;
        }
        Ok(learned)
    }

    fn export(&mut self) -> Result<TrainerState, TrainError> {
        self.check()?;
        // Only the worker's copy contains the pending lesson, so wait for it. The result stays in `arrived` and
        // becomes visible at the same step as without the export.
        self.receive();
        if !self.under_way {
            return self.visible.export();
        }
        let mut state = self.visible.export()?;
        match &mut self.arrived {
            Some(Ok((ahead, learned))) => {
                // Apply the changes to a copy: they are applied to the received state again when it becomes visible.
                let mut ahead = ahead.clone();
                for change in &self.changes {
                    change.apply(&mut ahead)?;
                }
                state.ahead = Some((Box::new(ahead.export()?), *learned));
                Ok(state)
            }
            Some(Err(error)) => Err(error.clone()),
            None => Err(ended()),
        }
    }

    fn import(&mut self, mut state: TrainerState) -> Result<(), Misfit> {
        // A pending lesson belongs to the state that is replaced. Its result is received, so that it is not taken for
        // that of a later lesson, and then overwritten. An error stays in `failed`, and the next call returns it.
        let _ = self.join();
        let ahead = state.ahead.take();
        self.visible.import(state)?;
        // The worker's next lesson must start from the loaded state.
        let _ = self.replace();
        if let Some((ahead, learned)) = ahead {
            // The saved run had an update that was not yet visible. Restore it as a received result, so that it becomes
            // visible at the same step as in the saved run. The worker's copy already includes it.
            let mut trainer = self.visible.clone();
            trainer.import(*ahead)?;
            let _ = self.replace_with(trainer.clone());
            (self.arrived, self.under_way) = (Some(Ok((trainer, learned))), true);
        }
        Ok(())
    }

    fn adopt(&mut self, state: TrainerState) -> Result<(), Misfit> {
        self.visible.adopt(state.clone())?;
        self.changes.push(Change::Adopt(Box::new(state)));
        Ok(())
    }
}
