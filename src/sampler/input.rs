//! The input of a step.

use burn::tensor::{Device, Tensor};

use super::{Sampler, logits::Logits};
use crate::{
    candidates::{RowContext, TokenMask},
    draw::DrawKey,
    error::{ConfigError, RowError},
    hidden::HiddenStates,
    id::{CompletionId, TokenId},
    lm_head::LmHead,
    novelty::Expects,
    sampler::error::StepError,
    sampling::CheckedSampling,
    select::{Chooser, Selection},
};

/// The position of a row in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The logits come from the prompt's last position. A distiller neither steers the row nor learns from it.
    FirstToken,
    /// The logits come from a token that was chosen in an earlier step.
    Decode,
}

/// One row of a step.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StepRow<'a> {
    /// The completion of this row.
    pub id: CompletionId,
    /// Whether its logits come from the prompt or from a chosen token.
    pub phase: Phase,
    /// The completion's random stream.
    pub draw: DrawKey,
    /// The code of a row that is selected [arithmetically](crate::Selection::Arithmetic), in `[0, 1)`: initially
    /// [`DrawKey::arithmetic_code`], afterwards the row's last [`Choice::code`](super::Choice::code). Other rows need
    /// none and return it unchanged.
    pub code: Option<f64>,
    /// The prompt, for penalties that look at its tokens.
    pub prompt: &'a [TokenId],
    /// The completion so far, without the prompt; its length is the position of the token to be chosen.
    pub generated: &'a [TokenId],
    /// The sampling settings.
    pub sampling: &'a CheckedSampling,
    /// The allowed tokens; `None` allows all of them.
    pub allowed: Option<&'a TokenMask>,
    /// Whether to compute [`Choice::reference_log_prob`](super::Choice::reference_log_prob), which reads the whole
    /// vocabulary once more.
    pub wants_reference_log_prob: bool,
    /// Number of the most likely tokens to return in [`Choice::top_log_probs`](super::Choice::top_log_probs). Has an
    /// effect only with `wants_reference_log_prob`.
    pub top_log_probs: usize,
}

impl<'a> StepRow<'a> {
    /// A row whose next token follows `prompt` and `generated`. Its phase is [`Phase::FirstToken`] if nothing has
    /// been generated yet, else [`Phase::Decode`]. It has no code and no mask, and does not ask for the reference
    /// log-probability.
    pub fn new(
        id: CompletionId,
        draw: DrawKey,
        prompt: &'a [TokenId],
        generated: &'a [TokenId],
        sampling: &'a CheckedSampling,
    ) -> Self {
        let phase = if generated.is_empty() { Phase::FirstToken } else { Phase::Decode };
        let (code, allowed, wants_reference_log_prob) = (None, None, false);
        Self {
            id,
            phase,
            draw,
            code,
            prompt,
            generated,
            sampling,
            allowed,
            wants_reference_log_prob,
            top_log_probs: 0,
        }
    }

    /// Sets the phase, for a loop that continues a text that it has not generated itself.
    pub fn with_phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// Sets the code of a row that is selected [arithmetically](crate::Selection::Arithmetic).
    pub fn with_code(mut self, code: impl Into<Option<f64>>) -> Self {
        self.code = code.into();
        self
    }

    /// Allows only the tokens of a mask.
    pub fn with_allowed(mut self, allowed: impl Into<Option<&'a TokenMask>>) -> Self {
        self.allowed = allowed.into();
        self
    }

    /// Asks for [`Choice::reference_log_prob`](super::Choice::reference_log_prob), which reads the whole vocabulary
    /// once more.
    pub fn with_reference_log_prob(mut self) -> Self {
        self.wants_reference_log_prob = true;
        self
    }

    /// Asks for the `tokens` most likely tokens with their log-probabilities
    /// ([`Choice::top_log_probs`](super::Choice::top_log_probs)), and for the reference log-probability. Reads the
    /// whole vocabulary once more.
    pub fn with_top_log_probs(mut self, tokens: usize) -> Self {
        self.top_log_probs = tokens;
        self.with_reference_log_prob()
    }

    /// The source of the logits that the row's scores are reweighted with; `None` if the scores are not reweighted.
    pub(crate) fn expects(&self) -> Option<Expects> {
        let expects = self.sampling.reweighter().expects();
        (self.phase == Phase::Decode || expects == Expects::OtherModel).then_some(expects)
    }

    /// Whether a distiller predicts the row's deep state and learns from it.
    pub(crate) fn has_distiller(&self) -> bool {
        self.expects() == Some(Expects::Distiller)
    }

