//! Tests the trainer against golden vectors, its paths against each other, and how it manages slots.

use burn::{module::Param, tensor::Device};

use super::*;
use crate::{
    distiller::{Distiller, LowRankDistiller, LowRankStart, OutputStart, SourceNorm, SwiGluConfig},
    golden::*,
    train::{
        ApartSlots, LossReduction, OptimizerConfig, Schedule, SeparateSlots, StackedSlots,
        UpdateRule,
    },
};

fn template(device: &Device) -> LowRankDistiller {
    let init = Golden::open("lowrank.init.safetensors");
    LowRankDistiller {
        a: Param::from_tensor(init.tensor("a", device)),
        g: Param::from_tensor(init.tensor("g", device)),
        g_bias: Param::from_tensor(init.tensor("gb", device)),
        b: Param::from_tensor(init.tensor("b", device)),
        norm_weight: Param::from_tensor(init.tensor("w", device)),
        norm_bias: Param::from_tensor(init.tensor("bb", device)),
        source_norm: SourceNorm::None,
        start: LowRankStart::Normal,
    }
}

/// The fast paths and their oracle.
fn every_path(
    optimizer: OptimizerConfig,
    sharing: Sharing,
    check: impl Fn(&mut dyn FnMut() -> Box<dyn OnlineTrainer>),
) {
    let config = TrainingConfig::default();
    let stacked = StackedSlots::new(&template(&Device::flex()), optimizer).unwrap();
    check(&mut || Box::new(InlineTrainer::new(stacked.clone(), sharing, config)));
    let apart = ApartSlots::new(stacked);
    check(&mut || Box::new(InlineTrainer::new(apart.clone(), sharing, config)));
    let separate = SeparateSlots::new(template(&Device::flex()), optimizer);
    check(&mut || Box::new(InlineTrainer::new(separate.clone(), sharing, config)));
}

/// The target of the golden vectors: the model's final norm applied to `y`, which is already normed.
fn target(y: Tensor<2>) -> Tensor<2> {
    let base = Golden::open("base.safetensors");
    let weight = base.tensor::<1>("final_norm_weight", &Device::flex());
    let mean_square = y.clone().square().mean_dim(1);
    y / mean_square.add_scalar(1e-5).sqrt() * weight.unsqueeze()
}

/// 2 prompts × 4 rows and 4 steps, with rows going inactive: predictions and parameters of the PyTorch study.
fn matches_golden(trainer: &mut dyn OnlineTrainer, file: &str) {
    let golden = Golden::open(file);
    let active = golden.ints("active");
    let [x, y] = ["x", "y"].map(|key| golden.tensor::<3>(key, &Device::flex()));
    let pred = golden.values("pred");
    for step in 0..4usize {
        let live: Vec<usize> = (0..8).filter(|row| active[step * 8 + row] != 0).collect();
        let rows: Vec<CompletionId> =
            live.iter().map(|&row| CompletionId::new(row as u64 / 4, row as u64)).collect();
        let at = |states: &Tensor<3>| {
            let states = states.clone().slice([step..step + 1, 0..8, 0..576]);
            crate::tensor::select_rows(&states.reshape([8, 576]), &live)
        };
        let expected = trainer.predict(&rows, &at(&x)).unwrap().expected;
        let golden_rows: Vec<f32> =
            live.iter().flat_map(|row| pred[(step * 8 + row) * 576..][..576].to_vec()).collect();
        assert_close("pred", &values(expected), &golden_rows, 1e-5);
        let hidden = HiddenStates::new(at(&x), target(at(&y))).unwrap();
        trainer.learn(&rows, &hidden, &[]).unwrap();
    }
    for (slot, state) in trainer.export().unwrap().slots.into_iter().enumerate() {
        let parameters = state.state.tensors.unwrap().parameters;
        // In the order of the module's fields.
        for (name, got) in ["a", "g", "gb", "b", "w", "bb"].iter().zip(parameters) {
            let name = format!("final.{name}");
            let (all, got) = (golden.values(&name), values(got));
            // Adam divides a gradient by its own magnitude, so near 0 a rounding error changes the update. Measured:
            // 1e-4.
            assert_close(&name, &got, &all[slot * got.len()..][..got.len()], 2e-4);
        }
    }
}

