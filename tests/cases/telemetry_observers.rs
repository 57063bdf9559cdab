//! Observers of a whole decode loop.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use super::{
    narrow,
    telemetry::{Shared, row, step, tokens, watched},
};
use crate::device;
use esamp::{
    CausalLm, Choice, Completion, Counters, Decoder, Request, Sampler, SamplerConfig, Sampling,
    Sharing, TemperatureOrder,
    telemetry::{Observer, RowTrace, Steering},
    testing::TinyLm,
    unstable::SlotKey,
};

/// Requests of all kinds (greedy, filtered, plain, cold and hot), which join while others run.
fn run(seed: u64, sharing: Sharing, observer: Option<Shared>) -> (Vec<Completion>, Counters) {
    let model = TinyLm::new(seed, &device());
    let config = narrow().with_sharing(sharing);
    let sampler = config.init(model.d_model(), &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    if let Some(observer) = observer {
        decoder = decoder.with_observer(observer);
    }
    let base = Sampling::paper;
    let settings = [
        base(),
        base().with_beta(1.0).with_min_p(0.05),
        base().with_beta(0.0).with_top_k(5),
        base().with_beta(2.0).with_temperature(0.0),
        base().with_temperature(1.5).with_top_p(0.7),
        base()
            .with_temperature(0.7)
            .with_temperature_order(TemperatureOrder::AfterFilters)
            .with_min_p(0.1)
            .with_top_k(9),
    ];
    for (i, setting) in settings.iter().enumerate() {
        let request = Request::new(vec![seed as u32 % 64, i as u32])
            .with_completions(1 + (seed as usize + i) % 3)
            .with_max_new_tokens(2 + (seed as usize * 7 + i * 5) % 9)
            .with_seed(seed)
            .with_sampling(setting.clone());
        decoder.submit(request).unwrap();
        decoder.step().unwrap();
    }
    let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
    let counters = *decoder.sampler().counters();
    (completions, counters)
}

#[test]
fn an_observer_changes_nothing() {
    for seed in 0..3 {
        let (plain, plain_counters) = run(seed, Sharing::PerPrompt, None);
        let recorder = Shared::default();
        let (watched, mut counters) = run(seed, Sharing::PerPrompt, Some(recorder.clone()));
        let choices = |completions: &[Completion]| -> Vec<Choice> {
            completions.iter().flat_map(|completion| completion.choices.clone()).collect()
        };
        assert_eq!(choices(&plain), choices(&watched)); // exact equality of f32
        assert!(!recorder.lock().unwrap().records().is_empty());
        // The only difference is in the counters that need an observer.
        assert_eq!((plain_counters.observed, plain_counters.mass_outside), (0, 0.0));
        assert_eq!(plain_counters.mean_mass_outside(), None);
        assert!(counters.mass_outside > 0.0);
        (counters.observed, counters.mass_outside) = (0, 0.0);
        assert_eq!(plain_counters, counters);
    }
}

#[test]
fn counters_are_the_sums_of_the_traces() {
    for (seed, sharing) in [
        (1, Sharing::PerPrompt),
        (2, Sharing::Global),
        (3, Sharing::PerCompletion),
        (4, Sharing::PerPrompt),
    ] {
        let recorder = Shared::default();
        let (completions, counters) = run(seed, sharing, Some(recorder.clone()));
        let recorder = recorder.lock().unwrap();
        let traces: Vec<&RowTrace> = recorder.tokens().collect();
        let steps: Vec<_> = recorder.steps().collect();
        let count = |holds: &dyn Fn(&RowTrace) -> bool| -> u64 {
            traces.iter().filter(|trace| holds(trace)).count() as u64
        };
        let sum = |number: &dyn Fn(&RowTrace) -> Option<f64>| -> f64 {
            traces.iter().filter_map(|trace| number(trace)).sum()
        };
        let same = |what: &str, got: f64, expected: f64| {
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{what}: {got}, {expected}");
        };
        let is = |steering| count(&|trace| trace.steering == steering);
        assert_eq!(counters.tokens, traces.len() as u64);
        assert_eq!(counters.observed, counters.tokens);
        assert_eq!(counters.steps, steps.len() as u64);
        assert_eq!(counters.steered, is(Steering::Steered));
        assert_eq!(counters.rows_untrained, is(Steering::Untrained));
        assert_eq!(counters.rows_not_finite, is(Steering::NotFinite));
        assert_eq!(
            counters.eligible,
            counters.steered + counters.rows_untrained + counters.rows_not_finite
        );
        assert_eq!(counters.rows_learned, count(&|trace| trace.loss.is_some()));
        let changed = |trace: &RowTrace| {
            trace.steering == Steering::Steered && trace.unsteered_token != Some(trace.token)
        };
        assert_eq!(counters.interventions, count(&changed));
        assert!(counters.interventions > 0, "steering did something");
        same("candidates", counters.candidates as f64, sum(&|t| Some(t.candidates as f64)));
        same("mass", counters.mass_outside, sum(&|t| Some(t.mass_outside)));
        let steered = |t: &RowTrace| t.steering == Steering::Steered;
        let novelty = |t: &RowTrace| t.novelty.filter(|_| steered(t)).map(f64::from);
        same("novelty", counters.novelty_sum, sum(&novelty));
        let relative = |t: &RowTrace| t.relative_novelty.filter(|_| steered(t));
        same("relative", counters.relative_novelty_sum, sum(&relative));
        same("loss", counters.loss_sum, sum(&|t| t.loss));
        assert_eq!(counters.updates, steps.iter().map(|step| step.updates as u64).sum::<u64>());
        assert_eq!(steps.last().unwrap().counters, counters);

        // The loss of a step is the mean over its rows, and over its slots weighted by their rows.
        for (at, step) in steps.iter().enumerate() {
            assert_eq!((step.step, step.counters.steps), (at as u64, at as u64 + 1));
            let losses: Vec<f64> =
                traces.iter().filter(|t| t.step == step.step).filter_map(|t| t.loss).collect();
            assert_eq!(step.slots.iter().map(|s| s.rows).sum::<usize>(), losses.len());
            assert_eq!(step.updates, step.slots.len(), "one update for each distiller with rows");
            let Some(loss) = step.loss else {
                assert!(losses.is_empty());
                continue;
            };
            same("step", loss, losses.iter().sum::<f64>() / losses.len() as f64);
            let weighted: f64 = step.slots.iter().map(|s| s.loss * s.rows as f64).sum();
            same("slots", loss, weighted / losses.len() as f64);
            if sharing == Sharing::Global {
                assert_eq!(step.slots[0].slot, SlotKey::Everyone);
            }
        }

        // Every trace agrees with the choice that the caller received.
        for completion in &completions {
            let mine = traces.iter().filter(|trace| trace.completion == completion.id);
            for ((position, choice), trace) in completion.choices.iter().enumerate().zip(mine) {
                assert_eq!((trace.position, trace.token), (position as u64, choice.token));
                assert_eq!(
                    (trace.log_prob, trace.candidates),
                    (choice.log_prob, choice.candidates)
                );
                assert_eq!(trace.novelty, choice.novelty.map(|novelty| novelty.error));
                assert!(trace.kl >= 0.0 && trace.rank < trace.candidates);
                assert!(trace.reference_rank < trace.candidates);
                if trace.temperature == 0.0 {
                    assert_eq!(trace.rank, 0, "greedy takes the best");
                }
                if trace.steering != Steering::Steered {
                    assert_eq!((trace.kl, trace.entropy), (0.0, trace.reference_entropy));
                    assert_eq!(trace.rank, trace.reference_rank);
                }
            }
        }
    }
}

#[test]
fn closures_observe_and_an_observer_can_be_taken_back() {
    let sampling = Sampling::paper().checked().unwrap();
    let (mut sampler, recorder) = watched();
    let one = |sampler: &mut Sampler| {
        step(sampler, &[row(0, &sampling)], &[[1.0, 0.0, 0.0, 0.0]], &[[0.0; 4]]);
    };
    one(&mut sampler);
    sampler.reset();
    one(&mut sampler);
    let steps: Vec<u64> = tokens(&recorder).iter().map(|trace| trace.step).collect();
    assert_eq!(steps, [0, 0], "a reset keeps the observer and counts from 0");
    let taken = sampler.take_observer();
    assert!(taken.is_some() && sampler.take_observer().is_none());
    let model = TinyLm::new(1, &device());
    let of_the_model = SamplerConfig::new().init(TinyLm::D_MODEL, &device()).unwrap();
    let decoder = Decoder::new(&model, of_the_model).unwrap();
    let mut decoder = decoder.with_observer(Shared::default());
    assert!(decoder.take_observer().is_some() && decoder.take_observer().is_none());
    one(&mut sampler);
    assert_eq!(tokens(&recorder).len(), 2);

    let count = Arc::new(Mutex::new(0));
    let inside = count.clone();
    sampler.set_observer(move |_: &RowTrace| *inside.lock().unwrap() += 1);
    one(&mut sampler);
    one(&mut sampler);
    assert_eq!(*count.lock().unwrap(), 2);
}

#[test]
fn an_observer_receives_tokens_in_row_order_and_then_the_step() {
    struct Order(Arc<Mutex<Vec<String>>>);
    impl Observer for Order {
        fn token(&mut self, trace: &RowTrace) {
            self.0.lock().unwrap().push(trace.completion.to_string());
        }
        fn step(&mut self, trace: &esamp::telemetry::StepTrace) {
            self.0
                .lock()
                .unwrap()
                .push(format!("step {}: {} rows, {} failed", trace.step, trace.rows, trace.failed));
        }
    }
    let sampling = Sampling::paper().checked().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut sampler, _) = watched();
    sampler.set_observer(Order(seen.clone()));
    step(&mut sampler, &[row(8, &sampling), row(3, &sampling)], &[[0.0; 4]; 2], &[[0.0; 4]; 2]);
    let expected =
        ["completion 8 of prompt 0", "completion 3 of prompt 0", "step 0: 2 rows, 0 failed"];
    assert_eq!(*seen.lock().unwrap(), expected);
}
