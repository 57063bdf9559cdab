//! The update rules in one pass over memory, for a device that computes in host memory.
//!
//! With tensor operations, an Adam update reads and writes each parameter value about fourteen times; here it does so
//! once. For networks this small, that is most of the cost of an update.

mod gradient;
mod memory;

use burn::tensor::{Device, Tensor};
use gradient::{HostGradient, NUMBERS_OF_A_THREAD, SlotGradient};
use memory::in_place;

use super::{
    adam::{Adam, Coefficients},
    moments::Moments,
};
use crate::{
    distiller::Gradient,
    host::{share_each, vectorised},
    tensor::from_f32,
    train::optimizer::{OptimizerConfig, UpdateRule},
};

/// The same as [`apply`](super::apply), on slices.
pub(super) fn apply(
    config: &OptimizerConfig,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Option<Gradient>>,
    device: &Device,
) -> Option<Tensor<3>> {
    let gradients: Vec<Option<HostGradient>> =
        gradients.into_iter().map(|gradient| gradient.map(HostGradient::new)).collect();
    let slots = done.len();
    // Clipping scales by the norm over all parameters, so every gradient is read before the first parameter changes.
    let norms = config.max_grad_norm.map(|_| norms(&gradients, slots));
    let kernels: Vec<Kernel> = (0..slots)
        .map(|slot| {
            let clip = match (config.max_grad_norm, &norms) {
                // 1e-6 prevents a division by 0. PyTorch's `clip_grad_norm_` adds the same.
                (Some(max_norm), Some(norms)) => (max_norm / (norms[slot] + 1e-6)).min(1.0),
                _ => 1.0,
            };
            Kernel::new(config, done[slot], clip)
        })
        .collect();
    for (at, gradient) in gradients.iter().enumerate() {
        let Some(g) = gradient else {
            continue;
        };
        // The moments are unpacked inside, so that one pass changes all of them: with few rows, an update is limited
        // by memory bandwidth (docs/design/bank.md).
        in_place(&mut parameters[at], |p| match config.rule {
            UpdateRule::Sgd => each_slot(&kernels, g, [p], Kernel::sgd),
            UpdateRule::Momentum { .. } => in_place(&mut moments.first[at], |v| {
                each_slot(&kernels, g, [p, v], Kernel::momentum);
            }),
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => {
                let (first, second) = (&mut moments.first[at], &mut moments.second[at]);
                in_place(first, |m| {
                    in_place(second, |v| each_slot(&kernels, g, [p, m, v], Kernel::adam));
                });
            }
        });
    }
    norms.map(|norms| from_f32(norms, [slots, 1, 1], device))
}

/// Applies one rule to the values of all slots, each with its own kernel.
fn each_slot<const K: usize>(
    kernels: &[Kernel],
    gradient: &HostGradient,
    mut numbers: [&mut [f32]; K],
    rule: impl Fn(&Kernel, [&mut [f32]; K], &[f32]) + Sync,
) {
    for (slot, kernel) in kernels.iter().enumerate() {
        let gradient = gradient.of(slot, kernels.len());
        // Slots differ in their number of updates and in their clipping factor, so each has its own pass. Within one,
        // all coefficients are constants.
        let width = gradient.len();
        let numbers = numbers.each_mut().map(|numbers| &mut numbers[slot * width..][..width]);
        gradient.zip(
            NUMBERS_OF_A_THREAD,
            numbers,
            #[inline(always)]
            |numbers, g| rule(kernel, numbers, g),
        );
    }
}

/// The coefficients of a rule for one slot: everything that is the same for all of its parameters.
struct Kernel {
    /// The factor on the gradient.
    clip: f32,
    /// The factor on the change: the learning rate, for Adam with both bias corrections.
    rate: f32,
    epsilon: f32,
    /// The factor on the parameter before the change.
    keep: f32,
    /// The momentum, or the decay of the first moment.
    beta_1: f32,
    beta_2: f32,
}

impl Kernel {
    fn new(config: &OptimizerConfig, done: u64, clip: f32) -> Self {
        let rate = config.learning_rate * config.schedule.factor(done);
        let plain =
            |beta_1| Self { clip, rate: rate as f32, epsilon: 0.0, keep: 1.0, beta_1, beta_2: 0.0 };
        let Some(adam) = Adam::of(config.rule) else {
            return plain(match config.rule {
                UpdateRule::Momentum { momentum } => momentum,
                _ => 0.0,
            });
        };
        let Coefficients { rate, epsilon, keep } = adam.coefficients(rate, done);
        Self {
            clip,
            rate: rate as f32,
            epsilon: epsilon as f32,
            keep: keep as f32,
            beta_1: adam.beta_1,
            beta_2: adam.beta_2,
        }
    }

    // The rules are inlined into the pass that calls them: see `vectorised`.
    #[inline(always)]
    fn sgd(&self, [p]: [&mut [f32]; 1], g: &[f32]) {
        for (p, g) in p.iter_mut().zip(g) {
            *p -= self.rate * (g * self.clip);
        }
    }

    #[inline(always)]
    fn momentum(&self, [p, v]: [&mut [f32]; 2], g: &[f32]) {
        for ((p, v), g) in p.iter_mut().zip(v).zip(g) {
            *v = self.beta_1 * *v + g * self.clip;
            *p -= self.rate * *v;
        }
    }

    #[inline(always)]
    fn adam(&self, [p, m, v]: [&mut [f32]; 3], g: &[f32]) {
        let (rest_1, rest_2) = (1.0 - self.beta_1, 1.0 - self.beta_2);
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.clip;
            *m = self.beta_1 * *m + rest_1 * g;
            *v = self.beta_2 * *v + rest_2 * g * g;
            *p = self.keep * *p - self.rate * *m / (v.sqrt() + self.epsilon);
        }
    }
}

/// The multiply-adds of a thread that computes norms, in `f64`.
const PRODUCTS_OF_A_THREAD: usize = 100_000;

/// Returns the norm of each slot's gradient over all parameters.
fn norms(gradients: &[Option<HostGradient>], slots: usize) -> Vec<f32> {
    let each = gradients.iter().flatten();
    let each = each.flat_map(|gradient| (0..slots).map(|slot| gradient.of(slot, slots)));
    let each: Vec<SlotGradient<'_>> = each.collect();
    let most = each.iter().map(|gradient| gradient.work_of_norm()).max().unwrap_or(0);
    let mut squares = vec![0.0; each.len()];
    share_each(most, PRODUCTS_OF_A_THREAD, each.iter().zip(&mut squares), |(gradient, square)| {
        *square = vectorised(
            *gradient,
            #[inline(always)]
            |gradient: SlotGradient<'_>| gradient.square_norm(),
        );
    });
    // In the order of the parameters, on however many threads.
    let of_slot = |slot: usize| squares.iter().skip(slot).step_by(slots).sum::<f64>();
    (0..slots).map(|slot| of_slot(slot).sqrt() as f32).collect()
}
