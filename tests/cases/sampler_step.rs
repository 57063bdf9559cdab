//! `Sampler::step` through its public interface: which rows are steered and learned, and how bad input is reported.

use crate::device;
use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use esamp::{
    CheckedSampling, Choice, CompletionId, DrawKey, HiddenStates, LmHead, Phase, Sampler,
    SamplerConfig, Sampling, Sharing, StepInput, StepOutput, StepRow, TiedHead,
    distillers::Distiller, errors::StepError,
};

pub(crate) const D_MODEL: usize = 8;
pub(crate) const VOCAB: usize = 12;

/// Data for steps without a model: hidden states from a formula, logits from a real head.
pub(crate) struct World {
    pub(crate) device: Device,
    pub(crate) head: TiedHead,
}

impl World {
    pub(crate) fn new() -> Self {
        let device = device();
        let head = TiedHead::new(wave([VOCAB, D_MODEL], 0.7, &device));
        Self { device, head }
    }

    /// Hidden states of rows in these `contexts`: equal contexts give equal states.
    pub(crate) fn hidden(&self, contexts: &[usize]) -> HiddenStates {
        let state = |scale: f32, context: usize| -> Vec<f32> {
            (0..D_MODEL).map(|i| ((i + 3 * context) as f32 * scale).sin() * 2.0).collect()
        };
        let tensor = |scale| {
            let numbers: Vec<f32> = contexts.iter().flat_map(|&c| state(scale, c)).collect();
            Tensor::from_data(TensorData::new(numbers, [contexts.len(), D_MODEL]), &self.device)
        };
        HiddenStates::new(tensor(0.9), tensor(1.3)).unwrap()
    }

