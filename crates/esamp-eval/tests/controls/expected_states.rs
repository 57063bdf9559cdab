//! Controls on the distiller's error.

use burn::tensor::{Device, Tensor};
use esamp::{
    CheckedSampling, Choice, CompletionId, Counters, HiddenStates, LmHead, Sampler, SamplerConfig,
    Sampling, Sharing, StepInput, StepRow, unstable::ExpectedControl,
};
use esamp_eval::controls::{GaussianError, ShuffledErrors};

use crate::world::{D_MODEL, World, choices, esamp, log_softmax, row};

fn sampler() -> Sampler {
    SamplerConfig::new()
        .with_sharing(Sharing::PerCompletion)
        .init(D_MODEL, &Device::flex())
        .unwrap()
}

fn controlled(control: impl ExpectedControl + 'static) -> Sampler {
    let mut sampler = sampler();
    sampler.set_expected_control(control);
    sampler
}

fn rows(sampling: &CheckedSampling, count: u64) -> Vec<StepRow<'_>> {
    (0..count).map(|request| row(request / 2, request, sampling)).collect()
}

/// 20 steps of 4 rows.
fn run(mut sampler: Sampler) -> (Vec<Choice>, Counters) {
    let world = World::new();
    let sampling = esamp(1.0);
    let mut all = Vec::new();
    for step in 0..20 {
        let contexts: Vec<usize> = (0..4).map(|row| row * 5 + step).collect();
        all.extend(choices(world.step(&mut sampler, &rows(&sampling, 4), &contexts).unwrap()));
    }
    (all, *sampler.counters())
}

#[test]
fn what_is_learned_and_measured_is_the_same_bit_for_bit() {
    let (own, counters) = run(sampler());
    for (name, control) in [
        ("gaussian", controlled(GaussianError)),
        ("shuffled", controlled(ShuffledErrors::default())),
    ] {
        let (other, other_counters) = run(control);
        let novelty =
            |all: &[Choice]| -> Vec<_> { all.iter().map(|c| c.novelty.unwrap()).collect() };
        assert_eq!(novelty(&own), novelty(&other), "{name}");
        assert_eq!(other_counters.loss_sum, counters.loss_sum);
        assert_eq!(other_counters.updates, counters.updates);
        let differ = own.iter().zip(&other).filter(|(a, b)| a.log_prob != b.log_prob).count();
        assert!(differ > 70, "{name} changes scores: {differ} of 80");
    }
}

#[test]
fn a_shuffled_error_is_the_next_rows() {
    let world = World::new();
    let sampling = esamp(1.0);
    let distiller = esamp::distillers::SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let hidden = world.hidden(&[0, 1, 2]);
    let predicted = esamp::distillers::Distiller::predict(&distiller, hidden.shallow().clone());
    let error = hidden.deep().clone() - predicted;
    let next = Tensor::cat(
        vec![error.clone().slice([1..3, 0..D_MODEL]), error.slice([0..1, 0..D_MODEL])],
        0,
    );
    let reference = world.head.logits(hidden.deep().clone());
    // (1 + β)·ref − β·head(deep − e') = ref + β·head(e') for β = 1 and a head without bias
    let fused = reference + world.head.logits(next);
    let fused: Vec<f32> = fused.into_data().try_into_vec().unwrap();
    let shuffled = ShuffledErrors::default();
    let mut sampler = controlled(shuffled.clone());
    let got = choices(world.step(&mut sampler, &rows(&sampling, 3), &[0, 1, 2]).unwrap());
    for (choice, fused) in got.iter().zip(fused.chunks(fused.len() / 3)) {
        assert!((choice.log_prob - log_softmax(fused, choice.token)).abs() < 1e-4);
    }
    assert_eq!(shuffled.not_shuffled(), 0);
}

#[test]
fn a_single_row_keeps_its_own_error_and_is_counted() {
    let world = World::new();
    let sampling = esamp(1.0);
    let control = ShuffledErrors::default();
    let (mut plain, mut shuffled) = (sampler(), controlled(control.clone()));
    for step in 0..10 {
        let a = &choices(world.step(&mut plain, &rows(&sampling, 1), &[step]).unwrap())[0];
        let b = &choices(world.step(&mut shuffled, &rows(&sampling, 1), &[step]).unwrap())[0];
        assert_eq!(a.token, b.token);
        assert!((a.log_prob - b.log_prob).abs() < 1e-5);
    }
    assert_eq!(control.not_shuffled(), 10);
}

#[test]
fn a_row_that_is_not_finite_does_not_affect_other_rows_errors() {
    let world = World::new();
    let sampling = esamp(1.0);
    for mut sampler in [controlled(GaussianError), controlled(ShuffledErrors::default())] {
        let clean = world.hidden(&[0, 1, 2]);
        let nan = Tensor::<2>::full([1, 1], f32::NAN, &world.device);
        let shallow = clean.shallow().clone().slice_assign([1..2, 0..1], nan);
        let hidden = HiddenStates::new(shallow, clean.deep().clone()).unwrap();
        let logits = world.head.logits(clean.deep().clone());
        let rows = rows(&sampling, 3);
        let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
        let got = choices(sampler.step(input).unwrap());
        let has: Vec<bool> = got.iter().map(|choice| choice.novelty.is_some()).collect();
        assert_eq!(has, [true, false, true]);
        assert_eq!(sampler.counters().rows_learned, 2);
    }
}

#[test]
fn gaussian_errors_do_not_depend_on_the_other_rows() {
    let world = World::new();
    let sampling = Sampling::default().with_beta(1.0).with_top_k(3).checked().unwrap();
    let rows = rows(&sampling, 4);
    let step = |places: &[usize]| {
        let rows: Vec<_> = places.iter().map(|&place| rows[place]).collect();
        choices(world.step(&mut controlled(GaussianError), &rows, places).unwrap())
    };
    let together = step(&[0, 1, 2, 3]);
    for (place, together) in together.iter().enumerate() {
        let alone = &step(&[place])[0];
        assert_eq!(alone.token, together.token);
        assert!((alone.log_prob - together.log_prob).abs() < 1e-4);
    }
    let moved = {
        let mut row = rows[0];
        row.id = CompletionId::new(9, 9);
        row
    };
    let again = choices(world.step(&mut controlled(GaussianError), &[moved], &[0]).unwrap());
    assert_eq!(again[0].token, together[0].token, "the stream belongs to the draw, not to the id");
}
