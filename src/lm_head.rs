//! LM heads: from hidden states to logits.

use std::{fmt, sync::Arc};

use burn::{
    nn::Linear,
    tensor::{DType, Device, Int, Tensor, TensorData},
};

use crate::{
    error::ConfigError,
    host::{times_rows_at, times_transposed},
    id::TokenId,
    tensor::from_f32,
};

/// The LM head of a language model: maps a hidden state to one logit per token.
///
/// The sampler needs the logits of the state that the distiller expects. From a linear head, which implements
/// [`product`](Self::product), it asks only by how much they differ from the model's logits; to any other head, for
/// example one with a soft-cap, it applies the whole head. Implemented for burn's [`Linear`], for [`TiedHead`] and for
/// closures:
///
/// ```
/// use burn::tensor::Tensor;
/// use esamp::LmHead;
///
/// fn soft_capped(weight: Tensor<2>) -> impl LmHead {
///     move |hidden: Tensor<2>| hidden.matmul(weight.clone()).div_scalar(30.0).tanh().mul_scalar(30.0)
/// }
/// ```
pub trait LmHead {
    /// Computes the logits of all tokens.
    ///
    /// # Shapes
    ///
    /// - hidden: `[rows, d_model]`, `f32`; a head in a lower precision casts
    /// - output: `[rows, vocab]`
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2>;

    /// Computes the logits of some tokens, `tokens[row, i]` for each row.
    ///
    /// The default computes the logits of all tokens and gathers the requested ones. A linear head needs only the
    /// requested rows of its matrix, about 700 times less work for 64 candidates out of 49,152.
    ///
    /// The sampler calls it only on a head that reports its [`shape`](Self::shape).
    ///
    /// # Shapes
    ///
    /// - hidden: `[rows, d_model]`
    /// - tokens: `[rows, candidates]`, each below `vocab`
    /// - output: `[rows, candidates]`
    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        self.logits(hidden).gather(1, tokens)
    }

    /// Computes `W·x` without a bias, for some tokens or, without `tokens`, for all of them. The default returns
    /// `None`: the head is not known to be linear.
    ///
    /// A head whose logits are `W·hidden + b` should implement this. The expected logit of a token `z` is then `logit
    /// − w_z·(deep − expected)`, with the model's own logit, instead of the head's logit for the expected state. The
    /// two are the same number up to rounding. But where the model rounds its head, because it computes in `bf16` or
    /// multiplies quantised activations, the first form does not take the rounding for novelty: a distiller that
    /// predicts perfectly changes no score, whatever the head computes. `W` may be more precise than the matrix that
    /// the model multiplies with.
    ///
    /// A head with a soft-cap or another function after the product must return `None`. A scale is part of `W`.
    ///
    /// # Shapes
    ///
    /// - x: `[rows, d_model]`, `f32`
    /// - tokens: `[rows, candidates]`, each below `vocab`
    /// - output: `[rows, candidates]`, or `[rows, vocab]` without `tokens`
    fn product(&self, x: Tensor<2>, tokens: Option<Tensor<2, Int>>) -> Option<Tensor<2>> {
        let _ = (x, tokens);
        None
    }

    /// `[d_model, vocab]`, if the head knows it. The sampler then rejects a head of another model before applying it.
    /// A head that does not know it, such as a closure, is applied for all tokens, and the shape of its output is
    /// checked.
    fn shape(&self) -> Option<[usize; 2]> {
        None
    }

    /// The device of the head's weights, if the head knows it.
    fn device(&self) -> Option<Device> {
        None
    }
}

impl<F: Fn(Tensor<2>) -> Tensor<2>> LmHead for F {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self(hidden)
    }
}

impl LmHead for Linear {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.val();
        let hidden = in_dtype_of(hidden, weight.dtype());
        let logits = hidden.matmul(weight);
        match &self.bias {
            Some(bias) => logits + bias.val().unsqueeze(),
            None => logits,
        }
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        let logits = rows_of(self.weight.val().transpose(), hidden, tokens.clone());
        match bias {
            Some(bias) => {
                let dims = tokens.dims();
                let flat = tokens.reshape([dims[0] * dims[1]]);
                logits + bias.select(0, flat).reshape(dims)
            }
            None => logits,
        }
    }

    fn product(&self, x: Tensor<2>, tokens: Option<Tensor<2, Int>>) -> Option<Tensor<2>> {
        let weight = self.weight.val();
        Some(match tokens {
            Some(tokens) => rows_of(weight.transpose(), x, tokens),
            None => in_dtype_of(x, weight.dtype()).matmul(weight),
        })
    }

    fn shape(&self) -> Option<[usize; 2]> {
        Some(self.weight.val().dims())
    }

    fn device(&self) -> Option<Device> {
        Some(self.weight.val().device().inner())
    }
}

