//! Mixing states before the head, together with everything else that acts on a steered row. The oracle is the long way:
//! two projections, of which nothing here is shared but the selection.

use std::sync::{Arc, Mutex};

use burn::tensor::Tensor;
use esamp::{
    Choice, DrawKey, ExpectedControl, Fire, Phase, Recorder, ReweighterConfig, Sampler,
    SamplerConfig, Sampling, SamplingConfig, Selection, Steering, StepInput, StepRow, TiedHead,
    TokenId,
};

use super::{
    heads::{assert_same, both_ways, weight},
    sampler_step::{D_MODEL, World, choices, row},
};
use crate::device;

fn base() -> SamplingConfig {
    SamplingConfig::default().with_beta(0.7)
}

fn samplers(config: &SamplerConfig) -> [Sampler; 2] {
    [0, 1].map(|_| config.init(D_MODEL, &device()).unwrap())
}

const GENERATED: [TokenId; 6] = [5, 6, 2, 0, 9, 1];

/// `steps` steps both ways over the same rows, whose completions grow from `length` tokens on.
fn agree(
    config: &SamplerConfig,
    samplings: &[Sampling],
    [length, steps]: [usize; 2],
    mut check: impl FnMut(usize, &[Sampler; 2], &[Vec<Choice>; 2]),
) {
    let (world, head) = (World::new(), TiedHead::new(weight()));
    let mut samplers = samplers(config);
    let rows = samplings.iter().enumerate();
    let mut rows: Vec<StepRow<'_>> = rows
        .map(|(at, sampling)| StepRow {
            draw: DrawKey::new(7, &[1], at as u64),
            code: Some(DrawKey::arithmetic_code(3, &[1], at as u64, samplings.len() as u64)),
            ..row(at as u64 / 2, at as u64, sampling)
        })
        .collect();
    for step in 0..steps {
        let contexts: Vec<usize> = (0..rows.len()).map(|at| at * 3 + step).collect();
        rows.iter_mut().for_each(|row| row.generated = &GENERATED[..length + step]);
        let hidden = world.hidden(&contexts);
        let got = both_ways(&world, &head, &mut samplers, &rows, &hidden);
        got[0].iter().zip(&got[1]).for_each(|(long, short)| assert_same(long, short));
        check(step, &samplers, &got);
        // Both go on with the codes of the long way: a code's rounding grows with every token that it chooses.
        rows.iter_mut().zip(&got[0]).for_each(|(row, choice)| row.code = choice.code);
    }
}

#[test]
fn arithmetic_codes_choose_and_go_on_alike() {
    let arithmetic = |t: f32| base().with_temperature(t).with_selection(Selection::Arithmetic);
    let samplings = [1.0, 0.6, 0.0, 1.0, 1.7].map(|t| arithmetic(t).init().unwrap());
    let mut before: Vec<Option<f64>> = vec![None; 5];
    agree(&SamplerConfig::new(), &samplings, [1, 5], |_, samplers, [long, short]| {
        for (at, (long, short)) in long.iter().zip(short).enumerate() {
            let (a, b) = (long.code.unwrap(), short.code.unwrap());
            // The rest of a code is stretched by 1/p: so is the difference of the two.
            let stretched = 1e-4 / f64::from(long.log_prob.exp());
            assert!((a - b).abs() < stretched, "{a} {b} {}", long.log_prob);
            let is_greedy = at == 2;
            let moved = before[at].replace(a).is_none_or(|before| before != a);
            assert!(moved || is_greedy, "a code that has chosen is another one");
        }
        let steps = samplers[1].counters().steps;
        assert_eq!([0, 1].map(|which: usize| samplers[which].counters().mixed), [0, 5 * steps]);
    });
}

