//! LM heads of every kind.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::{
    module::Param,
    nn::{Linear, LinearConfig},
    tensor::{Int, Tensor, TensorData},
};
use esamp::{
    Choice, LmHead, SamplerConfig, Sampling, StepInput, TiedHead,
    distillers::SwiGluConfig,
    errors::StepError,
    filters::RowContext,
    unstable::{ExpectedControl, LogitsTransfer},
};
use half::bf16;

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

/// A head as written by a user who wants to compute only the candidates' rows.
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

/// 8-bit integers with one scale per token, as in a quantised model.
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
fn candidate_logits_full_logits_and_the_formula_agree_for_every_head() {
    let world = World::new();
    let sampling = Sampling::default().with_beta(0.5).with_top_k(5).checked().unwrap();
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
        // 3 rows of 5 candidates cover all 12 tokens of the vocabulary, so the sampler uses one product with the
        // whole matrix.
        let wide = step(&[0, 1, 2]);
        for (context, wide) in wide.iter().enumerate() {
            let narrow = &step(&[context])[0];
            assert_eq!(narrow.token, wide.token, "{name}");
            let difference = (narrow.log_prob - wide.log_prob).abs();
            assert!(difference <= 1e-5 * narrow.log_prob.abs().max(1.0), "{name}: {difference}");

            let hidden = world.hidden(&[context]);
            let reference = host(head.logits(hidden.deep().clone()));
            let expected = host(head.logits(esamp::distillers::Distiller::predict(
                &distiller,
                hidden.shallow().clone(),
            )));
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
fn the_product_is_the_logits_without_the_bias() {
    let world = World::new();
    let hidden = world.hidden(&[1, 2]).deep().clone();
    for (name, head) in all_heads() {
        let Some(product) = head.product(hidden.clone(), None) else {
            assert!(!["linear with a bias", "tied"].contains(&name), "{name}");
            continue;
        };
        let product = host(product);
        let bias = head.logits(hidden.clone().zeros_like());
        let logits = host(head.logits(hidden.clone()) - bias);
        for (got, expected) in product.iter().zip(&logits) {
            assert!((got - expected).abs() < 1e-5, "{name}: {got} {expected}");
        }
        let tokens = Tensor::<2, Int>::from_data([[3, 0, 11], [3, 7, 1]], &world.device);
        let some = host(head.product(hidden.clone(), Some(tokens)).unwrap());
        for (place, token) in [3, 0, 11, VOCAB + 3, VOCAB + 7, VOCAB + 1].into_iter().enumerate() {
            assert!((some[place] - product[token]).abs() < 1e-5, "{name}");
        }
    }
}

/// A distiller that predicts the deep state exactly.
#[derive(Debug)]
struct Fitted;

impl ExpectedControl for Fitted {
    fn expected(
        &mut self,
        _rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        _predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        Ok(deep.clone())
    }
}

/// A head that hides that it is linear.
struct Opaque<'a>(&'a dyn LmHead);

impl LmHead for Opaque<'_> {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.0.logits(hidden)
    }
}

