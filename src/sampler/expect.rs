//! Expected logits, from a distiller's prediction through the LM head or from another model.

use burn::tensor::{DType, Int, Tensor, TensorData, Transaction};

use super::{
    Novelty,
    input::expect_shape,
    row::{Logits, RowState, host},
};
use crate::{
    candidates::Candidates,
    hidden::HiddenStates,
    id::{CompletionId, TokenId},
    lm_head::LmHead,
    sampler::error::StepError,
    telemetry::Steering,
    tensor::select_rows,
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
    /// Sets the expected logit of every candidate and the novelty of every row, with one transfer from the device. A
    /// row for which one of these values is not finite is sampled without steering.
    pub(super) fn expect(
        &self,
        rows: &mut [RowState<'_>],
        reference: &Logits,
        lm_head: &dyn LmHead,
    ) -> Result<(), StepError> {
        let live: Vec<usize> =
            (0..self.at.len()).filter(|&i| rows[self.at[i]].candidates.is_some()).collect();
        let left: Vec<_> =
            live.iter().filter_map(|&i| rows[self.at[i]].candidates.as_ref()).collect();
        let Some(widest) = left.iter().map(|row| row.len()).max() else {
            return Ok(());
        };
        let asked = self.ask(lm_head, &live, padded_tokens(&left, widest), reference.vocab)?;
        let [error, deep] = self.lengths(&live);
        // The norms are read together with the logits: every transfer makes the host wait for the device. They also
        // show whether the states are finite, so there is no separate check.
        let width = asked.values.dims()[1];
        let [values, error, deep] = read([asked.values.inner().cast(DType::F32), error, deep])?;

        for (place, &i) in live.iter().enumerate() {
            let row = &mut rows[self.at[i]];
            let values = &values[place * width..(place + 1) * width];
            let logits = reference.row(self.at[i]);
            let finite = row.set_expected(|at, token| {
                let value = values[if asked.by_token { token as usize } else { at }];
                if asked.is_difference { logits[token as usize] - value } else { value }
            });
            let (error, deep) = (error[place], deep[place]);
            row.novelty = Novelty::if_finite(error, deep).filter(|_| finite);
            row.diverged = deep.is_finite() && !error.is_finite();
            if row.novelty.is_none() {
                row.steering = Steering::NotFinite;
            }
        }
        Ok(())
    }

    /// Asks the LM head for what the expected logits of `tokens`, `[rows, widest]`, are computed from.
    fn ask(
        &self,
        lm_head: &dyn LmHead,
        rows: &[usize],
        tokens: TensorData,
        vocab: usize,
    ) -> Result<Asked, StepError> {
        let [count, widest] = [tokens.shape()[0], tokens.shape()[1]];
        let expected = select_rows(&self.expected, rows);
        let tokens = Tensor::<2, Int>::from_data(tokens, &expected.device());
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

    /// `‖deep − predicted‖` and `‖deep‖` of the given rows, `[rows, 1]` each.
    fn lengths(&self, rows: &[usize]) -> [Tensor<2>; 2] {
        let predicted = select_rows(&self.predicted, rows);
        let deep = select_rows(self.hidden.deep(), rows);
        [length(deep.clone() - predicted), length(deep)]
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
) -> Result<(), StepError> {
    let contrasted = |&at: &usize| rows[at].steering == Steering::Contrasted;
    let at: Vec<usize> = (0..rows.len()).filter(contrasted).collect();
    let Some(&first) = at.first() else {
        return Ok(());
    };
    let logits =
        logits.ok_or(StepError::OtherLogitsMissing { completion: rows[first].input.id })?;
    expect_shape("logits of the other model", [rows.len(), vocab], logits.dims())?;
    let logits = Logits::read(select_rows(&logits.inner(), &at))?;
    for (place, &at) in at.iter().enumerate() {
        let logits = logits.row(place);
        if !rows[at].set_expected(|_, token| logits[token as usize]) {
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

/// The Euclidean norm of each row, `[rows, 1]`.
pub(super) fn length(vectors: Tensor<2>) -> Tensor<2> {
    vectors.square().sum_dim(1).sqrt()
}

/// Copies tensors to the host in one transfer.
pub(super) fn read<const N: usize>(tensors: [Tensor<2>; N]) -> Result<[Vec<f32>; N], StepError> {
    let transaction = tensors.into_iter().fold(Transaction::default(), Transaction::register);
    let read = transaction.try_execute()?.into_iter().map(host).collect::<Result<Vec<_>, _>>()?;
    <[Vec<f32>; N]>::try_from(read)
        .map_err(|read| StepError::Device(format!("expected {N} tensors, got {}", read.len())))
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
