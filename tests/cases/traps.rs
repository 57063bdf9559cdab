//! The traps that have bitten implementations of the method, one test each: docs/design/traps.md says what goes wrong.
//!
//! Each test here is short and fails if its trap comes back; the thorough ones stand with the code they are about.

use std::{collections::HashSet, ops::ControlFlow};

use super::sampler_step::{D_MODEL, VOCAB, World, choices, esamp, log_softmax, row, wave};
use crate::device;
use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, TensorData},
};
use esamp::{
    Choice, Completion, CompletionId, Decoder, DrawKey, FinishReason, HiddenStates, LmHead,
    Request, Sampler, SamplerConfig, Sampling, Sharing, StepInput, StepRow, TokenId, TokenMask,
    distillers::{Distiller, SwiGluConfig, SwiGluDistiller},
    errors::{RowError, TrainError},
    filters::{Candidates, RowContext},
    optim::{Learner, OptimizerConfig, Staleness, TrainingConfig, UpdateRule},
    reweighters::{Expects, NoveltyReweighter},
    testing::{ScriptedLm, TinyLm},
    unstable::SlotPath,
};

/// Learns fast enough for a mix-up of slots to show after one step.
fn optimizer() -> OptimizerConfig {
    OptimizerConfig::paper().with_learning_rate(1e-2)
}

fn config() -> SamplerConfig {
    SamplerConfig::new().with_optimizer(optimizer())
}

fn sampler(config: &SamplerConfig) -> Sampler {
    config.init(D_MODEL, &device()).unwrap()
}

fn learner() -> Learner<SwiGluDistiller> {
    Learner::new(SwiGluConfig::new().init(D_MODEL, 0, &device()).unwrap(), optimizer()).unwrap()
}

