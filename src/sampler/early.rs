//! Predicting beside the model's later blocks.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Sampler;
use crate::{
    error::{StepError, TrainError},
    hidden::{HiddenStates, select_rows, to_f32},
    id::RowId,
    tap::{HiddenStateTap, PairTap, TapSite, last_position},
    train::{Prediction, PredictionThread, caught},
};

/// When and where the distillers predict. The tokens are the same, bit for bit. See docs/design/overlap.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Overlap {
    /// In the step, when the model is done.
    #[default]
    None,
    /// On the caller's thread, as soon as the shallow site has reported: for a device that queues work, which then has it
    /// before the work of the later blocks.
    Tap,
    /// On a thread of its own, as soon as the shallow site has reported: on CUDA that is a stream of its own, beside the
    /// model's. For machines with a stream or a core to spare; on two busy cores it gains nothing.
    ///
    /// Starting a prediction waits for nothing. One that was dropped while the thread was at it is finished first, and the
    /// step that takes the next one waits for both.
    Thread,
}

/// The tap of one forward pass that starts the prediction of its steered rows when the first block has reported.
///
/// A prediction counts when a step takes it. One that is dropped, because the model failed, the step never came or
/// something has overtaken it, leaves the sampler as if it had never been started: no request has begun, no distiller has
/// started, and every later token is what it would have been. A distiller that panics in it is
/// [`TrainError::Worker`] in the step, which a step that predicts for itself does not catch.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use esamp::{CausalLm, Overlap, RowId, SamplerConfig, TapSite, testing::TinyLm};
///
/// let (device, model) = (Device::flex(), TinyLm::new(1, &Device::flex()));
/// let mut sampler = SamplerConfig::new().with_overlap(Overlap::Thread).init(model.d_model(), &device)?;
/// let mut cache = model.new_cache();
///
/// // Two rows go through the model; the second one is to be steered.
/// let tokens = Tensor::<2, Int>::from_data([[5], [6]], &device);
/// let mut tap = sampler.tap(TapSite::AfterBlock(0), TapSite::HeadInput, &[(1, RowId::new(0, 1))]);
/// let logits = model.forward(tokens, &mut cache, &mut tap)?;
/// let (hidden, early) = tap.take()?;
/// // … StepInput::new(&rows, logits, model.lm_head()).with_hidden(hidden).with_early(early)
/// # let _ = (logits, hidden, early);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct EarlyTap<'s> {
    sampler: &'s mut Sampler,
    pair: PairTap,
    shallow: TapSite,
    /// Rows of the forward pass that are to be steered, and whose they are.
    steered: Vec<(usize, RowId)>,
    started: Option<(Started, u64)>,
}

/// Numbers of predictions, across all samplers: each can be told from every other.
static STAMPS: AtomicU64 = AtomicU64::new(1);

/// A prediction that was started before its step.
#[derive(Debug)]
pub struct Early {
    rows: Vec<RowId>,
    started: Started,
    stamp: u64,
}

#[derive(Debug)]
enum Started {
    /// Made on the caller's thread.
    Here(Box<Result<Prediction, TrainError>>),
    /// Being made on the sampler's thread.
    Elsewhere,
}

