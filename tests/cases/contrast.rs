//! A second model in the decode loop, in addition to the first.

use std::ops::ControlFlow;

use esamp::{
    CausalLm, Completion, Decoder, FinishReason, Request, SamplerConfig, Sampling, TokenId,
    reweighters::ReweighterConfig,
    testing::{ScriptedLm, TinyLm},
};

use super::decode_loop::finished;
use crate::device;

const VOCAB: usize = 10;

pub(super) fn decoder<M: CausalLm>(model: M) -> Decoder<M> {
    let sampler = SamplerConfig::new().init(model.d_model(), &device()).unwrap();
    Decoder::new(model, sampler).unwrap()
}

fn run<M: CausalLm>(decoder: &mut Decoder<M>) -> Vec<Completion> {
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

pub(super) fn contrast(beta: f32) -> Sampling {
    let config = Sampling::paper().with_reweighter(ReweighterConfig::Contrast);
    config.with_beta(beta)
}

/// Logits that depend on every token of the sequence and its position, so that a cache that is out of step gives
/// different ones.
pub(super) fn hashing(salt: u64) -> ScriptedLm {
    ScriptedLm::new(VOCAB, &device(), move |sequence| {
        let hash = sequence.iter().fold(salt, |hash, &token| {
            (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
        });
        (0..VOCAB as u64)
            .map(|token| {
                let bits = (hash ^ token.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .wrapping_mul(0xff51_afd7_ed55_8ccd);
                (bits >> 40) as f32 / (1u64 << 22) as f32
            })
            .collect()
    })
}

#[test]
fn a_model_contrasted_with_itself_is_the_plain_model() {
    let model = TinyLm::new(5, &device());
    let tokens = |reweighter: ReweighterConfig, beta: f32| {
        let mut decoder = decoder(&model).with_other_model(model.clone()).unwrap();
        let sampling = Sampling::default().with_min_p(0.05).with_reweighter(reweighter);
        let sampling = sampling.with_beta(beta);
        for prompt in [vec![7, 8, 9], vec![1]] {
            let request =
                Request::new(prompt).with_completions(2).with_seed(11).with_max_new_tokens(20);
            decoder.submit(request.with_sampling(sampling.clone())).unwrap();
        }
        let tokens: Vec<_> = run(&mut decoder).iter().map(Completion::tokens).collect();
        (tokens, *decoder.sampler().counters())
    };
    let (itself, counters) = tokens(ReweighterConfig::Contrast, 0.7);
    let (plain, _) = tokens(ReweighterConfig::Extrapolate, 0.0);
    assert_eq!(itself, plain);
    assert_eq!((counters.contrasted, counters.tokens), (80, 80), "the first token too");
    assert_eq!((counters.updates, counters.eligible), (0, 0), "no distiller work");
}

/// The expert prefers 0, closely followed by 1; the amateur prefers 0. (1 + β)·e − β·a by hand:
/// 0: 1.5·2.0 − 0.5·3.0 = 1.5; 1: 1.5·1.8 − 0.5·1.0 = 2.2; 2: 1.5·0 − 0.5·(−4) = 2, if min-p keeps it.
#[test]
fn an_amateur_changes_the_choice_as_the_formula_says() {
    let expert = ScriptedLm::new(3, &device(), |_| vec![2.0, 1.8, 0.0]);
    let amateur = ScriptedLm::new(3, &device(), |_| vec![3.0, 1.0, -4.0]);
    let greedy = |config: Sampling| config.with_temperature(0.0);
    for (config, token) in [
        (Sampling::paper().with_beta(0.0), 0),
        (Sampling::contrastive(), 1), // min-p 0.1: 2.0 − 2.3 < 0, so 2 is kept
        (Sampling::contrastive().with_beta(1.0), 2), // 0: 1, 1: 2.6, 2: 4
        (Sampling::contrastive().with_beta(1.0).with_min_p(0.2), 1), // 2 is dropped
    ] {
        let mut decoder = decoder(&expert).with_other_model(amateur.clone()).unwrap();
        let request = Request::new(vec![0]).with_max_new_tokens(3).with_sampling(greedy(config));
        decoder.submit(request).unwrap();
        assert_eq!(run(&mut decoder)[0].tokens(), [token; 3]);
    }
}

/// The tokens of a request that runs alone.
fn alone(request: Request) -> Vec<TokenId> {
    let mut decoder = decoder(hashing(1)).with_other_model(hashing(2)).unwrap();
    decoder.submit(request).unwrap();
    run(&mut decoder)[0].tokens()
}

/// Requests of different lengths and kinds join, end and are cancelled; the amateur's cache follows those that use
/// it.
#[test]
fn the_other_models_cache_stays_in_step_with_joins_and_leaves() {
    let steered = Sampling::paper().with_beta(0.0).checked().unwrap();
    let request = |prompt: &[TokenId], length: usize, sampling: &Sampling| {
        let request = Request::new(prompt.to_vec()).with_max_new_tokens(length);
        request.with_seed(3).with_sampling(sampling.clone())
    };
    let contrasted = contrast(0.5);
    let requests = [
        request(&[1, 2, 3, 4, 5], 6, &contrasted),
        request(&[7], 9, &steered),
        request(&[8, 9], 3, &contrasted),
        request(&[0, 0, 0], 12, &contrasted),
        request(&[4], 5, &contrasted),
        request(&[5, 6, 7, 8, 9, 1, 2], 4, &steered),
        request(&[2, 2], 7, &contrasted),
    ];
    let wanted: Vec<Vec<TokenId>> = requests.iter().cloned().map(alone).collect();
    // Cancelled after some steps, with the tokens that it has by then.
    let cancelled = 3;
    for (expert, amateur) in [
        (hashing(1), hashing(2)),
        (hashing(1).with_fixed_cache(), hashing(2)),
        (hashing(1), hashing(2).with_fixed_cache()),
        (hashing(1).with_fixed_cache(), hashing(2).with_fixed_cache()),
    ] {
        let mut decoder = decoder(&expert).with_other_model(amateur.clone()).unwrap();
        let (mut names, mut completions) = (Vec::new(), Vec::new());
        for (at, request) in requests.iter().enumerate() {
            names.push(decoder.submit(request.clone()).unwrap().completions[0]);
            if at % 2 == 1 {
                completions.extend(finished(decoder.step().unwrap()));
                completions.extend(finished(decoder.step().unwrap()));
            }
            if at == 5 {
                decoder.cancel(names[cancelled]).unwrap();
            }
        }
        completions.extend(run(&mut decoder));
        completions.sort_by_key(|completion| completion.id);
        for (at, completion) in completions.iter().enumerate() {
            let tokens = completion.tokens();
            match at == cancelled {
                true => assert_eq!(tokens, wanted[at][..tokens.len()]),
                false => assert_eq!(tokens, wanted[at], "request {at}"),
            }
        }
        assert!(decoder.is_idle());
        let other_tokens: usize = completions
            .iter()
            .enumerate()
            .filter(|(at, _)| ![1, 5].contains(at))
            .map(|(_, c)| c.choices.len())
            .sum();
        assert_eq!(decoder.sampler().counters().contrasted as usize, other_tokens);
    }
}

#[test]
fn the_other_model_reads_only_contrasted_rows_and_each_token_once() {
    let (expert, amateur) = (hashing(1), hashing(2));
    let mut decoder = decoder(&expert).with_other_model(amateur.clone()).unwrap();
    let plain = Sampling::paper().with_beta(0.0);
    let base = |prompt: &[TokenId], sampling| {
        Request::new(prompt.to_vec()).with_max_new_tokens(3).with_sampling(sampling)
    };
    decoder.submit(base(&[1, 2], plain.clone())).unwrap();
    decoder.submit(base(&[3, 4, 5], contrast(0.5)).with_completions(2)).unwrap();
    decoder.submit(base(&[6], plain)).unwrap();
    let completions = run(&mut decoder);
    let [a, b] = [&completions[1], &completions[2]].map(Completion::tokens);
    // The prompt once for both completions, then one token of each. The last token is not read.
    let wanted = [vec![vec![3, 4, 5]], vec![vec![a[0]], vec![b[0]]], vec![vec![a[1]], vec![b[1]]]];
    assert_eq!(amateur.calls(), wanted);
}

#[test]
fn rows_that_have_ended_leave_the_other_models_cache() {
    let amateur = hashing(2);
    let mut decoder = decoder(hashing(1)).with_other_model(amateur.clone()).unwrap();
    let plain = Sampling::paper().with_beta(0.0);
    for (length, sampling) in [(2, contrast(0.5)), (4, contrast(0.5)), (8, plain)] {
        let request = Request::new(vec![1]).with_max_new_tokens(length);
        decoder.submit(request.with_sampling(sampling)).unwrap();
    }
    run(&mut decoder);
    // Two prompts, then two rows, then one row twice; no call while only the plain request runs.
    let rows: Vec<usize> = amateur.calls().iter().map(Vec::len).collect();
    assert_eq!(rows, [1, 1, 2, 1, 1]);
}

#[test]
fn requirements_of_a_contrasted_request_are_checked_at_submission() {
    let mut plain = decoder(hashing(1));
    let request = || Request::new(vec![1]).with_sampling(contrast(0.5));
    assert_eq!(
        plain.submit(request()).unwrap_err().to_string(),
        "sampling: expected a decoder built with another model to contrast with, got none"
    );
    let odd = ScriptedLm::new(VOCAB + 1, &device(), |_| vec![0.0; VOCAB + 1]);
    let error = decoder(hashing(1)).with_other_model(odd).err().unwrap();
    assert_eq!(error.to_string(), "other model: expected a vocabulary of 10 tokens, got 11");

    // For requests that both models read, the shorter of the two contexts applies.
    let short = hashing(2).with_context_length(4);
    let mut decoder = decoder(hashing(1).with_context_length(6)).with_other_model(short).unwrap();
    assert_eq!(
        decoder
            .submit(Request::new(vec![1; 4]).with_sampling(contrast(0.5)))
            .unwrap_err()
            .to_string(),
        "prompt of 4 tokens: expected at most 3, to leave room for one new token in the model's context"
    );
    decoder.submit(request()).unwrap();
    let plain = Sampling::paper().with_beta(0.0);
    decoder.submit(request().with_sampling(plain)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions.iter().map(|c| c.choices.len()).collect::<Vec<_>>(), [3, 5]);
    assert!(completions.iter().all(|c| c.finish == FinishReason::ContextFull));
}

#[test]
fn memory_of_both_caches_counts() {
    // Each model uses one byte per token: (1 + 5) tokens in 2 rows, in two caches. To that come 8 bytes for the
    // expected logit of each token of the vocabulary.
    let decoder = decoder(hashing(1)).with_other_model(hashing(2)).unwrap();
    let request = Request::new(vec![1]).with_max_new_tokens(5).with_completions(2);
    let plain = request.clone().with_sampling(Sampling::paper().with_beta(0.0));
    let contrasted = decoder.bytes_needed(&request.clone().with_sampling(contrast(0.5)));
    let vocab = decoder.model().vocab_size();
    assert_eq!(contrasted - decoder.bytes_needed(&plain), 12 + 2 * vocab * 8);
    let amateur = hashing(2);
    let mut decoder = self::decoder(hashing(1)).with_other_model(amateur.clone()).unwrap();
    decoder = decoder.with_memory_limit(contrasted);
    for _ in 0..2 {
        decoder.submit(request.clone().with_sampling(contrast(0.5))).unwrap();
    }
    run(&mut decoder);
    assert!(amateur.calls().iter().all(|rows| rows.len() <= 2), "one after the other");
}

#[test]
fn a_failure_of_the_other_model_aborts_only_running_completions() {
    for call in 0..3 {
        let amateur = hashing(2).failing_at(call);
        let mut decoder = decoder(hashing(1)).with_other_model(amateur).unwrap();
        let request = Request::new(vec![1, 2]).with_max_new_tokens(5).with_sampling(contrast(0.5));
        decoder.submit(request.clone()).unwrap();
        assert!(decoder.run(|_| ControlFlow::Continue(())).is_err());
        decoder.submit(request.clone()).unwrap();
        let completions = run(&mut decoder);
        assert_eq!(completions[0].finish, FinishReason::Aborted);
        assert_eq!(completions[0].choices.len(), call);
        assert_eq!(completions[1].tokens(), alone(request));
    }
}
