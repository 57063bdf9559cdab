//! Heads of every kind, and the way in which states are mixed before a linear one.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::{
    module::Param,
    nn::{Linear, LinearConfig},
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use esamp::{
    Choice, HiddenStates, LmHead, Phase, ReweighterConfig, RowError, Sampler, Sampling,
    SamplingConfig, StepInput, StepRow, SwiGluConfig, TiedHead, TokenMask,
};

use super::sampler_step::{D_MODEL, VOCAB, World, choices, esamp, log_softmax, row, sampler, wave};
use crate::device;

pub(crate) fn weight() -> Tensor<2> {
    wave([VOCAB, D_MODEL], 0.7, &device())
}

fn biased() -> Linear {
    let mut linear = LinearConfig::new(D_MODEL, VOCAB).init(&device());
    linear.weight = Param::from_tensor(weight().transpose());
    linear.bias = Some(Param::from_tensor(wave([VOCAB], 0.31, &device()) * 3.0));
    linear
}

fn soft_capped() -> impl LmHead {
    |hidden: Tensor<2>| hidden.matmul(weight().transpose()).div_scalar(2.0).tanh().mul_scalar(2.0)
}

/// As a user would write it who wants the candidates' rows only.
struct SoftCapped {
    inner: TiedHead,
    cap: f32,
}

impl LmHead for SoftCapped {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.inner.logits(hidden).div_scalar(self.cap).tanh().mul_scalar(self.cap)
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        self.inner.logits_at(hidden, tokens).div_scalar(self.cap).tanh().mul_scalar(self.cap)
    }
}

/// 8-bit integers with one scale for each token, as a quantised model keeps them.
fn quantised() -> impl LmHead {
    let weight: Vec<f32> = weight().into_data().try_into_vec().unwrap();
    let mut scales = Vec::new();
    let mut integers: Vec<i8> = Vec::new();
    for row in weight.chunks(D_MODEL) {
        let scale = row.iter().fold(0.0f32, |max, w| max.max(w.abs())) / 127.0;
        scales.push(scale);
        integers.extend(row.iter().map(|w| (w / scale).round() as i8));
    }
    move |hidden: Tensor<2>| {
        let rows = integers.chunks(D_MODEL).zip(&scales);
        let floats: Vec<f32> =
            rows.flat_map(|(row, s)| row.iter().map(move |&q| f32::from(q) * s)).collect();
        let weight =
            Tensor::<2>::from_data(TensorData::new(floats, [VOCAB, D_MODEL]), &hidden.device());
        hidden.matmul(weight.transpose())
    }
}

fn all_heads() -> Vec<(&'static str, Box<dyn LmHead>)> {
    vec![
        ("linear with a bias", Box::new(biased())),
        ("tied", Box::new(TiedHead::new(weight()))),
        ("soft-capped closure", Box::new(soft_capped())),
        ("soft-capped type", Box::new(SoftCapped { inner: TiedHead::new(weight()), cap: 2.0 })),
        ("scaled", Box::new(|hidden: Tensor<2>| (hidden * 0.25).matmul(weight().transpose()))),
        ("quantised behind a closure", Box::new(quantised())),
    ]
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

#[test]
fn logits_of_some_tokens_are_those_of_all() {
    let world = World::new();
    let hidden = world.hidden(&[1, 2]).deep().clone();
    let tokens = [3, 0, 11, 3, 7, 1];
    for (name, head) in all_heads() {
        let all = host(head.logits(hidden.clone()));
        let at = Tensor::<1, Int>::from_data(tokens.as_slice(), &world.device).reshape([2, 3]);
        for (place, (got, token)) in
            host(head.logits_at(hidden.clone(), at)).iter().zip(tokens).enumerate()
        {
            let all = all[place / 3 * VOCAB + token as usize];
            assert!((got - all).abs() <= 1e-5 * all.abs().max(1.0), "{name}: {got} {all}");
        }
    }
}

/// The expected logits come from the same head, whether the sampler asks it for some tokens or for all.
#[test]
fn the_narrow_way_the_wide_way_and_the_formula_agree_for_every_head() {
    let world = World::new();
    let sampling = SamplingConfig::default().with_beta(0.5).with_top_k(5).init().unwrap();
    let distiller = SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    for (name, head) in all_heads() {
        let step = |contexts: &[usize]| {
            let rows: Vec<_> =
                contexts.iter().map(|&c| row(c as u64, c as u64, &sampling)).collect();
            let hidden = world.hidden(contexts);
            let logits = head.logits(hidden.deep().clone());
            let input = StepInput::new(&rows, logits, &*head).with_hidden(hidden);
            choices(sampler().step(input).unwrap())
        };
        // 3 rows of 5 candidates reach the 12 tokens of the vocabulary: one product with the whole matrix.
        let wide = step(&[0, 1, 2]);
        for (context, wide) in wide.iter().enumerate() {
            let narrow = step(&[context])[0];
            assert_eq!(narrow.token, wide.token, "{name}");
            let difference = (narrow.log_prob - wide.log_prob).abs();
            assert!(difference <= 1e-5 * narrow.log_prob.abs().max(1.0), "{name}: {difference}");

            let hidden = world.hidden(&[context]);
            let reference = host(head.logits(hidden.deep().clone()));
            let expected =
                host(head.logits(esamp::Distiller::predict(&distiller, hidden.shallow().clone())));
            let mut order: Vec<usize> = (0..VOCAB).collect();
            order.sort_by(|&a, &b| reference[b].total_cmp(&reference[a]));
            let fused: Vec<f32> =
                order[..5].iter().map(|&t| 1.5 * reference[t] - 0.5 * expected[t]).collect();
            let place = order.iter().position(|&t| t == narrow.token as usize).unwrap();
            assert!((narrow.log_prob - log_softmax(&fused, place as u32)).abs() < 1e-5, "{name}");
        }
    }
}

#[test]
fn heads_say_what_they_know_about_themselves() {
    let (linear, tied) = (biased(), TiedHead::new(weight()));
    assert_eq!(linear.shape(), Some([D_MODEL, VOCAB]));
    assert_eq!(tied.shape(), Some([D_MODEL, VOCAB]));
    assert!(linear.is_linear() && tied.is_linear());
    let capped = soft_capped();
    assert_eq!((capped.shape(), capped.is_linear()), (None, false));
}

/// A head that counts how often it is asked for all logits, and for some.
struct Counting<'a> {
    inner: &'a dyn LmHead,
    all: AtomicUsize,
    some: AtomicUsize,
}

