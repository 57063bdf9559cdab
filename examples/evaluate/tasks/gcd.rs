//! Greatest common divisors.

use super::{Problem, Task, numbers::last_number};

/// The greatest common divisor of two numbers, neither of which is it.
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
        // Divisors of 1 and multiples would make a guess as good as a thought.
        pairs.filter(|&(a, b)| (2..a).contains(&gcd(a, b))).map(|(a, b)| problem(a, b)).collect()
    }
}

fn problem(a: u64, b: u64) -> Problem {
    let prompt = format!("What is the greatest common divisor of {a} and {b}? Explain briefly.");
    Problem::with_answer(prompt, gcd(a, b).to_string(), move |text| divisor_in(text, a, b))
}

/// The number that a text gives as the divisor: the last one below both.
pub fn divisor_in(text: &str, a: u64, b: u64) -> Option<String> {
    last_number(text, 1..=a.min(b) - 1)
}

/// Euclid's.
pub fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
