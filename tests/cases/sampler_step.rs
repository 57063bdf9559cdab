//! `Sampler::step`, seen from outside: what is steered, what is learned, what bad input gets.

use crate::device;
use burn::{
    module::{Module, Param},
    tensor::{DType, Device, Tensor, TensorData},
};
use esamp::{
    CheckedSampling, Choice, CompletionId, DrawKey, HiddenStates, LmHead, Phase, Sampler,
    SamplerConfig, Sampling, Sharing, StepInput, StepOutput, StepRow, TemperatureOrder, TiedHead,
    TokenMask,
    distillers::Distiller,
    errors::{RowError, StepError, TrainError},
    unstable::Gradient,
};

pub(crate) const D_MODEL: usize = 8;
pub(crate) const VOCAB: usize = 12;

/// A model's numbers without a model: hidden states from a formula, logits from a real head.
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

    /// Hidden states of rows that stand in `contexts`: equal contexts give equal states.
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
            [] => Tensor::zeros([0, VOCAB], &self.device), // ndarray cannot multiply nothing
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

pub(crate) fn esamp(beta: f32) -> CheckedSampling {
    Sampling::default().with_beta(beta).checked().unwrap()
}

pub(crate) fn choices(output: StepOutput) -> Vec<Choice> {
    output.choices.into_iter().map(Result::unwrap).collect()
}

fn novelty(choice: &Choice) -> f32 {
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
    let sampling = Sampling::default().with_beta(beta).with_temperature(temperature);
    let sampling = sampling.checked().unwrap();
    let hidden = world.hidden(&[4]);
    let distiller = esamp::distillers::SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let expected = world.head.logits(distiller.predict(hidden.shallow().clone()));
    let fused = world.head.logits(hidden.deep().clone()) * (1.0 + beta) - expected * beta;
    let fused: Vec<f32> = (fused / temperature).into_data().try_into_vec().unwrap();

    let choice = choices(world.step(&mut sampler(), &[row(0, 0, &sampling)], &[4]).unwrap())[0];
    let expected = log_softmax(&fused, choice.token);
    assert!((choice.log_prob - expected).abs() < 1e-5, "{} {expected}", choice.log_prob);
}

