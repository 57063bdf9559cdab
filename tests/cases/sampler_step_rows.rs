//! Rows of a step: failures of single rows, phases, temperatures and precisions.

use super::sampler_step::{D_MODEL, VOCAB, World, choices, esamp, log_softmax, row, sampler};
use burn::tensor::{DType, Tensor, TensorData};
use esamp::{
    HiddenStates, LmHead, SamplerConfig, Sampling, Sharing, StepInput, TemperatureOrder, TiedHead,
    TokenMask,
    errors::TrainError,
    optim::{Staleness, TrainingConfig},
};

#[test]
fn one_bad_row_does_not_stop_the_others() {
    let world = World::new();
    let sampling = esamp(0.25);
    let nobody = TokenMask::allowing(VOCAB, []);
    let small = TokenMask::all(VOCAB - 1);
    let hidden = world.hidden(&[0, 1, 2, 3]);
    let logits = world.head.logits(hidden.deep().clone());
    let nan = Tensor::<2>::full([1, 1], f32::NAN, &world.device);
    let logits = logits.slice_assign([1..2, 4..5], nan);
    let mut rows: Vec<_> = (0..4).map(|r| row(0, r, &sampling)).collect();
    rows[2].allowed = Some(&nobody);
    rows[3].allowed = Some(&small);
    let mut sampler = sampler();
    let output =
        sampler.step(StepInput::new(&rows, logits, &world.head).with_hidden(hidden)).unwrap();
    assert!(output.choices[0].is_ok());
    let wording: Vec<String> =
        output.choices[1..].iter().map(|c| c.as_ref().unwrap_err().to_string()).collect();
    assert_eq!(wording[0], "logits: expected numbers or -inf, got NaN for token 4");
    assert_eq!(wording[1], "logits: expected at least one token above -inf, got none in 12");
    assert_eq!(wording[2], "token mask: expected 12 tokens, got 11");
    let counters = sampler.counters();
    assert_eq!((counters.failed, counters.tokens, counters.rows_learned), (3, 1, 1));
}

#[test]
fn masked_tokens_stay_masked_through_the_fusion() {
    let world = World::new();
    let sampling = esamp(3.0);
    let only = TokenMask::allowing(VOCAB, [9]);
    let mut sampler = sampler();
    for context in 0..10 {
        let row = row(0, 0, &sampling).with_allowed(&only);
        let choice = &choices(world.step(&mut sampler, &[row], &[context]).unwrap())[0];
        assert_eq!((choice.token, choice.candidates), (9, 1));
    }
    let hidden = world.hidden(&[0, 1]);
    let masked = Tensor::<2>::full([2, VOCAB - 2], f32::NEG_INFINITY, &world.device);
    let logits = world.head.logits(hidden.deep().clone()).slice_assign([0..2, 2..VOCAB], masked);
    let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
    let output =
        sampler.step(StepInput::new(&rows, logits, &world.head).with_hidden(hidden)).unwrap();
    assert!(choices(output).iter().all(|choice| choice.token < 2 && choice.log_prob.is_finite()));
}

#[test]
fn a_row_whose_hidden_state_is_not_finite_is_sampled_plainly_and_not_learned() {
    let world = World::new();
    let (sampling, off) = (esamp(0.5), esamp(0.0));
    for (bad_shallow, bad) in [(true, f32::NAN), (false, f32::INFINITY), (true, f32::NEG_INFINITY)]
    {
        let clean = world.hidden(&[0, 1]);
        let spoil = |states: &Tensor<2>, spoilt: bool| {
            let value = Tensor::<2>::full([1, 1], bad, &world.device);
            if spoilt { states.clone().slice_assign([0..1, 2..3], value) } else { states.clone() }
        };
        let hidden = HiddenStates::new(
            spoil(clean.shallow(), bad_shallow),
            spoil(clean.deep(), !bad_shallow),
        )
        .unwrap();
        let logits = world.head.logits(clean.deep().clone());
        let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
        let mut sampler = sampler();
        let output =
            sampler.step(StepInput::new(&rows, logits, &world.head).with_hidden(hidden)).unwrap();
        let got = choices(output);
        let plain = [row(0, 0, &off), row(0, 1, &off)];
        let plain = choices(world.step(&mut self::sampler(), &plain, &[0, 1]).unwrap());
        assert_eq!((got[0].token, got[0].novelty), (plain[0].token, None));
        assert!(got[1].novelty.is_some());
        assert_eq!(sampler.counters().rows_not_finite, 1);
        assert_eq!(sampler.counters().rows_learned, 1);
        // The distiller has not become NaN.
        let after = choices(world.step(&mut sampler, &rows, &[0, 1]).unwrap());
        assert!(after.iter().all(|choice| choice.novelty.is_some()));
    }
}

#[test]
fn steering_that_learned_nothing_is_an_error() {
    let world = World::new();
    let sampling = esamp(0.5);
    let mut sampler = sampler();
    assert!(sampler.finish().is_ok());
    let bad = Tensor::<2>::full([1, D_MODEL], f32::NAN, &world.device);
    let hidden = HiddenStates::new(bad.clone(), bad).unwrap();
    let logits = world.head.logits(world.hidden(&[0]).deep().clone());
    let rows = [row(0, 0, &sampling)];
    sampler.step(StepInput::new(&rows, logits, &world.head).with_hidden(hidden)).unwrap();
    assert_eq!(sampler.finish(), Err(TrainError::NothingLearned { eligible: 1, skipped: 1 }));
}

