//! Reweighters in a step: the scores each of them gives, what it costs and what it needs.

use burn::{module::Module, tensor::Tensor};
use esamp::{
    CausalLm, CheckedSampling, Choice, Completion, CompletionId, Decoder, LmHead, Request, Sampler,
    SamplerConfig, Sampling, Sharing, StepInput, StepRow, TokenId,
    distillers::{Distiller, SwiGluConfig},
    errors::StepError,
    reweighters::ReweighterConfig,
    testing::TinyLm,
};

use super::sampler_step::{
    D_MODEL, VOCAB, World, choices, esamp, first_token, log_softmax, row, sampler, wave,
};
use crate::device;

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

fn extrapolated(reference: &[f64], expected: &[f64], beta: f64) -> Vec<f64> {
    reference.iter().zip(expected).map(|(r, e)| (1.0 + beta) * r - beta * e).collect()
}

/// The residual of a least-squares line through (reference, reference − expected), times β.
fn orthogonal(reference: &[f64], expected: &[f64], beta: f64) -> Vec<f64> {
    let n = reference.len() as f64;
    let delta: Vec<f64> = reference.iter().zip(expected).map(|(r, e)| r - e).collect();
    let (sx, sy) = (reference.iter().sum::<f64>(), delta.iter().sum::<f64>());
    let sxx: f64 = reference.iter().map(|x| x * x).sum();
    let sxy: f64 = reference.iter().zip(&delta).map(|(x, y)| x * y).sum();
    let slope = (n * sxy - sx * sy) / (n * sxx - sx * sx);
    let intercept = (sy - slope * sx) / n;
    let residual = reference.iter().zip(&delta).map(|(x, y)| y - slope * x - intercept);
    reference.iter().zip(residual).map(|(r, d)| r + beta * d).collect()
}

/// Compares each reweighter with its formula, with and without a filter, at a temperature other than 1.
#[test]
fn a_token_is_drawn_from_the_scores_of_the_formula() {
    let world = World::new();
    let distiller = SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let (beta, temperature) = (0.5, 0.8);
    let formulas: [(ReweighterConfig, Formula); 2] =
        [(ReweighterConfig::Extrapolate, extrapolated), (ReweighterConfig::Orthogonal, orthogonal)];
    for (reweighter, formula) in formulas {
        for k in [3, 5, VOCAB] {
            let config =
                sampling(reweighter.clone(), beta).with_temperature(temperature).with_top_k(k);
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
                    "{reweighter:?}, {k} candidates: {} {wanted}",
                    choice.log_prob
                );
            }
        }
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

/// With a distiller of constant logits, orthogonal novelty leaves the reference unchanged: all of the novelty is
/// slope.
#[test]
fn orthogonal_novelty_of_constant_logits_is_zero() {
    let world = World::new();
    let mut blank = Sampler::builder(SamplerConfig::new())
        .with_distiller(Blank {})
        .build(D_MODEL, &world.device)
        .unwrap();
    let orthogonal = sampling(ReweighterConfig::Orthogonal, 1.0).checked().unwrap();
    for context in 0..30 {
        let one =
            &choices(world.step(&mut blank, &[row(0, 0, &orthogonal)], &[context]).unwrap())[0];
        let two =
            &choices(world.step(&mut sampler(), &[row(0, 0, &esamp(0.0))], &[context]).unwrap())[0];
        assert_eq!(one.token, two.token);
        assert!((one.log_prob - two.log_prob).abs() < 1e-5);
    }
}

#[test]
fn only_the_first_token_of_a_contrasted_row_is_reweighted() {
    let world = World::new();
    let plain = esamp(0.0);
    let step = |sampling: &CheckedSampling| {
        let logits = world.head.logits(world.hidden(&[3]).deep().clone());
        let rows = [first_token(row(0, 0, sampling))];
        let input = StepInput::new(&rows, logits, &world.head);
        choices(sampler().step(input.with_other_logits(other_logits(&world, &[3]))).unwrap())
            .remove(0)
    };
    for reweighter in [ReweighterConfig::Extrapolate, ReweighterConfig::Orthogonal] {
        let sampling = sampling(reweighter.clone(), 3.0).checked().unwrap();
        assert_eq!(step(&sampling), step(&plain), "{reweighter:?}");
    }
    let contrast = sampling(ReweighterConfig::Contrast, 0.5).checked().unwrap();
    let reference = host(world.head.logits(world.hidden(&[3]).deep().clone()));
    let other = host(other_logits(&world, &[3]));
    let fused: Vec<f32> = reference.iter().zip(&other).map(|(r, o)| 1.5 * r - 0.5 * o).collect();
    let choice = step(&contrast);
    assert!((choice.log_prob - log_softmax(&fused, choice.token)).abs() < 1e-5);
}

