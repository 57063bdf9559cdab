//! The output of a step.

use crate::{error::RowError, id::TokenId};

/// Distance between the model's deep hidden state and the one the distiller expected.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Novelty {
    /// `‖deep − expected deep‖`
    pub error: f32,
    /// `‖deep‖`
    pub deep: f32,
}

impl Novelty {
    /// The error relative to the norm of the deep state; 0 if both are 0, infinite if only the deep state is 0.
    pub fn relative(&self) -> f32 {
        if self.error == 0.0 { 0.0 } else { self.error / self.deep }
    }

    /// [`relative`](Self::relative) in `f64`, or `None` if the deep state is 0.
    pub(super) fn finite_relative(&self) -> Option<f64> {
        (self.deep > 0.0).then(|| f64::from(self.error) / f64::from(self.deep))
    }

    /// The mean squared error over the model's width.
    pub(super) fn loss(&self, d_model: usize) -> f64 {
        let error = f64::from(self.error);
        error * error / d_model as f64
    }
}

/// The token chosen for a row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The token.
    pub token: TokenId,
    /// Log-probability of the token in the distribution it was drawn from, in nats: after temperature, filters and
    /// reweighting. For a greedy row, at temperature 1.
    pub log_prob: f32,
    /// Log-probability of the token under the unmodified model (temperature 1; no filter, mask, penalty or bias), in
    /// nats; `None` unless the row requested it.
    pub reference_log_prob: Option<f32>,
    /// The most likely tokens and their log-probabilities in nats, best first, ties in ascending order of the ids;
    /// under the unmodified model, like [`reference_log_prob`](Self::reference_log_prob), so the chosen token may be
    /// missing. As many as the row [requested](super::StepRow::with_top_log_probs), or fewer if the model masks the
    /// others.
    pub top_log_probs: Vec<(TokenId, f32)>,
    /// Number of candidates that the filters left.
    pub candidates: usize,
    /// The novelty of the context; `None` if no distiller predicted the row. Rows that are not steered yet
    /// ([`SamplerConfig::updates_before_steering`](crate::SamplerConfig::updates_before_steering)) have one.
    pub novelty: Option<Novelty>,
    /// The [code](super::StepRow::code) for the row's next token; the row's input code if it was not selected
    /// arithmetically.
    pub code: Option<f64>,
}

/// The result of a step.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StepOutput {
    /// One token per row, in the order of the input's rows, or the error of a row for which no token could be chosen.
    pub choices: Vec<Result<Choice, RowError>>,
    /// Optimizer steps done, one for each distiller that had rows. With background learning, those of the previous
    /// step.
    pub updates: usize,
}
