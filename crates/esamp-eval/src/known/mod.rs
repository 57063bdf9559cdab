//! Tasks whose right answers are all known, each for a small model that was trained on some of them.
//!
//! The tasks are those of *Roll the dice & look before you leap* (arXiv 2504.15266). A model sees `HASH <q> QUERY` and
//! continues with `: ANSWER </a>`, where the hash is four of sixteen symbols. The hash is drawn anew each time a model
//! is trained on an item, so it carries no information: the problems of a task, which differ in the hash, are
//! independent repetitions of one question.
//!
//! `train-known-answers` trains the models, and `evaluate --tasks sibling --model crates/esamp-eval/known/sibling-even`
//! runs one. `docs/design/round-2.md` says why the tasks are as they are.

mod data;
mod drawn;
mod network;
mod paths;
mod save;
mod sibling;
mod train;
mod triangle;

use std::{collections::HashSet, sync::Arc};

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::tasks::{Problem, Task, Verdict};

pub use data::{Batch, Peakedness, Sampler, Vocabulary};
pub use drawn::{Drawn, drawn};
pub use network::{Network, NetworkShape};
pub use paths::Paths;
pub use save::{SaveError, load, save};
pub use sibling::Sibling;
pub use train::{TrainSettings, train};
pub use triangle::Triangle;

/// The number of problems of each task, of which half are held out.
const PROBLEMS: usize = 80;
/// Symbols of a hash.
pub(crate) const HASH_LENGTH: usize = 4;
/// Different symbols.
pub(crate) const HASH_SYMBOLS: usize = 16;
/// The token that begins every answer. A completion's first token is never steered, so it should not be part of the
/// choice.
const OPENING: &str = ":";

/// A question with many right answers, all of them known.
pub trait World: Send + Sync {
    /// The name of its task.
    fn name(&self) -> &'static str;

    /// A one-line description.
    fn what(&self) -> &'static str;

    /// The words after `<q>` in the prompt of a problem.
    fn query(&self) -> &'static str;

    /// The most words of an answer.
    fn longest(&self) -> usize;

    /// All words of queries and answers.
    fn words(&self) -> Vec<String>;

    /// What a model is trained on, always the same and in the same order: the first items are those that a peaked
    /// model has seen most.
    fn training(&self) -> Vec<Item>;

    /// The same answer written in another way, `None` if there is only one way. A model that is trained on every order
    /// of the parts of an answer learns from fewer answers what makes one right.
    fn rewritten(&self, answer: &str, rng: &mut ChaCha8Rng) -> Option<String> {
        let _ = (answer, rng);
        None
    }

    /// The canonical form of an answer to [`query`](Self::query), `None` if it is wrong. Answers that are the same
    /// except in order have the same form.
    fn canonical(&self, answer: &[&str]) -> Option<String>;

    /// The number of right answers.
    fn answers(&self) -> usize;
}

/// A question and an answer to train on, as words separated by spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The words after `<q>`.
    pub query: &'static str,
    /// The answer.
    pub answer: String,
}

/// All worlds, in the order in which they are trained.
pub fn worlds() -> Vec<Box<dyn World>> {
    vec![
        Box::new(Sibling::new()),
        Box::new(Triangle::new()),
        Box::new(Paths::circle()),
        Box::new(Paths::line()),
    ]
}

/// The tasks of all worlds.
pub fn tasks() -> Vec<Box<dyn Task>> {
    worlds().into_iter().map(|world| Box::new(KnownAnswers::new(world)) as Box<dyn Task>).collect()
}

/// The canonical forms of the answers to a world's query that its models were trained on.
pub fn trained_on(world: &dyn World) -> HashSet<String> {
    let asked = world.training().into_iter().filter(|item| item.query == world.query());
    asked.filter_map(|item| world.canonical(&item.answer.split(' ').collect::<Vec<_>>())).collect()
}

/// The task of a world. The mode of a right completion is its canonical form.
pub struct KnownAnswers {
    world: Arc<dyn World>,
}

impl KnownAnswers {
    /// The task of a world.
    pub fn new(world: Box<dyn World>) -> Self {
        Self { world: world.into() }
    }
}

impl Task for KnownAnswers {
    fn name(&self) -> &'static str {
        self.world.name()
    }

    fn what(&self) -> &'static str {
        self.world.what()
    }

    /// The opening, the answer, and the token that ends it.
    fn tokens(&self) -> usize {
        self.world.longest() + 2
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let mut rng = ChaCha8Rng::seed_from_u64(0x6861_7368);
        let solutions = self.world.answers();
        let trained = Arc::new(trained_on(&*self.world));
        let mut prompts = HashSet::new();
        let mut problems = Vec::new();
        while problems.len() < PROBLEMS {
            let hash = draw_hash(&mut rng).map(|symbol| format!("h{symbol}")).join(" ");
            let prompt = format!("{hash} <q> {}", self.world.query()).trim_end().to_owned();
            if !prompts.insert(prompt.clone()) {
                continue;
            }
            let (world, trained) = (self.world.clone(), trained.clone());
            let check = move |text: &str| {
                let answer = answer_in(&*world, text);
                let trained = answer.as_ref().is_some_and(|answer| trained.contains(answer));
                Verdict { trained, ..Verdict::one_of_many(answer) }
            };
            problems.push(Problem::new(prompt, check).with_solutions(solutions));
        }
        problems
    }
}

/// The canonical form of the answer that a completion is, `None` if it is wrong.
fn answer_in(world: &dyn World, text: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    let opens = words.next() == Some(OPENING);
    let answer: Vec<&str> = words.collect();
    opens.then(|| world.canonical(&answer)).flatten()
}

/// The symbols of a hash.
pub(crate) fn draw_hash(rng: &mut ChaCha8Rng) -> [usize; HASH_LENGTH] {
    std::array::from_fn(|_| rng.random_range(0..HASH_SYMBOLS))
}
