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

impl Predicted {
    /// Sets the expected logit of every candidate and the novelty of every row, with one transfer from the device. A
    /// row for which one of these values is not finite is sampled without steering.
    pub(super) fn expect(
        &self,
        rows: &mut [RowState<'_>],
        lm_head: &dyn LmHead,
        vocab: usize,
    ) -> Result<(), StepError> {
        let live: Vec<usize> =
            (0..self.at.len()).filter(|&i| rows[self.at[i]].candidates.is_some()).collect();
        let candidates = |rows: &[RowState<'_>], width: usize| {
            let left = live.iter().filter_map(|&i| rows[self.at[i]].candidates.as_ref());
            let tokens = TensorData::new(padded_tokens(left, width), [live.len(), width]);
            Tensor::<2, Int>::from_data(tokens, &self.expected.device())
        };
        let left = live.iter().filter_map(|&i| rows[self.at[i]].candidates.as_ref());
        let Some(widest) = left.map(Candidates::len).max() else {
            return Ok(());
        };

        // From this number of candidates on, a product with the whole matrix moves less memory than gathering its
        // rows. A head that does not report its shape is always applied in full: only the width of all its logits
        // shows that it has every candidate, and gathering beyond them panics or gives another token's logit.
        let expected = select_rows(&self.expected, &live);
        let dense = live.len() * widest >= vocab || lm_head.shape().is_none();
        let (logits, width) = if dense {
            (lm_head.logits(expected), vocab)
        } else {
            (lm_head.logits_at(expected, candidates(rows, widest)), widest)
        };
        expect_shape("expected logits of the LM head", [live.len(), width], logits.dims())?;
        // Of logits that were computed for the whole vocabulary, transfer only those of the candidates.
        let (logits, width, by_token) = if dense && widest < vocab {
            (logits.gather(1, candidates(rows, widest)), widest, false)
        } else {
            (logits, width, dense)
        };
        let [error, deep] = self.lengths(&live);
        // The norms are read together with the logits: every transfer makes the host wait for the device. They also
        // show whether the states are finite, so there is no separate check.
        let [logits, error, deep] = read([logits.inner().cast(DType::F32), error, deep])?;

        for (place, &i) in live.iter().enumerate() {
            let row = &mut rows[self.at[i]];
            let logits = &logits[place * width..(place + 1) * width];
            let finite =
                row.set_expected(|at, token| logits[if by_token { token as usize } else { at }]);
            let (error, deep) = (error[place], deep[place]);
            row.novelty = Novelty::if_finite(error, deep).filter(|_| finite);
            row.diverged = deep.is_finite() && !error.is_finite();
            if row.novelty.is_none() {
                row.steering = Steering::NotFinite;
            }
        }
        Ok(())
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

/// The tokens of each row, best first, padded to `width` with the row's best token.
fn padded_tokens<'a>(left: impl Iterator<Item = &'a Candidates>, width: usize) -> Vec<i32> {
    let mut tokens = Vec::new();
    for candidates in left {
        // Padding must be a token of the vocabulary. Its logit is not read.
        let best = candidates.best().token;
        let row = candidates.as_slice().iter().map(|c| c.token).chain(std::iter::repeat(best));
        tokens.extend(row.take(width).map(|token: TokenId| token as i32));
    }
    tokens
}
