//! The best logits of each row, found on the device, give the same tokens as all logits.

use std::ops::ControlFlow;

use super::decode_loop::run;
use crate::device;
use esamp::{
    Completion, CompletionId, Counters, Decoder, Penalties, Request, SamplerConfig, Sampling,
    TemperatureOrder, TokenId, TokenMask,
    distillers::{DistillerConfig, LowRankConfig},
    telemetry::RowTrace,
    testing::{ScriptedLm, TinyLm},
    unstable::LogitsTransfer,
};

const VOCAB: usize = 330;

/// A model whose vocabulary has several groups of tokens, the last one not full. Its logits have no ties.
fn wide() -> ScriptedLm {
    ScriptedLm::new(VOCAB, &device(), |sequence| {
        let seed =
            sequence.iter().fold(7u64, |hash, &token| hash * 31 % 100_003 + u64::from(token));
        let logit = |token: u64| ((token * 7919 + seed * 104_729) % 100_003) as f32 / 1e3;
        (0..VOCAB as u64).map(logit).collect()
    })
}

fn decoder<M: esamp::CausalLm>(model: M, d_model: usize, transfer: LogitsTransfer) -> Decoder<M> {
    // Small, because the hidden states of `wide` are as wide as its vocabulary.
    let distiller = DistillerConfig::LowRank(LowRankConfig::new().with_rank(4));
    let config = SamplerConfig::new().with_distiller(distiller).with_logits_transfer(transfer);
    Decoder::new(model, config.init(d_model, &device()).unwrap()).unwrap()
}

/// The completions of two prompts, and the counters.
fn completions(
    sampling: &Sampling,
    transfer: LogitsTransfer,
    ask: impl Fn(Request) -> Request,
) -> (Vec<Completion>, Counters) {
    let mut decoder = decoder(wide(), VOCAB, transfer);
    for prompt in [vec![1, 2, 3], vec![9; 5]] {
        let request = Request::new(prompt).with_sampling(sampling.clone()).with_seed(5);
        decoder.submit(ask(request.with_completions(3).with_max_new_tokens(8))).unwrap();
    }
    (run(&mut decoder), *decoder.sampler().counters())
}

/// Asserts that both ways give the same; returns the counters of the best logits.
fn same(sampling: Sampling, k: usize, ask: impl Fn(Request) -> Request) -> Counters {
    let (whole, _) = completions(&sampling, LogitsTransfer::Whole, &ask);
    let (best, counters) = completions(&sampling, LogitsTransfer::Best(k), &ask);
    assert_eq!(whole.len(), best.len());
    for (whole, best) in whole.iter().zip(&best) {
        assert_eq!(whole.tokens(), best.tokens(), "{sampling:?}");
        for (a, b) in whole.choices.iter().zip(&best.choices) {
            assert_eq!(
                (a.candidates, a.top_log_probs.len()),
                (b.candidates, b.top_log_probs.len())
            );
            let near = |a: f32, b: f32| assert!((a - b).abs() < 2e-3 * (1.0 + a.abs()), "{a} {b}");
            near(a.log_prob, b.log_prob);
            near(a.reference_log_prob.unwrap_or(0.0), b.reference_log_prob.unwrap_or(0.0));
            for (a, b) in a.top_log_probs.iter().zip(&b.top_log_probs) {
                assert_eq!(a.0, b.0);
                near(a.1, b.1);
            }
        }
    }
    counters
}

fn min_p() -> Sampling {
    Sampling::paper().with_beta(0.5).with_min_p(0.1)
}

#[test]
fn a_step_makes_one_transfer() {
    let counters = same(min_p(), 32, |request| request);
    assert!(counters.steered > 0 && counters.candidates > 2 * counters.tokens, "{counters:?}");
    assert_eq!((counters.transfers, counters.rows_read_whole), (counters.steps, 0));
    let penalised =
        min_p().with_penalties(Penalties::new().with_presence(0.5).with_repetition(1.1));
    let counters = same(penalised, 32, |request| request);
    assert_eq!((counters.transfers, counters.rows_read_whole), (counters.steps, 0));
    let counters = same(min_p(), 32, |request| request.with_top_log_probs(4));
    assert_eq!((counters.transfers, counters.rows_read_whole), (counters.steps, 0));

    // The whole rows first, then the expected logits of the candidates; a prompt's first token has none.
    let (_, counters) = completions(&min_p(), LogitsTransfer::Whole, |request| request);
    assert!(counters.transfers > counters.steps && counters.transfers <= 2 * counters.steps);
}

#[test]
fn every_filter_keeps_the_same_tokens() {
    let base = || Sampling::paper().with_beta(0.5).with_temperature(0.7);
    for sampling in [
        base().with_top_k(5),
        base().with_top_p(0.6),
        base().with_top_p(0.6).with_temperature_order(TemperatureOrder::AfterFilters),
        base().with_epsilon_cutoff(0.05),
        base().with_min_p(0.2).with_typical(0.8),
        base().with_beta(0.0).with_min_p(0.1),
    ] {
        let counters = same(sampling, 32, |request| request);
        assert!(counters.rows_read_whole <= counters.tokens / 4, "{counters:?}");
    }
    // These are known to need the whole row, and do not have it read twice.
    for sampling in [
        base(),
        base().with_typical(0.4),
        base().with_top_n_sigma(1.0),
        base().with_temperature(0.0),
    ] {
        let counters = same(sampling, 32, |request| request);
        assert_eq!(counters.rows_read_whole, 0);
    }
}

