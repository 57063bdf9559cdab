//! The sampling step: predict, pool, filter, expect, reweight, select, learn.

mod best;
mod builder;
mod config;
mod control;
mod error;
mod expect;
mod input;
mod logits;
mod observe;
mod output;
mod row;
mod step;
mod transfer;
mod warm_up;

use burn::tensor::{Device, Tensor};

pub use builder::SamplerBuilder;
pub use config::{DistillerConfig, LogitsTransfer, SamplerConfig};
pub use control::ExpectedControl;
pub use error::StepError;
pub use input::{Phase, StepInput, StepRow};
pub use output::{Choice, Novelty, StepOutput};

use crate::{
    bank::Sharing,
    hidden::TapSite,
    host::{Awake, is_host_memory},
    id::{CompletionId, PromptId},
    sampling::CheckedSampling,
    tap::PairTap,
    telemetry::{Counters, Observer, StageSeconds, add},
    train::{Learned, Misfit, OnlineTrainer, TrainError, TrainerState},
};
use step::Step;
pub(crate) use warm_up::WarmUp;

/// Chooses tokens, steers them away from what the distiller expects, and trains the distiller on every step.
///
/// One sampler serves a whole batch. It identifies rows by their completion ids, so a batch may shrink, grow and be
/// reordered between steps.
#[derive(Debug)]
pub struct Sampler {
    trainer: Box<dyn OnlineTrainer>,
    config: SamplerConfig,
    /// Whether slots start from a distiller that was passed to the builder instead of the configured one.
    pub(crate) custom_distiller: bool,
    pub(crate) d_model: usize,
    pub(crate) device: Device,
    counters: Counters,
    stages: StageSeconds,
    observer: Option<Box<dyn Observer>>,
    control: Option<Box<dyn ExpectedControl>>,
}

/// The complete state of a sampler.
pub(crate) struct SamplerState {
    pub(crate) trainer: TrainerState,
    pub(crate) config: SamplerConfig,
    pub(crate) custom_distiller: bool,
    pub(crate) d_model: usize,
    pub(crate) counters: Counters,
}

/// The completion that holds a prompt's distiller. Indices of real ones are smaller.
fn holder(prompt: PromptId) -> CompletionId {
    CompletionId { prompt, index: u64::MAX }
}

impl Sampler {
    fn new(
        trainer: Box<dyn OnlineTrainer>,
        config: SamplerConfig,
        custom_distiller: bool,
        d_model: usize,
        device: Device,
    ) -> Self {
        Self {
            trainer,
            config,
            custom_distiller,
            d_model,
            device,
            counters: Counters::default(),
            stages: StageSeconds::default(),
            observer: None,
            control: None,
        }
    }

    /// Registers a completion that will be sampled with these settings, so that its prompt's distiller is kept while
    /// the completion waits. Optional: the first step with its row does the same. Does nothing if the settings use no
    /// distiller.
    pub fn admit(&mut self, completion: CompletionId, sampling: &CheckedSampling) {
        if sampling.uses_distiller() {
            self.trainer.begin(completion);
        }
    }

