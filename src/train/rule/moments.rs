//! The moments that an optimizer keeps.

use burn::tensor::Tensor;

use crate::train::optimizer::UpdateRule;

/// The state of an optimizer between updates: for each parameter a tensor of its shape, if the rule needs one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moments {
    /// The velocity, or the mean of the gradient.
    pub(crate) first: Vec<Tensor<3>>,
    /// The mean of the squared gradient.
    pub(crate) second: Vec<Tensor<3>>,
}

impl Moments {
    /// Zero moments for parameters of these shapes.
    pub(crate) fn fresh(rule: UpdateRule, parameters: &[Tensor<3>]) -> Self {
        let zeros = |wanted: bool| {
            if wanted { parameters.iter().map(Tensor::zeros_like).collect() } else { Vec::new() }
        };
        let count = Self::per_parameter(rule);
        Self { first: zeros(count >= 1), second: zeros(count >= 2) }
    }

    /// The same with all parameters in one tensor, `[slots, 1, n]`, if the rule keeps moments: for
    /// [`apply_joined`](super::apply_joined).
    pub(crate) fn joined(self) -> Self {
        let all = |tensors: Vec<Tensor<3>>| {
            if tensors.is_empty() { tensors } else { vec![join(tensors)] }
        };
        Self { first: all(self.first), second: all(self.second) }
    }

    /// How many moments a rule keeps of each parameter.
    pub(crate) fn per_parameter(rule: UpdateRule) -> usize {
        match rule {
            UpdateRule::Sgd => 0,
            UpdateRule::Momentum { .. } => 1,
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => 2,
        }
    }

    /// The size of all moments in bytes.
    pub(crate) fn bytes(&self) -> usize {
        bytes(self.first.iter().chain(&self.second))
    }

    /// Applies the same change to every tensor.
    pub(crate) fn map(self, change: impl Fn(Tensor<3>) -> Tensor<3>) -> Self {
        let all = |tensors: Vec<Tensor<3>>| tensors.into_iter().map(&change).collect();
        Self { first: all(self.first), second: all(self.second) }
    }

    /// Combines each tensor with the matching one of `other`.
    pub(crate) fn zip(self, other: Self, join: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3>) -> Self {
        let all = |mine: Vec<Tensor<3>>, theirs: Vec<Tensor<3>>| {
            mine.into_iter().zip(theirs).map(|(a, b)| join(a, b)).collect()
        };
        Self { first: all(self.first, other.first), second: all(self.second, other.second) }
    }
}

/// Joins `[slots, a, b]` of each parameter to one `[slots, 1, n]`.
pub(super) fn join(parameters: Vec<Tensor<3>>) -> Tensor<3> {
    let flat = parameters.into_iter().map(|parameter| {
        let [slots, a, b] = parameter.dims();
        parameter.reshape([slots, 1, a * b])
    });
    Tensor::cat(flat.collect(), 2)
}

/// The size of the values of these tensors in bytes.
pub(crate) fn bytes<'a>(tensors: impl IntoIterator<Item = &'a Tensor<3>>) -> usize {
    tensors.into_iter().map(|t| t.dims().iter().product::<usize>() * t.dtype().size()).sum()
}
