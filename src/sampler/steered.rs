//! The rows of a step that are steered: from the expected hidden state to new scores.

use burn::tensor::{DType, Int, Tensor, TensorData, Transaction};

use super::{Novelty, StepRow, race::host};
use crate::{
    candidates::Candidates,
    error::{RowError, StepError},
    hidden::{HiddenStates, select_rows},
    id::{RowId, TokenId},
    lm_head::LmHead,
};

/// The rows of a step that are steered, and what the distillers expect of them. Everything here is in the order of
/// `at`, which holds the rows' places in the step.
pub(super) struct Steered {
    pub(super) at: Vec<usize>,
    pub(super) ids: Vec<RowId>,
    pub(super) hidden: HiddenStates,
    pub(super) expected: Tensor<2>,
    /// Rows whose distiller is not ready: predicted and learned, not reweighted.
    pub(super) warming: Vec<bool>,
    /// `None` where something was not finite, and before [`expect`](Self::expect).
    pub(super) novelty: Vec<Option<Novelty>>,
}

impl Steered {
    /// Gives every candidate its expected logit and every row its novelty, in one transfer from the device.
    ///
    /// Rows for which one of these numbers is not finite get none, and the rest of the step passes them by.
    pub(super) fn expect(
        &mut self,
        rows: &[StepRow<'_>],
        races: &mut [Result<Candidates, RowError>],
        lm_head: &dyn LmHead,
        vocab: usize,
    ) -> Result<(), StepError> {
        let live: Vec<usize> = (0..self.at.len()).filter(|&i| races[self.at[i]].is_ok()).collect();
        let widest =
            live.iter().filter_map(|&i| races[self.at[i]].as_ref().ok()).map(Candidates::len).max();
        let Some(widest) = widest else {
            return Ok(());
        };
        let expected = select_rows(&self.expected, &live);
        let deep = select_rows(self.hidden.deep(), &live);

        // Beyond this many candidates, one product with the whole matrix moves less memory than gathering its rows.
        let dense = live.len() * widest >= vocab;
        let width = if dense { vocab } else { widest };
        let logits = if dense {
            lm_head.logits(expected.clone())
        } else {
            let tokens =
                padded_tokens(live.iter().filter_map(|&i| races[self.at[i]].as_ref().ok()), widest);
            let tokens = TensorData::new(tokens, [live.len(), widest]);
            lm_head.logits_at(expected.clone(), Tensor::<2, Int>::from_data(tokens, &deep.device()))
        };
        if logits.dims() != [live.len(), width] {
            return Err(StepError::Shape {
                what: "expected logits of the LM head",
                expected: vec![live.len(), width],
                got: logits.dims().to_vec(),
            });
        }
        let error = (deep.clone() - expected).square().sum_dim(1).sqrt();
        let deep = deep.square().sum_dim(1).sqrt();
        let read = Transaction::default()
            .register(logits.inner().cast(DType::F32))
            .register(error)
            .register(deep)
            .try_execute()?;
        let [logits, error, deep] = <[TensorData; 3]>::try_from(read).map_err(|read| {
            StepError::Execution(format!("expected 3 tensors, got {}", read.len()))
        })?;
        let (logits, error, deep) = (host(logits)?, host(error)?, host(deep)?);

        for (row, &i) in live.iter().enumerate() {
            let Ok(race) = &mut races[self.at[i]] else {
                continue;
            };
            let logits = &logits[row * width..(row + 1) * width];
            let temperature = rows[self.at[i]].sampling.divisor();
            let finite = race.set_expected(|place, token| {
                logits[if dense { token as usize } else { place }] / temperature
            });
            if finite && error[row].is_finite() && deep[row].is_finite() {
                self.novelty[i] = Some(Novelty { error: error[row], deep: deep[row] });
            }
        }
        Ok(())
    }

    /// Rescores the candidates of every row that has finite expectations and a distiller that is ready.
    pub(super) fn reweight(
        &self,
        rows: &[StepRow<'_>],
        races: &mut [Result<Candidates, RowError>],
    ) {
        let rows_at = self.at.iter().zip(&self.novelty).zip(&self.warming);
        for ((&at, novelty), &warming) in rows_at {
            if let (Ok(race), Some(_), false) = (&mut races[at], novelty, warming) {
                rows[at].sampling.reweighter().reweight(&rows[at].context(), race);
            }
        }
    }
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