    /// The context that filters, reweighters and the selection receive.
    pub(crate) fn context(&self) -> RowContext<'_> {
        RowContext::new(self.id, self.position(), self.draw.at(self.position()))
            .with_tokens(self.prompt, self.generated)
    }

    /// The divisor of the logits before scores are compared.
    pub(crate) fn divisor(&self) -> f32 {
        self.sampling.divisor_at(self.position())
    }

    /// The divisor of the logits before the filters.
    pub(super) fn divisor_before_filters(&self) -> f32 {
        self.sampling.divisor_before_filters(self.position())
    }

    /// Whether the row needs the logits of all tokens, although the `k` best are known.
    pub(super) fn needs_whole_row(&self, k: usize) -> bool {
        self.sampling.needs_whole_row(self.allowed.is_some()) || self.top_log_probs >= k
    }

    /// How the token is chosen from the candidates.
    pub(crate) fn chooser(&self) -> Result<Chooser<'_>, RowError> {
        let draw = self.draw.at(self.position());
        match (&self.sampling.selection, self.code) {
            _ if self.sampling.is_greedy_at(self.position()) => Ok(Chooser::Greedy),
            (Selection::Random, _) => Ok(Chooser::Random(draw)),
            (Selection::Arithmetic, None) => Err(RowError::CodeMissing),
            (Selection::Arithmetic, Some(code)) if (0.0..1.0).contains(&code) => {
                Ok(Chooser::Arithmetic(code, draw))
            }
            (Selection::Arithmetic, Some(got)) => Err(RowError::Code { got }),
            (Selection::Custom(selector), _) => Ok(Chooser::Custom(&**selector, self.context())),
        }
    }

    fn position(&self) -> u64 {
        self.generated.len() as u64
    }
}

/// The output of one forward pass of the model, for every row that needs a token.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use esamp::{CompletionId, DrawKey, HiddenStates, SamplerConfig, Sampling, StepInput, StepRow, TiedHead};
///
/// let device = Device::flex();
/// let mut sampler = SamplerConfig::new().init(2, &device)?;
/// let lm_head = TiedHead::new(Tensor::from_floats([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], &device));
/// let [shallow, deep] = [[[0.3, 0.1]], [[0.2, 0.4]]].map(|state| Tensor::<2>::from_floats(state, &device));
/// let logits = Tensor::<2>::from_floats([[0.2, 0.4, 0.6]], &device);
///
/// let sampling = Sampling::default().checked()?;
/// let draw = DrawKey::new(42, &[1], 0);
/// let rows = [StepRow::new(CompletionId::new(0, 0), draw, &[1], &[2], &sampling)];
/// let input = StepInput::new(&rows, logits, &lm_head).with_hidden(HiddenStates::new(shallow, deep)?);
/// let token = sampler.step(input)?.choices[0].clone()?.token;
/// assert!(token < 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StepInput<'a> {
    pub(super) rows: &'a [StepRow<'a>],
    pub(super) logits: LogitsInput,
    pub(super) hidden: Option<HiddenStates>,
    pub(super) other_logits: Option<Tensor<2>>,
    pub(super) lm_head: &'a dyn LmHead,
}

/// The model's logits, where they are when the step begins.
pub(super) enum LogitsInput {
    /// `[rows, vocab]`.
    Tensor(Box<Tensor<2>>),
    Host(Box<Logits>),
}

impl LogitsInput {
    fn vocab(&self) -> usize {
        match self {
            Self::Tensor(logits) => logits.dims()[1],
            Self::Host(logits) => logits.vocab,
        }
    }
}

