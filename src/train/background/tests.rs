//! Tests which changes reach the worker, and when.

use burn::tensor::{Device, Tensor};

use super::*;
use crate::{
    bank::Sharing,
    distiller::SwiGluConfig,
    train::{InlineTrainer, OptimizerConfig, SeparateSlots, TrainingConfig},
};

fn background() -> BackgroundTrainer<impl OnlineTrainer + Clone> {
    let (trainer, worker) = pair();
    spawn(worker).unwrap();
    trainer
}

fn pair() -> (BackgroundTrainer<impl OnlineTrainer + Clone>, TrainingWorker) {
    let distiller = SwiGluConfig::new().with_d_hidden(4).init(4, 0, &Device::flex()).unwrap();
    let slots = SeparateSlots::new(distiller, OptimizerConfig::paper());
    let trainer = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
    BackgroundTrainer::pair(trainer)
}

fn learn(trainer: &mut impl OnlineTrainer, row: CompletionId) {
    let states = || Tensor::<2>::ones([1, 4], &Device::flex());
    trainer.predict(&[row], &states()).unwrap();
    let hidden = HiddenStates::new(states(), states().mul_scalar(2.0)).unwrap();
    trainer.learn(&[row], &hidden, &[]).unwrap();
}

#[test]
fn changes_that_the_worker_does_not_need_are_not_queued() {
    let mut trainer = background();
    learn(&mut trainer, CompletionId::new(0, 0)); // a pending job that no other follows for a while
    for request in 1..1000 {
        trainer.release(CompletionId::new(request, request)); // not steered, so it never began
        let steered = CompletionId::new(2000 + request, 2000 + request);
        trainer.begin(steered);
        trainer.begin(steered);
        trainer.release(steered); // steered, and ended before there was anything to learn
    }
    assert!(trainer.changes.is_empty(), "{:?}", trainer.changes);
    assert_eq!(trainer.distillers(), 1);
    let known = CompletionId::new(0, 0);
    assert_eq!(trainer.completions(), [known]);
    assert!(trainer.has(known) && !trainer.has(CompletionId::new(0, 1)));
}

#[test]
fn a_slot_outlives_a_completion_that_ends_if_another_has_joined() {
    // The worker knows completion 0. Before its next job, 1 joins, 0 ends, 2 joins and 1 ends: the slot was never
    // empty.
    for (joins_in_time, updates) in [(true, 2), (false, 1)] {
        let mut trainer = background();
        let row = |request| CompletionId::new(0, request);
        learn(&mut trainer, row(0));
        if joins_in_time {
            trainer.begin(row(1));
        }
        trainer.release(row(0));
        trainer.begin(row(2));
        trainer.release(row(1));
        learn(&mut trainer, row(2));
        trainer.finish().unwrap();
        assert_eq!(trainer.updates(row(2)), updates, "in time: {joins_in_time}");
        trainer.release(row(2));
        assert_eq!(trainer.distillers(), 0);
    }
}

#[test]
fn only_a_restart_that_has_changed_something_is_queued() {
    let mut trainer = background();
    let row = CompletionId::new(0, 0);
    learn(&mut trainer, row);
    assert_eq!(trainer.restart(&[row], &[], &[]).unwrap().restarts, 0, "nothing is visible yet");
    assert!(trainer.changes.is_empty(), "{:?}", trainer.changes);
    trainer.finish().unwrap();
    assert_eq!(trainer.restart(&[row], &[], &[]).unwrap().restarts, 1);
    assert_eq!(trainer.changes.len(), 1);
    assert_eq!(trainer.restart(&[row], &[], &[]).unwrap().restarts, 0, "it is fresh already");
    assert_eq!(trainer.changes.len(), 1);
    trainer.finish().unwrap();
    assert_eq!(trainer.updates(row), 0);
}

/// What is loaded and released before there is a lesson leaves nothing, unless another completion uses it.
#[test]
fn a_loaded_slot_reaches_the_worker_with_the_next_lesson() {
    let mut trainer = background();
    let [known, loaded, used] = [(0, 0), (5, 9), (5, 0)].map(|(p, r)| CompletionId::new(p, r));
    learn(&mut trainer, known);
    learn(&mut trainer, known); // a pending job that no other follows for a while
    let state = trainer.export().unwrap().of_prompt(known.prompt);
    let state = state.for_prompt(loaded.prompt, loaded);
    for _ in 0..100 {
        trainer.adopt(state.clone()).unwrap();
        trainer.release(loaded);
    }
    assert!(trainer.changes.is_empty(), "{:?}", trainer.changes);
    assert_eq!(trainer.distillers(), 1);

    trainer.adopt(state).unwrap();
    trainer.begin(used);
    trainer.release(loaded);
    assert_eq!(trainer.updates(used), 2, "the update that was pending is part of it");
    learn(&mut trainer, used);
    trainer.finish().unwrap();
    assert_eq!(trainer.updates(used), 3, "the worker has continued it");
    trainer.release(used);
    assert_eq!(trainer.distillers(), 1);
}

#[test]
fn a_worker_is_debugged_by_its_name() {
    let distiller = SwiGluConfig::new().with_d_hidden(4).init(4, 0, &Device::flex()).unwrap();
    let slots = SeparateSlots::new(distiller, OptimizerConfig::paper());
    let trainer = InlineTrainer::new(slots, Sharing::PerPrompt, TrainingConfig::default());
    assert_eq!(format!("{:?}", BackgroundTrainer::pair(trainer).1), "TrainingWorker { .. }");
}

/// A caller that supplies the worker's thread may reset and load before it does so.
#[test]
fn any_number_of_resets_and_loads_before_the_worker_runs_do_not_block() {
    let (ended, end) = std::sync::mpsc::channel();
    // On a thread of its own, because a call that blocks would block the test.
    std::thread::spawn(move || {
        let (mut trainer, worker) = pair();
        let row = CompletionId::new(0, 0);
        trainer.begin(row);
        for _ in 0..100 {
            trainer.reset();
            trainer.begin(row);
            trainer.finish().unwrap();
            let state = trainer.export().unwrap();
            assert!(trainer.import(state).is_ok());
        }
        learn(&mut trainer, row);
        spawn(worker).unwrap();
        learn(&mut trainer, row);
        trainer.finish().unwrap();
        assert_eq!(trainer.updates(row), 2);
        ended.send(()).unwrap();
    });
    end.recv_timeout(std::time::Duration::from_secs(60)).expect("it blocks");
}
