//! Sequences of numbers.

use super::{Problem, Task, numbers::numbers};

/// The next number of a sequence that follows a rule.
pub struct Sequences;

/// Numbers that are shown.
const SHOWN: usize = 5;

impl Task for Sequences {
    fn name(&self) -> &'static str {
        "sequences"
    }

    fn what(&self) -> &'static str {
        "the next number of a growing sequence, and its rule"
    }

    fn tokens(&self) -> usize {
        48
    }

    fn problems(&self) -> Vec<Problem> {
        let mut all: Vec<Vec<u64>> = Vec::new();
        for start in 1..30 {
            all.extend((2..16).map(|step| arithmetic(start, step)));
        }
        for start in 1..12 {
            all.extend((2..5).map(|factor| geometric(start, factor)));
        }
        for start in 0..12 {
            all.extend((1..6).map(|first| growing(start, first)));
        }
        // Two rules may begin alike; every beginning is asked once.
        let mut seen = std::collections::HashSet::new();
        all.retain(|sequence| seen.insert(sequence[..SHOWN].to_vec()));
        all.iter().map(|sequence| problem(sequence)).collect()
    }
}

/// `start`, then always `step` more.
pub fn arithmetic(start: u64, step: u64) -> Vec<u64> {
    (0..=SHOWN as u64).map(|i| start + step * i).collect()
}

/// `start`, then always `factor` times as much.
pub fn geometric(start: u64, factor: u64) -> Vec<u64> {
    (0..=SHOWN as u32).map(|i| start * factor.pow(i)).collect()
}

/// `start`, then `first` more, then `first + 1` more, and so on.
pub fn growing(start: u64, first: u64) -> Vec<u64> {
    (0..=SHOWN as u64).map(|i| start + i * first + i * i.saturating_sub(1) / 2).collect()
}

fn problem(sequence: &[u64]) -> Problem {
    let (shown, next) = (sequence[..SHOWN].to_vec(), sequence[SHOWN]);
    let list: Vec<String> = shown.iter().map(u64::to_string).collect();
    let prompt = format!(
        "What number comes next: {}, ...? Answer with one sentence: the next number is",
        list.join(", ")
    );
    Problem::with_answer(prompt, next.to_string(), move |text| next_in(text, &shown))
}

/// The number that a text gives as the next one: the first that was not shown. (A text may go on with the sequence.)
pub fn next_in(text: &str, shown: &[u64]) -> Option<String> {
    let shown: Vec<String> = shown.iter().map(u64::to_string).collect();
    numbers(text).into_iter().find(|number| !shown.contains(number))
}
