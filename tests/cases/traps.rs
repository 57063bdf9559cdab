//! Traps that have occurred in implementations of the method, one test each. docs/design/traps.md describes what goes
//! wrong.
//!
//! Each test here is short and fails if its trap returns; the thorough tests are next to the code that they test.

use std::ops::ControlFlow;

use super::{
    narrow, narrow_distiller,
    sampler_step::{D_MODEL, VOCAB, World, choices, esamp, log_softmax, row},
};
use crate::device;
use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use esamp::{
    Choice, Completion, Decoder, HiddenStates, LmHead, Request, Sampler, SamplerConfig, Sampling,
    Sharing, StepInput, StepRow, TokenId,
    distillers::{Distiller, SwiGluDistiller},
    errors::RowError,
    filters::{Candidates, RowContext},
    optim::{Learner, OptimizerConfig, Staleness, TrainingConfig},
    reweighters::{Expects, NoveltyReweighter},
    testing::TinyLm,
};

/// A learning rate at which a mix-up of slots shows after one step.
pub(super) fn optimizer() -> OptimizerConfig {
    OptimizerConfig::paper().with_learning_rate(1e-2)
}

pub(super) fn config() -> SamplerConfig {
    narrow().with_optimizer(optimizer())
}

pub(super) fn sampler(config: &SamplerConfig) -> Sampler {
    config.init(D_MODEL, &device()).unwrap()
}

pub(super) fn learner() -> Learner<SwiGluDistiller> {
    Learner::new(narrow_distiller().init(D_MODEL, 0, &device()).unwrap(), optimizer()).unwrap()
}

