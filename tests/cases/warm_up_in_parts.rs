//! Warm-ups that a prefill budget spreads over several steps.

use std::ops::ControlFlow;

use super::{
    decode_loop::{run, sampling},
    narrow,
};
use crate::device;
use esamp::{
    Completion, CompletionId, Counters, Decoder, Event, FinishReason, Request, SamplerConfig,
    Sharing, TokenId,
    distillers::{DistillerConfig, LowRankConfig, LowRankStart},
    optim::{AdaptiveConfig, Staleness, TrainingConfig},
    testing::TinyLm,
};

const PROMPT: usize = 24;

fn decoder(config: &SamplerConfig) -> Decoder<TinyLm> {
    let sampler = config.init(TinyLm::D_MODEL, &device()).unwrap();
    let decoder = Decoder::new(TinyLm::new(3, &device()), sampler).unwrap();
    decoder.with_prefill_chunk(PROMPT).unwrap()
}

fn warm(updates: usize) -> Request {
    let prompt: Vec<TokenId> = (0..PROMPT as u32).map(|at| (at * at * 7 + 5) % 60).collect();
    let request = Request::new(prompt).with_seed(4).with_max_new_tokens(8);
    request.with_sampling(sampling(0.5)).with_prompt_warm_up(updates)
}

/// The completions, the counters, and the number of warm-up updates after each step.
fn steps(mut decoder: Decoder<TinyLm>) -> (Vec<Completion>, Counters, Vec<u64>) {
    decoder.submit(warm(5).with_completions(2)).unwrap();
    let (mut completions, mut updates) = (Vec::new(), Vec::new());
    while !decoder.is_idle() {
        for event in decoder.step().unwrap() {
            if let Event::Finished { completion, .. } = event {
                completions.push(completion);
            }
        }
        updates.push(decoder.sampler().counters().warm_up_updates);
    }
    (completions, *decoder.sampler().counters(), updates)
}

#[test]
fn a_warm_up_in_parts_is_the_warm_up_at_once() {
    let ridge = LowRankStart::Ridge { rows: 30, lambda: 1e-2 }; // more than the prompt has
    let fitted = LowRankStart::Ridge { rows: 10, lambda: 1e-2 };
    let low_rank = |start| DistillerConfig::LowRank(LowRankConfig::new().with_start(start));
    let background = TrainingConfig::new().with_staleness(Staleness::Background);
    let config = narrow;
    for (config, slots) in [
        (config(), 1),
        (config().with_sharing(Sharing::PerCompletion), 2),
        (config().with_sharing(Sharing::Global), 1),
        (config().with_sharing(Sharing::Adaptive(AdaptiveConfig::new())), 1),
        (config().with_distiller(low_rank(ridge)), 1),
        (config().with_distiller(low_rank(fitted)), 1),
        (config().with_training(background), 1),
    ] {
        let (expected, counters, updates) = steps(decoder(&config));
        assert_eq!(updates[0], 5 * slots, "without a budget, all at once");
        for (budget, per_step) in [(10, 1), (PROMPT, 1), (3 * PROMPT - 1, 2), (3 * PROMPT, 3)] {
            let decoder = decoder(&config).with_prefill_budget(budget).unwrap();
            let (completions, same, updates) = steps(decoder);
            assert_eq!(completions, expected, "{config:?}, {budget}");
            assert_eq!(same, counters, "{config:?}, {budget}");
            // The prompt takes its own part of the budget of the first step.
            let step = |at: usize| (per_step * (at as u64 + 1) - 1).min(5 * slots);
            let mut expected = (0..updates.len()).map(step);
            assert!(updates.iter().all(|&updates| Some(updates) == expected.next()), "{updates:?}");
        }
    }
}

#[test]
fn a_neighbour_gets_its_tokens_while_a_prompt_warms_up() {
    let neighbour =
        || Request::new(vec![1, 2]).with_max_new_tokens(30).with_sampling(sampling(1.0));
    let alone = |request: Request| {
        let mut decoder = decoder(&narrow());
        decoder.submit(request).unwrap();
        run(&mut decoder).remove(0).tokens()
    };
    let expected = [alone(neighbour()), alone(warm(12))];
    let mut decoder = decoder(&narrow()).with_prefill_budget(10).unwrap();
    let first = decoder.submit(neighbour()).unwrap().completions[0];
    decoder.step().unwrap();
    let second = decoder.submit(warm(12)).unwrap().completions[0];
    let (mut tokens, mut steps, mut updates) = (2, 0, 0);
    let mut has_begun = false;
    while !has_begun {
        for event in decoder.step().unwrap() {
            if let Event::Token { completion, .. } = event {
                tokens += usize::from(completion == first);
                has_begun |= completion == second;
            }
        }
        steps += 1;
        let done = decoder.sampler().counters().warm_up_updates;
        assert!(done - updates <= 1, "an update is more than the budget");
        updates = done;
    }
    assert_eq!((steps, updates), (3 + 12, 12), "24 tokens in 3 steps, then the updates");
    assert_eq!(tokens, 2 + steps, "one token a step");
    let completions = run(&mut decoder);
    let tokens: Vec<_> = completions.iter().map(Completion::tokens).collect();
    assert_eq!(tokens, expected);
}

#[test]
fn a_completion_that_is_cancelled_during_the_warm_up_leaves_nothing() {
    for sharing in [Sharing::PerPrompt, Sharing::PerCompletion] {
        for cancelled in 0..2 {
            let config = narrow().with_sharing(sharing);
            let mut decoder = decoder(&config).with_prefill_budget(10).unwrap();
            let ids = decoder.submit(warm(4).with_completions(2)).unwrap().completions;
            for _ in 0..3 {
                decoder.step().unwrap();
            }
            assert_eq!(decoder.sampler().counters().warm_up_updates, 2);
            decoder.cancel(ids[cancelled]).unwrap();
            let left = CompletionId::new(ids[0].prompt.0, 1 - cancelled as u64);
            let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
            assert_eq!(completions[cancelled].finish, FinishReason::Cancelled);
            assert_eq!(completions[1 - cancelled].id, left);
            assert_eq!(completions[1 - cancelled].tokens().len(), 8);
            assert_eq!(decoder.sampler().distillers(), 0);
            // The first distiller has had two; the second one of its own none yet.
            let begun = sharing == Sharing::PerCompletion && cancelled == 0;
            assert_eq!(decoder.sampler().counters().warm_up_updates, if begun { 6 } else { 4 });
        }
    }
}
