//! Forward passes of the decode loop: tokens in, logits and hidden states out.

use burn::tensor::{Device, Int, Tensor};

use super::warm_up::PromptWarmUp;
use crate::{
    causal_lm::{CausalLm, KvCache, ModelError},
    decode::error::RequestError,
    hidden::HiddenStates,
    id::TokenId,
    sampler::StepError,
    tensor::{index, select_rows},
};

/// Prefills a prompt for `rows` rows, `chunk` tokens per forward pass, with the tap of `warm_up`. Returns a cache
/// with `rows` rows and the logits of the last position, `[rows, vocab]`.
///
/// The prompt is read once if the cache can repeat rows, otherwise once per row.
pub(super) fn prefill<M: CausalLm>(
    model: &M,
    prompt: &[TokenId],
    rows: usize,
    chunk: usize,
    warm_up: &mut PromptWarmUp,
) -> Result<(M::Cache, Tensor<2>), StepError> {
    let mut cache = model.new_cache();
    // Without row repetition every row needs its own copy of the prompt in the batch.
    let shares = cache.can_repeat_rows();
    let copies = if shares { 1 } else { rows };
    let device = model.device();
    // Only the logits of the last chunk are used: those of its last position predict the first token.
    let mut last = None;
    for chunk in prompt.chunks(chunk) {
        let tokens = int_tensor(&chunk.repeat(copies), [copies, chunk.len()], &device);
        last = Some(model.forward(tokens, &mut cache, warm_up.tap())?);
        warm_up.end_pass(chunk.len())?;
    }
    let mut logits = last.ok_or_else(|| ModelError::other(RequestError::EmptyPrompt))?;
    expect_logits(&logits, [copies, model.vocab_size()])?;
    // For one row, `keep_rows` would copy the cache for nothing.
    if shares && rows > 1 {
        cache.keep_rows(&vec![0; rows])?;
        logits = logits.repeat_dim(0, rows);
    }
    Ok((cache, logits))
}

pub(super) fn int_tensor(tokens: &[TokenId], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    index(tokens.iter().map(|&token| token as usize), device).reshape(shape)
}

/// Checks the shape of a model's logits, so that missing rows or a different vocabulary are an error and not misread.
pub(super) fn expect_logits(logits: &Tensor<2>, expected: [usize; 2]) -> Result<(), StepError> {
    let got = logits.dims();
    if got == expected {
        return Ok(());
    }
    Err(StepError::Shape { what: "logits", expected: expected.to_vec(), got: got.to_vec() })
}

/// Selects the `live` rows of a forward pass over `rows` rows.
pub(super) fn rows_of(
    logits: Tensor<2>,
    hidden: Option<HiddenStates>,
    rows: usize,
    live: &[usize],
) -> Result<(Tensor<2>, Option<HiddenStates>), StepError> {
    if let Some(got) = hidden.as_ref().map(HiddenStates::rows).filter(|&got| got != rows) {
        return Err(StepError::RowCount { what: "hidden states", expected: rows, got });
    }
    let logits = select_rows(&logits, live);
    let hidden = hidden.map(|hidden| hidden.select(live)).transpose()?;
    Ok((logits, hidden))
}
