//! Penalties, bias and the hot start through the whole step: what they add, and that the fusion preserves it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use super::sampler_step::log_softmax;
use crate::device;
use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CausalLm, CheckedSampling, Choice, CompletionId, Decoder, DrawKey, Fire, HiddenStates, LmHead,
    Penalties, Phase, Request, Sampler, SamplerConfig, Sampling, StepInput, StepRow,
    TemperatureOrder, TiedHead, TokenId, TokenMask, distillers::Distiller, errors::RowError,
    filters::RowContext, telemetry::Recorder, testing::ScriptedLm,
};

const D_MODEL: usize = 8;
pub(super) const VOCAB: usize = 12;
pub(super) const PROMPT: [TokenId; 4] = [1, 2, 2, 9];
pub(super) const GENERATED: [TokenId; 4] = [5, 6, 5, 2];

/// One context of a model: hidden states, the head's logits for them, and the logits that a fresh distiller expects.
pub(super) struct Context {
    pub(super) device: Device,
    head: TiedHead,
    pub(super) hidden: HiddenStates,
    pub(super) reference: Vec<f32>,
    pub(super) expected: Vec<f32>,
}

impl Context {
    pub(super) fn new(seed: usize) -> Self {
        let device = device();
        let wave = |rows: usize, scale: f32| -> Tensor<2> {
            let numbers: Vec<f32> =
                (0..rows * D_MODEL).map(|i| ((i + 5 * seed) as f32 * scale).cos() * 1.5).collect();
            Tensor::from_data(TensorData::new(numbers, [rows, D_MODEL]), &device)
        };
        let head = TiedHead::new(wave(VOCAB, 0.7));
        let hidden = HiddenStates::new(wave(1, 0.9), wave(1, 1.3)).unwrap();
        let distiller = esamp::distillers::SwiGluConfig::new().init(D_MODEL, 0, &device).unwrap();
        let reference = values(head.logits(hidden.deep().clone()));
        let expected = values(head.logits(distiller.predict(hidden.shallow().clone())));
        Self { device, head, hidden, reference, expected }
    }

    pub(super) fn step(&self, row: StepRow<'_>) -> Result<Choice, RowError> {
        let mut sampler = SamplerConfig::new().init(D_MODEL, &self.device).unwrap();
        self.step_of(&mut sampler, row)
    }

    pub(super) fn step_of(
        &self,
        sampler: &mut Sampler,
        row: StepRow<'_>,
    ) -> Result<Choice, RowError> {
        let logits = self.head.logits(self.hidden.deep().clone());
        let hidden = Some(self.hidden.clone());
        let other = Tensor::from_data(TensorData::new(self.other(), [1, VOCAB]), &self.device);
        let rows = [row];
        let input = StepInput::new(&rows, logits, &self.head).with_hidden(hidden);
        sampler.step(input.with_other_logits(other)).unwrap().choices.remove(0)
    }

    /// The logits of another model.
    fn other(&self) -> Vec<f32> {
        self.reference.iter().zip(0..).map(|(l, z)| 0.6 * l + (z as f32 * 1.9).sin()).collect()
    }
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

pub(super) fn row(request: u64, sampling: &CheckedSampling) -> StepRow<'_> {
    StepRow::new(
        CompletionId::new(0, request),
        DrawKey::new(7, &PROMPT, request),
        &PROMPT,
        &GENERATED,
        sampling,
    )
    .with_phase(Phase::Decode)
}

pub(super) fn everything(config: Sampling) -> Sampling {
    config
        .with_penalties(
            Penalties::new().with_repetition(1.5).with_frequency(0.4).with_presence(0.3),
        )
        .with_logit_bias(3, 1.25)
        .with_logit_bias(5, -0.5)
}

/// Token by token, directly from the definitions.
pub(super) fn naive_adjusted(logits: &[f32]) -> Vec<f32> {
    let adjusted = |(token, &logit): (usize, &f32)| {
        let token = token as TokenId;
        let count = GENERATED.iter().filter(|&&g| g == token).count() as f32;
        let mut new = logit;
        if PROMPT.contains(&token) || count > 0.0 {
            new = if logit > 0.0 { logit / 1.5 } else { logit * 1.5 };
        }
        new -= 0.4 * count;
        new -= if count > 0.0 { 0.3 } else { 0.0 };
        new + match token {
            3 => 1.25,
            5 => -0.5,
            _ => 0.0,
        }
    };
    logits.iter().enumerate().map(adjusted).collect()
}

