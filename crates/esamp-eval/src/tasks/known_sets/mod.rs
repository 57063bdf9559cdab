//! The task of naming one member of a set whose members are all known.

mod lists;

use std::collections::BTreeSet;

use self::lists::SAME;
use super::{Problem, Task, Verdict, names};

/// One member of a known set, in a few tokens (after arXiv 2605.11128: states, chemical elements, two-digit numbers, digits
/// with a given sum).
///
/// Every set is one problem. Sets are lists of names, parts of such lists with a given first letter, and numbers with a
/// property; the questions are asked in three wordings in turn. All completions begin with `One example is`, which is
/// forced, so that all tokens of the answer can be steered; its three tokens count in a completion's log-probability,
/// alike for all arms.
pub struct KnownSets;

/// A set and its name in the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Completes "Name one …".
    pub what: String,
    /// All members, in lower case, in all spellings that count.
    members: Vec<String>,
}

/// With which every completion begins.
const OPENING: &str = "One example is";
/// The fewest members of a set.
const FEWEST: usize = 5;
/// What may stand between the opening and the member.
const BEFORE: [&str; 14] = [
    "the ",
    "a ",
    "an ",
    "state of ",
    "country of ",
    "city of ",
    "province of ",
    "month of ",
    "number ",
    "year ",
    "letter ",
    "element ",
    "planet ",
    "lake ",
];

impl Task for KnownSets {
    fn name(&self) -> &'static str {
        "known-sets"
    }

    fn what(&self) -> &'static str {
        "one member of a set whose members are all known; completions are made to begin with \"One example is\""
    }

    fn tokens(&self) -> usize {
        12
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        sets().into_iter().enumerate().map(|(at, set)| problem(at, set)).collect()
    }
}

fn problem(at: usize, set: Set) -> Problem {
    let what = &set.what;
    let prompt = match at % 3 {
        0 => format!("Name one {what}."),
        1 => format!("Tell me one {what}."),
        _ => format!("I need one {what}. Which do you suggest?"),
    };
    let solutions = set.len();
    let check = move |text: &str| Verdict::one_of_many(set.answer_in(text));
    Problem::new(prompt, check).with_solutions(solutions).with_opening(OPENING)
}

/// All sets, always in the same order.
pub fn sets() -> Vec<Set> {
    let of_names = names::LISTS.iter().map(|list| (list.what, list.members));
    // The list of elements there is shorter.
    let of_names = of_names.filter(|(what, _)| *what != "chemical element");
    let named: Vec<lists::NamedList> = of_names.chain(lists::LISTS).collect();
    let mut sets: Vec<Set> = named.iter().map(|&(what, members)| Set::of(what, members)).collect();
    for (what, members) in &named {
        for letter in 'A'..='Z' {
            let part: Vec<&str> =
                members.iter().copied().filter(|name| name.starts_with(letter)).collect();
            let part = Set::of(&format!("{what} whose name begins with {letter}"), &part);
            if part.len() >= FEWEST && part.len() < members.len() {
                sets.push(part);
            }
        }
    }
    sets.extend(numbers());
    sets
}

/// Sets of numbers.
fn numbers() -> Vec<Set> {
    let mut sets = Vec::new();
    let mut add = |what: String, range: std::ops::Range<u32>, has: &dyn Fn(u32) -> bool| {
        let members: Vec<String> = range.filter(|&n| has(n)).map(|n| n.to_string()).collect();
        if members.len() >= FEWEST {
            sets.push(Set { what, members });
        }
    };
    let two = || 10..100;
    let three = || 100..1000;
    add("two-digit number".to_owned(), two(), &|_| true);
    add("three-digit number".to_owned(), three(), &|_| true);
    add("one-digit number".to_owned(), 0..10, &|_| true);
    add("even two-digit number".to_owned(), two(), &|n| n.is_multiple_of(2));
    add("odd two-digit number".to_owned(), two(), &|n| n % 2 == 1);
    add("prime number below 100".to_owned(), 0..100, &is_prime);
    add("square number from 1 to 400".to_owned(), 1..401, &|n| n.isqrt().pow(2) == n);
    add("year from 1900 to 1999".to_owned(), 1900..2000, &|_| true);
    for (from, to) in [(1, 20), (20, 40), (40, 70), (50, 100), (100, 200)] {
        add(format!("number from {from} to {to}"), from..to + 1, &|_| true);
    }
    for divisor in 3..=11 {
        let what = format!("two-digit number that is divisible by {divisor}");
        add(what, two(), &|n| n.is_multiple_of(divisor));
    }
    for sum in 1..=18 {
        add(format!("two-digit number whose digits sum to {sum}"), two(), &|n| digits(n) == sum);
    }
    for decade in (1900..2000).step_by(10) {
        add(format!("year of the {decade}s"), decade..decade + 10, &|_| true);
    }
    for digit in 1..=9 {
        let what = format!("two-digit number that begins with {digit}");
        add(what, two(), &|n| n / 10 == digit);
        add(format!("two-digit number that ends in {digit}"), two(), &|n| n % 10 == digit);
        let what = format!("three-digit number that begins with {digit}");
        add(what, three(), &|n| n / 100 == digit);
    }
    sets
}

fn is_prime(n: u32) -> bool {
    n > 1 && (2..=n.isqrt()).all(|divisor| !n.is_multiple_of(divisor))
}

/// The sum of the decimal digits.
fn digits(n: u32) -> u32 {
    n.to_string().bytes().map(|digit| u32::from(digit - b'0')).sum()
}

impl Set {
    fn of(what: &str, members: &[&str]) -> Self {
        Self {
            what: what.to_owned(),
            members: members.iter().map(|name| name.to_lowercase()).collect(),
        }
    }