impl<'a> Counting<'a> {
    fn new(inner: &'a dyn LmHead) -> Self {
        Self { inner, all: AtomicUsize::new(0), some: AtomicUsize::new(0) }
    }

    fn calls(&self) -> (usize, usize) {
        (self.all.swap(0, Ordering::Relaxed), self.some.swap(0, Ordering::Relaxed))
    }
}

impl LmHead for Counting<'_> {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.all.fetch_add(1, Ordering::Relaxed);
        self.inner.logits(hidden)
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        self.some.fetch_add(1, Ordering::Relaxed);
        self.inner.logits_at(hidden, tokens)
    }

    fn is_linear(&self) -> bool {
        self.inner.is_linear()
    }
}

/// One step both ways: from logits, and from the head's input.
pub(crate) fn both_ways(
    world: &World,
    head: &dyn LmHead,
    samplers: &mut [Sampler; 2],
    rows: &[StepRow<'_>],
    hidden: &HiddenStates,
) -> [Vec<Choice>; 2] {
    let other = wave([rows.len(), VOCAB], 0.41, &world.device);
    let states = hidden.deep().clone();
    let long = StepInput::new(rows, head.logits(states.clone()), head);
    let short = StepInput::from_head_input(rows, states, head);
    let mut choose = |which: usize, input: StepInput<'_>| {
        let input = input.with_hidden(hidden.clone()).with_other_logits(other.clone());
        choices(samplers[which].step(input).unwrap())
    };
    [choose(0, long), choose(1, short)]
}

pub(crate) fn assert_same(long: &Choice, short: &Choice) {
    assert_eq!((long.token, long.candidates), (short.token, short.candidates));
    assert!((long.log_prob - short.log_prob).abs() < 1e-4, "{long:?} {short:?}");
    assert_eq!(long.novelty.is_some(), short.novelty.is_some());
    if let (Some(long), Some(short)) = (long.novelty, short.novelty) {
        assert!((long.error - short.error).abs() < 1e-5);
    }
    match (long.reference_log_prob, short.reference_log_prob) {
        (Some(long), Some(short)) => assert!((long - short).abs() < 1e-5),
        (long, short) => assert_eq!(long, short),
    }
}

