//! The task of finding greatest common divisors.

use super::{Problem, Task, numbers::last_number};

/// The greatest common divisor of two numbers, different from both.
pub struct Gcd;

const NUMBERS: std::ops::Range<u64> = 8..80;

impl Task for Gcd {
    fn name(&self) -> &'static str {
        "gcd"
    }

    fn what(&self) -> &'static str {
        "the greatest common divisor of two numbers, with a brief explanation"
    }

    fn tokens(&self) -> usize {
        64
    }

    fn problems(&self) -> Vec<Problem> {
        let pairs = NUMBERS.flat_map(|a| (a + 1..NUMBERS.end).map(move |b| (a, b)));
        // With a divisor of 1, or with multiples, guessing would be as good as computing.
        pairs.filter(|&(a, b)| (2..a).contains(&gcd(a, b))).map(|(a, b)| problem(a, b)).collect()
    }
}

fn problem(a: u64, b: u64) -> Problem {
    let prompt = format!("What is the greatest common divisor of {a} and {b}? Explain briefly.");
    Problem::with_answer(prompt, gcd(a, b).to_string(), move |text| divisor_in(text, a, b))
}

/// The number that a text gives as the divisor: the first possible one after an "is", otherwise the last
/// possible one. Texts usually give the divisor first and then explain it.
pub fn divisor_in(text: &str, a: u64, b: u64) -> Option<String> {
    let could_be = 1..=a.min(b) - 1;
    let words: Vec<String> = text
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
        .collect();
    let stated = words
        .windows(2)
        .filter(|pair| pair[0] == "is")
        .find_map(|pair| pair[1].parse().ok().filter(|number| could_be.contains(number)));
    stated.map(|number: u64| number.to_string()).or_else(|| last_number(text, could_be))
}

/// Euclid's algorithm.
pub fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
