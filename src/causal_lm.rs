//! The interface between the decode loop and a model.

use std::sync::Arc;

use burn::tensor::{Device, ExecutionError, Int, Tensor};
use thiserror::Error;

use crate::{lm_head::LmHead, tap::HiddenStateTap};

/// A decoder-only language model for the decode loop.
///
/// The model keeps no state between calls: keys and values of the sequences are in its [`KvCache`], which the loop
/// owns.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use burn::tensor::{Device, Int, Tensor, activation::silu};
/// use esamp::{
///     CausalLm, Decoder, HiddenStateTap, KvCache, LmHead, Request, SamplerConfig, TapSite, TiedHead,
///     errors::ModelError,
/// };
///
/// /// Reads only the last token, so its cache stores only the number of sequences.
/// struct Bigram {
///     embedding: Tensor<2>, // [vocab, d_model]
///     head: TiedHead,
/// }
///
/// #[derive(Default)]
/// struct Rows(usize);
///
/// impl KvCache for Rows {
///     fn rows(&self) -> usize {
///         self.0
///     }
///
///     fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
///         self.0 = rows.len();
///         Ok(())
///     }
///
///     fn append_rows(&mut self, other: Self) -> Result<(), ModelError> {
///         self.0 += other.0;
///         Ok(())
///     }
/// }
///
/// impl CausalLm for Bigram {
///     type Cache = Rows;
///
///     fn new_cache(&self) -> Rows {
///         Rows::default()
///     }
///
///     fn forward(
///         &self,
///         tokens: Tensor<2, Int>,
///         cache: &mut Rows,
///         tap: &mut dyn HiddenStateTap,
///     ) -> Result<Tensor<2>, ModelError> {
///         let [rows, seq] = tokens.dims();
///         cache.0 = rows;
///         let last = tokens.narrow(1, seq - 1, 1).reshape([rows]);
///         let shallow = self.embedding.clone().select(0, last).unsqueeze_dim::<3>(1); // [rows, 1, d_model]
///         tap.record(TapSite::AfterBlock(0), &shallow);
///         let deep = silu(shallow);
///         tap.record(TapSite::HeadInput, &deep);
///         Ok(self.head.logits(deep.squeeze_dim::<2>(1)))
///     }
///
///     fn lm_head(&self) -> &dyn LmHead {
///         &self.head
///     }
///
///     fn device(&self) -> Device {
///         self.embedding.device()
///     }
///
///     fn d_model(&self) -> usize {
///         self.embedding.dims()[1]
///     }
///
///     fn vocab_size(&self) -> usize {
///         self.embedding.dims()[0]
///     }
/// }
///
/// let embedding = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], &Device::flex());
/// let model = Bigram { head: TiedHead::new(embedding.clone()), embedding };
/// let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
/// let mut decoder = Decoder::new(&model, sampler)?;
/// decoder.submit(Request::new(vec![0, 1]).with_completions(2).with_max_new_tokens(4))?;
/// assert_eq!(decoder.run(|_| ControlFlow::Continue(()))?.len(), 2);
/// assert_eq!(decoder.sampler().counters().updates, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait CausalLm {
    /// Keys and values of the sequences seen so far.
    type Cache: KvCache;

    /// A cache without rows; the first [`forward`](Self::forward) gives it as many rows as `tokens` has.
    fn new_cache(&self) -> Self::Cache;

    /// Appends `tokens`, `[rows, seq]`, to the sequences in `cache` and returns the logits of the last position,
    /// `[rows, vocab]`.
    ///
    /// Token ids are below [`vocab_size`](Self::vocab_size); the loop has checked them, so the model need not.
    ///
    /// Must support any `seq`, with an empty and a non-empty cache: the loop feeds long prompts in chunks.
    ///
    /// Calls `tap` once for each site the tap wants. Every row of the cache gets `seq` more tokens. Rows with
    /// sequences of different lengths can share a batch because the cache knows the length of each row.
    ///
    /// # Errors
    ///
    /// [`ModelError`] when the batch does not match the cache or the context is full; [`ModelError::other`] for
    /// errors of the model itself.
    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut Self::Cache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError>;

    /// The LM head, which maps the deep hidden state to the logits.
    fn lm_head(&self) -> &dyn LmHead;

    /// The model's device.
    fn device(&self) -> Device;

    /// Width of the hidden states.
    fn d_model(&self) -> usize;

    /// Number of tokens in the vocabulary, which is the width of the logits.
    fn vocab_size(&self) -> usize;

    /// Maximum number of tokens in a sequence, including the prompt; `None` if there is no limit.
    fn context_length(&self) -> Option<usize> {
        None
    }

    /// What all caches of the model together have room for. The decode loop keeps prompts waiting until they fit. The
    /// default is no limit.
    fn cache_limits(&self) -> CacheLimits {
        CacheLimits::default()
    }

    /// Bytes of KV cache per token and row, for the decode loop's [memory limit](crate::Decoder::with_memory_limit). 0,
    /// the default, means that the cache takes no memory or an unknown amount.
    fn kv_bytes_per_token(&self) -> usize {
        0
    }

    /// Bytes that the model takes at most in addition to its weights and the tokens in its cache, for the same limit:
    /// spare capacity of the cache, copies of rows that join, activations, and the logits that it returns. 0, the
    /// default, means unknown.
    fn working_bytes(&self, batch: BatchSize) -> usize {
        let _ = batch;
        0
    }
}

