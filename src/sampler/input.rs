//! What goes into a step and what comes out.

use burn::tensor::{Device, Tensor};

use crate::{
    candidates::{RowContext, TokenMask},
    draw::DrawKey,
    error::{RowError, StepError},
    hidden::HiddenStates,
    id::{RowId, TokenId},
    lm_head::LmHead,
    sampling::Sampling,
};

/// Where a row stands in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The logits come from the prompt's last position: neither steered nor learned.
    FirstToken,
    /// The logits come from a token that this loop has chosen.
    Decode,
}

/// One row of a step, by name.
#[derive(Clone, Copy, Debug)]
pub struct StepRow<'a> {
    /// Whose row it is.
    pub id: RowId,
    /// Whether its logits come from the prompt or from a chosen token.
    pub phase: Phase,
    /// The completion's random stream.
    pub draw: DrawKey,
    /// The completion so far, without the prompt; its length is the position of the token to be chosen.
    pub generated: &'a [TokenId],
    /// How to choose the token.
    pub sampling: &'a Sampling,
    /// The tokens allowed here; `None` allows all of them.
    pub allowed: Option<&'a TokenMask>,
    /// Whether to compute [`Choice::reference_log_prob`], which reads the whole vocabulary once more.
    pub wants_reference_log_prob: bool,
}

impl StepRow<'_> {
    /// Whether the row's scores are to be reweighted with expected logits.
    pub(crate) fn is_steered(&self) -> bool {
        self.phase == Phase::Decode && self.sampling.reweighter().uses_expected()
    }

    /// What filters, reweighters and the selection may know.
    pub(crate) fn context(&self) -> RowContext<'_> {
        RowContext {
            row: self.id,
            position: self.generated.len() as u64,
            generated: self.generated,
            draw: self.draw.at(self.generated.len() as u64),
        }
    }
}

/// What one forward pass of the model gave, for every row that wants a token.
pub struct StepInput<'a> {
    /// The rows, in the order of the tensors' first dimension.
    pub rows: &'a [StepRow<'a>],
    /// The model's logits, `[rows, vocab]`, any floating-point type.
    pub logits: Tensor<2>,
    /// The hidden states of the same rows. Needed as soon as one row in [`Phase::Decode`] is steered.
    pub hidden: Option<HiddenStates>,
    /// The model's head.
    pub lm_head: &'a dyn LmHead,
}

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
    /// The novelty of the context; `None` where nothing was expected of the row. Rows that are not steered yet
    /// ([`SamplerConfig::steps_before_steering`](crate::SamplerConfig::steps_before_steering)) have one.
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

impl StepInput<'_> {
    /// Checks that everything is there and fits together, before any work is done.
    pub(super) fn check(&self, d_model: usize, device: &Device) -> Result<(), StepError> {
        let rows = self.rows.len();
        expect_rows("logits", rows, self.logits.dims()[0])?;
        if !self.logits.dtype().is_float() {
            return Err(StepError::DType {
                what: "logits",
                expected: "a floating-point type",
                got: format!("{:?}", self.logits.dtype()),
            });
        }
        let mut seen = std::collections::HashSet::with_capacity(rows);
        if let Some(twice) = self.rows.iter().find(|row| !seen.insert(row.id.request)) {
            return Err(StepError::DuplicateRequest { request: twice.id.request });
        }
        let Some(steered) = self.rows.iter().find(|row| row.is_steered()) else {
            return Ok(());
        };
        let Some(hidden) = &self.hidden else {
            return Err(StepError::HiddenMissing { row: steered.id });
        };
        expect_rows("hidden states", rows, hidden.rows())?;
        check_states("hidden states", hidden, d_model, device)?;
        let vocab = self.logits.dims()[1];
        match self.lm_head.shape() {
            Some(got) if got != [d_model, vocab] => {
                return Err(StepError::Shape {
                    what: "LM head",
                    expected: vec![d_model, vocab],
                    got: got.to_vec(),
                });
            }
            _ => {}
        }
        match self.lm_head.device() {
            Some(got) => expect_device("LM head", device, &got),
            None => Ok(()),
        }
    }
}

/// Checks that hidden states are those of the sampler's model.
pub(super) fn check_states(
    what: &'static str,
    hidden: &HiddenStates,
    d_model: usize,
    device: &Device,
) -> Result<(), StepError> {
    if hidden.d_model() != d_model {
        return Err(StepError::Shape {
            what,
            expected: vec![hidden.rows(), d_model],
            got: vec![hidden.rows(), hidden.d_model()],
        });
    }
    expect_device(what, device, &hidden.device())
}

fn expect_device(what: &'static str, expected: &Device, got: &Device) -> Result<(), StepError> {
    if expected == got {
        return Ok(());
    }
    Err(StepError::Device { what, expected: format!("{expected:?}"), got: format!("{got:?}") })
}

fn expect_rows(what: &'static str, expected: usize, got: usize) -> Result<(), StepError> {
    if expected == got {
        return Ok(());
    }
    Err(StepError::RowCount { what, expected, got })
}