#[test]
fn per_prompt_matches_golden() {
    every_path(OptimizerConfig::adam_w(1e-3), Sharing::PerPrompt, |trainer| {
        let mut trainer = trainer();
        matches_golden(&mut *trainer, "bank.prompt.safetensors");
        assert_eq!(trainer.distillers(), 2);
    });
}

#[test]
fn global_matches_golden() {
    every_path(OptimizerConfig::adam_w(1e-3), Sharing::Global, |trainer| {
        let mut trainer = trainer();
        matches_golden(&mut *trainer, "bank.global.safetensors");
        assert_eq!(trainer.distillers(), 1);
    });
}

#[test]
fn a_row_sees_its_own_distiller_wherever_it_stands() {
    let device = Device::flex();
    every_path(OptimizerConfig::sgd(0.1), Sharing::PerPrompt, |trainer| {
        let mut trainer = trainer();
        let golden = Golden::open("bank.prompt.safetensors");
        let x = golden.tensor::<3>("x", &device).slice([0..1, 0..8, 0..576]).reshape([8, 576]);
        let prompts = [1, 0, 1, 0, 1, 1, 0, 0];
        let rows: Vec<CompletionId> =
            (0..8).map(|i| CompletionId::new(prompts[i], i as u64)).collect();
        let only: Vec<usize> = (0..8).filter(|&i| prompts[i] == 1).collect();
        let ids: Vec<CompletionId> = only.iter().map(|&i| rows[i]).collect();
        let taught = crate::tensor::select_rows(&x, &only);
        trainer.predict(&ids, &taught).unwrap();
        let hidden = HiddenStates::new(taught.clone(), taught.clone() * 2.0).unwrap();
        trainer.learn(&ids, &hidden, &[]).unwrap();
        let together = values(trainer.predict(&rows, &x).unwrap().expected);
        let moved = values(trainer.predict(&ids, &taught).unwrap().expected);
        let start = values(template(&device).predict(x));
        for row in 0..8 {
            let got = &together[row * 576..][..576];
            match only.iter().position(|&i| i == row) {
                Some(place) => {
                    assert_close("taught", got, &moved[place * 576..][..576], 1e-5);
                    assert_ne!(got, &start[row * 576..][..576]);
                }
                None => assert_close("untaught", got, &start[row * 576..][..576], 1e-6),
            }
        }
    });
}

fn wave(rows: usize, d: usize, phase: f32, device: &Device) -> Tensor<2> {
    let numbers = (0..rows * d).map(|i| (i as f32 * 0.37 + phase).sin() + 0.1 * phase.cos());
    let data = burn::tensor::TensorData::new(numbers.collect::<Vec<f32>>(), [rows, d]);
    Tensor::from_data(data, device)
}

fn hidden(rows: usize, phase: f32, device: &Device) -> HiddenStates {
    HiddenStates::new(wave(rows, 12, phase, device), wave(rows, 12, 3.0 * phase + 1.0, device))
        .unwrap()
}

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
        let low_rank = crate::distiller::LowRankConfig::new().with_rank(3);
        let low_rank = low_rank.with_source_norm(SourceNorm::Rms).init(12, 4, &device).unwrap();
        let ridge = crate::distiller::LowRankConfig::new()
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

#[test]
fn an_idle_slot_stays_bit_identical() {
    let distiller = crate::distiller::LowRankConfig::new().with_rank(3);
    let distiller = distiller.init(12, 4, &Device::flex()).unwrap();
    let optimizer = OptimizerConfig::adam_w(1e-3);
    let stacked = StackedSlots::new(&distiller, optimizer).unwrap();
    stays_bit_identical_when_idle(ApartSlots::new(stacked.clone()));
    stays_bit_identical_when_idle(stacked);
    stays_bit_identical_when_idle(SeparateSlots::new(distiller, optimizer));
}

