//! Tests the update rules against burn's optimizers, and the single pass on the host against the tensor operations.

use burn::{
    module::{Module, Param},
    optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig, momentum::MomentumConfig},
    tensor::{Device, TensorData},
};

use super::{
    adam::Adam,
    on_device::{apply as apply_on_device, apply_joined, clip},
    *,
};
use crate::golden::{assert_close, devices, values};
use crate::train::optimizer::{Schedule, UpdateRule};

#[derive(Module, Debug)]
struct One {
    weight: Param<Tensor<3>>,
}

fn wave(shape: [usize; 3], scale: f32, device: &Device) -> Tensor<3> {
    let numbers = (0..shape.iter().product()).map(|i: usize| (i as f32 * scale).sin());
    Tensor::from_data(TensorData::new(numbers.collect::<Vec<f32>>(), shape), device)
}

/// Compares with burn's optimizer over 12 updates with gradients of this test's own.
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

/// The first update of Adam from zero moments is `rate·g / (|g| + ε)` for any βs, and the step of an old slot needs no
/// bias correction.
#[test]
fn bias_correction_of_the_first_and_of_a_late_update() {
    let adam = Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-4, weight_decay: 0.1 };
    let close = |got: f64, expected: f64| {
        assert!((got - expected).abs() < 1e-6 * expected, "{got} instead of {expected}");
    };
    let first = adam.coefficients(0.02, 0);
    // m = (1 − β₁)·g and v = (1 − β₂)·g², so for g = 2 the change is rate·g / (|g| + ε).
    let [rest_1, rest_2] = [0.9f32, 0.999].map(|beta| 1.0 - f64::from(beta));
    let (m, root) = (rest_1 * 2.0, rest_2.sqrt() * 2.0);
    close(first.rate * m / (root + first.epsilon), 0.02 * 2.0 / (2.0 + 1e-4));
    close(first.epsilon / rest_2.sqrt(), f64::from(1e-4f32));
    let old = adam.coefficients(0.02, 1_000_000);
    close(old.rate, 0.02);
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

/// The single pass against the tensor operations: all rules, slots of different ages, with and without clipping.
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
            let schedule = Schedule::HalfLife { updates: 4 };
            let sgd = OptimizerConfig::sgd(0.05).with_schedule(schedule);
            let config = OptimizerConfig { rule, max_grad_norm, ..sgd };
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
                let done = if step < 3 { [step; 3] } else { [step, step + 9, 2 * step] };
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

/// A gradient in factors against the product of the factors: all rules, few and many rows, rows that cancel, and slots
/// of different ages. The norm of rows that cancel is tested in `host::gradient`.
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
                let config = OptimizerConfig { rule, max_grad_norm, ..OptimizerConfig::sgd(0.05) };
                let start = || vec![wave([3, 4, 37], 0.3, &device), wave([3, 1, 7], 0.8, &device)];
                let (mut fast, mut slow) = (start(), start());
                let fresh = || Moments::fresh(rule, &start());
                let (mut fast_moments, mut slow_moments) = (fresh(), fresh());
                for step in 0..6 {
                    let scale = 1.3 + step as f32;
                    let inputs = wave([3, rows, 4], scale, &device);
                    let upstream = wave([3, rows, 37], scale + 0.4, &device);
                    // The first half of the rows cancels almost entirely.
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
                    let b =
                        apply_on_device(&config, &done, &mut slow, &mut slow_moments, gradients);
                    assert_eq!(a.is_some(), b.is_some());
                    if let (Some(a), Some(b)) = (a, b) {
                        assert_close("norm", &values(a), &values(b), 1e-4);
                    }
                }
                let all = |m: &Moments| [m.first.clone(), m.second.clone()].concat();
                for (fast, slow) in all(&fast_moments).into_iter().zip(all(&slow_moments)) {
                    assert_close("moments", &values(fast), &values(slow), 1e-5);
                }
                // Where a gradient is almost 0, Adam amplifies its rounding error.
                for (fast, slow) in fast.iter().zip(&slow) {
                    assert_close("parameters", &values(fast.clone()), &values(slow.clone()), 2e-4);
                }
            }
        }
    }
}

/// With one tensor for the moments of all parameters, the numbers are those of one tensor per parameter.
#[test]
fn joined_moments_make_the_same_updates() {
    for device in devices() {
        let rules = [
            OptimizerConfig::paper().rule,
            OptimizerConfig::adam_w(1e-3).rule,
            UpdateRule::Momentum { momentum: 0.9 },
        ];
        for rule in rules {
            let config =
                OptimizerConfig { rule, max_grad_norm: Some(0.5), ..OptimizerConfig::sgd(0.1) };
            let shapes = [[2, 3, 8], [2, 1, 5], [2, 4, 4]];
            let of = |scale: f32| shapes.map(|shape| wave(shape, scale, &device)).to_vec();
            let (mut apart, mut joined) = (of(0.3), of(0.3));
            let mut moments = Moments::fresh(rule, &apart);
            let mut joined_moments = Moments::fresh(rule, &joined).joined();
            for done in [[0, 0], [1, 1], [2, 7]] {
                let gradients = of(1.1 + done[1] as f32);
                let some = gradients.iter().cloned().map(|g| Some(g.into())).collect();
                let norm = apply_on_device(&config, &done, &mut apart, &mut moments, some);
                let all = gradients.into_iter().map(Gradient::from).collect();
                let joined_norm =
                    apply_joined(&config, &done, &mut joined, &mut joined_moments, all);
                let norms = [norm, joined_norm].map(|norm| values(norm.unwrap()));
                assert_close("norms", &norms[0], &norms[1], 1e-5);
            }
            for (apart, joined) in apart.into_iter().zip(joined) {
                assert_close("parameters", &values(joined), &values(apart), 1e-6);
            }
        }
    }
}
