//! What a control of the expected states changes, and what it leaves alone.

use std::sync::{Arc, Mutex};

use burn::tensor::Tensor;
use esamp::{
    Choice, CompletionId, Counters, DrawKey, HiddenStates, LmHead, Sampler, SamplerConfig, Sharing,
    StepInput, errors::StepError, filters::RowContext, unstable::ExpectedControl,
};

use crate::golden::tolerance;

use super::sampler_step::{D_MODEL, World, choices, esamp, first_token, log_softmax, row};

/// The distiller's error with its sign changed. Notes which rows it was given.
#[derive(Clone, Debug, Default)]
struct Opposite {
    rows: Arc<Mutex<Vec<CompletionId>>>,
}

impl ExpectedControl for Opposite {
    fn expected(
        &mut self,
        rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        assert_eq!((deep.dims(), predicted.dims()), ([rows.len(), D_MODEL], [rows.len(), D_MODEL]));
        self.rows.lock().unwrap().extend(rows.iter().map(|row| row.completion));
        let error = deep.clone() - predicted;
        Ok(deep.clone() + error)
    }
}

/// A device that fails.
#[derive(Debug)]
struct Failing;

impl ExpectedControl for Failing {
    fn expected(
        &mut self,
        _rows: &[RowContext<'_>],
        _deep: &Tensor<2>,
        _predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        Err(StepError::Device("out of memory".to_owned()))
    }
}

fn sampler() -> Sampler {
    SamplerConfig::new()
        .with_sharing(Sharing::PerCompletion)
        .init(D_MODEL, &crate::device())
        .unwrap()
}

fn controlled(control: impl ExpectedControl + 'static) -> Sampler {
    let mut sampler = sampler();
    sampler.set_expected_control(control);
    sampler
}

/// 20 steps of 4 rows.
fn run(mut sampler: Sampler) -> (Vec<Choice>, Counters) {
    let world = World::new();
    let sampling = esamp(1.0);
    let rows: Vec<_> = (0..4).map(|request| row(request / 2, request, &sampling)).collect();
    let mut all = Vec::new();
    for step in 0..20 {
        let contexts: Vec<usize> = (0..4).map(|row| row * 5 + step).collect();
        all.extend(choices(world.step(&mut sampler, &rows, &contexts).unwrap()));
    }
    (all, *sampler.counters())
}

#[test]
fn what_is_learned_and_measured_is_the_same_bit_for_bit() {
    let (own, counters) = run(sampler());
    let (other, other_counters) = run(controlled(Opposite::default()));
    let novelty = |all: &[Choice]| -> Vec<_> { all.iter().map(|c| c.novelty.unwrap()).collect() };
    assert_eq!(novelty(&own), novelty(&other));
    assert_eq!(other_counters.loss_sum, counters.loss_sum);
    assert_eq!(other_counters.updates, counters.updates);
    let differ = own.iter().zip(&other).filter(|(a, b)| a.log_prob != b.log_prob).count();
    assert!(differ > 70, "scores change: {differ} of 80");
}

#[test]
fn scores_are_those_of_the_states_that_it_gives() {
    let world = World::new();
    let sampling = esamp(1.0);
    let distiller = esamp::distillers::SwiGluConfig::new().init(D_MODEL, 0, &world.device).unwrap();
    let hidden = world.hidden(&[0, 1]);
    let predicted = esamp::distillers::Distiller::predict(&distiller, hidden.shallow().clone());
    let reference = world.head.logits(hidden.deep().clone());
    // (1 + β)·ref − β·head(deep + e) = ref − β·head(e) for β = 1 and a head without bias
    let fused = reference - world.head.logits(hidden.deep().clone() - predicted);
    let fused: Vec<f32> = fused.into_data().try_into_vec().unwrap();
    let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
    let mut sampler = controlled(Opposite::default());
    let got = choices(world.step(&mut sampler, &rows, &[0, 1]).unwrap());
    for (choice, fused) in got.iter().zip(fused.chunks(fused.len() / 2)) {
        let difference = f64::from(choice.log_prob - log_softmax(fused, choice.token)).abs();
        assert!(difference < tolerance(&world.device, 1e-4), "{difference:e}");
    }
}

#[test]
fn it_is_given_the_rows_that_have_a_distiller_in_their_order() {
    let world = World::new();
    let (steered, plain) = (esamp(1.0), esamp(0.0));
    let rows = [row(0, 4, &steered), row(0, 1, &plain), first_token(row(0, 2, &steered)), {
        let mut row = row(1, 3, &steered);
        row.draw = DrawKey::new(9, &[], 0);
        row
    }];
    let control = Opposite::default();
    world.step(&mut controlled(control.clone()), &rows, &[0, 1, 2, 3]).unwrap();
    assert_eq!(*control.rows.lock().unwrap(), [CompletionId::new(0, 4), CompletionId::new(1, 3)]);
}

#[test]
fn a_row_that_is_not_finite_spoils_nobody_elses_scores() {
    let world = World::new();
    let sampling = esamp(1.0);
    let mut sampler = controlled(Opposite::default());
    let clean = world.hidden(&[0, 1, 2]);
    let nan = Tensor::<2>::full([1, 1], f32::NAN, &world.device);
    let shallow = clean.shallow().clone().slice_assign([1..2, 0..1], nan);
    let hidden = HiddenStates::new(shallow, clean.deep().clone()).unwrap();
    let logits = world.head.logits(clean.deep().clone());
    let rows: Vec<_> = (0..3).map(|request| row(0, request, &sampling)).collect();
    let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
    let got = choices(sampler.step(input).unwrap());
    let has: Vec<bool> = got.iter().map(|choice| choice.novelty.is_some()).collect();
    assert_eq!(has, [true, false, true]);
    assert_eq!(sampler.counters().rows_learned, 2);
}

#[test]
fn its_error_is_the_steps() {
    let world = World::new();
    let sampling = esamp(1.0);
    let mut sampler = controlled(Failing);
    let error = world.step(&mut sampler, &[row(0, 0, &sampling)], &[0]).unwrap_err();
    assert_eq!(error.to_string(), "device: out of memory");
    assert_eq!(sampler.counters().updates, 0);
}