    pub(crate) fn step(
        &self,
        sampler: &mut Sampler,
        rows: &[StepRow<'_>],
        contexts: &[usize],
    ) -> Result<StepOutput, StepError> {
        let hidden = self.hidden(contexts);
        let logits = match contexts {
            [] => Tensor::zeros([0, VOCAB], &self.device), // ndarray cannot multiply empty tensors
            _ => self.head.logits(hidden.deep().clone()),
        };
        sampler.step(StepInput::new(rows, logits, &self.head).with_hidden(hidden))
    }
}

pub(crate) fn wave<const D: usize>(shape: [usize; D], scale: f32, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let numbers: Vec<f32> = (0..count).map(|i| (i as f32 * scale).cos()).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

pub(crate) fn sampler() -> Sampler {
    SamplerConfig::new().init(D_MODEL, &device()).unwrap()
}

pub(crate) fn row(prompt: u64, request: u64, sampling: &CheckedSampling) -> StepRow<'_> {
    StepRow::new(
        CompletionId::new(prompt, request),
        DrawKey::new(7, &[1, 2, 3], request),
        &[],
        &[5, 6],
        sampling,
    )
    .with_phase(Phase::Decode)
}

/// The same row at the first token of its completion.
pub(crate) fn first_token(row: StepRow<'_>) -> StepRow<'_> {
    let mut row = row.with_phase(Phase::FirstToken);
    row.generated = &[];
    row
}

pub(crate) fn esamp(beta: f32) -> CheckedSampling {
    Sampling::paper().with_beta(beta).checked().unwrap()
}

pub(crate) fn choices(output: StepOutput) -> Vec<Choice> {
    output.choices.into_iter().map(Result::unwrap).collect()
}

pub(super) fn novelty(choice: &Choice) -> f32 {
    choice.novelty.unwrap().error
}

/// `log softmax` of the scores, at one token.
pub(crate) fn log_softmax(scores: &[f32], token: u32) -> f32 {
    let best = scores.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = scores.iter().map(|s| f64::from(s - best).exp()).sum();
    (f64::from(scores[token as usize] - best) - sum.ln()) as f32
}

#[test]
fn a_token_is_drawn_from_the_fused_distribution() {
    let world = World::new();
    let (beta, temperature) = (0.5, 0.8);
    let sampling = Sampling::paper().with_beta(beta).with_temperature(temperature);
    let sampling = sampling.checked().unwrap();
    let hidden = world.hidden(&[4]);
    let distiller = esamp::distillers::SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let expected = world.head.logits(distiller.predict(hidden.shallow().clone()));
    let fused = world.head.logits(hidden.deep().clone()) * (1.0 + beta) - expected * beta;
    let fused: Vec<f32> = (fused / temperature).into_data().try_into_vec().unwrap();

    let choice = &choices(world.step(&mut sampler(), &[row(0, 0, &sampling)], &[4]).unwrap())[0];
    let expected = log_softmax(&fused, choice.token);
    assert!((choice.log_prob - expected).abs() < 1e-5, "{} {expected}", choice.log_prob);
}

#[test]
fn the_expected_logits_are_those_of_the_candidates_alone() {
    // With a filter, the sampler projects onto the candidates; without, onto the whole vocabulary. The scores agree.
    let world = World::new();
    let wide = Sampling::paper().with_beta(1.0).with_temperature(0.0).checked().unwrap();
    let narrow = Sampling::default().with_beta(1.0).with_temperature(0.0).with_top_k(2);
    let narrow = narrow.checked().unwrap();
    let contexts: Vec<usize> = (0..3).collect();
    let rows = |sampling| -> Vec<_> { (0..3).map(|r| row(0, r, sampling)).collect() };
    let wide = choices(world.step(&mut sampler(), &rows(&wide), &contexts).unwrap());
    let narrow = choices(world.step(&mut sampler(), &rows(&narrow), &contexts).unwrap());
    assert_eq!(wide[0].candidates, VOCAB);
    assert_eq!(narrow[0].candidates, 2);
    for (wide, narrow) in wide.iter().zip(&narrow) {
        assert!((novelty(wide) - novelty(narrow)).abs() < 1e-6);
    }
}

#[test]
fn beta_zero_is_plain_sampling_and_no_distiller_work() {
    let world = World::new();
    let (plain, off) =
        (Sampling::paper().with_custom_reweighter(Never).checked().unwrap(), esamp(0.0));
    let mut with_zero = sampler();
    for step in 0..20 {
        let contexts = [step, step + 1];
        let zero = [row(0, 0, &off), row(0, 1, &off)];
        let zero = choices(world.step(&mut with_zero, &zero, &contexts).unwrap());
        let hidden = world.hidden(&contexts);
        let plain = sampler()
            .step(StepInput::new(
                &[row(0, 0, &plain), row(0, 1, &plain)],
                world.head.logits(hidden.deep().clone()),
                &world.head, // and no hidden states: a plain run needs no tap
            ))
            .unwrap();
        assert_eq!(zero, choices(plain));
    }
    assert_eq!(with_zero.distillers(), 0);
    assert_eq!(with_zero.counters().updates, 0);
    assert_eq!(with_zero.counters().eligible, 0);
    assert!(with_zero.finish().is_ok(), "nothing was to be learned");
}

/// A reweighter that does nothing.
#[derive(Debug)]
struct Never;

impl esamp::reweighters::NoveltyReweighter for Never {
    fn reweight(
        &self,
        _row: &esamp::filters::RowContext<'_>,
        candidates: &mut esamp::filters::Candidates,
    ) {
        assert!(candidates.as_slice().iter().all(|candidate| candidate.expected == 0.0));
    }

    fn expects(&self) -> esamp::reweighters::Expects {
        esamp::reweighters::Expects::Nothing
    }
}

/// Predicts the deep state exactly, if shallow and deep states are the same.
#[derive(Module, Debug)]
struct Oracle {}

impl Distiller for Oracle {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow
    }
}

#[test]
fn a_perfect_distiller_changes_nothing() {
    let world = World::new();
    let mut sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(Oracle {})
        .build(D_MODEL, &world.device)
        .unwrap();
    let (strong, off) = (esamp(2.0), esamp(0.0));
    for context in 0..30 {
        let deep = world.hidden(&[context]).deep().clone();
        let hidden = HiddenStates::new(deep.clone(), deep.clone()).unwrap();
        let mut token = |sampling| {
            let logits = world.head.logits(deep.clone());
            let rows = [row(0, context as u64, sampling)];
            let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden.clone());
            let output = sampler.step(input).unwrap();
            choices(output)[0].token
        };
        assert_eq!(token(&strong), token(&off));
    }
}

#[test]
fn the_first_token_is_neither_steered_nor_learned() {
    let world = World::new();
    let (strong, off) = (esamp(2.0), esamp(0.0));
    let first = first_token(row(0, 0, &strong));
    let mut sampler = sampler();
    let rows = [first, row(1, 1, &strong)]; // a steered neighbour changes nothing
    let steered = choices(world.step(&mut sampler, &rows, &[3, 5]).unwrap());
    let plain = {
        let mut row = first;
        row.sampling = &off;
        row
    };
    let plain = choices(world.step(&mut self::sampler(), &[plain], &[3]).unwrap());
    assert_eq!(steered[0].token, plain[0].token);
    assert_eq!(steered[0].novelty, None);
    assert!(steered[1].novelty.is_some());
    assert_eq!(sampler.counters().rows_learned, 1);
}

#[test]
fn prediction_comes_before_the_update_and_sees_the_previous_one() {
    let world = World::new();
    let sampling = esamp(0.25);
    let mut sampler = sampler();
    let distiller = esamp::distillers::SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let mut learner =
        esamp::optim::Learner::new(distiller, esamp::optim::OptimizerConfig::paper()).unwrap();
    for step in 0..5 {
        let hidden = world.hidden(&[step]);
        let expected = learner.distiller().predict(hidden.shallow().clone());
        let error: f32 = (hidden.deep().clone() - expected).square().sum().sqrt().into_scalar();
        let choice = choices(world.step(&mut sampler, &[row(0, 0, &sampling)], &[step]).unwrap());
        assert!((novelty(&choice[0]) - error).abs() < 1e-5, "step {step}");
        learner.update(&hidden);
    }
}

