//! Expected logits, from a distiller's prediction through the LM head or from another model.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{
    Novelty,
    input::expect_shape,
    logits::{Logits, RowLogits},
    row::RowState,
    transfer::Reader,
};
use crate::{
    candidates::Candidates,
    hidden::HiddenStates,
    id::{CompletionId, TokenId},
    lm_head::LmHead,
    sampler::error::StepError,
    telemetry::Steering,
    tensor::{index, is_all, select_rows},
};

/// The distillers' predictions for the rows of a step that have one, in the order of those rows.
pub(super) struct Predicted {
    /// The rows' indices in the step.
    pub(super) at: Vec<usize>,
    pub(super) ids: Vec<CompletionId>,
    pub(super) hidden: HiddenStates,
    /// The predicted deep states, `[rows, d_model]`. Novelty and loss are measured against them.
    pub(super) predicted: Tensor<2>,
    /// The states that scores are reweighted with, `[rows, d_model]`: the predicted states, unless a control has
    /// replaced them.
    pub(super) expected: Tensor<2>,
    /// The parts the trainer mixed the prediction from; it needs them again when it learns.
    pub(super) parts: Vec<Tensor<2>>,
    /// What was read together with the logits: for each row, `None` if nothing was.
    pub(super) early: Vec<Option<Answer>>,
}

/// What the LM head says about some tokens of a row, on the host.
pub(super) struct Answer {
    /// Expected logits, or their differences to the row's, in ascending token order.
    values: Vec<(TokenId, f32)>,
    is_difference: bool,
    /// `‖deep − predicted‖`
    error: f32,
    /// `‖deep‖`
    deep: f32,
}

impl Answer {
    fn value(&self, token: TokenId) -> Option<f32> {
        let found = self.values.binary_search_by_key(&token, |&(known, _)| known);
        found.ok().map(|at| self.values[at].1)
    }
}

/// The LM head's answer.
struct Asked {
    /// `[rows, candidates]` or `[rows, vocab]`.
    values: Tensor<2>,
    /// Whether the second index is a token rather than a candidate's place.
    by_token: bool,
    /// Whether the values are `W·(deep − expected)` rather than expected logits.
    is_difference: bool,
}

