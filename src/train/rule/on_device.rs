//! The update rules as tensor operations: for any device, and the test oracle of the single pass on the host.

use burn::tensor::{Device, Tensor};

use super::{
    adam::Adam,
    moments::{Moments, join},
};
use crate::{
    distiller::Gradient,
    tensor::from_f32,
    train::optimizer::{OptimizerConfig, UpdateRule},
};

/// The same as [`apply`](super::apply), as tensor operations.
pub(super) fn apply(
    config: &OptimizerConfig,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Option<Gradient>>,
) -> Option<Tensor<3>> {
    // Tensor operations have no pass in which factors could be multiplied out element by element.
    let whole = |gradient: Option<Gradient>| gradient.map(Gradient::into_whole);
    let mut gradients: Vec<_> = gradients.into_iter().map(whole).collect();
    let norm = config.max_grad_norm.and_then(|max_norm| clip(&mut gradients, max_norm));
    let Some(device) = gradients.iter().flatten().next().map(|gradient| gradient.device()) else {
        return norm;
    };
    let update = Update::new(config, done, &device);
    for (at, (parameter, gradient)) in parameters.iter_mut().zip(gradients).enumerate() {
        if let Some(gradient) = gradient {
            let change = update.change(moments, at, gradient);
            update.subtract(parameter, change);
        }
    }
    norm
}

/// The same as [`apply`] with [joined](Moments::joined) moments: a launch of a kernel is for all parameters instead of
/// for one, except where the gradients are joined and the parameters changed.
pub(in crate::train) fn apply_joined(
    config: &OptimizerConfig,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Gradient>,
) -> Option<Tensor<3>> {
    let joined = join(gradients.into_iter().map(Gradient::into_whole).collect());
    let ([slots, _, count], device) = (joined.dims(), joined.device());
    // The norm is a sum over rows of up to 1024 numbers and a sum of these: one long sum would leave most of a GPU idle.
    let width = 1 << count.trailing_zeros().min(10);
    let mut gradient = [Some(joined.reshape([slots, count / width, width]))];
    let norm = config.max_grad_norm.and_then(|max_norm| clip(&mut gradient, max_norm));
    let update = Update::new(config, done, &device);
    for gradient in gradient.into_iter().flatten() {
        let change = update.change(moments, 0, gradient.reshape([slots, 1, count]));
        let mut start = 0;
        for parameter in parameters.iter_mut() {
            let dims = parameter.dims();
            let count = dims[1] * dims[2];
            update.subtract(parameter, change.clone().narrow(2, start, count).reshape(dims));
            start += count;
        }
    }
    norm
}

/// An update rule with the numbers that all parameters of a slot share.
struct Update {
    rule: UpdateRule,
    rate: PerSlot,
    epsilon: PerSlot,
    keep: Option<PerSlot>,
}

impl Update {
    fn new(config: &OptimizerConfig, done: &[u64], device: &Device) -> Self {
        let rate = |done: u64| config.learning_rate * config.schedule.factor(done);
        let per_slot = |value: &dyn Fn(u64) -> f64| PerSlot::new(done, value, device);
        let rule = config.rule;
        let Some(adam) = Adam::of(rule) else {
            return Self { rule, rate: per_slot(&rate), epsilon: PerSlot::Same(0.0), keep: None };
        };
        let of = |done: u64| adam.coefficients(rate(done), done);
        // Without decay every factor is 1, but slots with different numbers of updates would still multiply by it: one
        // more pass over each parameter.
        let keep = (adam.weight_decay > 0.0).then(|| per_slot(&|done| of(done).keep));
        let (rate, epsilon) = (per_slot(&|done| of(done).rate), per_slot(&|done| of(done).epsilon));
        Self { rule, rate, epsilon, keep }
    }

    /// Updates the moments at `at` and returns what is to be subtracted from the parameter.
    fn change(&self, moments: &mut Moments, at: usize, gradient: Tensor<3>) -> Tensor<3> {
        let change = match self.rule {
            UpdateRule::Sgd => gradient,
            UpdateRule::Momentum { momentum } => {
                let velocity = &mut moments.first[at];
                velocity.inplace(|v| v.mul_scalar(momentum) + gradient);
                velocity.clone()
            }
            UpdateRule::Adam { beta_1, beta_2, .. } | UpdateRule::AdamW { beta_1, beta_2, .. } => {
                let (first, second) = (&mut moments.first[at], &mut moments.second[at]);
                let new = gradient.clone().mul_scalar(1.0 - beta_1);
                first.inplace(|m| m.mul_scalar(beta_1) + new);
                let new = gradient.square().mul_scalar(1.0 - beta_2);
                second.inplace(|v| v.mul_scalar(beta_2) + new);
                first.clone() / self.epsilon.plus(second.clone().sqrt())
            }
        };
        self.rate.times(change)
    }

    fn subtract(&self, parameter: &mut Tensor<3>, change: Tensor<3>) {
        parameter.inplace(|p| {
            let p = match &self.keep {
                Some(keep) => keep.times(p),
                None => p,
            };
            p - change
        });
    }
}

/// One number per slot. Usually all slots have had the same number of updates; then it is a single scalar and needs no
/// upload.
enum PerSlot {
    Same(f64),
    Each(Box<Tensor<3>>),
}

impl PerSlot {
    fn new(done: &[u64], value: &dyn Fn(u64) -> f64, device: &Device) -> Self {
        let first = done.first().copied().unwrap_or_default();
        if done.iter().all(|&done| done == first) {
            return Self::Same(value(first));
        }
        // Computed in f64: Adam's corrections `1 − βᵗ` are small differences at first.
        let values: Vec<f32> = done.iter().map(|&done| value(done) as f32).collect();
        Self::Each(Box::new(from_f32(values, [done.len(), 1, 1], device)))
    }

    fn times(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Same(value) if *value == 1.0 => x,
            Self::Same(value) => x.mul_scalar(*value),
            Self::Each(values) => x * (**values).clone(),
        }
    }

    fn plus(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Same(value) => x.add_scalar(*value),
            Self::Each(values) => x + (**values).clone(),
        }
    }
}

/// Scales each slot's gradient so that its norm over all parameters is at most `max_norm`.
///
/// burn clips each tensor separately, which changes the direction of the gradient; this does not. The factor stays on
/// the device.
pub(super) fn clip(gradients: &mut [Option<Tensor<3>>], max_norm: f32) -> Option<Tensor<3>> {
    let squares = gradients.iter().flatten().map(|gradient| {
        let rows = gradient.clone().square().sum_dim(2);
        if rows.dims()[1] == 1 { rows } else { rows.sum_dim(1) }
    });
    let norm = squares.reduce(|sum, square| sum + square)?.sqrt();
    // Reading the norm back to decide whether to clip would make the host wait for the device.
    let factor = norm.clone().add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0);
    for gradient in gradients.iter_mut().flatten() {
        gradient.inplace(|g| g * factor.clone());
    }
    Some(norm)
}