/// Checks that the fusion does not multiply what a setting adds to the logits, which is what `adjust` adds.
pub(super) fn check_fusion(with: fn(Sampling) -> Sampling, adjust: fn(&[f32]) -> Vec<f32>) {
    let (beta, temperature) = (2.0, 0.8);
    for seed in 0..3 {
        let context = Context::new(seed);
        let adjusted = adjust(&context.reference);
        let fused: Vec<f32> = (0..VOCAB)
            .map(|z| {
                let delta = adjusted[z] - context.reference[z];
                let fused = (1.0 + beta) * context.reference[z] - beta * context.expected[z];
                (fused + delta) / temperature
            })
            .collect();
        let open = fused.iter().filter(|score| score.is_finite()).count();
        for order in [TemperatureOrder::BeforeFilters, TemperatureOrder::AfterFilters] {
            let base = Sampling::paper().with_beta(beta).with_temperature(temperature);
            let sampling = with(base).with_temperature_order(order).checked().unwrap();
            for request in 0..20 {
                let asked = row(request, &sampling).with_reference_log_prob();
                let choice = context.step(asked).unwrap();
                assert_eq!(choice.candidates, open);
                let expected = log_softmax(&fused, choice.token);
                let got = choice.log_prob;
                assert!((got - expected).abs() < 2e-5, "{order:?} {got} {expected}");
                let expected = log_softmax(&context.reference, choice.token);
                let got = choice.reference_log_prob.unwrap();
                assert!((got - expected).abs() < 1e-5, "the model's own: {got} {expected}");
            }
        }
        let greedy = Sampling::paper().with_beta(beta).with_temperature(0.0);
        let greedy = with(greedy).checked().unwrap();
        let best = (0..VOCAB).max_by(|&a, &b| fused[a].total_cmp(&fused[b])).unwrap();
        assert_eq!(context.step(row(0, &greedy)).unwrap().token as usize, best);
    }
}

#[test]
fn adjustments_are_not_multiplied_by_the_fusion() {
    check_fusion(everything, naive_adjusted);
}

/// The same for a second model, which has no penalties of its own. Its candidates are those of the adjusted
/// reference.
#[test]
fn adjustments_are_not_multiplied_by_a_contrast_either() {
    let (beta, temperature, alpha) = (1.5, 0.8, 0.1f32);
    for seed in 0..3 {
        let context = Context::new(seed);
        let (adjusted, other) = (naive_adjusted(&context.reference), context.other());
        let fused = |z: usize| {
            let delta = adjusted[z] - context.reference[z];
            (1.0 + beta) * context.reference[z] - beta * other[z] + delta
        };
        let best = adjusted.iter().copied().fold(f32::MIN, f32::max);
        for (order, seen) in
            [(TemperatureOrder::BeforeFilters, temperature), (TemperatureOrder::AfterFilters, 1.0)]
        {
            let in_race = |&z: &usize| adjusted[z] >= best + seen * alpha.ln();
            let race: Vec<usize> = (0..VOCAB).filter(in_race).collect();
            assert!(race.len() > 1 && race.len() < VOCAB, "{race:?}");
            let contrastive = Sampling::contrastive().with_beta(beta);
            let contrastive = everything(contrastive).with_temperature_order(order);
            let sampling = contrastive.clone().with_temperature(temperature).checked().unwrap();
            let scores: Vec<f32> = race.iter().map(|&z| fused(z) / temperature).collect();
            for request in 0..20 {
                let choice = context.step(row(request, &sampling)).unwrap();
                let place = race.iter().position(|&z| z == choice.token as usize).unwrap();
                let expected = log_softmax(&scores, place as TokenId);
                let got = choice.log_prob;
                assert_eq!(choice.candidates, race.len());
                assert!((got - expected).abs() < 2e-5, "{order:?} {got} {expected}");
            }
        }
        let greedy = Sampling::contrastive().with_beta(beta).with_temperature(0.0);
        let greedy = everything(greedy).checked().unwrap();
        let race = (0..VOCAB).filter(|&z| adjusted[z] >= best + alpha.ln());
        let wanted = race.max_by(|&a, &b| fused(a).total_cmp(&fused(b))).unwrap();
        assert_eq!(context.step(row(0, &greedy)).unwrap().token as usize, wanted);
    }
}