#[test]
fn rows_whose_filters_need_more_are_read_whole() {
    // Two known tokens cannot show that there is no third.
    let counters = same(min_p(), 2, |request| request);
    assert!(counters.rows_read_whole > counters.tokens / 2, "{counters:?}");
    assert!(counters.transfers > counters.steps);
}

#[test]
fn penalties_bias_and_masks_reach_beyond_the_best() {
    // Few enough that the best of them are not among the 16, and a temperature at which several are candidates.
    let some = (0..VOCAB as TokenId).step_by(20);
    let biased = some.fold(min_p().with_temperature(4.0), |sampling, token| {
        sampling.with_logit_bias(token, 60.0)
    });
    let counters = same(biased.clone(), 16, |request| request);
    assert!(counters.interventions > 0);
    same(biased.with_top_p(0.7), 16, |request| request);
    let sequences = Penalties::new().with_no_repeat_ngram(2).with_frequency(1.0);
    same(min_p().with_penalties(sequences), 16, |request| request);
    let odd = || TokenMask::allowing(VOCAB, (1..VOCAB as TokenId).step_by(2));
    let masked = |request: Request| {
        request.with_masker(move |_: CompletionId, _: &[TokenId]| Ok(Some(odd())))
    };
    same(min_p(), 32, masked);
    same(min_p().with_top_p(0.7), 32, masked);
}

/// The probability mass outside is computed from the mass that the device has summed, or from the whole row.
#[test]
fn an_observer_is_told_the_same() {
    let odd = |request: Request| {
        let mask = TokenMask::allowing(VOCAB, (1..VOCAB as TokenId).step_by(2));
        request.with_masker(move |_: CompletionId, _: &[TokenId]| Ok(Some(mask.clone())))
    };
    let penalised = min_p().with_penalties(Penalties::new().with_presence(2.0));
    for (sampling, is_masked) in [(min_p(), false), (penalised, false), (min_p(), true)] {
        let [whole, best] = [LogitsTransfer::Whole, LogitsTransfer::Best(32)].map(|transfer| {
            let mut decoder = decoder(wide(), VOCAB, transfer);
            decoder.sampler_mut().set_observer(|_: &RowTrace| {});
            let request = Request::new(vec![1, 2]).with_sampling(sampling.clone()).with_seed(5);
            let request = if is_masked { odd(request) } else { request };
            decoder.submit(request.with_completions(3).with_max_new_tokens(8)).unwrap();
            (run(&mut decoder), *decoder.sampler().counters())
        });
        let tokens = |run: &[Completion]| run.iter().map(Completion::tokens).collect::<Vec<_>>();
        assert_eq!(tokens(&whole.0), tokens(&best.0));
        let (whole, best) = (whole.1, best.1);
        assert_eq!(whole.observed, best.observed);
        assert!(best.mass_outside > 0.0);
        assert!((whole.mass_outside - best.mass_outside).abs() < 1e-4 * best.observed as f64);
        assert_eq!(best.rows_read_whole, if is_masked { best.tokens } else { 0 });
    }
}

#[test]
fn rows_that_are_not_numbers_fail_alone() {
    let model = ScriptedLm::new(VOCAB, &device(), |sequence| {
        let mut logits: Vec<f32> = (0..VOCAB).map(|i| (i * 37 % VOCAB) as f32 / 50.0).collect();
        match sequence[0] {
            1 => logits[17] = f32::NAN,
            2 => logits[17] = f32::INFINITY,
            3 => logits.fill(f32::NEG_INFINITY),
            4 => logits[3..].fill(f32::NEG_INFINITY),
            _ => {}
        }
        logits
    });
    let fails = |transfer| {
        let mut decoder = decoder(&model, VOCAB, transfer);
        for first in 0..5 {
            let sampling = Sampling::paper().with_beta(0.0).with_min_p(0.5);
            let request = Request::new(vec![first]).with_sampling(sampling).with_max_new_tokens(2);
            decoder.submit(request.with_seed(1)).unwrap();
        }
        let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
        completions.iter().map(|c| format!("{:?} {:?}", c.finish, c.tokens())).collect::<Vec<_>>()
    };
    assert_eq!(fails(LogitsTransfer::Best(8)), fails(LogitsTransfer::Whole));
}

#[test]
fn a_model_with_a_head_of_its_own() {
    let tokens = |transfer| {
        let mut decoder = decoder(TinyLm::new(3, &device()), TinyLm::D_MODEL, transfer);
        let request = Request::new(vec![1, 2]).with_sampling(min_p()).with_seed(2);
        decoder.submit(request.with_completions(4).with_max_new_tokens(20)).unwrap();
        run(&mut decoder).iter().map(Completion::tokens).collect::<Vec<_>>()
    };
    assert_eq!(tokens(LogitsTransfer::Best(24)), tokens(LogitsTransfer::Whole));
}
