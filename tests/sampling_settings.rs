//! Serialised sampling settings: all of them round-trip, and their names are stable.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::tensor::Device;
use esamp::{
    Dry, Fire, Penalties, Request, Sampler, SamplerConfig, Sampling, Selection, Sharing,
    TemperatureOrder,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    errors::RowError,
    filters::{CandidateFilter, Candidates, FilterConfig, MinP, RowContext, TopK},
    optim::{AdaptiveConfig, Learner, OptimizerConfig, TrainRows, TrainingConfig},
    reweighters::{Expects, NoveltyReweighter, ReweighterConfig},
};
use serde::de::DeserializeOwned;

fn everything() -> Sampling {
    Sampling::default()
        .with_temperature(0.8)
        .with_temperature_order(TemperatureOrder::AfterFilters)
        .with_beta(0.5)
        .with_top_k(40)
        .with_top_p(0.95)
        .with_min_p(0.05)
        .with_top_n_sigma(1.0)
        .with_typical(0.9)
        .with_epsilon_cutoff(0.0006)
        .with_eta_cutoff(0.002)
        .with_xtc(0.1, 0.5)
        .with_penalties(
            Penalties::new()
                .with_repetition(1.1)
                .with_frequency(0.2)
                .with_presence(0.3)
                .with_no_repeat_ngram(4)
                .with_dry(Dry::new(0.8).with_breakers([13, 198])),
        )
        .with_logit_bias(7, -2.5)
        .with_logit_bias(50_000, 1.0)
        .with_fire(Fire::new(30.0).with_tokens(2))
        .with_selection(Selection::Arithmetic)
}

#[test]
fn all_settings_round_trip() {
    let config = everything();
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Sampling>(&written).unwrap(), config);
    assert!(config.checked().is_ok());
    let default = Sampling::default();
    let written = serde_json::to_string(&default).unwrap();
    assert_eq!(serde_json::from_str::<Sampling>(&written).unwrap(), default);
}

#[test]
fn the_serialized_names_are_stable() {
    let expected = serde_json::json!({
        "temperature": 0.8f32,
        "temperature_order": "after_filters",
        "filters": [
            { "top_k": { "k": 40 } },
            { "top_p": { "p": 0.95f32 } },
            { "min_p": { "p": 0.05f32 } },
            { "top_n_sigma": { "n": 1.0f32 } },
            { "typical": { "mass": 0.9f32 } },
            { "epsilon_cutoff": { "epsilon": 0.0006f32 } },
            { "eta_cutoff": { "epsilon": 0.002f32 } },
            { "xtc": { "threshold": 0.1f32, "probability": 0.5f32 } },
        ],
        "beta": 0.5f32,
        "reweighter": "extrapolate",
        "penalties": {
            "repetition": 1.1f32,
            "frequency": 0.2f32,
            "presence": 0.3f32,
            "no_repeat_ngram": 4,
            "dry": {
                "multiplier": 0.8f32,
                "base": 1.75f32,
                "allowed_length": 2,
                "breakers": [13, 198],
                "range": null,
            },
        },
        "logit_bias": { "7": -2.5f32, "50000": 1.0f32 },
        "fire": { "temperature": 30.0f32, "tokens": 2 },
        "selection": "arithmetic",
    });
    assert_eq!(serde_json::to_value(everything()).unwrap(), expected);
}

#[test]
fn missing_settings_are_off() {
    let old = r#"{ "temperature": 1.0, "temperature_order": "before_filters", "filters": [], "beta": 0.25 }"#;
    let read: Sampling = serde_json::from_str(old).unwrap();
    assert_eq!(read, Sampling::paper());
    assert_eq!(read.filters(), []);
    assert_eq!(serde_json::from_str::<Sampling>("{}").unwrap(), Sampling::default());
    let one = serde_json::from_str::<Sampling>(r#"{ "temperature": 0.8 }"#).unwrap();
    assert_eq!(one, Sampling::new().with_temperature(0.8));
    let some = r#"{ "temperature": 1.0, "temperature_order": "before_filters", "filters": [], "beta": 0.25,
        "penalties": { "presence": 0.5 }, "fire": { "temperature": 10.0 } }"#;
    let read: Sampling = serde_json::from_str(some).unwrap();
    let presence = Penalties::new().with_presence(0.5);
    let expected = Sampling::paper().with_penalties(presence).with_fire(Fire::new(10.0));
    assert_eq!(read, expected);
    let some = r#"{ "filters": [], "penalties": { "dry": { "range": 512 } } }"#;
    let dry = Penalties::new().with_dry(Dry::default().with_range(512));
    let read: Sampling = serde_json::from_str(some).unwrap();
    assert_eq!(read, Sampling::paper().with_penalties(dry));
    // Records are compared by the written form, so later penalties are not in that of settings without them.
    let written = serde_json::to_value(Penalties::new()).unwrap();
    let expected =
        serde_json::json!({ "repetition": 1.0f32, "frequency": 0.0f32, "presence": 0.0f32 });
    assert_eq!(written, expected);
}

