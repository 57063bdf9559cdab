//! Distillers that diverge: they start again, affect nothing else, and a run that lost most of what it learned is an
//! error.

use super::{
    sampler_step::{D_MODEL, World, choices, esamp, row},
    traps::{error_of, learner, sampler},
    traps_11_to_20::Scale,
};
use burn::tensor::{DType, Tensor};
use esamp::{
    CheckedSampling, Choice, CompletionId, HiddenStates, LmHead, Sampler, SamplerConfig, Sharing,
    StepInput, TiedHead,
    errors::{StepError, TrainError},
    filters::RowContext,
    optim::{OptimizerConfig, Staleness, TrainingConfig},
    unstable::{ExpectedControl, SlotPath},
};

/// One update takes the paper's distiller out of the range of `f32`.
fn diverging(training: TrainingConfig) -> SamplerConfig {
    SamplerConfig::new().with_optimizer(OptimizerConfig::sgd(1e30)).with_training(training)
}

/// Whether the distiller predicted something finite at each of `steps` steps of one row. Where it did, the prediction
/// must be that of a distiller that has learned nothing.
fn finite_steps(world: &World, sampler: &mut Sampler, steps: usize) -> Vec<bool> {
    let sampling = esamp(0.5);
    let rows = [row(0, 0, &sampling)];
    let step = |context: usize| {
        let choice = &choices(world.step(sampler, &rows, &[context]).unwrap())[0];
        if let Some(novelty) = choice.novelty {
            let fresh = error_of(world, learner().distiller(), context);
            assert!((novelty.error - fresh).abs() < 1e-4, "step {context}: {novelty:?} {fresh}");
        }
        choice.novelty.is_some()
    };
    (0..steps).map(step).collect()
}

#[test]
fn a_diverged_distiller_starts_again() {
    let world = World::new();
    let adaptive = Sharing::Adaptive(Default::default());
    for path in [SlotPath::Stacked, SlotPath::Apart, SlotPath::OneByOne] {
        for sharing in [Sharing::Global, Sharing::PerPrompt, Sharing::PerCompletion, adaptive] {
            let training = TrainingConfig::new().with_slot_path(path);
            let mut sampler = sampler(&diverging(training).with_sharing(sharing));
            let finite = finite_steps(&world, &mut sampler, 8);
            assert_eq!(finite, [true, false].repeat(4), "{path:?} {sharing:?}");
            let counters = sampler.counters();
            assert_eq!((counters.rows_not_finite, counters.predictions_not_finite), (4, 4));
            // Adaptive sharing has two distillers, which diverge together.
            let distillers = if sharing == adaptive { 2 } else { 1 };
            let counted = (counters.updates, counters.restarts, counters.updates_undone);
            assert_eq!(counted, (4 * distillers, 4 * distillers, 4 * distillers));
        }
    }
}

#[test]
fn a_diverged_distiller_starts_again_in_the_background() {
    let world = World::new();
    for sharing in [Sharing::PerPrompt, Sharing::Adaptive(Default::default())] {
        let training = TrainingConfig::new().with_staleness(Staleness::Background);
        let mut sampler = sampler(&diverging(training).with_sharing(sharing));
        // An update is visible one step late: two steps with the initial parameters for one that has diverged.
        let finite = finite_steps(&world, &mut sampler, 12);
        assert_eq!(finite, [true, true, false].repeat(4), "{sharing:?}");
        // The update that is pending at a restart is undone with the other.
        let distillers = if sharing == Sharing::PerPrompt { 1 } else { 2 };
        let (updates, undone) = (8 * distillers, 8 * distillers);
        let lost = TrainError::MostlyLost { eligible: 12, skipped: 4, updates, undone };
        assert_eq!(sampler.finish(), Err(lost), "{sharing:?}");
        assert_eq!(sampler.counters().restarts, 4 * distillers);
    }
}

#[test]
fn a_restart_can_be_switched_off() {
    let world = World::new();
    let mut sampler = sampler(&diverging(TrainingConfig::new().with_restart_diverged(false)));
    let finite = finite_steps(&world, &mut sampler, 6);
    assert_eq!(finite, [true, false, false, false, false, false]);
    let counters = sampler.counters();
    assert_eq!((counters.restarts, counters.updates_undone, counters.updates), (0, 0, 1));
}

