//! Controls on scores.

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use esamp::{
    CausalLm, CheckedSampling, Choice, Completion, Decoder, Fire, LmHead, Penalties, Phase,
    Request, Sampler, SamplerConfig, Sampling, Sharing, StepInput, StepRow, TokenId,
    distillers::{Distiller, SwiGluConfig},
    reweighters::ReweighterConfig,
    testing::TinyLm,
};
use esamp_eval::controls::{ControlConfig, GaussianError, Matched, sharpened_plain};

use crate::world::{D_MODEL, VOCAB, World, choices, esamp, log_softmax, row, sampler, wave};

/// A control at this strength.
fn control(control: ControlConfig, beta: f32) -> Sampling {
    control.applied_to(Sampling::paper().with_beta(beta))
}

fn sampling(reweighter: ReweighterConfig, beta: f32) -> Sampling {
    Sampling::paper().with_reweighter(reweighter).with_beta(beta)
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The other model's logits, one row for each context.
fn other_logits(world: &World, contexts: &[usize]) -> Tensor<2> {
    let rows = contexts.iter().map(|&context| {
        wave([VOCAB], 0.37 + context as f32 * 0.11, &world.device).reshape([1, VOCAB])
    });
    Tensor::cat(rows.collect(), 0) * 2.0
}

/// `(reference, expected) → new`, one number per candidate.
type Formula = fn(&[f64], &[f64], f64) -> Vec<f64>;

fn subtracted(reference: &[f64], expected: &[f64], beta: f64) -> Vec<f64> {
    reference.iter().zip(expected).map(|(r, e)| r - beta * e).collect()
}

fn sharpened(reference: &[f64], _expected: &[f64], beta: f64) -> Vec<f64> {
    reference.iter().map(|r| (1.0 + beta) * r).collect()
}

/// Compares subtraction and sharpening with their formulas, with and without a filter, at a temperature other than 1.
#[test]
fn a_token_is_drawn_from_the_scores_of_the_formula() {
    let world = World::new();
    let distiller = SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let (beta, temperature) = (0.5, 0.8);
    let formulas: [(ControlConfig, Formula); 2] =
        [(ControlConfig::Subtract, subtracted), (ControlConfig::Sharpen, sharpened)];
    for (name, formula) in formulas {
        for k in [3, 5, VOCAB] {
            let config = control(name, beta).with_temperature(temperature).with_top_k(k);
            let sampling = config.checked().unwrap();
            for context in 0..6 {
                let hidden = world.hidden(&[context]);
                let scaled = |logits: Tensor<2>| host(logits / temperature);
                let reference = scaled(world.head.logits(hidden.deep().clone()));
                let expected =
                    scaled(world.head.logits(distiller.predict(hidden.shallow().clone())));
                let mut kept: Vec<usize> = (0..VOCAB).collect();
                kept.sort_by(|&a, &b| reference[b].total_cmp(&reference[a]));
                kept.truncate(k);
                let of = |all: &[f32]| kept.iter().map(|&t| f64::from(all[t])).collect::<Vec<_>>();
                let new = formula(&of(&reference), &of(&expected), f64::from(beta));
                let new: Vec<f32> = new.into_iter().map(|score| score as f32).collect();

                let rows = [row(0, context as u64, &sampling)];
                let choice = &choices(world.step(&mut sampler(), &rows, &[context]).unwrap())[0];
                let place = kept.iter().position(|&t| t == choice.token as usize).unwrap();
                let wanted = log_softmax(&new, place as u32);
                assert!(
                    (choice.log_prob - wanted).abs() < 1e-5,
                    "{name:?}, {k} candidates: {} {wanted}",
                    choice.log_prob
                );
            }
        }
    }
}

/// Penalties and bias are added once, for every β.
#[test]
fn subtraction_leaves_the_adjustments_as_they_are() {
    let world = World::new();
    let distiller = SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let (beta, temperature) = (0.5, 0.8);
    // Both rows have generated tokens 5 and 6, once each.
    let penalties = Penalties::new().with_frequency(0.4).with_presence(0.3);
    let added = |token: usize| match token {
        3 => 1.25,
        5 => -0.5 - 0.7,
        6 => -0.7,
        _ => 0.0,
    };
    let config = control(ControlConfig::Subtract, beta).with_temperature(temperature);
    let config = config.with_penalties(penalties).with_logit_bias(3, 1.25).with_logit_bias(5, -0.5);
    let sampling = config.checked().unwrap();
    for context in 0..12 {
        let hidden = world.hidden(&[context]);
        let reference = host(world.head.logits(hidden.deep().clone()));
        let expected = host(world.head.logits(distiller.predict(hidden.shallow().clone())));
        let scores: Vec<f32> = (0..VOCAB)
            .map(|z| (reference[z] - beta * expected[z] + added(z)) / temperature)
            .collect();
        let rows = [row(0, context as u64, &sampling)];
        let choice = &choices(world.step(&mut sampler(), &rows, &[context]).unwrap())[0];
        let wanted = log_softmax(&scores, choice.token);
        assert!((choice.log_prob - wanted).abs() < 1e-5, "{context}: {} {wanted}", choice.log_prob);
    }
}

/// The same tokens and log-probabilities, and no distiller.
#[test]
fn sharpening_is_a_temperature_and_costs_nothing() {
    let world = World::new();
    let config = control(ControlConfig::Sharpen, 0.5).with_temperature(0.9);
    let (sharp, plain) = (config.checked().unwrap(), sharpened_plain(&config));
    assert_eq!(plain.beta, 0.0);
    assert!((plain.temperature - 0.6).abs() < 1e-6);
    let plain = plain.checked().unwrap();
    let mut sampler = sampler();
    for context in 0..30 {
        let hidden = world.hidden(&[context, context]);
        let logits = world.head.logits(hidden.deep().clone());
        let rows = [row(0, context as u64, &sharp), row(1, context as u64 + 100, &plain)];
        let rows = [rows[0], {
            let mut row = rows[1];
            row.draw = rows[0].draw;
            row
        }];
        // No hidden states are passed, because neither row needs them.
        let got = choices(sampler.step(StepInput::new(&rows, logits, &world.head)).unwrap());
        assert_eq!(got[0].token, got[1].token);
        assert!((got[0].log_prob - got[1].log_prob).abs() < 1e-5);
    }
    let counters = sampler.counters();
    assert_eq!((sampler.distillers(), counters.eligible, counters.steered), (0, 0, 0));
    assert!(sampler.finish().is_ok());
}

/// The control and ESamp itself sharpen hot tokens after the first; the plain sampler at the lower temperature does
/// not change FIRE's temperature.
#[test]
fn sharpening_and_a_hot_start() {
    let world = World::new();
    let (beta, hot) = (0.5f32, 3.0f32);
    let config = control(ControlConfig::Sharpen, beta).with_temperature(0.9);
    let config = config.with_fire(Fire::new(hot).with_tokens(4));
    let plain = sharpened_plain(&config);
    assert_eq!(plain.fire, config.fire);
    let hidden = world.hidden(&[3]);
    let logits = host(world.head.logits(hidden.deep().clone()));
    for (config, factor) in [(&config, (1.0 + beta) / hot), (&plain, 1.0 / hot)] {
        let sampling = config.checked().unwrap();
        let rows = [row(0, 0, &sampling)]; // its third token
        let input = StepInput::new(&rows, world.head.logits(hidden.deep().clone()), &world.head);
        let choice = &choices(sampler().step(input).unwrap())[0];
        let scores: Vec<f32> = logits.iter().map(|logit| logit * factor).collect();
        assert!((choice.log_prob - log_softmax(&scores, choice.token)).abs() < 1e-5);
    }
}

/// Logits 0, −1, −2; min-p 0.2 keeps logits at most 1.61 below the best. With β = 1 the plain sampler at T/2 sees 0,
/// −2, −4.
#[test]
fn sharpening_keeps_the_candidates_that_a_lower_temperature_would_drop() {
    let world = World::new();
    let config = control(ControlConfig::Sharpen, 1.0).with_min_p(0.2);
    let mut logits = vec![f32::NEG_INFINITY; VOCAB];
    logits[..3].copy_from_slice(&[0.0, -1.0, -2.0]);
    for (config, scores) in
        [(config.clone(), &[0.0f32, -2.0][..]), (sharpened_plain(&config), &[0.0][..])]
    {
        let sampling = config.checked().unwrap();
        let logits = Tensor::from_data(TensorData::new(logits.clone(), [1, VOCAB]), &world.device);
        let rows = [row(0, 0, &sampling)];
        let output = sampler().step(StepInput::new(&rows, logits, &world.head)).unwrap();
        let choice = &choices(output)[0];
        assert_eq!(choice.candidates, scores.len());
        assert!((choice.log_prob - log_softmax(scores, choice.token)).abs() < 1e-6);
    }
}

/// Expects the zero state, whose logits are all 0.
#[derive(Module, Debug)]
struct Blank {}

impl Distiller for Blank {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow.zeros_like()
    }
}

