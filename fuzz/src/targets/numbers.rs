//! The numbers of a step.

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CausalLm, CompletionId, DrawKey, HiddenStates, SamplerConfig, Sampling, StepInput, StepRow,
    distillers::{DistillerConfig, LowRankConfig},
    errors::StepError,
    testing::TinyLm,
};

use super::{Outcome, kind};

const ROWS: usize = 2;
const STEPS: usize = 3;

/// Settings as JSON, a line break, and then 32-bit floats: the logits and the hidden states of all steps, repeated as
/// often as needed.
///
/// Chosen tokens are tokens, and their probabilities are probabilities.
pub(super) fn step(bytes: &[u8]) -> Outcome {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let sampling = match serde_json::from_slice::<Sampling>(&bytes[..end]) {
        Ok(sampling) => sampling,
        Err(error) => return Ok(kind(error)),
    };
    let sampling = match sampling.checked() {
        Ok(sampling) => sampling,
        Err(error) => return Ok(kind(error)),
    };
    let numbers = bytes.get(end + 1..).unwrap_or_default();
    let numbers: Vec<f32> =
        numbers.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let mut numbers = numbers.iter().copied().cycle();
    let device = Device::flex();
    let mut matrix = |columns: usize, scale: f32| {
        let values: Vec<f32> =
            (0..ROWS * columns).map(|_| scale * numbers.next().unwrap_or(0.5)).collect();
        Tensor::<2>::from_data(TensorData::new(values, [ROWS, columns]), &device)
    };
    let model = TinyLm::new(1, &device);
    let low_rank = DistillerConfig::LowRank(LowRankConfig::new().with_rank(2));
    let config = SamplerConfig::new().with_distiller(low_rank);
    let mut sampler = config.init(TinyLm::D_MODEL, &device).map_err(|error| error.to_string())?;
    let prompt = [1, 2, 3];
    let mut generated = vec![Vec::new(); ROWS];
    let mut outcomes = Vec::new();
    for _ in 0..STEPS {
        let logits = matrix(TinyLm::VOCAB, 1.0);
        let (shallow, deep) = (matrix(TinyLm::D_MODEL, 1.0), matrix(TinyLm::D_MODEL, -1.0));
        let hidden = HiddenStates::new(shallow, deep).map_err(|error| error.to_string())?;
        let rows: Vec<StepRow<'_>> = generated
            .iter()
            .enumerate()
            .map(|(index, generated)| {
                let draw = DrawKey::new(7, &prompt, index as u64);
                let id = CompletionId::new(0, index as u64);
                StepRow::new(id, draw, &prompt, generated, &sampling).with_code(0.5)
            })
            .collect();
        let input = StepInput::new(&rows, logits, model.lm_head()).with_hidden(hidden);
        let output = match sampler.step(input) {
            Ok(output) => output,
            // Whatever the numbers are, they are those of a healthy device.
            Err(error @ StepError::Device(_)) => return Err(error.to_string()),
            Err(error) => return Ok(kind(error)),
        };
        let mut chosen = Vec::new();
        for choice in output.choices {
            match choice {
                Ok(choice) => {
                    let is_token = (choice.token as usize) < TinyLm::VOCAB;
                    if !is_token || choice.log_prob.is_nan() || choice.log_prob > 1e-3 {
                        return Err(format!("token {} of {}", choice.token, choice.log_prob));
                    }
                    outcomes.push(format!("chosen, {}", choice.novelty.is_some()));
                    chosen.push(choice.token);
                }
                Err(error) => {
                    outcomes.push(kind(error));
                    chosen.push(0);
                }
            }
        }
        for (generated, token) in generated.iter_mut().zip(chosen) {
            generated.push(token);
        }
    }
    outcomes.dedup();
    Ok(outcomes.join(", "))
}

/// Settings of all kinds with numbers of an ordinary size.
pub(super) fn step_seeds() -> Vec<Vec<u8>> {
    let samplings = [
        Sampling::new().with_beta(0.5).with_min_p(0.05),
        Sampling::new().with_beta(0.5).with_top_k(5).with_top_p(0.9).with_typical(0.9),
        Sampling::new().with_temperature(0.0).with_beta(1.0).with_xtc(0.1, 0.5),
    ];
    let numbers: Vec<u8> =
        (0..300).flat_map(|at| (4.0 * (at as f32 * 1.7).sin()).to_le_bytes()).collect();
    let texts = samplings.iter().filter_map(|sampling| serde_json::to_vec(sampling).ok());
    texts.map(|text| [&text[..], b"\n", &numbers].concat()).collect()
}