#[test]
fn a_run_that_lost_most_of_its_learning_is_told() {
    let world = World::new();
    let mut kept = sampler(&diverging(TrainingConfig::new()));
    finite_steps(&world, &mut kept, 8);
    let expected = TrainError::MostlyLost { eligible: 8, skipped: 4, updates: 4, undone: 4 };
    let wording = "online learning: expected most of 8 eligible rows to be learned from and most of 4 updates to be \
                   kept, got 4 rows skipped as not finite and 4 updates undone by restarts";
    assert_eq!(expected.to_string(), wording);
    assert_eq!(kept.finish(), Err(expected));

    let mut stuck = sampler(&diverging(TrainingConfig::new().with_restart_diverged(false)));
    finite_steps(&world, &mut stuck, 2);
    assert_eq!(stuck.finish(), Ok(()), "half of the rows");
    finite_steps(&world, &mut stuck, 1);
    let expected = TrainError::MostlyLost { eligible: 3, skipped: 2, updates: 1, undone: 0 };
    assert_eq!(stuck.finish(), Err(expected));
}

/// Steering waits for as many updates as at the start.
#[test]
fn a_distiller_that_starts_again_is_untrained() {
    let world = World::new();
    let config = diverging(TrainingConfig::new()).with_updates_before_steering(1);
    let mut sampler = sampler(&config);
    finite_steps(&world, &mut sampler, 8);
    let counters = sampler.counters();
    let rows = (counters.rows_untrained, counters.steered, counters.rows_not_finite);
    assert_eq!(rows, (4, 0, 4));
}

/// A sampler of [`Scale`], `ĥ = w·shallow`, with `w` 1 at first. With all shallow values `s` and all deep values 1.5,
/// an update changes `w` by `−0.2·s·(w·s − 1.5)`: it converges at `s = 1` and diverges at once at `s = 1e15`.
fn scaled(world: &World) -> Sampler {
    Sampler::builder(SamplerConfig::new().with_optimizer(OptimizerConfig::sgd(0.1)))
        .with_distiller(Scale::one())
        .build(D_MODEL, &world.device)
        .unwrap()
}

/// A step of rows `(prompt, index, s)`.
fn step_of(
    world: &World,
    head: &TiedHead,
    sampler: &mut Sampler,
    sampling: &CheckedSampling,
    rows: &[(u64, u64, f32)],
) -> Vec<Choice> {
    let shallow = rows.iter().map(|&(.., s)| Tensor::full([1, D_MODEL], s, &world.device));
    let shallow = Tensor::<2>::cat(shallow.collect(), 0);
    let hidden = HiddenStates::new(shallow.clone(), shallow.full_like(1.5)).unwrap();
    let logits = head.logits(hidden.deep().clone());
    let rows: Vec<_> =
        rows.iter().map(|&(prompt, index, _)| row(prompt, index, sampling)).collect();
    let input = StepInput::new(&rows, logits, head).with_hidden(hidden);
    choices(sampler.step(input).unwrap())
}

fn errors(choices: &[Choice]) -> Vec<Option<f32>> {
    choices.iter().map(|choice| choice.novelty.map(|novelty| novelty.error)).collect()
}

#[test]
fn a_restart_does_not_affect_other_prompts() {
    let (world, sampling) = (World::new(), esamp(0.5));
    let (mut together, mut alone) = (scaled(&world), scaled(&world));
    for at in 0..7 {
        let step = |sampler: &mut Sampler, rows: &[(u64, u64, f32)]| {
            errors(&step_of(&world, &world.head, sampler, &sampling, rows))
        };
        // Prompt 1 ends after its first divergence.
        let both = [(0, 0, 1.0), (1, 1, 1e15)];
        let got = step(&mut together, if at < 2 { &both } else { &both[..1] });
        if at < 2 {
            assert_eq!(got[1].is_some(), at == 0);
        } else if at == 2 {
            together.release(CompletionId::new(1, 1));
        }
        let expected = step(&mut alone, &[(0, 0, 1.0)]);
        assert!((got[0].unwrap() - expected[0].unwrap()).abs() < 1e-5, "step {at}");
    }
    let counters = together.counters();
    assert_eq!((counters.restarts, counters.updates_undone, counters.updates), (1, 1, 8));
    assert_eq!(together.finish(), Ok(()), "one update of eight is not most of them");
}

