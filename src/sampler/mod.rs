//! The step: predict, pool, filter, expect, reweight, select, learn.

mod config;
mod control;
mod early;
mod input;
mod latent;
mod observe;
mod other;
mod output;
mod race;
mod steered;

use burn::tensor::Device;

pub use config::{DistillerConfig, SamplerConfig};
pub use control::ExpectedControl;
pub use early::{Early, EarlyTap, Overlap};
pub use input::{Phase, StepInput, StepRow};
pub use output::{Choice, Novelty, StepOutput};

use crate::{
    bank::Sharing,
    error::{RowError, StepError, TrainError},
    hidden::{HiddenStates, select_rows},
    id::RowId,
    novelty::Expects,
    telemetry::{Counters, Observer, StageClock, StageSeconds, Steering, StepTrace},
    train::{Learned, Misfit, OnlineTrainer, PredictionThread, TrainerState},
};
use input::Reference;
use latent::project;
use observe::{Chosen, RowState, steering, unsteered};
use other::expect_other;
use race::{Logits, choose, pool};
use steered::Steered;

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
    /// Started when first needed.
    predictions: Option<PredictionThread>,
    /// The prediction that was started last, while nothing has changed since.
    early: Option<u64>,
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
        let counters = Counters::default();
        let (observer, predictions, early) = (None, None, None);
        Self {
            trainer,
            config,
            custom_distiller,
            d_model,
            device,
            counters,
            stages: StageSeconds::default(),
            observer,
            predictions,
            early,
        }
    }

    /// Makes room for a row's request, so that its prompt's distiller stays while the request waits for its turn.
    /// Optional: the first step that has the row does the same.
    pub fn begin(&mut self, row: RowId) {
        self.trainer.begin(row);
    }

    /// Says that a request has ended. A distiller that no request needs any more is dropped, with its optimizer state.
    pub fn release(&mut self, row: RowId) {
        self.early = None;
        self.trainer.release(row);
    }

    /// Forgets all distillers, counters and times.
    pub fn reset(&mut self) {
        self.early = None;
        self.trainer.reset();
        self.counters = Counters::default();
        self.stages = StageSeconds::default();
    }

    /// The requests that have begun and not ended, as far as distillers know of them; a prompt that does not decide whose
    /// distiller it is, is 0. After [`load`](Self::load), those that were running when the file was written: go on with
    /// them, or release them.
    pub fn requests(&self) -> Vec<RowId> {
        self.trainer.requests()
    }

    /// Number of distillers in use.
    pub fn distillers(&self) -> usize {
        self.trainer.distillers()
    }

    /// Bytes of the distillers in use: their parameters and what their optimizers remember, all in `f32`. Twice as much with
    /// [`Staleness::Background`](crate::Staleness), where the worker has copies. A distiller's is there when it has predicted
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
        self.early = None;
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
        row: RowId,
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
        self.early = None;
        let done = self.trainer.warm_up(row, &prompt.at(&finite), updates)?;
        self.counters.warm_up_updates += done.updates as u64;
        self.counters.fits += done.fits as u64;
        self.counters.fits_failed += done.fits_failed as u64;
        Ok(done.updates)
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

    /// Waits for an update that runs in the background, so that the next step sees it, and checks that steering did
    /// something. The sampler can be used on.
    ///
    /// # Errors
    ///
    /// [`TrainError::NothingLearned`] when rows were there to be learned, no update happened and none is being gathered
    /// for: their hidden states were not finite, or the distiller has no parameters that an update could move.
    /// [`TrainError::Worker`] when learning in the background has failed.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        self.early = None;
        let learned = self.trainer.finish()?;
        self.count_learned(learned);
        let Counters { updates, eligible, rows_not_finite: skipped, .. } = self.counters;
        if updates == 0 && eligible > 0 && self.trainer.waiting_rows() == 0 {
            return Err(TrainError::NothingLearned { eligible, skipped });
        }
        Ok(())
    }

    fn count_learned(&mut self, learned: Learned) {
        self.counters.updates += learned.updates as u64;
        self.counters.rows_learned += learned.rows as u64;
        self.counters.fits += learned.fits as u64;
        self.counters.fits_failed += learned.fits_failed as u64;
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
        let StepInput { rows, reference, hidden, early, other_logits, lm_head } = input;
        if rows.is_empty() {
            return Ok(StepOutput::default());
        }
        let mut clock = StageClock::start();
        let mut steered = self.predict(rows, hidden, early)?; // 1
        clock.lap(&mut self.stages.predict);
        let mut logits = Logits::read(match reference {
            Reference::Logits(logits) => logits,
            Reference::HeadInput(states) => {
                // An observer wants to see both distributions: nothing is mixed before the head then.
                let mixable = steered.as_mut().filter(|_| self.observer.is_none());
                project(rows, states, mixable, lm_head)?
            }
        })?;
        clock.lap(&mut self.stages.read);
        let mut races: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(at, row)| pool(row, logits.row_mut(at))) // 2
            .collect();
        clock.lap(&mut self.stages.pool);
        for (row, race) in rows.iter().zip(&mut races) {
            if let Ok(race) = race {
                row.sampling.filter(&row.context(), race); // 3
            }
        }
        clock.lap(&mut self.stages.filter);
        let mut ready = match &mut steered {
            Some(steered) => steered.expect(rows, &mut races, lm_head, logits.vocab)?, // 4
            None => Vec::new(),
        };
        let plain = unsteered(rows, &races, &ready);
        let mut states = vec![RowState::default(); rows.len()];
        let contrasted = expect_other(rows, &mut races, other_logits, logits.vocab)?; // 4
        contrasted.iter().for_each(|&at| states[at].contrasted = true);
        ready.extend(contrasted);
        clock.lap(&mut self.stages.expect);
        let alone = |&at: &usize| rows[at].expects() == Some(Expects::Nothing);
        for at in ready.into_iter().chain((0..rows.len()).filter(alone)) {
            if let Ok(race) = &mut races[at] {
                rows[at].sampling.reweighter().reweight(&rows[at].context(), race); // 5
            }
        }
        clock.lap(&mut self.stages.reweight);
        let mut choices: Vec<_> = rows
            .iter()
            .zip(&races)
            .enumerate()
            .map(|(at, (row, race))| choose(row, race, logits.row(at))) // 6
            .collect();
        clock.lap(&mut self.stages.select);
        if let Some(steered) = &steered {
            let places = steered.at.iter().zip(&steered.warming);
            places.for_each(|(&at, &is_warming)| states[at].warming = is_warming);
        }
        let updates = match steered {
            Some(steered) => self.learn(steered, &mut choices)?, // 7
            None => 0,
        };
        clock.lap(&mut self.stages.learn);
        let chosen = Chosen {
            step: self.counters.steps,
            d_model: self.d_model,
            rows,
            races: &races,
            logits: &logits,
            choices: &choices,
            unsteered: &plain,
            states: &states,
        };
        self.count(&chosen);
        self.observe(&chosen, updates);
        clock.lap(&mut self.stages.observe);
        Ok(StepOutput { choices, updates })
    }

    /// The expected deep states of the rows that are to be steered; `None` when there are none.
    fn predict(
        &mut self,
        rows: &[StepRow<'_>],
        hidden: Option<HiddenStates>,
        early: Option<Early>,
    ) -> Result<Option<Steered>, StepError> {
        let at: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_steered()).collect();
        let Some(hidden) = hidden.filter(|_| !at.is_empty()) else {
            return Ok(None);
        };
        let hidden = hidden.at(&at);
        let ids: Vec<RowId> = at.iter().map(|&at| rows[at].id).collect();
        let prediction = match early {
            Some(early) => self.early_prediction(early, &ids)?,
            None => self.trainer.predict(&ids, hidden.shallow())?,
        };
        let steered_rows = at.iter().map(|&at| &rows[at]);
        let (deep, counters) = (hidden.deep(), &mut self.counters);
        let expected = self.config.expected_control.apply(
            steered_rows,
            deep,
            prediction.expected.clone(),
            counters,
        )?;
        let before = self.config.steps_before_steering as u64;
        let warming = |&row: &RowId| self.trainer.updates(row) < before;
        let warming = ids.iter().map(warming).collect();
        Ok(Some(Steered::new(at, ids, hidden, prediction, expected, warming)))
    }

    /// One update of each distiller on the steered rows that were given a token.
    fn learn(
        &mut self,
        steered: Steered,
        choices: &mut [Result<Choice, RowError>],
    ) -> Result<usize, StepError> {
        let mut learned = Vec::with_capacity(steered.at.len());
        for (place, &at) in steered.at.iter().enumerate() {
            let Ok(choice) = &mut choices[at] else {
                continue;
            };
            self.counters.eligible += 1;
            choice.novelty = steered.novelty[place];
            match choice.novelty {
                Some(novelty) => {
                    self.counters.loss_sum += novelty.loss(self.d_model);
                    self.counters.mixed += u64::from(steered.settled[place]);
                    learned.push(place);
                }
                None => {
                    self.counters.rows_not_finite += 1;
                    self.counters.predictions_not_finite += u64::from(steered.diverged[place]);
                }
            }
        }
        if learned.is_empty() {
            return Ok(0);
        }
        let ids: Vec<RowId> = learned.iter().map(|&place| steered.ids[place]).collect();
        let parts: Vec<_> = steered.parts.iter().map(|part| select_rows(part, &learned)).collect();
        self.early = None;
        let done = self.trainer.learn(&ids, &steered.hidden.at(&learned), &parts)?;
        self.count_learned(done);
        Ok(done.updates)
    }

    /// Adds up a step.
    fn count(&mut self, chosen: &Chosen<'_>) {
        let Chosen { rows, choices, unsteered, states, .. } = *chosen;
        let counters = &mut self.counters;
        counters.steps += 1;
        for (at, (row, choice)) in rows.iter().zip(choices).enumerate() {
            let Ok(choice) = choice else {
                counters.failed += 1;
                continue;
            };
            counters.tokens += 1;
            counters.candidates += choice.candidates as u64;
            match steering(row, choice, states[at]) {
                Steering::Steered => {
                    let plain = unsteered.get(at).copied().flatten();
                    counters.steered += 1;
                    counters.interventions += u64::from(plain.is_some_and(|t| t != choice.token));
                }
                Steering::Warming => {
                    counters.rows_warming += 1;
                    continue;
                }
                Steering::Contrasted => {
                    counters.contrasted += 1;
                    continue;
                }
                Steering::OtherNotFinite => {
                    counters.other_not_finite += 1;
                    continue;
                }
                // Those that are not finite were counted when there was nothing to learn from them.
                Steering::Off | Steering::FirstToken | Steering::NotFinite => continue,
            }
            if let Some(novelty) = choice.novelty {
                counters.novelty_sum += f64::from(novelty.error);
                let relative = f64::from(novelty.relative());
                // Infinite where the deep state is 0.
                counters.relative_novelty_sum += if relative.is_finite() { relative } else { 0.0 };
            }
        }
    }

    /// Shows the step to the observer, if there is one.
    fn observe(&mut self, chosen: &Chosen<'_>, updates: usize) {
        let Some(observer) = &mut self.observer else {
            return;
        };
        let traces = chosen.traces();
        self.counters.observed += traces.len() as u64;
        self.counters.mass_outside += traces.iter().map(|trace| trace.mass_outside).sum::<f64>();
        traces.iter().for_each(|trace| observer.token(trace));
        let (failed, distillers) = (chosen.rows.len() - traces.len(), self.trainer.distillers());
        let counters = self.counters;
        observer.step(&StepTrace::of(
            &traces,
            self.config.sharing,
            failed,
            updates,
            distillers,
            counters,
        ));
    }
}
