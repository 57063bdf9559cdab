//! Distillers that are fitted to their first rows.

use super::*;

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
    warm.warm_up(rows[0], &first, 2, true).unwrap();
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
