//! The stages of a step, each over all rows.

use burn::tensor::{Device, Tensor};

use super::{
    Sampler, StepOutput, StepRow,
    best::read_best,
    expect::{Predicted, expect_other, square_length},
    input::LogitsInput,
    logits::{Logits, RowLogits},
    row::RowState,
    transfer::Reader,
};
use crate::{
    candidates::Candidates,
    hidden::HiddenStates,
    host::{is_flex, share_each},
    id::CompletionId,
    lm_head::LmHead,
    sampler::error::StepError,
    telemetry::{StageClock, StageSeconds, Steering, add},
    tensor::select_rows,
    train::Prediction,
};

/// The logits that are worth a thread, if they are looked at once: some 400 µs. Waking the thread takes a part of that,
/// and the few candidates of min-p in 16 rows are found no faster with two.
const LOGITS_OF_A_THREAD: usize = 1_000_000;

/// The candidates that are worth a thread, if each is sorted or its exponential is taken.
const CANDIDATES_OF_A_THREAD: usize = 2_000;

/// A step in progress. Each stage works on the results of the previous ones and adds its time to its entry in
/// `seconds`.
pub(super) struct Step<'a> {
    pub(super) rows: Vec<RowState<'a>>,
    pub(super) logits: Logits,
    lm_head: &'a dyn LmHead,
    /// `None` if no row has a distiller.
    predicted: Option<Predicted>,
    updates: usize,
    reader: Reader,
    clock: StageClock,
    seconds: StageSeconds,
}