fn stays_bit_identical_when_idle(slots: impl Slots) {
    let device = Device::flex();
    let mut trainer = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
    let rows = [CompletionId::new(0, 0), CompletionId::new(1, 1), CompletionId::new(2, 2)];
    let step = |trainer: &mut dyn OnlineTrainer, rows: &[CompletionId], phase: f32| {
        let hidden = hidden(rows.len(), phase, &device);
        trainer.predict(rows, hidden.shallow()).unwrap();
        trainer.learn(rows, &hidden, &[]).unwrap();
    };
    for i in 0..3 {
        step(&mut trainer, &rows, i as f32);
    }
    let everything = |trainer: &mut dyn OnlineTrainer, slot: usize| -> Vec<Vec<f32>> {
        let tensors = trainer.export().unwrap().slots.remove(slot).state.tensors.unwrap();
        let all = [tensors.parameters, tensors.first, tensors.second];
        all.into_iter().flatten().map(values).collect()
    };
    let before: Vec<_> = (0..3).map(|slot| everything(&mut trainer, slot)).collect();
    for i in 0..5 {
        step(&mut trainer, &[rows[2], rows[0]], 7.0 + i as f32);
    }
    assert_eq!(everything(&mut trainer, 1), before[1]);
    assert_ne!(everything(&mut trainer, 0), before[0]);
    assert_ne!(everything(&mut trainer, 2), before[2]);
}

/// The bytes that slots take, and what they predict, while prompts end in any order. A stack may take twice as much as
/// it needs until its next step.
fn frees_slots_that_end(slots: impl Slots, slack: usize) {
    let device = Device::flex();
    let mut trainer = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
    let rows: Vec<CompletionId> = (0..8).map(|prompt| CompletionId::new(prompt, 0)).collect();
    let states = hidden(8, 0.5, &device);
    trainer.predict(&rows, states.shallow()).unwrap();
    trainer.learn(&rows, &states, &[]).unwrap();
    let one = trainer.state_bytes() / 8;
    let expected = values(trainer.predict(&rows, states.shallow()).unwrap().expected);
    let mut left: Vec<usize> = (0..8).collect();
    let mut places = 8;
    for ended in [3, 0, 7, 5, 1, 2, 6, 4] {
        left.retain(|&row| row != ended);
        trainer.release(rows[ended]);
        assert_eq!(trainer.distillers(), left.len());
        let bytes = trainer.state_bytes();
        // A stack with holes is copied when at least half of its places are holes, or in a step.
        if slack * left.len() <= places {
            places = left.len();
        }
        assert_eq!(bytes, places * one, "{left:?}");
        if left.len() % 3 == 1 {
            places = left.len();
            let ids: Vec<CompletionId> = left.iter().map(|&row| rows[row]).collect();
            let shallow = crate::tensor::select_rows(states.shallow(), &left);
            let got = values(trainer.predict(&ids, &shallow).unwrap().expected);
            for (got, &row) in got.chunks(12).zip(&left) {
                assert_close("prediction", got, &expected[row * 12..][..12], 1e-6);
            }
            assert_eq!(trainer.state_bytes(), left.len() * one, "a step closes the holes");
        }
    }
}

#[test]
fn the_memory_of_a_slot_is_freed_when_it_ends() {
    let distiller = crate::distiller::LowRankConfig::new().with_rank(3);
    let distiller = distiller.init(12, 4, &Device::flex()).unwrap();
    let optimizer = OptimizerConfig::adam_w(1e-3);
    let stacked = StackedSlots::new(&distiller, optimizer).unwrap();
    frees_slots_that_end(ApartSlots::new(stacked.clone()), 1);
    frees_slots_that_end(SeparateSlots::new(distiller, optimizer), 1);
    frees_slots_that_end(stacked, 2);
}