#[test]
fn sharpening_is_esamp_with_a_distiller_of_constant_logits() {
    let world = World::new();
    let mut blank = Sampler::builder(SamplerConfig::new())
        .with_distiller(Blank {})
        .build(D_MODEL, &world.device)
        .unwrap();
    let bias = [[].into(), [(2, 3.0), (5, -2.0)].into()];
    let pairs = bias.map(|logit_bias: std::collections::BTreeMap<u32, f32>| {
        let esamp = Sampling::paper().with_beta(0.7);
        [esamp.clone(), ControlConfig::Sharpen.applied_to(esamp)].map(|config| {
            let mut config = config.with_min_p(0.05);
            config.logit_bias = logit_bias.clone();
            config.checked().unwrap()
        })
    });
    for (context, [esamp, sharp]) in (0..30).flat_map(|c| pairs.iter().map(move |p| (c, p))) {
        let one = &choices(world.step(&mut blank, &[row(0, 0, esamp)], &[context]).unwrap())[0];
        let two = &choices(world.step(&mut sampler(), &[row(0, 0, sharp)], &[context]).unwrap())[0];
        assert_eq!((one.token, one.candidates), (two.token, two.candidates));
        assert!((one.log_prob - two.log_prob).abs() < 1e-5);
    }
}

#[test]
fn the_first_token_is_unchanged() {
    let world = World::new();
    let plain = esamp(0.0);
    let step = |sampling: &CheckedSampling| {
        let logits = world.head.logits(world.hidden(&[3]).deep().clone());
        let rows = [{
            let mut row = row(0, 0, sampling).with_phase(Phase::FirstToken);
            row.generated = &[];
            row
        }];
        let input = StepInput::new(&rows, logits, &world.head);
        choices(sampler().step(input.with_other_logits(other_logits(&world, &[3]))).unwrap())
            .remove(0)
    };
    for name in [ControlConfig::Sharpen, ControlConfig::RandomReward] {
        let sampling = control(name, 3.0).checked().unwrap();
        assert_eq!(step(&sampling), step(&plain), "{name:?}");
    }
}

