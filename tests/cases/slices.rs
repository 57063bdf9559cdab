//! The input of a step from host memory gives the same as tensors of the same numbers. Always on flex.

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CheckedSampling, Choice, HeadRows, HiddenStates, LmHead, Sampler, SamplerConfig, Sampling,
    StepInput, StepOutput, TiedHead,
    errors::{ConfigError, HiddenError, StepError},
};

use super::sampler_step::row;

const D_MODEL: usize = 24;
/// More than one block of a head that is read in blocks.
const VOCAB: usize = 2500;

fn numbers(count: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * scale).sin() * 2.0).collect()
}

/// The numbers of one step of `rows` rows.
struct Numbers {
    shallow: Vec<f32>,
    deep: Vec<f32>,
    logits: Vec<f32>,
}

impl Numbers {
    fn new(rows: usize, step: usize) -> Self {
        let scale = 0.7 + step as f32 * 0.01;
        Self {
            shallow: numbers(rows * D_MODEL, scale),
            deep: numbers(rows * D_MODEL, scale * 1.7),
            logits: numbers(rows * VOCAB, scale * 0.3),
        }
    }

    fn rows(&self) -> usize {
        self.shallow.len() / D_MODEL
    }
}

fn sampler() -> Sampler {
    SamplerConfig::for_short_completions().init_on_cpu(D_MODEL).unwrap()
}

fn with_tensors(
    sampler: &mut Sampler,
    sampling: &CheckedSampling,
    numbers: &Numbers,
    head: &dyn LmHead,
) -> Result<StepOutput, StepError> {
    let tensor = |numbers: &[f32], width: usize| {
        let shape = [numbers.len() / width, width];
        Tensor::<2>::from_data(TensorData::new(numbers.to_vec(), shape), &Device::flex())
    };
    let ids = 0..numbers.rows() as u64;
    let rows: Vec<_> = ids.map(|index| row(index / 2, index % 2, sampling)).collect();
    let (shallow, deep) = (tensor(&numbers.shallow, D_MODEL), tensor(&numbers.deep, D_MODEL));
    let input = StepInput::new(&rows, tensor(&numbers.logits, VOCAB), head);
    sampler.step(input.with_hidden(HiddenStates::new(shallow, deep).unwrap()))
}

fn with_slices(
    sampler: &mut Sampler,
    sampling: &CheckedSampling,
    numbers: &Numbers,
    head: &dyn LmHead,
) -> Result<StepOutput, StepError> {
    let ids = 0..numbers.rows() as u64;
    let rows: Vec<_> = ids.map(|index| row(index / 2, index % 2, sampling)).collect();
    let input = StepInput::from_slice(&rows, numbers.logits.as_slice(), head)?;
    let hidden = HiddenStates::from_slices(D_MODEL, &numbers.shallow, &numbers.deep)?;
    sampler.step(input.with_hidden(hidden))
}

#[test]
fn slices_and_tensors_give_the_same_bits() {
    let weight = numbers(VOCAB * D_MODEL, 0.37);
    let shape = [VOCAB, D_MODEL];
    let tensor = Tensor::from_data(TensorData::new(weight.clone(), shape), &Device::flex());
    let tied = TiedHead::new(tensor);
    let slice = HeadRows::from_slice(&weight, D_MODEL).unwrap();
    let closure = HeadRows::new(VOCAB, D_MODEL, |tokens, rows| {
        for (&token, row) in tokens.iter().zip(rows.chunks_mut(D_MODEL)) {
            row.copy_from_slice(&weight[token as usize * D_MODEL..][..D_MODEL]);
        }
    });
    let closure = closure.unwrap();
    let eighth: Vec<f32> = weight.iter().map(|number| number / 8.0).collect();
    let scaled = HeadRows::from_slice(&eighth, D_MODEL).unwrap().with_scale(8.0);
    // Without a filter, the head is asked for all tokens; with one, for some that the rows share.
    for sampling in [Sampling::paper(), Sampling::default().with_top_k(40)] {
        let sampling = sampling.with_beta(0.8).checked().unwrap();
        for head in [&slice as &dyn LmHead, &closure, &scaled] {
            let (mut of_tensors, mut of_slices) = (sampler(), sampler());
            for step in 0..4 {
                let numbers = Numbers::new(6, step);
                let expected = with_tensors(&mut of_tensors, &sampling, &numbers, &tied).unwrap();
                let got = with_slices(&mut of_slices, &sampling, &numbers, head).unwrap();
                let bits = |output: StepOutput| -> Vec<_> {
                    let bits = |choice: Choice| {
                        let error = choice.novelty.unwrap().error.to_bits();
                        (choice.token, choice.log_prob.to_bits(), error)
                    };
                    output.choices.into_iter().map(|choice| bits(choice.unwrap())).collect()
                };
                assert_eq!(bits(got), bits(expected), "{sampling:?}, step {step}");
            }
            // The expected logits are read from a tensor in both, the model's logits only in one.
            let mut counters = *of_slices.counters();
            assert_eq!((counters.transfers, of_tensors.counters().transfers), (4, 8));
            counters.transfers = 8;
            assert_eq!(counters, *of_tensors.counters());
            assert_eq!(of_slices.counters().updates, 12);
        }
    }
}

