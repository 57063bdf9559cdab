//! What comes out of a step.

use crate::{error::RowError, id::TokenId};

/// How far the model departed from what the distiller expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Novelty {
    /// `‖deep − expected deep‖`
    pub error: f32,
    /// `‖deep‖`
    pub deep: f32,
}

impl Novelty {
    /// The error in units of the deep state's own length.
    pub fn relative(&self) -> f32 {
        self.error / self.deep
    }
}

/// The token chosen for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: TokenId,
    /// Log-probability of the token in the distribution it was drawn from, in nats: after temperature, filters and
    /// reweighting. For a greedy row: at temperature 1.
    pub log_prob: f32,
    /// Log-probability of the token under the model as it is (temperature 1, no filter, masks not applied), in nats,
    /// where the row asked for it.
    pub reference_log_prob: Option<f32>,
    /// How many candidates the filters left.
    pub candidates: usize,
    /// The novelty of the context; `None` where no distiller steered the row.
    pub novelty: Option<Novelty>,
}

/// What a step gave.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// One token per row, in the order of the input's rows; a row that could not be given one says why.
    pub choices: Vec<Result<Choice, RowError>>,
    /// Optimizer steps done, one for each distiller that had rows.
    pub updates: usize,
}
