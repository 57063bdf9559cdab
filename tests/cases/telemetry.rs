//! What an observer receives, compared with rows computed by hand and with the counters of whole runs.

use std::sync::{Arc, Mutex};

use crate::device;
use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use esamp::{
    CheckedSampling, CompletionId, DrawKey, HiddenStates, LmHead, Phase, Sampler, SamplerConfig,
    Sampling, StepInput, StepOutput, StepRow, TemperatureOrder, TokenMask,
    distillers::Distiller,
    errors::{RowError, TrainError},
    filters::{Candidates, RowContext},
    optim::OptimizerConfig,
    reweighters::{Expects, NoveltyReweighter, ReweighterConfig},
    telemetry::{Recorder, RowTrace, Steering},
};

use super::sampler_step::first_token;

/// Predicts the shallow state itself, so that a test can choose what is expected.
#[derive(Module, Debug)]
struct Repeat {}

impl Distiller for Repeat {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow
    }
}

/// A head whose logits are the hidden state.
struct Identity;

impl LmHead for Identity {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden
    }
}

pub(super) type Shared = Arc<Mutex<Recorder>>;

/// A sampler over four tokens and its observer.
pub(super) fn watched() -> (Sampler, Shared) {
    let mut sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(Repeat {})
        .build(4, &device())
        .unwrap();
    let recorder = Shared::default();
    sampler.set_observer(recorder.clone());
    (sampler, recorder)
}

pub(super) fn row(request: u64, sampling: &CheckedSampling) -> StepRow<'_> {
    StepRow::new(
        CompletionId::new(0, request),
        DrawKey::new(7, &[1, 2, 3], request),
        &[],
        &[5, 6],
        sampling,
    )
    .with_phase(Phase::Decode)
}

fn tensor(rows: &[[f32; 4]]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), 4]), &device())
}