#[test]
fn a_repeated_context_becomes_less_novel() {
    let world = World::new();
    let sampling = esamp(0.25);
    let mut config = SamplerConfig::new();
    config.optimizer = Some(esamp::optim::OptimizerConfig::paper().with_learning_rate(1e-2));
    let mut sampler = config.init(D_MODEL, &world.device).unwrap();
    let rows = [row(0, 0, &sampling)];
    let mut last = f32::INFINITY;
    for _ in 0..5 {
        for _ in 0..10 {
            world.step(&mut sampler, &rows, &[1]).unwrap();
        }
        let now = novelty(&choices(world.step(&mut sampler, &rows, &[1]).unwrap())[0]);
        assert!(now < last, "{now} after {last}");
        last = now;
    }
}

#[test]
fn prompts_learn_separately_unless_they_share() {
    let world = World::new();
    let sampling = esamp(0.25);
    for (sharing, slots, moved) in [
        (Sharing::PerPrompt, 2, false),
        (Sharing::PerCompletion, 2, false),
        (Sharing::Global, 1, true),
    ] {
        let config = SamplerConfig::new().with_sharing(sharing);
        let mut sampler = config.init(D_MODEL, &world.device).unwrap();
        let other = [row(1, 1, &sampling)];
        let fresh = novelty(&choices(world.step(&mut sampler, &other, &[2]).unwrap())[0]);
        let mut sampler = config.init(D_MODEL, &world.device).unwrap();
        for _ in 0..20 {
            world.step(&mut sampler, &[row(0, 0, &sampling)], &[2]).unwrap();
        }
        let now = novelty(&choices(world.step(&mut sampler, &other, &[2]).unwrap())[0]);
        assert_eq!(now != fresh, moved, "{sharing:?}");
        assert_eq!(sampler.distillers(), slots, "{sharing:?}");
    }
}

#[test]
fn a_slot_that_is_used_again_starts_fresh() {
    let world = World::new();
    let sampling = esamp(0.25);
    let mut sampler = sampler();
    let rows = [row(0, 0, &sampling)];
    let run = |sampler: &mut Sampler| -> Vec<f32> {
        (0..6).map(|c| novelty(&choices(world.step(sampler, &rows, &[c]).unwrap())[0])).collect()
    };
    let first = run(&mut sampler);
    assert_ne!(run(&mut sampler), first, "without release the second run goes on learning");
    sampler.release(CompletionId::new(0, 0));
    assert_eq!(sampler.distillers(), 0);
    assert_eq!(run(&mut sampler), first, "parameters and optimizer state are fresh");
    sampler.reset();
    assert_eq!(run(&mut sampler), first);
    assert_eq!(sampler.counters().steps, 6, "reset forgets the counters too");
}

#[test]
fn rows_may_move_leave_and_come_back() {
    let world = World::new();
    let sampling = esamp(0.5);
    let rows: Vec<_> = (0..4).map(|r| row(r / 2, r, &sampling)).collect();
    let order =
        |places: &[usize]| -> Vec<StepRow<'_>> { places.iter().map(|&p| rows[p]).collect() };
    let mut straight = sampler();
    let mut shuffled = sampler();
    for (step, places) in [[0, 1, 2, 3], [3, 0, 2, 1], [2, 3, 1, 0]].iter().enumerate() {
        let contexts: Vec<usize> = (0..4).map(|r| r * 5 + step).collect();
        let moved: Vec<usize> = places.iter().map(|&p| contexts[p]).collect();
        let a = choices(world.step(&mut straight, &rows, &contexts).unwrap());
        let b = choices(world.step(&mut shuffled, &order(places), &moved).unwrap());
        for (at, &place) in places.iter().enumerate() {
            assert_eq!(b[at].token, a[place].token, "step {step}, row {place}");
            assert!((b[at].log_prob - a[place].log_prob).abs() < 1e-4);
        }
    }
    // One row leaves for a step and comes back: the distiller of its prompt was kept.
    world.step(&mut straight, &rows[..3], &[0, 1, 2]).unwrap();
    world.step(&mut straight, &rows, &[0, 1, 2, 3]).unwrap();
    assert_eq!(straight.distillers(), 2);
}

#[test]
fn zero_rows_and_one_row() {
    let world = World::new();
    let sampling = esamp(0.25);
    let mut sampler = sampler();
    let empty = Tensor::<2>::zeros([0, VOCAB], &world.device);
    let input = StepInput::new(&[], empty, &world.head);
    assert!(sampler.step(input).unwrap().choices.is_empty());
    assert_eq!(sampler.counters().steps, 0);
    assert_eq!(world.step(&mut sampler, &[row(0, 0, &sampling)], &[0]).unwrap().updates, 1);
}