#[test]
fn a_hot_start_heats_mixed_rows_too() {
    let hot = |tokens| base().with_fire(Fire::new(100.0).with_tokens(tokens));
    let samplings: Vec<Sampling> = [
        hot(2),
        hot(3).with_temperature(0.7),
        hot(2).with_temperature(0.0),
        base().with_temperature(0.7),
    ]
    .into_iter()
    .map(|config| config.init().unwrap())
    .collect();
    let mut log_probs = Vec::new();
    agree(&SamplerConfig::new(), &samplings, [1, 4], |_, samplers, [_, short]| {
        log_probs.push(short.iter().map(|choice| choice.log_prob).collect::<Vec<_>>());
        assert_eq!(samplers[1].counters().mixed as usize, 4 * log_probs.len());
    });
    // At temperature 100, twelve tokens are nearly alike: ln(1/12) = −2.48.
    let nearly_alike = |log_prob: f32| (log_prob + 12f32.ln()).abs() < 0.3;
    assert!(nearly_alike(log_probs[0][0]) && nearly_alike(log_probs[1][1]), "{log_probs:?}");
    assert!(nearly_alike(log_probs[0][2]), "hot though greedy: {log_probs:?}");
    assert_eq!(samplings[2].temperature_at(2), 0.0);
}

#[test]
fn rows_whose_distiller_is_not_ready_are_not_mixed() {
    let samplings = [base().init().unwrap(), base().init().unwrap()];
    let config = SamplerConfig::new().with_steps_before_steering(3);
    let plain = base().with_beta(0.0).init().unwrap();
    let (world, head) = (World::new(), TiedHead::new(weight()));
    agree(&config, &samplings, [1, 5], |step, samplers, [_, short]| {
        for sampler in samplers {
            let counters = sampler.counters();
            let warming = 2 * (step.min(2) as u64 + 1);
            assert_eq!(counters.rows_warming, warming);
            assert_eq!(counters.steered, 2 * (step as u64 + 1) - warming);
        }
        assert_eq!(samplers[1].counters().mixed, 2 * (step as u64 + 1).saturating_sub(3));
        if step < 3 {
            // The token of the plain model, and a novelty all the same.
            let rows = [StepRow {
                draw: DrawKey::new(7, &[1], 0),
                generated: &GENERATED[..1 + step],
                ..row(0, 0, &plain)
            }];
            let states = world.hidden(&[step]).deep().clone();
            let input = StepInput::from_head_input(&rows, states, &head);
            let alone = choices(samplers_plain().step(input).unwrap())[0];
            assert_eq!(short[0].token, alone.token);
            assert!((short[0].log_prob - alone.log_prob).abs() < 1e-5);
            assert!(short[0].novelty.is_some());
        }
    });
}

fn samplers_plain() -> Sampler {
    SamplerConfig::new().init(D_MODEL, &device()).unwrap()
}

#[test]
fn a_control_on_the_error_is_mixed_in_its_place() {
    let samplings: Vec<Sampling> =
        [1.0, 0.7, 1.0, 0.0].map(|t| base().with_temperature(t).init().unwrap()).into();
    let run = |control| {
        let mut log_probs = Vec::new();
        let config = SamplerConfig::new().with_expected_control(control);
        agree(&config, &samplings, [1, 5], |step, samplers, [_, short]| {
            assert_eq!(samplers[1].counters().mixed, 4 * (step as u64 + 1), "{control:?}");
            log_probs.extend(short.iter().map(|choice| (choice.token, choice.log_prob)));
        });
        log_probs
    };
    let own = run(ExpectedControl::None);
    for control in [ExpectedControl::GaussianError, ExpectedControl::ShuffledErrors] {
        let differ = own.iter().zip(run(control)).filter(|&(a, b)| *a != b).count();
        assert!(differ > 12, "{control:?} changes what is mixed: {differ} of 20");
    }
}

/// A row alone has nobody to exchange its error with, on either way.
#[test]
fn a_lone_rows_error_that_cannot_be_shuffled_is_counted_once() {
    let samplings = [base().init().unwrap()];
    let config = SamplerConfig::new().with_expected_control(ExpectedControl::ShuffledErrors);
    agree(&config, &samplings, [1, 3], |step, samplers, _| {
        let counts = [0, 1].map(|which: usize| samplers[which].counters().errors_not_shuffled);
        assert_eq!(counts, [step as u64 + 1; 2]);
    });
}