#[test]
fn without_filters_of_its_own_a_request_has_min_p() {
    let min_p = |p: f32| FilterConfig::from(MinP { p });
    assert_eq!(Sampling::new().filters(), [min_p(0.05)]);
    assert_eq!(serde_json::from_str::<Sampling>("{}").unwrap().filters(), [min_p(0.05)]);
    // The first filter replaces the default one.
    let two = Sampling::new().with_min_p(0.1).with_top_k(4);
    assert_eq!(two.filters(), [min_p(0.1), TopK { k: 4 }.into()]);
    assert_eq!(Sampling::paper().filters(), []);
    assert_eq!(two.without_filters(), Sampling::paper());
    assert_eq!(Sampling::paper().with_top_k(4), Sampling::new().with_top_k(4));
}

#[test]
fn settings_of_a_sampler_may_be_partial_too() {
    fn read<T: DeserializeOwned>(written: &str) -> T {
        serde_json::from_str(written).unwrap()
    }
    assert_eq!(read::<SamplerConfig>("{}"), SamplerConfig::paper());
    assert_eq!(read::<TrainingConfig>("{}"), TrainingConfig::new());
    assert_eq!(read::<SwiGluConfig>(r#"{ "blocks": 1 }"#), SwiGluConfig::new().with_blocks(1));
    assert_eq!(read::<LowRankConfig>(r#"{ "rank": 8 }"#), LowRankConfig::new().with_rank(8));
    assert_eq!(
        read::<OptimizerConfig>(r#"{ "learning_rate": 3e-3 }"#),
        OptimizerConfig::paper().with_learning_rate(3e-3)
    );
    assert_eq!(
        read::<OptimizerConfig>(
            r#"{ "rule": "sgd", "learning_rate": 0.1, "max_grad_norm": null }"#
        ),
        OptimizerConfig::sgd(0.1)
    );
    let written = r#"{ "sharing": { "adaptive": { "half_life": 4.0 } },
        "training": { "train_rows": "first_per_prompt" } }"#;
    let training = TrainingConfig::new().with_train_rows(TrainRows::FirstPerPrompt);
    let sharing = Sharing::Adaptive(AdaptiveConfig::new().with_half_life(4.0));
    let expected = SamplerConfig::new().with_sharing(sharing).with_training(training);
    assert_eq!(read::<SamplerConfig>(written), expected);
}

#[test]
fn an_unknown_name_is_an_error() {
    fn refused<T: DeserializeOwned>(written: &str) {
        let error = serde_json::from_str::<T>(written).err().unwrap().to_string();
        assert!(error.starts_with("unknown field `odd`"), "{error}");
    }
    let odd = r#"{ "odd": 1 }"#;
    refused::<Sampling>(odd);
    refused::<SamplerConfig>(odd);
    refused::<TrainingConfig>(odd);
    refused::<OptimizerConfig>(odd);
    refused::<OptimizerConfig>(r#"{ "rule": { "momentum": { "momentum": 0.9, "odd": 1 } } }"#);
    refused::<SwiGluConfig>(odd);
    refused::<LowRankConfig>(odd);
    refused::<LowRankConfig>(r#"{ "start": { "ridge": { "rows": 4, "odd": 1 } } }"#);
    refused::<AdaptiveConfig>(odd);
    refused::<Penalties>(odd);
    refused::<Dry>(odd);
    refused::<Fire>(odd);
    refused::<Sampling>(r#"{ "filters": [{ "top_k": { "k": 4, "odd": 1 } }] }"#);
}

#[derive(Debug)]
struct Own;

impl CandidateFilter for Own {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        candidates.truncate(1);
    }
}

impl NoveltyReweighter for Own {
    fn reweight(&self, _row: &RowContext<'_>, _candidates: &mut Candidates) {}

    fn expects(&self) -> Expects {
        Expects::Nothing
    }
}

/// They run in their place among the others, and settings that contain them cannot be serialised.
#[test]
fn custom_parts_are_not_serialized() {
    let filtered = Sampling::new().with_top_k(4).with_custom_filter(Own).with_top_p(0.5);
    let reweighted = Sampling::new().with_custom_reweighter(Own);
    let processed = Sampling::new().with_logits_processor(
        |_: &RowContext<'_>, _: &mut [f32]| -> Result<(), RowError> { Ok(()) },
    );
    assert_eq!(processed, processed.clone());
    assert_eq!(
        serde_json::to_string(&processed).unwrap_err().to_string(),
        "expected built-in filters, reweighters and selections, got a custom one: LogitsProcessor"
    );
    assert!(serde_json::from_str::<Sampling>(r#"{ "logits_processor": null }"#).is_err());
    assert_eq!(reweighted.expects(), Expects::Nothing);
    for sampling in [&filtered, &reweighted] {
        sampling.validate().unwrap();
        assert_eq!(sampling, &sampling.clone());
        assert_eq!(
            serde_json::to_string(sampling).unwrap_err().to_string(),
            "expected built-in filters, reweighters and selections, got a custom one: Own"
        );
    }
    assert_ne!(FilterConfig::custom(Own), FilterConfig::custom(Own));
    assert_ne!(ReweighterConfig::custom(Own), ReweighterConfig::default());
    assert_eq!(FilterConfig::from(TopK { k: 4 }), filtered.filters()[0]);
    assert!(serde_json::from_str::<FilterConfig>(r#"{ "custom": null }"#).is_err());
}

#[test]
fn every_setting_is_checked() {
    let wording = |config: Sampling| {
        let error = config.checked().unwrap_err();
        assert_eq!(config.validate().unwrap_err().to_string(), error.to_string());
        error.to_string()
    };
    let base = Sampling::default;
    let repetition = Penalties::new().with_repetition(0.0);
    assert_eq!(
        wording(base().with_penalties(repetition)),
        "repetition penalty: expected a number above 0, got 0"
    );
    assert_eq!(
        wording(base().with_logit_bias(3, f32::NEG_INFINITY)),
        "logit bias: expected a finite number, got -inf"
    );
    assert_eq!(
        wording(base().with_penalties(Penalties::new().with_dry(Dry::new(0.8).with_base(0.5)))),
        "dry base: expected a number of at least 1, got 0.5"
    );
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(
            wording(base().with_fire(Fire::new(temperature))),
            format!("fire temperature: expected a number above 0, got {temperature}")
        );
    }
    assert_eq!(
        wording(base().with_fire(Fire::new(30.0).with_tokens(0))),
        "fire tokens: expected at least 1, got 0"
    );
    assert_eq!(
        wording(base().with_top_n_sigma(-1.0)),
        "top_n_sigma: expected a number of at least 0, got -1"
    );
    assert_eq!(wording(base().with_typical(0.0)), "typical: expected a number in (0, 1], got 0");
    assert_eq!(
        wording(base().with_epsilon_cutoff(1.0)),
        "epsilon_cutoff: expected a number in (0, 1), got 1"
    );
    assert_eq!(
        wording(base().with_eta_cutoff(0.0)),
        "eta_cutoff: expected a number in (0, 1), got 0"
    );
    assert_eq!(
        wording(base().with_xtc(0.6, 0.5)),
        "xtc threshold: expected a number in (0, 0.5], got 0.6"
    );
}

#[test]
fn settings_of_a_sampler_are_those_that_were_set() {
    let config = SamplerConfig::for_short_completions().with_distiller_seed(7);
    let rate = OptimizerConfig::paper().with_learning_rate(3e-3);
    assert_eq!((config.optimizer, config.distiller_seed), (Some(rate), 7));
    assert_eq!(config.with_distiller_seed(0), SamplerConfig::new().with_optimizer(rate));
    let reference = SamplerConfig::reference();
    assert_eq!(reference.distiller, DistillerConfig::LowRank(LowRankConfig::new()));
    assert_eq!(reference.optimizer, Some(OptimizerConfig::sgd(1e-3)));
    assert_eq!(reference.training.train_rows, TrainRows::FirstPerPrompt);
}

#[test]
fn the_distillers_settings_are_checked_with_the_others() {
    let wording = |distiller: DistillerConfig| {
        SamplerConfig::new().with_distiller(distiller).validate().unwrap_err().to_string()
    };
    let blocks = SwiGluConfig::new().with_blocks(0);
    assert_eq!(wording(DistillerConfig::SwiGlu(blocks)), "blocks: expected at least 1, got 0");
    let rank = LowRankConfig::new().with_rank(0);
    assert_eq!(wording(DistillerConfig::LowRank(rank)), "rank: expected at least 1, got 0");
    assert_eq!(SamplerConfig::reference().validate(), Ok(()));
}

/// What holds closures or tensors is debugged by its settings.
#[test]
fn what_is_debugged_shows_its_settings() {
    let request = Request::new(vec![1, 2]).with_completions(3);
    let shown = format!("{request:?}");
    assert!(shown.starts_with("Request { prompt_tokens: 2, completions: 3, "), "{shown}");
    let config = SamplerConfig::new().with_distiller_seed(7);
    let shown = format!("{:?}", Sampler::builder(config));
    assert!(shown.starts_with("SamplerBuilder { config: SamplerConfig { "), "{shown}");
    assert!(shown.contains("distiller_seed: 7"), "{shown}");
    let distiller = SwiGluConfig::new().init(4, 0, &Device::flex()).unwrap();
    let shown = format!("{:?}", Learner::new(distiller, OptimizerConfig::paper()).unwrap());
    assert!(shown.starts_with("Learner { distiller: SwiGluDistiller { "), "{shown}");
}
