//! Reference logits from the head's input, fused before the head where that is the same.

use burn::tensor::{DType, Tensor, TensorData};

use super::{
    Novelty, StepRow,
    steered::{Steered, read},
};
use crate::{error::StepError, hidden::select_rows, lm_head::LmHead};

impl StepRow<'_> {
    /// The weight with which a steered row's states can be mixed before a linear head; `None` where something needs the
    /// reference and the expected logits apart.
    fn latent_weight(&self) -> Option<f32> {
        let apart = !self.sampling.filters().is_empty()
            || self.sampling.adjusts_logits()
            || self.wants_reference_log_prob;
        self.sampling.reweighter().extrapolation().filter(|_| !apart)
    }
}

impl Steered {
    /// The head's input of every row, `[rows, d_model]`, with the rows that can be mixed replaced by
    /// `(1 + β)·hL − β·ĥ`: a linear head gives their fused logits then.
    ///
    /// Rows whose states are not finite are left as they are. One small transfer finds them.
    pub(super) fn mix(
        &mut self,
        rows: &[StepRow<'_>],
        head_input: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        let (mixed, weights): (Vec<usize>, Vec<f32>) = (0..self.at.len())
            .filter(|&i| !self.warming[i])
            .filter_map(|i| Some((i, rows[self.at[i]].latent_weight()?)))
            .unzip();
        if mixed.is_empty() {
            return Ok(head_input);
        }
        let [error, deep] = read(self.lengths(&mixed))?;
        for (place, &i) in mixed.iter().enumerate() {
            self.settled[i] = true;
            self.novelty[i] = Novelty::if_finite(error[place], deep[place]);
            self.diverged[i] = deep[place].is_finite() && !error[place].is_finite();
        }
        let (mixed, weights): (Vec<usize>, Vec<f32>) =
            mixed.into_iter().zip(weights).filter(|&(i, _)| self.novelty[i].is_some()).unzip();
        if mixed.is_empty() {
            return Ok(head_input);
        }
        let places: Vec<usize> = mixed.iter().map(|&i| self.at[i]).collect();
        let weights = TensorData::new(weights, [mixed.len(), 1]);
        let weights = Tensor::<2>::from_data(weights, (&head_input.device(), DType::F32));
        let head_input = head_input.cast(DType::F32);
        let reference = select_rows(&head_input, &places);
        let expected = select_rows(&self.expected, &mixed);
        let fused = reference.clone() + (reference - expected) * weights;
        Ok(replace_rows(head_input, &places, fused))
    }
}

/// The logits of a step that came with the head's input, `[rows, vocab]`.
pub(super) fn project(
    rows: &[StepRow<'_>],
    head_input: Tensor<2>,
    steered: Option<&mut Steered>,
    lm_head: &dyn LmHead,
) -> Result<Tensor<2>, StepError> {
    let head_input = head_input.inner();
    let states = match steered {
        Some(steered) if lm_head.is_linear() => steered.mix(rows, head_input)?,
        _ => head_input,
    };
    let logits = lm_head.logits(states);
    if logits.dims()[0] != rows.len() {
        return Err(StepError::RowCount {
            what: "logits of the LM head",
            expected: rows.len(),
            got: logits.dims()[0],
        });
    }
    Ok(logits)
}

/// `tensor` with the rows at `places`, which rise, replaced by those of `new`.
fn replace_rows(tensor: Tensor<2>, places: &[usize], new: Tensor<2>) -> Tensor<2> {
    let rows = tensor.dims()[0];
    let others: Vec<usize> = (0..rows).filter(|row| places.binary_search(row).is_err()).collect();
    if others.is_empty() {
        return new;
    }
    let joined = Tensor::cat(vec![new, select_rows(&tensor, &others)], 0);
    let mut order = vec![0; rows];
    places.iter().chain(&others).enumerate().for_each(|(at, &row)| order[row] = at);
    select_rows(&joined, &order)
}