/// The mass that filters remove is that of the adjusted distribution, which is the one they see.
#[test]
fn the_mass_outside_is_that_of_the_adjusted_distribution() {
    let temperature = 0.7;
    let mut differences = 0;
    for seed in 0..3 {
        let context = Context::new(seed);
        let adjusted = naive_adjusted(&context.reference);
        let mut mask = TokenMask::all(VOCAB);
        mask.set(6, false);
        for (allowed, beta) in [(None, 0.0), (None, 0.5), (Some(&mask), 0.5)] {
            for order in [TemperatureOrder::BeforeFilters, TemperatureOrder::AfterFilters] {
                let config = everything(Sampling::default().with_top_k(4));
                let config = config.with_beta(beta).with_temperature(temperature);
                let sampling = config.with_temperature_order(order).checked().unwrap();
                let mut sampler = SamplerConfig::new().init(D_MODEL, &context.device).unwrap();
                let recorder = Arc::new(Mutex::new(Recorder::new()));
                sampler.set_observer(recorder.clone());
                let row = row(0, &sampling).with_allowed(allowed);
                context.step_of(&mut sampler, row).unwrap();

                let share = |logits: &[f32]| {
                    let open = |z: &usize| allowed.is_none() || *z != 6;
                    let mut order: Vec<usize> = (0..VOCAB).filter(open).collect();
                    order.sort_by(|&a, &b| adjusted[b].total_cmp(&adjusted[a]));
                    let mass = |z: &usize| (f64::from(logits[*z]) / f64::from(temperature)).exp();
                    let all: f64 = order.iter().map(mass).sum();
                    order[4..].iter().map(mass).sum::<f64>() / all
                };
                let expected = share(&adjusted);
                let got = recorder.lock().unwrap().tokens().next().unwrap().mass_outside;
                assert!((got - expected).abs() < 1e-5, "{got} {expected} {order:?} {beta}");
                assert!((sampler.counters().mass_outside - got).abs() < 1e-9);
                let unadjusted = share(&context.reference);
                differences += usize::from((expected - unadjusted).abs() > 1e-2);
            }
        }
    }
    assert!(differences > 9, "the adjustment shows in most: {differences} of 18");
}

/// Checks that filters see the logits with what a setting adds to them, which is what `adjust` adds.
pub(super) fn check_filters(with: fn(Sampling) -> Sampling, adjust: fn(&[f32]) -> Vec<f32>) {
    let context = Context::new(1);
    let adjusted = adjust(&context.reference);
    let draw = DrawKey::new(7, &PROMPT, 0).at(4);
    let at = RowContext::new(CompletionId::new(0, 0), 4, draw).with_tokens(&PROMPT, &GENERATED);
    for (order, seen) in
        [(TemperatureOrder::BeforeFilters, 2.0), (TemperatureOrder::AfterFilters, 1.0)]
    {
        let config = with(Sampling::default().with_temperature(2.0).with_min_p(0.3));
        let sampling = config.with_temperature_order(order).checked().unwrap();
        let got = sampling.candidates(&at, &context.reference).unwrap();
        let best = adjusted.iter().copied().fold(f32::MIN, f32::max);
        let least = best + seen * 0.3f32.ln();
        let mut expected: Vec<usize> = (0..VOCAB).filter(|&z| adjusted[z] >= least).collect();
        expected.sort_by(|&a, &b| adjusted[b].total_cmp(&adjusted[a]));
        let tokens: Vec<usize> = got.as_slice().iter().map(|c| c.token as usize).collect();
        assert_eq!(tokens, expected, "{order:?}");
        for candidate in got.as_slice() {
            let expected = adjusted[candidate.token as usize] / 2.0;
            assert!((candidate.logit - expected).abs() < 1e-6, "{order:?}");
        }
    }
}

#[test]
fn filters_see_the_adjusted_logits() {
    check_filters(everything, naive_adjusted);
}

#[test]
fn a_masked_token_stays_masked_with_any_adjustment() {
    let context = Context::new(0);
    let sampling =
        Sampling::paper().with_logit_bias(4, 1e30).with_logit_bias(8, 50.0).checked().unwrap();
    let mut allowed = TokenMask::all(VOCAB);
    allowed.set(4, false);
    let masked = row(0, &sampling).with_allowed(&allowed);
    assert_eq!(context.step(masked).unwrap().token, 8);

    let mut logits = context.reference.clone();
    logits[4] = f32::NEG_INFINITY;
    let at = RowContext::new(CompletionId::new(0, 0), 4, DrawKey::new(7, &PROMPT, 0).at(4))
        .with_tokens(&PROMPT, &[4, 4, 4, 4]);
    let penalised = Penalties::new().with_repetition(0.5).with_frequency(-1.0).with_presence(-1.0);
    let sampling = (*sampling).clone().with_penalties(penalised).checked().unwrap();
    let candidates = sampling.candidates(&at, &logits).unwrap();
    assert_eq!(candidates.len(), VOCAB - 1);
    assert!(candidates.as_slice().iter().all(|c| c.token != 4 && c.logit.is_finite()));

    logits[4] = f32::NAN;
    let error = sampling.candidates(&at, &logits).unwrap_err();
    assert_eq!(error.to_string(), "logits: expected numbers or -inf, got NaN for token 4");
    let far = Sampling::paper().with_logit_bias(4, f32::MAX).checked().unwrap();
    logits[4] = f32::MAX;
    let error = far.candidates(&at, &logits).unwrap_err();
    assert_eq!(error.to_string(), "logits: expected numbers or -inf, got inf for token 4");
}

