//! The main loop: runs units until the plan is complete or the time is up.

use std::time::{Duration, Instant};

use esamp::CausalLm;
use esamp_programs::failure::Failure;

use crate::{
    plan::Unit,
    record::{Header, Split},
    run::{Subject, run_unit},
    store::Store,
    tasks::{Problem, Task},
};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All records are in the file.
    Complete,
    /// The time limit was reached.
    OutOfTime,
}

/// The problems of each task that a run uses: the first ones of the split.
///
/// # Errors
///
/// A split with fewer problems.
pub fn problems_of(
    tasks: &[Box<dyn Task>],
    split: Split,
    count: usize,
) -> Result<Vec<Vec<Problem>>, Failure> {
    let of = |task: &dyn Task| {
        let mut problems = task.split(split);
        if problems.len() < count {
            return Err(Failure::usage(
                format!(
                    "--problems: expected at most the {} of {} in this split, got {count}",
                    problems.len(),
                    task.name()
                ),
                "reduce --problems, or remove the task",
            ));
        }
        problems.truncate(count);
        Ok(problems)
    };
    tasks.iter().map(|task| of(&**task)).collect()
}

/// Runs the remaining units of the plan and calls `after` after each of them.
///
/// A unit starts only if it would end within `budget` at the speed of the units before it.
///
/// # Errors
///
/// The error of the first unit that fails; the records of the units before it are in the file.
pub fn run_all<M: CausalLm>(
    subject: &Subject<'_, M>,
    header: &Header,
    problems: &[Vec<Problem>],
    store: &mut Store,
    budget: Option<Duration>,
    mut after: impl FnMut(&Unit, &Store),
) -> Result<Ended, Failure> {
    let started = Instant::now();
    let mut tokens = 0;
    while let Some(unit) = store.next().cloned() {
        if let Some(budget) = budget {
            let spent = started.elapsed();
            let share = unit.most_tokens(header) as f64 / (tokens as f64).max(1.0);
            let next = if tokens == 0 { Duration::ZERO } else { spent.mul_f64(share) };
            if spent + next > budget {
                return Ok(Ended::OutOfTime);
            }
        }
        let records = run_unit(subject, header, &unit, &problems[unit.task])?;
        store.append(records)?;
        tokens += unit.most_tokens(header);
        after(&unit, store);
    }
    Ok(Ended::Complete)
}
