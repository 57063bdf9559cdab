//! How slots are made, kept, freed and imported.

use super::*;

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