    /// Returns the tap for a forward pass over rows with these settings. `None` if none of them needs hidden states;
    /// the model can then be given [`NoTap`](crate::NoTap) and records nothing.
    pub fn tap_for<'a>(
        &self,
        settings: impl IntoIterator<Item = &'a CheckedSampling>,
        [shallow, deep]: [TapSite; 2],
    ) -> Option<PairTap> {
        settings
            .into_iter()
            .any(CheckedSampling::uses_distiller)
            .then(|| PairTap::new(shallow, deep))
    }

    /// Tells the sampler that a completion has ended. A distiller that no completion uses any more is dropped
    /// together with its optimizer state, and its memory is freed ([`state_bytes`](Self::state_bytes)).
    pub fn release(&mut self, completion: CompletionId) {
        self.trainer.release(completion);
    }

    /// Keeps the distiller of a prompt although no completion uses it, until [`unhold`](Self::unhold): a later
    /// completion of the same prompt id continues with what it has learned. Has an effect with distillers per prompt
    /// ([`Sharing::PerPrompt`] and [`Sharing::Adaptive`]). Part of a snapshot.
    pub fn hold(&mut self, prompt: PromptId) {
        if self.config.sharing.is_per_prompt() {
            self.trainer.begin(holder(prompt));
        }
    }

    /// Ends what [`hold`](Self::hold) began. The distiller is dropped with its last completion, or now.
    pub fn unhold(&mut self, prompt: PromptId) {
        self.trainer.release(holder(prompt));
    }

    /// The prompts whose distillers are [held](Self::hold), in ascending order.
    pub fn held(&self) -> Vec<PromptId> {
        let all = self.trainer.completions().into_iter();
        all.filter(|id| *id == holder(id.prompt)).map(|id| id.prompt).collect()
    }

    /// Clears all distillers, counters and timings.
    pub fn reset(&mut self) {
        self.trainer.reset();
        self.counters = Counters::default();
        self.stages = StageSeconds::default();
    }

    /// The completions that have begun and not ended, as far as a distiller was used for them. After
    /// [`load`](crate::snapshots::SamplerLoader::load) these are the completions that were running when the file was
    /// written: continue or release them.
    pub fn completions(&self) -> Vec<CompletionId> {
        let mut completions = self.trainer.completions();
        completions.retain(|id| *id != holder(id.prompt));
        completions
    }

    /// Number of distillers in use.
    pub fn distillers(&self) -> usize {
        self.trainer.distillers()
    }

    /// Bytes that the distillers take: parameters and optimizer state, all in `f32`. A distiller's memory is allocated
    /// when it first predicts or learns, and freed when its last completion is [released](Self::release);
    /// docs/design/bank.md gives the sizes.
    ///
    /// There are two cases in which more is counted than the distillers in use need. A stack
    /// ([`SlotPath::Stacked`](crate::unstable::SlotPath)) frees several distillers together and may be up to twice as
    /// large as needed until the next step. With [`Staleness::Background`](crate::optim::Staleness) the worker has a
    /// copy of every distiller, and frees those of ended completions at its next update or at
    /// [`finish`](Self::finish).
    ///
    /// Gradients, which exist only during an update, and the initial parameters are not counted.
    pub fn state_bytes(&self) -> usize {
        self.trainer.state_bytes()
    }

    /// Bytes that a step takes at most with `rows` rows, in addition to the model's logits: the logits and all tokens
    /// as candidates on the host, the expected logits if there are any, and the distillers of these completions.
    pub(crate) fn bytes_for(
        &self,
        [rows, vocab]: [usize; 2],
        is_steered: bool,
        completions: &[CompletionId],
    ) -> usize {
        let logits = 4 * rows;
        let candidates = 12 * rows + 40;
        let expected = if is_steered { 8 * rows } else { 0 };
        let step = vocab.saturating_mul(logits + candidates + expected);
        step.saturating_add(self.trainer.bytes_for(completions))
    }

    /// Bytes of distillers that have ended and whose memory has not been freed yet.
    pub(crate) fn unfreed_bytes(&self) -> usize {
        let in_use = self.trainer.bytes_for(&self.trainer.completions());
        self.state_bytes().saturating_sub(in_use)
    }

    /// Which completions share a distiller.
    pub fn sharing(&self) -> Sharing {
        self.config.sharing
    }

    /// The settings the sampler was built from.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Exports the complete state of this sampler, which continues unchanged.
    pub(crate) fn export(&mut self) -> Result<SamplerState, TrainError> {
        Ok(SamplerState {
            trainer: self.trainer.export()?,
            config: self.config.clone(),
            custom_distiller: self.custom_distiller,
            d_model: self.d_model,
            counters: self.counters,
        })
    }

    /// Restores the state that [`export`](Self::export) returned, in a sampler with the same settings.
    pub(crate) fn import(
        &mut self,
        counters: Counters,
        trainer: TrainerState,
    ) -> Result<(), Misfit> {
        self.trainer.import(trainer)?;
        self.counters = counters;
        Ok(())
    }

    /// Adds a distiller that was exported to those in use, as that of `prompt`, which is [held](Self::hold).
    pub(crate) fn adopt(&mut self, prompt: PromptId, trainer: TrainerState) -> Result<(), Misfit> {
        self.trainer.adopt(trainer.for_prompt(prompt, holder(prompt)))
    }

    /// Totals since construction or the last reset.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Time per stage of the step since construction or the last reset. Not part of a snapshot.
    ///
    /// The measurement reads the clock ten times per step, which takes less than a microsecond.
    pub fn stage_seconds(&self) -> &StageSeconds {
        &self.stages
    }

    /// Sets an observer that receives every token and every step from now on. It replaces the previous observer and
    /// does not affect the output: see [`Observer`].
    pub fn set_observer(&mut self, observer: impl Observer + 'static) {
        self.observer = Some(Box::new(observer));
    }

    /// Removes the observer and returns it, if one is set.
    pub fn take_observer(&mut self) -> Option<Box<dyn Observer>> {
        self.observer.take()
    }

    /// Replaces the expected states of every following step with the output of `control`. For experiments, see
    /// [`ExpectedControl`]. Not part of a snapshot.
    pub fn set_expected_control(&mut self, control: impl ExpectedControl + 'static) {
        self.control = Some(Box::new(control));
    }

    /// Waits for an update that runs in the background, so that the next step uses it, frees the worker's copies of
    /// distillers that have ended, and checks that the distillers have learned. The sampler can be used afterwards.
    ///
    /// # Errors
    ///
    /// [`TrainError::NothingLearned`] when there were rows to learn from, but no update happened and no rows are
    /// waiting for one: their hidden states were not finite, or the distiller has no trainable parameters.
    /// [`TrainError::MostlyLost`] when more than half of the rows were skipped as not finite, or more than half of the
    /// updates were undone because their distiller diverged. [`TrainError::Worker`] when background learning has
    /// failed.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        let learned = self.trainer.finish()?;
        self.count_learned(learned);
        let Counters { updates, warm_up_updates, updates_undone: undone, .. } = self.counters;
        let Counters { eligible, rows_not_finite: skipped, .. } = self.counters;
        if updates == 0 && eligible > 0 && self.trainer.waiting_rows() == 0 {
            return Err(TrainError::NothingLearned { eligible, skipped });
        }
        let updates = updates.saturating_add(warm_up_updates);
        if skipped > eligible / 2 || undone > updates / 2 {
            return Err(TrainError::MostlyLost { eligible, skipped, updates, undone });
        }
        Ok(())
    }

    /// Chooses a token for every row, then learns from the step.
    ///
    /// 1. predict: compute the deep hidden state of every steered row with the parameters from before this step;
    /// 2. pool: collect the tokens of each row that its first filter could keep, with penalties and bias added to
    ///    their logits;
    /// 3. filter: apply the filters to the reference distribution;
    /// 4. expect: compute the expected logits of the remaining tokens: `logit − w·(deep − predicted)` with the token's
    ///    row `w` of a linear LM head ([`LmHead::product`](crate::LmHead::product)), any other head's logit for the
    ///    predicted state, or another model's logit;
    /// 5. reweight: `(1 + β)·logit − β·expected`, or the formula of the row's reweighter;
    /// 6. select: choose one token with the row's own random stream;
    /// 7. learn: update each distiller once, on all of its rows.
    ///
    /// On a device with its own memory, stage 2 starts from the best logits of each row, whose expected logits come in
    /// the same transfer ([`LogitsTransfer`](crate::unstable::LogitsTransfer)); the tokens are the same.
    ///
    /// A row has a distiller if it is in [`Phase::Decode`] and its reweighter expects one; all other rows skip stages 1
    /// and 7. A row whose distiller has had fewer updates than
    /// [`SamplerConfig::updates_before_steering`] skips stage 5. A row whose hidden state, prediction or expected
    /// logits are not finite is sampled without steering, counted in [`Counters::rows_not_finite`], and not learned
    /// from. A distiller that has diverged starts again at the end of the step
    /// ([`TrainingConfig::restart_diverged`](crate::optim::TrainingConfig::restart_diverged)). (If the row's logits
    /// are NaN or +inf too, it fails with
    /// [`RowError::NotANumber`](crate::errors::RowError::NotANumber).) A row that contrasts with another model whose
    /// logits are not finite is sampled without contrast and counted in [`Counters::other_not_finite`].
    ///
    /// # Errors
    ///
    /// [`StepError`] when the input of the step is inconsistent or the step fails as a whole; nothing has been
    /// learned then. An error of a single row is the row's entry in [`StepOutput::choices`], and the other rows
    /// continue.
    pub fn step(&mut self, input: StepInput<'_>) -> Result<StepOutput, StepError> {
        input.check(self.d_model, &self.device)?;
        let StepInput { rows, logits, hidden, other_logits, lm_head } = input;
        if rows.is_empty() {
            return Ok(StepOutput::default());
        }
        let mut step = Step::begin(rows, lm_head);
        // A step has several parts of less than a millisecond for its workers.
        let _awake = step.has_work_for_threads(&self.device).then(Awake::new);
        step.predict(self, hidden)?; // 1
        step.read(self, logits)?;
        step.pool(self)?; // 2
        step.filter(); // 3
        step.expect(other_logits)?; // 4
        step.reweight(); // 5
        step.select(); // 6
        step.learn(self)?; // 7
        Ok(step.report(self))
    }

    /// The number of best logits per row that a step copies from the logits' device; `None` if it copies all of them.
    fn best_of(&self, logits: &Tensor<2>) -> Option<usize> {
        let device = logits.device().inner();
        let k = match self.config.logits_transfer {
            LogitsTransfer::Automatic if is_host_memory(&device) => return None,
            LogitsTransfer::Automatic => LogitsTransfer::BEST,
            LogitsTransfer::Whole => return None,
            LogitsTransfer::Best(k) => k,
        };
        // The expected logits are computed on the distiller's device.
        (device == self.device && k < logits.dims()[1]).then_some(k)
    }

    fn count_learned(&mut self, learned: Learned) {
        let counters = &mut self.counters;
        add(&mut counters.updates, learned.updates as u64);
        add(&mut counters.rows_learned, learned.rows as u64);
        add(&mut counters.fits, learned.fits as u64);
        add(&mut counters.fits_failed, learned.fits_failed as u64);
        add(&mut counters.restarts, learned.restarts as u64);
        add(&mut counters.updates_undone, learned.updates_undone);
    }
}
