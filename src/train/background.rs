//! The trainer for a machine with a stream to spare: updates run on a thread of their own.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use burn::tensor::Tensor;

use super::{Learned, Misfit, OnlineTrainer, Prediction, TrainerState};
use crate::{hidden::HiddenStates, id::RowId, train::error::TrainError};

/// Learns on a worker's thread, one update a step, exactly one step late.
///
/// Two copies of the trainer: `visible` predicts, the worker's learns. [`learn`](OnlineTrainer::learn) of step `t` first
/// waits for the update of step `t − 1`, makes it visible, and only then hands over step `t`. So step `t + 1` predicts
/// with the update of step `t − 1`, whatever the threads' timing, and at most one job is under way. (Steps in which nothing
/// is learned do not count.) What the caller does in between, releasing a request or learning from a prompt, is done to
/// both copies, on either side of the update that it falls into.
#[derive(Debug)]
pub(crate) struct BackgroundTrainer<T> {
    visible: T,
    jobs: SyncSender<Job<T>>,
    results: Receiver<Done<T>>,
    /// Whether a job is with the worker, or its result in `arrived`.
    under_way: bool,
    /// The result of the job under way, where somebody had to wait for it before its time.
    arrived: Option<Done<T>>,
    /// Requests that have begun or ended since the last job: the worker hears of them with the next one.
    changes: Vec<Change>,
    /// Why the worker is gone, if it is.
    failed: Option<TrainError>,
}

#[derive(Clone, Debug)]
enum Change {
    Begin(RowId),
    Release(RowId),
    /// Learning from a prompt happens on both sides: what is under way must not become visible for it.
    WarmUp(Box<(RowId, HiddenStates, usize)>),
}

/// What the worker is to do.
#[derive(Debug)]
enum Job<T> {
    Learn(Box<Lesson>),
    /// Go on from this state instead: after a reset, or something that was done on the caller's thread.
    Replace(Box<T>),
}

/// One step's rows, and what has happened before it.
#[derive(Debug)]
struct Lesson {
    changes: Vec<Change>,
    rows: Vec<RowId>,
    hidden: HiddenStates,
    parts: Vec<Tensor<2>>,
}

type Done<T> = Result<(T, Learned), TrainError>;

/// The half of a sampler that learns: its [`run`](Self::run) returns when the sampler is dropped.
///
/// [`SamplerConfig::init`](crate::SamplerConfig::init) starts a thread for it;
/// [`SamplerBuilder::build_with_worker`](crate::SamplerBuilder::build_with_worker) hands it to a caller that has threads of its own.
#[must_use = "a sampler whose worker does not run waits for ever at its second step"]
pub struct TrainingWorker(Box<dyn FnOnce() + Send>);

impl TrainingWorker {
    /// Learns until the sampler is dropped. On a GPU, a thread has a stream of its own: call this from one that does
    /// nothing else.
    pub fn run(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for TrainingWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainingWorker").finish_non_exhaustive()
    }
}

/// Runs a worker on a new thread. The thread ends when its sampler is dropped, and nobody waits for it.
pub(crate) fn spawn(worker: TrainingWorker) -> std::io::Result<()> {
    let thread = thread::Builder::new().name("esamp-training".to_owned());
    thread.spawn(|| worker.run()).map(drop)
}

