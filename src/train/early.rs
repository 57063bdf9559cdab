//! Predictions ahead of their step: on a copy of the trainer, and on a thread of their own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use burn::tensor::Tensor;

use super::{OnlineTrainer, Prediction, background::what_it_says};
use crate::{error::TrainError, id::RowId};

/// A prediction that can be made anywhere: everything that it needs is in it.
pub(crate) type PredictionJob = Box<dyn FnOnce() -> Result<Prediction, TrainError> + Send>;

/// A prediction by a copy of the trainer, which shares its tensors. Requests begin and distillers start in the copy: it is
/// gone when the prediction is there, and so are they.
pub(super) fn on_a_copy<T: OnlineTrainer + Clone + 'static>(
    trainer: &T,
    rows: &[RowId],
    shallow: &Tensor<2>,
) -> PredictionJob {
    let (mut copy, rows, shallow) = (trainer.clone(), rows.to_vec(), shallow.clone());
    Box::new(move || copy.predict(&rows, &shallow))
}

/// Makes a prediction. A distiller is the user's code: its panic ends this prediction, and nothing else has seen it.
pub(crate) fn caught(job: PredictionJob) -> Result<Prediction, TrainError> {
    catch_unwind(AssertUnwindSafe(job))
        .unwrap_or_else(|panic| Err(TrainError::Worker { got: what_it_says(&*panic) }))
}

/// One long-lived thread that makes one prediction at a time. It ends when this is dropped, and nobody waits for it.
#[derive(Debug)]
pub(crate) struct PredictionThread {
    next: Next,
    /// Says that there is something to do; full while that has not been heard.
    bell: SyncSender<()>,
    /// Where the prediction under way will arrive.
    under_way: Option<Receiver<Result<Prediction, TrainError>>>,
}

/// The prediction that the thread makes next, and where its result goes: room for one.
type Next = Arc<Mutex<Option<Ordered>>>;

struct Ordered {
    job: PredictionJob,
    result: SyncSender<Result<Prediction, TrainError>>,
}

impl std::fmt::Debug for Ordered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ordered").finish_non_exhaustive()
    }
}

impl PredictionThread {
    pub(crate) fn spawn() -> Result<Self, TrainError> {
        let next = Next::default();
        let (bell, rung) = sync_channel(1);
        let thread = thread::Builder::new().name("esamp-prediction".to_owned());
        let orders = next.clone();
        match thread.spawn(move || work(&orders, &rung)) {
            Ok(_detached) => Ok(Self { next, bell, under_way: None }),
            Err(error) => Err(TrainError::Worker { got: format!("no thread: {error}") }),
        }
    }

    /// Starts a prediction, without waiting for anything. One that was started before and never taken is thrown away: not
    /// made at all, or, if the thread is at it, heard by nobody. The new one is made behind it then.
    pub(crate) fn start(&mut self, job: PredictionJob) -> Result<(), TrainError> {
        let (result, arrives) = sync_channel(1);
        let thrown_away = lock(&self.next).replace(Ordered { job, result });
        drop(thrown_away); // not under the lock: a user's distiller may be in it
        match self.bell.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => {
                self.under_way = Some(arrives);
                Ok(())
            }
            Err(TrySendError::Disconnected(())) => Err(ended()),
        }
    }

    /// The prediction that was started.
    pub(crate) fn wait(&mut self) -> Result<Prediction, TrainError> {
        let Some(arrives) = self.under_way.take() else {
            return Err(TrainError::Worker { got: "no prediction under way".to_owned() });
        };
        arrives.recv().unwrap_or_else(|_| Err(ended()))
    }
}

/// The thread's loop: ends when the other half is gone.
fn work(orders: &Next, rung: &Receiver<()>) {
    while rung.recv().is_ok() {
        let Some(Ordered { job, result }) = lock(orders).take() else {
            continue;
        };
        let prediction = caught(job);
        if let Ok(Prediction { expected, .. }) = &prediction {
            // On a device that queues its work, nothing may start before somebody asks for it.
            let _ = expected.device().flush();
        }
        let _ = result.send(prediction); // it may have been thrown away meanwhile
    }
}

/// Nothing is done under the lock that could panic half-way.
fn lock(next: &Next) -> std::sync::MutexGuard<'_, Option<Ordered>> {
    next.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended() -> TrainError {
    TrainError::Worker { got: "one that has ended".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Sender, channel},
        time::Duration,
    };

    use burn::tensor::Device;

    use super::*;

    /// A prediction of one number, which first says that it has begun and then waits to be let go on.
    fn job(number: f32, begun: Sender<f32>, go_on: Receiver<()>) -> PredictionJob {
        Box::new(move || {
            let _ = begun.send(number);
            let _ = go_on.recv_timeout(Duration::from_secs(20)); // a failure is to end, too
            let expected = Tensor::full([1, 1], number, &Device::flex());
            Ok(Prediction { expected, parts: Vec::new() })
        })
    }

    fn number(prediction: Prediction) -> f32 {
        prediction.expected.into_scalar()
    }

    #[test]
    fn starting_waits_for_nobody_and_what_has_not_begun_is_never_made() {
        let mut thread = PredictionThread::spawn().unwrap();
        let (begun, has_begun) = channel();
        let at_once = || channel().1; // nobody holds the other end: goes on
        let (let_go, held) = channel();
        thread.start(job(0.0, begun.clone(), held)).unwrap();
        assert_eq!(has_begun.recv().unwrap(), 0.0);
        // The thread is held, so each of these finds it at work; the first two are overtaken before they begin.
        for number in [1.0, 2.0, 3.0] {
            thread.start(job(number, begun.clone(), at_once())).unwrap();
        }
        let_go.send(()).unwrap();
        assert_eq!(number(thread.wait().unwrap()), 3.0);
        assert_eq!(has_begun.try_iter().collect::<Vec<_>>(), [3.0]);
        let error = thread.wait().unwrap_err().to_string();
        assert!(error.ends_with("got no prediction under way"), "{error}");
    }

    #[test]
    fn a_panic_ends_its_prediction_and_not_the_thread() {
        let mut thread = PredictionThread::spawn().unwrap();
        thread.start(Box::new(|| panic!("not this one"))).unwrap();
        let error = thread.wait().unwrap_err().to_string();
        assert!(error.ends_with("got a panic: not this one"), "{error}");
        let (begun, _heard) = channel();
        thread.start(job(4.0, begun, channel().1)).unwrap();
        assert_eq!(number(thread.wait().unwrap()), 4.0);
    }
}
