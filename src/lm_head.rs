//! LM heads: from hidden states to logits.

use burn::{
    nn::Linear,
    tensor::{DType, Device, Int, Tensor},
};

use crate::host::{times_rows_at, times_transposed};

/// The LM head of a language model: maps a hidden state to one logit per token.
///
/// The sampler applies the model's own head to the state the distiller expects, so that both distributions come from
/// the same head, including soft-caps, biases, scales and quantisation. Implemented for burn's [`Linear`], for
/// [`TiedHead`] and for closures:
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
        rows_of(self.weight.val().transpose(), bias, hidden, tokens)
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
        rows_of(self.weight.clone(), None, hidden, tokens)
    }

    fn shape(&self) -> Option<[usize; 2]> {
        let [vocab, d_model] = self.weight.dims();
        Some([d_model, vocab])
    }

    fn device(&self) -> Option<Device> {
        Some(self.weight.device().inner())
    }
}

/// `hidden[row] · weight[tokens[row, i]]` for every row and `i`, with `weight` `[vocab, d_model]`.
fn rows_of(
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    hidden: Tensor<2>,
    tokens: Tensor<2, Int>,
) -> Tensor<2> {
    let [rows, candidates] = tokens.dims();
    let logits = times_rows_at(in_dtype_of(hidden, weight.dtype()), &weight, &tokens);
    match bias {
        Some(bias) => {
            let flat = tokens.reshape([rows * candidates]);
            logits + bias.select(0, flat).reshape([rows, candidates])
        }
        None => logits,
    }
}

fn in_dtype_of(hidden: Tensor<2>, dtype: DType) -> Tensor<2> {
    if hidden.dtype() == dtype { hidden } else { hidden.cast(dtype) }
}
