//! Compares every filter with its definition, implemented as simply as possible.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CheckedSampling, CompletionId, DrawKey, Phase, SamplerConfig, Sampling, StepInput, StepRow,
    TiedHead, TokenId,
    filters::{
        CandidateFilter, Candidates, EpsilonCutoff, EtaCutoff, MinP, RowContext, TopK, TopNSigma,
        TopP, Typical, Xtc,
    },
};
use proptest::prelude::*;

/// Tokens that are not masked, best first, with their probabilities.
fn ranked(logits: &[f32]) -> Vec<(TokenId, f64)> {
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let mut all: Vec<(TokenId, f32)> = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| logit.is_finite())
        .map(|(token, &logit)| (token as TokenId, logit))
        .collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    all.into_iter().map(|(token, logit)| (token, f64::from(logit).exp() / total)).collect()
}

fn naive_top_k(logits: &[f32], k: usize) -> Vec<TokenId> {
    ranked(logits).into_iter().take(k).map(|(token, _)| token).collect()
}

fn naive_top_p(logits: &[f32], p: f64) -> Vec<TokenId> {
    let mut kept = Vec::new();
    let mut mass = 0.0;
    for (token, probability) in ranked(logits) {
        if mass >= p {
            break;
        }
        mass += probability;
        kept.push(token);
    }
    kept
}

fn naive_min_p(logits: &[f32], p: f64) -> Vec<TokenId> {
    let all = ranked(logits);
    let best = all[0].1;
    all.into_iter().filter(|(_, q)| *q >= p * best).map(|(token, _)| token).collect()
}

/// `None` if a token is so close to the border that rounding decides.
fn naive_top_n_sigma(logits: &[f32], n: f64) -> Option<Vec<TokenId>> {
    let finite: Vec<f64> = logits.iter().map(|&l| f64::from(l)).filter(|l| l.is_finite()).collect();
    let count = finite.len() as f64;
    let mean = finite.iter().sum::<f64>() / count;
    let sigma = (finite.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / count).sqrt();
    let least = finite.iter().copied().fold(f64::MIN, f64::max) - n * sigma;
    if finite.iter().any(|l| (l - least).abs() < 1e-4) {
        return None;
    }
    let kept = ranked(logits).into_iter().map(|(token, _)| token);
    Some(kept.filter(|&token| f64::from(logits[token as usize]) >= least).collect())
}

fn naive_entropy(all: &[(TokenId, f64)]) -> f64 {
    -all.iter().map(|(_, p)| p * p.ln()).sum::<f64>()
}

fn naive_typical(logits: &[f32], tau: f64) -> Vec<TokenId> {
    let all = ranked(logits);
    let entropy = naive_entropy(&all);
    let mut by_distance = all.clone();
    by_distance.sort_by(|a, b| {
        let [a, b] = [a, b].map(|(_, p)| (-p.ln() - entropy).abs());
        a.partial_cmp(&b).unwrap() // stable: at equal distance the best first, then the smallest id
    });
    let mut kept = Vec::new();
    let mut mass = 0.0;
    for (token, p) in by_distance {
        if mass >= tau {
            break;
        }
        mass += p;
        kept.push(token);
    }
    all.into_iter().map(|(token, _)| token).filter(|token| kept.contains(token)).collect()
}

fn naive_epsilon(logits: &[f32], epsilon: f64) -> Vec<TokenId> {
    let all = ranked(logits);
    let best = all[0].0;
    let kept: Vec<TokenId> =
        all.into_iter().filter(|(_, p)| *p > epsilon).map(|(token, _)| token).collect();
    if kept.is_empty() { vec![best] } else { kept }
}

fn naive_eta(logits: &[f32], epsilon: f64) -> Vec<TokenId> {
    let entropy = naive_entropy(&ranked(logits));
    naive_epsilon(logits, epsilon.min(epsilon.sqrt() * (-entropy).exp()))
}

/// XTC with probability 1.
fn naive_xtc(logits: &[f32], threshold: f64) -> Vec<TokenId> {
    let all = ranked(logits);
    let top = all.iter().filter(|(_, p)| *p >= threshold).count();
    let dropped = if top >= 2 { top - 1 } else { 0 };
    all.into_iter().skip(dropped).map(|(token, _)| token).collect()
}

/// Rows with ties, masked tokens and a wide range.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        5 => (-10i32..10).prop_map(|i| i as f32 * 0.37),
        5 => -25.0f32..25.0,
        1 => Just(f32::NEG_INFINITY),
    ];
    prop::collection::vec(logit, 1..200)
        .prop_filter("a token that is not masked", |row| row.iter().any(|l| l.is_finite()))
}

fn filtered(logits: &[f32], filter: &dyn CandidateFilter) -> Vec<TokenId> {
    let mut candidates = Candidates::from_logits(logits).unwrap();
    let context = RowContext::new(CompletionId::new(0, 0), 0, DrawKey::new(0, &[], 0).at(0));
    filter.filter(&context, &mut candidates);
    candidates.as_slice().iter().map(|candidate| candidate.token).collect()
}

/// The number of candidates that remain in the sampler, which starts from its pool.
fn through_the_sampler(logits: &[f32], config: Sampling) -> usize {
    let device = Device::flex();
    let sampling: CheckedSampling = config.with_beta(0.0).checked().unwrap();
    let rows =
        [StepRow::new(CompletionId::new(0, 0), DrawKey::new(0, &[], 0), &[], &[], &sampling)
            .with_phase(Phase::Decode)];
    let head = TiedHead::new(Tensor::zeros([logits.len(), 1], &device));
    let logits = Tensor::from_data(TensorData::new(logits.to_vec(), [1, logits.len()]), &device);
    let input = StepInput::new(&rows, logits, &head);
    let mut sampler = SamplerConfig::new().init(1, &device).unwrap();
    sampler.step(input).unwrap().choices[0].clone().unwrap().candidates
}