/// A linear head whose matrix is stored as `[vocab, d_model]`, like an embedding, for models that tie the two.
#[derive(Clone, Debug)]
pub struct TiedHead {
    weight: Tensor<2>,
}

impl TiedHead {
    /// Creates a head with `weight`, `[vocab, d_model]`. The tensor is shared, not copied.
    pub fn new(weight: Tensor<2>) -> Self {
        Self { weight }
    }

    /// The matrix, `[vocab, d_model]`.
    pub fn weight(&self) -> &Tensor<2> {
        &self.weight
    }
}

impl LmHead for TiedHead {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        times_transposed(in_dtype_of(hidden, self.weight.dtype()), &self.weight)
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        rows_of(self.weight.clone(), hidden, tokens)
    }

    fn product(&self, x: Tensor<2>, tokens: Option<Tensor<2, Int>>) -> Option<Tensor<2>> {
        Some(without_bias(self, x, tokens))
    }

    fn shape(&self) -> Option<[usize; 2]> {
        let [vocab, d_model] = self.weight.dims();
        Some([d_model, vocab])
    }

    fn device(&self) -> Option<Device> {
        Some(self.weight.device().inner())
    }
}

/// A linear head without a bias whose matrix is not a tensor: it belongs to another engine, which hands out single rows
/// of it. The rows can come from a slice, be computed from packed numbers, or be read from a file.
///
/// A step asks for the rows of the candidates, each once even if several rows of the step share it: some hundred with
/// a filter. Without a filter it asks for all of them, a block at a time.
///
/// ```
/// use esamp::{HeadRows, LmHead};
///
/// let weight = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]; // 3 tokens, d_model 2
/// let head = HeadRows::from_slice(&weight, 2)?;
/// assert_eq!(head.shape(), Some([2, 3]));
///
/// // 8-bit integers with one scale per token.
/// let (integers, scales) = ([127_i8, 0, 0, 127, 127, 127], [1.0 / 127.0; 3]);
/// let head = HeadRows::new(3, 2, move |tokens, rows| {
///     for (&token, row) in tokens.iter().zip(rows.chunks_mut(2)) {
///         let packed = &integers[token as usize * 2..][..2];
///         for (number, &integer) in row.iter_mut().zip(packed) {
///             *number = f32::from(integer) * scales[token as usize];
///         }
///     }
/// })?;
/// assert_eq!(head.shape(), Some([2, 3]));
/// # Ok::<(), esamp::errors::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct HeadRows<'a> {
    vocab: usize,
    d_model: usize,
    rows_of: Arc<RowsOf<'a>>,
}

type RowsOf<'a> = dyn Fn(&[TokenId], &mut [f32]) + Send + Sync + 'a;

/// Rows that are asked for at once if all of them are needed. 4 MB at `d_model` 1,024: they stay in the cache between
/// being written and being multiplied.
const BLOCK: usize = 1024;

impl<'a> HeadRows<'a> {
    /// Creates a head of `vocab` rows. `rows_of(tokens, rows)` writes the rows of `tokens`, each below `vocab`, to
    /// `rows`, `[tokens, d_model]` in row-major order.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] when `vocab` or `d_model` is 0.
    pub fn new(
        vocab: usize,
        d_model: usize,
        rows_of: impl Fn(&[TokenId], &mut [f32]) + Send + Sync + 'a,
    ) -> Result<Self, ConfigError> {
        ConfigError::at_least_one("vocab", vocab)?;
        ConfigError::at_least_one("d_model", d_model)?;
        Ok(Self { vocab, d_model, rows_of: Arc::new(rows_of) })
    }

