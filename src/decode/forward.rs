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

/// The prefill of a prompt, which may take several steps.
///
/// The prompt is read once if the cache can repeat rows, otherwise once per row.
pub(super) struct Prefill<C> {
    cache: C,
    /// Rows of the cache while the prompt is read.
    copies: usize,
    /// Tokens of the prompt that have been read.
    read: usize,
    /// Logits of the last position that has been read, `[copies, vocab]`.
    logits: Option<Tensor<2>>,
}

impl<C: KvCache> Prefill<C> {
    /// Begins a prefill of `rows` rows, with room for `tokens` tokens in each.
    pub(super) fn new<M: CausalLm<Cache = C>>(model: &M, rows: usize, tokens: usize) -> Self {
        let mut cache = model.new_cache();
        cache.reserve(tokens);
        // Without row repetition every row needs its own copy of the prompt in the batch.
        let copies = if cache.can_repeat_rows() { 1 } else { rows };
        Self { cache, copies, read: 0, logits: None }
    }

    /// Whether the rows share one copy of the prompt, so that rows that end meanwhile take no place.
    pub(super) fn is_shared(&self) -> bool {
        self.cache.can_repeat_rows()
    }

    /// Reads up to `budget` more tokens of the prompt, `chunk` per forward pass, with the tap of `warm_up`. Returns the
    /// number of tokens that it has read.
    pub(super) fn read<M: CausalLm<Cache = C>>(
        &mut self,
        model: &M,
        prompt: &[TokenId],
        chunk: usize,
        budget: usize,
        warm_up: &mut PromptWarmUp,
    ) -> Result<usize, StepError> {
        let (device, from) = (model.device(), self.read);
        let to = prompt.len().min(from.saturating_add(budget));
        for chunk in prompt[from..to].chunks(chunk) {
            let tokens = chunk.repeat(self.copies);
            let tokens = int_tensor(&tokens, [self.copies, chunk.len()], &device);
            // Only the logits of the last chunk are used: those of its last position predict the first token.
            self.logits = Some(model.forward(tokens, &mut self.cache, warm_up.tap())?);
            warm_up.end_pass(chunk.len())?;
            self.read += chunk.len();
        }
        Ok(to - from)
    }

    /// The number of tokens of the prompt that have not been read.
    pub(super) fn left(&self, prompt: &[TokenId]) -> usize {
        prompt.len() - self.read
    }

    /// The keys and values of what has been read.
    pub(super) fn cache(&self) -> &C {
        &self.cache
    }

    /// Returns a cache with `rows` rows and the logits of the last position, `[rows, vocab]`.
    pub(super) fn finish(self, rows: usize, vocab: usize) -> Result<(C, Tensor<2>), StepError> {
        let (mut cache, shares) = (self.cache, self.copies == 1);
        let logits = self.logits.ok_or_else(|| ModelError::other(RequestError::EmptyPrompt))?;
        expect_logits(&logits, [self.copies, vocab])?;
        // For one row, `keep_rows` would copy the cache for nothing.
        if shares && rows > 1 {
            cache.keep_rows(&vec![0; rows])?;
            return Ok((cache, logits.repeat_dim(0, rows)));
        }
        Ok((cache, logits))
    }
}

/// Prefills a prompt for `rows` rows at once. Returns a cache with `rows` rows and the logits of the last position,
/// `[rows, vocab]`.
pub(super) fn prefill<M: CausalLm>(
    model: &M,
    prompt: &[TokenId],
    rows: usize,
    chunk: usize,
) -> Result<(M::Cache, Tensor<2>), StepError> {
    let mut prefill = Prefill::new(model, rows, prompt.len());
    prefill.read(model, prompt, chunk, prompt.len(), &mut PromptWarmUp::off())?;
    prefill.finish(rows, model.vocab_size())
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