impl Predicted {
    /// Sets the expected logit of every candidate and the novelty of every row. What was not read together with the
    /// logits is read here, in one transfer. A row for which one of these values is not finite is sampled without
    /// steering.
    pub(super) fn expect(
        &self,
        rows: &mut [RowState<'_>],
        reference: &Logits,
        lm_head: &dyn LmHead,
        reader: &mut Reader,
    ) -> Result<(), StepError> {
        let mut late = Vec::new();
        for i in 0..self.at.len() {
            let row = &mut rows[self.at[i]];
            let Some(candidates) = &row.candidates else {
                continue;
            };
            let early = self.early.get(i).and_then(Option::as_ref);
            let tokens = || candidates.as_slice().iter().map(|candidate| candidate.token);
            match early.filter(|early| tokens().all(|token| early.value(token).is_some())) {
                Some(early) => {
                    let value = |_, token| early.value(token).unwrap_or(f32::NAN);
                    let lengths = [early.error, early.deep];
                    set(row, reference.row(self.at[i]), value, early.is_difference, lengths);
                }
                None => late.push(i),
            }
        }
        let left = late.iter().filter_map(|&i| rows[self.at[i]].candidates.as_ref());
        let left: Vec<&Candidates> = left.collect();
        let Some(widest) = left.iter().map(|row| row.len()).max() else {
            return Ok(());
        };
        let tokens =
            Tensor::from_data(padded_tokens(&left, widest), &self.expected.device().inner());
        let asked = self.ask(lm_head, &late, tokens, reference.vocab)?;
        let [error, deep] = self.square_lengths(&late);
        // The norms are read together with the logits: every transfer makes the host wait for the device. They also
        // show whether the states are finite, so there is no separate check.
        let width = asked.values.dims()[1];
        let [values, error, deep] =
            reader.read([asked.values.inner().cast(DType::F32), error, deep])?;
        for (place, &i) in late.iter().enumerate() {
            let values = &values[place * width..(place + 1) * width];
            let value = |at, token| values[if asked.by_token { token as usize } else { at }];
            let lengths = [error[place], deep[place]].map(f32::sqrt);
            let reference = reference.row(self.at[i]);
            set(&mut rows[self.at[i]], reference, value, asked.is_difference, lengths);
        }
        Ok(())
    }

    /// Asks the LM head about the best tokens of those of `rows`, indices in the step in ascending order, that have a
    /// prediction. `tokens`, `[rows, k]`, are on the device. `None` if no row has one.
    pub(super) fn ask_early(
        &self,
        lm_head: &dyn LmHead,
        rows: &[usize],
        tokens: &Tensor<2, Int>,
        vocab: usize,
    ) -> Result<Option<Early>, StepError> {
        let place = |at: &usize| rows.binary_search(at).ok();
        let asked = self.at.iter().enumerate();
        let asked: Vec<(usize, usize)> =
            asked.filter_map(|(i, at)| place(at).map(|place| (i, place))).collect();
        if asked.is_empty() {
            return Ok(None);
        }
        let (predicted, places): (Vec<usize>, Vec<usize>) = asked.iter().copied().unzip();
        let tokens = if is_all(&places, rows.len()) {
            tokens.clone()
        } else {
            tokens.clone().select(0, index(places, &tokens.device()))
        };
        let answer = self.ask(lm_head, &predicted, tokens, vocab)?;
        let square_lengths = self.square_lengths(&predicted);
        Ok(Some(Early { predictions: self.at.len(), asked, answer, square_lengths }))
    }

    /// Asks the LM head for what the expected logits of `tokens`, `[rows, widest]`, are computed from.
    fn ask(
        &self,
        lm_head: &dyn LmHead,
        rows: &[usize],
        tokens: Tensor<2, Int>,
        vocab: usize,
    ) -> Result<Asked, StepError> {
        let [count, widest] = tokens.dims();
        let expected = select_rows(&self.expected, rows);
        // From this number of candidates on, a product with the whole matrix moves less memory than gathering its
        // rows. A head that does not report its shape is always applied in full: only the width of all its logits
        // shows that it has every candidate, and gathering beyond them panics or gives another token's logit.
        let by_token = count * widest >= vocab || lm_head.shape().is_none();
        let some = (!by_token).then(|| tokens.clone());
        let error = select_rows(self.hidden.deep(), rows) - expected.clone().inner();
        let product = lm_head.product(error, some.clone());
        let is_difference = product.is_some();
        let values = product.unwrap_or_else(|| match some {
            Some(tokens) => lm_head.logits_at(expected, tokens),
            None => lm_head.logits(expected),
        });
        let width = if by_token { vocab } else { widest };
        expect_shape("expected logits of the LM head", [count, width], values.dims())?;
        // Of logits that were computed for the whole vocabulary, transfer only those of the candidates.
        let narrow = by_token && widest < vocab;
        Ok(Asked {
            values: if narrow { values.gather(1, tokens) } else { values },
            by_token: by_token && !narrow,
            is_difference,
        })
    }

    /// `‖deep − predicted‖²` and `‖deep‖²` of the given rows, `[rows, 1]` each. The host takes the roots.
    fn square_lengths(&self, rows: &[usize]) -> [Tensor<2>; 2] {
        let predicted = select_rows(&self.predicted, rows);
        let deep = select_rows(self.hidden.deep(), rows);
        [square_length(deep.clone() - predicted), square_length(deep)]
    }
}

/// An answer of the LM head that is read together with the logits.
pub(super) struct Early {
    /// Number of predictions.
    predictions: usize,
    /// The predictions asked about, each with its place among the rows of the answer.
    asked: Vec<(usize, usize)>,
    answer: Asked,
    square_lengths: [Tensor<2>; 2],
}

impl Early {
    /// What is to be read: the values, `[rows, k]`, and the squared lengths of errors and deep states, `[rows,
    /// 1]`.
    pub(super) fn tensors(&self) -> [Tensor<2>; 3] {
        let [error, deep] = self.square_lengths.clone();
        [self.answer.values.clone().inner().cast(DType::F32), error, deep]
    }

