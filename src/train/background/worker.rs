//! The half of a background trainer that learns.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, SyncSender},
    thread,
};

use super::protocol::{Done, Job, Lesson, Replacement};
use crate::{
    error::panic_text,
    train::{error::TrainError, trainer::OnlineTrainer},
};

/// The half of a sampler that learns. Its [`run`](Self::run) returns when the sampler is dropped.
///
/// [`SamplerConfig::init`](crate::SamplerConfig::init) starts a thread for it;
/// [`SamplerBuilder::build_with_worker`](crate::SamplerBuilder::build_with_worker) returns it, for a caller that
/// manages its own threads.
#[must_use = "without a running worker, the sampler blocks forever at its second step"]
pub struct TrainingWorker(Box<dyn FnOnce() + Send>);

impl TrainingWorker {
    /// Makes a worker that trains `trainer` with the jobs it receives.
    pub(super) fn new<T: OnlineTrainer + Clone + 'static>(
        trainer: T,
        jobs: Receiver<Job>,
        replacement: Replacement<T>,
        done: SyncSender<Done<T>>,
    ) -> Self {
        Self(Box::new(move || work(trainer, &jobs, &replacement, &done)))
    }

    /// Learns until the sampler is dropped. On a GPU, each thread has its own stream, so call this from a thread that
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

/// Runs a worker on a new thread. The thread is never joined; it ends when its sampler is dropped.
pub(crate) fn spawn(worker: TrainingWorker) -> std::io::Result<()> {
    let thread = thread::Builder::new().name("esamp-training".to_owned());
    // Dropping the handle detaches the thread. Joining it when the sampler is dropped could block for as long as an
    // update takes, and forever if the device hangs.
    thread.spawn(|| worker.run()).map(drop)
}

/// The worker's loop. It ends when the other half is dropped, or after it has reported a failure: the copy may then be
/// partly updated, and is not a valid state to continue from.
fn work<T: OnlineTrainer + Clone>(
    mut trainer: T,
    jobs: &Receiver<Job>,
    replacement: &Replacement<T>,
    done: &SyncSender<Done<T>>,
) {
    // The channel is closed when the sampler is dropped. There is no message for "stop", so `Drop` has nothing to send
    // or to wait for.
    while let Ok(job) = jobs.recv() {
        let Lesson { changes, rows, hidden, parts } = match job {
            // No result is sent: the caller does not wait for a replacement, and every result must belong to a lesson.
            Job::Replace => {
                if let Some(other) = replacement.take() {
                    trainer = other;
                }
                continue;
            }
            Job::Learn(lesson) => *lesson,
        };
        // A distiller is user code. Its panic must not abort the program, and a thread that ended silently would leave
        // the caller waiting. So the panic is caught and sent as the result.
        // Unwind safety can be asserted because nothing that the closure has changed is used after a panic.
        let learned = catch_unwind(AssertUnwindSafe(|| {
            // The caller's queued work may still read these tensors (protocol.rs).
            let _unwritten = trainer.clone();
            for change in &changes {
                // What a warm-up has learned was counted when the caller's half applied it.
                change.apply(&mut trainer)?;
            }
            let learned = trainer.learn(&rows, &hidden, &parts)?;
            // A device that queues work may not start until a result is read, which is one step later. The flush
            // starts it now.
            let _ = hidden.device().flush();
            // The clone shares its tensors with the worker's copy until the next lesson changes them. The copying is
            // then done on this thread, so a result becomes visible without a copy on the caller's thread.
            Ok((trainer.clone(), learned))
        }));
        let result = learned.unwrap_or_else(|panic| {
            Err(TrainError::Worker { got: format!("a panic: {}", panic_text(&*panic)) })
        });
        let failed = result.is_err();
        if done.send(result).is_err() || failed {
            return;
        }
    }
}