impl<T: OnlineTrainer + Clone + 'static> BackgroundTrainer<T> {
    /// A trainer and its worker, which share `trainer`'s starting state.
    pub(crate) fn pair(trainer: T) -> (Self, TrainingWorker) {
        // One update is under way at most. What else is sent, after a reset or a load, must not wait for a worker that the
        // caller has not started yet.
        let (jobs, to_do) = sync_channel(4);
        let (done, results) = sync_channel(1);
        let learner = trainer.clone();
        let worker = TrainingWorker(Box::new(move || work(learner, &to_do, &done)));
        let background = Self {
            visible: trainer,
            jobs,
            results,
            under_way: false,
            arrived: None,
            changes: Vec::new(),
            failed: None,
        };
        (background, worker)
    }

    /// Waits for the job under way, if there is one, and makes its result visible.
    fn join(&mut self) -> Result<Learned, TrainError> {
        self.check()?;
        if !self.under_way {
            return Ok(Learned::default());
        }
        self.receive();
        self.under_way = false;
        let ended = || Err(TrainError::Worker { got: "one that has ended".to_owned() });
        match self.arrived.take().unwrap_or_else(ended) {
            Ok((trainer, learned)) => {
                self.visible = trainer;
                // What has happened since the job was handed over.
                for change in &self.changes {
                    apply(change, &mut self.visible)?;
                }
                Ok(learned)
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Waits for the result of the job under way without making it visible.
    fn receive(&mut self) {
        if self.under_way && self.arrived.is_none() {
            self.arrived = self.results.recv().ok();
        }
    }

    fn hand_over(&mut self, job: Job<T>) -> Result<(), TrainError> {
        if self.jobs.send(job).is_err() {
            let error = TrainError::Worker { got: "one that has ended".to_owned() };
            self.failed = Some(error.clone());
            return Err(error);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TrainError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Does something here, and lets the worker hear of it with the next job.
    fn change(&mut self, change: Change) -> Result<Learned, TrainError> {
        let learned = apply(&change, &mut self.visible)?;
        self.changes.push(change);
        Ok(learned)
    }

    /// The place of a request's beginning in the list of changes, where the worker has not heard of it and need not.
    ///
    /// It must hear of it when another request of the prompt has ended since, because the slot lived on with this one, or
    /// when it has learned from its prompt, because a slot that others share has learned too.
    fn unheard(&self, row: RowId) -> Option<usize> {
        let is_begin = |change: &Change| matches!(change, Change::Begin(other) if other.request == row.request);
        let at = self.changes.iter().rposition(is_begin)?;
        let ends = |change: &Change| matches!(change, Change::Release(other) if other.prompt == row.prompt);
        let warms = |change: &Change| matches!(change, Change::WarmUp(prompt) if prompt.0 == row);
        let matters = |change: &Change| ends(change) || warms(change);
        (!self.changes[at..].iter().any(matters)).then_some(at)
    }

    /// Lets the worker go on from what is visible, after something that was done to it here.
    fn replace(&mut self) -> Result<(), TrainError> {
        self.changes.clear();
        let visible = self.visible.clone();
        self.hand_over(Job::Replace(Box::new(visible)))
    }
}

fn apply(change: &Change, trainer: &mut impl OnlineTrainer) -> Result<Learned, TrainError> {
    match change {
        Change::Begin(row) => trainer.begin(*row),
        Change::Release(row) => trainer.release(*row),
        Change::WarmUp(prompt) => {
            let (row, hidden, updates) = &**prompt;
            return trainer.warm_up(*row, hidden, *updates);
        }
    }
    Ok(Learned::default())
}

/// A panic in words.
pub(super) fn what_it_says(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a panic: {}", text.unwrap_or("without a message"))
}

/// The worker's loop: ends when the other half is gone, or after a failure that has been reported.
fn work<T: OnlineTrainer + Clone>(
    mut trainer: T,
    jobs: &Receiver<Job<T>>,
    done: &SyncSender<Done<T>>,
) {
    while let Ok(job) = jobs.recv() {
        let Lesson { changes, rows, hidden, parts } = match job {
            Job::Replace(other) => {
                trainer = *other;
                continue;
            }
            Job::Learn(lesson) => *lesson,
        };
        // A distiller is the user's code: its panic ends this worker, not the program, and is reported.
        let learned = catch_unwind(AssertUnwindSafe(|| {
            for change in &changes {
                apply(change, &mut trainer)?;
            }
            let learned = trainer.learn(&rows, &hidden, &parts)?;
            // On a device that queues its work, nothing may start before somebody asks for it.
            let _ = hidden.device().flush();
            Ok((trainer.clone(), learned))
        }));
        let result =
            learned.unwrap_or_else(|panic| Err(TrainError::Worker { got: what_it_says(&*panic) }));
        let failed = result.is_err();
        if done.send(result).is_err() || failed {
            return;
        }
    }
}

impl<T: OnlineTrainer + Clone + 'static> OnlineTrainer for BackgroundTrainer<T> {
    fn begin(&mut self, row: RowId) {
        // Only what changes something: a sampler that decodes for days without learning must not keep a list of it.
        if !self.visible.has(row) {
            let _ = self.change(Change::Begin(row));
        }
    }

    fn release(&mut self, row: RowId) {
        // Requests that are never learned from, plain ones above all, come and go without a job: what the worker need not
        // hear of must not pile up until there is one.
        if !self.visible.has(row) {
            return;
        }
        match self.unheard(row) {
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
        // What is under way is forgotten too. A failure is not: there is no worker any more.
        if self.join().is_ok() {
            self.visible.reset();
            let _ = self.replace();
        }
    }

    fn distillers(&self) -> usize {
        self.visible.distillers()
    }

    fn state_bytes(&self) -> usize {
        // The worker's copy is as large.
        2 * self.visible.state_bytes()
    }

    fn updates(&self, row: RowId) -> u64 {
        self.visible.updates(row)
    }

    fn requests(&self) -> Vec<RowId> {
        self.visible.requests()
    }

    fn has(&self, row: RowId) -> bool {
        self.visible.has(row)
    }

    fn waiting_rows(&self) -> usize {
        self.visible.waiting_rows()
    }

    fn predict(&mut self, rows: &[RowId], shallow: &Tensor<2>) -> Result<Prediction, TrainError> {
        self.check()?;
        rows.iter().for_each(|&row| self.begin(row));
        self.visible.predict(rows, shallow)
    }

    fn learn(
        &mut self,
        rows: &[RowId],
        hidden: &HiddenStates,
        parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError> {
        let learned = self.join()?;
        let changes = std::mem::take(&mut self.changes);
        let (rows, hidden, parts) = (rows.to_vec(), hidden.clone(), parts.to_vec());
        self.hand_over(Job::Learn(Box::new(Lesson { changes, rows, hidden, parts })))?;
        self.under_way = true;
        Ok(learned)
    }

    fn warm_up(
        &mut self,
        row: RowId,
        hidden: &HiddenStates,
        updates: usize,
    ) -> Result<Learned, TrainError> {
        self.check()?;
        self.change(Change::WarmUp(Box::new((row, hidden.clone(), updates))))
    }

    fn finish(&mut self) -> Result<Learned, TrainError> {
        self.join()
    }

    fn export(&mut self) -> Result<TrainerState, TrainError> {
        self.check()?;
        self.receive();
        if !self.under_way {
            return self.visible.export();
        }
        let mut state = self.visible.export()?;
        let ended = || TrainError::Worker { got: "one that has ended".to_owned() };
        match &mut self.arrived {
            Some(Ok((ahead, learned))) => {
                // A copy: what is to be handed over with the next job must not be done to it twice.
                let mut ahead = ahead.clone();
                for change in &self.changes {
                    apply(change, &mut ahead)?;
                }
                state.ahead = Some((Box::new(ahead.export()?), *learned));
                Ok(state)
            }
            Some(Err(error)) => Err(error.clone()),
            None => Err(ended()),
        }
    }

    fn import(&mut self, mut state: TrainerState) -> Result<(), Misfit> {
        let _ = self.join();
        let ahead = state.ahead.take();
        self.visible.import(state)?;
        let _ = self.replace();
        if let Some((ahead, learned)) = ahead {
            let mut trainer = self.visible.clone();
            trainer.import(*ahead)?;
            let _ = self.hand_over(Job::Replace(Box::new(trainer.clone())));
            (self.arrived, self.under_way) = (Some(Ok((trainer, learned))), true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::{
        bank::Sharing,
        distiller::SwiGluConfig,
        train::{InlineTrainer, OptimizerConfig, SeparateSlots, TrainingConfig},
    };

    fn background() -> BackgroundTrainer<impl OnlineTrainer + Clone> {
        let distiller = SwiGluConfig::new().with_d_hidden(4).init(4, 0, &Device::flex()).unwrap();
        let slots = SeparateSlots::new(distiller, OptimizerConfig::paper());
        let trainer = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
        let (trainer, worker) = BackgroundTrainer::pair(trainer);
        spawn(worker).unwrap();
        trainer
    }

    fn learn(trainer: &mut impl OnlineTrainer, row: RowId) {
        let states = || Tensor::<2>::ones([1, 4], &Device::flex());
        trainer.predict(&[row], &states()).unwrap();
        let hidden = HiddenStates::new(states(), states().mul_scalar(2.0)).unwrap();
        trainer.learn(&[row], &hidden, &[]).unwrap();
    }

    #[test]
    fn what_the_worker_need_not_hear_of_does_not_pile_up() {
        let mut trainer = background();
        learn(&mut trainer, RowId::new(0, 0)); // a job under way that nothing follows for a while
        for request in 1..1000 {
            trainer.release(RowId::new(request, request)); // plain: it never began
            let steered = RowId::new(2000 + request, 2000 + request);
            trainer.begin(steered);
            trainer.begin(steered);
            trainer.release(steered); // steered, and ended before there was anything to learn
        }
        assert!(trainer.changes.is_empty(), "{:?}", trainer.changes);
        assert_eq!(trainer.distillers(), 1);
    }

    #[test]
    fn a_slot_lives_on_with_whoever_joined_it_in_time() {
        // The worker has heard of 0. Before its next job 1 joins, 0 ends, 2 joins, 1 ends: the slot has never been empty.
        for (joins_in_time, updates) in [(true, 2), (false, 1)] {
            let mut trainer = background();
            let row = |request| RowId::new(0, request);
            learn(&mut trainer, row(0));
            if joins_in_time {
                trainer.begin(row(1));
            }
            trainer.release(row(0));
            trainer.begin(row(2));
            trainer.release(row(1));
            learn(&mut trainer, row(2));
            trainer.finish().unwrap();
            assert_eq!(trainer.updates(row(2)), updates, "in time: {joins_in_time}");
            trainer.release(row(2));
            assert_eq!(trainer.distillers(), 0);
        }
    }
}