    /// The answer for each prediction, from what was read; `tokens` are those of all rows.
    pub(super) fn answered(
        self,
        tokens: &[i64],
        [values, error, deep]: [&[f32]; 3],
    ) -> Vec<Option<Answer>> {
        let k = self.answer.values.dims()[1];
        let mut answers: Vec<_> = std::iter::repeat_with(|| None).take(self.predictions).collect();
        for (row, (i, place)) in self.asked.into_iter().enumerate() {
            let tokens = tokens[place * k..][..k].iter().map(|&token| token as TokenId);
            let mut values: Vec<_> = tokens.zip(values[row * k..][..k].iter().copied()).collect();
            values.sort_unstable_by_key(|&(token, _)| token);
            let is_difference = self.answer.is_difference;
            let [error, deep] = [error[row], deep[row]].map(f32::sqrt);
            answers[i] = Some(Answer { values, is_difference, error, deep });
        }
        answers
    }
}

/// Sets a row's expected logits, from `value` of each candidate's index and token, and its novelty.
fn set(
    row: &mut RowState<'_>,
    reference: RowLogits<'_>,
    value: impl Fn(usize, TokenId) -> f32,
    is_difference: bool,
    [error, deep]: [f32; 2],
) {
    let finite = row.set_expected(|at, token| {
        let value = value(at, token);
        if is_difference { reference.logit(token) - value } else { value }
    });
    row.novelty = Novelty::if_finite(error, deep).filter(|_| finite);
    row.diverged = deep.is_finite() && !error.is_finite();
    if row.novelty.is_none() {
        row.steering = Steering::NotFinite;
    }
}

/// Sets the expected logits of every row that contrasts with another model, from that model's `logits`, `[rows,
/// vocab]`. A row with a candidate whose expected logit is not finite is sampled without contrast.
///
/// Only the rows that contrast are copied from the device.
pub(super) fn expect_other(
    rows: &mut [RowState<'_>],
    logits: Option<Tensor<2>>,
    vocab: usize,
    reader: &mut Reader,
) -> Result<(), StepError> {
    let contrasted = |&at: &usize| rows[at].steering == Steering::Contrasted;
    let at: Vec<usize> = (0..rows.len()).filter(contrasted).collect();
    let Some(&first) = at.first() else {
        return Ok(());
    };
    let logits =
        logits.ok_or(StepError::OtherLogitsMissing { completion: rows[first].input.id })?;
    expect_shape("logits of the other model", [rows.len(), vocab], logits.dims())?;
    let logits = Logits::read(select_rows(&logits.inner(), &at), reader)?;
    for (place, &at) in at.iter().enumerate() {
        let logits = logits.row(place);
        if !rows[at].set_expected(|_, token| logits.logit(token)) {
            rows[at].steering = Steering::OtherNotFinite;
        }
    }
    Ok(())
}

impl Novelty {
    fn if_finite(error: f32, deep: f32) -> Option<Self> {
        (error.is_finite() && deep.is_finite()).then_some(Self { error, deep })
    }
}

/// The squared Euclidean norm of each row, `[rows, 1]`.
pub(super) fn square_length(vectors: Tensor<2>) -> Tensor<2> {
    vectors.square().sum_dim(1)
}

/// The tokens of each row, best first, padded to `width` with the row's best token, `[rows, width]`.
fn padded_tokens(left: &[&Candidates], width: usize) -> TensorData {
    let mut tokens = Vec::with_capacity(left.len() * width);
    for candidates in left {
        // Padding must be a token of the vocabulary. Its logit is not read.
        let best = candidates.best().token;
        let row = candidates.as_slice().iter().map(|c| c.token).chain(std::iter::repeat(best));
        tokens.extend(row.take(width).map(|token: TokenId| token as i32));
    }
    TensorData::new(tokens, [left.len(), width])
}
