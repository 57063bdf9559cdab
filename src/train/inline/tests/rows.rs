//! Which rows an update learns from, and when.

use super::*;

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
