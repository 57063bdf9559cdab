//! The update rules over the parameters of many slots at once.

#[cfg(feature = "flex")]
mod host;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{OptimizerConfig, UpdateRule, slots::bytes};
use crate::distiller::Gradient;

/// What an optimizer remembers between updates: for each parameter a tensor of its shape, where the rule needs one.
#[derive(Clone, Debug, Default)]
pub(super) struct Moments {
    /// Velocity, or mean of the gradient.
    pub(super) first: Vec<Tensor<3>>,
    /// Mean of the gradient's square.
    pub(super) second: Vec<Tensor<3>>,
}

impl Moments {
    /// Nothing seen yet, for parameters of these shapes.
    pub(super) fn fresh(rule: UpdateRule, parameters: &[Tensor<3>]) -> Self {
        let zeros = |wanted: bool| match wanted {
            true => parameters.iter().map(Tensor::zeros_like).collect(),
            false => Vec::new(),
        };
        let (first, second) = match rule {
            UpdateRule::Sgd => (false, false),
            UpdateRule::Momentum { .. } => (true, false),
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => (true, true),
        };
        Self { first: zeros(first), second: zeros(second) }
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> usize {
        bytes(self.first.iter().chain(&self.second))
    }

    /// The same change to every tensor.
    pub(super) fn map(self, change: impl Fn(Tensor<3>) -> Tensor<3>) -> Self {
        let all = |tensors: Vec<Tensor<3>>| tensors.into_iter().map(&change).collect();
        Self { first: all(self.first), second: all(self.second) }
    }

    /// Tensor by tensor with those of another.
    pub(super) fn zip(self, other: Self, join: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3>) -> Self {
        let all = |mine: Vec<Tensor<3>>, theirs: Vec<Tensor<3>>| {
            mine.into_iter().zip(theirs).map(|(a, b)| join(a, b)).collect()
        };
        Self { first: all(self.first, other.first), second: all(self.second, other.second) }
    }
}

/// One update of every slot, in place where nothing else holds the tensors. `done` is the number of updates that each
/// slot has had. A parameter without a gradient is left alone. Gives the norm of each slot's gradient before clipping,
/// `[slots, 1, 1]`, where it is clipped.
///
/// All tensors are `[slots, a, b]`. Nothing is read back from the device, except from one whose memory is the host's (flex):
/// there, one pass over memory takes the place of some fourteen.
pub(super) fn apply(
    config: &OptimizerConfig,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Option<Gradient>>,
) -> Option<Tensor<3>> {
    #[cfg(feature = "flex")]
    if let Some(device) = gradients.iter().flatten().next().map(Gradient::device)
        && device == Device::flex()
    {
        return host::apply(config, done, parameters, moments, gradients, &device);
    }
    apply_on_device(config, done, parameters, moments, gradients)
}

/// [`apply`] as tensor operations: on any device, and the oracle of the one pass.
fn apply_on_device(
    config: &OptimizerConfig,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Option<Gradient>>,
) -> Option<Tensor<3>> {
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
                adam.apply(&rate, done, parameters, moments, gradients, &device);
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

/// Adam and AdamW, of which the first is the second without decay.
///
/// `p ← p·(1 − rate·decay) − rate·m̂ / (√v̂ + ε)`, with `m̂ = m / (1 − β₁ᵗ)` and `v̂ = v / (1 − β₂ᵗ)`.
struct Adam {
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    weight_decay: f32,
}

/// What of [`Adam`] depends on how many updates a slot has had. Both corrections are numbers of a slot, so they are taken
/// into the rate and into ε instead of being applied to every element of `m` and `v`: `√v̂ + ε = (√v + ε·c) / c` with
/// `c = √(1 − β₂ᵗ)`.
struct AdamStep {
    /// Factor on `m / (√v + epsilon)`.
    step: f64,
    epsilon: f64,
    /// Factor on the parameter before the change.
    keep: f64,
}

impl Adam {
    /// The rule's numbers, if it is one of the two.
    fn of(rule: UpdateRule) -> Option<Self> {
        match rule {
            UpdateRule::Adam { beta_1, beta_2, epsilon } => {
                Some(Self { beta_1, beta_2, epsilon, weight_decay: 0.0 })
            }
            UpdateRule::AdamW { beta_1, beta_2, epsilon, weight_decay } => {
                Some(Self { beta_1, beta_2, epsilon, weight_decay })
            }
            UpdateRule::Sgd | UpdateRule::Momentum { .. } => None,
        }
    }

    /// Of the update that follows `done` others, at a learning rate.
    fn step(&self, rate: f64, done: u64) -> AdamStep {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(done as f64 + 1.0);
        let c = correction(self.beta_2).sqrt();
        AdamStep {
            step: rate * c / correction(self.beta_1),
            epsilon: f64::from(self.epsilon) * c,
            keep: 1.0 - rate * f64::from(self.weight_decay),
        }
    }

    fn apply(
        &self,
        rate: &dyn Fn(u64) -> f64,
        done: &[u64],
        parameters: &mut [Tensor<3>],
        moments: &mut Moments,
        gradients: Vec<Option<Tensor<3>>>,
        device: &Device,
    ) {
        let per_slot = |number: &dyn Fn(AdamStep) -> f64| {
            PerSlot::new(done, &|done| number(self.step(rate(done), done)), device)
        };
        let (step, epsilon) = (per_slot(&|of| of.step), per_slot(&|of| of.epsilon));
        let keep = (self.weight_decay > 0.0).then(|| per_slot(&|of| of.keep));
        let states = moments.first.iter_mut().zip(&mut moments.second);
        for ((parameter, (first, second)), gradient) in
            parameters.iter_mut().zip(states).zip(gradients)
        {
            let Some(gradient) = gradient else {
                continue;
            };
            let new = gradient.clone().mul_scalar(1.0 - self.beta_1);
            first.inplace(|m| m.mul_scalar(self.beta_1) + new);
            let new = gradient.square().mul_scalar(1.0 - self.beta_2);
            second.inplace(|v| v.mul_scalar(self.beta_2) + new);
            let change = first.clone() / epsilon.plus(second.clone().sqrt());
            parameter.inplace(|p| {
                let p = match &keep {
                    Some(keep) => keep.times(p),
                    None => p,
                };
                p - step.times(change)
            });
        }
    }
}

/// A number for each slot. Where all slots have had as many updates, which is the rule, it is one number and costs no
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
        let values: Vec<f32> = done.iter().map(|&done| value(done) as f32).collect();
        let values = TensorData::new(values, [done.len(), 1, 1]);
        Self::Each(Box::new(Tensor::from_data(values, (device, DType::F32))))
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
/// burn clips tensor by tensor, which changes the gradient's direction; this does not. The factor stays on the device.
fn clip(gradients: &mut [Option<Tensor<3>>], max_norm: f32) -> Option<Tensor<3>> {
    let squares = gradients.iter().flatten().map(|g| g.clone().square().sum_dim(2).sum_dim(1));
    let norm = squares.reduce(|sum, square| sum + square)?.sqrt();
    let factor = norm.clone().add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0);
    for gradient in gradients.iter_mut().flatten() {
        gradient.inplace(|g| g * factor.clone());
    }
    Some(norm)
}

#[cfg(test)]
mod tests {
    use burn::{
        module::{Module, Param},
        optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig, momentum::MomentumConfig},
    };

