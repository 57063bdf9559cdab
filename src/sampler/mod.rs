//! The step: predict, pool, filter, expect, reweight, select, learn.

mod config;
mod input;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, Transaction};

pub use config::{DistillerConfig, SamplerConfig};
pub use input::{Choice, Novelty, Phase, StepInput, StepOutput, StepRow};

use crate::{
    candidates::{Candidates, Reach, log_sum_exp, pool},
    error::{RowError, StepError, TrainError},
    hidden::{HiddenStates, select_rows},
    id::{RowId, TokenId},
    lm_head::LmHead,
    sampling::TemperatureOrder,
    select::select,
    telemetry::Counters,
    train::OnlineTrainer,
};

/// Chooses tokens, steered away from what the distiller expects, and lets the distiller learn from every step.
///
/// One sampler serves a whole batch. It knows rows by the ids that come with them, so a batch may shrink, grow and be
/// reordered from one step to the next.
#[derive(Debug)]
pub struct Sampler {
    trainer: Box<dyn OnlineTrainer>,
    d_model: usize,
    device: Device,
    counters: Counters,
}

impl Sampler {
    fn new(trainer: Box<dyn OnlineTrainer>, d_model: usize, device: Device) -> Self {
        Self { trainer, d_model, device, counters: Counters::default() }
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

    /// Totals since the beginning or the last reset.
    pub fn counters(&self) -> &Counters {
        &self.counters
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
    /// and 7. A steered row whose hidden state, prediction or expected logits are not finite is sampled plainly,
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
            Some(steered) => self.learn(rows, steered, &mut choices)?, // 7
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
        Ok(Some(Steered { novelty: vec![None; at.len()], at, ids, hidden, expected }))
    }

    /// One update of each distiller on the steered rows that were given a token.
    fn learn(
        &mut self,
        rows: &[StepRow<'_>],
        steered: Steered,
        choices: &mut [Result<Choice, RowError>],
    ) -> Result<usize, StepError> {
        let mut learned = Vec::with_capacity(steered.at.len());
        for (place, &at) in steered.at.iter().enumerate() {
            debug_assert_eq!(rows[at].id, steered.ids[place]);
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
            if let Some(novelty) = choice.novelty {
                self.counters.steered += 1;
                self.counters.novelty_sum += f64::from(novelty.error);
                self.counters.relative_novelty_sum += f64::from(novelty.relative());
            }
        }
    }
}

/// The logits of a step on the host.
struct Logits {
    values: Vec<f32>,
    vocab: usize,
}

impl Logits {
    fn read(logits: Tensor<2>) -> Result<Self, StepError> {
        let vocab = logits.dims()[1];
        let values = read_f32(logits.inner())?;
        Ok(Self { values, vocab })
    }

    fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.vocab..(at + 1) * self.vocab]
    }
}

/// The tokens of one row that its filters leave, on the reference distribution.
fn race(row: &StepRow<'_>, logits: &[f32]) -> Result<Candidates, RowError> {
    let (before, after) = match row.sampling.temperature_order() {
        _ if row.sampling.is_greedy() => (1.0, 1.0),
        TemperatureOrder::BeforeFilters => (row.sampling.temperature(), 1.0),
        TemperatureOrder::AfterFilters => (1.0, row.sampling.temperature()),
    };
    let filters = row.sampling.filters();
    let reach = filters.first().map_or(Reach::Everything, |filter| filter.reach());
    let mut candidates = pool(logits, before, row.allowed, reach)?;
    let context = row.context();
    for filter in filters {
        filter.filter(&context, &mut candidates);
    }
    candidates.settle();
    candidates.divide(after);
    Ok(candidates)
}

/// One token from the race.
fn choose(row: &StepRow<'_>, candidates: Candidates, logits: &[f32]) -> Result<Choice, RowError> {
    if let Some(refused) = candidates.refused() {
        return Err(refused);
    }
    let (token, log_prob) = select(&candidates, row.context().draw, row.sampling.is_greedy());
    let reference_log_prob = row
        .wants_reference_log_prob
        .then(|| (f64::from(logits[token as usize]) - log_sum_exp(logits)) as f32);
    Ok(Choice { token, log_prob, reference_log_prob, candidates: candidates.len(), novelty: None })
}