#[test]
fn a_mini_batch_of_steps_is_one_update_on_all_of_their_rows() {
    let device = Device::flex();
    let distiller = SwiGluConfig::new().with_d_hidden(5).init(12, 3, &device).unwrap();
    let optimizer = OptimizerConfig::sgd(0.1);
    let slots = StackedSlots::new(&distiller, optimizer).unwrap();
    let config = TrainingConfig::new().with_update_every(3);
    let mut trainer = InlineTrainer::new(slots.clone(), Sharing::PerPrompt, config);
    let rows = [CompletionId::new(0, 0), CompletionId::new(0, 1)];
    let steps: Vec<HiddenStates> = (0..3).map(|i| hidden(2, i as f32, &device)).collect();
    let mut learned = Vec::new();
    for step in &steps {
        trainer.predict(&rows, step.shallow()).unwrap();
        learned.push(trainer.learn(&rows, step, &[]).unwrap());
    }
    let nothing = Learned::default();
    assert_eq!(learned, [nothing, nothing, Learned { updates: 1, rows: 6, ..nothing }]);

    let mut at_once = crate::train::Learner::new(distiller, optimizer).unwrap();
    at_once.update(&HiddenStates::concat(&steps));
    let x = wave(2, 12, 0.5, &device);
    let got = values(trainer.predict(&rows, &x).unwrap().expected);
    assert_close("update", &got, &values(at_once.distiller().predict(x)), 1e-5);
    assert_eq!(trainer.updates(rows[0]), 1);
    trainer.learn(&rows, &steps[0], &[]).unwrap();
    assert_eq!(trainer.waiting_rows(), 2);
}

#[test]
fn the_first_row_of_a_prompt_is_the_one_with_the_smallest_index() {
    let device = Device::flex();
    let distiller = SwiGluConfig::new().with_d_hidden(5).init(12, 3, &device).unwrap();
    let slots = StackedSlots::new(&distiller, OptimizerConfig::sgd(0.1)).unwrap();
    let config = TrainingConfig::new().with_train_rows(TrainRows::FirstPerPrompt);
    let trainer = InlineTrainer::new(slots, Sharing::Global, config);
    let rows = [(1, 7), (0, 5), (1, 3), (0, 6), (0, 4)].map(|(p, r)| CompletionId::new(p, r));
    assert_eq!(trainer.rows_to_train(&rows), [2, 4]);
}

#[test]
fn a_slot_starts_again_from_the_fit_to_its_first_rows() {
    let device = Device::flex();
    let config = crate::distiller::LowRankConfig::new().with_rank(3);
    let config = config.with_start(LowRankStart::Ridge { rows: 5, lambda: 1e-2 });
    let distiller = config.init(12, 4, &device).unwrap();
    let optimizer = OptimizerConfig::adam_w(1e-3);
    let slots = StackedSlots::new(&distiller, optimizer).unwrap();
    let steps: Vec<HiddenStates> = (0..5).map(|i| hidden(2, i as f32, &device)).collect();
    let rows = [CompletionId::new(0, 0), CompletionId::new(0, 1)];
    let x = wave(2, 12, 0.5, &device);

    // Two rows per step: the third step brings the sixth row.
    let mut trainer =
        InlineTrainer::new(slots.clone(), Sharing::PerPrompt, TrainingConfig::default());
    for step in &steps[..3] {
        trainer.predict(&rows, step.shallow()).unwrap();
        trainer.learn(&rows, step, &[]).unwrap();
    }
    let first = HiddenStates::concat(&steps[..3]);
    let fitted = distiller.fit(first.shallow(), first.deep()).unwrap();
    let got = values(trainer.predict(&rows, &x).unwrap().expected);
    assert_close("fitted", &got, &values(fitted.predict(x.clone())), 1e-5);
    assert_eq!(trainer.updates(rows[0]), 3, "a fit keeps the number of updates");

    // After the fit, it learns like a fresh learner that starts from the fit: Adam's moments are reset.
    let mut learner = crate::train::Learner::new(fitted, optimizer).unwrap();
    for step in &steps[3..] {
        trainer.learn(&rows, step, &[]).unwrap();
        learner.update(step);
    }
    let got = values(trainer.predict(&rows, &x).unwrap().expected);
    assert_close("after", &got, &values(learner.distiller().predict(x.clone())), 1e-4);

    // A warm-up passes the prompt's positions: they are fitted first and then learned from.
    let mut warm = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
    warm.warm_up(rows[0], &first, 2).unwrap();
    let fitted = distiller.fit(first.shallow(), first.deep()).unwrap();
    let mut learner = crate::train::Learner::new(fitted, optimizer).unwrap();
    for _ in 0..2 {
        learner.update(&first);
    }
    let got = values(warm.predict(&rows, &x).unwrap().expected);
    assert_close("warm", &got, &values(learner.distiller().predict(x)), 1e-4);
}