/// One step whose rows all get a token.
fn step(
    world: &World,
    sampler: &mut Sampler,
    rows: &[StepRow<'_>],
    contexts: &[usize],
) -> Vec<Choice> {
    choices(world.step(sampler, rows, contexts).unwrap())
}

fn error(choice: &Choice) -> f32 {
    choice.novelty.unwrap().error
}

/// `‖deep − predicted‖` of one context.
fn error_of(world: &World, distiller: &impl Distiller, context: usize) -> f32 {
    let hidden = world.hidden(&[context]);
    let predicted = distiller.predict(hidden.shallow().clone());
    (hidden.deep().clone() - predicted).square().sum().sqrt().into_scalar()
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Reference logits of a context, and the logits that a fresh distiller gives rise to.
fn both_logits(world: &World, context: usize) -> [Vec<f32>; 2] {
    let hidden = world.hidden(&[context]);
    let expected = learner().distiller().predict(hidden.shallow().clone());
    [hidden.deep().clone(), expected].map(|states| host(world.head.logits(states)))
}

fn run<M: esamp::CausalLm>(decoder: &mut Decoder<M>) -> Vec<Completion> {
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

fn tokens(completions: &[Completion]) -> Vec<Vec<TokenId>> {
    completions.iter().map(Completion::tokens).collect()
}

#[track_caller]
fn close(got: f32, expected: f32) {
    assert!((got - expected).abs() < 1e-4, "got {got}, expected {expected}");
}

#[test]
fn trap_01_rows_move() {
    let world = World::new();
    let sampling = esamp(0.5);
    let rows: Vec<_> = (0..3).map(|r| row(r, r, &sampling)).collect();
    // Which rows stand where, step by step: they are permuted, one leaves, it comes back.
    let batches: [&[usize]; 5] = [&[0, 1, 2], &[2, 0, 1], &[1, 2], &[2, 1], &[1, 0, 2]];
    let mut together = sampler(&config());
    let mut alone: Vec<_> = (0..3).map(|_| sampler(&config())).collect();
    for (at, batch) in batches.iter().enumerate() {
        let context = |row: usize| 7 * row + at;
        let standing: Vec<_> = batch.iter().map(|&r| rows[r]).collect();
        let contexts: Vec<_> = batch.iter().map(|&r| context(r)).collect();
        let got = step(&world, &mut together, &standing, &contexts);
        for (got, &r) in got.iter().zip(*batch) {
            let expected = step(&world, &mut alone[r], &rows[r..=r], &[context(r)])[0];
            assert_eq!(got.token, expected.token, "step {at}, row {r}");
            close(error(got), error(&expected));
        }
    }
}

#[test]
fn trap_02_two_generations() {
    let model = TinyLm::new(3, &device());
    let generation = |decoder: &mut Decoder<&TinyLm>| {
        let request = Request::new(vec![1, 2, 3]).with_completions(2).with_max_new_tokens(16);
        decoder.submit(request.with_sampling(Sampling::new().with_beta(1.0))).unwrap();
        tokens(&run(decoder))
    };
    for (sharing, goes_on) in [(Sharing::PerPrompt, false), (Sharing::Global, true)] {
        let sampler = config().with_sharing(sharing).init(TinyLm::D_MODEL, &device()).unwrap();
        let mut decoder = Decoder::new(&model, sampler);
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
    // Adam's moments would show in the third error of the second life, parameters in its first.
    let first = life(0);
    for prompt in 1..40 {
        assert_eq!(life(prompt), first, "prompt {prompt}");
    }
    assert_eq!(life(0), first, "a name that comes back");
    assert_eq!(sampler.distillers(), 0);
    // There is no capacity that finished or waiting prompts could hold.
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
fn trap_06_logits_that_are_no_numbers() {
    let world = World::new();
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let sampling = esamp(3.0);
    let mut logits = vec![vec![0.5; VOCAB]; 5];
    logits[0][..VOCAB - 2].fill(-inf); // two tokens left: (1 + β)(−inf) − β(−inf) must not come back as NaN
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

/// A distiller that must not be asked.
#[derive(Module, Debug)]
struct Forbidden {}

impl Distiller for Forbidden {
    fn predict(&self, _shallow: Tensor<2>) -> Tensor<2> {
        panic!("distiller work at β = 0")
    }
}

/// Plain sampling that knows nothing of β.
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
        let mut decoder = Decoder::new(&model, sampler);
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
            (0..seen).for_each(|earlier| drop(oracle.update(&world.hidden(&[earlier]))));
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
    let base = Sampling::default().with_beta(beta).with_temperature(temperature);
    for biased in [None, Some(3)] {
        let sampling = match biased {
            Some(token) => base.clone().with_logit_bias(token, bias),
            None => base.clone(),
        };
        let sampling = sampling.checked().unwrap();
        let added = |token: usize| if biased == Some(token as TokenId) { bias } else { 0.0 };
        // The bias is added once; on the reference alone the fusion would make (1 + β)·bias of it.
        let scores: Vec<f32> = (0..VOCAB)
            .map(|z| ((1.0 + beta) * reference[z] - beta * expected[z] + added(z)) / temperature)
            .collect();
        for request in 0..10 {
            let got = step(&world, &mut sampler(&config()), &[row(0, request, &sampling)], &[4]);
            close(got[0].log_prob, log_softmax(&scores, got[0].token));
        }
    }
}

#[test]
fn trap_11_nothing_is_filtered_after_the_fusion() {
    let world = World::new();
    let (beta, min_p) = (2.0, 0.1f32);
    let sampling = Sampling::default().with_beta(beta).with_min_p(min_p).checked().unwrap();
    let kept_of = |scores: &[f32]| -> HashSet<usize> {
        let best = scores.iter().copied().fold(f32::MIN, f32::max);
        (0..scores.len()).filter(|&z| scores[z] >= best + min_p.ln()).collect()
    };
    let mut would_differ = 0;
    for context in 0..20 {
        let [reference, expected] = both_logits(&world, context);
        let kept = kept_of(&reference);
        let fused = |z: usize| (1.0 + beta) * reference[z] - beta * expected[z];
        let scores: Vec<f32> = (0..VOCAB)
            .map(|z| if kept.contains(&z) { fused(z) } else { f32::NEG_INFINITY })
            .collect();
        let got = step(&world, &mut sampler(&config()), &[row(0, 1, &sampling)], &[context])[0];
        assert_eq!(got.candidates, kept.len(), "context {context}: those of the reference");
        close(got.log_prob, log_softmax(&scores, got.token));
        would_differ += usize::from(kept_of(&scores) != kept);
    }
    assert!(would_differ > 5, "filtering again would show: {would_differ}");
}

#[test]
fn trap_12_a_batch_is_its_rows_one_by_one() {
    let model = TinyLm::new(8, &device());
    let request = |at: u32| {
        let prompt = (0..=at).map(|token| token * 9 % 64).collect();
        let request = Request::new(prompt).with_max_new_tokens(12).with_seed(u64::from(at));
        request.with_sampling(Sampling::new().with_beta(0.5)).with_reference_log_probs()
    };
    let decode = |requests: Vec<Request>| {
        let mut decoder = Decoder::new(&model, config().init(TinyLm::D_MODEL, &device()).unwrap());
        requests.into_iter().for_each(|request| drop(decoder.submit(request).unwrap()));
        run(&mut decoder)
    };
    let together = decode((0..5).map(request).collect());
    for (at, batched) in together.iter().enumerate() {
        let alone = &decode(vec![request(at as u32)])[0];
        assert_eq!(batched.tokens(), alone.tokens(), "prompt {at}");
        for (a, b) in batched.choices.iter().zip(&alone.choices) {
            close(a.reference_log_prob.unwrap(), b.reference_log_prob.unwrap());
            close(a.log_prob, b.log_prob);
        }
    }
}

#[test]
fn trap_13_random_numbers_know_no_neighbours() {
    let world = World::new();
    let off = Sampling::default().with_beta(0.0).with_temperature(3.0).checked().unwrap();
    let draw = DrawKey::new(7, &[1, 2, 3], 4);
    let token =
        |id: CompletionId, draw: DrawKey, generated: &[TokenId], others: u64, last: bool| {
            let mine = {
                let mut row = row(0, 0, &off);
                row.id = id;
                row.draw = draw;
                row.generated = generated;
                row
            };
            let mut rows: Vec<_> = (0..others).map(|r| row(50, 100 + r, &off)).collect();
            let place = if last { rows.len() } else { 0 };
            rows.insert(place, mine);
            let contexts = vec![2; rows.len()];
            step(&world, &mut sampler(&config()), &rows, &contexts)[place].token
        };
    let mut seen = HashSet::new();
    for position in 0..20 {
        let generated = vec![5; position];
        let expected = token(CompletionId::new(0, 0), draw, &generated, 0, false);
        for (id, others, last) in [((0, 0), 3, false), ((0, 0), 7, true), ((9, 31), 2, true)] {
            let id = CompletionId::new(id.0, id.1);
            assert_eq!(token(id, draw, &generated, others, last), expected, "{position}");
        }
        // What must matter: seed, prompt and index of the completion.
        for other in [
            DrawKey::new(8, &[1, 2, 3], 4),
            DrawKey::new(7, &[1, 2, 4], 4),
            DrawKey::new(7, &[1, 2, 3], 5),
        ] {
            assert_ne!(other.at(position as u64).uniform(), draw.at(position as u64).uniform());
        }
        seen.insert(expected);
    }
    assert!(seen.len() > 4, "the position matters: {seen:?}");
}

#[test]
fn trap_14_enabled_but_nothing_learned() {
    let world = World::new();
    let sampling = esamp(0.5);
    let mut sampler = sampler(&config());
    let nan = Tensor::<2>::full([2, D_MODEL], f32::NAN, &world.device);
    let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
    let logits = world.head.logits(world.hidden(&[0, 1]).deep().clone());
    let hidden = HiddenStates::new(nan.clone(), nan).unwrap();
    sampler.step(StepInput::new(&rows, logits, &world.head).with_hidden(hidden)).unwrap();
    let nothing = TrainError::NothingLearned { eligible: 2, skipped: 2 };
    assert_eq!(sampler.finish(), Err(nothing));
    let counters = *sampler.counters();
    assert_eq!((counters.updates, counters.rows_learned, counters.rows_not_finite), (0, 0, 2));
    assert_eq!((counters.eligible, counters.candidates), (2, 2 * VOCAB as u64));
    step(&world, &mut sampler, &rows, &[0, 1]);
    assert_eq!(sampler.finish(), Ok(()), "learning has begun");

    // A distiller that no update can move learns nothing either.
    #[derive(Module, Debug)]
    struct Rigid {}
    impl Distiller for Rigid {
        fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
            shallow
        }
    }
    let mut rigid =
        Sampler::builder(config()).with_distiller(Rigid {}).build(D_MODEL, &world.device).unwrap();
    step(&world, &mut rigid, &rows, &[0, 1]);
    let nothing = TrainError::NothingLearned { eligible: 2, skipped: 0 };
    assert_eq!(rigid.finish(), Err(nothing));
}

#[test]
fn trap_15_greedy_rows() {
    let world = World::new();
    let beta = 2.0;
    let greedy = Sampling::default().with_beta(beta).with_temperature(0.0).checked().unwrap();
    let random = esamp(beta);
    let argmax = |scores: &[f32]| {
        (0..VOCAB).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap() as TokenId
    };
    let mut moved = 0;
    for context in 0..20 {
        let [reference, expected] = both_logits(&world, context);
        let fused: Vec<f32> =
            (0..VOCAB).map(|z| (1.0 + beta) * reference[z] - beta * expected[z]).collect();
        let rows = [row(1, 107, &random), row(0, context as u64, &greedy), row(2, 108, &random)];
        let got = step(&world, &mut sampler(&config()), &rows, &[context; 3]);
        assert_eq!(got[1].token, argmax(&fused), "context {context}");
        close(got[0].log_prob, log_softmax(&fused, got[0].token));
        moved += usize::from(argmax(&fused) != argmax(&reference));
    }
    assert!(moved > 2, "the plain argmax would show: {moved}");
}

/// `ĥ = w · shallow`, one parameter.
#[derive(Module, Debug)]
pub(crate) struct Scale {
    pub(crate) weight: Param<Tensor<1>>,
}

impl Scale {
    pub(crate) fn one() -> Self {
        Self { weight: Param::from_tensor(Tensor::ones([1], &device())) }
    }
}

impl Distiller for Scale {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow * self.weight.val().unsqueeze()
    }
}

#[test]
fn trap_16_half_precision_models_have_full_precision_distillers() {
    // ĥ = w·1, deep 1.5, loss (w − 1.5)²: w starts at 1 and each step at rate 1e-3 takes 0.2 % of the error away. In bf16
    // the first step would round back to 1, and so would all others.
    let world = World::new();
    let sampling = esamp(0.5);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if !world.device.supports_dtype(dtype) {
            continue; // ndarray has no halves
        }
        let sgd = OptimizerConfig::sgd(1e-3);
        let config = SamplerConfig::new().with_optimizer(sgd);
        let mut sampler = Sampler::builder(config)
            .with_distiller(Scale::one())
            .build(D_MODEL, &world.device)
            .unwrap();
        let states = |value: f32| Tensor::<2>::full([1, D_MODEL], value, &world.device).cast(dtype);
        for at in 0..100 {
            let hidden = HiddenStates::new(states(1.0), states(1.5)).unwrap();
            let logits = world.head.logits(hidden.deep().clone()).cast(dtype);
            let rows = [row(0, 0, &sampling)];
            let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
            let got = choices(sampler.step(input).unwrap())[0];
            let expected = 0.5 * 0.998f64.powi(at) * (D_MODEL as f64).sqrt();
            close(error(&got), expected as f32);
        }
    }
}

/// tests/long_run.rs measures the memory of 10⁴ steps; this is the reason why it is flat.
#[test]
fn trap_17_hidden_states_are_detached() {
    let world = World::new();
    let sampling = esamp(0.5);
    let mut attached = sampler(&config());
    let mut detached = sampler(&config());
    // A model on an autodiff device: what it shows hangs on a graph over all of its weights.
    let weight = wave::<2>([D_MODEL, D_MODEL], 0.3, &world.device).autodiff().require_grad();
    for at in 0..4 {
        let clean = world.hidden(&[at]);
        let grown = |states: &Tensor<2>| states.clone().autodiff().matmul(weight.clone());
        let (shallow, deep) = (grown(clean.shallow()), grown(clean.deep()));
        assert!(shallow.is_tracked());
        let logits = world.head.logits(deep.clone().inner());
        let tracked = HiddenStates::new(shallow.clone(), deep.clone()).unwrap();
        for states in [tracked.shallow(), tracked.deep()] {
            assert!(!states.is_tracked() && !states.is_autodiff(), "cut off from the graph");
        }
        let cut = HiddenStates::new(shallow.inner(), deep.inner()).unwrap();
        let rows = [row(0, 0, &sampling)];
        let input = |hidden| StepInput::new(&rows, logits.clone(), &world.head).with_hidden(hidden);
        let a = choices(attached.step(input(Some(tracked))).unwrap());
        let b = choices(detached.step(input(Some(cut))).unwrap());
        assert_eq!(a, b);
    }
    assert_eq!(attached.counters().updates, 4);
}

#[test]
fn trap_18_a_row_that_is_not_finite_poisons_nobody() {
    let world = World::new();
    let (sampling, off) = (esamp(0.5), esamp(0.0));
    let rows: Vec<_> = (0..3).map(|r| row(0, r, &sampling)).collect();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut sampler = sampler(&config());
        let clean = world.hidden(&[2, 6, 11]);
        let bad = Tensor::<2>::full([1, 1], bad, &world.device);
        let shallow = clean.shallow().clone().slice_assign([1..2, 3..4], bad);
        let hidden = HiddenStates::new(shallow, clean.deep().clone()).unwrap();
        let logits = world.head.logits(clean.deep().clone());
        let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
        let got = choices(sampler.step(input).unwrap());
        let plain = step(&world, &mut self::sampler(&config()), &[row(0, 1, &off)], &[6]);
        assert_eq!((got[1].token, got[1].novelty), (plain[0].token, None), "sampled plainly");
        assert_eq!((sampler.counters().rows_not_finite, sampler.counters().rows_learned), (1, 2));
        // The slot has learned the two clean rows, and nothing of the third.
        let mut oracle = learner();
        oracle.update(&world.hidden(&[2, 11]));
        let after = step(&world, &mut sampler, &rows[1..2], &[5]);
        close(error(&after[0]), error_of(&world, oracle.distiller(), 5));
    }
}

#[test]
fn trap_19_a_slot_at_rest_does_not_move() {
    let world = World::new();
    let sampling = esamp(0.5);
    let decay = optimizer().with_rule(UpdateRule::AdamW {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.5,
    });
    for rule in [decay, OptimizerConfig::momentum(1e-2, 0.9), optimizer()] {
        for slot_path in [SlotPath::Stacked, SlotPath::OneByOne] {
            let training = TrainingConfig::new().with_slot_path(slot_path);
            let config = config().with_optimizer(rule).with_training(training);
            let (mut resting, mut straight) = (sampler(&config), sampler(&config));
            let (sleeper, busy) = ([row(0, 0, &sampling)], [row(1, 1, &sampling)]);
            for at in 0..6 {
                if at == 3 {
                    (0..30).for_each(|c| drop(step(&world, &mut resting, &busy, &[c])));
                }
                let a = step(&world, &mut resting, &sleeper, &[at]);
                let b = step(&world, &mut straight, &sleeper, &[at]);
                close(error(&a[0]), error(&b[0]));
            }
        }
    }
}

#[test]
fn trap_20_ended_rows() {
    // A sequence with a 9 in it has ended, and its logits and hidden states are no numbers any more: who samples it or
    // learns from it will show. The cache cannot drop rows, so dead ones stay in the batch.
    let script = |sequence: &[TokenId]| match sequence.contains(&9) {
        true => vec![f32::NAN; 10],
        false => (0..10).map(|token| (token * 3 + sequence.len()) as f32 % 5.0).collect(),
    };
    for model in [
        ScriptedLm::new(10, &device(), script),
        ScriptedLm::new(10, &device(), script).with_fixed_cache(),
    ] {
        let mut decoder = Decoder::new(&model, config().init(10, &device()).unwrap());
        let masker = |row: CompletionId, generated: &[TokenId]| -> Option<TokenMask> {
            let ends = generated.len() as u64 == 2 * row.index + 1;
            Some(TokenMask::allowing(10, if ends { 9..10 } else { 0..9 }))
        };
        let request = Request::new(vec![1]).with_completions(4).with_stop_tokens([9]);
        decoder
            .submit(request.with_sampling(Sampling::new().with_beta(0.5)).with_masker(masker))
            .unwrap();
        let completions = run(&mut decoder);
        let lengths: Vec<usize> = completions.iter().map(|c| c.choices.len()).collect();
        assert_eq!(lengths, [2, 4, 6, 8]);
        assert!(completions.iter().all(|c| c.finish == FinishReason::StopToken(9)));
        let counters = decoder.sampler().counters();
        assert_eq!((counters.tokens, counters.failed), (20, 0), "nobody who has ended is sampled");
        assert_eq!((counters.eligible, counters.rows_not_finite), (16, 0), "nor learned");
        assert_eq!((counters.rows_learned, decoder.sampler().distillers()), (16, 0));
    }
}
