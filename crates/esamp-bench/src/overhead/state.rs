//! How much memory a prompt's distiller takes.

use std::{error::Error, fmt};

use burn::tensor::{Device, Tensor};
use esamp::{
    CompletionId, DrawKey, HiddenStates, Phase, SamplerConfig, Sampling, StepInput, StepRow,
    TiedHead,
};

use super::run::DistillerName;

/// The width of a 7B or 8B model, which the targets are for.
pub const D_MODEL: usize = 4096;

/// What one slot holds after its first update.
pub struct State {
    pub distiller: DistillerName,
    pub bytes: usize,
    pub target: usize,
}

/// Parameters and optimizer state of one prompt's distiller, counted on the tensors of a slot that has learned.
pub fn of_each_distiller() -> Result<Vec<State>, Box<dyn Error>> {
    // A CPU, whatever the bench runs on: the sizes are the same.
    let device = Device::flex();
    let targets = [(DistillerName::SwiGlu, 160_000_000), (DistillerName::LowRank, 20_000_000)];
    let of = |(distiller, target): (DistillerName, usize)| -> Result<State, Box<dyn Error>> {
        let config = SamplerConfig::new().with_distiller(distiller.config());
        let mut sampler = config.init(D_MODEL, &device)?;
        let sampling = Sampling::default().checked()?;
        let rows = [StepRow {
            id: CompletionId::new(0, 0),
            phase: Phase::Decode,
            draw: DrawKey::new(0, &[], 0),
            code: None,
            prompt: &[],
            generated: &[],
            sampling: &sampling,
            allowed: None,
            wants_reference_log_prob: false,
        }];
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
            "distiller state per prompt at d = {D_MODEL}, {}: {:.1} MB (at most {:.0} MB wanted)",
            self.distiller.name(),
            self.bytes as f64 / 1e6,
            self.target as f64 / 1e6
        )
    }
}
