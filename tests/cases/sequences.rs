//! Penalties for sequences of tokens through the whole step and in the decode loop.

use std::sync::{Arc, Mutex};

use super::{
    decode_loop::run,
    penalties::{Context, VOCAB, constant, row, said},
    sampler_step::log_softmax,
};
use crate::device;
use esamp::{
    CausalLm, Decoder, Dry, FinishReason, Penalties, Request, SamplerConfig, Sampling,
    TemperatureOrder, TokenId, errors::RowError, telemetry::Recorder,
};

/// The last token, 2, occurs twice in the prompt, before 2 and before 9.
const AFTER_THE_LAST: [usize; 2] = [2, 9];

#[test]
fn dry_is_not_multiplied_by_the_fusion() {
    let (beta, temperature) = (2.0, 0.8);
    let dry = Dry::new(0.7).with_allowed_length(1);
    for seed in 0..3 {
        let context = Context::new(seed);
        let scores: Vec<f32> = (0..VOCAB)
            .map(|z| {
                let delta = if AFTER_THE_LAST.contains(&z) { -0.7 } else { 0.0 };
                let fused = (1.0 + beta) * context.reference[z] - beta * context.expected[z];
                (fused + delta) / temperature
            })
            .collect();
        for order in [TemperatureOrder::BeforeFilters, TemperatureOrder::AfterFilters] {
            let base = Sampling::paper().with_beta(beta).with_temperature(temperature);
            let base = base.with_penalties(Penalties::new().with_dry(dry.clone()));
            let sampling = base.with_temperature_order(order).checked().unwrap();
            for request in 0..20 {
                let choice = context.step(row(request, &sampling)).unwrap();
                let expected = log_softmax(&scores, choice.token);
                let got = choice.log_prob;
                assert!((got - expected).abs() < 2e-5, "{order:?} {got} {expected}");
            }
        }
    }
}

#[test]
fn a_repeated_sequence_has_no_mass() {
    for seed in 0..3 {
        let context = Context::new(seed);
        let penalties = Penalties::new().with_no_repeat_ngram(2);
        let sampling = Sampling::new().with_top_k(4).with_beta(0.5).with_temperature(0.7);
        let sampling = sampling.with_penalties(penalties).checked().unwrap();
        let mut sampler =
            SamplerConfig::new().init(context.hidden.d_model(), &context.device).unwrap();
        let recorder = Arc::new(Mutex::new(Recorder::new()));
        sampler.set_observer(recorder.clone());
        for request in 0..20 {
            let token = context.step_of(&mut sampler, row(request, &sampling)).unwrap().token;
            assert!(!AFTER_THE_LAST.contains(&(token as usize)));
        }
        let open = (0..VOCAB).filter(|z| !AFTER_THE_LAST.contains(z));
        let mut masses: Vec<f64> =
            open.map(|z| (f64::from(context.reference[z]) / 0.7).exp()).collect();
        masses.sort_by(|a, b| b.total_cmp(a));
        let expected = masses[4..].iter().sum::<f64>() / masses.iter().sum::<f64>();
        for trace in recorder.lock().unwrap().tokens() {
            assert!((trace.mass_outside - expected).abs() < 1e-5, "{}", trace.mass_outside);
        }
    }
}

/// Prompt and completion are one text. Token 3 has a logit of 1, 7 of .9 and all others of 0.
#[test]
fn the_decoder_follows_the_text() {
    let ngram = |n| Sampling::paper().with_penalties(Penalties::new().with_no_repeat_ngram(n));
    assert_eq!(said(ngram(1), vec![3]), [7, 0, 1, 2, 4]);
    assert_eq!(said(ngram(2), vec![3]), [3, 7, 3, 0, 3]);
    assert_eq!(said(ngram(2), vec![3, 3, 7]), [3, 0, 3, 1, 3]);
    let dry = Dry::new(0.15).with_base(2.0).with_allowed_length(1);
    let with = |dry| Sampling::paper().with_penalties(Penalties::new().with_dry(dry));
    assert_eq!(said(with(dry.clone()), vec![3]), [3, 7, 3, 3, 3]);
    assert_eq!(said(with(dry.clone()), vec![3, 3]), [7, 3, 3, 3, 3]);
    assert_eq!(said(with(dry.with_breakers([3])), vec![3]), [3; 5]);
}

#[test]
fn a_completion_ends_where_every_token_would_repeat_something() {
    let model = constant();
    let sampler = SamplerConfig::new().init(model.d_model(), &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let sampling = Sampling::paper().with_penalties(Penalties::new().with_no_repeat_ngram(1));
    decoder.submit(Request::new(vec![0, 1]).with_sampling(sampling)).unwrap();
    let completion = run(&mut decoder).remove(0);
    assert_eq!(completion.finish, FinishReason::Failed(RowError::AllMasked { vocab: 10 }));
    let mut tokens = completion.tokens();
    tokens.sort_unstable();
    assert_eq!(tokens, (2..10).collect::<Vec<TokenId>>());
}

#[test]
fn an_unknown_sequence_breaker_is_refused() {
    let model = constant();
    let sampler = SamplerConfig::new().init(model.d_model(), &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let dry = Dry::default().with_breakers([4, 10]);
    let sampling = Sampling::paper().with_penalties(Penalties::new().with_dry(dry));
    let request = Request::new(vec![1]).with_sampling(sampling.clone());
    let error = decoder.submit(request).unwrap_err();
    assert_eq!(error.to_string(), "sequence breaker token 10: expected an id below 10");
    // In a loop of one's own it is an error of the row.
    let sampling = {
        let dry = Dry::default().with_breakers([VOCAB as TokenId]);
        sampling.with_penalties(Penalties::new().with_dry(dry)).checked().unwrap()
    };
    let error = Context::new(0).step(row(0, &sampling)).unwrap_err();
    let (place, token) = ("sequence breaker", VOCAB as TokenId);
    assert_eq!(error, RowError::UnknownToken { place, token, vocab: VOCAB });
}