/// An observer wants both distributions: nothing is mixed while it watches, and nothing else changes.
#[test]
fn an_observer_turns_the_short_way_into_the_long_one() {
    let settings = [
        base(),
        base().with_temperature(0.7),
        base().with_temperature(0.0),
        base().with_selection(Selection::Arithmetic),
        base().with_reweighter(ReweighterConfig::Orthogonal),
    ];
    let samplings = settings.map(|config| config.init().unwrap());
    let (world, head) = (World::new(), TiedHead::new(weight()));
    let recorders = [0, 1].map(|_| Arc::new(Mutex::new(Recorder::new())));
    let mut watched = samplers(&SamplerConfig::new());
    for (sampler, recorder) in watched.iter_mut().zip(&recorders) {
        sampler.set_observer(Box::new(recorder.clone()));
    }
    let mut unwatched = samplers(&SamplerConfig::new());
    for step in 0..4 {
        let rows: Vec<StepRow<'_>> = samplings
            .iter()
            .enumerate()
            .map(|(at, sampling)| StepRow {
                code: Some(DrawKey::arithmetic_code(step, &[2], at as u64, 5)),
                ..row(0, at as u64, sampling)
            })
            .collect();
        let contexts: Vec<usize> = (0..5).map(|at| at * 3 + step as usize).collect();
        let hidden = world.hidden(&contexts);
        let [long, short] = both_ways(&world, &head, &mut watched, &rows, &hidden);
        let [_, mixed] = both_ways(&world, &head, &mut unwatched, &rows, &hidden);
        long.iter().zip(&short).for_each(|(long, short)| assert_same(long, short));
        mixed.iter().zip(&short).for_each(|(mixed, short)| assert_same(mixed, short));
    }
    assert_eq!(watched.each_ref().map(|sampler| sampler.counters().mixed), [0, 0]);
    assert_eq!(unwatched.map(|sampler| sampler.counters().mixed), [0, 4 * 4]);
    let [long, short] = recorders.map(|recorder| {
        let recorder = recorder.lock().unwrap();
        recorder.tokens().cloned().collect::<Vec<_>>()
    });
    assert_eq!((long.len(), short.len()), (20, 20));
    for (long, short) in long.iter().zip(&short) {
        assert_eq!(
            (short.steering, short.unsteered_token),
            (Steering::Steered, long.unsteered_token)
        );
        let near = |a: Option<f64>, b: Option<f64>| {
            let (a, b) = (a.unwrap(), b.unwrap());
            assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{a} {b}");
        };
        near(long.slope, short.slope);
        near(long.sharpening, short.sharpening);
        near(Some(long.kl), Some(short.kl));
        near(Some(long.surprisal), Some(short.surprisal));
    }
}

/// A first token is not steered, so its row's states are left as they are whatever else goes on.
#[test]
fn a_first_token_is_not_mixed() {
    let sampling = base().with_fire(Fire::new(20.0)).with_selection(Selection::Arithmetic);
    let (sampling, world) = (sampling.init().unwrap(), World::new());
    let rows = [StepRow {
        phase: Phase::FirstToken,
        generated: &[],
        code: Some(0.3),
        ..row(0, 0, &sampling)
    }];
    let hidden = world.hidden(&[2]);
    let head = TiedHead::new(weight());
    let mut samplers = samplers(&SamplerConfig::new());
    let [long, short] = both_ways(&world, &head, &mut samplers, &rows, &hidden);
    assert_eq!(long, short);
    assert_eq!(samplers[1].counters().mixed, 0);
    // By hand: softmax(logits / 20), best first, up to the code.
    let logits: Tensor<2> = esamp::LmHead::logits(&head, hidden.deep().clone());
    let logits: Vec<f32> = logits.into_data().try_into_vec().unwrap();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let masses: Vec<f64> = order.iter().map(|&t| (f64::from(logits[t]) / 20.0).exp()).collect();
    let total: f64 = masses.iter().sum();
    let place = (0..masses.len()).find(|&at| masses[..=at].iter().sum::<f64>() > 0.3 * total);
    assert_eq!(short[0].token as usize, order[place.unwrap()]);
}
