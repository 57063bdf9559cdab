//! Problems of the public set reasoning-gym.
//!
//! `generate.py` wrote `problems.json` with the generators of the package
//! [reasoning-gym](https://github.com/open-thought/reasoning-gym) (Apache-2.0). The head of the file has
//! the package's notice, version and settings. The questions are the package's; an instruction for the
//! model is appended to each.
//!
//! A model of 135M parameters does not follow a prescribed answer format, so answers are searched for in
//! its text ([`Generator::answer_in`]). An answer is right if the package's own scorer gives it full marks,
//! which is exactly if it equals the expected one; `generate.py --check` compares the two.

use serde::Deserialize;

use super::{Problem, Task, numbers::numbers};

/// Sums, least common multiples, and relationships between people, from the package reasoning-gym.
pub struct ReasoningGym;

/// The file, included at compile time.
pub const FILE: &str = include_str!("problems.json");

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ProblemSet {
    /// The package the problems are from.
    pub package: String,
    /// The version of the package.
    pub version: String,
    /// The licence of the package, as an SPDX expression.
    pub license: String,
    /// The copyright notice.
    pub notice: String,
    /// The problems, grouped by generator.
    pub problems: Vec<Entry>,
}

/// A problem of the set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Entry {
    /// The generator that made it.
    pub generator: Generator,
    /// The question, without an instruction on how to answer.
    pub question: String,
    /// The only right answer.
    pub answer: String,
}

/// A generator, by its name in the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generator {
    /// A non-negative sum or difference of numbers, of two or three digits.
    ChainSum,
    /// The least common multiple of two numbers, different from both.
    Lcm,
    /// How many sisters or female friends one person has, given those of another (Nezhurina et al., 2024).
    Aiw,
    /// How one person is related to another in a family of three to five.
    FamilyRelationships,
}

impl ProblemSet {
    /// Parses a file.
    ///
    /// # Errors
    ///
    /// A file that is not in this format.
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
    /// Never: a test parses the included file.
    fn problems(&self) -> Vec<Problem> {
        let set = ProblemSet::read(FILE).expect("problems.json is as generate.py writes it");
        set.problems.into_iter().map(Entry::problem).collect()
    }
}

impl Entry {
    /// The problem with its prompt and checker.
    pub fn problem(self) -> Problem {
        let prompt = format!("{}\n{}", self.question, self.generator.instruction());
        Problem::with_answer(prompt, self.answer, move |text| self.generator.answer_in(text))
    }
}

/// Words for relationships, longer ones with hyphens: those of the package, and others a text may use
/// instead.
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
    /// The instruction appended to the question, so that the model writes more than a number or a word.
    pub fn instruction(self) -> &'static str {
        match self {
            Self::FamilyRelationships => "Name the relationship and explain it in one sentence.",
            Self::ChainSum | Self::Lcm => "Explain in one sentence and end it with the answer.",
            Self::Aiw => "Write one short sentence with the calculation, and then the answer.",
        }
    }

    /// The answer that a text gives.
    ///
    /// For numbers, the last one, in the form of [`numbers`]. For relationships, the first relationship
    /// word, in lower case and whole (no `son` in `sons`, no `mother` in `mother in law`); later ones are
    /// about other people.
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