#[test]
fn the_expected_logits_are_those_of_the_candidates_alone() {
    // With a filter, the sampler projects onto the candidates; without, onto the whole vocabulary. The scores agree.
    let world = World::new();
    let wide = Sampling::default().with_beta(1.0).with_temperature(0.0).checked().unwrap();
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
        (Sampling::new().with_custom_reweighter(Never).checked().unwrap(), esamp(0.0));
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

/// A reweighter that has nothing to do with novelty and does nothing.
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

/// Expects exactly what comes, where shallow and deep are the same.
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
    let first = {
        let mut row = row(0, 0, &strong).with_phase(Phase::FirstToken);
        row.generated = &[];
        row
    };
    let mut sampler = sampler();
    let rows = [first, row(1, 1, &strong)]; // a neighbour in full swing changes nothing
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
fn prediction_comes_before_the_update_and_sees_the_one_before() {
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
fn what_repeats_becomes_less_novel() {
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
fn prompts_learn_apart_unless_they_share() {
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
fn a_slot_that_is_used_again_starts_afresh() {
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
    // One row leaves for a step and comes back: its prompt's distiller has stayed.
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
        let choice = choices(world.step(&mut sampler, &[row], &[context]).unwrap())[0];
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
        // The distiller is not poisoned.
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

#[test]
fn greedy_and_random_rows_in_one_batch() {
    let world = World::new();
    let greedy = Sampling::default().with_temperature(0.0).checked().unwrap();
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
fn the_place_of_the_temperature_decides_what_filters_see() {
    // One row, logits 0, −1, −2: min-p 0.2 keeps those above ln 0.2 = −1.61 of the best. At T = 2 the spread halves.
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
        let choice = choices(sampler().step(input).unwrap())[0];
        assert_eq!(choice.candidates, left, "{order:?}");
        let scores: Vec<f32> = [0.0, -0.5, -1.0][..left].to_vec();
        assert!((choice.log_prob - log_softmax(&scores, choice.token)).abs() < 1e-6);
    }
}

#[test]
fn log_probabilities_under_the_model_are_given_on_demand() {
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
            continue; // ndarray has neither
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
fn what_does_not_fit_together_is_said_before_any_work() {
    let world = World::new();
    let sampling = esamp(0.25);
    let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
    let hidden = || world.hidden(&[0, 1]);
    let logits = || world.head.logits(hidden().deep().clone());
    let mut sampler = sampler();
    let mut wording = |rows: &[StepRow<'_>], logits: Tensor<2>, hidden: Option<HiddenStates>| {
        let input = StepInput::new(rows, logits, &world.head).with_hidden(hidden);
        sampler.step(input).unwrap_err().to_string()
    };
    assert_eq!(wording(&rows[..1], logits(), Some(hidden())), "logits: expected 1 rows, got 2");
    assert_eq!(
        wording(&rows, logits(), Some(world.hidden(&[0]))),
        "hidden states: expected 2 rows, got 1"
    );
    assert_eq!(
        wording(&[rows[0], rows[0]], logits(), Some(hidden())),
        "request 0: expected one row of it in a step, got two"
    );
    assert_eq!(
        wording(&rows, logits(), None),
        "hidden states: expected them for request 0 of prompt 0, whose reweighter uses expected logits, got none"
    );
    let wide = Tensor::<2>::ones([2, D_MODEL + 1], &world.device);
    assert_eq!(
        wording(&rows, logits(), Some(HiddenStates::new(wide.clone(), wide).unwrap())),
        "hidden states: expected shape [2, 8], got [2, 9]"
    );
    assert_eq!(sampler.counters().steps, 0);
    assert_eq!(sampler.distillers(), 0);
}

/// With hidden states, or a head, on another device than the sampler.
pub(super) fn hidden_states_or_a_head_elsewhere_are_an_error(elsewhere: &Device) {
    let world = World::new();
    let sampling = esamp(0.25);
    let rows = [row(0, 0, &sampling)];
    let mut sampler = sampler();
    let mut wording = |head: &dyn LmHead, hidden: HiddenStates| {
        let logits = world.head.logits(world.hidden(&[0]).deep().clone());
        let input = StepInput::new(&rows, logits, head).with_hidden(hidden);
        sampler.step(input).unwrap_err().to_string()
    };
    let states = Tensor::<2>::ones([1, D_MODEL], elsewhere);
    let states = HiddenStates::new(states.clone(), states).unwrap();
    let message = wording(&world.head, states);
    assert!(message.starts_with("hidden states: expected device"), "{message}");
    let head = TiedHead::new(wave([VOCAB, D_MODEL], 0.7, elsewhere));
    let message = wording(&head, world.hidden(&[0]));
    assert!(message.starts_with("LM head: expected device"), "{message}");
    assert_eq!(sampler.counters().steps, 0);
    assert_eq!(sampler.distillers(), 0);
}

#[test]
fn a_head_or_a_distiller_that_returns_the_wrong_shape_is_an_error() {
    #[derive(Module, Debug)]
    struct Narrow {}
    impl Distiller for Narrow {
        fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
            let rows = shallow.dims()[0];
            shallow.slice([0..rows, 0..3])
        }
    }
    let world = World::new();
    let sampling = esamp(0.25);
    let rows = [row(0, 0, &sampling)];
    let mut narrow = Sampler::builder(SamplerConfig::new())
        .with_distiller(Narrow {})
        .build(D_MODEL, &world.device)
        .unwrap();
    let error = world.step(&mut narrow, &rows, &[0]).unwrap_err();
    assert_eq!(error.to_string(), "distiller: expected a prediction of shape [1, 8], got [1, 3]");
    let hidden = world.hidden(&[0]);
    let logits = world.head.logits(hidden.deep().clone());
    let head = |hidden: Tensor<2>| hidden; // d_model logits instead of vocab
    let error =
        sampler().step(StepInput::new(&rows, logits, &head).with_hidden(hidden)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected logits of the LM head: expected shape [1, 12], got [1, 8]"
    );
}

#[test]
fn a_head_of_another_model_is_refused_before_it_is_applied() {
    let world = World::new();
    // With a filter: the head's matrix would be asked for rows that it does not have.
    let sampling = Sampling::default().with_top_k(2).checked().unwrap();
    let rows = [row(0, 0, &sampling)];
    let hidden = world.hidden(&[0]);
    let mut sampler = sampler();
    let mut wording = |head: &dyn LmHead| {
        let logits = world.head.logits(hidden.deep().clone());
        let hidden = Some(hidden.clone());
        let input = StepInput::new(&rows, logits, head).with_hidden(hidden);
        sampler.step(input).unwrap_err().to_string()
    };
    assert_eq!(
        wording(&TiedHead::new(wave([3, D_MODEL], 0.7, &world.device))),
        "LM head: expected shape [8, 12], got [8, 3]"
    );
    let linear = burn::nn::LinearConfig::new(D_MODEL + 1, VOCAB).init(&world.device);
    assert_eq!(wording(&linear), "LM head: expected shape [8, 12], got [9, 12]");
    assert_eq!(sampler.counters().steps, 0);
}

#[test]
fn a_log_probability_that_does_not_exist_is_said() {
    let world = World::new();
    let sampling = Sampling::default().with_beta(0.0).checked().unwrap();
    let only = TokenMask::allowing(VOCAB, [2, 3]);
    let nan = Tensor::<2>::full([1, 1], f32::NAN, &world.device);
    let logits = wave([1, VOCAB], 0.3, &world.device).slice_assign([0..1, 7..8], nan);
    let plain = row(0, 0, &sampling).with_allowed(&only);
    let asked = plain.with_reference_log_prob();
    let choice = |row| {
        let rows = [row];
        let input = StepInput::new(&rows, logits.clone(), &world.head);
        sampler().step(input).unwrap().choices[0].clone()
    };
    assert!(choice(plain).is_ok(), "the mask hides token 7 from the race");
    assert!(matches!(choice(asked), Err(RowError::NotANumber { token: 7, .. })));
}

#[test]
fn a_reweighter_that_returns_no_number_fails_its_row_only() {
    #[derive(Debug)]
    struct Broken;
    impl esamp::reweighters::NoveltyReweighter for Broken {
        fn reweight(
            &self,
            _row: &esamp::filters::RowContext<'_>,
            candidates: &mut esamp::filters::Candidates,
        ) {
            candidates.rescore(|c| if c.token == 3 { f32::NAN } else { c.logit });
        }
    }
    let world = World::new();
    let (broken, fine) =
        (Sampling::new().with_custom_reweighter(Broken).checked().unwrap(), esamp(0.25));
    let rows = [row(0, 0, &broken), row(0, 1, &fine)];
    let output = world.step(&mut sampler(), &rows, &[0, 1]).unwrap();
    assert!(matches!(output.choices[0], Err(RowError::Score { token: 3, .. })));
    assert!(output.choices[1].is_ok());
}

#[test]
fn settings_out_of_range_are_refused_when_they_are_made() {
    let wording = |config: Sampling| config.checked().unwrap_err().to_string();
    let base = Sampling::default;
    assert_eq!(wording(base().with_beta(-0.5)), "beta: expected a number of at least 0, got -0.5");
    assert_eq!(
        wording(base().with_beta(f32::NAN)),
        "beta: expected a number of at least 0, got NaN"
    );
    assert_eq!(
        wording(base().with_temperature(-1.0)),
        "temperature: expected 0 or a number of at least 0.0001, got -1"
    );
    assert!(
        base().with_temperature(1e-5).checked().is_err(),
        "logits would leave the range of f32"
    );
    assert!(base().with_temperature(Sampling::LOWEST_TEMPERATURE).checked().is_ok());
    let refused = |config: SamplerConfig| config.init(D_MODEL, &device()).unwrap_err().to_string();
    let rate = esamp::optim::OptimizerConfig::sgd(0.0);
    assert_eq!(
        refused(SamplerConfig::new().with_optimizer(rate)),
        "learning_rate: expected a number above 0, got 0"
    );
    let blocks = esamp::distillers::DistillerConfig::SwiGlu(
        esamp::distillers::SwiGluConfig::new().with_blocks(0),
    );
    assert_eq!(
        refused(SamplerConfig::new().with_distiller(blocks)),
        "blocks: expected at least 1, got 0"
    );
    assert!(SamplerConfig::new().init(0, &device()).is_err());
    let first = esamp::optim::TrainRows::FirstPerPrompt;
    let training = esamp::optim::TrainingConfig::new().with_train_rows(first);
    let alone = SamplerConfig::new().with_sharing(Sharing::PerCompletion).with_training(training);
    assert_eq!(
        refused(alone),
        "train_rows: expected all, where every request has a distiller of its own, got first_per_prompt"
    );
}

/// A stacked form without parameters.
#[derive(Module, Debug)]
struct Nothing {}

impl Distiller for Nothing {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow
    }

    fn stacked(&self) -> Option<std::sync::Arc<dyn esamp::unstable::StackedDistiller>> {
        Some(std::sync::Arc::new(StackedNothing))
    }
}

#[derive(Debug)]
struct StackedNothing;

impl esamp::unstable::StackedDistiller for StackedNothing {
    fn predict(&self, _parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
        shallow
    }
}

#[test]
fn a_distiller_without_parameters_predicts_in_any_company() {
    let world = World::new();
    let sampling = esamp(0.25);
    let mut sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(Nothing {})
        .build(D_MODEL, &world.device)
        .unwrap();
    let (a, b) = (row(0, 0, &sampling), row(1, 1, &sampling));
    for rows in [&[a, b][..], &[b, a], &[b]] {
        let contexts: Vec<usize> = (0..rows.len()).collect();
        assert!(choices(world.step(&mut sampler, rows, &contexts).unwrap())[0].novelty.is_some());
    }
    sampler.release(a.id);
    world.step(&mut sampler, &[b], &[1]).unwrap();
    assert_eq!(sampler.counters().updates, 0);
}

/// A distiller whose stacked form gives these gradients.
#[derive(Module, Debug)]
struct Given {
    weight: Param<Tensor<2>>,
    #[module(skip)]
    gradient: [[usize; 3]; 2],
}

impl Distiller for Given {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow.matmul(self.weight.val())
    }

    fn stacked(&self) -> Option<std::sync::Arc<dyn esamp::unstable::StackedDistiller>> {
        Some(std::sync::Arc::new(StackedGiven(self.gradient)))
    }
}

#[derive(Debug)]
struct StackedGiven([[usize; 3]; 2]);

impl esamp::unstable::StackedDistiller for StackedGiven {
    fn predict(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
        shallow.matmul(parameters[0].clone())
    }

    fn gradients(
        &self,
        _parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        _deep: Tensor<3>,
        _weight: Tensor<3>,
    ) -> Vec<Gradient> {
        let device = shallow.device();
        let [inputs, upstream] = self.0.map(|shape| Tensor::ones(shape, &device));
        vec![Gradient::Product { inputs, upstream }]
    }
}

#[test]
fn gradients_that_do_not_fit_are_refused() {
    let world = World::new();
    let sampling = esamp(0.25);
    let step = |gradient| {
        let weight = Param::from_tensor(wave([D_MODEL, D_MODEL], 0.3, &world.device));
        let distiller = Given { weight, gradient };
        let config = SamplerConfig::new();
        let mut sampler = Sampler::builder(config)
            .with_distiller(distiller)
            .build(D_MODEL, &world.device)
            .unwrap();
        world.step(&mut sampler, &[row(0, 0, &sampling)], &[0]).map(|_| sampler.counters().updates)
    };
    let fits = [[1, 1, D_MODEL], [1, 1, D_MODEL]];
    assert_eq!(step(fits).unwrap(), 1);
    let Err(StepError::Train(error)) = step([[1, 1, D_MODEL], [1, 1, 5]]) else {
        panic!("expected the shape to be refused");
    };
    assert_eq!(
        error,
        TrainError::Gradients { expected: vec![[1, D_MODEL, D_MODEL]], got: vec![[1, D_MODEL, 5]] }
    );
    let Err(StepError::Train(error)) = step([[1, 2, D_MODEL], [1, 3, D_MODEL]]) else {
        panic!("expected the factors to be refused");
    };
    assert_eq!(
        error.to_string(),
        "stacked distiller: gradient 0: expected factors with the same slots and rows, got inputs [1, 2, 8] and upstream [1, 3, 8]"
    );
    let Err(StepError::Train(error)) = step([[1, 2, D_MODEL], [2, 2, D_MODEL]]) else {
        panic!("expected the slots to be refused");
    };
    let (inputs, upstream) = ([1, 2, D_MODEL], [2, 2, D_MODEL]);
    assert_eq!(error, TrainError::GradientFactors { parameter: 0, inputs, upstream });
}

#[test]
fn a_distiller_that_has_diverged_is_counted_apart() {
    let world = World::new();
    let sampling = esamp(0.25);
    #[derive(Module, Debug)]
    struct Diverged {}
    impl Distiller for Diverged {
        fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
            shallow * f32::NAN
        }
    }
    let mut sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(Diverged {})
        .build(D_MODEL, &world.device)
        .unwrap();
    world.step(&mut sampler, &[row(0, 0, &sampling)], &[0]).unwrap();
    let counters = sampler.counters();
    assert_eq!((counters.rows_not_finite, counters.predictions_not_finite), (1, 1));
}