/// Rows of every kind together, over several steps of learning, through linear heads and others.
#[test]
fn the_short_way_and_the_long_way_agree() {
    let world = World::new();
    let base = || SamplingConfig::default().with_beta(0.5);
    let settings: Vec<Sampling> = [
        base(),
        base().with_temperature(0.7),
        base().with_temperature(0.0),
        base().with_beta(2.0),
        // From here on: the long way.
        base().with_top_k(4),
        SamplingConfig { logit_bias: [(3, 2.5), (7, -1.0)].into(), ..base() },
        base().with_reweighter(ReweighterConfig::Subtract),
        base().with_reweighter(ReweighterConfig::Orthogonal),
        base().with_reweighter(ReweighterConfig::Contrast),
        base().with_reweighter(ReweighterConfig::Sharpen),
        base().with_beta(0.0),
        base().with_beta(0.0).with_min_p(0.1),
    ]
    .into_iter()
    .map(|config| config.init().unwrap())
    .collect();
    let mask = TokenMask::allowing(VOCAB, [0, 2, 5, 7, 9]);
    let mut rows: Vec<StepRow<'_>> =
        settings.iter().enumerate().map(|(at, s)| row(at as u64 / 3, at as u64, s)).collect();
    let more = rows.len() as u64;
    rows.push(StepRow { allowed: Some(&mask), ..row(9, more, &settings[0]) });
    rows.push(StepRow { wants_reference_log_prob: true, ..row(9, more + 1, &settings[0]) });
    rows.push(StepRow { phase: Phase::FirstToken, ..row(9, more + 2, &settings[0]) });
    // An order in which rows of both ways alternate.
    let order: Vec<usize> = (0..rows.len()).map(|at| at * 7 % rows.len()).collect();
    let rows: Vec<StepRow<'_>> = order.iter().map(|&at| rows[at]).collect();
    for (name, head) in all_heads() {
        let mut samplers = [sampler(), sampler()];
        for step in 0..5 {
            let contexts: Vec<usize> = (0..rows.len()).map(|at| at * 3 + step).collect();
            let hidden = world.hidden(&contexts);
            let [long, short] = both_ways(&world, &*head, &mut samplers, &rows, &hidden);
            long.iter().zip(&short).for_each(|(long, short)| assert_same(long, short));
        }
        let [long, short] = samplers.map(|sampler| *sampler.counters());
        assert_eq!(long.mixed, 0);
        assert_eq!(short.mixed, if head.is_linear() { 5 * 5 } else { 0 }, "{name}");
        assert_eq!((long.steered, long.rows_learned), (short.steered, short.rows_learned));
        assert!((long.loss_sum - short.loss_sum).abs() < 1e-5 * long.loss_sum);
    }
}

#[test]
fn mixed_rows_need_one_projection() {
    let world = World::new();
    let (steered, filtered) = (esamp(0.5), SamplingConfig::default().with_top_k(2).init().unwrap());
    let (tied, capped) = (TiedHead::new(weight()), soft_capped());
    let heads: [(&dyn LmHead, &Sampling, (usize, usize)); 4] = [
        (&tied, &steered, (1, 0)),
        (&capped, &steered, (2, 0)),
        (&tied, &filtered, (1, 1)),
        (&capped, &filtered, (1, 1)),
    ];
    for (head, sampling, calls) in heads {
        let head = Counting::new(head);
        let rows = [row(0, 0, sampling), row(0, 1, sampling)];
        let hidden = world.hidden(&[1, 2]);
        let input = StepInput::from_head_input(&rows, hidden.deep().clone(), &head);
        sampler().step(input.with_hidden(hidden)).unwrap();
        assert_eq!(head.calls(), calls);
    }
}

/// A model in half precision hands over its states as they are; they are mixed in `f32`.
#[test]
fn half_precision_states_are_mixed_too() {
    let world = World::new();
    let steered = esamp(0.5);
    for dtype in [DType::F16, DType::BF16] {
        if !world.device.supports_dtype(dtype) {
            continue; // ndarray has neither
        }
        let states = world.hidden(&[4, 5]);
        let (shallow, deep) =
            (states.shallow().clone().cast(dtype), states.deep().clone().cast(dtype));
        let hidden = HiddenStates::new(shallow, deep.clone()).unwrap();
        // A head in f32 shows what the mixing itself loses: nothing.
        let head = TiedHead::new(weight());
        let rows = [row(0, 0, &steered), row(0, 1, &steered)];
        let long = StepInput::new(&rows, head.logits(deep.clone()), &head);
        let long = choices(sampler().step(long.with_hidden(hidden.clone())).unwrap());
        let mut sampler = sampler();
        let short = StepInput::from_head_input(&rows, deep, &head).with_hidden(hidden);
        let short = choices(sampler.step(short).unwrap());
        assert_eq!(sampler.counters().mixed, 2);
        long.iter().zip(&short).for_each(|(long, short)| assert_same(long, short));
    }
}

