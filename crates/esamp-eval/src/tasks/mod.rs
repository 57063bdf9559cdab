//! The tasks: problems for the model, and how its answers are judged.
//!
//! # Splits
//!
//! A task lists all its problems, all different, in a fixed order; they are shuffled with [`SPLIT_SEED`]
//! and cut in the middle. **The first half is the development split, the second half the held-out split**,
//! and `--problems N` takes the first N of either. The splits are therefore disjoint by construction and do
//! not depend on any measurement. Settings are chosen on the development split only; the held-out split is
//! for reporting.

pub mod gcd;
pub mod known_sets;
pub mod letters;
pub mod names;
pub mod numbers;
pub mod products;
pub mod reasoning_gym;
pub mod sentences;
pub mod stories;

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

pub use gcd::Gcd;
pub use known_sets::KnownSets;
pub use letters::Letters;
pub use names::Names;
pub use products::Products;
pub use reasoning_gym::ReasoningGym;
pub use sentences::Sentences;
pub use stories::{LongStories, Stories};

use crate::record::{Split, TaskRecord};

/// The seed for shuffling problems before they are split.
pub const SPLIT_SEED: u64 = 2604_24927;

/// A kind of problem.
///
/// ```ignore
/// struct Echo;
///
/// impl Task for Echo {
///     fn name(&self) -> &'static str { "echo" }
///     fn what(&self) -> &'static str { "say a word" }
///     fn tokens(&self) -> usize { 8 }
///     fn problems(&self) -> Vec<Problem> {
///         ["yes", "no"]
///             .map(|word| {
///                 let check = move |text: &str| Verdict { correct: Some(text == word), ..Verdict::default() };
///                 Problem::new(format!("Say {word}."), check)
///             })
///             .into()
///     }
/// }
/// ```
pub trait Task: Send + Sync {
    /// The name: lower case, with hyphens.
    fn name(&self) -> &'static str;

    /// A one-line description.
    fn what(&self) -> &'static str;

    /// The most tokens a completion needs.
    fn tokens(&self) -> usize;

    /// Whether completions are right or wrong.
    fn verifiable(&self) -> bool {
        true
    }

    /// Whether a problem has many right completions that [`Verdict::mode`] distinguishes.
    fn many_modes(&self) -> bool {
        false
    }

    /// All problems, all different, always in the same order.
    fn problems(&self) -> Vec<Problem>;

    /// One half of the problems, shuffled.
    fn split(&self, split: Split) -> Vec<Problem> {
        let mut problems = self.problems();
        shuffle(&mut problems);
        let held_out = problems.split_off(problems.len() / 2);
        match split {
            Split::Dev => problems,
            Split::HeldOut => held_out,
        }
    }

    /// The task's entry in the header, with completions limited to `tokens`.
    fn record(&self, tokens: usize) -> TaskRecord {
        TaskRecord {
            name: self.name().to_owned(),
            what: self.what().to_owned(),
            verifiable: self.verifiable(),
            many_modes: self.many_modes(),
            tokens: self.tokens().min(tokens),
        }
    }
}

/// A question and how to judge its completions.
pub struct Problem {
    /// The message to the model.
    pub prompt: String,
    /// The right answer if there is only one, in the form of [`Verdict::answer`].
    pub expected: Option<String>,
    /// The number of solutions if they can be counted.
    pub solutions: Option<usize>,
    /// A text with which every completion is made to begin, if any. The first token of a completion is never steered, so
    /// it must not be part of an answer of one or two tokens.
    pub opening: Option<&'static str>,
    check: Box<dyn Fn(&str) -> Verdict + Send + Sync>,
}

/// The judgement of a completion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is right; `None` if that cannot be decided.
    pub correct: Option<bool>,
    /// The answer, in a form that can be compared.
    pub answer: Option<String>,
    /// Which of many solutions it is; only for right completions.
    pub mode: Option<String>,
    /// Whether it is right and the model was trained on its answer, in tasks that know what that was.
    pub trained: bool,
}

impl Problem {
    /// A problem judged by `check`.
    pub fn new(prompt: String, check: impl Fn(&str) -> Verdict + Send + Sync + 'static) -> Self {
        Self { prompt, expected: None, solutions: None, opening: None, check: Box::new(check) }
    }

    /// A problem with one right answer; `find` extracts the answer from a completion.
    pub fn with_answer(
        prompt: String,
        expected: String,
        find: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let right = expected.clone();
        let check = move |text: &str| {
            let answer = find(text);
            Verdict { correct: Some(answer.as_ref() == Some(&right)), answer, ..Verdict::default() }
        };
        Self { expected: Some(expected), ..Self::new(prompt, check) }
    }

    /// Sets the number of solutions.
    pub fn with_solutions(self, solutions: usize) -> Self {
        Self { solutions: Some(solutions), ..self }
    }

    /// Sets the text with which every completion begins.
    pub fn with_opening(self, opening: &'static str) -> Self {
        Self { opening: Some(opening), ..self }
    }

    /// Judges a completion.
    pub fn check(&self, text: &str) -> Verdict {
        (self.check)(text)
    }
}

impl Verdict {
    /// The verdict for a problem with many solutions: right if `mode` is one of them.
    pub fn one_of_many(mode: Option<String>) -> Self {
        Self { correct: Some(mode.is_some()), answer: mode.clone(), mode, trained: false }
    }
}

/// The tasks, in the order in which they run.
pub fn all() -> Vec<Box<dyn Task>> {
    vec![
        Box::new(Sentences),
        Box::new(Names),
        Box::new(Products),
        Box::new(Letters),
        Box::new(Gcd),
        Box::new(ReasoningGym),
        Box::new(Stories),
    ]
}

/// Shuffles with the same random numbers on every machine.
fn shuffle<T>(items: &mut [T]) {
    shuffle_with(items, &mut ChaCha8Rng::seed_from_u64(SPLIT_SEED));
}

/// Fisher–Yates shuffle.
pub(crate) fn shuffle_with<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        // The modulo bias is below 2^-40 and negligible.
        items.swap(last, (rng.next_u64() % (last as u64 + 1)) as usize);
    }
}
