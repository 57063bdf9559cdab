//! Learning in the background: it is exactly one step late and deterministic, and its failures are returned to the
//! caller.

use std::sync::{Arc, Mutex, MutexGuard};

use super::{narrow, narrow_distiller};
use crate::device;
use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use esamp::{
    CheckedSampling, CompletionId, Decoder, DrawKey, HiddenStates, LmHead, Phase, Request, Sampler,
    SamplerConfig, Sampling, Sharing, StepInput, StepRow, TiedHead, TokenId,
    distillers::Distiller,
    errors::TrainError,
    optim::{Learner, OptimizerConfig, Staleness, TrainingConfig},
    testing::TinyLm,
};

const D_MODEL: usize = 8;

fn background() -> SamplerConfig {
    let training = TrainingConfig::new().with_staleness(Staleness::Background);
    narrow().with_training(training)
}

fn wave<const D: usize>(shape: [usize; D], phase: f32) -> Tensor<D> {
    let numbers = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.7 + phase).sin());
    Tensor::from_data(TensorData::new(numbers.collect::<Vec<f32>>(), shape), &device())
}

fn hidden(step: usize) -> HiddenStates {
    HiddenStates::new(wave([1, D_MODEL], step as f32), wave([1, D_MODEL], 2.0 * step as f32))
        .unwrap()
}

/// Runs one step with one row and returns the norm of its prediction error.
fn step(sampler: &mut Sampler, sampling: &CheckedSampling, step: usize) -> Result<f32, String> {
    let head = TiedHead::new(wave([12, D_MODEL], 0.3));
    let hidden = hidden(step);
    let row = StepRow::new(CompletionId::new(0, 0), DrawKey::new(7, &[1], 0), &[], &[5], sampling)
        .with_phase(Phase::Decode);
    let logits = head.logits(hidden.deep().clone());
    let rows = [row];
    let input = StepInput::new(&rows, logits, &head).with_hidden(hidden);
    let output = sampler.step(input).map_err(|error| error.to_string())?;
    Ok(output.choices[0].as_ref().unwrap().novelty.unwrap().error)
}

/// The same error for a learner that has seen the first `updates` steps.
fn error_after(updates: usize, step: usize) -> f32 {
    let distiller = narrow_distiller().init(D_MODEL, 0, &device()).unwrap();
    let mut learner = Learner::new(distiller, OptimizerConfig::paper()).unwrap();
    for step in 0..updates {
        drop(learner.update(&hidden(step)));
    }
    let hidden = hidden(step);
    let expected = learner.distiller().predict(hidden.shallow().clone());
    (hidden.deep().clone() - expected).square().sum().sqrt().into_scalar()
}

#[test]
fn a_step_sees_the_update_of_the_step_before_the_last() {
    let sampling = Sampling::paper().checked().unwrap();
    let mut sampler = background().init(D_MODEL, &device()).unwrap();
    for at in 0..6usize {
        let error = step(&mut sampler, &sampling, at).unwrap();
        let expected = error_after(at.saturating_sub(1), at);
        assert!((error - expected).abs() < 1e-5, "step {at}: {error} {expected}");
        let fresher = error_after(at, at);
        assert!(at == 0 || (error - fresher).abs() > 1e-5, "step {at} saw its own past too early");
    }
    assert_eq!(sampler.counters().updates, 5, "the last one is under way");
    sampler.finish().unwrap();
    assert_eq!(sampler.counters().updates, 6);
    assert_eq!(sampler.counters().rows_learned, 6);
    let error = step(&mut sampler, &sampling, 6).unwrap();
    assert!((error - error_after(6, 6)).abs() < 1e-5, "finish removes the lag");
}

fn decode(config: &SamplerConfig) -> (Vec<Vec<TokenId>>, u64) {
    let model = TinyLm::new(3, &device());
    let mut decoder =
        Decoder::new(&model, config.init(TinyLm::D_MODEL, &device()).unwrap()).unwrap();
    let sampling = Sampling::paper().with_beta(1.0);
    for (prompt, length) in [(vec![1, 2, 3], 14), (vec![9], 6), (vec![5, 5], 10)] {
        let request = Request::new(prompt).with_max_new_tokens(length).with_completions(3);
        decoder.submit(request.with_sampling(sampling.clone()).with_seed(5)).unwrap();
    }
    let completions = decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap();
    decoder.sampler_mut().finish().unwrap();
    let shared = matches!(config.sharing, Sharing::Global | Sharing::Adaptive(_));
    assert_eq!(decoder.sampler().distillers(), usize::from(shared));
    (completions.iter().map(|c| c.tokens()).collect(), decoder.sampler().counters().updates)
}