impl<'a> Step<'a> {
    pub(super) fn begin(rows: &'a [StepRow<'a>], lm_head: &'a dyn LmHead) -> Self {
        Self {
            rows: rows.iter().map(RowState::new).collect(),
            logits: Logits::default(),
            lm_head,
            predicted: None,
            updates: 0,
            reader: Reader::default(),
            clock: StageClock::start(),
            seconds: StageSeconds::default(),
        }
    }

    /// Whether the threads of the host should be awake, with distillers on `device`. They would wait for another device.
    pub(super) fn has_work_for_threads(&self, device: &Device) -> bool {
        is_flex(device) && self.rows.iter().any(RowState::has_distiller)
    }

    /// Predicts the deep state of every row that has a distiller, with the parameters from before this step.
    pub(super) fn predict(
        &mut self,
        sampler: &mut Sampler,
        hidden: Option<HiddenStates>,
    ) -> Result<(), StepError> {
        let at: Vec<usize> =
            (0..self.rows.len()).filter(|&at| self.rows[at].has_distiller()).collect();
        let Some(hidden) = hidden.filter(|_| !at.is_empty()) else {
            return Ok(());
        };
        let hidden = hidden.at(&at);
        let ids: Vec<CompletionId> = at.iter().map(|&at| self.rows[at].input.id).collect();
        let Prediction { expected: predicted, parts } =
            sampler.trainer.predict(&ids, hidden.shallow())?;
        // The control changes only what scores are reweighted with: novelty and learning keep the prediction itself.
        let expected = match &mut sampler.control {
            Some(control) => {
                let rows: Vec<_> = at.iter().map(|&at| self.rows[at].input.context()).collect();
                control.expected(&rows, hidden.deep(), predicted.clone().inner())?
            }
            None => predicted.clone(),
        };
        let before = sampler.config.updates_before_steering as u64;
        // Rows of a distiller with too few updates are predicted and learned from, but not steered yet.
        for (&at, &id) in at.iter().zip(&ids) {
            if sampler.trainer.updates(id) < before {
                self.rows[at].steering = Steering::Untrained;
            }
        }
        self.predicted =
            Some(Predicted { at, ids, hidden, predicted, expected, parts, early: Vec::new() });
        self.clock.lap(&mut self.seconds.predict);
        Ok(())
    }

    /// Copies the logits to the host: all of them, or, from a device with its own memory, the best of each row together
    /// with their expected logits.
    pub(super) fn read(&mut self, sampler: &Sampler, logits: LogitsInput) -> Result<(), StepError> {
        // On a GPU, the host waits here for the model. The predictions were queued before, so the device need not
        // wait for the host to compute them.
        self.logits = match logits {
            LogitsInput::Host(logits) => *logits,
            LogitsInput::Tensor(logits) => match sampler.best_of(&logits) {
                None => Logits::read(*logits, &mut self.reader)?,
                Some(k) => {
                    let rows: Vec<_> = self.rows.iter().map(|row| row.input).collect();
                    let predicted = self.predicted.as_mut();
                    read_best(&rows, *logits, k, predicted, self.lm_head, &mut self.reader)?
                }
            },
        };
        self.clock.lap(&mut self.seconds.read);
        Ok(())
    }

    /// Fills each row's pool: the tokens that its first filter could keep. Reads the rows whole for which the best
    /// logits do not suffice.
    pub(super) fn pool(&mut self, sampler: &mut Sampler) -> Result<(), StepError> {
        let most = self.rows.iter().map(|row| row.input.sampling.work_of_pool()).max().unwrap_or(0);
        let work_of_a_row = most * self.logits.vocab;
        let mut is_pooled = vec![false; self.rows.len()];
        let parts = self.rows.iter_mut().zip(self.logits.rows_mut()).zip(&mut is_pooled);
        share_each(work_of_a_row, LOGITS_OF_A_THREAD, parts, |((row, logits), is_pooled)| {
            *is_pooled = row.pool(logits);
        });
        let short: Vec<usize> = (0..self.rows.len()).filter(|&at| !is_pooled[at]).collect();
        let mut whole = short.clone();
        if sampler.observer.is_some() {
            whole.extend(self.unmeasured());
        }
        if !whole.is_empty() {
            self.logits.read_whole(&whole, &mut self.reader)?;
            for at in short {
                self.rows[at].pool(self.logits.row_mut(at));
            }
            add(&mut sampler.counters.rows_read_whole, whole.len() as u64);
        }
        self.clock.lap(&mut self.seconds.pool);
        Ok(())
    }

    /// The rows with a pool of which too little is known for what an observer is told.
    fn unmeasured(&self) -> impl Iterator<Item = usize> {
        let rows = self.rows.iter().enumerate();
        rows.filter_map(|(at, row)| {
            let candidates = row.candidates.as_ref()?;
            let logits = self.logits.row(at);
            // Of a whole row nothing is missing, and its mass takes a pass over the vocabulary.
            let is_short = matches!(logits, RowLogits::Best(_))
                && logits.mass_outside(row.input, candidates).is_none();
            is_short.then_some(at)
        })
    }

    /// Calls `work` for every row, with its logits, on several threads if there are many candidates.
    fn each_row(&mut self, work: impl Fn(&mut RowState<'a>, RowLogits<'_>) + Sync) {
        let candidates = |row: &RowState<'_>| row.candidates.as_ref().map_or(0, Candidates::len);
        let most = self.rows.iter().map(candidates).max().unwrap_or(0);
        let logits = &self.logits;
        let rows = self.rows.iter_mut().enumerate();
        share_each(most, CANDIDATES_OF_A_THREAD, rows, |(at, row)| work(row, logits.row(at)));
    }

    /// Runs each row's filters, on the reference distribution.
    pub(super) fn filter(&mut self) {
        self.each_row(|row, _| row.filter());
        self.clock.lap(&mut self.seconds.filter);
    }

    /// Sets the expected logits of the remaining candidates: those of the predicted state, or another model's.
    pub(super) fn expect(&mut self, other_logits: Option<Tensor<2>>) -> Result<(), StepError> {
        // After the filters, so that the LM head computes only the logits of the remaining candidates.
        if let Some(predicted) = &self.predicted {
            predicted.expect(&mut self.rows, &self.logits, self.lm_head, &mut self.reader)?;
        }
        expect_other(&mut self.rows, other_logits, self.logits.vocab, &mut self.reader)?;
        self.clock.lap(&mut self.seconds.expect);
        Ok(())
    }

    /// Replaces the candidates' scores with those of each row's reweighter.
    pub(super) fn reweight(&mut self) {
        self.each_row(|row, _| row.reweight());
        self.clock.lap(&mut self.seconds.reweight);
    }

    /// Chooses each row's token.
    pub(super) fn select(&mut self) {
        self.each_row(RowState::select);
        self.clock.lap(&mut self.seconds.select);
    }

    /// Restarts the distillers that have diverged: no row has a finite prediction from them, although the rows' hidden
    /// states are finite.
    fn restart(&mut self, sampler: &mut Sampler) -> Result<(), StepError> {
        let Some(predicted) = &self.predicted else {
            return Ok(());
        };
        let row = |&i: &usize| &self.rows[predicted.at[i]];
        let all = 0..predicted.at.len();
        let suspects: Vec<usize> =
            all.clone().filter(|i| row(i).steering == Steering::NotFinite).collect();
        if suspects.is_empty() || !sampler.config.training.restart_diverged {
            return Ok(());
        }
        let finite = predicted.hidden.at(&suspects).finite_rows()?;
        self.reader.transfers += 1;
        // The expected logits may also be a control's fault; `diverged` looks at the prediction alone.
        let is_controlled = sampler.control.is_some();
        let failed: Vec<usize> = finite
            .into_iter()
            .map(|at| suspects[at])
            .filter(|i| row(i).diverged || !is_controlled)
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        let broken = predicted.parts.iter().map(|part| {
            let [squares] = self.reader.read([square_length(select_rows(part, &failed))])?;
            Ok(squares.into_iter().map(|square| !square.is_finite()).collect())
        });
        let broken = broken.collect::<Result<Vec<Vec<bool>>, StepError>>()?;
        let ids = |rows: &[usize]| rows.iter().map(|&i| predicted.ids[i]).collect::<Vec<_>>();
        let fine: Vec<usize> = all.filter(|i| row(i).novelty.is_some()).collect();
        let done = sampler.trainer.restart(&ids(&failed), &ids(&fine), &broken)?;
        sampler.count_learned(done);
        Ok(())
    }

    /// Restarts the distillers that have diverged and updates each of the others once, on those of its rows that were
    /// given a token and whose values are finite.
    pub(super) fn learn(&mut self, sampler: &mut Sampler) -> Result<(), StepError> {
        self.restart(sampler)?;
        let Some(predicted) = &self.predicted else {
            return Ok(());
        };
        let learned: Vec<usize> = (0..predicted.at.len())
            .filter(|&i| {
                let row = &self.rows[predicted.at[i]];
                // Novelty is `None` where a value is not finite.
                matches!(row.choice, Some(Ok(_))) && row.novelty.is_some()
            })
            .collect();
        if learned.is_empty() {
            return Ok(());
        }
        let ids: Vec<CompletionId> = learned.iter().map(|&i| predicted.ids[i]).collect();
        let parts: Vec<_> =
            predicted.parts.iter().map(|part| select_rows(part, &learned)).collect();
        let done = sampler.trainer.learn(&ids, &predicted.hidden.at(&learned), &parts)?;
        sampler.count_learned(done);
        self.updates = done.updates;
        self.clock.lap(&mut self.seconds.learn);
        Ok(())
    }

    /// Counts the step, passes it to the observer and returns its choices.
    pub(super) fn report(mut self, sampler: &mut Sampler) -> StepOutput {
        sampler.count(&self.rows);
        add(&mut sampler.counters.transfers, self.reader.transfers);
        sampler.observe(&self.rows, &self.logits, self.updates);
        self.clock.lap(&mut self.seconds.observe);
        sampler.stages.add(&self.seconds);
        // Every row has a choice here: from the selection, or from the stage in which it failed.
        let choices = self.rows.into_iter().filter_map(|row| row.choice).collect();
        StepOutput { choices, updates: self.updates }
    }
}
