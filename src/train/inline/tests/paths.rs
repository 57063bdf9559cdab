//! The fast paths against their oracle.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use burn::module::Module;

use super::*;
use crate::distiller::{ForwardPass, Gradient, LowRankConfig, StackedDistiller, SwiGluDistiller};

/// Runs prompts that start, pause and end, with different numbers of rows, in every order.
fn eventful(trainer: &mut dyn OnlineTrainer, device: &Device) -> (Vec<Vec<f32>>, Vec<u64>) {
    let script: [&[(u64, u64)]; 9] = [
        &[(0, 0), (0, 1)],
        &[(0, 0), (1, 2), (0, 1), (1, 3), (1, 4)],
        &[(1, 3), (1, 2), (0, 1)],
        &[(1, 4)],
        &[(2, 5), (0, 0), (1, 2)],
        &[(0, 0), (2, 5)], // prompt 1 pauses, then ends
        &[(3, 6), (2, 5), (0, 0)],
        &[(2, 5), (3, 6), (3, 7)],
        &[(0, 0), (2, 5), (3, 6), (3, 7)],
    ];
    let mut seen = Vec::new();
    for (step, rows) in script.iter().enumerate() {
        if step == 6 {
            for request in 2..5 {
                trainer.release(CompletionId::new(1, request));
            }
        }
        let rows: Vec<CompletionId> = rows.iter().map(|&(p, r)| CompletionId::new(p, r)).collect();
        let hidden = hidden(rows.len(), step as f32, device);
        seen.push(values(trainer.predict(&rows, hidden.shallow()).unwrap().expected));
        trainer.learn(&rows, &hidden, &[]).unwrap();
    }
    let state = trainer.export().unwrap();
    let mut updates = Vec::new();
    for slot in state.slots {
        updates.push(slot.state.updates);
        seen.extend(slot.state.tensors.unwrap().parameters.into_iter().map(values));
    }
    (seen, updates)
}

/// The fast path against its oracle: all architectures, update rules, reductions and update intervals.
#[test]
fn stacked_slots_are_separate_slots() {
    let swiglu = |norm, start| {
        let config = SwiGluConfig::new().with_d_hidden(5);
        config.with_source_norm(norm).with_output_start(start)
    };
    for device in devices() {
        let swiglu = [
            swiglu(SourceNorm::Rms, OutputStart::Zero),
            swiglu(SourceNorm::None, OutputStart::FanIn),
        ]
        .map(|config| config.init(12, 3, &device).unwrap());
        let low_rank = LowRankConfig::new().with_rank(3);
        let low_rank = low_rank.with_source_norm(SourceNorm::Rms).init(12, 4, &device).unwrap();
        let ridge = LowRankConfig::new()
            .with_rank(3)
            .with_start(LowRankStart::Ridge { rows: 4, lambda: 1e-2 });
        let ridge = ridge.init(12, 4, &device).unwrap();
        let rate = 0.01;
        let optimizers = [
            OptimizerConfig::paper().with_learning_rate(rate),
            OptimizerConfig::adam_w(1e-3).with_schedule(Schedule::RampUp { updates: 3 }),
            OptimizerConfig::momentum(rate, 0.9).with_loss(LossReduction::Sum),
            OptimizerConfig::sgd(rate).with_max_grad_norm(0.1),
        ];
        let configs = [
            TrainingConfig::default(),
            TrainingConfig::new().with_update_every(2),
            TrainingConfig::new().with_train_rows(TrainRows::FirstPerPrompt),
        ];
        for sharing in [Sharing::PerPrompt, Sharing::PerCompletion, Sharing::Global] {
            for optimizer in optimizers {
                for config in configs {
                    agree(&swiglu[0], optimizer, sharing, config, &device);
                    agree(&swiglu[1], optimizer, sharing, config, &device);
                    agree(&low_rank, optimizer, sharing, config, &device);
                    agree(&ridge, optimizer, sharing, config, &device);
                }
            }
        }
    }
}

fn agree<D: Distiller>(
    distiller: &D,
    optimizer: OptimizerConfig,
    sharing: Sharing,
    config: TrainingConfig,
    device: &Device,
) {
    let stacked = StackedSlots::new(distiller, optimizer).unwrap();
    let apart = ApartSlots::new(stacked.clone());
    let separate = SeparateSlots::new(distiller.clone(), optimizer);
    let slow = eventful(&mut InlineTrainer::new(separate, sharing, config), device);
    for fast in [
        eventful(&mut InlineTrainer::new(stacked, sharing, config), device),
        eventful(&mut InlineTrainer::new(apart, sharing, config), device),
    ] {
        assert_eq!(fast.1, slow.1, "updates");
        assert_eq!(fast.0.len(), slow.0.len());
        // Predictions agree to 1e-5, and so do parameters, except with Adam: its step does not depend on the size of
        // the gradient, even if the gradient is a rounding error. There the tolerance is 1e-4.
        let steps = 9;
        let parameters = match optimizer.rule {
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => 1e-4,
            _ => 1e-5,
        };
        for (at, (fast, slow)) in fast.0.iter().zip(&slow.0).enumerate() {
            let tolerance = if at < steps { 1e-5 } else { parameters };
            let largest = slow.iter().fold(0.0f32, |a, b| a.max(b.abs())).max(1e-2);
            for (fast, slow) in fast.iter().zip(slow) {
                let close = (fast - slow).abs() <= tolerance * largest;
                assert!(close, "{at}: {fast} {slow} {optimizer:?} {sharing:?} {config:?}");
            }
        }
    }
}

