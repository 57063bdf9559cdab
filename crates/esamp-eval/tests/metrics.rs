//! Compares metrics with established packages (numpy, scipy, nltk, vendi-score):
//! tests/golden/metrics/make.py.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;

use esamp::TokenId;
use esamp_eval::metrics::{
    BootstrapConfig, BootstrapMethod, McNemar, Smoothing, distinct_n, entropy, kl_divergence,
    mean_interval, mean_pairwise_cosine, partial_spearman, pearson, self_bleu, spearman,
    vendi_from_embeddings, vendi_from_kernel,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    vendi_kernels: Vec<Kernel>,
    embeddings: Vec<Embeddings>,
    texts: Vec<Texts>,
    distributions: Vec<Distributions>,
    correlations: Vec<Correlations>,
    mcnemar: Vec<McNemar>,
    bootstrap: Vec<Bootstrap>,
}

#[derive(Deserialize)]
struct Kernel {
    kernel: Vec<Vec<f64>>,
    /// Null stands for infinity.
    orders: Vec<Option<f64>>,
    scores: Vec<f64>,
}

#[derive(Deserialize)]
struct Embeddings {
    rows: Vec<Vec<f64>>,
    orders: Vec<Option<f64>>,
    scores: Vec<f64>,
    mean_cosine: f64,
}

#[derive(Deserialize)]
struct Texts {
    texts: Vec<Vec<TokenId>>,
    self_bleu: SelfBleu,
    distinct: Vec<f64>,
}

/// For the orders 1 to 5.
#[derive(Deserialize)]
struct SelfBleu {
    none: Vec<f64>,
    epsilon: Vec<f64>,
    add_one: Vec<f64>,
}

#[derive(Deserialize)]
struct Distributions {
    new: Vec<f64>,
    reference: Vec<f64>,
    entropy: f64,
    kl: f64,
}

#[derive(Deserialize)]
struct Correlations {
    x: Vec<f64>,
    y: Vec<f64>,
    controls: Vec<Vec<f64>>,
    pearson: f64,
    spearman: f64,
    partial: f64,
}

#[derive(Deserialize)]
struct Bootstrap {
    values: Vec<f64>,
    percentile: [f64; 2],
    bca: [f64; 2],
}

fn golden() -> Golden {
    let path = esamp_testkit::golden::path("metrics/metrics.json");
    let golden: Golden = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(golden.vendi_kernels.len() >= 20 && golden.embeddings.len() >= 5);
    assert!(golden.texts.len() >= 5 && golden.distributions.len() >= 3);
    assert!(golden.correlations.len() >= 4 && golden.mcnemar.len() >= 7);
    golden
}

fn close(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance, "{got}, expected {expected}");
}

#[test]
fn vendi_is_that_of_the_package() {
    let golden = golden();
    for Kernel { kernel, orders, scores } in &golden.vendi_kernels {
        for (order, score) in orders.iter().zip(scores) {
            let order = order.unwrap_or(f64::INFINITY);
            close(vendi_from_kernel(kernel, order).unwrap(), *score, 1e-6);
        }
    }
    for Embeddings { rows, orders, scores, mean_cosine } in &golden.embeddings {
        for (order, score) in orders.iter().zip(scores) {
            let order = order.unwrap_or(f64::INFINITY);
            close(vendi_from_embeddings(rows, order).unwrap(), *score, 1e-6);
        }
        close(mean_pairwise_cosine(rows).unwrap(), *mean_cosine, 1e-12);
    }
}

#[test]
fn self_bleu_is_that_of_nltk() {
    for Texts { texts, self_bleu: expected, distinct } in golden().texts {
        for (smoothing, expected) in [
            (Smoothing::None, expected.none),
            (Smoothing::Epsilon, expected.epsilon),
            (Smoothing::AddOne, expected.add_one),
        ] {
            assert_eq!(expected.len(), 5);
            for (order, expected) in (1..).zip(expected) {
                close(self_bleu(&texts, order, smoothing).unwrap(), expected, 1e-12);
            }
        }
        for (n, expected) in (1..).zip(distinct) {
            close(distinct_n(&texts, n).unwrap(), expected, 1e-12);
        }
    }
}

#[test]
fn entropy_and_divergence_are_those_of_scipy() {
    for Distributions { new, reference, entropy: expected, kl } in golden().distributions {
        close(entropy(&new).unwrap(), expected, 1e-12);
        close(kl_divergence(&new, &reference).unwrap(), kl, 1e-12);
    }
}

#[test]
fn correlations_are_those_of_scipy() {
    for golden in golden().correlations {
        let Correlations { x, y, controls, .. } = golden;
        close(pearson(&x, &y).unwrap(), golden.pearson, 1e-12);
        close(spearman(&x, &y).unwrap(), golden.spearman, 1e-12);
        close(partial_spearman(&x, &y, &controls).unwrap(), golden.partial, 1e-10);
    }
}

#[test]
fn the_exact_test_is_that_of_scipy() {
    for McNemar { only_new, only_old, p_value } in golden().mcnemar {
        let got = McNemar::of_counts(only_new, only_old).p_value;
        close(got / p_value, 1.0, 1e-10);
    }
}

/// Both programs use 200,000 resamples of their own, so ends differ by at most a hundredth of the interval.
#[test]
fn bootstrap_intervals_are_those_of_scipy() {
    for Bootstrap { values, percentile, bca } in golden().bootstrap {
        for (method, [low, high]) in
            [(BootstrapMethod::Percentile, percentile), (BootstrapMethod::Bca, bca)]
        {
            let config = BootstrapConfig::default().with_resamples(200_000).with_method(method);
            let got = mean_interval(&values, &config).unwrap();
            // Means of zeros and ones change in steps of one problem, and an end may fall on either side of
            // a step.
            let step: f64 =
                if values.iter().all(|v| v.fract() == 0.0) { 1.0 / 40.0 + 1e-9 } else { 0.0 };
            let tolerance = step.max(0.01 * (high - low));
            close(got.low, low, tolerance);
            close(got.high, high, tolerance);
        }
    }
}
