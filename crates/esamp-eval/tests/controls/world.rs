//! Data for steps without a model: hidden states from a formula, logits from a real head.

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CheckedSampling, Choice, CompletionId, DrawKey, HiddenStates, LmHead, Phase, Sampler,
    SamplerConfig, Sampling, StepInput, StepOutput, StepRow, TiedHead, errors::StepError,
};

pub(crate) const D_MODEL: usize = 8;
pub(crate) const VOCAB: usize = 12;

pub(crate) struct World {
    pub(crate) device: Device,
    pub(crate) head: TiedHead,
}

impl World {
    pub(crate) fn new() -> Self {
        let device = Device::flex();
        let head = TiedHead::new(wave([VOCAB, D_MODEL], 0.7, &device));
        Self { device, head }
    }

    /// Hidden states of rows in these `contexts`: equal contexts give equal states.
    pub(crate) fn hidden(&self, contexts: &[usize]) -> HiddenStates {
        let state = |scale: f32, context: usize| -> Vec<f32> {
            (0..D_MODEL).map(|i| ((i + 3 * context) as f32 * scale).sin() * 2.0).collect()
        };
        let tensor = |scale| {
            let numbers: Vec<f32> = contexts.iter().flat_map(|&c| state(scale, c)).collect();
            Tensor::from_data(TensorData::new(numbers, [contexts.len(), D_MODEL]), &self.device)
        };
        HiddenStates::new(tensor(0.9), tensor(1.3)).unwrap()
    }

    pub(crate) fn step(
        &self,
        sampler: &mut Sampler,
        rows: &[StepRow<'_>],
        contexts: &[usize],
    ) -> Result<StepOutput, StepError> {
        let hidden = self.hidden(contexts);
        let logits = self.head.logits(hidden.deep().clone());
        sampler.step(StepInput::new(rows, logits, &self.head).with_hidden(hidden))
    }
}

pub(crate) fn wave<const D: usize>(shape: [usize; D], scale: f32, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let numbers: Vec<f32> = (0..count).map(|i| (i as f32 * scale).cos()).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

pub(crate) fn sampler() -> Sampler {
    SamplerConfig::new().init(D_MODEL, &Device::flex()).unwrap()
}

pub(crate) fn row(prompt: u64, request: u64, sampling: &CheckedSampling) -> StepRow<'_> {
    StepRow::new(
        CompletionId::new(prompt, request),
        DrawKey::new(7, &[1, 2, 3], request),
        &[],
        &[5, 6],
        sampling,
    )
    .with_phase(Phase::Decode)
}

pub(crate) fn esamp(beta: f32) -> CheckedSampling {
    Sampling::paper().with_beta(beta).checked().unwrap()
}

pub(crate) fn choices(output: StepOutput) -> Vec<Choice> {
    output.choices.into_iter().map(Result::unwrap).collect()
}

/// `log softmax` of the scores, at one token.
pub(crate) fn log_softmax(scores: &[f32], token: u32) -> f32 {
    let best = scores.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = scores.iter().map(|s| f64::from(s - best).exp()).sum();
    (f64::from(scores[token as usize] - best) - sum.ln()) as f32
}