/// The rows of a step that are steered, and what the distillers expect of them. Everything here is in the order of
/// `at`, which holds the rows' places in the step.
struct Steered {
    at: Vec<usize>,
    ids: Vec<RowId>,
    hidden: HiddenStates,
    expected: Tensor<2>,
    novelty: Vec<Option<Novelty>>,
}

impl Steered {
    /// Gives every candidate its expected logit and every row its novelty, in one transfer from the device.
    ///
    /// Rows for which one of these numbers is not finite get none, and the rest of the step passes them by.
    fn expect(
        &mut self,
        rows: &[StepRow<'_>],
        races: &mut [Result<Candidates, RowError>],
        lm_head: &dyn LmHead,
        vocab: usize,
    ) -> Result<(), StepError> {
        let live: Vec<usize> = (0..self.at.len()).filter(|&i| races[self.at[i]].is_ok()).collect();
        let widest =
            live.iter().filter_map(|&i| races[self.at[i]].as_ref().ok()).map(Candidates::len).max();
        let Some(widest) = widest else {
            return Ok(());
        };
        let expected = select_rows(&self.expected, &live);
        let deep = select_rows(self.hidden.deep(), &live);

        // Beyond this many candidates, one product with the whole matrix moves less memory than gathering its rows.
        let dense = live.len() * widest >= vocab;
        let width = if dense { vocab } else { widest };
        let logits = if dense {
            lm_head.logits(expected.clone())
        } else {
            let tokens =
                padded_tokens(live.iter().filter_map(|&i| races[self.at[i]].as_ref().ok()), widest);
            let tokens = TensorData::new(tokens, [live.len(), widest]);
            lm_head.logits_at(expected.clone(), Tensor::<2, Int>::from_data(tokens, &deep.device()))
        };
        if logits.dims() != [live.len(), width] {
            return Err(StepError::Shape {
                what: "expected logits of the LM head",
                expected: vec![live.len(), width],
                got: logits.dims().to_vec(),
            });
        }
        let error = (deep.clone() - expected).square().sum_dim(1).sqrt();
        let deep = deep.square().sum_dim(1).sqrt();
        let read = Transaction::default()
            .register(logits.inner().cast(DType::F32))
            .register(error)
            .register(deep)
            .try_execute()?;
        let [logits, error, deep] = <[TensorData; 3]>::try_from(read).map_err(|read| {
            StepError::Execution(format!("expected 3 tensors, got {}", read.len()))
        })?;
        let (logits, error, deep) = (host(logits)?, host(error)?, host(deep)?);

        for (row, &i) in live.iter().enumerate() {
            let Ok(race) = &mut races[self.at[i]] else {
                continue;
            };
            let logits = &logits[row * width..(row + 1) * width];
            let temperature = rows[self.at[i]].sampling.divisor();
            let finite = race.set_expected(|place, token| {
                logits[if dense { token as usize } else { place }] / temperature
            });
            if finite && error[row].is_finite() && deep[row].is_finite() {
                self.novelty[i] = Some(Novelty { error: error[row], deep: deep[row] });
            }
        }
        Ok(())
    }

    /// Rescores the candidates of every row that has finite expectations.
    fn reweight(&self, rows: &[StepRow<'_>], races: &mut [Result<Candidates, RowError>]) {
        for (&at, novelty) in self.at.iter().zip(&self.novelty) {
            if let (Ok(race), Some(_)) = (&mut races[at], novelty) {
                rows[at].sampling.reweighter().reweight(&rows[at].context(), race);
            }
        }
    }
}

/// The tokens of each row, best first, filled up with the row's best token to `width`.
fn padded_tokens<'a>(races: impl Iterator<Item = &'a Candidates>, width: usize) -> Vec<i32> {
    let mut tokens = Vec::new();
    for race in races {
        let best = race.best().token;
        let row = race.as_slice().iter().map(|c| c.token).chain(std::iter::repeat(best));
        tokens.extend(row.take(width).map(|token: TokenId| token as i32));
    }
    tokens
}

fn read_f32(tensor: Tensor<2>) -> Result<Vec<f32>, StepError> {
    host(tensor.cast(DType::F32).try_into_data()?)
}

fn host(data: TensorData) -> Result<Vec<f32>, StepError> {
    data.try_into_vec::<f32>().map_err(|error| StepError::Execution(format!("{error:?}")))
}