/// What all caches of a model together have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Number of rows.
    pub rows: usize,
    /// Tokens over all rows. A prompt counts once for all of its completions.
    pub tokens: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { rows: usize::MAX, tokens: usize::MAX }
    }
}

/// The size of a batch at its largest, for estimates of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchSize {
    /// Number of rows.
    pub rows: usize,
    /// Tokens of the longest row.
    pub columns: usize,
    /// How many of the rows join a batch that is running.
    pub joining: usize,
    /// Tokens of the largest forward pass, over all rows.
    pub pass: usize,
}

/// The keys and values of the sequences that a model has read, one sequence per row.
///
/// ```
/// use burn::tensor::{Int, Tensor};
/// use esamp::{KvCache, errors::ModelError};
///
/// /// Keys and values of one layer, `[rows, heads, seq, d_head]`, for sequences of equal length.
/// struct Layer {
///     keys: Tensor<4>,
///     values: Tensor<4>,
/// }
///
/// impl KvCache for Layer {
///     fn rows(&self) -> usize {
///         self.keys.dims()[0]
///     }
///
///     fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
///         if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
///             return Err(ModelError::RowOutOfRange { row, rows: self.rows() });
///         }
///         let places: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
///         let places = Tensor::<1, Int>::from_data(places.as_slice(), &self.keys.device());
///         self.keys = self.keys.clone().select(0, places.clone());
///         self.values = self.values.clone().select(0, places);
///         Ok(())
///     }
///
///     /// It stores no lengths, so sequences of other lengths cannot join: prompts wait for each other.
///     fn can_append_rows(&self) -> bool {
///         false
///     }
///
///     fn append_rows(&mut self, _other: Self) -> Result<(), ModelError> {
///         Err(ModelError::Unsupported { operation: "append rows" })
///     }
/// }
/// ```
pub trait KvCache {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Whether rows can be dropped and reordered. If not, the loop keeps the rows of finished completions in the
    /// batch, feeds them a dummy token and ignores their output.
    fn can_drop_rows(&self) -> bool {
        true
    }

    /// Whether `keep_rows(&[0, 0, …])` can turn a cache of one row into several. If not, the loop reads a prompt once
    /// for each of its completions.
    ///
    /// Default: same as [`can_drop_rows`](Self::can_drop_rows).
    fn can_repeat_rows(&self) -> bool {
        self.can_drop_rows()
    }

    /// Whether [`append_rows`](Self::append_rows) works for sequences of other lengths. If not, or if rows cannot be
    /// dropped, a prompt waits until all running completions have ended.
    ///
    /// Default: same as [`can_drop_rows`](Self::can_drop_rows).
    fn can_append_rows(&self) -> bool {
        self.can_drop_rows()
    }

    /// Makes room for sequences of `tokens` tokens. The loop calls it on an empty cache before it reads a prompt, with the
    /// prompt's length: a cache that grows would be copied between the passes in which a long prompt is read.
    ///
    /// Default: does nothing.
    fn reserve(&mut self, _tokens: usize) {}

