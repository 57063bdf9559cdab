//! What comes out of a step.

use crate::{error::RowError, id::TokenId};

/// How far the model departed from what the distiller expected.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Novelty {
    /// `‖deep − expected deep‖`
    pub error: f32,
    /// `‖deep‖`
    pub deep: f32,
}

impl Novelty {
    /// The error in units of the deep state's own length; 0 where both are 0, infinite where only the deep state is.
    pub fn relative(&self) -> f32 {
        if self.error == 0.0 { 0.0 } else { self.error / self.deep }
    }

    /// The squared error, averaged over the model's width.
    pub(super) fn loss(&self, d_model: usize) -> f64 {
        let error = f64::from(self.error);
        error * error / d_model as f64
    }
}

/// The token chosen for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The token.
    pub token: TokenId,
    /// Log-probability of the token in the distribution it was drawn from, in nats: after temperature, filters and
    /// reweighting. For a greedy row: at temperature 1.
    pub log_prob: f32,
    /// Log-probability of the token under the model as it is (temperature 1, no filter, neither masks nor penalties nor
    /// bias applied), in nats, where the row asked for it.
    pub reference_log_prob: Option<f32>,
    /// How many candidates the filters left.
    pub candidates: usize,
    /// The novelty of the context; `None` where no distiller expected anything of the row. Rows that are not steered yet
    /// ([`SamplerConfig::steps_before_steering`](crate::SamplerConfig::steps_before_steering)) have one.
    pub novelty: Option<Novelty>,
    /// The [code](super::StepRow::code) for the row's next token; what the row came with where it was not selected
    /// arithmetically.
    pub code: Option<f64>,
}

/// What a step gave.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StepOutput {
    /// One token per row, in the order of the input's rows; a row that could not be given one says why.
    pub choices: Vec<Result<Choice, RowError>>,
    /// Optimizer steps done, one for each distiller that had rows. With learning in the background: those of the step
    /// before.
    pub updates: usize,
}
