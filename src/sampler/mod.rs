//! The step: predict, pool, filter, expect, reweight, select, learn.

mod builder;
mod config;
mod control;
mod error;
mod expect;
mod input;
mod observe;
mod output;
mod row;
mod step;

use std::collections::HashSet;

use burn::tensor::Device;

pub use builder::SamplerBuilder;
pub use config::{DistillerConfig, SamplerConfig};
pub use control::ExpectedControl;
pub use error::StepError;
pub use input::{Phase, StepInput, StepRow};
pub use output::{Choice, Novelty, StepOutput};

use crate::{
    bank::Sharing,
    hidden::{HiddenStates, TapSite},
    id::CompletionId,
    novelty::Expects,
    sampling::Sampling,
    tap::PairTap,
    telemetry::{Counters, Observer, StageSeconds},
    train::{Learned, Misfit, OnlineTrainer, TrainError, TrainerState},
};
use step::Step;

/// Chooses tokens, steered away from what the distiller expects, and lets the distiller learn from every step.
///
/// One sampler serves a whole batch. It knows rows by the ids that come with them, so a batch may shrink, grow and be
/// reordered from one step to the next.
#[derive(Debug)]
pub struct Sampler {
    trainer: Box<dyn OnlineTrainer>,
    config: SamplerConfig,
    /// Whether slots start from a distiller that the configuration does not know.
    custom_distiller: bool,
    d_model: usize,
    device: Device,
    counters: Counters,
    stages: StageSeconds,
    observer: Option<Box<dyn Observer>>,
    control: Option<Box<dyn ExpectedControl>>,
}

/// Everything that makes a sampler what it is.
pub(crate) struct SamplerState {
    pub(crate) trainer: TrainerState,
    pub(crate) config: SamplerConfig,
    pub(crate) custom_distiller: bool,
    pub(crate) d_model: usize,
    pub(crate) counters: Counters,
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

    /// Makes room for a completion that is to be sampled with these settings, so that its prompt's distiller stays while
    /// the completion waits for its turn. Optional: the first step that has its row does the same. Nothing happens where the
    /// settings use no distiller.
    pub fn admit(&mut self, row: CompletionId, sampling: &Sampling) {
        if sampling.expects() == Expects::Distiller {
            self.trainer.begin(row);
        }
    }