/// The distiller is not at fault: it predicts the other row of the same step, or nothing could.
#[test]
fn a_row_that_no_distiller_could_predict_does_not_restart_its_distiller() {
    let (world, sampling) = (World::new(), esamp(0.5));
    for outlier in [1e38, f32::NAN, f32::INFINITY] {
        let mut sampler = scaled(&world);
        let mut step = |rows: &[(u64, u64, f32)]| {
            errors(&step_of(&world, &world.head, &mut sampler, &sampling, rows))
        };
        let first = step(&[(0, 0, 1.0), (0, 1, 1.0)]);
        let second = step(&[(0, 0, 1.0), (0, 1, outlier)]);
        assert!(second[0].unwrap() < first[0].unwrap(), "it has learned");
        assert_eq!(second[1], None, "{outlier}");
        if !outlier.is_finite() {
            assert_eq!(step(&[(0, 1, outlier)]), [None], "alone in its step");
        }
        assert_eq!(sampler.counters().restarts, 0, "{outlier}");
        assert_eq!(sampler.counters().updates, 2);
    }
}

/// A prediction of 2e8 is a number in `f32`, but not for a head in `f16`.
#[test]
fn a_prediction_that_is_too_large_for_the_head_restarts_its_distiller() {
    let (world, sampling) = (World::new(), esamp(0.5));
    if !world.device.supports_dtype(DType::F16) {
        return; // ndarray has no half precision
    }
    let head = TiedHead::new(world.head.weight().clone().cast(DType::F16));
    let mut sampler = scaled(&world);
    for at in 0..6 {
        let got = errors(&step_of(&world, &head, &mut sampler, &sampling, &[(0, 0, 1e3)]));
        assert_eq!(got[0].is_some(), at % 2 == 0, "step {at}: {got:?}");
    }
    let counters = sampler.counters();
    assert_eq!((counters.restarts, counters.predictions_not_finite), (3, 0));
}

/// Expects nothing finite.
#[derive(Debug)]
struct Broken;

impl ExpectedControl for Broken {
    fn expected(
        &mut self,
        _rows: &[RowContext<'_>],
        _deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        Ok(predicted.full_like(f32::NAN))
    }
}

#[test]
fn a_control_that_is_not_finite_does_not_restart_distillers() {
    let (world, sampling) = (World::new(), esamp(0.5));
    let mut sampler = scaled(&world);
    let step = |sampler: &mut Sampler| {
        errors(&step_of(&world, &world.head, sampler, &sampling, &[(0, 0, 1.0)]))
    };
    step(&mut sampler);
    sampler.set_expected_control(Broken);
    assert_eq!(step(&mut sampler), [None]);
    assert_eq!((sampler.counters().rows_not_finite, sampler.counters().restarts), (1, 0));
}

/// A warm-up teaches only a prompt's own distiller, so only that one can diverge by it.
#[test]
fn of_two_distillers_only_the_one_that_has_diverged_starts_again() {
    let (world, sampling) = (World::new(), esamp(0.5));
    let config = SamplerConfig::new().with_optimizer(OptimizerConfig::sgd(0.1));
    let mut sampler = Sampler::builder(config.with_sharing(Sharing::Adaptive(Default::default())))
        .with_distiller(Scale::one())
        .build(D_MODEL, &world.device)
        .unwrap();
    let step = |sampler: &mut Sampler| {
        errors(&step_of(&world, &world.head, sampler, &sampling, &[(0, 0, 1.0)]))[0]
    };
    let first = step(&mut sampler).unwrap();
    let shallow = Tensor::full([1, D_MODEL], 1e15, &world.device);
    let prompt = HiddenStates::new(shallow.clone(), shallow.full_like(1.5)).unwrap();
    sampler.warm_up(&[CompletionId::new(0, 0)], &prompt, 1).unwrap();
    assert_eq!(step(&mut sampler), None);
    // One update in the step, and one of the warm-up. The shared distiller keeps its own.
    assert_eq!((sampler.counters().restarts, sampler.counters().updates_undone), (1, 2));
    assert!(step(&mut sampler).unwrap() < first, "a copy of the shared distiller has learned");
}
