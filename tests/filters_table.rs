//! Every filter on rows that can be checked by hand, with settings on both sides of each border.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CompletionId, DrawKey, Phase, SamplerConfig, Sampling, StepInput, StepRow, TemperatureOrder,
    TiedHead, TokenId, TokenMask,
    filters::{
        CandidateFilter, Candidates, EpsilonCutoff, EtaCutoff, MinP, RowContext, TopK, TopNSigma,
        TopP, Typical, Xtc,
    },
};
use esamp_testkit::golden::Golden;

/// Logits of these probabilities are not in best-first order.
const PROBABILITIES: [f32; 4] = [0.2, 0.4, 0.1, 0.3];

fn survivors(filters: &[&dyn CandidateFilter], probabilities: &[f32]) -> Vec<TokenId> {
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    survivors_of_logits(filters, &logits)
}

fn survivors_of_logits(filters: &[&dyn CandidateFilter], logits: &[f32]) -> Vec<TokenId> {
    let mut candidates = Candidates::from_logits(logits).unwrap();
    for filter in filters {
        filter.validate().unwrap();
        filter.filter(&context(0), &mut candidates);
    }
    candidates.as_slice().iter().map(|candidate| candidate.token).collect()
}

fn context(position: u64) -> RowContext<'static> {
    RowContext::new(CompletionId::new(0, 0), position, DrawKey::new(0, &[], 0).at(position))
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
    assert_eq!(survivors(&[&TopP { p: 0.5 }], &[0.5, 0.5]), [0], "at p is enough");
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
fn top_n_sigma() {
    let of = |n: f32, logits: &[f32]| survivors_of_logits(&[&TopNSigma { n }], logits);
    // Mean 0, σ = √5 = 2.2361: 3 − n·σ reaches 1, −1 and −3 at n = .8944, 1.7889 and 2.6833.
    let row = [3.0, 1.0, -3.0, -1.0];
    assert_eq!(of(0.0, &row), [0]);
    assert_eq!(of(0.894, &row), [0]);
    assert_eq!(of(0.895, &row), [0, 1]);
    assert_eq!(of(1.788, &row), [0, 1]);
    assert_eq!(of(1.789, &row), [0, 1, 3]);
    assert_eq!(of(2.683, &row), [0, 1, 3]);
    assert_eq!(of(2.684, &row), [0, 1, 3, 2]);
    assert_eq!(of(0.0, &[2.0, 1.0, 2.0]), [0, 2], "equals of the best stay");
    assert_eq!(of(2.0, &[1.0, -1.0]), [0, 1], "σ = 1: on the border is inside");
    assert_eq!(of(1.999, &[1.0, -1.0]), [0]);
    let masked = [f32::NEG_INFINITY, 1.0, -1.0];
    assert_eq!(of(2.0, &masked), [1, 2], "masked tokens do not count");
    assert_eq!(of(0.0, &[5.0]), [0]);
}

#[test]
fn top_n_sigma_uses_the_whole_row_after_any_filter() {
    // Over the three best alone, σ is 1.63, and n = .895 would keep only the best.
    let row = [3.0, 1.0, -3.0, -1.0];
    let filters: [&dyn CandidateFilter; 2] = [&TopK { k: 3 }, &TopNSigma { n: 0.895 }];
    assert_eq!(survivors_of_logits(&filters, &row), [0, 1]);
    let config = Sampling::default().with_top_k(3).with_top_n_sigma(0.895);
    assert_eq!(kept_by_the_sampler(&row, 4, &config, None), [2], "the pool sees three tokens");
}