    /// Creates a head from its matrix, `[vocab, d_model]` in row-major order. Only the rows that a step needs are
    /// copied.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] when `d_model` is 0, [`ConfigError::Mismatch`] when the matrix does not consist of
    /// one or more whole rows.
    pub fn from_slice(weight: &'a [f32], d_model: usize) -> Result<Self, ConfigError> {
        ConfigError::at_least_one("d_model", d_model)?;
        let vocab = weight.len() / d_model;
        let whole = vocab.max(1) * d_model;
        ConfigError::check_equal("numbers of the LM head's matrix", whole, weight.len())?;
        Self::new(vocab, d_model, move |tokens: &[TokenId], rows: &mut [f32]| {
            for (&token, row) in tokens.iter().zip(rows.chunks_exact_mut(d_model)) {
                row.copy_from_slice(&weight[token as usize * d_model..][..d_model]);
            }
        })
    }

    /// Multiplies the matrix by `scale`, for a model that does so with its logits.
    pub fn with_scale(self, scale: f32) -> Self {
        let rows_of = self.rows_of;
        let scaled = move |tokens: &[TokenId], rows: &mut [f32]| {
            rows_of(tokens, rows);
            for number in rows {
                *number *= scale;
            }
        };
        Self { rows_of: Arc::new(scaled), ..self }
    }

    /// The rows of `tokens`, `[tokens, d_model]`.
    fn rows(&self, tokens: &[TokenId], device: &Device) -> Tensor<2> {
        let mut rows = vec![0.0; tokens.len() * self.d_model];
        (self.rows_of)(tokens, &mut rows);
        from_f32(rows, [tokens.len(), self.d_model], device)
    }
}

impl fmt::Debug for HeadRows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vocab, d_model, .. } = self;
        f.debug_struct("HeadRows")
            .field("vocab", vocab)
            .field("d_model", d_model)
            .finish_non_exhaustive()
    }
}

impl LmHead for HeadRows<'_> {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let tokens: Vec<TokenId> = (0..self.vocab as TokenId).collect();
        let blocks = tokens
            .chunks(BLOCK)
            .map(|tokens| times_transposed(hidden.clone(), &self.rows(tokens, &hidden.device())));
        Tensor::cat(blocks.collect(), 1)
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        let (device, dims) = (hidden.device(), tokens.dims());
        let Some(picked) = on_host(&tokens) else {
            // The device has failed, which the caller finds when it reads the result.
            return self.logits(hidden).gather(1, tokens);
        };
        let mut unique = picked.clone();
        unique.sort_unstable();
        unique.dedup();
        let places =
            picked.iter().map(|token| unique.partition_point(|other| other < token) as i32);
        let places = TensorData::new(places.collect::<Vec<_>>(), dims);
        let places = Tensor::<2, Int>::from_data(places, &device);
        times_rows_at(hidden, &self.rows(&unique, &device), &places)
    }

    fn product(&self, x: Tensor<2>, tokens: Option<Tensor<2, Int>>) -> Option<Tensor<2>> {
        Some(without_bias(self, x, tokens))
    }

    fn shape(&self) -> Option<[usize; 2]> {
        Some([self.d_model, self.vocab])
    }
}

/// Copies token ids from their device, if it has not failed.
fn on_host(tokens: &Tensor<2, Int>) -> Option<Vec<TokenId>> {
    let data = tokens.clone().try_into_data().ok()?.convert::<i64>();
    let tokens = data.try_into_vec::<i64>().ok()?;
    Some(tokens.into_iter().map(|token| token as TokenId).collect())
}

/// [`LmHead::product`] of a head without a bias: its logits.
pub(crate) fn without_bias(
    head: &impl LmHead,
    x: Tensor<2>,
    tokens: Option<Tensor<2, Int>>,
) -> Tensor<2> {
    match tokens {
        Some(tokens) => head.logits_at(x, tokens),
        None => head.logits(x),
    }
}

/// `hidden[row] · weight[tokens[row, i]]` for every row and `i`, with `weight` `[vocab, d_model]`.
fn rows_of(weight: Tensor<2>, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
    times_rows_at(in_dtype_of(hidden, weight.dtype()), &weight, &tokens)
}

pub(crate) fn in_dtype_of(hidden: Tensor<2>, dtype: DType) -> Tensor<2> {
    if hidden.dtype() == dtype { hidden } else { hidden.cast(dtype) }
}
