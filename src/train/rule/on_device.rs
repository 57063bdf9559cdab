//! The update rules as tensor operations: for any device, and the test oracle of the single pass on the host.

use burn::tensor::{Device, Tensor};

use super::{
    adam::{Adam, Coefficients},
    moments::Moments,
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
    let rate = |done: u64| config.learning_rate * config.schedule.factor(done);
    let Some(device) = gradients.iter().flatten().next().map(|gradient| gradient.device()) else {
        return norm;
    };
    let per_slot = |value: &dyn Fn(u64) -> f64| PerSlot::new(done, value, &device);
    match config.rule {
        UpdateRule::Sgd => {
            let rate = per_slot(&rate);
            for (parameter, gradient) in with_gradient(parameters, gradients) {
                parameter.inplace(|p| p - rate.times(gradient));
            }
        }
        UpdateRule::Momentum { momentum } => {
            let rate = per_slot(&rate);
            for ((parameter, velocity), gradient) in
                parameters.iter_mut().zip(&mut moments.first).zip(gradients)
            {
                if let Some(gradient) = gradient {
                    velocity.inplace(|v| v.mul_scalar(momentum) + gradient);
                    parameter.inplace(|p| p - rate.times(velocity.clone()));
                }
            }
        }
        UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => {
            if let Some(adam) = Adam::of(config.rule) {
                apply_adam(&adam, &rate, done, parameters, moments, gradients, &device);
            }
        }
    }
    norm
}

fn with_gradient(
    parameters: &mut [Tensor<3>],
    gradients: Vec<Option<Tensor<3>>>,
) -> impl Iterator<Item = (&mut Tensor<3>, Tensor<3>)> {
    parameters.iter_mut().zip(gradients).filter_map(|(parameter, g)| Some((parameter, g?)))
}

fn apply_adam(
    adam: &Adam,
    rate: &dyn Fn(u64) -> f64,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Option<Tensor<3>>>,
    device: &Device,
) {
    let per_slot = |number: &dyn Fn(Coefficients) -> f64| {
        PerSlot::new(done, &|done| number(adam.coefficients(rate(done), done)), device)
    };
    let (rate, epsilon) = (per_slot(&|of| of.rate), per_slot(&|of| of.epsilon));
    // Without decay every factor is 1, but slots with different numbers of updates would still multiply by it: one
    // more pass over each parameter.
    let keep = (adam.weight_decay > 0.0).then(|| per_slot(&|of| of.keep));
    let states = moments.first.iter_mut().zip(&mut moments.second);
    for ((parameter, (first, second)), gradient) in parameters.iter_mut().zip(states).zip(gradients)
    {
        let Some(gradient) = gradient else {
            continue;
        };
        let new = gradient.clone().mul_scalar(1.0 - adam.beta_1);
        first.inplace(|m| m.mul_scalar(adam.beta_1) + new);
        let new = gradient.square().mul_scalar(1.0 - adam.beta_2);
        second.inplace(|v| v.mul_scalar(adam.beta_2) + new);
        let change = first.clone() / epsilon.plus(second.clone().sqrt());
        parameter.inplace(|p| {
            let p = match &keep {
                Some(keep) => keep.times(p),
                None => p,
            };
            p - rate.times(change)
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
    let squares = gradients.iter().flatten().map(|g| g.clone().square().sum_dim(2).sum_dim(1));
    let norm = squares.reduce(|sum, square| sum + square)?.sqrt();
    // Reading the norm back to decide whether to clip would make the host wait for the device.
    let factor = norm.clone().add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0);
    for gradient in gradients.iter_mut().flatten() {
        gradient.inplace(|g| g * factor.clone());
    }
    Some(norm)
}