#[test]
fn top_n_sigma_does_not_depend_on_the_temperature() {
    let pair = [1.0, -1.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
    for order in [TemperatureOrder::BeforeFilters, TemperatureOrder::AfterFilters] {
        for temperature in [0.0, 0.3, 0.7, 1.0, 3.0, 30.0] {
            let config =
                Sampling::paper().with_temperature(temperature).with_temperature_order(order);
            let left = |logits: &[f32], n: f32| {
                let config = config.clone().with_top_n_sigma(n);
                kept_by_the_sampler(logits, 4, &config, None)[0]
            };
            assert_eq!(left(&[3.0, 1.0, -3.0, -1.0], 0.894), 1, "{temperature} {order:?}");
            assert_eq!(left(&[3.0, 1.0, -3.0, -1.0], 0.895), 2, "{temperature} {order:?}");
            assert_eq!(left(&pair, 2.0), 2, "on the border at {temperature} {order:?}");
            assert_eq!(left(&pair, 1.999), 1, "{temperature} {order:?}");
        }
    }
}

#[test]
fn top_n_sigma_without_statistics_is_an_error() {
    #[derive(Debug)]
    struct Wrapped(TopNSigma);
    impl CandidateFilter for Wrapped {
        fn filter(&self, row: &RowContext<'_>, candidates: &mut Candidates) {
            self.0.filter(row, candidates);
        }
    }
    let sampling =
        Sampling::new().with_custom_filter(Wrapped(TopNSigma { n: 1.0 })).checked().unwrap();
    let error = sampling.candidates(&context(0), &[1.0, 2.0]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "top_n_sigma: expected statistics of the row, got none (a filter that wraps it has to pass on `uses_row_stats`)"
    );
}

#[test]
fn typical() {
    // H = 1.280; surprisals .916, 1.204, 1.609 and 2.303 are .364, .076, .330 and 1.023 away: .3, .2, .4, .1.
    assert_eq!(one(Typical { mass: 0.01 }), [3]);
    assert_eq!(one(Typical { mass: 0.299 }), [3]);
    assert_eq!(one(Typical { mass: 0.301 }), [3, 0]);
    assert_eq!(one(Typical { mass: 0.499 }), [3, 0]);
    assert_eq!(one(Typical { mass: 0.501 }), [1, 3, 0]);
    assert_eq!(one(Typical { mass: 0.899 }), [1, 3, 0]);
    assert_eq!(one(Typical { mass: 0.901 }), [1, 3, 0, 2]);
    assert_eq!(one(Typical { mass: 1.0 }), [1, 3, 0, 2]);
    assert_eq!(survivors(&[&Typical { mass: 0.26 }], &[0.25; 4]), [0, 1], "of equals, the first");
    // Two tokens of .3 are nearer to H = 2.56 than forty of .01, and more likely.
    let mut row = vec![0.01; 42];
    row[5] = 0.3;
    row[9] = 0.3;
    assert_eq!(survivors(&[&Typical { mass: 0.29 }], &row), [5], "of equals, the first");
    assert_eq!(survivors(&[&Typical { mass: 0.31 }], &row), [5, 9]);
    assert_eq!(survivors(&[&Typical { mass: 0.5 }], &[0.5, 0.5]), [0], "at the mass is enough");
    // H = 3.20: those of .01 are 1.40 away, .2 is 1.59 and .25 is 1.81. All of the less likely ones come first.
    let mut row = vec![0.01; 57];
    row[5] = 0.25;
    row[9] = 0.2;
    let kept = survivors(&[&Typical { mass: 0.7 }], &row);
    assert_eq!((kept.len(), kept[0]), (56, 9), "only .25 is dropped");
    // After a filter: .4 and .3 become 4/7 and 3/7, H = .683, and .560 and .847 are .123 and .165 away.
    assert_eq!(survivors(&[&TopK { k: 2 }, &Typical { mass: 0.5 }], &PROBABILITIES), [1]);
}

#[test]
fn epsilon_cutoff() {
    assert_eq!(one(EpsilonCutoff { epsilon: 0.099 }), [1, 3, 0, 2]);
    assert_eq!(one(EpsilonCutoff { epsilon: 0.101 }), [1, 3, 0]);
    assert_eq!(one(EpsilonCutoff { epsilon: 0.199 }), [1, 3, 0]);
    assert_eq!(one(EpsilonCutoff { epsilon: 0.201 }), [1, 3]);
    assert_eq!(one(EpsilonCutoff { epsilon: 0.399 }), [1]);
    assert_eq!(one(EpsilonCutoff { epsilon: 0.9 }), [1], "where none is above, the best stays");
    assert_eq!(survivors(&[&EpsilonCutoff { epsilon: 0.499 }], &[0.5, 0.5]), [0, 1]);
    assert_eq!(survivors(&[&EpsilonCutoff { epsilon: 0.5 }], &[0.5, 0.5]), [0], "above, not at");
    let after_two: [&dyn CandidateFilter; 2] = [&TopK { k: 2 }, &EpsilonCutoff { epsilon: 0.42 }];
    assert_eq!(survivors(&after_two, &PROBABILITIES), [1, 3], "3/7 is above .42, .3 is not");
}

#[test]
fn eta_cutoff() {
    // H = 1.27985, exp(−H) = .27808: η reaches .1 at √ε = .3596, ε = .1293, and .2 at ε = .5173.
    assert_eq!(one(EtaCutoff { epsilon: 0.129 }), [1, 3, 0, 2]);
    assert_eq!(one(EtaCutoff { epsilon: 0.130 }), [1, 3, 0]);
    assert_eq!(one(EtaCutoff { epsilon: 0.517 }), [1, 3, 0]);
    assert_eq!(one(EtaCutoff { epsilon: 0.518 }), [1, 3]);
    // H = .325: √ε·exp(−H) is .228 here, so ε itself decides.
    assert_eq!(survivors(&[&EtaCutoff { epsilon: 0.099 }], &[0.9, 0.1]), [0, 1]);
    assert_eq!(survivors(&[&EtaCutoff { epsilon: 0.101 }], &[0.9, 0.1]), [0]);
    // A flat row of 100: H = 4.605, η = √ε/100 < .01 keeps all, whereas ε = .02 alone would keep one.
    assert_eq!(survivors(&[&EtaCutoff { epsilon: 0.02 }], &[0.01; 100]).len(), 100);
    assert_eq!(survivors(&[&EpsilonCutoff { epsilon: 0.02 }], &[0.01; 100]).len(), 1);
}

#[test]
fn xtc() {
    let always = |threshold| one(Xtc { threshold, probability: 1.0 });
    assert_eq!(always(0.099), [2]);
    assert_eq!(always(0.101), [0, 2]);
    assert_eq!(always(0.199), [0, 2]);
    assert_eq!(always(0.201), [3, 0, 2]);
    assert_eq!(always(0.299), [3, 0, 2]);
    assert_eq!(always(0.301), [1, 3, 0, 2], "one alone is not excluded");
    assert_eq!(always(0.5), [1, 3, 0, 2], "nor is none");
    assert_eq!(one(Xtc { threshold: 0.1, probability: 0.0 }), [1, 3, 0, 2]);
    let half = Xtc { threshold: 0.5, probability: 1.0 };
    assert_eq!(survivors(&[&half], &[0.5, 0.5]), [1], "at the threshold is a top choice");
    let flat = Xtc { threshold: 0.25, probability: 1.0 };
    assert_eq!(survivors(&[&flat], &[0.25; 4]), [3], "of equals, the last stays");
}

#[test]
fn xtc_acts_with_its_probability_and_independently_of_the_selection() {
    let filter = Xtc { threshold: 0.1, probability: 0.3 };
    let logits = PROBABILITIES.map(f32::ln);
    let (mut acted, mut selecting) = (0.0, 0.0);
    let rows = 4_000;
    for position in 0..rows {
        let context = context(position);
        let mut candidates = Candidates::from_logits(&logits).unwrap();
        filter.filter(&context, &mut candidates);
        if candidates.len() < 4 {
            acted += 1.0;
            selecting += context.draw.uniform();
        }
    }
    // Standard deviations: .0072 of the share, .0083 of the mean.
    assert!((acted / rows as f64 - 0.3).abs() < 0.03, "{acted}");
    assert!((selecting / acted - 0.5f64).abs() < 0.035, "the selecting number is not the chance's");
}

#[test]
fn order_matters() {
    // Top-k first leaves .4 and .3, which are renormalised to .57 and .43: the first alone reaches p = .5.
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
        let typical = Typical { mass: p };
        assert_eq!(wording(&typical), format!("typical: expected a number in (0, 1], got {p}"));
    }
    for epsilon in [0.0, -0.1, 1.0, f32::NAN] {
        assert_eq!(
            wording(&EpsilonCutoff { epsilon }),
            format!("epsilon_cutoff: expected a number in (0, 1), got {epsilon}")
        );
        assert_eq!(
            wording(&EtaCutoff { epsilon }),
            format!("eta_cutoff: expected a number in (0, 1), got {epsilon}")
        );
    }
    for n in [-0.1, f32::NAN, f32::INFINITY] {
        let expected = format!("top_n_sigma: expected a number of at least 0, got {n}");
        assert_eq!(wording(&TopNSigma { n }), expected);
    }
    for threshold in [0.0, 0.501, f32::NAN] {
        assert_eq!(
            wording(&Xtc { threshold, probability: 0.5 }),
            format!("xtc threshold: expected a number in (0, 0.5], got {threshold}")
        );
    }
    for probability in [-0.1, 1.001, f32::NAN] {
        assert_eq!(
            wording(&Xtc { threshold: 0.1, probability }),
            format!("xtc probability: expected a number in [0, 1], got {probability}")
        );
    }
}

