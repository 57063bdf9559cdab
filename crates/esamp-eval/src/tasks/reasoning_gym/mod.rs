//! Problems of a public set.
//!
//! `problems.json` was written by `generate.py`, from the generators of the package
//! [reasoning-gym](https://github.com/open-thought/reasoning-gym) (Apache-2.0); what it says of the package, its version and
//! its settings is in the file's head. The questions are the package's, an instruction for the model is added to each.
//!
//! A model of 135M parameters does not keep to a form of answer that it is told, so answers are looked for in what it does
//! write ([`Generator::answer_in`]). What is found is right where the package's own scorer gives it full marks, which is
//! where the two are equal; `generate.py --check` compares both.

use serde::Deserialize;

use super::{Problem, Task, numbers::numbers};

/// Sums, least common multiples, and relationships between people: problems of the package reasoning-gym.
pub struct ReasoningGym;

/// The file, as it was when this was compiled.
pub const FILE: &str = include_str!("problems.json");

/// What the file says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ProblemSet {
    /// The package that its problems are from.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// The package's licence, as an SPDX expression.
    pub license: String,
    /// Whose work it is.
    pub notice: String,
    /// The problems, grouped by generator.
    pub problems: Vec<Entry>,
}

/// A problem of the set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Entry {
    /// Who made it.
    pub generator: Generator,
    /// The question, without an instruction how to answer it.
    pub question: String,
    /// The right answer; there is only one.
    pub answer: String,
}

/// A generator, by the name that it has in the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generator {
    /// A sum or difference of two or three digits, not negative.
    ChainSum,
    /// The least common multiple of two numbers, neither of which is it.
    Lcm,
    /// How many sisters or female friends somebody has, where those of somebody else are given (Nezhurina et al., 2024).
    Aiw,
    /// What one person is to another, in a family of three to five.
    FamilyRelationships,
}

impl ProblemSet {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What is no such file.
    pub fn read(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

impl Task for ReasoningGym {
    fn name(&self) -> &'static str {
        "reasoning-gym"
    }

    fn what(&self) -> &'static str {
        "sums, least common multiples and relationships from the public set reasoning-gym, explained in a sentence"
    }

    fn tokens(&self) -> usize {
        64
    }

    /// # Panics
    ///
    /// Not with the file that a test has read.
    fn problems(&self) -> Vec<Problem> {
        let set = ProblemSet::read(FILE).expect("problems.json is as generate.py writes it");
        set.problems.into_iter().map(Entry::problem).collect()
    }
}

impl Entry {
    /// The problem, to be asked and judged.
    pub fn problem(self) -> Problem {
        let prompt = format!("{}\n{}", self.question, self.generator.instruction());
        Problem::with_answer(prompt, self.answer, move |text| self.generator.answer_in(text))
    }
}

/// Words for what one person is to another, longer ones with hyphens: those of the package, and others that a text may
/// choose instead.
const RELATIONSHIPS: [&str; 25] = [
    "mother",
    "father",
    "sister",
    "brother",
    "daughter",
    "son",
    "wife",
    "husband",
    "grandmother",
    "grandfather",
    "granddaughter",
    "grandson",
    "aunt",
    "uncle",
    "niece",
    "nephew",
    "cousin",
    "mother-in-law",
    "father-in-law",
    "sister-in-law",
    "brother-in-law",
    "daughter-in-law",
    "son-in-law",
    "stepmother",
    "stepfather",
];

impl Generator {
    /// What the model is told behind the question, so that it writes more than a number or a word.
    pub fn instruction(self) -> &'static str {
        match self {
            Self::FamilyRelationships => "Name the relationship and explain it in one sentence.",
            Self::ChainSum | Self::Lcm => "Explain in one sentence and end it with the answer.",
            Self::Aiw => "Write one short sentence with the calculation, and then the answer.",
        }
    }

    /// The answer that a text gives.
    ///
    /// A number: the last one, in the form of [`numbers`]. A relationship: the first word for one, in lower case, whole (no
    /// `son` in `sons` and no `mother` in `mother in law`); those behind it say what other people are to each other.
    pub fn answer_in(self, text: &str) -> Option<String> {
        match self {
            Self::ChainSum | Self::Lcm | Self::Aiw => numbers(text).pop(),
            Self::FamilyRelationships => {
                let text = text.to_lowercase().replace(" in law", "-in-law");
                let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
                words.find(|word| RELATIONSHIPS.contains(word)).map(str::to_owned)
            }
        }
    }
}