/// Which way a row goes is its own affair: a neighbour with a filter changes nothing about it.
#[test]
fn neighbours_do_not_decide_the_way() {
    let world = World::new();
    let (steered, filtered) = (esamp(0.5), SamplingConfig::default().with_top_k(2).init().unwrap());
    let head = TiedHead::new(weight());
    let rows = [row(0, 0, &filtered), row(1, 1, &steered), row(2, 2, &filtered)];
    let step = |rows: &[StepRow<'_>], contexts: &[usize]| {
        let hidden = world.hidden(contexts);
        let mut sampler = sampler();
        let input = StepInput::from_head_input(rows, hidden.deep().clone(), &head);
        let got = choices(sampler.step(input.with_hidden(hidden)).unwrap());
        assert_eq!(sampler.counters().mixed, 1);
        got
    };
    let (together, alone) = (step(&rows, &[4, 5, 6]), step(&rows[1..2], &[5]));
    assert_same(&together[1], &alone[0]);
}

#[test]
fn a_row_that_is_not_finite_is_not_mixed_and_not_learned() {
    let world = World::new();
    let (steered, off) = (esamp(0.5), esamp(0.0));
    let rows: Vec<_> = (0..3).map(|r| row(r, r, &steered)).collect();
    let clean = world.hidden(&[0, 1, 2]);
    let nan = Tensor::<2>::full([1, 1], f32::NAN, &world.device);
    let shallow = clean.shallow().clone().slice_assign([1..2, 0..1], nan.clone());
    let hidden = HiddenStates::new(shallow, clean.deep().clone()).unwrap();
    let head = TiedHead::new(weight());
    let mut samplers = [sampler(), sampler()];
    let [long, short] = both_ways(&world, &head, &mut samplers, &rows, &hidden);
    long.iter().zip(&short).for_each(|(long, short)| assert_same(long, short));
    let plain = [StepRow { sampling: &off, ..rows[1] }];
    let plain = choices(world.step(&mut sampler(), &plain, &[1]).unwrap())[0];
    assert_eq!((short[1].token, short[1].novelty), (plain.token, None));
    for sampler in &samplers {
        let counters = sampler.counters();
        assert_eq!((counters.rows_not_finite, counters.rows_learned), (1, 2));
    }
    assert_eq!(samplers[1].counters().mixed, 2);

    // A head input that is not finite has no logits at all: the row fails, the others go on.
    let states = clean.deep().clone().slice_assign([2..3, 0..1], nan);
    let input = StepInput::from_head_input(&rows, states.clone(), &head);
    let hidden = HiddenStates::new(clean.shallow().clone(), states).unwrap();
    let output = sampler().step(input.with_hidden(hidden)).unwrap();
    assert!(output.choices[..2].iter().all(Result::is_ok));
    assert!(matches!(output.choices[2], Err(RowError::NotANumber { .. })));
}

#[test]
fn a_plain_step_needs_the_heads_input_and_nothing_else() {
    let world = World::new();
    let off = esamp(0.0);
    let rows = [row(0, 0, &off)];
    let states = world.hidden(&[3]).deep().clone();
    let input = StepInput::from_head_input(&rows, states, &world.head);
    let got = choices(sampler().step(input).unwrap())[0];
    let plain = choices(world.step(&mut sampler(), &rows, &[3]).unwrap())[0];
    assert_eq!(got, plain);
}

/// With a head input on another device than the sampler.
pub(super) fn a_head_input_elsewhere_is_an_error(elsewhere: &Device) {
    let world = World::new();
    let steered = esamp(0.5);
    let rows = [row(0, 0, &steered)];
    let states = Tensor::<2>::zeros([1, D_MODEL], elsewhere);
    let input = StepInput::from_head_input(&rows, states, &world.head);
    let error = sampler().step(input.with_hidden(world.hidden(&[0]))).unwrap_err();
    assert!(error.to_string().starts_with("head input: expected device"), "{error}");
}

#[test]
fn a_head_input_that_does_not_fit_is_an_error() {
    let world = World::new();
    let steered = esamp(0.5);
    let rows = [row(0, 0, &steered), row(0, 1, &steered)];
    let wording = |states: Tensor<2>, head: &dyn LmHead| {
        let input = StepInput::from_head_input(&rows, states, head);
        let input = input.with_hidden(world.hidden(&[0, 1]));
        sampler().step(input).unwrap_err().to_string()
    };
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, &world.device);
    assert_eq!(wording(zeros([1, D_MODEL]), &world.head), "head input: expected 2 rows, got 1");
    assert_eq!(
        wording(zeros([2, D_MODEL + 1]), &world.head),
        "head input: expected shape [2, 8], got [2, 9]"
    );
    let short = |hidden: Tensor<2>| hidden.slice([0..1, 0..D_MODEL]);
    assert_eq!(
        wording(zeros([2, D_MODEL]), &short),
        "logits of the LM head: expected 2 rows, got 1"
    );
}
