//! Runs the program as a user would, and compares the adapter with the model's own forward pass.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{ops::ControlFlow, process::Command};

use bunsen::{kits::gpts::qwen3::Qwen3Config, prelude::ModuleInit};
use burn::tensor::{Device, Int, Tensor, Tolerance, activation::log_softmax};
use esamp::{
    CausalLm, Decoder, KvCache, NoTap, PairTap, Request, SamplerConfig, Sampling, TokenId,
};
use esamp_third_party::{Qwen3Cache, TappedQwen3};

fn run() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_third_party")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The number before the word `what`.
fn number(text: &str, what: &str) -> u64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| word.trim_end_matches(',') == what).unwrap();
    words[at - 1].parse().unwrap()
}

#[test]
fn the_program_keeps_dead_rows_lets_the_second_request_wait_and_learns() {
    let text = run();
    let ended: Vec<(u64, bool)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("step ")?.split_once(": prompt "))
        .map(|(step, rest)| (step.trim().parse().unwrap(), rest.starts_with('0')))
        .collect();
    assert_eq!(ended.len(), 8);
    assert_eq!(ended.iter().filter(|(_, first)| *first).count(), 4);
    assert!(ended[..4].iter().all(|(_, first)| *first), "the second prompt waits\n{text}");
    for request in [&ended[..4], &ended[4..]] {
        assert!(request[0].0 < request[3].0, "its completions end at different times\n{text}");
    }
    let dead = text.split(" rows fed, ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(dead.parse::<u64>().unwrap() > 0, "{text}");
    // One update per step: every step has a live row to learn from.
    assert_eq!(number(&text, "updates"), ended[7].0, "{text}");
    assert!(text.ends_with("ESamp has learned\n"));
}

const CONTEXT: usize = 32;

fn model() -> TappedQwen3 {
    let config = Qwen3Config::new(40, 24, 3, 4, 2, 6, 32);
    TappedQwen3::new(config.init(&Device::flex()), CONTEXT)
}

fn tokens(rows: &[&[TokenId]]) -> Tensor<2, Int> {
    let numbers: Vec<i32> = rows.concat().iter().map(|&token| token as i32).collect();
    let shape = [rows.len(), rows[0].len()];
    Tensor::<1, Int>::from_data(numbers.as_slice(), &Device::flex()).reshape(shape)
}

/// The logits of the model's own forward pass, all positions at once without a cache, `[rows, seq, vocab]`.
fn its_own_logits(model: &TappedQwen3, rows: &[&[TokenId]]) -> Tensor<3> {
    let model = model.model();
    let rotary = model.rotary(CONTEXT, &Device::flex());
    model.logits(model.forward_hidden(model.embed(tokens(rows)), &rotary, None))
}

fn assert_close(got: Tensor<2>, expected: Tensor<2>) {
    let tolerance = Tolerance::<f32>::absolute(1e-4);
    got.into_data().assert_approx_eq(&expected.into_data(), tolerance);
}

fn last(logits: Tensor<3>) -> Tensor<2> {
    let [rows, seq, vocab] = logits.dims();
    logits.slice([0..rows, seq - 1..seq, 0..vocab]).reshape([rows, vocab])
}

#[test]
fn the_adapter_gives_the_models_own_logits_and_hidden_states() {
    let model = model();
    let mut cache = model.new_cache();
    let first = model.forward(tokens(&[&[1, 2, 3]]), &mut cache, &mut NoTap).unwrap();
    assert_close(first, last(its_own_logits(&model, &[&[1, 2, 3]])));

    cache.keep_rows(&[0, 0]).unwrap(); // one prompt, two completions
    let mut tap = PairTap::default();
    model.forward(tokens(&[&[4, 5], &[6, 7]]), &mut cache, &mut NoTap).unwrap(); // two tokens in one pass
    let logits = model.forward(tokens(&[&[8], &[9]]), &mut cache, &mut tap).unwrap();
    let whole: [&[TokenId]; 2] = [&[1, 2, 3, 4, 5, 8], &[1, 2, 3, 6, 7, 9]];
    assert_close(logits.clone(), last(its_own_logits(&model, &whole)));

    let hidden = tap.take().unwrap();
    assert_close(model.lm_head().logits(hidden.deep().clone()), logits);
    let foreign = model.model();
    let rotary = foreign.rotary(6, &Device::flex());
    let shallow = foreign.layers[0].forward(foreign.embed(tokens(&whole)), &rotary, &mut None);
    assert_close(hidden.shallow().clone(), last(shallow));
}

#[test]
fn dead_rows_change_nothing_for_those_that_live() {
    let model = model();
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let sampling = Sampling::paper().with_beta(1.0);
    let prompts: [Vec<TokenId>; 2] = [vec![1, 2, 3], vec![4, 5]];
    for prompt in &prompts {
        let request = Request::new(prompt.clone())
            .with_completions(4)
            .with_max_new_tokens(20)
            .with_stop_tokens([7, 8, 9, 10])
            .with_sampling(sampling.clone())
            .with_reference_log_probs();
        decoder.submit(request).unwrap();
    }
    let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(completions.len(), 8);
    for (prompt, group) in prompts.iter().zip(completions.chunks(4)) {
        for completion in group {
            let said = completion.tokens();
            let sequence = [prompt.as_slice(), &said].concat();
            let log_probs = log_softmax(its_own_logits(&model, &[&sequence]), 2);
            let log_probs: Vec<f32> = log_probs.into_data().try_into_vec().unwrap();
            for (at, choice) in completion.choices.iter().enumerate() {
                let position = prompt.len() + at - 1;
                let expected = log_probs[position * 40 + choice.token as usize];
                let got = choice.reference_log_prob.unwrap();
                assert!((got - expected).abs() < 1e-3, "expected {expected}, got {got}");
            }
        }
    }
    let steps = decoder.stats().steps;
    assert_eq!(
        decoder.sampler().counters().updates,
        steps,
        "one prompt at a time, one update per step"
    );
}

#[test]
fn the_foreign_caches_limits_are_errors_and_not_panics() {
    let model = model();
    let mut cache: Qwen3Cache = model.new_cache();
    assert_eq!((cache.rows(), cache.can_drop_rows(), cache.can_append_rows()), (0, false, false));
    model.forward(tokens(&[&[1], &[2]]), &mut cache, &mut NoTap).unwrap();
    let wording = |result: Result<(), esamp::errors::ModelError>| result.unwrap_err().to_string();
    assert_eq!(
        wording(cache.keep_rows(&[0])),
        "key-value cache: expected one that can drop rows, got a fixed one"
    );
    assert_eq!(wording(cache.keep_rows(&[0, 2])), "row 2: expected a row below 2");
    assert_eq!(
        wording(cache.append_rows(model.new_cache())),
        "key-value cache: expected one that can append rows, got a fixed one"
    );
    let mut forward = |rows: &[&[TokenId]]| {
        wording(model.forward(tokens(rows), &mut cache, &mut NoTap).map(|_| ()))
    };
    assert_eq!(forward(&[&[1]]), "tokens for the cache: expected 2 rows, got 1");
    let long = [3; CONTEXT];
    assert_eq!(forward(&[&long, &long]), "context: expected at most 32 tokens, got 33");
}
