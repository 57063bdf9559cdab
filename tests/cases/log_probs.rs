//! The most likely tokens of a position with their log-probabilities.

use super::{
    decode_loop::{run, sampler},
    penalties::{Context, VOCAB, constant, everything, row},
    sampler_step::log_softmax,
};
use crate::device;
use esamp::{
    Choice, Completion, Decoder, Dry, Event, Penalties, Request, Sampling, TokenId, TokenMask,
    engine::{Engine, EngineConfig, Update},
    errors::RequestError,
    filters::RowContext,
    testing::{ScriptedLm, TinyLm},
};

/// Sorted by the logits of the model alone, whatever the settings of the row are.
#[test]
fn the_most_likely_tokens_are_those_of_the_unmodified_model() {
    for seed in 0..3 {
        let context = Context::new(seed);
        let mut ranked: Vec<TokenId> = (0..VOCAB as TokenId).collect();
        let logit = |token: TokenId| context.reference[token as usize];
        ranked.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)));
        let mut allowed = TokenMask::all(VOCAB);
        allowed.set(ranked[0], false);
        let sampling = everything(Sampling::new().with_top_k(2).with_temperature(0.5));
        let sampling = sampling.checked().unwrap();
        for (request, top) in [0, 1, 5, VOCAB, 20].into_iter().enumerate() {
            let asked = row(request as u64, &sampling).with_allowed(&allowed);
            let plain = context.step(asked).unwrap();
            assert_eq!((plain.reference_log_prob, &plain.top_log_probs[..]), (None, &[][..]));
            let choice = context.step(asked.with_top_log_probs(top)).unwrap();
            assert_eq!((choice.token, choice.log_prob), (plain.token, plain.log_prob));
            let tokens: Vec<TokenId> =
                choice.top_log_probs.iter().map(|&(token, _)| token).collect();
            assert_eq!(tokens, ranked[..top.min(VOCAB)]);
            for &(token, log_prob) in &choice.top_log_probs {
                assert!((log_prob - log_softmax(&context.reference, token)).abs() < 1e-5);
            }
            let listed = choice.top_log_probs.iter().find(|&&(token, _)| token == choice.token);
            let listed = listed.map(|&(_, log_prob)| log_prob);
            assert!(listed.is_none() || listed == choice.reference_log_prob);
            assert!(top < VOCAB || listed.is_some());
        }
    }
}

#[test]
fn ties_are_in_ascending_order_and_masked_tokens_are_not_listed() {
    let listed = |model: ScriptedLm, top| {
        let mut decoder = Decoder::new(model, sampler(10)).unwrap();
        let request = Request::new(vec![1]).with_max_new_tokens(1).with_top_log_probs(top);
        decoder.submit(request).unwrap();
        let choice = run(&mut decoder).remove(0).choices.remove(0);
        choice.top_log_probs.iter().map(|&(token, _)| token).collect::<Vec<_>>()
    };
    assert_eq!(listed(constant(), 5), [3, 7, 0, 1, 2]);
    let two = ScriptedLm::new(10, &device(), |_| {
        let mut logits = vec![f32::NEG_INFINITY; 10];
        (logits[8], logits[4]) = (-3.0, -2.0);
        logits
    });
    assert_eq!(listed(two, 20), [4, 8]);
}

#[test]
fn a_request_that_asks_for_more_than_twenty_is_refused() {
    let mut decoder = Decoder::new(constant(), sampler(10)).unwrap();
    let request = |top| Request::new(vec![1]).with_max_new_tokens(2).with_top_log_probs(top);
    let error = decoder.submit(request(Request::MAX_TOP_LOG_PROBS + 1)).unwrap_err();
    assert!(matches!(error, RequestError::Config(_)), "{error:?}");
    assert_eq!(error.to_string(), "top_log_probs: expected 0 to 20, got 21");
    decoder.submit(request(Request::MAX_TOP_LOG_PROBS)).unwrap();
    decoder.submit(request(0)).unwrap();
    decoder.submit(Request::new(vec![1]).with_max_new_tokens(2)).unwrap();
    let mut seen = Vec::new();
    let completions = decoder.run(|event| {
        if let Event::Token { choice, .. } = event {
            seen.push((choice.top_log_probs.len(), choice.reference_log_prob.is_some()));
        }
        std::ops::ControlFlow::Continue(())
    });
    seen.sort_unstable();
    let [all, none, plain] = [(10, true), (0, true), (0, false)];
    assert_eq!(seen, [plain, plain, none, none, all, all]);
    let kept = |completion: &Completion| completion.choices[1].top_log_probs.len();
    assert_eq!(completions.unwrap().iter().map(kept).collect::<Vec<_>>(), [10, 0, 0]);
}

/// What a request asks for reaches the decode loop of an engine unchanged.
#[test]
fn an_engine_chooses_as_the_loop_does() {
    let request = || {
        let dry = Dry::new(0.8).with_allowed_length(1).with_breakers([5]);
        let penalties = Penalties::new().with_no_repeat_ngram(3).with_dry(dry);
        let prefer = |row: &RowContext<'_>, logits: &mut [f32]| {
            logits[row.position as usize % 4] += 2.0;
            Ok(())
        };
        let sampling = Sampling::new().with_penalties(penalties).with_logits_processor(prefer);
        Request::new(vec![1, 2, 1, 2])
            .with_sampling(sampling)
            .with_max_new_tokens(20)
            .with_min_new_tokens(12)
            .with_stop_tokens([0, 1, 2])
            .with_top_log_probs(3)
            .with_seed(4)
    };
    let decoder = || Decoder::new(TinyLm::new(3, &device()), sampler(TinyLm::D_MODEL)).unwrap();
    let mut alone = decoder();
    alone.submit(request()).unwrap();
    let expected = run(&mut alone).remove(0);
    assert!(expected.choices.len() > 12, "{}", expected.choices.len());
    assert!(expected.choices.iter().all(|choice| choice.top_log_probs.len() == 3));
    let engine = Engine::start(decoder(), EngineConfig::default()).unwrap();
    let mut updates = engine.submit(request()).unwrap();
    let mut choices: Vec<Choice> = Vec::new();
    while let Some(update) = updates.recv() {
        if let Update::Event(Event::Token { choice, .. }) = update {
            choices.push(choice);
        }
    }
    assert_eq!(choices, expected.choices);
    engine.stop();
}