    /// The tap for a forward pass over rows with these settings: `None` where none of them needs hidden states, so that
    /// the model can be given [`NoTap`](crate::NoTap) and records nothing.
    pub fn tap_for<'a>(
        &self,
        settings: impl IntoIterator<Item = &'a Sampling>,
        [shallow, deep]: [TapSite; 2],
    ) -> Option<PairTap> {
        let uses_distiller = |sampling: &Sampling| sampling.expects() == Expects::Distiller;
        settings.into_iter().any(uses_distiller).then(|| PairTap::new(shallow, deep))
    }

    /// Says that a request has ended. A distiller that no request needs any more is dropped, with its optimizer state.
    pub fn release(&mut self, row: CompletionId) {
        self.trainer.release(row);
    }

    /// Forgets all distillers, counters and times.
    pub fn reset(&mut self) {
        self.trainer.reset();
        self.counters = Counters::default();
        self.stages = StageSeconds::default();
    }

    /// The requests that have begun and not ended, as far as distillers know of them. After
    /// [`load`](crate::snapshots::SamplerLoader::load), those that were running when the file was written: go on with them, or release
    /// them. (A file of version 1 knows prompts only where distillers are shared by prompt; elsewhere they come back as 0.)
    pub fn completions(&self) -> Vec<CompletionId> {
        self.trainer.completions()
    }

    /// Number of distillers in use.
    pub fn distillers(&self) -> usize {
        self.trainer.distillers()
    }

    /// Bytes of the distillers in use: their parameters and what their optimizers remember, all in `f32`. Twice as much with
    /// [`Staleness::Background`](crate::optim::Staleness), where the worker has copies. A distiller's is there when it has predicted
    /// or learned; docs/design/bank.md says how much it is. Gradients, which live as long as an update, are not counted.
    pub fn state_bytes(&self) -> usize {
        self.trainer.state_bytes()
    }

    /// Which requests share a distiller.
    pub fn sharing(&self) -> Sharing {
        self.config.sharing
    }

    /// The settings that it was made from.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Everything that makes this sampler what it is. It goes on unchanged.
    pub(crate) fn export(&mut self) -> Result<SamplerState, TrainError> {
        Ok(SamplerState {
            trainer: self.trainer.export()?,
            config: self.config.clone(),
            custom_distiller: self.custom_distiller,
            d_model: self.d_model,
            counters: self.counters,
        })
    }

    /// Puts back what [`export`](Self::export) has given to a sampler with the same settings.
    pub(crate) fn import(
        &mut self,
        counters: Counters,
        trainer: TrainerState,
    ) -> Result<(), Misfit> {
        self.trainer.import(trainer)?;
        self.counters = counters;
        Ok(())
    }

    /// Totals since the beginning or the last reset.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where the time of the steps has gone since the beginning or the last reset. A snapshot does not hold it.
    ///
    /// Measuring costs nine looks at the clock a step, less than a microsecond.
    pub fn stage_seconds(&self) -> &StageSeconds {
        &self.stages
    }

    /// Lets a row's distiller learn from the prompt before the first token: `updates` optimizer steps, each on all
    /// positions of `prompt` together. Returns the number of steps done, which [`Counters::warm_up_updates`] counts.
    ///
    /// The paper never trains on a prompt. In a study on SmolLM2-135M, 20 steps brought the relative error of the first five
    /// tokens from 1.0 down to 0.8 (docs/guide/starting-points.md).
    ///
    /// All positions are used, the last one too: what it predicts is the first token, and that is not steered. Positions
    /// whose states are not finite are left out and counted in [`Counters::warm_up_rows_not_finite`]; where none is left, or
    /// with 0 updates, nothing happens. Where several rows share a distiller, warm it up with one of them: every call
    /// learns again.
    ///
    /// # Errors
    ///
    /// [`StepError::Shape`] or [`StepError::Device`] when the states are not those of this sampler's model, and what the
    /// trainer reports.
    pub fn warm_up(
        &mut self,
        row: CompletionId,
        prompt: &HiddenStates,
        updates: usize,
    ) -> Result<usize, StepError> {
        input::check_states("prompt's hidden states", prompt, self.d_model, &self.device)?;
        if updates == 0 {
            return Ok(0);
        }
        let finite = prompt.finite_rows()?;
        self.counters.warm_up_rows_not_finite += (prompt.rows() - finite.len()) as u64;
        if finite.is_empty() {
            return Ok(0);
        }
        let done = self.trainer.warm_up(row, &prompt.at(&finite), updates)?;
        self.counters.warm_up_updates += done.updates as u64;
        self.counters.fits += done.fits as u64;
        self.counters.fits_failed += done.fits_failed as u64;
        Ok(done.updates)
    }

    /// [`warm_up`](Self::warm_up) for completions of one prompt: each of their distillers once, however many of them share
    /// it. Returns the number of optimizer steps, over all distillers.
    ///
    /// # Errors
    ///
    /// As [`warm_up`](Self::warm_up).
    pub fn warm_up_prompt(
        &mut self,
        rows: &[CompletionId],
        prompt: &HiddenStates,
        updates: usize,
    ) -> Result<usize, StepError> {
        let mut warm = HashSet::new();
        let mut done = 0;
        for &row in rows {
            if warm.insert(self.config.sharing.slot(row)) {
                done += self.warm_up(row, prompt, updates)?;
            }
        }
        Ok(done)
    }

    /// Shows every token and every step from here on to `observer`, in the place of the one before. It changes nothing
    /// else: see [`Observer`].
    pub fn set_observer(&mut self, observer: Box<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// Ends the observation and gives the observer back, if there is one.
    pub fn take_observer(&mut self) -> Option<Box<dyn Observer>> {
        self.observer.take()
    }

    /// Replaces the expected states of every step from here on by what `control` makes of them: for experiments, see
    /// [`ExpectedControl`]. A snapshot does not hold it.
    pub fn set_expected_control(&mut self, control: Box<dyn ExpectedControl>) {
        self.control = Some(control);
    }

    /// Waits for an update that runs in the background, so that the next step sees it, and checks that steering did
    /// something. The sampler can be used on.
    ///
    /// # Errors
    ///
    /// [`TrainError::NothingLearned`] when rows were there to be learned, no update happened and none is being gathered
    /// for: their hidden states were not finite, or the distiller has no parameters that an update could move.
    /// [`TrainError::Worker`] when learning in the background has failed.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        let learned = self.trainer.finish()?;
        self.count_learned(learned);
        let Counters { updates, eligible, rows_not_finite: skipped, .. } = self.counters;
        if updates == 0 && eligible > 0 && self.trainer.waiting_rows() == 0 {
            return Err(TrainError::NothingLearned { eligible, skipped });
        }
        Ok(())
    }

    /// Chooses a token for every row, then learns from the step.
    ///
    /// 1. predict the deep hidden state of every steered row, with the parameters from before this step;
    /// 2. pool: the tokens of each row that its first filter could keep, with penalties and bias in their logits;
    /// 3. filter them on the reference distribution;
    /// 4. expect: the head's logits of the predicted state, or another model's, for the tokens that are left;
    /// 5. reweight: `(1 + β)·logit − β·expected`, or what the row's reweighter makes of the two;
    /// 6. select one token, from the row's own random stream;
    /// 7. learn: one update of each distiller, on all of its rows.
    ///
    /// A row is steered when it is in [`Phase::Decode`] and its reweighter expects a distiller; all others skip 1 and 7. A
    /// steered row whose distiller has had fewer updates than [`SamplerConfig::steps_before_steering`] skips 5. One whose
    /// hidden state, prediction or expected logits are not finite is sampled plainly, counted in
    /// [`Counters::rows_not_finite`], and not learned. A row contrasted with another model whose logits are not finite is
    /// sampled plainly too, counted in [`Counters::other_not_finite`].
    ///
    /// # Errors
    ///
    /// [`StepError`] when the step as a whole does not fit together; nothing has been learned then. What is wrong with
    /// one row is in its place in [`StepOutput::choices`], and the other rows go on.
    pub fn step(&mut self, input: StepInput<'_>) -> Result<StepOutput, StepError> {
        input.check(self.d_model, &self.device)?;
        let StepInput { rows, logits, hidden, other_logits, lm_head } = input;
        if rows.is_empty() {
            return Ok(StepOutput::default());
        }
        let mut step = Step::begin(rows, lm_head);
        step.predict(self, hidden)?; // 1
        step.read(logits)?;
        step.pool(); // 2
        step.filter(); // 3
        step.expect(other_logits)?; // 4
        step.reweight(); // 5
        step.select(); // 6
        step.learn(self)?; // 7
        Ok(step.report(self))
    }

    fn count_learned(&mut self, learned: Learned) {
        self.counters.updates += learned.updates as u64;
        self.counters.rows_learned += learned.rows as u64;
        self.counters.fits += learned.fits as u64;
        self.counters.fits_failed += learned.fits_failed as u64;
    }
}