#[test]
fn top_k_for_every_k() {
    let logits: Vec<f32> = (0..60).map(|i| ((i * 37 % 11) as f32).sin()).collect(); // many ties
    for k in 1..=logits.len() + 1 {
        let expected = naive_top_k(&logits, k);
        assert_eq!(filtered(&logits, &TopK { k }), expected);
        let config = Sampling::default().with_top_k(k);
        assert_eq!(through_the_sampler(&logits, config), expected.len());
    }
}

proptest! {
    #[test]
    fn top_k(logits in row(), k in 1usize..210) {
        prop_assert_eq!(filtered(&logits, &TopK { k }), naive_top_k(&logits, k));
    }

    #[test]
    fn top_p(logits in row(), p in 0.001f32..0.999) {
        let expected = naive_top_p(&logits, f64::from(p));
        prop_assert_eq!(&filtered(&logits, &TopP { p }), &expected);
        let config = Sampling::default().with_top_p(p);
        prop_assert_eq!(through_the_sampler(&logits, config), expected.len());
    }

    #[test]
    fn min_p(logits in row(), p in 0.0001f32..1.0) {
        let expected = naive_min_p(&logits, f64::from(p));
        prop_assert_eq!(&filtered(&logits, &MinP { p }), &expected);
        let config = Sampling::default().with_min_p(p);
        prop_assert_eq!(through_the_sampler(&logits, config), expected.len());
    }

    #[test]
    fn top_n_sigma(logits in row(), n in 0.0f32..4.0, temperature in 0.3f32..3.0) {
        let Some(expected) = naive_top_n_sigma(&logits, f64::from(n)) else {
            return Ok(());
        };
        prop_assert_eq!(&filtered(&logits, &TopNSigma { n }), &expected);
        let config = Sampling::default().with_top_n_sigma(n).with_temperature(temperature);
        prop_assert_eq!(through_the_sampler(&logits, config), expected.len());
    }

    #[test]
    fn typical(logits in row(), mass in 0.001f32..0.999) {
        let expected = naive_typical(&logits, f64::from(mass));
        prop_assert_eq!(&filtered(&logits, &Typical { mass }), &expected);
        let config = Sampling::default().with_typical(mass);
        prop_assert_eq!(through_the_sampler(&logits, config), expected.len());
    }

    #[test]
    fn epsilon_cutoff(logits in row(), exponent in -12.0f32..-0.001) {
        let epsilon = exponent.exp();
        let expected = naive_epsilon(&logits, f64::from(epsilon));
        prop_assert_eq!(&filtered(&logits, &EpsilonCutoff { epsilon }), &expected);
        let config = Sampling::default().with_epsilon_cutoff(epsilon);
        prop_assert_eq!(through_the_sampler(&logits, config), expected.len());
    }

    #[test]
    fn eta_cutoff(logits in row(), exponent in -12.0f32..-0.001) {
        let epsilon = exponent.exp();
        let expected = naive_eta(&logits, f64::from(epsilon));
        prop_assert_eq!(&filtered(&logits, &EtaCutoff { epsilon }), &expected);
        let config = Sampling::default().with_eta_cutoff(epsilon);
        prop_assert_eq!(through_the_sampler(&logits, config), expected.len());
    }

    #[test]
    fn xtc(logits in row(), threshold in 0.001f32..0.5) {
        let expected = naive_xtc(&logits, f64::from(threshold));
        prop_assert_eq!(&filtered(&logits, &Xtc { threshold, probability: 1.0 }), &expected);
        let config = Sampling::default().with_xtc(threshold, 1.0);
        prop_assert_eq!(through_the_sampler(&logits, config), expected.len());
    }
}

/// Rows of a large vocabulary, which several threads work on, are chosen as each of them alone.
#[test]
fn rows_on_several_threads_are_those_of_one() {
    const VOCAB: usize = 49_152;
    const ROWS: usize = 7;
    let device = Device::flex();
    let head = TiedHead::new(Tensor::zeros([VOCAB, 1], &device));
    let logits = esamp_bench::rows::logits(ROWS, VOCAB);
    let step = |rows: &[StepRow<'_>], logits: &[f32]| {
        let mut sampler = SamplerConfig::new().init(1, &device).unwrap();
        let logits = TensorData::new(logits.to_vec(), [rows.len(), VOCAB]);
        let logits = Tensor::<2>::from_data(logits, &device);
        let output = sampler.step(StepInput::new(rows, logits, &head)).unwrap();
        output.choices.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    let plain = Sampling::paper().with_beta(0.0);
    for sampling in [
        plain.clone(),
        plain.clone().with_min_p(0.05),
        plain.clone().with_top_p(0.95),
        plain.clone().with_typical(0.9),
        plain.with_xtc(0.1, 0.5),
    ] {
        let sampling = sampling.checked().unwrap();
        let rows = esamp_bench::rows::rows(ROWS, &sampling);
        let alone = rows.iter().zip(logits.chunks(VOCAB));
        let alone: Vec<_> =
            alone.flat_map(|(row, logits)| step(std::slice::from_ref(row), logits)).collect();
        assert_eq!(step(&rows, &logits), alone);
    }
}
