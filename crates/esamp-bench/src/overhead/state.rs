//! The memory a distiller takes per prompt.

use std::{error::Error, fmt};

use burn::tensor::{Device, Tensor};
use esamp::{
    CompletionId, DrawKey, HiddenStates, Phase, SamplerConfig, Sampling, StepInput, StepRow,
    TiedHead,
};

use super::run::DistillerName;

/// The width of a 7B or 8B model, for which the memory targets are set.
pub const D_MODEL: usize = 4096;

/// The size of one slot after its first update.
pub struct State {
    pub distiller: DistillerName,
    pub bytes: usize,
    pub target: usize,
}

/// Measures the parameters and optimizer state of one slot per distiller, on the tensors after an update.
pub fn of_each_distiller() -> Result<Vec<State>, Box<dyn Error>> {
    // Sizes do not depend on the device, so this always runs on a CPU.
    let device = Device::flex();
    let targets = [(DistillerName::SwiGlu, 160_000_000), (DistillerName::LowRank, 20_000_000)];
    let of = |(distiller, target): (DistillerName, usize)| -> Result<State, Box<dyn Error>> {
        let config = SamplerConfig::new().with_distiller(distiller.config());
        let mut sampler = config.init(D_MODEL, &device)?;
        let sampling = Sampling::paper().checked()?;
        let rows =
            [StepRow::new(CompletionId::new(0, 0), DrawKey::new(0, &[], 0), &[], &[], &sampling)
                .with_phase(Phase::Decode)];
        let head = TiedHead::new(Tensor::ones([8, D_MODEL], &device));
        let state = |value: f32| Tensor::<2>::full([1, D_MODEL], value, &device);
        let input = StepInput::new(&rows, Tensor::zeros([1, 8], &device), &head);
        sampler.step(input.with_hidden(HiddenStates::new(state(0.5), state(1.0))?))?;
        Ok(State { distiller, bytes: sampler.state_bytes(), target })
    };
    targets.into_iter().map(of).collect()
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "distiller state per prompt at d = {D_MODEL}, {}: {:.1} MB (target: at most {:.0} MB)",
            self.distiller.name(),
            self.bytes as f64 / 1e6,
            self.target as f64 / 1e6
        )
    }
}