impl Sampler {
    /// A tap for one forward pass, which starts the prediction where [`SamplerConfig::overlap`](crate::SamplerConfig::overlap)
    /// says. `steered` names the rows of the pass that the step will steer, by their place in the pass, in the order in
    /// which the step will have them: those in [`Phase::Decode`](crate::Phase::Decode) whose reweighter expects a distiller.
    pub fn tap(
        &mut self,
        shallow: TapSite,
        deep: TapSite,
        steered: &[(usize, RowId)],
    ) -> EarlyTap<'_> {
        let pair = PairTap::new(shallow, deep);
        EarlyTap { sampler: self, pair, shallow, steered: steered.to_vec(), started: None }
    }

    /// Starts a prediction.
    fn start(&mut self, rows: &[RowId], shallow: &Tensor<2>) -> Option<Started> {
        let d_model = shallow.dims()[1];
        if d_model != self.d_model || shallow.device() != self.device {
            return None; // the step says what does not fit
        }
        match self.config.overlap {
            Overlap::None => None,
            Overlap::Tap => {
                // In the model's forward pass, which knows nothing of distillers: a panic of one is the step's to report.
                let prediction = caught(self.trainer.prediction(rows, shallow));
                // On a device that queues its work, nothing may start before somebody asks for it.
                let _ = self.device.flush();
                Some(Started::Here(Box::new(prediction)))
            }
            Overlap::Thread => {
                let job = self.trainer.prediction(rows, shallow);
                let thread = match &mut self.predictions {
                    Some(thread) => Ok(thread),
                    None => PredictionThread::spawn().map(|new| self.predictions.insert(new)),
                };
                Some(match thread.and_then(|thread| thread.start(job)) {
                    Ok(()) => Started::Elsewhere,
                    Err(error) => Started::Here(Box::new(Err(error))),
                })
            }
        }
    }

    /// The prediction for these rows that was started early.
    pub(super) fn early_prediction(
        &mut self,
        early: Early,
        rows: &[RowId],
    ) -> Result<Prediction, StepError> {
        if early.rows != rows {
            return Err(StepError::EarlyRows { expected: rows.to_vec(), got: early.rows });
        }
        if self.early.take() != Some(early.stamp) {
            return Err(StepError::EarlyStale);
        }
        let prediction = match (early.started, &mut self.predictions) {
            (Started::Here(prediction), _) => *prediction,
            (Started::Elsewhere, Some(thread)) => thread.wait(),
            (Started::Elsewhere, None) => {
                Err(TrainError::Worker { got: "one that has ended".to_owned() })
            }
        }?;
        // It was made by a copy of the trainer. Only now is it known to count.
        self.trainer.settle(rows);
        Ok(prediction)
    }
}

impl EarlyTap<'_> {
    /// Hands over what the forward pass showed, and the prediction that was started, if one was.
    ///
    /// # Errors
    ///
    /// As [`PairTap::take`]; [`StepError::RowOutOfRange`] when a steered row is none of the pass.
    pub fn take(mut self) -> Result<(HiddenStates, Option<Early>), StepError> {
        let hidden = self.pair.take()?;
        let rows = hidden.rows();
        if let Some(&(row, _)) = self.steered.iter().find(|&&(row, _)| row >= rows) {
            return Err(StepError::RowOutOfRange { row, rows });
        }
        let rows = self.steered.iter().map(|&(_, row)| row).collect();
        Ok((hidden, self.started.take().map(|(started, stamp)| Early { rows, started, stamp })))
    }
}

impl HiddenStateTap for EarlyTap<'_> {
    fn wants(&self, site: TapSite) -> bool {
        self.pair.wants(site)
    }

    fn record(&mut self, site: TapSite, hidden: &Tensor<3>) {
        self.pair.record(site, hidden);
        let rows = hidden.dims()[0];
        let fits = self.steered.iter().all(|&(row, _)| row < rows);
        if site != self.shallow || self.started.is_some() || self.steered.is_empty() || !fits {
            return; // what does not fit is said when the tap is asked for its result
        }
        let (places, ids): (Vec<usize>, Vec<RowId>) = self.steered.iter().copied().unzip();
        let shallow = last_position(hidden).map(|last| select_rows(&last, &places).inner());
        if let Some(Ok(shallow)) = shallow.map(|shallow| to_f32("shallow hidden state", shallow)) {
            self.started = self.sampler.start(&ids, &shallow).map(|started| {
                let stamp = STAMPS.fetch_add(1, Ordering::Relaxed);
                self.sampler.early = Some(stamp);
                (started, stamp)
            });
        }
    }
}
