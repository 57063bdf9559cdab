//! The half that learns.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, SyncSender},
    thread,
};

use super::protocol::{Done, Job, Lesson};
use crate::train::{error::TrainError, trainer::OnlineTrainer};

/// The half of a sampler that learns: its [`run`](Self::run) returns when the sampler is dropped.
///
/// [`SamplerConfig::init`](crate::SamplerConfig::init) starts a thread for it;
/// [`SamplerBuilder::build_with_worker`](crate::SamplerBuilder::build_with_worker) hands it to a caller that has
/// threads of its own.
#[must_use = "a sampler whose worker does not run never gets past its second step"]
pub struct TrainingWorker(Box<dyn FnOnce() + Send>);

impl TrainingWorker {
    /// A worker that learns with `trainer` what comes from `jobs`.
    pub(super) fn new<T: OnlineTrainer + Clone + 'static>(
        trainer: T,
        jobs: Receiver<Job<T>>,
        done: SyncSender<Done<T>>,
    ) -> Self {
        Self(Box::new(move || work(trainer, &jobs, &done)))
    }

    /// Learns until the sampler is dropped. On a GPU, a thread has a stream of its own: call this from a thread that
    /// does nothing else.
    pub fn run(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for TrainingWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainingWorker").finish_non_exhaustive()
    }
}

/// Runs a worker on a new thread, which is never joined: it ends when its sampler is dropped.
pub(crate) fn spawn(worker: TrainingWorker) -> std::io::Result<()> {
    let thread = thread::Builder::new().name("esamp-training".to_owned());
    thread.spawn(|| worker.run()).map(drop)
}

/// The worker's loop. It ends when the other half is gone, or after it has reported a failure: its copy may be half
/// updated then, and there is nothing to go on from.
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
        // A distiller is the user's code. Its panic must not end the program, and a thread that dies silently would
        // leave the caller waiting: the panic is reported as the result.
        let learned = catch_unwind(AssertUnwindSafe(|| {
            for change in &changes {
                change.apply(&mut trainer)?;
            }
            let learned = trainer.learn(&rows, &hidden, &parts)?;
            // A device that queues work may not start before a result is read, which is one step from now.
            let _ = hidden.device().flush();
            Ok((trainer.clone(), learned))
        }));
        let result =
            learned.unwrap_or_else(|panic| Err(TrainError::Worker { got: message(&*panic) }));
        let failed = result.is_err();
        if done.send(result).is_err() || failed {
            return;
        }
    }
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a panic: {}", text.unwrap_or("without a message"))
}
