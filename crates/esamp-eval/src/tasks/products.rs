//! The task of multiplying.

use super::{Problem, Task, numbers::last_number};

/// The product of two numbers, with room to reason.
pub struct Products;

/// The factors, small enough that the model is sometimes right.
const SMALLER: std::ops::Range<u64> = 3..10;
const LARGER: std::ops::Range<u64> = 11..50;

impl Task for Products {
    fn name(&self) -> &'static str {
        "products"
    }

    fn what(&self) -> &'static str {
        "what is a times b, with a brief explanation"
    }

    fn tokens(&self) -> usize {
        64
    }

    fn problems(&self) -> Vec<Problem> {
        let pairs = SMALLER.flat_map(|a| LARGER.map(move |b| (a, b)));
        pairs.filter(|(_, b)| b % 10 != 0).map(|(a, b)| problem(a, b)).collect()
    }
}

fn problem(a: u64, b: u64) -> Problem {
    let prompt = format!("What is {a} times {b}? Explain briefly.");
    Problem::with_answer(prompt, (a * b).to_string(), move |text| product_in(text, a, b))
}

/// The number that a text gives as the product of `a` and `b`: the last one greater than both.
pub fn product_in(text: &str, a: u64, b: u64) -> Option<String> {
    last_number(text, a.max(b) + 1..=u64::MAX)
}
