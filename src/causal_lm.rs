//! What the decode loop asks of a model.

use burn::tensor::{Device, Int, Tensor};

use crate::{error::StepError, lm_head::LmHead, tap::HiddenStateTap};

/// A decoder-only language model that the decode loop can drive.
///
/// The model keeps no state between calls: what it remembers of a sequence is in its [`KvCache`], which the loop owns.
pub trait CausalLm {
    /// Keys and values of the sequences seen so far.
    type Cache: KvCache;

    /// A cache without rows; the first [`forward`](Self::forward) gives it as many rows as `tokens` has.
    fn new_cache(&self) -> Self::Cache;

    /// Appends `tokens`, `[rows, seq]`, to the sequences in `cache` and returns the logits of the last position,
    /// `[rows, vocab]`.
    ///
    /// Token ids are below [`vocab_size`](Self::vocab_size): the loop has checked them, and a model need not.
    ///
    /// Any `seq`, whether the cache is empty or not: the loop feeds long prompts in chunks.
    ///
    /// Calls `tap` once for each site it wants. Every row of the cache gets `seq` more tokens: rows whose sequences
    /// differ in length stand side by side because the cache knows each row's own length.
    ///
    /// # Errors
    ///
    /// [`StepError`]: shapes that do not match, a context that is full, or what the model itself reports through
    /// [`StepError::model`].
    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut Self::Cache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, StepError>;

    /// The head that turned the deep hidden state into those logits.
    fn lm_head(&self) -> &dyn LmHead;

    /// Where the model lives.
    fn device(&self) -> Device;

    /// Width of the hidden states.
    fn d_model(&self) -> usize;

    /// Number of tokens in the vocabulary: the width of the logits.
    fn vocab_size(&self) -> usize;

    /// The most tokens that a sequence may have, prompt included; `None` when the model sets no limit.
    fn context_length(&self) -> Option<usize> {
        None
    }

    /// Bytes of cache that one token of one row takes; 0 when the model does not say, which switches off
    /// the loop's memory limit.
    fn kv_bytes_per_token(&self) -> usize {
        0
    }
}

/// The sequences that a model has seen, one per row.
pub trait KvCache {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Whether rows can be dropped and reordered. Where not, the loop keeps the rows of ended requests in the batch,
    /// feeds them a dummy token and ignores what comes out.
    fn can_drop_rows(&self) -> bool {
        true
    }

    /// Keeps the given rows, in the given order, and drops the others. An index may repeat: that is how one prompt's
    /// prefill becomes the beginning of all its completions.
    ///
    /// # Errors
    ///
    /// [`StepError::RowOutOfRange`] when a row does not exist, [`StepError::CacheFixed`] when the cache cannot do it.
    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), StepError>;

    /// Puts the rows of `other` behind the rows of `self`, whatever the lengths of their sequences.
    ///
    /// # Errors
    ///
    /// [`StepError::CacheFixed`] when the cache cannot do it; a shape error when `other` belongs to another model.
    fn append_rows(&mut self, other: Self) -> Result<(), StepError>
    where
        Self: Sized;
}

impl<M: CausalLm + ?Sized> CausalLm for &M {
    type Cache = M::Cache;

    fn new_cache(&self) -> Self::Cache {
        (**self).new_cache()
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut Self::Cache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, StepError> {
        (**self).forward(tokens, cache, tap)
    }

    fn lm_head(&self) -> &dyn LmHead {
        (**self).lm_head()
    }

    fn device(&self) -> Device {
        (**self).device()
    }

    fn d_model(&self) -> usize {
        (**self).d_model()
    }

    fn vocab_size(&self) -> usize {
        (**self).vocab_size()
    }

    fn context_length(&self) -> Option<usize> {
        (**self).context_length()
    }

    fn kv_bytes_per_token(&self) -> usize {
        (**self).kv_bytes_per_token()
    }
}