#[test]
fn a_closure_is_asked_once_for_a_row_that_several_completions_need() {
    let asked = std::sync::Mutex::new(Vec::new());
    let head = HeadRows::new(VOCAB, D_MODEL, |tokens, rows| {
        assert_eq!(rows.len(), tokens.len() * D_MODEL);
        asked.lock().unwrap().extend_from_slice(tokens);
        rows.fill(0.5);
    });
    let sampling = Sampling::default().with_beta(0.5).with_top_k(5).checked().unwrap();
    let one = Numbers::new(1, 0);
    let twice = |numbers: &[f32]| numbers.repeat(2);
    let [shallow, deep, logits] = [&one.shallow, &one.deep, &one.logits].map(|n| twice(n));
    let two = Numbers { shallow, deep, logits };
    with_slices(&mut sampler(), &sampling, &two, &head.unwrap()).unwrap();
    let asked = asked.lock().unwrap().clone();
    let mut unique = asked.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(asked.len(), unique.len(), "{asked:?}");
    assert!((1..=5).contains(&asked.len()), "{asked:?}");
}

#[test]
fn slices_of_the_wrong_length_are_errors() {
    let sampling = Sampling::default().checked().unwrap();
    let head = HeadRows::new(VOCAB, D_MODEL, |_, _| {}).unwrap();
    let good = || Numbers::new(2, 0);
    let step = |numbers: Numbers| {
        let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
        let input = StepInput::from_slice(&rows, numbers.logits, &head)?;
        let hidden = HiddenStates::from_slices(D_MODEL, &numbers.shallow, &numbers.deep)?;
        sampler().step(input.with_hidden(hidden)).map(|_| ())
    };
    step(good()).unwrap();

    let odd = Numbers { logits: numbers(2 * VOCAB + 1, 0.1), ..good() };
    let error = step(odd).unwrap_err();
    assert!(matches!(error, StepError::Shape { what: "logits", .. }), "{error}");
    assert_eq!(error.to_string(), "logits: expected shape [2, 2500], got [5001]");
    let fewer_tokens = Numbers { logits: numbers(2 * VOCAB - 2, 0.1), ..good() };
    let error = step(fewer_tokens).unwrap_err();
    assert_eq!(error.to_string(), "LM head: expected shape [24, 2499], got [24, 2500]");
    let one_row = Numbers { shallow: numbers(D_MODEL, 0.1), deep: numbers(D_MODEL, 0.1), ..good() };
    assert!(matches!(step(one_row).unwrap_err(), StepError::RowCount { .. }));

    let short = HiddenStates::from_slices(4, &[0.0; 8], &[0.0; 4]).unwrap_err();
    assert_eq!(short.to_string(), "deep hidden state: expected shape [2, 4], got [4]");
    let ragged = HiddenStates::from_slices(4, &[0.0; 7], &[0.0; 7]).unwrap_err();
    assert!(matches!(ragged, HiddenError::Shape { what: "shallow hidden state", .. }), "{ragged}");
    assert!(HiddenStates::from_slices(0, &[0.0; 2], &[0.0; 2]).is_err());

    let error = HeadRows::from_slice(&[0.0; 7], 4).unwrap_err();
    assert_eq!(error.to_string(), "numbers of the LM head's matrix: expected 4, got 7");
    let error = HeadRows::from_slice(&[], 4).unwrap_err();
    assert_eq!(error.to_string(), "numbers of the LM head's matrix: expected 4, got 0");
    let error = HeadRows::from_slice(&[0.0; 4], 0).unwrap_err();
    assert!(matches!(error, ConfigError::OutOfRange { setting: "d_model", .. }), "{error}");
}
