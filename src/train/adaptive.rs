//! A prompt's own distiller and the shared one, mixed by how well they have predicted.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData, activation::sigmoid};

use super::{
    InlineTrainer, Learned, Misfit, OnlineTrainer, Prediction, TrainerState, TrainingConfig,
    slots::Slots,
};
use crate::{
    bank::{AdaptiveConfig, AdaptiveStart, Sharing},
    error::TrainError,
    hidden::{HiddenStates, select_rows},
    id::{PromptId, RowId},
};

/// Two trainers side by side: one slot for each prompt, and one for all of them.
#[derive(Clone, Debug)]
pub(crate) struct AdaptiveTrainer<S> {
    own: InlineTrainer<S>,
    shared: InlineTrainer<S>,
    config: AdaptiveConfig,
    /// How well both have predicted each prompt: `[1, 3]`, the discounted errors of the own and of the shared distiller,
    /// and the discounted number of steps, which corrects their bias towards 0.
    evidence: BTreeMap<PromptId, Tensor<2>>,
}

/// Columns of the evidence.
const EVIDENCE: usize = 3;

impl<S: Slots> AdaptiveTrainer<S> {
    pub(crate) fn new(slots: S, config: AdaptiveConfig, training: TrainingConfig) -> Self {
        Self {
            own: InlineTrainer::new(slots.clone(), Sharing::PerPrompt, training),
            shared: InlineTrainer::new(slots, Sharing::Global, training),
            config,
            evidence: BTreeMap::new(),
        }
    }

    /// The weight of the own distiller for each row, `[rows, 1]`.
    fn weights(&self, rows: &[RowId], device: &Device) -> Tensor<2> {
        let (prompts, index) = prompts_of(rows);
        let known = prompts.iter().map(|prompt| match self.evidence.get(prompt) {
            Some(evidence) => evidence.clone(),
            None => Tensor::zeros([1, EVIDENCE], device),
        });
        let evidence = Tensor::cat(known.collect(), 0);
        let column = |at: usize| evidence.clone().narrow(1, at, 1);
        // Without evidence both errors are 0, and 0 / ε is too.
        let steps = column(2).clamp_min(f32::MIN_POSITIVE);
        let lead = (column(1) - column(0)) / steps;
        select_rows(&sigmoid(lead.mul_scalar(self.config.sharpness)), &index)
    }

    /// Adds the errors of a step to the evidence.
    fn observe(&mut self, rows: &[RowId], hidden: &HiddenStates, parts: &[Tensor<2>]) {
        let [own, shared] = parts else {
            return; // rows that were never predicted say nothing about either
        };
        let deep = hidden.deep();
        let length = deep.clone().square().sum_dim(1).clamp_min(f32::MIN_POSITIVE);
        let error = |expected: &Tensor<2>| {
            (expected.clone() - deep.clone()).square().sum_dim(1) / length.clone()
        };
        let errors = Tensor::cat(vec![error(own), error(shared), length.ones_like()], 1);
        let (prompts, index) = prompts_of(rows);
        let means = averages(&index, prompts.len(), &hidden.device()).matmul(errors);
        let discount = self.config.discount();
        for (at, prompt) in prompts.into_iter().enumerate() {
            let new = means.clone().narrow(0, at, 1).mul_scalar(1.0 - discount);
            let sum = match self.evidence.remove(&prompt) {
                Some(old) => old.mul_scalar(discount) + new,
                None => new,
            };
            self.evidence.insert(prompt, sum);
        }
    }
}

/// The prompts of some rows, in the order of their first row, and for each row which of them is its own.
fn prompts_of(rows: &[RowId]) -> (Vec<PromptId>, Vec<usize>) {
    let mut prompts = Vec::new();
    let index = rows.iter().map(|row| {
        prompts.iter().position(|&prompt| prompt == row.prompt).unwrap_or_else(|| {
            prompts.push(row.prompt);
            prompts.len() - 1
        })
    });
    let index = index.collect();
    (prompts, index)
}