/// A model that multiplies less precisely than the head that the sampler has, as engines with quantised weights and
/// activations do. If nothing is unexpected, its rounding must not steer.
#[test]
fn rounding_of_the_models_head_is_not_novelty() {
    let world = World::new();
    let hidden = world.hidden(&[1, 4]);
    let deep = hidden.deep().clone();
    // On the host, because not every device has the type.
    let bf16 = |tensor: Tensor<2>| {
        let dims = tensor.dims();
        let numbers = host(tensor).into_iter().map(|number| bf16::from_f32(number).to_f32());
        Tensor::<2>::from_data(TensorData::new(numbers.collect::<Vec<_>>(), dims), &world.device)
    };
    let precise = TiedHead::new(weight());
    let linear = biased();
    let bias = linear.bias.as_ref().unwrap().val().unsqueeze::<2>();
    let of_bf16 = bf16(bf16(deep.clone()).matmul(bf16(weight()).transpose()));
    let of_integers = quantised().logits(deep);
    let cases: [(&str, &dyn LmHead, Tensor<2>); 4] = [
        ("bf16", &precise, of_bf16.clone()),
        ("int8", &precise, of_integers.clone()),
        ("bf16 with a bias", &linear, of_bf16 + bias.clone()),
        ("int8 with a bias", &linear, of_integers + bias),
    ];
    let (paper, few) = (esamp(0.9), Sampling::default().with_beta(0.9).with_top_k(3));
    for sampling in [paper, few.checked().unwrap()] {
        let plain = (*sampling).clone().with_beta(0.0).checked().unwrap();
        for (name, head, logits) in &cases {
            let step = |head: &dyn LmHead, sampling| -> Vec<Choice> {
                let rows = [row(1, 0, sampling), row(2, 0, sampling)];
                let mut sampler = sampler();
                sampler.set_expected_control(Fitted);
                let input = StepInput::new(&rows, logits.clone(), head);
                choices(sampler.step(input.with_hidden(hidden.clone())).unwrap())
            };
            let plain = step(*head, &plain);
            let difference = |choices: Vec<Choice>| {
                let pairs = choices.iter().zip(&plain);
                let difference = |(a, b): (&Choice, &Choice)| {
                    if a.token == b.token { (a.log_prob - b.log_prob).abs() } else { f32::INFINITY }
                };
                pairs.map(difference).fold(0.0, f32::max)
            };
            let by_error = difference(step(*head, &sampling));
            assert!(by_error < 1e-5, "{name}: {by_error}");
            let by_state = difference(step(&Opaque(*head), &sampling));
            assert!(by_state > 1e-3, "{name}: {by_state}");
        }
    }
}

#[test]
fn heads_report_their_shape_and_device() {
    let (linear, tied) = (biased(), TiedHead::new(weight()));
    assert_eq!(linear.shape(), Some([D_MODEL, VOCAB]));
    assert_eq!(tied.shape(), Some([D_MODEL, VOCAB]));
    assert_eq!(soft_capped().shape(), None);
}

/// Counts how often it is asked for all logits, and for some.
struct Counting {
    inner: TiedHead,
    all: AtomicUsize,
    some: AtomicUsize,
}

impl LmHead for Counting {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.all.fetch_add(1, Relaxed);
        self.inner.logits(hidden)
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        self.some.fetch_add(1, Relaxed);
        self.inner.logits_at(hidden, tokens)
    }

    fn shape(&self) -> Option<[usize; 2]> {
        self.inner.shape()
    }
}

/// A head is asked for single tokens while that reads less of its matrix.
#[test]
fn a_head_is_asked_for_all_logits_from_as_many_candidates_as_tokens_on() {
    let world = World::new();
    for (rows, candidates, all) in
        [(1, 11, 0), (3, 3, 0), (2, 5, 0), (3, 4, 1), (2, 6, 1), (1, 12, 1)]
    {
        let sampling = Sampling::paper().with_beta(0.5).with_top_k(candidates).checked().unwrap();
        let inner = TiedHead::new(weight());
        let head = Counting { inner, all: AtomicUsize::new(0), some: AtomicUsize::new(0) };
        let contexts: Vec<usize> = (0..rows).collect();
        let step_rows: Vec<_> =
            contexts.iter().map(|&c| row(c as u64, c as u64, &sampling)).collect();
        let hidden = world.hidden(&contexts);
        let logits = world.head.logits(hidden.deep().clone());
        let input = StepInput::new(&step_rows, logits, &head).with_hidden(hidden);
        // On a device with its own memory, the head is asked about the best tokens before the candidates are known.
        let config = SamplerConfig::new().with_logits_transfer(LogitsTransfer::Whole);
        config.init(D_MODEL, &device()).unwrap().step(input).unwrap();
        let asked = (head.all.into_inner(), head.some.into_inner());
        assert_eq!(asked, (all, 1 - all), "{rows} rows of {candidates} candidates");
    }
}
