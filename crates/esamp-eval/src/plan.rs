//! The order of the work.

use std::ops::Range;

use crate::record::Header;

/// What runs in one batch: some problems of a task under one arm and seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The seed.
    pub seed: u64,
    /// Place of the task in the header.
    pub task: usize,
    /// Place of the arm in the header.
    pub arm: usize,
    /// Numbers of the problems.
    pub problems: Range<usize>,
}

/// What a record is about: names of task and arm, problem, seed.
pub type Key = (String, usize, String, u64);

/// The units in the order in which they run: for each seed, for some problems at a time, for each task, every arm.
///
/// Wherever a run is stopped, all arms but those of the last unit have met the same problems, and all tasks have got about
/// as far.
pub fn units(header: &Header) -> Vec<Unit> {
    let mut units = Vec::new();
    for seed in 0..header.seeds {
        for start in (0..header.problems).step_by(header.batch.max(1)) {
            let end = header.problems.min(start + header.batch);
            for task in 0..header.tasks.len() {
                for arm in 0..header.arms.len() {
                    units.push(Unit { seed, task, arm, problems: start..end });
                }
            }
        }
    }
    units
}

impl Unit {
    /// What its records are about, in their order.
    pub fn keys(&self, header: &Header) -> Vec<Key> {
        let (task, arm) = (&header.tasks[self.task].name, &header.arms[self.arm].name);
        self.problems.clone().map(|at| (task.clone(), at, arm.clone(), self.seed)).collect()
    }

    /// Tokens that it may take: what progress is measured in.
    pub fn most_tokens(&self, header: &Header) -> u64 {
        (self.problems.len() * header.samples * header.tasks[self.task].tokens) as u64
    }
}
