//! Initial parameters, drawn on the host so that they are the same on every device.

use burn::{
    module::Param,
    tensor::{DType, Device, Tensor},
};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, Normal};

use crate::tensor::from_f32;

/// Draws parameters one after the other from one seed.
pub(crate) struct ParamInit<'a> {
    rng: ChaCha8Rng,
    device: &'a Device,
}

impl<'a> ParamInit<'a> {
    pub(crate) fn new(seed: u64, device: &'a Device) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), device }
    }

    /// Uniform in ±1/√fan-in, where `[fan_in, _]` is the shape.
    pub(crate) fn fan_in(&mut self, shape: [usize; 2]) -> Param<Tensor<2>> {
        let bound = 1.0 / (shape[0] as f32).sqrt();
        self.matrix(shape, |rng| rng.random_range(-bound..=bound))
    }

    /// Normal with mean 0 and standard deviation 0.02.
    pub(crate) fn normal_002(&mut self, shape: [usize; 2]) -> Param<Tensor<2>> {
        let normal = Normal::new(0.0f32, 0.02).unwrap_or_else(|_| unreachable!("0.02 is finite"));
        self.matrix(shape, |rng| normal.sample(rng))
    }

    pub(crate) fn constant<const D: usize>(
        &self,
        shape: [usize; D],
        value: f32,
    ) -> Param<Tensor<D>> {
        Param::from_tensor(Tensor::full(shape, value, (self.device, DType::F32)))
    }

    fn matrix(
        &mut self,
        shape: [usize; 2],
        mut draw: impl FnMut(&mut ChaCha8Rng) -> f32,
    ) -> Param<Tensor<2>> {
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| draw(&mut self.rng)).collect();
        Param::from_tensor(from_f32(values, shape, self.device))
    }
}
