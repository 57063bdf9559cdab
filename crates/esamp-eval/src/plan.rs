//! The order in which problems run.

use std::ops::Range;

use esamp::Sharing;

use crate::record::{ArmRecord, Header};

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

/// The most records of a plan: a thousand times those of this repository's largest report.
pub const MOST_RECORDS: u64 = 1_000_000;

/// The number of records of a plan with these numbers of problems, seeds, tasks and arms, at most `u64::MAX`. None
/// counts as one: going through many seeds takes long even if they have no problems.
pub fn planned_records(sizes: [u64; 4]) -> u64 {
    sizes.into_iter().fold(1, |records, size| records.saturating_mul(size.max(1)))
}

/// What identifies a record: task, problem, arm and seed.
pub type Key = (String, usize, String, u64);

/// All units in the order in which they run: by seed, then by group of problems, then by task, then by arm. A group is
/// a unit, or with [`Header::one_by_one`] as many units as it has problems, unless these share a distiller. The order
/// of the records is the same in both cases.
///
/// If a run stops early, all arms have seen the same problems except in the last group, and all tasks have
/// progressed about equally.
///
/// A [shard](Header::shard) has the units of its [pieces](piece), in the same order.
pub fn units(header: &Header) -> Vec<Unit> {
    let mut units = Vec::new();
    let batch = batch(header);
    for seed in 0..header.seeds {
        for start in (0..header.problems).step_by(batch) {
            let end = header.problems.min(start + batch);
            for task in 0..header.tasks.len() {
                for (arm, record) in header.arms.iter().enumerate() {
                    let is_one_by_one = header.one_by_one && !shares_between_problems(record);
                    let size = if is_one_by_one { 1 } else { end - start };
                    for first in (start..end).step_by(size) {
                        units.push(Unit { seed, task, arm, problems: first..first + size });
                    }
                }
            }
        }
    }
    if let Some(shard) = header.shard {
        units.retain(|unit| shard.has(piece(header, unit)));
    }
    units
}

/// The number of the piece that a unit belongs to. Pieces are what shards consist of: a problem with all its arms and
/// seeds, or a group of problems if some unit decodes them together, because its records depend on all of them. They
/// are numbered task by task, so that every shard has as many of each task as any other, give or take one.
pub fn piece(header: &Header, unit: &Unit) -> usize {
    let is_one_by_one = header.one_by_one && !header.arms.iter().any(shares_between_problems);
    let size = if is_one_by_one { 1 } else { batch(header) };
    unit.task * header.problems.div_ceil(size) + unit.problems.start / size
}

/// Problems per group. The header of a file can have any number.
fn batch(header: &Header) -> usize {
    header.batch.clamp(1, header.problems.max(1))
}

/// Whether what an arm learns from one problem changes its completions of another.
fn shares_between_problems(arm: &ArmRecord) -> bool {
    !matches!(arm.sampler.sharing, Sharing::PerPrompt | Sharing::PerCompletion)
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
