//! Arithmetic selection: evenly spread codes, fair samples, and codes that last for long completions.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::device;
use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CausalLm, CheckedSampling, Completion, CompletionId, Decoder, DrawKey, HiddenStates, LmHead,
    Phase, Request, Sampler, SamplerConfig, Sampling, Selection, StepInput, StepRow, TiedHead,
    TokenId, distillers::Distiller, errors::RowError, testing::ScriptedLm,
};

const PROBABILITIES: [f64; 4] = [0.15, 0.5, 0.05, 0.3];

fn arithmetic() -> Sampling {
    Sampling::paper().with_selection(Selection::Arithmetic)
}

fn plain() -> Sampling {
    arithmetic().with_beta(0.0)
}

/// A model with the same distribution everywhere.
fn constant() -> ScriptedLm {
    ScriptedLm::new(4, &device(), |_| PROBABILITIES.map(|p| p.ln() as f32).to_vec())
}

fn completions(seed: u64, count: usize, tokens: usize) -> Vec<Completion> {
    let model = constant();
    let sampler = SamplerConfig::new().init(model.d_model(), &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let request = Request::new(vec![1, 2]).with_completions(count).with_max_new_tokens(tokens);
    decoder.submit(request.with_seed(seed).with_sampling(plain())).unwrap();
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn completions_cover_the_distribution_of_their_beginnings_evenly() {
    let count = 96;
    for seed in 0..20 {
        let all = completions(seed, count, 3);
        for length in 1..=3 {
            let mut counts: BTreeMap<Vec<TokenId>, f64> = BTreeMap::new();
            for completion in &all {
                *counts.entry(completion.tokens()[..length].to_vec()).or_default() += 1.0;
            }
            assert!(counts.len() >= 4);
            for (beginning, got) in counts {
                let p: f64 = beginning.iter().map(|&token| PROBABILITIES[token as usize]).product();
                // Codes are 1/K apart, in an interval of width p.
                let expected = count as f64 * p;
                assert!((got - expected).abs() < 1.0, "{beginning:?}: {got} of {expected}");
            }
        }
    }
}

#[test]
fn each_completion_alone_is_a_fair_sample() {
    let seeds = 1_500;
    let mut shares = [[0.0; 4]; 2];
    for seed in 0..seeds {
        for (place, share) in shares.iter_mut().enumerate() {
            let tokens = completions(seed, 3, 2)[2].tokens();
            share[tokens[place] as usize] += 1.0 / seeds as f64;
        }
    }
    // The standard deviation of a share is below .013.
    for share in shares {
        for (got, p) in share.iter().zip(PROBABILITIES) {
            assert!((got - p).abs() < 0.05, "{share:?}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_random_selection_gives_others() {
    let tokens = |seed| completions(seed, 4, 12).iter().map(Completion::tokens).collect::<Vec<_>>();
    assert_eq!(tokens(3), tokens(3));
    assert_ne!(tokens(3), tokens(4));
    let first = DrawKey::arithmetic_code(3, &[1, 2], 1, 4);
    // Best first: 1 up to .5, 3 up to .8, 0 up to .95, then 2.
    let [one, three, zero] = [0.5, 0.8, 0.95];
    let by_hand = match first {
        code if code < one => 1,
        code if code < three => 3,
        code if code < zero => 0,
        _ => 2,
    };
    assert_eq!(tokens(3)[1][0], by_hand);
}

struct Loop {
    device: Device,
    head: TiedHead,
    sampler: Sampler,
}

impl Loop {
    fn new() -> Self {
        let device = device();
        let head = TiedHead::new(Tensor::zeros([4, 1], &device));
        let sampler = SamplerConfig::new().init(1, &device).unwrap();
        Self { device, head, sampler }
    }

    fn step(
        &mut self,
        sampling: &CheckedSampling,
        generated: &[TokenId],
        code: Option<f64>,
    ) -> Result<esamp::Choice, RowError> {
        self.step_with(PROBABILITIES, sampling, generated, code)
    }

    fn step_with(
        &mut self,
        probabilities: [f64; 4],
        sampling: &CheckedSampling,
        generated: &[TokenId],
        code: Option<f64>,
    ) -> Result<esamp::Choice, RowError> {
        let row = StepRow::new(
            CompletionId::new(0, 0),
            DrawKey::new(5, &[1, 2], 0),
            &[1, 2],
            generated,
            sampling,
        )
        .with_phase(Phase::Decode)
        .with_code(code);
        let logits = probabilities.map(|p| p.ln() as f32).to_vec();
        let logits = Tensor::from_data(TensorData::new(logits, [1, 4]), &self.device);
        let rows = [row];
        let input = StepInput::new(&rows, logits, &self.head);
        self.sampler.step(input).unwrap().choices.remove(0)
    }
}

/// A code of 53 digits determines about 30 tokens of these distributions; this is a hundred times as many. Quarters
/// are the hard case: they use up a code's digits one after the other, and no rounding supplies new ones by accident.
#[test]
fn long_completions_stay_valid_samples() {
    for probabilities in [PROBABILITIES, [0.25; 4]] {
        let mut own = Loop::new();
        let sampling = plain().checked().unwrap();
        let mut code = Some(DrawKey::arithmetic_code(5, &[1, 2], 0, 8));
        let mut generated: Vec<TokenId> = Vec::new();
        let tokens = 4_000;
        for _ in 0..tokens {
            let choice = own.step_with(probabilities, &sampling, &generated, code).unwrap();
            generated.push(choice.token);
            code = choice.code;
        }
        let late = &generated[60..];
        let near = |got: usize, p: f64, of: usize, what: &str| {
            let (mean, deviation) = (of as f64 * p, (of as f64 * p * (1.0 - p)).sqrt());
            assert!((got as f64 - mean).abs() < 4.5 * deviation, "{what}: {got} of {mean}");
        };
        for (a, p) in probabilities.iter().enumerate() {
            let count = late.iter().filter(|&&token| token as usize == a).count();
            near(count, *p, late.len(), &format!("{a}"));
            for (b, q) in probabilities.iter().enumerate() {
                let pair = |pair: &&[TokenId]| pair[0] as usize == a && pair[1] as usize == b;
                let count = late.windows(2).filter(pair).count();
                near(count, p * q, late.len() - 1, &format!("{a} before {b}"));
            }
        }
    }
}

#[test]
fn a_missing_or_invalid_code_fails_its_row() {
    let mut own = Loop::new();
    let sampling = plain().checked().unwrap();
    let mut wording = |code| own.step(&sampling, &[], code).unwrap_err().to_string();
    assert_eq!(wording(None), "arithmetic code: expected that of the row's last choice, got none");
    assert_eq!(wording(Some(1.0)), "arithmetic code: expected a number in [0, 1), got 1");
    assert_eq!(wording(Some(-0.25)), "arithmetic code: expected a number in [0, 1), got -0.25");
    assert_eq!(wording(Some(f64::NAN)), "arithmetic code: expected a number in [0, 1), got NaN");
}

#[test]
fn rows_that_need_no_code_return_it_unchanged() {
    let mut own = Loop::new();
    let greedy = arithmetic().with_beta(0.0).with_temperature(0.0).checked().unwrap();
    let choice = own.step(&greedy, &[], Some(0.99)).unwrap();
    assert_eq!((choice.token, choice.code), (1, Some(0.99)));
    let random = Sampling::paper().with_beta(0.0).checked().unwrap();
    let with = own.step(&random, &[], Some(0.99)).unwrap();
    let without = own.step(&random, &[], None).unwrap();
    assert_eq!((with.token, with.code), (without.token, Some(0.99)));
    assert_eq!(without.code, None);
}

/// Rows in the same context have the same fused distribution, and their codes cover it.
#[test]
fn steered_rows_cover_the_fused_distribution_evenly() {
    const D_MODEL: usize = 6;
    const VOCAB: usize = 9;
    let device = device();
    let wave = |rows: usize, scale: f32| -> Vec<f32> {
        (0..rows * D_MODEL).map(|i| (i as f32 * scale).cos()).collect()
    };
    let head = TiedHead::new(Tensor::from_data(
        TensorData::new(wave(VOCAB, 0.7), [VOCAB, D_MODEL]),
        &device,
    ));
    let count = 50;
    let repeated = |scale| {
        let one: Tensor<2> =
            Tensor::from_data(TensorData::new(wave(1, scale), [1, D_MODEL]), &device);
        one.repeat_dim(0, count)
    };
    let hidden = HiddenStates::new(repeated(0.9), repeated(1.3)).unwrap();
    let beta = 1.5;
    let distiller = esamp::distillers::SwiGluConfig::new().init(D_MODEL, 0, &device).unwrap();
    let expected = head.logits(distiller.predict(hidden.shallow().clone()));
    let reference = head.logits(hidden.deep().clone());
    let fused: Vec<f32> =
        (reference.clone() * (1.0 + beta) - expected * beta).into_data().try_into_vec().unwrap();
    let fused: Vec<f64> = fused[..VOCAB].iter().map(|&score| f64::from(score).exp()).collect();
    let total: f64 = fused.iter().sum();

    let sampling = arithmetic().with_beta(beta).checked().unwrap();
    for seed in 0..10 {
        let rows: Vec<StepRow<'_>> = (0..count as u64)
            .map(|request| {
                StepRow::new(
                    CompletionId::new(0, request),
                    DrawKey::new(seed, &[1], request),
                    &[1],
                    &[2],
                    &sampling,
                )
                .with_phase(Phase::Decode)
                .with_code(Some(DrawKey::arithmetic_code(
                    seed,
                    &[1],
                    request,
                    count as u64,
                )))
            })
            .collect();
        let mut sampler = SamplerConfig::new().init(D_MODEL, &device).unwrap();
        let input =
            StepInput::new(&rows, reference.clone(), &head).with_hidden(Some(hidden.clone()));
        let mut counts = [0.0; VOCAB];
        for choice in sampler.step(input).unwrap().choices {
            counts[choice.unwrap().token as usize] += 1.0;
        }
        for (got, score) in counts.iter().zip(&fused) {
            let expected = count as f64 * score / total;
            // 1, plus the rounding of `f32` scores over many rows.
            assert!((got - expected).abs() < 1.001, "{got} of {expected}");
        }
    }
}
