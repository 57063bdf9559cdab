//! The loop: one unit after the other, until the plan is done or the time is up.

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

/// How a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything is in the file.
    Complete,
    /// The time was up.
    OutOfTime,
}

/// The problems of each task that a run needs: the first of the split.
///
/// # Errors
///
/// A split that has fewer.
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
                "ask for fewer, or leave the task out",
            ));
        }
        problems.truncate(count);
        Ok(problems)
    };
    tasks.iter().map(|task| of(&**task)).collect()
}

/// Runs what is left of the plan. `after` is called behind every unit.
///
/// No unit is begun that would not end within `budget` if it took as long for its tokens as those before it.
///
/// # Errors
///
/// What the first unit that fails says; those before it are in the file.
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