/// A trainer that updates every second step, after the three first steps of one prompt.
fn gathering<S: Slots>(slots: S) -> (InlineTrainer<S>, [CompletionId; 2]) {
    let config = TrainingConfig::new().with_update_every(2);
    let mut trainer = InlineTrainer::new(slots, Sharing::PerPrompt, config);
    let rows = [CompletionId::new(0, 0), CompletionId::new(0, 1)];
    for step in 0..3 {
        let states = hidden(2, step as f32, &Device::flex());
        trainer.predict(&rows, states.shallow()).unwrap();
        trainer.learn(&rows, &states, &[]).unwrap();
    }
    (trainer, rows)
}

/// A restart drops what was learned and its memory, but not the rows that wait to be learned from.
#[test]
fn a_restart_keeps_the_rows_that_wait() {
    let ridge = |rows| {
        let config = crate::distiller::LowRankConfig::new().with_rank(3);
        let config = config.with_start(LowRankStart::Ridge { rows, lambda: 1e-2 });
        config.init(12, 4, &Device::flex()).unwrap()
    };
    let optimizer = OptimizerConfig::adam_w(1e-3);
    let apart = |rows| ApartSlots::new(StackedSlots::new(&ridge(rows), optimizer).unwrap());
    let (mut trainer, rows) = gathering(apart(8));
    let of = |trainer: &InlineTrainer<_>| -> (u64, usize, usize, usize) {
        let slot = trainer.bank.of(rows[0]).unwrap();
        let first: usize = slot.first_rows.iter().map(HiddenStates::rows).sum();
        (slot.updates, trainer.waiting_rows(), first, trainer.state_bytes())
    };
    // Parameters: 3·12·3 + 3 + 2·12, and two moments of each, of four bytes.
    assert_eq!(of(&trainer), (1, 2, 6, 3 * 135 * 4));
    let done = trainer.restart_slots(&rows, &[]);
    assert_eq!((done.restarts, done.updates_undone), (1, 1));
    assert_eq!(of(&trainer), (0, 2, 6, 0));
    assert_eq!(trainer.restart_slots(&rows, &[]), Learned::default(), "it is fresh already");

    // Two more rows complete the eight that are fitted, and the four of an update.
    let states = hidden(2, 3.0, &Device::flex());
    trainer.predict(&rows, states.shallow()).unwrap();
    let done = trainer.learn(&rows, &states, &[]).unwrap();
    assert_eq!(done, Learned { updates: 1, rows: 4, fits: 1, ..Learned::default() });
}

#[test]
fn fits_are_counted_whether_they_succeed_or_fail() {
    let config = crate::distiller::LowRankConfig::new().with_rank(3);
    let config = config.with_start(LowRankStart::Ridge { rows: 2, lambda: 1e-2 });
    let distiller = config.init(12, 4, &Device::flex()).unwrap();
    let optimizer = OptimizerConfig::adam_w(1e-3);
    let stacked = StackedSlots::new(&distiller, optimizer).unwrap();
    fits(stacked.clone());
    fits(ApartSlots::new(stacked));
    fits(SeparateSlots::new(distiller, optimizer));
}

