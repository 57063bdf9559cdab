//! The task of counting letters in a word.

use super::{Problem, Task};

/// How often a letter occurs in a word.
pub struct Letters;

const WORDS: [&str; 72] = [
    "strawberry",
    "banana",
    "mississippi",
    "committee",
    "bookkeeper",
    "assessment",
    "parallel",
    "possession",
    "engineering",
    "coffee",
    "balloon",
    "tomorrow",
    "successful",
    "address",
    "butterfly",
    "pineapple",
    "umbrella",
    "watermelon",
    "elephant",
    "giraffe",
    "kangaroo",
    "crocodile",
    "caterpillar",
    "dragonfly",
    "grasshopper",
    "necessary",
    "accommodation",
    "embarrassment",
    "independence",
    "millennium",
    "occurrence",
    "recommendation",
    "questionnaire",
    "restaurant",
    "rhythm",
    "separate",
    "temperature",
    "vacuum",
    "refrigerator",
    "television",
    "university",
    "volleyball",
    "basketball",
    "calendar",
    "dictionary",
    "encyclopedia",
    "fireplace",
    "gardener",
    "helicopter",
    "immediately",
    "jellyfish",
    "keyboard",
    "lighthouse",
    "mountain",
    "notebook",
    "orchestra",
    "pepperoni",
    "quarrel",
    "raspberry",
    "screwdriver",
    "tennessee",
    "understand",
    "vegetable",
    "waterfall",
    "xylophone",
    "yesterday",
    "zookeeper",
    "alligator",
    "blackberry",
    "cinnamon",
    "development",
    "environment",
];

const NAMES: [&str; 11] =
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

impl Task for Letters {
    fn name(&self) -> &'static str {
        "letters"
    }

    fn what(&self) -> &'static str {
        "how often a letter occurs in a word, with a brief explanation"
    }

    fn tokens(&self) -> usize {
        64
    }

    fn problems(&self) -> Vec<Problem> {
        let pairs = WORDS.iter().flat_map(|&word| {
            let letters: std::collections::BTreeSet<char> = word.chars().collect();
            letters.into_iter().map(move |letter| (word, letter))
        });
        // Only letters that occur more than once: 1 is what a model guesses.
        pairs
            .filter(|&(word, letter)| count(word, letter) > 1)
            .map(|(w, l)| problem(w, l))
            .collect()
    }
}

/// How often `letter` occurs in `word`.
pub fn count(word: &str, letter: char) -> usize {
    word.chars().filter(|&c| c == letter).count()
}

fn problem(word: &'static str, letter: char) -> Problem {
    let prompt = format!(
        "How many times does the letter \"{letter}\" occur in the word \"{word}\"? Explain briefly."
    );
    Problem::with_answer(prompt, count(word, letter).to_string(), count_in)
}

/// The count that a text gives: the first number up to ten, in digits or as a word, including `once` and
/// `twice`. Later numbers are usually about other letters rather than corrections.
pub fn count_in(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let number = |word: &str| match word.to_lowercase().as_str() {
        "once" => Some(1),
        "twice" => Some(2),
        word => {
            let named = NAMES.iter().position(|&name| name == word);
            named.or_else(|| word.parse().ok()).filter(|&number| number <= 10)
        }
    };
    words.find_map(number).map(|number| number.to_string())
}
