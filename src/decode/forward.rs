//! Tokens into a model, logits and hidden states out of it.

use burn::tensor::{Device, Int, Tensor};

use crate::{
    causal_lm::{CausalLm, KvCache},
    error::StepError,
    hidden::{HiddenStates, select_rows},
    id::TokenId,
    tap::HiddenStateTap,
};

/// Reads a prompt once for `rows` rows. Returns a cache with as many rows and the last position's logits, `[rows,
/// vocab]`.
pub(super) fn prefill<M: CausalLm>(
    model: &M,
    prompt: &[TokenId],
    rows: usize,
    tap: &mut dyn HiddenStateTap,
) -> Result<(M::Cache, Tensor<2>), StepError> {
    let mut cache = model.new_cache();
    let shares = cache.can_drop_rows();
    let copies = if shares { 1 } else { rows };
    let tokens = int_tensor(&prompt.repeat(copies), [copies, prompt.len()], &model.device());
    let mut logits = model.forward(tokens, &mut cache, tap)?;
    if shares && rows > 1 {
        cache.keep_rows(&vec![0; rows])?;
        logits = logits.repeat_dim(0, rows);
    }
    Ok((cache, logits))
}

pub(super) fn int_tensor(tokens: &[TokenId], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    Tensor::<1, Int>::from_data(tokens.as_slice(), device).reshape(shape)
}

/// The live rows of what a forward pass gave.
pub(super) fn rows_of(
    logits: Tensor<2>,
    hidden: Option<HiddenStates>,
    live: &[usize],
) -> Result<(Tensor<2>, Option<HiddenStates>), StepError> {
    let logits = select_rows(&logits, live);
    let hidden = hidden.map(|hidden| hidden.select(live)).transpose()?;
    Ok((logits, hidden))
}
