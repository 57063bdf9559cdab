//! Expected logits: from a distiller's prediction through the model's head, or from another model.

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

/// What the distillers predict for the rows of a step that have one, in the order of those rows.
pub(super) struct Predicted {
    /// The rows' places in the step.
    pub(super) at: Vec<usize>,
    pub(super) ids: Vec<CompletionId>,
    pub(super) hidden: HiddenStates,
    /// The predicted deep states, `[rows, d_model]`: novelty and loss are measured against them.
    pub(super) predicted: Tensor<2>,
    /// What scores are reweighted with: the predicted states, unless a control has replaced them.
    pub(super) expected: Tensor<2>,
    /// What the trainer mixed the prediction from, for it to judge by when it learns.
    pub(super) parts: Vec<Tensor<2>>,
}

impl Predicted {
    /// Gives every candidate its expected logit and every row its novelty, in one transfer from the device. A row for which
    /// one of these numbers is not finite is sampled plainly.
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

        // Beyond this many candidates, one product with the whole matrix moves less memory than gathering its rows.
        let expected = select_rows(&self.expected, &live);
        let dense = live.len() * widest >= vocab;
        let (logits, width) = match dense {
            true => (lm_head.logits(expected), vocab),
            false => (lm_head.logits_at(expected, candidates(rows, widest)), widest),
        };
        expect_shape("expected logits of the LM head", [live.len(), width], logits.dims())?;
        // What was computed for all tokens need not be brought to the host for all of them.
        let (logits, width, by_token) = match dense && widest < vocab {
            true => (logits.gather(1, candidates(rows, widest)), widest, false),
            false => (logits, width, dense),
        };
        let [error, deep] = self.lengths(&live);
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

    /// `‖deep − predicted‖` and `‖deep‖` of some rows, `[rows, 1]` each.
    fn lengths(&self, rows: &[usize]) -> [Tensor<2>; 2] {
        let predicted = select_rows(&self.predicted, rows);
        let deep = select_rows(self.hidden.deep(), rows);
        [length(deep.clone() - predicted), length(deep)]
    }
}

/// Gives the candidates of every row that expects another model their logits in that model, `[rows, vocab]`. A row with a
/// candidate whose logit is not finite is sampled plainly.
///
/// Only the rows that need it leave the device.
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
    let logits = logits.ok_or(StepError::OtherLogitsMissing { row: rows[first].input.id })?;
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

/// The length of each row, `[rows, 1]`.
pub(super) fn length(vectors: Tensor<2>) -> Tensor<2> {
    vectors.square().sum_dim(1).sqrt()
}

/// Brings tensors to the host in one transfer.
pub(super) fn read<const N: usize>(tensors: [Tensor<2>; N]) -> Result<[Vec<f32>; N], StepError> {
    let transaction = tensors.into_iter().fold(Transaction::default(), Transaction::register);
    let read = transaction.try_execute()?.into_iter().map(host).collect::<Result<Vec<_>, _>>()?;
    <[Vec<f32>; N]>::try_from(read)
        .map_err(|read| StepError::Execution(format!("expected {N} tensors, got {}", read.len())))
}

/// The tokens of each row, best first, filled up with the row's best token to `width`.
fn padded_tokens<'a>(left: impl Iterator<Item = &'a Candidates>, width: usize) -> Vec<i32> {
    let mut tokens = Vec::new();
    for candidates in left {
        let best = candidates.best().token;
        let row = candidates.as_slice().iter().map(|c| c.token).chain(std::iter::repeat(best));
        tokens.extend(row.take(width).map(|token: TokenId| token as i32));
    }
    tokens
}
