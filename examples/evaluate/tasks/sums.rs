//! Sums with many solutions.

use super::{Problem, Task, Verdict, numbers::numbers};

/// Different numbers that add up to a given one: few enough solutions to count all of them.
pub struct Sums;

const TERMS: usize = 3;

impl Task for Sums {
    fn name(&self) -> &'static str {
        "sums"
    }

    fn what(&self) -> &'static str {
        "three different positive numbers with a given sum; every set of them is one solution"
    }

    fn tokens(&self) -> usize {
        48
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let wordings = [
            "Find three different positive whole numbers that add up to {}. Write them as an equation.",
            "Write {} as the sum of three different positive whole numbers.",
        ];
        let problem = |wording: &str, total: u64| {
            let prompt = wording.replace("{}", &total.to_string());
            Problem::new(prompt, move |text| Verdict::one_of_many(terms_in(text, total)))
                .with_solutions(solutions(total))
        };
        (10..110).flat_map(|total| wordings.map(|wording| problem(wording, total))).collect()
    }
}

/// The solution that a text gives, smallest number first, as in `2 + 5 + 13`: its first three numbers that are not the sum
/// itself, if they are different, positive, and add up to `total`.
pub fn terms_in(text: &str, total: u64) -> Option<String> {
    let given = numbers(text).into_iter().filter(|number| *number != total.to_string());
    let mut terms: Vec<u64> =
        given.take(TERMS).map(|number| number.parse().ok()).collect::<Option<_>>()?;
    terms.sort_unstable();
    terms.dedup();
    let sum = terms.iter().try_fold(0u64, |sum, &term| sum.checked_add(term));
    let holds = terms.len() == TERMS && terms[0] > 0 && sum == Some(total);
    holds.then(|| terms.iter().map(u64::to_string).collect::<Vec<_>>().join(" + "))
}

/// How many solutions there are.
pub fn solutions(total: u64) -> usize {
    let pairs = (1..total).flat_map(|a| (a + 1..total).map(move |b| (a, b)));
    pairs.filter(|&(a, b)| a + b + b < total).count()
}