/// Rows of every kind choose the same tokens in one step as alone, and distillers learn only from rows that expect
/// them.
#[test]
fn all_reweighters_in_one_batch() {
    let world = World::new();
    let kinds = [
        sampling(ReweighterConfig::Contrast, 0.5).with_min_p(0.1),
        sampling(ReweighterConfig::Extrapolate, 0.5).with_top_k(4),
        control(ControlConfig::Sharpen, 0.5),
        sampling(ReweighterConfig::Contrast, 0.5).with_temperature(0.7),
        sampling(ReweighterConfig::Extrapolate, 0.0),
        sampling(ReweighterConfig::Orthogonal, 1.0).with_top_p(0.9),
        control(ControlConfig::RandomReward, 0.5),
        control(ControlConfig::Surprisal, 0.5),
        control(ControlConfig::MatchedRandom(Matched::Extrapolate), 0.5),
        control(ControlConfig::MatchedRandom(Matched::Orthogonal), 0.5),
    ];
    let samplings: Vec<CheckedSampling> =
        kinds.iter().map(|kind| kind.checked().unwrap()).collect();
    let rows: Vec<StepRow<'_>> =
        samplings.iter().enumerate().map(|(at, s)| row(at as u64, at as u64, s)).collect();
    let contexts: Vec<usize> = (0..rows.len()).collect();
    let step = |sampler: &mut Sampler, places: &[usize]| -> Vec<Choice> {
        let rows: Vec<_> = places.iter().map(|&p| rows[p]).collect();
        let contexts: Vec<_> = places.iter().map(|&p| contexts[p]).collect();
        let hidden = world.hidden(&contexts);
        let logits = world.head.logits(hidden.deep().clone());
        let input = StepInput::new(&rows, logits, &world.head)
            .with_hidden(hidden)
            .with_other_logits(other_logits(&world, &contexts));
        choices(sampler.step(input).unwrap())
    };
    let mut all = sampler();
    let together = step(&mut all, &contexts);
    for place in 0..rows.len() {
        let alone = &step(&mut sampler(), &[place])[0];
        assert_eq!(together[place].token, alone.token, "{:?}", kinds[place]);
        assert!((together[place].log_prob - alone.log_prob).abs() < 1e-4, "{:?}", kinds[place]);
        assert_eq!(together[place].novelty.is_some(), alone.novelty.is_some());
    }
    let counters = all.counters();
    assert_eq!((counters.contrasted, counters.other_not_finite), (2, 0));
    assert_eq!((counters.steered, counters.rows_learned, counters.eligible), (6, 6, 6));
    assert_eq!(all.distillers(), 6, "the others have none");
}