/// Rows of every kind choose the same tokens in one step as alone, and distillers learn only from rows that expect
/// them.
#[test]
fn all_reweighters_in_one_batch() {
    let world = World::new();
    let kinds = [
        sampling(ReweighterConfig::Contrast, 0.5).with_min_p(0.1),
        sampling(ReweighterConfig::Extrapolate, 0.5).with_top_k(4),
        sampling(ReweighterConfig::Contrast, 0.5).with_temperature(0.7),
        sampling(ReweighterConfig::Extrapolate, 0.0),
        sampling(ReweighterConfig::Orthogonal, 1.0).with_top_p(0.9),
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
    assert_eq!((counters.steered, counters.rows_learned, counters.eligible), (2, 2, 2));
    assert_eq!(all.distillers(), 2, "the others have none");
}

#[test]
fn a_row_with_a_logit_of_the_other_model_that_is_not_finite_is_sampled_plainly() {
    let world = World::new();
    let contrast = sampling(ReweighterConfig::Contrast, 0.5).checked().unwrap();
    let narrow = sampling(ReweighterConfig::Contrast, 0.5).with_top_k(1).checked().unwrap();
    let plain = esamp(0.0);
    let rows = [row(0, 0, &contrast), row(0, 1, &contrast), row(0, 2, &narrow)];
    let hidden = world.hidden(&[1, 2, 3]);
    let logits = world.head.logits(hidden.deep().clone());
    let best: Vec<f32> = host(logits.clone())[2 * VOCAB..].to_vec();
    let best = (0..VOCAB).max_by(|&a, &b| best[a].total_cmp(&best[b])).unwrap();
    let bad = Tensor::<2>::full([1, 1], f32::NEG_INFINITY, &world.device);
    let outside = (best + 1) % VOCAB;
    let other = other_logits(&world, &[1, 2, 3])
        .slice_assign([0..1, 4..5], bad.clone())
        .slice_assign([2..3, outside..outside + 1], bad);
    let mut sampler = sampler();
    let input = StepInput::new(&rows, logits, &world.head).with_other_logits(other);
    let got = choices(sampler.step(input).unwrap());
    let expected = [{
        let mut row = rows[0];
        row.sampling = &plain;
        row
    }];
    let expected = &choices(world.step(&mut self::sampler(), &expected, &[1]).unwrap())[0];
    assert_eq!(&got[0], expected);
    let counters = sampler.counters();
    assert_eq!((counters.contrasted, counters.other_not_finite, counters.failed), (2, 1, 0));
}

#[test]
fn requirements_of_a_contrasted_row_are_checked_before_any_work() {
    let world = World::new();
    let (contrast, steered) =
        (sampling(ReweighterConfig::Contrast, 0.5).checked().unwrap(), esamp(0.25));
    let rows = [row(4, 7, &contrast), row(0, 1, &steered)];
    let mut sampler = sampler();
    let mut wording = |other: Option<Tensor<2>>| {
        let hidden = world.hidden(&[0, 1]);
        let logits = world.head.logits(hidden.deep().clone());
        let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
        let error: StepError = sampler.step(input.with_other_logits(other)).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        wording(None),
        "logits of the other model: expected them for completion 7 of prompt 4, whose reweighter contrasts with \
         them, got none"
    );
    for (shape, text) in [([1, VOCAB], "[1, 12]"), ([2, VOCAB + 1], "[2, 13]")] {
        assert_eq!(
            wording(Some(Tensor::zeros(shape, &device()))),
            format!("logits of the other model: expected shape [2, 12], got {text}")
        );
    }
    assert_eq!((sampler.counters().steps, sampler.distillers()), (0, 0));
    // Rows that need no other model accept its logits, of any shape, and also none.
    let rows = [{
        let mut row = rows[1];
        row.id = CompletionId::new(0, 3);
        row
    }];
    let hidden = world.hidden(&[1]);
    let logits = world.head.logits(hidden.deep().clone());
    let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
    let odd = Tensor::<2>::zeros([5, 5], &world.device);
    assert!(sampler.step(input.with_other_logits(odd)).is_ok());
}

#[test]
fn settings_without_a_reweighter_are_esamp() {
    let old = r#"{"temperature":0.8,"temperature_order":"before_filters","filters":[],"beta":0.5}"#;
    let read: Sampling = serde_json::from_str(old).unwrap();
    assert_eq!(read, Sampling::paper().with_temperature(0.8).with_beta(0.5));
    let orthogonal = sampling(ReweighterConfig::Orthogonal, 1.0);
    let written = serde_json::to_string(&orthogonal).unwrap();
    assert!(written.contains(r#""beta":1.0,"reweighter":"orthogonal""#), "{written}");
    assert_eq!(serde_json::from_str::<Sampling>(&written).unwrap(), orthogonal);
    let contrastive = Sampling::contrastive();
    assert_eq!((contrastive.beta, contrastive.filters().len()), (0.5, 1));
}

/// Each reweighter gives the same tokens alone and with other requests in the decode loop.
#[test]
fn a_rows_tokens_do_not_depend_on_the_other_rows_with_any_reweighter() {
    let model = TinyLm::new(5, &device());
    let base = || Sampling::default().with_min_p(0.02);
    let named = [ReweighterConfig::Orthogonal, ReweighterConfig::Contrast]
        .map(|reweighter| base().with_beta(reweighter.usual_beta()).with_reweighter(reweighter));
    let arms = [base()].into_iter().chain(named);
    let mut seen = std::collections::HashSet::new();
    for config in arms {
        let decoder = || {
            let sampler = SamplerConfig::new()
                .with_sharing(Sharing::PerCompletion)
                .init(model.d_model(), &device())
                .unwrap();
            Decoder::new(&model, sampler)
                .unwrap()
                .with_other_model(TinyLm::new(6, &device()))
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
        assert_eq!(run(late)[4..], alone, "{config:?}");
        assert!(seen.insert(alone), "{config:?} gave another one's tokens");
    }
}
