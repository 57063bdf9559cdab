//! A thread that predicts.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use super::{Prediction, background::what_it_says};
use crate::error::TrainError;

/// A prediction that can be made anywhere: everything that it needs is in it.
pub(crate) type PredictionJob = Box<dyn FnOnce() -> Result<Prediction, TrainError> + Send>;

/// One long-lived thread that makes one prediction at a time. It ends when this is dropped, and nobody waits for it.
#[derive(Debug)]
pub(crate) struct PredictionThread {
    jobs: SyncSender<PredictionJob>,
    results: Receiver<Result<Prediction, TrainError>>,
    /// Whether a prediction has been started and not taken.
    under_way: bool,
}

impl PredictionThread {
    pub(crate) fn spawn() -> Result<Self, TrainError> {
        let (jobs, to_do) = sync_channel::<PredictionJob>(1);
        let (done, results) = sync_channel(1);
        let thread = thread::Builder::new().name("esamp-prediction".to_owned());
        let spawned = thread.spawn(move || {
            while let Ok(job) = to_do.recv() {
                // A distiller is the user's code: its panic ends this prediction, not the program.
                let result = catch_unwind(AssertUnwindSafe(job))
                    .unwrap_or_else(|panic| Err(TrainError::Worker { got: what_it_says(&*panic) }));
                if let Ok(Prediction { expected, .. }) = &result {
                    // On a device that queues its work, nothing may start before somebody asks for it.
                    let _ = expected.device().flush();
                }
                if done.send(result).is_err() {
                    return;
                }
            }
        });
        match spawned {
            Ok(_detached) => Ok(Self { jobs, results, under_way: false }),
            Err(error) => Err(TrainError::Worker { got: format!("no thread: {error}") }),
        }
    }

    /// Starts a prediction. One that was started before and never taken is thrown away.
    pub(crate) fn start(&mut self, job: PredictionJob) -> Result<(), TrainError> {
        if self.under_way {
            let _ = self.wait();
        }
        self.jobs.send(job).map_err(|_| ended())?;
        self.under_way = true;
        Ok(())
    }

    /// The prediction that was started.
    pub(crate) fn wait(&mut self) -> Result<Prediction, TrainError> {
        if !std::mem::take(&mut self.under_way) {
            return Err(TrainError::Worker { got: "no prediction under way".to_owned() });
        }
        self.results.recv().unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> TrainError {
    TrainError::Worker { got: "one that has ended".to_owned() }
}