/// Two rows of each of four prompts, of which two cannot be fitted: their shallow states are 0.
fn fits(slots: impl Slots) {
    let device = Device::flex();
    let mut trainer = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
    let rows: Vec<CompletionId> = (0..8).map(|row| CompletionId::new(row / 2, row)).collect();
    let good = hidden(4, 0.5, &device);
    let zeros = Tensor::cat(vec![good.shallow().clone(), good.shallow().zeros_like()], 0);
    let states = HiddenStates::new(zeros, hidden(8, 0.7, &device).deep().clone()).unwrap();
    trainer.predict(&rows, states.shallow()).unwrap();
    let learned = trainer.learn(&rows, &states, &[]).unwrap();
    assert_eq!((learned.fits, learned.fits_failed), (2, 2));
    let learned = trainer.learn(&rows, &states, &[]).unwrap();
    assert_eq!((learned.fits, learned.fits_failed), (0, 0), "a fit is tried once");
}

#[test]
fn slots_are_made_only_for_rows_that_have_none() {
    let distiller = SwiGluConfig::new().with_d_hidden(5).init(12, 3, &Device::flex()).unwrap();
    let optimizer = OptimizerConfig::sgd(0.1);
    let stacked = StackedSlots::new(&distiller, optimizer).unwrap();
    let config = TrainingConfig::default();
    let mut trainer = InlineTrainer::new(stacked, Sharing::PerPrompt, config);
    // Two blocks of three matrices of 12·5 numbers.
    for (prompts, slots) in [(1, 1), (3, 3), (3, 3), (2, 3)] {
        let rows: Vec<CompletionId> = (0..prompts).map(|p| CompletionId::new(p, p)).collect();
        let states = hidden(rows.len(), 0.5, &Device::flex());
        trainer.predict(&rows, states.shallow()).unwrap();
        assert_eq!(trainer.state_bytes(), slots * 2 * 3 * 12 * 5 * 4, "{prompts}");
    }
}

/// On every path, and nothing of a state that does not fit.
#[test]
fn slots_are_imported_as_they_were_exported() {
    let optimizer = OptimizerConfig::adam_w(1e-2);
    every_path(optimizer, Sharing::PerPrompt, |trainer| {
        let mut old = trainer();
        let rows: Vec<CompletionId> = (0..3).map(|prompt| CompletionId::new(prompt, 0)).collect();
        let states = |value: f32| {
            Tensor::<1>::from_data([value, 1.0, -value], &Device::flex())
                .reshape([3, 1])
                .repeat_dim(1, 576)
        };
        let hidden = HiddenStates::new(states(0.5), states(2.0)).unwrap();
        old.predict(&rows, hidden.shallow()).unwrap();
        old.learn(&rows, &hidden, &[]).unwrap();

        let numbers = |trainer: &mut dyn OnlineTrainer| -> Vec<Vec<f32>> {
            let slots = trainer.export().unwrap().slots.into_iter();
            let tensors = slots.map(|slot| slot.state.tensors.unwrap());
            tensors.flat_map(|t| [t.parameters, t.first, t.second].concat()).map(values).collect()
        };
        let mut new = trainer();
        assert!(new.import(old.export().unwrap()).is_ok());
        assert_eq!(new.distillers(), 3);
        assert_eq!(numbers(&mut *new), numbers(&mut *old));
        let [expected, got] =
            [&mut old, &mut new].map(|trainer| trainer.predict(&rows, hidden.shallow()).unwrap());
        assert_eq!(values(got.expected), values(expected.expected));

        let mut state = old.export().unwrap();
        state.slots[2].state.tensors.as_mut().unwrap().second.pop();
        assert_eq!(new.import(state).unwrap_err().what, "number of tensors in second moments");
        assert_eq!(new.distillers(), 0);
    });
}
