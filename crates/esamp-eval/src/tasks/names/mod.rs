//! The task of naming members of well-known lists, which are short enough to count all solutions.

mod lists;

pub use self::lists::LISTS;
use super::{Problem, Task, Verdict};

/// A member of a known list whose name contains a given letter.
pub struct Names;

/// A list and its name in the question.
pub struct List {
    /// Completes "Name one …".
    pub what: &'static str,
    /// All members, in English.
    pub members: &'static [&'static str],
}

/// The fewest solutions of a problem.
const LEAST: usize = 8;

impl Task for Names {
    fn name(&self) -> &'static str {
        "names"
    }

    fn what(&self) -> &'static str {
        "one member of a known list whose name has a given letter; every such member is one solution"
    }

    fn tokens(&self) -> usize {
        40
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let letters = LISTS.iter().flat_map(|list| ('a'..='z').map(move |letter| (list, letter)));
        let found = letters.map(|(list, letter)| (list, letter, list.solutions(letter)));
        let found = found.filter(|(list, _, solutions)| {
            // A letter that nearly all members have is no constraint.
            (LEAST..=list.members.len() * 2 / 3).contains(&solutions.len())
        });
        found.map(|(list, letter, solutions)| problem(list, letter, solutions.len())).collect()
    }
}

fn problem(list: &'static List, letter: char, solutions: usize) -> Problem {
    let prompt = format!(
        "Name one {} whose name contains the letter \"{letter}\", and say one sentence about it.",
        list.what
    );
    let check = move |text: &str| {
        let answer = list.first_in(text);
        let mode = answer.filter(|name| has(name, letter)).map(str::to_owned);
        Verdict { answer: answer.map(str::to_owned), ..Verdict::one_of_many(mode) }
    };
    Problem::new(prompt, check).with_solutions(solutions)
}

impl List {
    /// The members whose names contain a letter.
    pub fn solutions(&self, letter: char) -> Vec<&'static str> {
        self.members.iter().copied().filter(|name| has(name, letter)).collect()
    }

    /// The member that a text names first, ignoring case; the longest if several start at the same place.
    pub fn first_in(&self, text: &str) -> Option<&'static str> {
        let text = text.to_lowercase();
        let found = self.members.iter().filter_map(|name| {
            Some((whole_word(&text, &name.to_lowercase())?, std::cmp::Reverse(name.len()), *name))
        });
        found.min().map(|(_, _, name)| name)
    }
}

fn has(name: &str, letter: char) -> bool {
    name.to_lowercase().contains(letter)
}

/// The first position of a word or phrase in a text without a letter or digit next to it.
fn whole_word(text: &str, word: &str) -> Option<usize> {
    let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !joins(before.chars().next_back()) && !joins(after.chars().next())
    })
}
