//! The order in which problems run.

use std::ops::Range;

use crate::record::Header;

/// The work of one batch: some problems of a task under one arm and seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The seed.
    pub seed: u64,
    /// Index of the task in the header.
    pub task: usize,
    /// Index of the arm in the header.
    pub arm: usize,
    /// Indices of the problems.
    pub problems: Range<usize>,
}

/// What identifies a record: task, problem, arm and seed.
pub type Key = (String, usize, String, u64);

/// All units in the order in which they run: by seed, then by group of problems, then by task, then by arm.
///
/// If a run stops early, all arms have seen the same problems except in the last group, and all tasks have
/// progressed about equally.
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
    /// The keys of the unit's records, in order.
    pub fn keys(&self, header: &Header) -> Vec<Key> {
        let (task, arm) = (&header.tasks[self.task].name, &header.arms[self.arm].name);
        self.problems.clone().map(|at| (task.clone(), at, arm.clone(), self.seed)).collect()
    }

    /// The maximum number of tokens of the unit; progress is measured in these.
    pub fn most_tokens(&self, header: &Header) -> u64 {
        (self.problems.len() * header.samples * header.tasks[self.task].tokens) as u64
    }
}
