//! The update rules in one pass over memory, for a device whose memory is the host's.
//!
//! Written as tensor operations, an update of Adam reads and writes each parameter's numbers some fourteen times over; here
//! it is once. For networks as small as these that is most of what an update costs.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{
    super::{OptimizerConfig, UpdateRule},
    Adam, AdamStep, Moments,
};

/// What [`apply`](super::apply) does, on slices.
pub(super) fn apply(
    config: &OptimizerConfig,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Option<Tensor<3>>>,
    device: &Device,
) -> Option<Tensor<3>> {
    let gradients: Vec<Option<Vec<f32>>> =
        gradients.into_iter().map(|gradient| gradient.map(numbers)).collect();
    let slots = done.len();
    let norms = config.max_grad_norm.map(|_| norms(&gradients, slots));
    let kernels: Vec<Kernel> = (0..slots)
        .map(|slot| {
            let clip = match (config.max_grad_norm, &norms) {
                (Some(max_norm), Some(norms)) => (max_norm / (norms[slot] + 1e-6)).min(1.0),
                _ => 1.0,
            };
            Kernel::new(config, done[slot], clip)
        })
        .collect();
    for (at, gradient) in gradients.iter().enumerate() {
        let Some(gradient) = gradient else {
            continue;
        };
        let width = gradient.len() / slots;
        let slot = |slot: usize| slot * width..(slot + 1) * width;
        in_place(&mut parameters[at], |p| match config.rule {
            UpdateRule::Sgd => {
                for (s, kernel) in kernels.iter().enumerate() {
                    kernel.sgd(&mut p[slot(s)], &gradient[slot(s)]);
                }
            }
            UpdateRule::Momentum { .. } => in_place(&mut moments.first[at], |v| {
                for (s, kernel) in kernels.iter().enumerate() {
                    kernel.momentum(&mut p[slot(s)], &mut v[slot(s)], &gradient[slot(s)]);
                }
            }),
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => {
                let (first, second) = (&mut moments.first[at], &mut moments.second[at]);
                in_place(first, |m| {
                    in_place(second, |v| {
                        for (s, kernel) in kernels.iter().enumerate() {
                            let (p, m, v) = (&mut p[slot(s)], &mut m[slot(s)], &mut v[slot(s)]);
                            kernel.adam(p, m, v, &gradient[slot(s)]);
                        }
                    });
                });
            }
        });
    }
    norms
        .map(|norms| Tensor::from_data(TensorData::new(norms, [slots, 1, 1]), (device, DType::F32)))
}

/// The numbers of a rule for one slot, all that does not change from parameter to parameter.
struct Kernel {
    /// Factor on the gradient.
    clip: f32,
    /// Factor on the change.
    step: f32,
    epsilon: f32,
    /// Factor on the parameter before the change.
    keep: f32,
    /// Momentum, or the decay of the first moment.
    beta_1: f32,
    beta_2: f32,
}

impl Kernel {
    fn new(config: &OptimizerConfig, done: u64, clip: f32) -> Self {
        let rate = config.learning_rate * config.schedule.factor(done);
        let plain =
            |beta_1| Self { clip, step: rate as f32, epsilon: 0.0, keep: 1.0, beta_1, beta_2: 0.0 };
        let Some(adam) = Adam::of(config.rule) else {
            return plain(match config.rule {
                UpdateRule::Momentum { momentum } => momentum,
                _ => 0.0,
            });
        };
        let AdamStep { step, epsilon, keep } = adam.step(rate, done);
        Self {
            clip,
            step: step as f32,
            epsilon: epsilon as f32,
            keep: keep as f32,
            beta_1: adam.beta_1,
            beta_2: adam.beta_2,
        }
    }

    fn sgd(&self, p: &mut [f32], g: &[f32]) {
        for (p, g) in p.iter_mut().zip(g) {
            *p -= self.step * (g * self.clip);
        }
    }

    fn momentum(&self, p: &mut [f32], v: &mut [f32], g: &[f32]) {
        for ((p, v), g) in p.iter_mut().zip(v).zip(g) {
            *v = self.beta_1 * *v + g * self.clip;
            *p -= self.step * *v;
        }
    }

    fn adam(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        let (rest_1, rest_2) = (1.0 - self.beta_1, 1.0 - self.beta_2);
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.clip;
            *m = self.beta_1 * *m + rest_1 * g;
            *v = self.beta_2 * *v + rest_2 * g * g;
            *p = self.keep * *p - self.step * *m / (v.sqrt() + self.epsilon);
        }
    }
}

/// The norm of each slot's gradient over all parameters.
fn norms(gradients: &[Option<Vec<f32>>], slots: usize) -> Vec<f32> {
    const LANES: usize = 16;
    let mut squares = vec![0.0f64; slots];
    for gradient in gradients.iter().flatten() {
        for (square, slot) in squares.iter_mut().zip(gradient.chunks_exact(gradient.len() / slots))
        {
            // Short sums in f32, so that they can be done in parallel; their sum in f64.
            for chunk in slot.chunks(4096) {
                let mut sums = [0.0f32; LANES];
                for lanes in chunk.chunks(LANES) {
                    lanes.iter().zip(&mut sums).for_each(|(g, sum)| *sum += g * g);
                }
                *square += f64::from(sums.iter().sum::<f32>());
            }
        }
    }
    squares.into_iter().map(|square| square.sqrt() as f32).collect()
}

/// The numbers of a tensor; its own memory where nobody else holds it.
fn numbers(tensor: Tensor<3>) -> Vec<f32> {
    let data = tensor.into_data();
    data.try_into_vec().unwrap_or_else(|error| unreachable!("f32 on the host: {error:?}"))
}

/// Changes the numbers of a tensor, in its own memory where nobody else holds it.
fn in_place(tensor: &mut Tensor<3>, change: impl FnOnce(&mut [f32])) {
    tensor.inplace(|tensor| {
        let (shape, device) = (tensor.dims(), tensor.device());
        let mut numbers = numbers(tensor);
        change(&mut numbers);
        Tensor::from_data(TensorData::new(numbers, shape), (&device, DType::F32))
    });
}