#[test]
fn a_bias_for_an_unknown_token_is_an_error_of_the_row() {
    let context = Context::new(0);
    let sampling = Sampling::paper().with_logit_bias(12, 1.0).checked().unwrap();
    let error = context.step(row(0, &sampling)).unwrap_err();
    assert_eq!(error, RowError::UnknownToken { place: "logit bias", token: 12, vocab: VOCAB });
}

/// A model with constant logits: token 3 is the best, then 7.
pub(super) fn constant() -> ScriptedLm {
    ScriptedLm::new(10, &device(), |_| {
        let mut logits = vec![0.0; 10];
        (logits[3], logits[7]) = (1.0, 0.9);
        logits
    })
}

pub(super) fn said(config: Sampling, prompt: Vec<TokenId>) -> Vec<TokenId> {
    let model = constant();
    let sampler = SamplerConfig::new().init(model.d_model(), &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let sampling = config.with_beta(0.0).with_temperature(0.0);
    let request = Request::new(prompt).with_sampling(sampling).with_max_new_tokens(5);
    decoder.submit(request).unwrap();
    decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap()[0].tokens()
}

#[test]
fn the_decoder_counts_the_tokens_of_the_completion() {
    let penalties = |repetition, frequency, presence| {
        Sampling::paper().with_penalties(
            Penalties::new()
                .with_repetition(repetition)
                .with_frequency(frequency)
                .with_presence(presence),
        )
    };
    assert_eq!(said(penalties(1.0, 0.0, 0.0), vec![3]), [3; 5]);
    // The prompt's 3 has .5 from the start; 7 has .45 after it has occurred.
    assert_eq!(said(penalties(2.0, 0.0, 0.0), vec![3]), [7, 3, 3, 3, 3]);
    assert_eq!(said(penalties(2.0, 0.0, 0.0), vec![1]), [3, 7, 3, 3, 3]);
    // Each occurrence subtracts .15; the prompt does not count.
    assert_eq!(said(penalties(1.0, 0.15, 0.0), vec![3]), [3, 7, 3, 7, 3]);
    assert_eq!(said(penalties(1.0, 0.0, 0.15), vec![3]), [3, 7, 3, 3, 3]);
    assert_eq!(said(Sampling::paper().with_logit_bias(0, 1.5), vec![3]), [0; 5]);
}

#[test]
fn a_request_with_a_bias_for_an_unknown_token_is_refused() {
    let model = constant();
    let sampler = SamplerConfig::new().init(model.d_model(), &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let sampling = Sampling::paper().with_logit_bias(10, 1.0);
    let error = decoder.submit(Request::new(vec![1]).with_sampling(sampling)).unwrap_err();
    assert_eq!(error.to_string(), "logit bias token 10: expected an id below 10");
}

#[test]
fn a_hot_start_has_the_configured_number_of_tokens() {
    let context = Context::new(1);
    let beta = 0.5;
    let fire = Fire::new(30.0).with_tokens(2);
    let base = Sampling::paper().with_beta(beta).with_temperature(0.7).with_fire(fire);
    let sampling = base.checked().unwrap();
    let fused: Vec<f32> = (0..VOCAB)
        .map(|z| (1.0 + beta) * context.reference[z] - beta * context.expected[z])
        .collect();
    for (generated, phase, scores, temperature) in [
        (&GENERATED[..0], Phase::FirstToken, &context.reference, 30.0),
        (&GENERATED[..1], Phase::Decode, &fused, 30.0),
        (&GENERATED[..2], Phase::Decode, &fused, 0.7),
        (&GENERATED[..4], Phase::Decode, &fused, 0.7),
    ] {
        assert_eq!(sampling.temperature_at(generated.len() as u64), temperature);
        let choice = context
            .step({
                let mut row = row(0, &sampling).with_phase(phase);
                row.generated = generated;
                row
            })
            .unwrap();
        let scores: Vec<f32> = scores.iter().map(|score| score / temperature).collect();
        let expected = log_softmax(&scores, choice.token);
        assert!((choice.log_prob - expected).abs() < 1e-5, "{} tokens", generated.len());
    }
}

#[test]
fn a_hot_start_before_greedy_tokens_is_random() {
    let context = Context::new(1);
    let sampling = Sampling::paper().with_temperature(0.0).with_fire(Fire::new(30.0));
    let sampling = sampling.checked().unwrap();
    assert!(sampling.is_greedy() && sampling.is_greedy_at(1) && !sampling.is_greedy_at(0));
    let seen = |generated: &'static [TokenId]| -> HashSet<TokenId> {
        let token = |request| {
            let row = {
                let mut row = row(request, &sampling).with_phase(Phase::FirstToken);
                row.generated = generated;
                row
            };
            context.step(row).unwrap().token
        };
        (0..60).map(token).collect()
    };
    assert!(seen(&[]).len() > 6, "nearly uniform over 12 tokens");
    assert_eq!(seen(&[5]).len(), 1);
}