/// Each control on scores, and ESamp with a Gaussian error, gives the same tokens alone and with other requests in
/// the decode loop.
#[test]
fn a_rows_tokens_do_not_depend_on_other_rows_under_a_control() {
    let model = TinyLm::new(5, &Device::flex());
    let base = || Sampling::default().with_min_p(0.02);
    let arms: Vec<(Sampling, bool)> = [
        ControlConfig::Subtract,
        ControlConfig::Sharpen,
        ControlConfig::RandomReward,
        ControlConfig::Surprisal,
        ControlConfig::MatchedRandom(Matched::Extrapolate),
        ControlConfig::MatchedRandom(Matched::Orthogonal),
    ]
    .map(|control| (control.applied_to(base().with_beta(control.usual_beta())), false))
    .into_iter()
    .chain([(base(), true)])
    .collect();
    let mut seen = std::collections::HashSet::new();
    for (config, gaussian) in arms {
        let decoder = || {
            let mut sampler = SamplerConfig::new()
                .with_sharing(Sharing::PerCompletion)
                .init(model.d_model(), &Device::flex())
                .unwrap();
            if gaussian {
                sampler.set_expected_control(GaussianError);
            }
            Decoder::new(&model, sampler)
                .unwrap()
                .with_other_model(TinyLm::new(6, &Device::flex()))
                .unwrap()
        };
        let request = |prompt: &[TokenId], seed| {
            let request = Request::new(prompt.to_vec()).with_seed(seed).with_max_new_tokens(16);
            request.with_completions(2).with_sampling(config.clone())
        };
        let run = |mut decoder: Decoder<&TinyLm>| -> Vec<Vec<TokenId>> {
            let completions = decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap();
            completions.iter().map(Completion::tokens).collect()
        };
        let mut alone = decoder();
        alone.submit(request(&[7, 8, 9], 11)).unwrap();
        let alone = run(alone);
        let mut late = decoder();
        late.submit(request(&[1], 2)).unwrap();
        late.submit(request(&[3; 20], 4).with_max_new_tokens(5)).unwrap();
        for _ in 0..3 {
            drop(late.step().unwrap());
        }
        late.submit(request(&[7, 8, 9], 11)).unwrap();
        assert_eq!(run(late)[4..], alone, "{config:?} {gaussian}");
        assert!(seen.insert(alone), "{config:?} {gaussian} gave another one's tokens");
    }
}

/// The first token is not reweighted, so the plain run samples it at temperature 1. With `top-k` the candidates are
/// the same at every temperature.
#[test]
fn sharpening_is_a_lower_temperature_after_the_first_token() {
    let model = TinyLm::new(5, &Device::flex());
    let tokens = |sampling: Sampling| -> (Vec<Vec<TokenId>>, u64) {
        let sampler = SamplerConfig::new().init(model.d_model(), &Device::flex()).unwrap();
        let mut decoder = Decoder::new(&model, sampler).unwrap();
        let request = Request::new(vec![7, 8, 9]).with_completions(4).with_max_new_tokens(16);
        decoder.submit(request.with_sampling(sampling)).unwrap();
        let completions = decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap();
        let updates = decoder.sampler().counters().updates;
        (completions.iter().map(Completion::tokens).collect(), updates)
    };
    for (beta, temperature) in [(1.0, 0.5), (0.25, 0.8)] {
        let sharp = tokens(control(ControlConfig::Sharpen, beta).with_top_k(20));
        let plain = Sampling::default().with_beta(0.0).with_top_k(20);
        let cool = plain.clone().with_temperature(temperature).with_fire(Fire::new(1.0));
        assert_eq!(sharp, tokens(cool), "{beta}");
        assert_eq!(sharp.1, 0, "no distiller");
        if beta == 1.0 {
            assert_ne!(sharp, tokens(plain));
        }
    }
}
