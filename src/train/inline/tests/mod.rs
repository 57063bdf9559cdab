//! Tests the trainer against golden vectors, its paths against each other, and how it manages slots.

mod fits;
mod golden_vectors;
mod paths;
mod rows;
mod slots;

use burn::{module::Param, tensor::Device};

use super::*;
use crate::{
    distiller::{Distiller, LowRankDistiller, LowRankStart, OutputStart, SourceNorm, SwiGluConfig},
    golden::*,
    train::{
        ApartSlots, LossReduction, OptimizerConfig, Schedule, SeparateSlots, StackedSlots,
        UpdateRule,
    },
};

fn template(device: &Device) -> LowRankDistiller {
    let init = Golden::open("lowrank.init.safetensors");
    LowRankDistiller {
        a: Param::from_tensor(init.tensor("a", device)),
        g: Param::from_tensor(init.tensor("g", device)),
        g_bias: Param::from_tensor(init.tensor("gb", device)),
        b: Param::from_tensor(init.tensor("b", device)),
        norm_weight: Param::from_tensor(init.tensor("w", device)),
        norm_bias: Param::from_tensor(init.tensor("bb", device)),
        source_norm: SourceNorm::None,
        start: LowRankStart::Normal,
    }
}

/// The fast paths and their oracle.
fn every_path(
    optimizer: OptimizerConfig,
    sharing: Sharing,
    check: impl Fn(&mut dyn FnMut() -> Box<dyn OnlineTrainer>),
) {
    let config = TrainingConfig::default();
    let stacked = StackedSlots::new(&template(&Device::flex()), optimizer).unwrap();
    check(&mut || Box::new(InlineTrainer::new(stacked.clone(), sharing, config)));
    let apart = ApartSlots::new(stacked);
    check(&mut || Box::new(InlineTrainer::new(apart.clone(), sharing, config)));
    let separate = SeparateSlots::new(template(&Device::flex()), optimizer);
    check(&mut || Box::new(InlineTrainer::new(separate.clone(), sharing, config)));
}

fn wave(rows: usize, d: usize, phase: f32, device: &Device) -> Tensor<2> {
    let numbers = (0..rows * d).map(|i| (i as f32 * 0.37 + phase).sin() + 0.1 * phase.cos());
    let data = burn::tensor::TensorData::new(numbers.collect::<Vec<f32>>(), [rows, d]);
    Tensor::from_data(data, device)
}

fn hidden(rows: usize, phase: f32, device: &Device) -> HiddenStates {
    HiddenStates::new(wave(rows, 12, phase, device), wave(rows, 12, 3.0 * phase + 1.0, device))
        .unwrap()
}
