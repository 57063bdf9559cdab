//! The task of writing sentences under constraints.

use super::{Problem, Task, Verdict};

/// One sentence with two given words and a limited number of words. The number of solutions is practically
/// unlimited.
pub struct Sentences;

const THINGS: [&str; 24] = [
    "lamp", "river", "violin", "ladder", "candle", "mirror", "bicycle", "umbrella", "bridge",
    "clock", "garden", "letter", "mountain", "kitchen", "pencil", "blanket", "window", "basket",
    "train", "hammer", "island", "pillow", "rope", "stone",
];
const OTHERS: [&str; 20] = [
    "doctor", "winter", "silence", "music", "teacher", "storm", "honey", "dog", "thief", "morning",
    "secret", "soldier", "cat", "dream", "smoke", "farmer", "snow", "child", "fire", "baker",
];
/// The word limits, which problems use in turn.
const LIMITS: [usize; 4] = [8, 9, 10, 12];

impl Task for Sentences {
    fn name(&self) -> &'static str {
        "sentences"
    }

    fn what(&self) -> &'static str {
        "one sentence of at most n words with two given words; sentences with the same content words are one solution"
    }

    fn tokens(&self) -> usize {
        40
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let pairs = THINGS.iter().flat_map(|&thing| OTHERS.map(|other| (thing, other)));
        let problem = |(at, (thing, other)): (usize, (&'static str, &'static str))| {
            let constraint = Constraint { words: [thing, other], limit: LIMITS[at % LIMITS.len()] };
            let prompt = format!(
                "Write one sentence of at most {} words that contains the words \"{thing}\" and \"{other}\". \
                 Write only \
                 the sentence.",
                constraint.limit
            );
            Problem::new(prompt, move |text| Verdict::one_of_many(constraint.solution_in(text)))
        };
        pairs.enumerate().map(problem).collect()
    }
}

/// What a sentence must satisfy.
#[derive(Clone, Copy, Debug)]
pub struct Constraint {
    /// Words that it must contain, unchanged.
    pub words: [&'static str; 2],
    /// The most words.
    pub limit: usize,
}

/// Words that do not make two sentences different solutions.
const FUNCTION_WORDS: [&str; 62] = [
    "a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "for", "with", "from",
    "by", "as", "into", "over", "under", "through", "near", "after", "before", "during", "is",
    "are", "was", "were", "be", "been", "being", "has", "have", "had", "do", "does", "did", "it",
    "its", "he", "she", "they", "his", "her", "their", "him", "them", "i", "my", "we", "our",
    "you", "your", "this", "that", "these", "those", "who", "which", "while", "when", "where",
];

impl Constraint {
    /// The solution that a text is: its content words in alphabetical order, without the given words.
    /// `None` if it is no solution.
    ///
    /// A solution is one sentence, with or without quotation marks. It begins with a letter, ends with a
    /// full stop, exclamation mark or question mark, and contains none of these and no line break before.
    /// It has at least four words, at most the limit, and both given words.
    pub fn solution_in(&self, text: &str) -> Option<String> {
        let quotes = ['"', '“', '”', '\'', '‘', '’'];
        let sentence = text.trim().trim_matches(quotes);
        let body = sentence.strip_suffix(['.', '!', '?'])?;
        let is_one = !body.contains(['.', '!', '?', '\n', ':'])
            && body.chars().next().is_some_and(char::is_alphabetic);
        let words: Vec<String> = body
            .split(|c: char| c.is_whitespace() || c == '—')
            .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
            .filter(|word| !word.is_empty())
            .collect();
        let has = |given: &str| words.iter().any(|word| word == given);
        let fits = (4..=self.limit).contains(&words.len());
        if !is_one || !fits || !self.words.iter().all(|given| has(given)) {
            return None;
        }
        let given = |word: &String| self.words.contains(&word.as_str());
        let mut content: Vec<String> = words
            .into_iter()
            .filter(|word| !given(word) && !FUNCTION_WORDS.contains(&word.as_str()))
            .collect();
        content.sort_unstable();
        content.dedup();
        Some(content.join(" "))
    }
}
