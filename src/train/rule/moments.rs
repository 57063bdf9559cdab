//! What an optimizer remembers.

use burn::tensor::Tensor;

use crate::train::optimizer::UpdateRule;

/// What an optimizer remembers between updates: for each parameter a tensor of its shape, where the rule needs one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moments {
    /// Velocity, or mean of the gradient.
    pub(crate) first: Vec<Tensor<3>>,
    /// Mean of the gradient's square.
    pub(crate) second: Vec<Tensor<3>>,
}

impl Moments {
    /// Nothing seen yet, for parameters of these shapes.
    pub(crate) fn fresh(rule: UpdateRule, parameters: &[Tensor<3>]) -> Self {
        let zeros = |wanted: bool| {
            if wanted { parameters.iter().map(Tensor::zeros_like).collect() } else { Vec::new() }
        };
        let (first, second) = match rule {
            UpdateRule::Sgd => (false, false),
            UpdateRule::Momentum { .. } => (true, false),
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => (true, true),
        };
        Self { first: zeros(first), second: zeros(second) }
    }

    /// Bytes of all of it.
    pub(crate) fn bytes(&self) -> usize {
        bytes(self.first.iter().chain(&self.second))
    }

    /// The same change to every tensor.
    pub(crate) fn map(self, change: impl Fn(Tensor<3>) -> Tensor<3>) -> Self {
        let all = |tensors: Vec<Tensor<3>>| tensors.into_iter().map(&change).collect();
        Self { first: all(self.first), second: all(self.second) }
    }

    /// Tensor by tensor with those of another.
    pub(crate) fn zip(self, other: Self, join: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3>) -> Self {
        let all = |mine: Vec<Tensor<3>>, theirs: Vec<Tensor<3>>| {
            mine.into_iter().zip(theirs).map(|(a, b)| join(a, b)).collect()
        };
        Self { first: all(self.first, other.first), second: all(self.second, other.second) }
    }
}

/// Bytes of the values of these tensors.
pub(crate) fn bytes<'a>(tensors: impl IntoIterator<Item = &'a Tensor<3>>) -> usize {
    tensors.into_iter().map(|t| t.dims().iter().product::<usize>() * t.dtype().size()).sum()
}