/// Rows that wait for their update have not been learned from yet, which is not the same as never.
#[test]
fn a_mini_batch_that_is_not_full_yet_is_no_error() {
    let world = World::new();
    let sampling = esamp(0.5);
    let rows = [row(0, 0, &sampling)];
    for sharing in [Sharing::PerPrompt, Sharing::Global, Sharing::Adaptive(Default::default())] {
        for staleness in [Staleness::Inline, Staleness::Background] {
            let training = TrainingConfig::new().with_update_every(3).with_staleness(staleness);
            let config = SamplerConfig::new().with_training(training).with_sharing(sharing);
            let mut sampler = config.init(D_MODEL, &world.device).unwrap();
            for at in 0..2 {
                world.step(&mut sampler, &rows, &[at]).unwrap();
                assert_eq!(sampler.finish(), Ok(()), "{sharing:?} {staleness:?}");
                assert_eq!(sampler.counters().updates, 0);
            }
            // The prompt ends, and its rows are dropped. Those of the shared distiller still wait.
            sampler.release(rows[0].id);
            let nothing = TrainError::NothingLearned { eligible: 2, skipped: 0 };
            let expected = if sharing == Sharing::PerPrompt { Err(nothing) } else { Ok(()) };
            assert_eq!(sampler.finish(), expected, "{sharing:?} {staleness:?}");
        }
    }
}

#[test]
fn greedy_and_random_rows_in_one_batch() {
    let world = World::new();
    let greedy = Sampling::paper().with_temperature(0.0).checked().unwrap();
    let random = esamp(0.25);
    let mut seen = std::collections::HashSet::new();
    let mut greedy_tokens = std::collections::HashSet::new();
    for request in 0..40 {
        let rows = [row(0, 1000 + request, &greedy), row(1, request, &random)];
        let got = choices(world.step(&mut sampler(), &rows, &[3, 3]).unwrap());
        greedy_tokens.insert(got[0].token);
        seen.insert(got[1].token);
    }
    assert_eq!(greedy_tokens.len(), 1, "greedy does not depend on the random stream");
    assert!(seen.len() > 2, "random rows differ: {seen:?}");
}

#[test]
fn the_temperature_order_decides_what_filters_see() {
    // One row, logits 0, −1, −2: min-p 0.2 keeps logits that are less than −ln 0.2 = 1.61 below the best. At T = 2
    // the spread halves.
    let world = World::new();
    let mut logits = vec![f32::NEG_INFINITY; VOCAB];
    logits[..3].copy_from_slice(&[0.0, -1.0, -2.0]);
    for (order, left) in [(TemperatureOrder::BeforeFilters, 3), (TemperatureOrder::AfterFilters, 2)]
    {
        let sampling = Sampling::default().with_beta(0.0).with_temperature(2.0).with_min_p(0.2);
        let sampling = sampling.with_temperature_order(order).checked().unwrap();
        let logits = Tensor::from_data(TensorData::new(logits.clone(), [1, VOCAB]), &world.device);
        let rows = [row(0, 0, &sampling)];
        let input = StepInput::new(&rows, logits, &world.head);
        let choice = &choices(sampler().step(input).unwrap())[0];
        assert_eq!(choice.candidates, left, "{order:?}");
        let scores: Vec<f32> = [0.0, -0.5, -1.0][..left].to_vec();
        assert!((choice.log_prob - log_softmax(&scores, choice.token)).abs() < 1e-6);
    }
}

#[test]
fn log_probabilities_under_the_model_are_computed_on_request() {
    let world = World::new();
    let sampling = Sampling::default().with_top_k(2).with_temperature(0.3).checked().unwrap();
    let asked = row(0, 0, &sampling).with_reference_log_prob();
    let got = choices(world.step(&mut sampler(), &[asked, row(0, 1, &sampling)], &[1, 2]).unwrap());
    let reference = world.head.logits(world.hidden(&[1]).deep().clone());
    let reference: Vec<f32> = reference.into_data().try_into_vec().unwrap();
    let expected = log_softmax(&reference, got[0].token);
    assert!((got[0].reference_log_prob.unwrap() - expected).abs() < 1e-5);
    assert_eq!(got[1].reference_log_prob, None);
}

#[test]
fn half_precision_models_have_full_precision_distillers() {
    let world = World::new();
    let sampling = esamp(0.25);
    for dtype in [DType::F16, DType::BF16] {
        if !world.device.supports_dtype(dtype) {
            continue; // ndarray supports neither
        }
        let full = world.hidden(&[1, 2]);
        let hidden =
            HiddenStates::new(full.shallow().clone().cast(dtype), full.deep().clone().cast(dtype))
                .unwrap();
        assert_eq!(hidden.deep().dtype(), DType::F32);
        let head = TiedHead::new(world.head.weight().clone().cast(dtype));
        let logits = head.logits(hidden.deep().clone());
        assert_eq!(logits.dtype(), dtype);
        let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
        let mut sampler = sampler();
        let output =
            sampler.step(StepInput::new(&rows, logits, &head).with_hidden(hidden)).unwrap();
        assert!(choices(output).iter().all(|choice| choice.novelty.is_some()));
        assert_eq!(sampler.counters().rows_learned, 2);
    }
}

#[test]
fn a_sampler_tells_what_it_shares_and_where_its_time_goes() {
    let world = World::new();
    let config = SamplerConfig::new().with_sharing(Sharing::Global);
    let mut sampler = config.init(D_MODEL, &world.device).unwrap();
    assert_eq!(sampler.sharing(), Sharing::Global);
    assert_eq!(sampler.stage_seconds().total(), 0.0);
    let sampling = esamp(0.5);
    world.step(&mut sampler, &[row(0, 0, &sampling)], &[0]).unwrap();
    let seconds = *sampler.stage_seconds();
    assert!(seconds.predict > 0.0 && seconds.learn > 0.0, "{seconds:?}");
    sampler.reset();
    assert_eq!(sampler.stage_seconds().total(), 0.0);
}