/// A matrix that averages rows by group, `[groups, rows]`.
fn averages(index: &[usize], groups: usize, device: &Device) -> Tensor<2> {
    let mut counts = vec![0usize; groups];
    index.iter().for_each(|&group| counts[group] += 1);
    let mut weights = vec![0.0f32; groups * index.len()];
    for (row, &group) in index.iter().enumerate() {
        weights[group * index.len() + row] = 1.0 / counts[group] as f32;
    }
    Tensor::from_data(TensorData::new(weights, [groups, index.len()]), device)
}

impl<S: Slots> OnlineTrainer for AdaptiveTrainer<S> {
    fn begin(&mut self, row: RowId) {
        self.own.begin(row);
        self.shared.begin(row);
    }

    fn release(&mut self, row: RowId) {
        self.own.release(row);
        self.shared.release(row);
        let prompts = self.own.prompts();
        self.evidence.retain(|prompt, _| prompts.binary_search(prompt).is_ok());
    }

    fn reset(&mut self) {
        self.own.reset();
        self.shared.reset();
        self.evidence.clear();
    }

    fn distillers(&self) -> usize {
        self.own.distillers() + self.shared.distillers()
    }

    fn updates(&self, row: RowId) -> u64 {
        self.own.updates(row)
    }

    fn waiting_rows(&self) -> usize {
        self.own.waiting_rows() + self.shared.waiting_rows()
    }

    fn predict(&mut self, rows: &[RowId], shallow: &Tensor<2>) -> Result<Prediction, TrainError> {
        let shared = self.shared.predict(rows, shallow)?.expected;
        if self.config.start == AdaptiveStart::Shared {
            for &row in rows {
                self.own.begin(row);
                if !self.own.is_seated(row) {
                    self.own.start_from(row, &self.shared, row);
                }
            }
        }
        let own = self.own.predict(rows, shallow)?.expected;
        let weight = self.weights(rows, &shallow.device());
        let expected = shared.clone() + (own.clone() - shared.clone()) * weight;
        Ok(Prediction { expected, parts: vec![own, shared] })
    }

    fn learn(
        &mut self,
        rows: &[RowId],
        hidden: &HiddenStates,
        parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError> {
        self.observe(rows, hidden, parts);
        let own = self.own.learn(rows, hidden, &[])?;
        let shared = self.shared.learn(rows, hidden, &[])?;
        // A row that both learn from is one row.
        Ok(Learned { updates: own.updates + shared.updates, rows: own.rows.max(shared.rows) })
    }

    fn warm_up(
        &mut self,
        row: RowId,
        hidden: &HiddenStates,
        updates: usize,
    ) -> Result<Learned, TrainError> {
        // The shared distiller is no prompt's: warming it up on each would be learning from prompts.
        self.begin(row);
        if self.config.start == AdaptiveStart::Shared && !self.own.is_seated(row) {
            self.own.start_from(row, &self.shared, row);
        }
        self.own.warm_up(row, hidden, updates)
    }

    fn finish(&mut self) -> Result<Learned, TrainError> {
        Ok(Learned::default())
    }

    fn export(&mut self) -> Result<TrainerState, TrainError> {
        let mut state = self.own.export()?;
        state.global = Some(Box::new(self.shared.export()?));
        let evidence = self.evidence.iter();
        state.evidence =
            evidence.map(|(&prompt, e)| (prompt, e.clone().reshape([EVIDENCE]))).collect();
        Ok(state)
    }

    fn import(&mut self, mut state: TrainerState) -> Result<(), Misfit> {
        let mut evidence = BTreeMap::new();
        for (prompt, values) in std::mem::take(&mut state.evidence) {
            let got = values.dims()[0];
            if got != EVIDENCE {
                let what = format!("evidence about prompt {}", prompt.0);
                return Err(Misfit { what, expected: EVIDENCE, got });
            }
            evidence.insert(prompt, values.reshape([1, EVIDENCE]));
        }
        match state.global.take() {
            Some(shared) => self.shared.import(*shared)?,
            None => self.shared.reset(),
        }
        self.own.import(state)?;
        self.evidence = evidence;
        Ok(())
    }
}