/// How often the network below computed gradients from a forward pass of its own.
static FORWARD_AGAIN: AtomicUsize = AtomicUsize::new(0);

/// The paper's distiller, counted.
#[derive(Module, Debug)]
struct Counted {
    network: SwiGluDistiller,
}

impl Distiller for Counted {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        self.network.predict(shallow)
    }

    fn stacked(&self) -> Option<Arc<dyn StackedDistiller>> {
        Some(Arc::new(CountedStack(self.network.stacked()?)))
    }
}

#[derive(Debug)]
struct CountedStack(Arc<dyn StackedDistiller>);

impl StackedDistiller for CountedStack {
    fn predict(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
        self.0.predict(parameters, shallow)
    }

    fn gradients(
        &self,
        parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        FORWARD_AGAIN.fetch_add(1, Relaxed);
        self.0.gradients(parameters, shallow, deep, weight)
    }

    fn forward(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> ForwardPass {
        self.0.forward(parameters, shallow)
    }

    fn gradients_after(
        &self,
        pass: ForwardPass,
        parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        self.0.gradients_after(pass, parameters, shallow, deep, weight)
    }
}

/// An update after the prediction of the same rows starts from what that has computed, and changes the same bits as one
/// that computes it again: after a prediction of other rows, of some of the rows, or with other parameters.
#[test]
fn an_update_starts_from_the_prediction_of_its_rows() {
    let device = Device::flex();
    let network = SwiGluConfig::new().with_d_hidden(5).init(12, 3, &device).unwrap();
    let optimizer = OptimizerConfig::adam_w(1e-3);
    let counted = StackedSlots::new(&Counted { network }, optimizer).unwrap();
    let rows: Vec<CompletionId> = (0..3).map(|i| CompletionId::new(i / 2, i)).collect();
    let state = |trainer: &mut dyn OnlineTrainer| -> Vec<Vec<f32>> {
        let slots = trainer.export().unwrap().slots.into_iter();
        let of = |tensors: SlotTensors| [tensors.parameters, tensors.first, tensors.second];
        slots.flat_map(|slot| of(slot.state.tensors.unwrap())).flatten().map(values).collect()
    };
    let run = |between: &dyn Fn(&mut dyn OnlineTrainer, f32)| {
        let slots = ApartSlots::new(counted.clone());
        let mut trainer = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
        let before = FORWARD_AGAIN.load(Relaxed);
        for step in 0..4 {
            let hidden = hidden(rows.len(), step as f32, &device);
            trainer.predict(&rows, hidden.shallow()).unwrap();
            between(&mut trainer, step as f32);
            trainer.learn(&rows, &hidden, &[]).unwrap();
        }
        (state(&mut trainer), FORWARD_AGAIN.load(Relaxed) - before)
    };
    let (at_once, computed) = run(&|_, _| {});
    assert_eq!(computed, 0, "eight updates");
    let other = |trainer: &mut dyn OnlineTrainer, step: f32| {
        let other = hidden(rows.len(), step + 0.5, &device);
        trainer.predict(&rows, other.shallow()).unwrap();
    };
    let some = |trainer: &mut dyn OnlineTrainer, step: f32| {
        let all = hidden(rows.len(), step, &device);
        trainer.predict(&rows[..1], all.at(&[0]).shallow()).unwrap();
    };
    let restored = |trainer: &mut dyn OnlineTrainer, _| {
        let state = trainer.export().unwrap();
        trainer.import(state).unwrap();
    };
    assert_eq!(run(&other), (at_once.clone(), 8));
    assert_eq!(run(&some), (at_once.clone(), 4), "only one of the two slots");
    assert_eq!(run(&restored), (at_once, 8));
}

/// Slots that are computed at the same time, each on one thread, have the bits of slots that are computed alone.
#[test]
fn slots_on_several_threads_are_those_of_one_thread() {
    let device = Device::flex();
    let distiller = LowRankConfig::new().init(576, 4, &device).unwrap();
    let stacked = StackedSlots::new(&distiller, OptimizerConfig::paper()).unwrap();
    let trainer = || {
        let slots = ApartSlots::new(stacked.clone());
        InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default())
    };
    let (mut together, mut alone) = (trainer(), trainer());
    let rows: Vec<CompletionId> = (0..20).map(|i| CompletionId::new(i % 5, i)).collect();
    let d = 576;
    let states = |step: f32| {
        let wave = |scale: f32| {
            let numbers = (0..rows.len() * d).map(|i| (i as f32 * scale + step).sin());
            let numbers: Vec<f32> = numbers.collect();
            Tensor::<1>::from_data(numbers.as_slice(), &device).reshape([rows.len(), d])
        };
        HiddenStates::new(wave(0.37), wave(0.91)).unwrap()
    };
    for step in 0..3 {
        let states = states(step as f32);
        let expected = values(together.predict(&rows, states.shallow()).unwrap().expected);
        together.learn(&rows, &states, &[]).unwrap();
        for prompt in 0..5 {
            let at: Vec<usize> = (0..rows.len()).filter(|at| at % 5 == prompt).collect();
            let ids: Vec<CompletionId> = at.iter().map(|&at| rows[at]).collect();
            let some = states.at(&at);
            let got = values(alone.predict(&ids, some.shallow()).unwrap().expected);
            for (got, at) in got.chunks(d).zip(&at) {
                assert_eq!(got, &expected[at * d..][..d], "row {at} of step {step}");
            }
            alone.learn(&ids, &some, &[]).unwrap();
        }
    }
}
