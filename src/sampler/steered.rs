//! The rows of a step that a distiller steers: from the expected hidden state to expected logits.

use burn::tensor::{DType, Int, Tensor, TensorData, Transaction};

use super::{Novelty, StepRow, input::expect_shape, race::host};
use crate::{
    candidates::Candidates,
    error::{RowError, StepError},
    hidden::{HiddenStates, select_rows},
    id::{RowId, TokenId},
    lm_head::LmHead,
    train::Prediction,
};

/// The rows of a step that are steered, and what the distillers expect of them. Everything here is in the order of
/// `at`, which holds the rows' places in the step.
pub(super) struct Steered {
    pub(super) at: Vec<usize>,
    pub(super) ids: Vec<RowId>,
    pub(super) hidden: HiddenStates,
    /// What the distillers predict: novelty and loss are measured against it.
    pub(super) predicted: Tensor<2>,
    /// What scores are reweighted with: the prediction, unless a control has put another error in its place.
    pub(super) expected: Tensor<2>,
    /// What the trainer mixed the prediction from, for it to judge by when it learns.
    pub(super) parts: Vec<Tensor<2>>,
    /// Rows whose distiller is not ready: predicted and learned, not reweighted.
    pub(super) warming: Vec<bool>,
    /// `None` where something was not finite, and before [`expect`](Self::expect) or [`mix`](super::latent).
    pub(super) novelty: Vec<Option<Novelty>>,
    /// Whether the row's logits are the fused ones already, or stay plain because its states are not finite.
    pub(super) settled: Vec<bool>,
    /// Whether the deep state is finite and its error is not.
    pub(super) diverged: Vec<bool>,
}

impl Steered {
    /// Rows at the places `at` of a step, before anything is expected of their tokens.
    pub(super) fn new(
        at: Vec<usize>,
        ids: Vec<RowId>,
        hidden: HiddenStates,
        prediction: Prediction,
        expected: Tensor<2>,
        warming: Vec<bool>,
    ) -> Self {
        let count = at.len();
        let Prediction { expected: predicted, parts } = prediction;
        Self {
            at,
            ids,
            hidden,
            predicted,
            expected,
            parts,
            warming,
            novelty: vec![None; count],
            settled: vec![false; count],
            diverged: vec![false; count],
        }
    }

    /// Gives every candidate its expected logit and every row its novelty, in one transfer from the device. Returns the
    /// places in the step of the rows that can be reweighted.
    ///
    /// Rows for which one of these numbers is not finite get none, and the rest of the step passes them by.
    pub(super) fn expect(
        &mut self,
        rows: &[StepRow<'_>],
        races: &mut [Result<Candidates, RowError>],
        lm_head: &dyn LmHead,
        vocab: usize,
    ) -> Result<Vec<usize>, StepError> {
        let is_live = |&i: &usize| !self.settled[i] && races[self.at[i]].is_ok();
        let live: Vec<usize> = (0..self.at.len()).filter(is_live).collect();
        let widest =
            live.iter().filter_map(|&i| races[self.at[i]].as_ref().ok()).map(Candidates::len).max();
        let Some(widest) = widest else {
            return Ok(Vec::new());
        };
        let expected = select_rows(&self.expected, &live);
        let device = expected.device();
        let candidates = || {
            let races = live.iter().filter_map(|&i| races[self.at[i]].as_ref().ok());
            let tokens = TensorData::new(padded_tokens(races, widest), [live.len(), widest]);
            Tensor::<2, Int>::from_data(tokens, &device)
        };

        // Beyond this many candidates, one product with the whole matrix moves less memory than gathering its rows.
        let dense = live.len() * widest >= vocab;
        let (logits, width) = match dense {
            true => (lm_head.logits(expected), vocab),
            false => (lm_head.logits_at(expected, candidates()), widest),
        };
        expect_shape("expected logits of the LM head", [live.len(), width], logits.dims())?;
        // What was computed for all tokens need not be brought to the host for all of them.
        let (logits, width, by_token) = match dense && widest < vocab {
            true => (logits.gather(1, candidates()), widest, false),
            false => (logits, width, dense),
        };
        let [error, deep] = self.lengths(&live);
        let [logits, error, deep] = read([logits.inner().cast(DType::F32), error, deep])?;

        let mut ready = Vec::with_capacity(live.len());
        for (row, &i) in live.iter().enumerate() {
            let Ok(race) = &mut races[self.at[i]] else {
                continue;
            };
            let logits = &logits[row * width..(row + 1) * width];
            let finite = rows[self.at[i]].set_expected(race, |place, token| {
                logits[if by_token { token as usize } else { place }]
            });
            self.novelty[i] = Novelty::if_finite(error[row], deep[row]).filter(|_| finite);
            self.diverged[i] = deep[row].is_finite() && !error[row].is_finite();
            if self.novelty[i].is_some() && !self.warming[i] {
                ready.push(self.at[i]);
            }
        }
        Ok(ready)
    }

    /// `‖deep − predicted‖` and `‖deep‖` of some rows, `[rows, 1]` each.
    pub(super) fn lengths(&self, rows: &[usize]) -> [Tensor<2>; 2] {
        let predicted = select_rows(&self.predicted, rows);
        let deep = select_rows(self.hidden.deep(), rows);
        [length(deep.clone() - predicted), length(deep)]
    }
}

impl Novelty {
    pub(super) fn if_finite(error: f32, deep: f32) -> Option<Self> {
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
fn padded_tokens<'a>(races: impl Iterator<Item = &'a Candidates>, width: usize) -> Vec<i32> {
    let mut tokens = Vec::new();
    for race in races {
        let best = race.best().token;
        let row = race.as_slice().iter().map(|c| c.token).chain(std::iter::repeat(best));
        tokens.extend(row.take(width).map(|token: TokenId| token as i32));
    }
    tokens
}