#[test]
fn the_same_tokens_on_every_run() {
    let optimizer = OptimizerConfig::paper().with_learning_rate(1e-2);
    for sharing in [Sharing::PerPrompt, Sharing::Global, Sharing::Adaptive(Default::default())] {
        let config = background().with_sharing(sharing).with_optimizer(optimizer);
        let first = decode(&config);
        for _ in 0..3 {
            assert_eq!(decode(&config), first, "{sharing:?}");
        }
        let inline = config.clone().with_training(TrainingConfig::default());
        let (tokens, updates) = decode(&inline);
        assert_eq!(updates, first.1, "{sharing:?}: no update is lost");
        assert_ne!(tokens, first.0, "{sharing:?}: one step late is not the same");
    }
}

/// Panics at its third update.
#[derive(Module, Debug)]
struct Fragile {
    #[module(skip)]
    calls: Arc<Mutex<usize>>,
}

impl Distiller for Fragile {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow
    }

    fn loss(&self, shallow: Tensor<2>, deep: Tensor<2>) -> Tensor<1> {
        let mut calls = self.calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *calls += 1;
        assert!(*calls < 3, "cannot learn this");
        (shallow - deep).square().mean()
    }
}

#[test]
fn a_panicking_distiller_is_an_error_and_stays_one() {
    let sampling = Sampling::paper().checked().unwrap();
    let distiller = Fragile { calls: Arc::default() };
    let mut sampler =
        Sampler::builder(background()).with_distiller(distiller).build(D_MODEL, &device()).unwrap();
    let results: Vec<_> = (0..6).map(|at| step(&mut sampler, &sampling, at)).collect();
    let message =
        "background learning: expected a running worker, got a panic: cannot learn this".to_owned();
    assert!(results[..3].iter().all(Result::is_ok));
    assert!(results[3..].iter().all(|result| result.as_ref() == Err(&message)), "{results:?}");
    assert!(matches!(sampler.finish(), Err(TrainError::Worker { .. })));
    sampler.reset();
    assert!(step(&mut sampler, &sampling, 0).is_err(), "there is no worker any more");
}

/// Can only learn while the gate is not locked.
#[derive(Module, Debug)]
struct Gated {
    #[module(skip)]
    gate: Arc<Mutex<()>>,
}

impl Distiller for Gated {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow
    }

    fn loss(&self, shallow: Tensor<2>, deep: Tensor<2>) -> Tensor<1> {
        drop(self.gate.lock());
        (shallow - deep).square().mean()
    }
}

#[test]
fn dropping_never_waits_for_the_worker() {
    let gate = Arc::new(Mutex::new(()));
    let closed: MutexGuard<'_, ()> = gate.lock().unwrap();
    let sampling = Sampling::paper().checked().unwrap();
    let distiller = Gated { gate: gate.clone() };
    let mut sampler =
        Sampler::builder(background()).with_distiller(distiller).build(D_MODEL, &device()).unwrap();
    step(&mut sampler, &sampling, 0).unwrap();
    drop(sampler); // the worker is in an update that cannot end before the next line
    drop(closed);
}

#[test]
fn a_caller_may_run_the_worker_on_a_thread_of_its_own() {
    let sampling = Sampling::paper().checked().unwrap();
    let (mut sampler, worker) =
        Sampler::builder(background()).build_with_worker(D_MODEL, &device()).unwrap();
    let thread = std::thread::spawn(move || worker.unwrap().run());
    for at in 0..3 {
        step(&mut sampler, &sampling, at).unwrap();
    }
    sampler.finish().unwrap();
    assert_eq!(sampler.counters().updates, 3);
    drop(sampler);
    thread.join().unwrap();
    let (_, none) =
        Sampler::builder(SamplerConfig::new()).build_with_worker(D_MODEL, &device()).unwrap();
    assert!(none.is_none(), "inline learning needs no worker");
}

#[test]
fn a_worker_that_has_ended_is_an_error() {
    let sampling = Sampling::paper().checked().unwrap();
    let (mut sampler, worker) =
        Sampler::builder(background()).build_with_worker(D_MODEL, &device()).unwrap();
    drop(worker);
    let error = step(&mut sampler, &sampling, 0).unwrap_err();
    assert_eq!(error, "background learning: expected a running worker, got one that has ended");
}