impl<'a> StepInput<'a> {
    /// Creates the input of a step over `rows`, which are in the order of the tensors' first dimension. `logits` are
    /// the model's logits, `[rows, vocab]`, of any floating-point type; `lm_head` is the model's LM head.
    pub fn new(rows: &'a [StepRow<'a>], logits: Tensor<2>, lm_head: &'a dyn LmHead) -> Self {
        Self::of(rows, LogitsInput::Tensor(Box::new(logits)), lm_head)
    }

    /// Creates the input of a step from logits in host memory: `[rows, vocab]` in row-major order. A slice is copied, a
    /// `Vec` is not. [`HiddenStates::from_slices`] and [`HeadRows`](crate::HeadRows) are the other two parts that
    /// need no tensor. The step gives the same tokens as with tensors of the same numbers on the device `flex`.
    ///
    /// # Errors
    ///
    /// [`StepError::Shape`] when the numbers are not the same number of logits for each row.
    pub fn from_slice(
        rows: &'a [StepRow<'a>],
        logits: impl Into<Vec<f32>>,
        lm_head: &'a dyn LmHead,
    ) -> Result<Self, StepError> {
        let logits = Logits::new(logits.into(), rows.len())?;
        Ok(Self::of(rows, LogitsInput::Host(Box::new(logits)), lm_head))
    }

    fn of(rows: &'a [StepRow<'a>], logits: LogitsInput, lm_head: &'a dyn LmHead) -> Self {
        Self { rows, logits, hidden: None, other_logits: None, lm_head }
    }

    /// Adds the hidden states of the same rows. Required if a distiller steers one of them: a row in
    /// [`Phase::Decode`] whose reweighter expects [`Expects::Distiller`].
    pub fn with_hidden(mut self, hidden: impl Into<Option<HiddenStates>>) -> Self {
        self.hidden = hidden.into();
        self
    }

    /// Adds the logits of another model for the same rows, `[rows, vocab]`, of any floating-point type, on any
    /// device. Required if the reweighter of one row expects [`Expects::OtherModel`]; the values of other rows are
    /// ignored.
    pub fn with_other_logits(mut self, logits: impl Into<Option<Tensor<2>>>) -> Self {
        self.other_logits = logits.into();
        self
    }

    /// Checks that the input is complete and consistent, before any work is done.
    pub(super) fn check(&self, d_model: usize, device: &Device) -> Result<(), StepError> {
        let rows = self.rows.len();
        if let LogitsInput::Tensor(logits) = &self.logits {
            expect_rows("logits", rows, logits.dims()[0])?;
            expect_float("logits", logits)?;
        }
        self.check_other(self.logits.vocab())?;
        let mut seen = std::collections::HashSet::with_capacity(rows);
        if let Some(twice) = self.rows.iter().find(|row| !seen.insert(row.id)) {
            return Err(StepError::DuplicateCompletion { completion: twice.id });
        }
        let Some(steered) = self.rows.iter().find(|row| row.has_distiller()) else {
            return Ok(());
        };
        let Some(hidden) = &self.hidden else {
            return Err(StepError::HiddenMissing { completion: steered.id });
        };
        expect_rows("hidden states", rows, hidden.rows())?;
        check_states("hidden states", hidden, d_model, device)?;
        self.check_head(d_model, device)
    }

    /// Checks that the other model's logits are present if a row needs them, and their shape.
    fn check_other(&self, vocab: usize) -> Result<(), StepError> {
        let rows = self.rows.len();
        let contrasted = |row: &&StepRow<'_>| row.expects() == Some(Expects::OtherModel);
        match (self.rows.iter().find(contrasted), &self.other_logits) {
            (Some(row), None) => Err(StepError::OtherLogitsMissing { completion: row.id }),
            (Some(_), Some(logits)) => {
                expect_shape("logits of the other model", [rows, vocab], logits.dims())?;
                expect_float("logits of the other model", logits)
            }
            _ => Ok(()),
        }
    }

    /// Checks the LM head's shape and device against the model, if the head reports them. This comes before the head
    /// is applied: a head of another model would be indexed at rows that its matrix does not have.
    fn check_head(&self, d_model: usize, device: &Device) -> Result<(), StepError> {
        if let Some(got) = self.lm_head.shape() {
            expect_shape("LM head", [d_model, self.logits.vocab()], got)?;
        }
        match self.lm_head.device() {
            Some(got) => expect_device("LM head", device, &got),
            None => Ok(()),
        }
    }
}

impl Sampler {
    /// Checks that the sampler was built for a model of this width on this device.
    pub(crate) fn check_model(&self, d_model: usize, device: &Device) -> Result<(), ConfigError> {
        ConfigError::check_equal("width of the sampler's model", d_model, self.d_model)?;
        let device = device.clone().inner();
        ConfigError::check_equal("device of the sampler", &device, &self.device)
    }
}

/// Checks the width and device of hidden states against the sampler's model.
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
    Err(StepError::DeviceMismatch {
        what,
        expected: format!("{expected:?}"),
        got: format!("{got:?}"),
    })
}

fn expect_rows(what: &'static str, expected: usize, got: usize) -> Result<(), StepError> {
    if expected == got {
        return Ok(());
    }
    Err(StepError::RowCount { what, expected, got })
}

pub(super) fn expect_shape(
    what: &'static str,
    expected: [usize; 2],
    got: [usize; 2],
) -> Result<(), StepError> {
    if expected == got {
        return Ok(());
    }
    Err(StepError::Shape { what, expected: expected.to_vec(), got: got.to_vec() })
}

fn expect_float(what: &'static str, tensor: &Tensor<2>) -> Result<(), StepError> {
    if tensor.dtype().is_float() {
        return Ok(());
    }
    let got = format!("{:?}", tensor.dtype());
    Err(StepError::DType { what, expected: "a floating-point type", got })
}