    /// Keeps the given rows, in the given order, and drops the others. An index may repeat: this is how the loop
    /// copies a prompt's prefill to all its completions.
    ///
    /// # Errors
    ///
    /// [`ModelError::RowOutOfRange`] when a row does not exist, [`ModelError::Unsupported`] when the cache does not
    /// support it.
    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError>;

    /// Appends the rows of `other` to those of `self`. The sequences may have different lengths.
    ///
    /// # Errors
    ///
    /// [`ModelError::Unsupported`] when the cache does not support it; [`ModelError::Mismatch`] when `other` belongs
    /// to another model.
    fn append_rows(&mut self, other: Self) -> Result<(), ModelError>
    where
        Self: Sized;

    /// Moves the given rows, in ascending order, to a cache of their own. [`append_rows`](Self::append_rows) brings
    /// them back. The loop needs it only to [pause](crate::Decoder::pause) completions.
    ///
    /// # Errors
    ///
    /// [`ModelError::RowOutOfRange`] when a row does not exist. The default does not support it:
    /// [`ModelError::Unsupported`].
    fn split_rows(&mut self, rows: &[usize]) -> Result<Self, ModelError>
    where
        Self: Sized,
    {
        let _ = rows;
        Err(ModelError::Unsupported { operation: "split rows" })
    }
}

/// A pointer to a model is a model: a loop may own a model, borrow it, or share it with other loops.
macro_rules! pointer_to_a_model {
    ($($pointer:ty),*) => {$(
        impl<M: CausalLm + ?Sized> CausalLm for $pointer {
            type Cache = M::Cache;

            fn new_cache(&self) -> Self::Cache {
                (**self).new_cache()
            }

            fn forward(
                &self,
                tokens: Tensor<2, Int>,
                cache: &mut Self::Cache,
                tap: &mut dyn HiddenStateTap,
            ) -> Result<Tensor<2>, ModelError> {
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

            fn cache_limits(&self) -> CacheLimits {
                (**self).cache_limits()
            }

            fn kv_bytes_per_token(&self) -> usize {
                (**self).kv_bytes_per_token()
            }

            fn working_bytes(&self, batch: BatchSize) -> usize {
                (**self).working_bytes(batch)
            }
        }
    )*};
}

pointer_to_a_model!(&M, Box<M>, Arc<M>);

/// An error of a model or its cache.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The tokens or a cache do not match the model or each other.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// The value that was checked.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// The actual value.
        got: String,
    },
    /// A row index is out of range.
    #[error("row {row}: expected a row below {rows}")]
    RowOutOfRange {
        /// The requested row.
        row: usize,
        /// The number of rows.
        rows: usize,
    },
    /// The sequences exceed the model's context length.
    #[error("context: expected at most {limit} tokens, got {got}")]
    ContextFull {
        /// The model's context length.
        limit: usize,
        /// The length that the sequence would have had.
        got: usize,
    },
    /// The cache cannot drop, reorder or append rows.
    #[error("key-value cache: expected one that can {operation}, got a fixed one")]
    Unsupported {
        /// The unsupported operation.
        operation: &'static str,
    },
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
    /// An error specific to the model.
    #[error("model: {0}")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ModelError {
    /// Creates a [`Mismatch`](Self::Mismatch).
    pub fn mismatch(
        what: &'static str,
        expected: impl std::fmt::Display,
        got: impl std::fmt::Display,
    ) -> Self {
        Self::Mismatch { what, expected: expected.to_string(), got: got.to_string() }
    }

    /// Checks that two shapes are equal.
    ///
    /// # Errors
    ///
    /// [`Mismatch`](Self::Mismatch) when they are not.
    pub fn check_shape(what: &'static str, expected: &[usize], got: &[usize]) -> Result<(), Self> {
        if expected == got {
            return Ok(());
        }
        Err(Self::mismatch(what, format_args!("shape {expected:?}"), format_args!("{got:?}")))
    }

    /// Wraps an error specific to the model, or a message.
    pub fn other(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(source.into())
    }
}

impl From<ExecutionError> for ModelError {
    fn from(error: ExecutionError) -> Self {
        Self::Device(error.to_string())
    }
}
