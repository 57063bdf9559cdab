//! The step: predict, pool, filter, expect, reweight, select, learn.

mod config;
mod input;
mod race;
mod steered;

use burn::tensor::Device;

pub use config::{DistillerConfig, SamplerConfig};
pub use input::{Choice, Novelty, Phase, StepInput, StepOutput, StepRow};

use crate::{
    bank::Sharing,
    error::{RowError, StepError, TrainError},
    hidden::HiddenStates,
    id::RowId,
    telemetry::Counters,
    train::OnlineTrainer,
};
use race::{Logits, choose, race};
use steered::Steered;

/// Chooses tokens, steered away from what the distiller expects, and lets the distiller learn from every step.
///
/// One sampler serves a whole batch. It knows rows by the ids that come with them, so a batch may shrink, grow and be
/// reordered from one step to the next.
#[derive(Debug)]
pub struct Sampler {
    trainer: Box<dyn OnlineTrainer>,
    sharing: Sharing,
    steps_before_steering: u64,
    d_model: usize,
    device: Device,
    counters: Counters,
}

impl Sampler {
    fn new(
        trainer: Box<dyn OnlineTrainer>,
        config: &SamplerConfig,
        d_model: usize,
        device: Device,
    ) -> Self {
        Self {
            trainer,
            sharing: config.sharing,
            steps_before_steering: config.steps_before_steering as u64,
            d_model,
            device,
            counters: Counters::default(),
        }
    }

    /// Makes room for a row's request, so that its prompt's distiller stays while the request waits for its turn.
    /// Optional: the first step that has the row does the same.
    pub fn begin(&mut self, row: RowId) {
        self.trainer.begin(row);
    }

    /// Says that a request has ended. A distiller that no request needs any more is dropped, with its optimizer state.
    pub fn release(&mut self, row: RowId) {
        self.trainer.release(row);
    }

    /// Forgets all distillers and counters.
    pub fn reset(&mut self) {
        self.trainer.reset();
        self.counters = Counters::default();
    }

    /// Number of distillers in use.
    pub fn distillers(&self) -> usize {
        self.trainer.distillers()
    }

    /// Which requests share a distiller.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Totals since the beginning or the last reset.
    pub fn counters(&self) -> &Counters {
        &self.counters
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
        let done = self.trainer.warm_up(row, &prompt.at(&finite), updates)?;
        self.counters.warm_up_updates += done as u64;
        Ok(done)
    }

    /// Checks that steering did something.
    ///
    /// # Errors
    ///
    /// [`TrainError::NothingLearned`] when rows were there to be learned and no update happened.
    pub fn finish(&self) -> Result<(), TrainError> {
        let skipped = self.counters.rows_not_finite;
        if self.counters.updates == 0 && self.counters.eligible > 0 {
            return Err(TrainError::NothingLearned { eligible: self.counters.eligible, skipped });
        }
        Ok(())
    }

    /// Chooses a token for every row, then learns from the step.
    ///
    /// 1. predict the deep hidden state of every steered row, with the parameters from before this step;
    /// 2. pool: the tokens of each row that its first filter could keep;
    /// 3. filter them on the reference distribution;
    /// 4. expect: the head's logits of the predicted state, for the tokens that are left;
    /// 5. reweight: `(1 + β)·logit − β·expected`;
    /// 6. select one token, from the row's own random stream;
    /// 7. learn: one update of each distiller, on all of its rows.
    ///
    /// A row is steered when it is in [`Phase::Decode`] and its reweighter uses expected logits; all others skip 1, 4, 5
    /// and 7. A steered row whose distiller has had fewer updates than [`SamplerConfig::steps_before_steering`] skips 5. A steered row whose hidden state, prediction or expected logits are not finite is sampled plainly,
    /// counted in [`Counters::rows_not_finite`], and not learned.
    ///
    /// # Errors
    ///
    /// [`StepError`] when the step as a whole does not fit together; nothing has been learned then. What is wrong with
    /// one row is in its place in [`StepOutput::choices`], and the other rows go on.
    pub fn step(&mut self, input: StepInput<'_>) -> Result<StepOutput, StepError> {
        input.check(self.d_model, &self.device)?;
        let StepInput { rows, logits, hidden, lm_head } = input;
        if rows.is_empty() {
            return Ok(StepOutput::default());
        }
        let mut steered = self.predict(rows, hidden)?; // 1
        let logits = Logits::read(logits)?;
        let mut races: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(at, row)| race(row, logits.row(at))) // 2, 3
            .collect();
        if let Some(steered) = &mut steered {
            steered.expect(rows, &mut races, lm_head, logits.vocab)?; // 4
            steered.reweight(rows, &mut races); // 5
        }
        let mut choices: Vec<_> = rows
            .iter()
            .zip(races)
            .enumerate()
            .map(|(at, (row, race))| choose(row, race?, logits.row(at))) // 6
            .collect();
        let updates = match steered {
            Some(steered) => self.learn(steered, &mut choices)?, // 7
            None => 0,
        };
        self.count(&choices);
        Ok(StepOutput { choices, updates })
    }

    /// The expected deep states of the rows that are to be steered; `None` when there are none.
    fn predict(
        &mut self,
        rows: &[StepRow<'_>],
        hidden: Option<HiddenStates>,
    ) -> Result<Option<Steered>, StepError> {
        let at: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_steered()).collect();
        let Some(hidden) = hidden.filter(|_| !at.is_empty()) else {
            return Ok(None);
        };
        let hidden = hidden.at(&at);
        let ids: Vec<RowId> = at.iter().map(|&at| rows[at].id).collect();
        let expected = self.trainer.predict(&ids, hidden.shallow())?;
        let warming = |&row: &RowId| self.trainer.updates(row) < self.steps_before_steering;
        let warming = ids.iter().map(warming).collect();
        Ok(Some(Steered { novelty: vec![None; at.len()], warming, at, ids, hidden, expected }))
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
                    let error = f64::from(novelty.error);
                    self.counters.loss_sum += error * error / self.d_model as f64;
                    learned.push(place);
                    if steered.warming[place] {
                        self.counters.rows_warming += 1;
                    } else {
                        self.counters.steered += 1;
                        self.counters.novelty_sum += error;
                        self.counters.relative_novelty_sum += f64::from(novelty.relative());
                    }
                }
                None => self.counters.rows_not_finite += 1,
            }
        }
        if learned.is_empty() {
            return Ok(0);
        }
        let ids: Vec<RowId> = learned.iter().map(|&place| steered.ids[place]).collect();
        let updates = self.trainer.learn(&ids, &steered.hidden.at(&learned))?;
        self.counters.updates += updates as u64;
        self.counters.rows_learned += learned.len() as u64;
        Ok(updates)
    }

    fn count(&mut self, choices: &[Result<Choice, RowError>]) {
        self.counters.steps += 1;
        for choice in choices {
            let Ok(choice) = choice else {
                self.counters.failed += 1;
                continue;
            };
            self.counters.tokens += 1;
            self.counters.candidates += choice.candidates as u64;
        }
    }
}
