//! Every filter on rows that a reader can check by hand, with values on both sides of each border.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod golden;

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CandidateFilter, Candidates, DrawKey, MinP, Phase, RowContext, RowId, SamplerConfig,
    SamplingConfig, StepInput, StepRow, TiedHead, TokenId, TokenMask, TopK, TopP,
};
use golden::Golden;

/// Logits of these probabilities, in another order than best first.
const PROBABILITIES: [f32; 4] = [0.2, 0.4, 0.1, 0.3];

fn survivors(filters: &[&dyn CandidateFilter], probabilities: &[f32]) -> Vec<TokenId> {
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    let mut candidates = Candidates::from_logits(&logits).unwrap();
    let context = RowContext {
        row: RowId::new(0, 0),
        position: 0,
        generated: &[],
        draw: DrawKey::new(0, &[], 0).at(0),
    };
    for filter in filters {
        filter.validate().unwrap();
        filter.filter(&context, &mut candidates);
    }
    candidates.as_slice().iter().map(|candidate| candidate.token).collect()
}

fn one(filter: impl CandidateFilter) -> Vec<TokenId> {
    survivors(&[&filter], &PROBABILITIES)
}

#[test]
fn top_k() {
    assert_eq!(one(TopK { k: 1 }), [1]);
    assert_eq!(one(TopK { k: 3 }), [1, 3, 0]);
    assert_eq!(one(TopK { k: 4 }), [1, 3, 0, 2]);
    assert_eq!(one(TopK { k: 1000 }), [1, 3, 0, 2]);
    assert_eq!(survivors(&[&TopK { k: 2 }], &[0.3, 0.3, 0.4, 0.0]), [2, 0], "of equals, the first");
}

#[test]
fn top_p() {
    assert_eq!(one(TopP { p: 0.01 }), [1]);
    assert_eq!(one(TopP { p: 0.399 }), [1]);
    assert_eq!(one(TopP { p: 0.401 }), [1, 3], "the token that crosses is kept");
    assert_eq!(one(TopP { p: 0.699 }), [1, 3]);
    assert_eq!(one(TopP { p: 0.701 }), [1, 3, 0]);
    assert_eq!(one(TopP { p: 0.901 }), [1, 3, 0, 2]);
    assert_eq!(one(TopP { p: 1.0 }), [1, 3, 0, 2]);
}

#[test]
fn min_p() {
    assert_eq!(one(MinP { p: 1.0 }), [1]);
    assert_eq!(one(MinP { p: 0.751 }), [1]);
    assert_eq!(one(MinP { p: 0.749 }), [1, 3]);
    assert_eq!(one(MinP { p: 0.501 }), [1, 3]);
    assert_eq!(one(MinP { p: 0.499 }), [1, 3, 0]);
    assert_eq!(one(MinP { p: 0.249 }), [1, 3, 0, 2]);
    assert_eq!(survivors(&[&MinP { p: 1.0 }], &[0.4, 0.2, 0.4]), [0, 2], "equals of the best stay");
}

#[test]
fn order_matters() {
    // Top-k first leaves .4 and .3, which are .57 and .43 of what is left: p = .5 is reached by the first.
    assert_eq!(survivors(&[&TopK { k: 2 }, &TopP { p: 0.5 }], &PROBABILITIES), [1]);
    assert_eq!(survivors(&[&TopP { p: 0.5 }, &TopK { k: 2 }], &PROBABILITIES), [1, 3]);
}

#[test]
fn settings_out_of_range() {
    let wording = |filter: &dyn CandidateFilter| filter.validate().unwrap_err().to_string();
    assert_eq!(wording(&TopK { k: 0 }), "top_k: expected at least 1, got 0");
    for p in [0.0, -0.1, 1.01, f32::NAN, f32::INFINITY] {
        assert_eq!(wording(&TopP { p }), format!("top_p: expected a number in (0, 1], got {p}"));
        assert_eq!(wording(&MinP { p }), format!("min_p: expected a number in (0, 1], got {p}"));
    }
}

/// How many candidates the sampler is left with for each row: the whole way through the pool.
fn kept_by_the_sampler(
    logits: &[f32],
    vocab: usize,
    config: &SamplingConfig,
    allowed: Option<&TokenMask>,
) -> Vec<usize> {
    let device = Device::flex();
    let sampling = config.clone().with_beta(0.0).init().unwrap();
    let rows: Vec<StepRow<'_>> = (0..logits.len() / vocab)
        .map(|row| StepRow {
            id: RowId::new(0, row as u64),
            phase: Phase::Decode,
            draw: DrawKey::new(0, &[], row as u64),
            generated: &[],
            sampling: &sampling,
            allowed,
            wants_reference_log_prob: false,
        })
        .collect();
    let logits = Tensor::from_data(TensorData::new(logits.to_vec(), [rows.len(), vocab]), &device);
    let head = TiedHead::new(Tensor::zeros([vocab, 1], &device));
    let mut sampler = SamplerConfig::new().init(1, &device).unwrap();
    let input = StepInput::new(&rows, logits, &head);
    let choices = sampler.step(input).unwrap().choices;
    choices.into_iter().map(|choice| choice.unwrap().candidates).collect()
}

#[test]
fn a_mask_comes_before_the_filters() {
    let logits: Vec<f32> = PROBABILITIES.iter().map(|p| p.ln()).collect();
    let allowed = TokenMask::allowing(4, [0, 2]); // .2 and .1
    let config = SamplingConfig::default();
    let left = |config: &SamplingConfig| kept_by_the_sampler(&logits, 4, config, Some(&allowed))[0];
    assert_eq!(left(&config), 2);
    assert_eq!(left(&config.clone().with_min_p(0.501)), 1, "half as likely as the best allowed");
    assert_eq!(left(&config.clone().with_min_p(0.499)), 2);
    assert_eq!(left(&config.with_top_p(0.6)), 1, "two thirds of what is allowed");
}

/// Keep masks of an independent implementation: combinations of temperature, top-k, top-p and min-p, in this order.
#[test]
fn golden_masks() {
    for (file, logits, vocab) in [
        ("filter.safetensors", Golden::open("base.safetensors").values("ref_logits_top64"), 64),
        ("toy.safetensors", Golden::open("toy.safetensors").values("ref_logits"), 50),
    ] {
        let golden = Golden::open(file);
        let mut checked = 0;
        for (key, settings) in golden.filters() {
            let keep = golden.ints(&key);
            let [temperature, top_k, top_p, min_p] = settings;
            if vocab == 64 && top_k == 0.0 && top_p < 1.0 {
                continue; // needs the mass of the whole vocabulary: golden_model.rs has it
            }
            let mut config = SamplingConfig::default().with_temperature(temperature);
            if top_k > 0.0 {
                config = config.with_top_k(top_k as usize);
            }
            if top_p < 1.0 {
                config = config.with_top_p(top_p);
            }
            if min_p > 0.0 {
                config = config.with_min_p(min_p);
            }
            let expected: Vec<usize> =
                keep.chunks(vocab).map(|row| row.iter().map(|&kept| kept as usize).sum()).collect();
            // Best first: as many tokens kept are the same tokens kept.
            assert_eq!(
                kept_by_the_sampler(&logits, vocab, &config, None),
                expected,
                "{file} {key}"
            );
            checked += expected.len();
        }
        assert!(checked >= 96, "{file}: {checked}");
    }
}