/// One step with these logits and expected logits, one row each.
pub(super) fn step(
    sampler: &mut Sampler,
    rows: &[StepRow<'_>],
    logits: &[[f32; 4]],
    expected: &[[f32; 4]],
) -> StepOutput {
    let hidden = HiddenStates::new(tensor(expected), tensor(logits)).unwrap();
    let input = StepInput::new(rows, tensor(logits), &Identity).with_hidden(hidden);
    sampler.step(input).unwrap()
}

pub(super) fn tokens(recorder: &Shared) -> Vec<RowTrace> {
    recorder.lock().unwrap().tokens().cloned().collect()
}

fn close(what: &str, got: f64, expected: f64) {
    assert!((got - expected).abs() < 2e-6, "{what}: {got}, expected {expected}");
}

/// The logarithms of tenths.
fn ln(tenths: [f32; 4]) -> [f32; 4] {
    tenths.map(|p| (p / 10.0).ln())
}

#[test]
fn a_row_of_four_tokens_by_hand() {
    // Reference .4 .3 .2 .1, expected the same reversed, β 1: new ∝ p²/q = .16/.1, .09/.2, .04/.3, .01/.4.
    let (logits, expected) = (ln([4.0, 3.0, 2.0, 1.0]), ln([1.0, 2.0, 3.0, 4.0]));
    let weights = [1.6, 0.45, 0.04 / 0.3, 0.025];
    let total: f64 = weights.iter().sum();
    let [p, new] = [[0.4, 0.3, 0.2, 0.1], weights.map(|w| w / total)];
    let sampling = Sampling::paper().with_beta(1.0).checked().unwrap();
    let mut seen = [false; 4];
    for request in 0..60 {
        let (mut sampler, recorder) = watched();
        let row = row(request, &sampling).with_reference_log_prob();
        let output = step(&mut sampler, &[row], &[logits], &[expected]);
        let choice = output.choices[0].clone().unwrap();
        let trace = tokens(&recorder).remove(0);
        let token = choice.token as usize;
        seen[token] = true;

        assert_eq!(
            (trace.step, trace.completion, trace.position),
            (0, CompletionId::new(0, request), 2)
        );
        assert_eq!((trace.token, trace.log_prob), (choice.token, choice.log_prob));
        assert_eq!((trace.steering, trace.temperature), (Steering::Steered, 1.0));
        assert_eq!((trace.candidates, trace.mass_outside), (4, 0.0));
        assert_eq!((trace.reference_rank, trace.rank), (token, token), "order is as before");
        close("log_prob", f64::from(trace.log_prob), new[token].ln());
        close("surprisal", trace.surprisal, -p[token].ln());
        close("model", f64::from(trace.model_surprisal.unwrap()), -p[token].ln());
        let entropy = |p: [f64; 4]| -> f64 { p.iter().map(|p| -p * p.ln()).sum() };
        close("reference entropy", trace.reference_entropy, entropy(p));
        close("entropy", trace.entropy, entropy(new));
        close("kl", trace.kl, (0..4).map(|i| new[i] * (new[i] / p[i]).ln()).sum());

        // The first token whose cumulative probability exceeds the row's uniform number, in either distribution.
        let uniform = DrawKey::new(7, &[1, 2, 3], request).at(2).uniform();
        let invert =
            |p: [f64; 4]| (0..4).find(|&i| p[..=i].iter().sum::<f64>() > uniform).unwrap() as u32;
        assert_eq!(trace.token, invert(new));
        assert_eq!(trace.unsteered_token, Some(invert(p)));
        let counters = *sampler.counters();
        assert_eq!(counters.interventions, u64::from(invert(new) != invert(p)));

        // δ = ln p − ln q, with q the reversed p: its slope on ln p, from the definition.
        let z = p.map(f64::ln);
        let delta = [0, 1, 2, 3].map(|i| z[i] - z[3 - i]);
        let mean = |x: [f64; 4]| x.iter().sum::<f64>() / 4.0;
        let product = |x: [f64; 4], y: [f64; 4]| -> f64 {
            (0..4).map(|i| (x[i] - mean(x)) * (y[i] - mean(y))).sum()
        };
        let slope = product(delta, z) / product(z, z);
        close("slope", trace.slope.unwrap(), slope);
        close("sharpening", trace.sharpening.unwrap(), slope); // β is 1
        let share = product(delta, z).powi(2) / (product(z, z) * product(delta, delta));
        close("share", trace.sharpening_share.unwrap(), share);

        // e is ln p − ln q too, because this head is the identity.
        let squares: f64 = delta.iter().map(|d| d * d).sum();
        let deep: f64 = z.iter().map(|z| z * z).sum();
        close("novelty", f64::from(trace.novelty.unwrap()), squares.sqrt());
        close("relative", trace.relative_novelty.unwrap(), (squares / deep).sqrt());
        close("loss", trace.loss.unwrap(), squares / 4.0);
    }
    assert!(seen.iter().filter(|&&seen| seen).count() >= 3, "{seen:?}");
}

#[test]
fn traces_use_the_temperature_and_the_candidates_of_the_step() {
    // Masses 1, 2, 4, 8 at T 1; at T ½ they are 1, 4, 16, 64. Top-k 2 leaves the last two.
    let logits = [1.0f32, 2.0, 4.0, 8.0].map(f32::ln);
    for order in [TemperatureOrder::BeforeFilters, TemperatureOrder::AfterFilters] {
        let sampling = Sampling::default().with_beta(0.0).with_temperature(0.5).with_top_k(2);
        let sampling = sampling.with_temperature_order(order).checked().unwrap();
        let greedy = Sampling::default().with_temperature(0.0).with_top_k(2).checked().unwrap();
        let odd = TokenMask::allowing(4, [1, 3]);
        let one = Sampling::default().with_top_k(1).checked().unwrap();
        let (mut sampler, recorder) = watched();
        let masked = row(2, &one).with_allowed(&odd);
        let rows = [row(0, &sampling), row(1, &greedy), masked];
        step(&mut sampler, &rows, &[logits; 3], &[[0.0; 4]; 3]);
        let traces = tokens(&recorder);
        let p: f64 = if traces[0].token == 3 { 0.8 } else { 0.2 };
        close("mass outside at ½", traces[0].mass_outside, 5.0 / 85.0);
        close("surprisal at ½", traces[0].surprisal, -p.ln());
        close("entropy at ½", traces[0].entropy, -0.8f64 * 0.8f64.ln() - 0.2 * 0.2f64.ln());
        assert_eq!((traces[0].kl, traces[0].steering), (0.0, Steering::Off));
        assert_eq!((traces[0].slope, traces[0].sharpening, traces[0].loss), (None, None, None));
        assert_eq!((traces[0].unsteered_token, traces[0].novelty), (None, None));
        // A greedy row is measured at temperature 1. A distiller of constant logits sharpens: (8/12)^1.25 against
        // (4/12)^1.25.
        close("mass outside of a greedy row", traces[1].mass_outside, 3.0 / 15.0);
        close("its surprisal", traces[1].surprisal, 1.5f64.ln());
        close(
            "its log-probability",
            f64::from(traces[1].log_prob),
            -(1.0 + 0.5f64.powf(1.25)).ln(),
        );
        assert_eq!((traces[1].token, traces[1].rank, traces[1].temperature), (3, 0, 0.0));
        assert_eq!((traces[1].slope, traces[1].sharpening_share), (Some(1.0), None));
        // Masked tokens have no mass: 2 of 2 + 8.
        close("mass outside of a masked row", traces[2].mass_outside, 0.2);
        let counters = sampler.counters();
        assert_eq!((counters.observed, counters.candidates), (3, 5));
        close("sum", counters.mass_outside, 5.0 / 85.0 + 0.2 + 0.2);
    }
}

#[test]
fn interventions_are_tokens_that_steering_has_changed() {
    // β 1 on greedy rows: 2·logit − expected. Token 0 stays the best unless it was expected.
    let sampling = Sampling::paper().with_beta(1.0).with_temperature(0.0).checked().unwrap();
    let logits = [2.0, 1.0, 0.0, -1.0];
    let expected = [[0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -6.0]];
    let (mut sampler, recorder) = watched();
    let rows = [row(0, &sampling), row(1, &sampling), row(2, &sampling)];
    step(&mut sampler, &rows, &[logits; 3], &expected);
    let traces = tokens(&recorder);
    let got: Vec<_> = traces.iter().map(|t| (t.token, t.unsteered_token)).collect();
    assert_eq!(got, [(0, Some(0)), (1, Some(0)), (0, Some(0))]);
    let ranks: Vec<_> = traces.iter().map(|t| (t.reference_rank, t.rank)).collect();
    assert_eq!(ranks, [(0, 0), (1, 0), (0, 0)]);
    assert_eq!((sampler.counters().steered, sampler.counters().interventions), (3, 1));
    assert_eq!(sampler.counters().intervention_rate(), Some(1.0 / 3.0));
}

#[test]
fn every_row_says_why_it_was_not_steered() {
    let (on, off) = (Sampling::paper(), Sampling::paper().with_beta(0.0));
    let (on, off) = (on.checked().unwrap(), off.checked().unwrap());
    let (mut sampler, recorder) = watched();
    let first = first_token(row(0, &on));
    let rows = [first, row(1, &off), row(2, &on), row(3, &on), row(4, &on)];
    let fine = [0.0, 1.0, 2.0, 3.0];
    let bad = [f32::NAN; 4];
    step(&mut sampler, &rows, &[fine, fine, fine, fine, bad], &[fine, fine, bad, fine, fine]);
    let got: Vec<_> = tokens(&recorder).iter().map(|t| (t.completion.index, t.steering)).collect();
    let expected =
        [Steering::FirstToken, Steering::Off, Steering::NotFinite, Steering::Steered].into_iter();
    assert_eq!(got, (0..4).zip(expected).collect::<Vec<_>>(), "a row that failed has no token");
    let recorder = recorder.lock().unwrap();
    let step = recorder.steps().next().unwrap();
    assert_eq!((step.rows, step.failed, step.steered), (4, 1, 1));
    assert_eq!(step.slots.iter().map(|s| s.rows).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_row_that_could_not_be_contrasted_is_not_traced_as_contrasted() {
    let contrast = Sampling::paper().with_reweighter(ReweighterConfig::Contrast);
    let sampling = contrast.with_beta(1.0).checked().unwrap();
    let (mut sampler, recorder) = watched();
    let first = first_token(row(2, &sampling));
    let rows = [row(0, &sampling), row(1, &sampling), first, row(3, &sampling)];
    let logits = [1.0, 0.5, 0.0, -1.0];
    // 2·logit − other: in row 3 the score overflows, although all inputs are finite.
    let other = [[0.0, 1.0, 0.5, 0.25], [0.0, f32::NEG_INFINITY, 0.0, 0.0], [0.0; 4], [-3e38; 4]];
    let huge = [3e38, 0.0, 0.0, 0.0];
    let input = StepInput::new(&rows, tensor(&[logits, logits, logits, huge]), &Identity);
    let output = sampler.step(input.with_other_logits(tensor(&other))).unwrap();
    assert!(matches!(output.choices[3], Err(RowError::Score { .. })), "{:?}", output.choices[3]);

    let traces = tokens(&recorder);
    let got: Vec<_> = traces.iter().map(|t| (t.completion.index, t.steering)).collect();
    let expected = [Steering::Contrasted, Steering::OtherNotFinite, Steering::Contrasted];
    assert_eq!(got, (0..3).zip(expected).collect::<Vec<_>>());
    // It was sampled plainly: the new distribution is the reference, and nothing was expected.
    let plain = &traces[1];
    assert_eq!((plain.kl, plain.slope, plain.sharpening), (0.0, None, None));
    assert_eq!((plain.entropy, plain.rank), (plain.reference_entropy, plain.reference_rank));
    let masses = logits.map(|l| f64::from(l).exp());
    let share = masses[plain.token as usize] / masses.iter().sum::<f64>();
    close("log_prob", f64::from(plain.log_prob), share.ln());
    assert!(traces[0].slope.is_some() && traces[2].sharpening.is_some());
    // The counters agree: a row without a token does not count as contrasted.
    let counters = sampler.counters();
    assert_eq!((counters.contrasted, counters.other_not_finite, counters.failed), (2, 1, 1));
    let json = serde_json::to_string(&plain.steering).unwrap();
    assert_eq!(json, r#""other_not_finite""#);
}

#[test]
fn a_deep_state_of_zero_does_not_make_the_sums_infinite() {
    let sampling = Sampling::paper().checked().unwrap();
    let (mut sampler, recorder) = watched();
    let rows = [row(0, &sampling), row(1, &sampling), row(2, &sampling)];
    let logits = [[0.0; 4], [0.0; 4], [1.0, 0.0, 0.0, 0.0]];
    let expected = [[0.0; 4], [3.0, 0.0, 0.0, 4.0], [1.0, 2.0, 0.0, 0.0]];
    let output = step(&mut sampler, &rows, &logits, &expected);
    let relative: Vec<f32> = output
        .choices
        .iter()
        .map(|choice| choice.as_ref().unwrap().novelty.unwrap().relative())
        .collect();
    assert_eq!(relative, [0.0, f32::INFINITY, 2.0]);
    let counters = sampler.counters();
    assert_eq!((counters.novelty_sum, counters.relative_novelty_sum), (7.0, 2.0));
    let relative: Vec<_> = tokens(&recorder).iter().map(|t| t.relative_novelty).collect();
    assert_eq!(relative, [None, None, Some(2.0)]);
}

#[test]
fn a_distiller_that_cannot_change_has_not_learned() {
    let sampling = Sampling::paper().checked().unwrap();
    let sgd = OptimizerConfig::sgd(0.1);
    let swiglu = || esamp::distillers::SwiGluConfig::new().init(4, 0, &device()).unwrap();
    // SGD and clipping take different code paths through an update.
    for optimizer in [sgd, OptimizerConfig::paper()] {
        let config = SamplerConfig::new().with_optimizer(optimizer);
        let config = config.with_updates_before_steering(1);
        let frozen = Sampler::builder(config.clone())
            .with_distiller(swiglu().no_grad())
            .build(4, &device())
            .unwrap();
        let empty =
            Sampler::builder(config.clone()).with_distiller(Repeat {}).build(4, &device()).unwrap();
        let alive = Sampler::builder(config).with_distiller(swiglu()).build(4, &device()).unwrap();
        for (mut sampler, learns) in [(frozen, false), (empty, false), (alive, true)] {
            let recorder = Shared::default();
            sampler.set_observer(recorder.clone());
            for _ in 0..2 {
                let output = step(
                    &mut sampler,
                    &[row(0, &sampling)],
                    &[[1.0, 2.0, 3.0, 4.0]],
                    &[[4.0, 1.0, 0.0, 2.0]],
                );
                assert_eq!(output.updates, usize::from(learns));
            }
            let losses: Vec<f64> = tokens(&recorder).iter().map(|t| t.loss.unwrap()).collect();
            let counters = *sampler.counters();
            assert_eq!(losses[0] != losses[1], learns, "an update that moved nothing");
            let counted = (counters.updates, counters.rows_learned);
            // The loss is that of the predictions, whether or not anything could be learned from it.
            close("mean loss", counters.mean_loss().unwrap(), (losses[0] + losses[1]) / 2.0);
            assert_eq!(counters.rows_untrained, if learns { 1 } else { 2 });
            if learns {
                assert_eq!(counted, (2, 2));
                assert_eq!(sampler.finish(), Ok(()));
            } else {
                assert_eq!(counted, (0, 0));
                let nothing = TrainError::NothingLearned { eligible: 2, skipped: 0 };
                assert_eq!(sampler.finish(), Err(nothing));
            }
        }
    }
}

/// Doubles every score and expects nothing.
#[derive(Debug)]
struct Double;

impl NoveltyReweighter for Double {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        candidates.rescore(|candidate| 2.0 * candidate.logit);
    }

    fn expects(&self) -> Expects {
        Expects::Nothing
    }
}

#[test]
fn a_reweighter_that_expects_nothing_acts_on_every_token_but_the_first() {
    let double = Sampling::paper().with_custom_reweighter(Double).checked().unwrap();
    let plain = Sampling::paper().with_beta(0.0).checked().unwrap();
    let (mut sampler, recorder) = watched();
    let rows = [row(0, &double), first_token(row(1, &double)), row(2, &plain)];
    step(&mut sampler, &rows, &[ln([4.0, 1.0, 2.0, 3.0]); 3], &[[0.0; 4]; 3]);
    let traces = tokens(&recorder);
    // Of .4, .1, .2 and .3, the squares .16, .01, .04 and .09 sum to .3.
    for (trace, sharpening) in traces.iter().zip([Some(1.0), None, None]) {
        let p = [0.4f64, 0.1, 0.2, 0.3][trace.token as usize];
        let p = if sharpening.is_some() { p * p / 0.3 } else { p };
        close("log_prob", f64::from(trace.log_prob), p.ln());
        assert_eq!(trace.steering, Steering::Off);
        assert_eq!(trace.sharpening.is_some(), sharpening.is_some());
        close("sharpening", trace.sharpening.unwrap_or(0.0), sharpening.unwrap_or(0.0));
    }
}