    /// The number of members; two spellings of one are one.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.members.iter().map(|name| canonical(name)).collect::<BTreeSet<_>>().len()
    }

    /// The member that a completion names, in lower case; `None` if it names none.
    ///
    /// After the opening, blanks and quotation marks, the text must begin with the member, ignoring case, with or without
    /// words such as *the*, *state of* and *number* in front. What follows is ignored, except that a letter, a digit, or a
    /// digit after a comma or a full stop makes it another word or number. The longest member counts.
    pub fn answer_in(&self, text: &str) -> Option<String> {
        let text = text.strip_prefix(OPENING)?.to_lowercase();
        let mut left = text.trim_start_matches(|c: char| !c.is_alphanumeric());
        let mut texts = vec![left];
        while let Some(rest) = BEFORE.iter().find_map(|word| left.strip_prefix(word)) {
            left = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
            texts.push(left);
        }
        let begins = |name: &&String| {
            let is_it =
                |text: &&str| text.strip_prefix(name.as_str()).is_some_and(|rest| !goes_on(rest));
            texts.iter().any(is_it)
        };
        let found = self.members.iter().filter(begins).max_by_key(|name| name.len());
        found.map(|name| canonical(name))
    }
}

/// Whether a word or a number goes on with `rest`.
fn goes_on(rest: &str) -> bool {
    let mut letters = rest.chars();
    match letters.next() {
        Some(c) if c.is_alphanumeric() => true,
        Some('.' | ',') => letters.next().is_some_and(|c| c.is_ascii_digit()),
        _ => false,
    }
}

/// The spelling that stands for all spellings of a name.
fn canonical(name: &str) -> String {
    let same = SAME.iter().find(|[_, other]| other.to_lowercase() == name);
    same.map_or_else(|| name.to_owned(), |[first, _]| first.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(what: &str) -> Set {
        let found = sets().into_iter().find(|set| set.what == what);
        found.unwrap_or_else(|| Set::of(what, &[]))
    }

    #[test]
    fn sets_by_hand() {
        for (what, size) in [
            ("state of the United States", 50),
            ("chemical element", 118),
            ("code word of the NATO alphabet", 26),
            ("capital of a state of the United States", 50),
            ("country in the European Union", 27),
            ("state of Germany", 16),
            ("US president, by last name", 40),
            ("play by Shakespeare", 35),
            ("state of the United States whose name begins with M", 8),
            ("two-digit number", 90),
            ("prime number below 100", 25),
            ("square number from 1 to 400", 20),
            ("two-digit number whose digits sum to 9", 9),
            ("year of the 1920s", 10),
            ("three-digit number that begins with 4", 100),
            ("two-digit number that is divisible by 7", 13),
            ("two-digit number that ends in 3", 9),
        ] {
            assert_eq!(set(what).len(), size, "{what}");
        }
        // Ten for the first digit 1, down to two for 9: 19 minus the sum.
        for sum in 10..=14 {
            let what = format!("two-digit number whose digits sum to {sum}");
            assert_eq!(set(&what).len(), 19 - sum);
        }
        assert_eq!(set("two-digit number whose digits sum to 15").len(), 0, "too few");
    }

    #[test]
    fn sets_are_many_different_and_not_small() {
        let sets = sets();
        let names: BTreeSet<&str> = sets.iter().map(|set| set.what.as_str()).collect();
        assert_eq!(names.len(), sets.len());
        // Half of them are held out.
        assert!(sets.len() >= 120, "{}", sets.len());
        for set in &sets {
            let unique: BTreeSet<&String> = set.members.iter().collect();
            assert_eq!(unique.len(), set.members.len(), "{}", set.what);
            assert!(set.len() >= FEWEST, "{}", set.what);
            for name in &set.members {
                let found = set.answer_in(&format!("{OPENING} {name}."));
                assert_eq!(found, Some(canonical(name)), "{}", set.what);
            }
        }
    }

    #[test]
    fn answers_by_hand() {
        for (what, text, expected) in [
            ("state of the United States", "One example is Kansas", Some("kansas")),
            (
                "state of the United States",
                "One example is \"WEST VIRGINIA\" is",
                Some("west virginia"),
            ),
            ("state of the United States", "One example is New York, New York", Some("new york")),
            ("state of the United States", "One example is Virginias", None),
            ("state of the United States", "One example is It is Kansas", None),
            ("state of the United States", "Kansas", None),
            ("state of the United States", "One example is", None),
            ("state of the United States", "One example is the state of \"Maine\"", Some("maine")),
            ("letter of the English alphabet", "One example is the letter A.", Some("a")),
            ("chess piece", "One example is a King, or", Some("king")),
            ("play by Shakespeare", "One example is Henry VIII.", Some("henry viii")),
            ("play by Shakespeare", "One example is The Tempest", Some("the tempest")),
            ("play by Shakespeare", "One example is the Hamlet", Some("hamlet")),
            ("code word of the NATO alphabet", "One example is Alpha", Some("alfa")),
            ("Great Lake of North America", "One example is Lake Erie\nIt", Some("erie")),
            ("ocean of the Earth", "One example is The Pacific Ocean.", Some("pacific")),
            ("two-digit number", "One example is 42.", Some("42")),
            ("two-digit number", "One example is 42.5", None),
            ("two-digit number", "One example is 42,000", None),
            ("two-digit number", "One example is 423", None),
            ("two-digit number", "One example is 42, 43", Some("42")),
            ("two-digit number", "One example is 4", None),
        ] {
            assert_eq!(set(what).answer_in(text).as_deref(), expected, "{what}: {text}");
        }
    }
}