/// One step in which every row gets a token.
pub(super) fn step(
    world: &World,
    sampler: &mut Sampler,
    rows: &[StepRow<'_>],
    contexts: &[usize],
) -> Vec<Choice> {
    choices(world.step(sampler, rows, contexts).unwrap())
}

pub(super) fn error(choice: &Choice) -> f32 {
    choice.novelty.unwrap().error
}

/// `‖deep − predicted‖` of one context.
pub(super) fn error_of(world: &World, distiller: &impl Distiller, context: usize) -> f32 {
    let hidden = world.hidden(&[context]);
    let predicted = distiller.predict(hidden.shallow().clone());
    (hidden.deep().clone() - predicted).square().sum().sqrt().into_scalar()
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The reference logits of a context, and the logits that a fresh distiller expects.
pub(super) fn both_logits(world: &World, context: usize) -> [Vec<f32>; 2] {
    let hidden = world.hidden(&[context]);
    let expected = learner().distiller().predict(hidden.shallow().clone());
    [hidden.deep().clone(), expected].map(|states| host(world.head.logits(states)))
}

pub(super) fn run<M: esamp::CausalLm>(decoder: &mut Decoder<M>) -> Vec<Completion> {
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

pub(super) fn tokens(completions: &[Completion]) -> Vec<Vec<TokenId>> {
    completions.iter().map(Completion::tokens).collect()
}

#[track_caller]
pub(super) fn close(got: f32, expected: f32) {
    assert!((got - expected).abs() < 1e-4, "got {got}, expected {expected}");
}

#[test]
fn trap_01_rows_move() {
    let world = World::new();
    let sampling = esamp(0.5);
    let rows: Vec<_> = (0..3).map(|r| row(r, r, &sampling)).collect();
    // The rows of each step: they are permuted, one leaves, and it comes back.
    let batches: [&[usize]; 5] = [&[0, 1, 2], &[2, 0, 1], &[1, 2], &[2, 1], &[1, 0, 2]];
    let mut together = sampler(&config());
    let mut alone: Vec<_> = (0..3).map(|_| sampler(&config())).collect();
    for (at, batch) in batches.iter().enumerate() {
        let context = |row: usize| 7 * row + at;
        let standing: Vec<_> = batch.iter().map(|&r| rows[r]).collect();
        let contexts: Vec<_> = batch.iter().map(|&r| context(r)).collect();
        let got = step(&world, &mut together, &standing, &contexts);
        for (got, &r) in got.iter().zip(*batch) {
            let expected = &step(&world, &mut alone[r], &rows[r..=r], &[context(r)])[0];
            assert_eq!(got.token, expected.token, "step {at}, row {r}");
            close(error(got), error(expected));
        }
    }
}

#[test]
fn trap_02_two_generations() {
    let model = TinyLm::new(3, &device());
    let generation = |decoder: &mut Decoder<&TinyLm>| {
        let request = Request::new(vec![1, 2, 3]).with_completions(2).with_max_new_tokens(16);
        decoder.submit(request.with_sampling(Sampling::paper().with_beta(1.0))).unwrap();
        tokens(&run(decoder))
    };
    for (sharing, goes_on) in [(Sharing::PerPrompt, false), (Sharing::Global, true)] {
        let sampler = config().with_sharing(sharing).init(TinyLm::D_MODEL, &device()).unwrap();
        let mut decoder = Decoder::new(&model, sampler).unwrap();
        let first = generation(&mut decoder);
        let learned = generation(&mut decoder) != first;
        assert_eq!(learned, goes_on, "{sharing:?}: what the first left behind for the second");
        decoder.sampler_mut().reset();
        assert_eq!(decoder.sampler().counters().steps, 0);
        assert_eq!(generation(&mut decoder), first, "{sharing:?}, after a reset");
    }
}

#[test]
fn trap_03_interleaved_prompts() {
    let world = World::new();
    let sampling = esamp(0.5);
    let rows: Vec<_> = (0..4).map(|r| row(r % 2, r, &sampling)).collect(); // prompts 0, 1, 0, 1
    let of_one: Vec<_> = [rows[0], rows[2]].to_vec();
    for (sharing, isolated) in [(Sharing::PerPrompt, true), (Sharing::Global, false)] {
        let config = config().with_sharing(sharing);
        let (mut mixed, mut pure) = (sampler(&config), sampler(&config));
        let mut differences = Vec::new();
        for at in 0..4 {
            let a = step(&world, &mut mixed, &rows, &[at, at + 20, at + 5, at + 30]);
            let b = step(&world, &mut pure, &of_one, &[at, at + 5]);
            differences.push((error(&a[0]) - error(&b[0])).abs());
            differences.push((error(&a[2]) - error(&b[1])).abs());
        }
        let largest = differences.iter().copied().fold(0.0, f32::max);
        assert_eq!(largest < 1e-4, isolated, "{sharing:?}: {differences:?}");
        assert_eq!(mixed.distillers(), if isolated { 2 } else { 1 });
    }
}

#[test]
fn trap_04_slots_are_used_again() {
    let world = World::new();
    let sampling = esamp(0.5);
    let mut sampler = sampler(&config());
    let mut life = |prompt: u64| -> Vec<f32> {
        let rows = [row(prompt, prompt, &sampling)];
        let errors = (0..3).map(|at| error(&step(&world, &mut sampler, &rows, &[at])[0]));
        let errors = errors.collect();
        sampler.release(rows[0].id);
        errors
    };
    // Adam's moments would show in the third error of the second life, parameters in the first.
    let first = life(0);
    for prompt in 1..40 {
        assert_eq!(life(prompt), first, "prompt {prompt}");
    }
    assert_eq!(life(0), first, "a name that comes back");
    assert_eq!(sampler.distillers(), 0);
    // There is no capacity that finished or waiting prompts could use up.
    let many: Vec<_> = (0..100).map(|p| row(p, p, &sampling)).collect();
    step(&world, &mut sampler, &many, &[0; 100]);
    assert_eq!(sampler.distillers(), 100);
}

#[test]
fn trap_05_no_rows_and_one_row() {
    let world = World::new();
    let sampling = esamp(0.5);
    let mut sampler = sampler(&config());
    let empty = |width: usize| Tensor::<2>::zeros([0, width], &world.device);
    let nothing = |sampler: &mut Sampler| {
        let hidden = HiddenStates::new(empty(D_MODEL), empty(D_MODEL)).unwrap();
        let input = StepInput::new(&[], empty(VOCAB), &world.head).with_hidden(hidden);
        let output = sampler.step(input).unwrap();
        assert_eq!((output.choices.len(), output.updates), (0, 0));
    };
    nothing(&mut sampler);
    assert_eq!(*sampler.counters(), Default::default(), "an empty step is none");
    assert_eq!(step(&world, &mut sampler, &[row(0, 0, &sampling)], &[1]).len(), 1);
    assert_eq!(sampler.counters().rows_learned, 1);
    nothing(&mut sampler);
    assert_eq!(sampler.distillers(), 1, "nor does it end anything");
}

#[test]
fn trap_06_logits_that_are_not_numbers() {
    let world = World::new();
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let sampling = esamp(3.0);
    let mut logits = vec![vec![0.5; VOCAB]; 5];
    logits[0][..VOCAB - 2].fill(-inf); // two tokens left: (1 + β)(−inf) − β(−inf) must not become NaN
    logits[1].fill(-inf);
    logits[1][7] = -3.0; // one left
    logits[2].fill(-inf);
    logits[3][4] = nan;
    logits[4][5] = inf;
    let rows: Vec<_> = (0..5).map(|r| row(r, r, &sampling)).collect();
    let logits = Tensor::from_data(TensorData::new(logits.concat(), [5, VOCAB]), &world.device);
    let input = StepInput::new(&rows, logits, &world.head).with_hidden(world.hidden(&[0; 5]));
    let mut sampler = sampler(&config());
    let got = sampler.step(input).unwrap().choices;
    let two = got[0].clone().unwrap();
    assert!(two.token as usize >= VOCAB - 2 && two.log_prob.is_finite() && two.candidates == 2);
    let one = got[1].clone().unwrap();
    assert_eq!((one.token, one.log_prob), (7, 0.0));
    assert_eq!(got[2], Err(RowError::AllMasked { vocab: VOCAB }));
    assert!(matches!(got[3], Err(RowError::NotANumber { token: 4, got }) if got.is_nan()));
    assert_eq!(got[4], Err(RowError::NotANumber { token: 5, got: inf }));
    assert_eq!((sampler.counters().failed, sampler.counters().rows_learned), (3, 2));
}

/// A distiller that must not be called.
#[derive(Module, Debug)]
struct Forbidden {}

impl Distiller for Forbidden {
    fn predict(&self, _shallow: Tensor<2>) -> Tensor<2> {
        panic!("distiller work at β = 0")
    }
}

/// Plain sampling, independent of β.
#[derive(Debug)]
struct Plain;

impl NoveltyReweighter for Plain {
    fn reweight(&self, _row: &RowContext<'_>, _candidates: &mut Candidates) {}

    fn expects(&self) -> Expects {
        Expects::Nothing
    }
}

#[test]
fn trap_07_beta_zero() {
    let model = TinyLm::new(3, &device());
    let off = Sampling::default().with_beta(0.0).with_min_p(0.01);
    let plain = Sampling::new().with_custom_reweighter(Plain).with_min_p(0.01);
    let all = |sampling: &Sampling| -> Vec<Choice> {
        let sampler = Sampler::builder(config())
            .with_distiller(Forbidden {})
            .build(TinyLm::D_MODEL, &device())
            .unwrap();
        let mut decoder = Decoder::new(&model, sampler).unwrap();
        let request = Request::new(vec![5, 6]).with_completions(3).with_max_new_tokens(30);
        decoder.submit(request.with_sampling(sampling.clone()).with_seed(9)).unwrap();
        let completions = run(&mut decoder);
        let counters = decoder.sampler_mut();
        assert!(counters.finish().is_ok(), "there was nothing to learn");
        assert_eq!((counters.counters().eligible, counters.counters().updates), (0, 0));
        completions.into_iter().flat_map(|completion| completion.choices).collect()
    };
    assert_eq!(all(&off), all(&plain), "tokens, log-probabilities and all, to the bit");
}

#[test]
fn trap_08_prediction_comes_before_the_update() {
    let world = World::new();
    let sampling = esamp(0.5);
    for (staleness, behind) in [(Staleness::Inline, 0), (Staleness::Background, 1)] {
        let training = TrainingConfig::new().with_staleness(staleness);
        let mut sampler = sampler(&config().with_training(training));
        for at in 0..6usize {
            let mut oracle = learner();
            let seen = at.saturating_sub(behind);
            for earlier in 0..seen {
                drop(oracle.update(&world.hidden(&[earlier])));
            }
            let got = step(&world, &mut sampler, &[row(0, 0, &sampling)], &[at]);
            close(error(&got[0]), error_of(&world, oracle.distiller(), at));
        }
    }
}

#[test]
fn trap_09_every_row_trains() {
    let world = World::new();
    let sampling = esamp(0.5);
    let rows: Vec<_> = (0..4).map(|r| row(0, r, &sampling)).collect();
    let mut sampler = sampler(&config());
    step(&world, &mut sampler, &rows, &[0, 5, 9, 14]);
    assert_eq!((sampler.counters().rows_learned, sampler.counters().updates), (4, 1));
    let (mut all, mut first) = (learner(), learner());
    all.update(&world.hidden(&[0, 5, 9, 14]));
    first.update(&world.hidden(&[0]));
    let got = error(&step(&world, &mut sampler, &rows[..1], &[3])[0]);
    close(got, error_of(&world, all.distiller(), 3));
    assert!((got - error_of(&world, first.distiller(), 3)).abs() > 1e-3, "not the first alone");
}

#[test]
fn trap_10_one_temperature_and_one_adjustment_for_both_logits() {
    let world = World::new();
    let (beta, temperature, bias) = (1.5, 0.7, 1.25);
    let [reference, expected] = both_logits(&world, 4);
    let base = Sampling::paper().with_beta(beta).with_temperature(temperature);
    for biased in [None, Some(3)] {
        let sampling = match biased {
            Some(token) => base.clone().with_logit_bias(token, bias),
            None => base.clone(),
        };
        let sampling = sampling.checked().unwrap();
        let added = |token: usize| if biased == Some(token as TokenId) { bias } else { 0.0 };
        // The bias is added once; added to the reference alone, it would become (1 + β)·bias in the fusion.
        let scores: Vec<f32> = (0..VOCAB)
            .map(|z| ((1.0 + beta) * reference[z] - beta * expected[z] + added(z)) / temperature)
            .collect();
        for request in 0..10 {
            let got = step(&world, &mut sampler(&config()), &[row(0, request, &sampling)], &[4]);
            close(got[0].log_prob, log_softmax(&scores, got[0].token));
        }
    }
}