/// The number of candidates that remain in the sampler for each row, starting from the pool.
fn kept_by_the_sampler(
    logits: &[f32],
    vocab: usize,
    config: &Sampling,
    allowed: Option<&TokenMask>,
) -> Vec<usize> {
    let device = Device::flex();
    let sampling = config.clone().with_beta(0.0).checked().unwrap();
    let rows: Vec<StepRow<'_>> = (0..logits.len() / vocab)
        .map(|row| {
            StepRow::new(
                CompletionId::new(0, row as u64),
                DrawKey::new(0, &[], row as u64),
                &[],
                &[],
                &sampling,
            )
            .with_phase(Phase::Decode)
            .with_allowed(allowed)
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
    let config = Sampling::paper();
    let left = |config: &Sampling| kept_by_the_sampler(&logits, 4, config, Some(&allowed))[0];
    assert_eq!(left(&config), 2);
    assert_eq!(left(&config.clone().with_min_p(0.501)), 1, "half as likely as the best allowed");
    assert_eq!(left(&config.clone().with_min_p(0.499)), 2);
    assert_eq!(left(&config.clone().with_top_p(0.6)), 1, "two thirds of what is allowed");
    assert_eq!(left(&config.clone().with_epsilon_cutoff(0.332)), 2, "a third of what is allowed");
    assert_eq!(left(&config.clone().with_epsilon_cutoff(0.334)), 1);
    assert_eq!(left(&config.clone().with_top_n_sigma(2.01)), 2, "two tokens are two σ apart");
    assert_eq!(left(&config.clone().with_top_n_sigma(1.99)), 1);
    assert_eq!(left(&config.with_xtc(0.3, 1.0)), 1, "both are top choices");
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
                continue; // needs the mass of the whole vocabulary: tested in golden_model.rs
            }
            let mut config = Sampling::paper().with_temperature(temperature);
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
            // Candidates are sorted best first, so equal numbers of kept tokens mean the same tokens.
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