#[test]
fn reset_and_release_reach_the_worker() {
    let sampling = Sampling::paper().checked().unwrap();
    let mut sampler = background().init(D_MODEL, &device()).unwrap();
    let run = |sampler: &mut Sampler| -> Vec<f32> {
        (0..4).map(|at| step(sampler, &sampling, at).unwrap()).collect()
    };
    let first = run(&mut sampler);
    sampler.release(CompletionId::new(0, 0));
    assert_eq!(sampler.distillers(), 0);
    assert_eq!(run(&mut sampler), first, "a released slot comes back fresh");
    sampler.reset();
    assert_eq!(run(&mut sampler), first);
}

#[test]
fn a_warm_up_of_another_prompt_does_not_remove_the_lag() {
    let sampling = Sampling::paper().checked().unwrap();
    let run = |neighbour: bool| -> (Vec<f32>, u64) {
        let mut sampler = background().init(D_MODEL, &device()).unwrap();
        let errors = (0..6).map(|at| {
            if neighbour && at == 3 {
                let done = sampler.warm_up(&[CompletionId::new(9, 9)], &hidden(50), 4).unwrap();
                assert_eq!(done, 4);
            }
            step(&mut sampler, &sampling, at).unwrap()
        });
        let errors = errors.collect();
        sampler.finish().unwrap();
        (errors, sampler.counters().updates)
    };
    assert_eq!(run(true), run(false));
}

/// A warm-up before the first step and another one while an update is pending, against one learner that does the same
/// updates in the order in which both copies must do them.
#[test]
fn the_worker_learns_on_top_of_every_warm_up() {
    #[derive(Clone, Copy)]
    enum Update {
        Step(usize),
        WarmUp,
    }
    use Update::{Step, WarmUp};
    let error_after = |updates: &[Update], at: usize| -> f32 {
        let distiller = narrow_distiller().init(D_MODEL, 0, &device()).unwrap();
        let mut learner = Learner::new(distiller, OptimizerConfig::paper()).unwrap();
        for update in updates {
            let (states, times) = match update {
                Step(step) => (hidden(*step), 1),
                WarmUp => (hidden(50), 3),
            };
            for _ in 0..times {
                drop(learner.update(&states));
            }
        }
        let hidden = hidden(at);
        let expected = learner.distiller().predict(hidden.shallow().clone());
        (hidden.deep().clone() - expected).square().sum().sqrt().into_scalar()
    };
    let sampling = Sampling::default().checked().unwrap();
    let mut sampler = background().init(D_MODEL, &device()).unwrap();
    let mut done = Vec::new();
    for at in 0..7usize {
        if at == 0 || at == 3 {
            // The update of step 2 is pending here: it comes before the warm-up, but is not visible yet.
            sampler.warm_up(&[CompletionId::new(0, 0)], &hidden(50), 3).unwrap();
            done.push(WarmUp);
        }
        let pending = at.checked_sub(1);
        let is_visible = |update: &&Update| !matches!(update, Step(step) if Some(*step) == pending);
        let visible: Vec<Update> = done.iter().filter(is_visible).copied().collect();
        let error = step(&mut sampler, &sampling, at).unwrap();
        let expected = error_after(&visible, at);
        assert!((error - expected).abs() < 1e-5, "step {at}: {error} {expected}");
        done.push(Step(at));
    }
    sampler.finish().unwrap();
    let error = step(&mut sampler, &sampling, 7).unwrap();
    assert!((error - error_after(&done, 7)).abs() < 1e-5);
}

#[test]
fn a_warm_up_is_visible_at_once_and_stays() {
    let sampling = Sampling::paper().checked().unwrap();
    let errors = |config: SamplerConfig| -> Vec<f32> {
        let mut sampler = config.init(D_MODEL, &device()).unwrap();
        sampler.warm_up(&[CompletionId::new(0, 0)], &hidden(1), 6).unwrap();
        (0..4).map(|at| step(&mut sampler, &sampling, at).unwrap()).collect()
    };
    let (late, now) = (errors(background()), errors(narrow()));
    assert!((late[0] - now[0]).abs() < 1e-6, "the first step sees the warm-up");
    assert!((late[1] - now[1]).abs() > 1e-6, "and the second does not see the first");
    let unwarmed: Vec<f32> = {
        let mut sampler = background().init(D_MODEL, &device()).unwrap();
        (0..4).map(|at| step(&mut sampler, &sampling, at).unwrap()).collect()
    };
    assert!(late.iter().zip(&unwarmed).all(|(a, b)| (a - b).abs() > 1e-6), "{late:?} {unwarmed:?}");
}