    use super::*;
    use crate::golden::{assert_close, devices, values};
    use crate::train::Schedule;

    #[derive(Module, Debug)]
    struct One {
        weight: Param<Tensor<3>>,
    }

    fn wave(shape: [usize; 3], scale: f32, device: &Device) -> Tensor<3> {
        let numbers = (0..shape.iter().product()).map(|i: usize| (i as f32 * scale).sin());
        Tensor::from_data(TensorData::new(numbers.collect::<Vec<f32>>(), shape), device)
    }

    /// burn's optimizer as the oracle: 12 updates with gradients of its own choice.
    fn equals_burn(rule: UpdateRule, mut burns: ModuleOptimizer) {
        for device in devices() {
            let start = wave([1, 5, 7], 0.37, &device);
            let config = OptimizerConfig { rule, ..OptimizerConfig::sgd(0.05) };
            let mut parameters = vec![start.clone()];
            let mut moments = Moments::fresh(rule, &parameters);
            let mut module = One { weight: Param::from_tensor(start) }.train();
            for done in 0..12 {
                let scale = 0.11 + done as f32;
                let gradient = wave([1, 5, 7], scale, &device);
                apply(
                    &config,
                    &[done],
                    &mut parameters,
                    &mut moments,
                    vec![Some(gradient.clone().into())],
                );
                let loss = (module.weight.val() * gradient.autodiff()).sum();
                let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &module);
                module = burns.step(0.05, module, gradients);
            }
            let got = values(parameters.remove(0));
            assert_close("parameters", &got, &values(module.weight.val().inner()), 1e-6);
        }
    }

    #[test]
    fn the_rules_are_those_of_burn() {
        equals_burn(UpdateRule::Sgd, SgdConfig::new().init());
        let momentum = MomentumConfig { momentum: 0.8, dampening: 0.0, nesterov: false };
        equals_burn(
            UpdateRule::Momentum { momentum: 0.8 },
            SgdConfig::new().with_momentum(Some(momentum)).init(),
        );
        let (beta_1, beta_2, epsilon) = (0.7, 0.95, 1e-4);
        let adam = AdamConfig::new().with_beta_1(beta_1).with_beta_2(beta_2).with_epsilon(epsilon);
        equals_burn(UpdateRule::Adam { beta_1, beta_2, epsilon }, adam.init());
        let weight_decay = 0.3;
        let adam_w = AdamWConfig::new()
            .with_beta_1(beta_1)
            .with_beta_2(beta_2)
            .with_epsilon(epsilon)
            .with_weight_decay(weight_decay);
        equals_burn(UpdateRule::AdamW { beta_1, beta_2, epsilon, weight_decay }, adam_w.init());
    }

    /// The first update of Adam from fresh moments is `rate·g / (|g| + ε)`, whatever the βs, and the step of an old slot needs
    /// no correction.
    #[test]
    fn what_depends_on_the_number_of_updates_is_said_once() {
        let adam = Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-4, weight_decay: 0.1 };
        let close = |got: f64, expected: f64| {
            assert!((got - expected).abs() < 1e-6 * expected, "{got} instead of {expected}");
        };
        let first = adam.step(0.02, 0);
        // m = (1 − β₁)·g and v = (1 − β₂)·g², so for g = 2 the change is rate·g / (|g| + ε).
        let [rest_1, rest_2] = [0.9f32, 0.999].map(|beta| 1.0 - f64::from(beta));
        let (m, root) = (rest_1 * 2.0, rest_2.sqrt() * 2.0);
        close(first.step * m / (root + first.epsilon), 0.02 * 2.0 / (2.0 + 1e-4));
        close(first.epsilon / rest_2.sqrt(), f64::from(1e-4f32));
        let old = adam.step(0.02, 1_000_000);
        close(old.step, 0.02);
        close(old.epsilon, f64::from(1e-4f32));
        close(old.keep, 1.0 - 0.02 * f64::from(0.1f32));
        assert_eq!(first.keep, old.keep);
    }

    #[test]
    fn slots_of_different_age_are_updated_as_each_would_be_alone() {
        for device in devices() {
            let rules = [
                OptimizerConfig::paper().rule,
                OptimizerConfig::adam_w(1e-3).rule,
                UpdateRule::Momentum { momentum: 0.9 },
                UpdateRule::Sgd,
            ];
            for rule in rules {
                let config = OptimizerConfig {
                    rule,
                    schedule: Schedule::HalfLife { updates: 3 },
                    max_grad_norm: Some(0.5),
                    ..OptimizerConfig::sgd(0.1)
                };
                let run = |slots: &[usize], done: &[u64]| {
                    let pick = |scale| {
                        let all = wave([3, 4, 2], scale, &device);
                        let picked = slots.iter().map(|&s| all.clone().narrow(0, s, 1)).collect();
                        Tensor::cat(picked, 0)
                    };
                    let mut parameters = vec![pick(0.3), pick(0.7)];
                    let mut moments = Moments::fresh(rule, &parameters)
                        .zip(Moments::fresh(rule, &parameters), |a, _| a.add_scalar(0.1));
                    let gradients = vec![Some(pick(1.1).into()), Some(pick(1.9).into())];
                    apply(&config, done, &mut parameters, &mut moments, gradients);
                    parameters.into_iter().map(values).collect::<Vec<_>>()
                };
                let ages = [0, 5, 40];
                let together = run(&[0, 1, 2], &ages);
                for slot in 0..3 {
                    let alone = run(&[slot], &[ages[slot]]);
                    for (together, alone) in together.iter().zip(&alone) {
                        assert_close("slot", &together[slot * 8..][..8], alone, 1e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn a_gradient_is_clipped_by_the_norm_over_all_parameters_of_its_slot() {
        let device = Device::flex();
        let tensor = |values: [f32; 2]| {
            Some(Tensor::from_data(TensorData::new(values.to_vec(), [2, 1, 1]), &device))
        };
        // Slot 0 has the gradient (3, 4) of norm 5; slot 1 has (0.3, 0.4) of norm 0.5.
        let mut gradients = vec![tensor([3.0, 0.3]), None, tensor([4.0, 0.4])];
        let norm = clip(&mut gradients, 1.0).unwrap();
        assert_close("norm", &values(norm), &[5.0, 0.5], 1e-6);
        let got: Vec<Vec<f32>> = gradients.into_iter().flatten().map(values).collect();
        assert_close("first", &got[0], &[0.6, 0.3], 1e-5);
        assert_close("second", &got[1], &[0.8, 0.4], 1e-5);
        assert!(clip(&mut [None], 1.0).is_none());
    }

    #[test]
    fn a_parameter_without_a_gradient_stays() {
        let device = Device::flex();
        let config = OptimizerConfig::adam_w(1e-3);
        let mut parameters = vec![wave([1, 2, 2], 0.5, &device), wave([1, 1, 3], 0.5, &device)];
        let before = values(parameters[0].clone());
        let mut moments = Moments::fresh(config.rule, &parameters);
        let gradients = vec![None, Some(wave([1, 1, 3], 1.0, &device).into())];
        apply(&config, &[0], &mut parameters, &mut moments, gradients);
        assert_eq!(values(parameters[0].clone()), before, "no weight decay either");
        assert_ne!(values(parameters[1].clone()), values(wave([1, 1, 3], 0.5, &device)));
    }

    /// The one pass against the tensor operations: all rules, slots of different ages, with and without clipping.
    #[cfg(feature = "flex")]
    #[test]
    fn one_pass_is_the_tensor_operations() {
        let device = Device::flex();
        for rule in [
            OptimizerConfig::paper().rule,
            OptimizerConfig::adam_w(1e-3).rule,
            UpdateRule::Momentum { momentum: 0.9 },
            UpdateRule::Sgd,
        ] {
            for max_grad_norm in [None, Some(0.3), Some(1e3)] {
                let config = OptimizerConfig { rule, max_grad_norm, ..OptimizerConfig::sgd(0.05) };
                let start = || vec![wave([3, 4, 2], 0.3, &device), wave([3, 1, 7], 0.8, &device)];
                let (mut fast, mut slow) = (start(), start());
                let mut moments = [Moments::fresh(rule, &fast), Moments::fresh(rule, &slow)];
                let [fast_moments, slow_moments] = &mut moments;
                for step in 0..6 {
                    let gradients = || {
                        let scale = 1.3 + step as f32;
                        vec![
                            Some(wave([3, 4, 2], scale, &device).into()),
                            (step != 2).then(|| wave([3, 1, 7], scale, &device).into()),
                        ]
                    };
                    let done = [step, step + 9, 2 * step];
                    let a = apply(&config, &done, &mut fast, fast_moments, gradients());
                    let b = apply_on_device(&config, &done, &mut slow, slow_moments, gradients());
                    assert_eq!(a.is_some(), b.is_some());
                    if let (Some(a), Some(b)) = (a, b) {
                        assert_close("norm", &values(a), &values(b), 1e-6);
                    }
                }
                for (fast, slow) in fast.iter().zip(&slow) {
                    assert_close("parameters", &values(fast.clone()), &values(slow.clone()), 1e-6);
                }
                let all = |m: &Moments| [m.first.clone(), m.second.clone()].concat();
                for (fast, slow) in all(fast_moments).into_iter().zip(all(slow_moments)) {
                    assert_close("moments", &values(fast), &values(slow), 1e-6);
                }
            }
        }
    }

    /// A gradient in factors against the product that it stands for: all rules, few rows and many, rows that cancel, slots of
    /// different ages. What norms make of rows that cancel is tested where they are taken.
    #[test]
    fn factors_are_their_product() {
        for device in devices() {
            for rule in [
                OptimizerConfig::paper().rule,
                OptimizerConfig::adam_w(1e-3).rule,
                UpdateRule::Momentum { momentum: 0.9 },
                UpdateRule::Sgd,
            ] {
                for (rows, max_grad_norm) in
                    [(1, None), (3, Some(0.3)), (4, Some(1e3)), (9, Some(0.3)), (70, Some(0.3))]
                {
                    let config =
                        OptimizerConfig { rule, max_grad_norm, ..OptimizerConfig::sgd(0.05) };
                    let start =
                        || vec![wave([3, 4, 37], 0.3, &device), wave([3, 1, 7], 0.8, &device)];
                    let (mut fast, mut slow) = (start(), start());
                    let fresh = || Moments::fresh(rule, &start());
                    let (mut fast_moments, mut slow_moments) = (fresh(), fresh());
                    for step in 0..6 {
                        let scale = 1.3 + step as f32;
                        let inputs = wave([3, rows, 4], scale, &device);
                        let upstream = wave([3, rows, 37], scale + 0.4, &device);
                        // All but nothing is left of the first half of the rows.
                        let (inputs, upstream) = match step {
                            4 => (
                                Tensor::cat(vec![inputs.clone(), inputs], 1),
                                Tensor::cat(vec![upstream.clone(), upstream.mul_scalar(-0.999)], 1),
                            ),
                            _ => (inputs, upstream),
                        };
                        let factors = Gradient::Product { inputs, upstream };
                        let vector: Gradient = wave([3, 1, 7], scale, &device).into();
                        let done = [step, step + 9, 2 * step];
                        let whole = factors.clone().into_whole();
                        let gradients = vec![Some(factors), Some(vector.clone())];
                        let a = apply(&config, &done, &mut fast, &mut fast_moments, gradients);
                        let gradients = vec![Some(whole.into()), Some(vector)];
                        let b = apply_on_device(
                            &config,
                            &done,
                            &mut slow,
                            &mut slow_moments,
                            gradients,
                        );
                        assert_eq!(a.is_some(), b.is_some());
                        if let (Some(a), Some(b)) = (a, b) {
                            assert_close("norm", &values(a), &values(b), 1e-4);
                        }
                    }
                    let all = |m: &Moments| [m.first.clone(), m.second.clone()].concat();
                    for (fast, slow) in all(&fast_moments).into_iter().zip(all(&slow_moments)) {
                        assert_close("moments", &values(fast), &values(slow), 1e-5);
                    }
                    // Where a gradient is next to nothing, Adam makes much of its rounding.
                    for (fast, slow) in fast.iter().zip(&slow) {
                        assert_close(
                            "parameters",
                            &values(fast.clone()),
                            &values(slow.clone()),
                            2e-4,
                        );
                    }
                }
            }
        }
    }
}
