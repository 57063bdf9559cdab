//! Tables in Markdown.

use std::fmt::Write;

use esamp::metrics::{Interval, McNemar};

use super::{
    Task,
    compare::{At, Verdict, verdict},
    gather::Results,
    measures::Measure,
};
use crate::record::Role;

/// A number with its sign.
pub fn signed(value: f64, digits: usize) -> String {
    // A minus in front of nothing but zeros says what is not so.
    let text = format!("{value:+.digits$}");
    match text.trim_start_matches(['+', '-', '0', '.']).is_empty() {
        true => format!("{:.digits$}", 0.0),
        false => text.replace('-', "−"),
    }
}

/// A difference with its interval; bold where it rules out 0.
pub fn difference(interval: &Interval, digits: usize) -> String {
    let [estimate, low, high] =
        [interval.estimate, interval.low, interval.high].map(|value| signed(value, digits));
    let text = format!("{estimate} [{low}, {high}]");
    match verdict(interval) {
        Verdict::NoDifference => text,
        _ => format!("**{text}**"),
    }
}

fn or_dash(interval: Option<&Interval>, digits: usize) -> String {
    interval.map_or_else(|| "–".to_owned(), |interval| difference(interval, digits))
}

/// Means of every measure for every arm.
pub fn levels(results: &Results, task: &Task<'_>) -> String {
    let measures: Vec<Measure> = task.scores.measures.keys().copied().collect();
    let mut table = "| arm |".to_owned();
    for measure in &measures {
        let name = match measure {
            Measure::Surprisal => "perplexity".to_owned(),
            other => other.name(),
        };
        table += &format!(" {name} |");
    }
    table += "\n|---|";
    table += &"--:|".repeat(measures.len());
    table.push('\n');
    for (arm, record) in results.header.arms.iter().enumerate() {
        table += &format!("| {} |", record.name);
        for &measure in &measures {
            let mean = task.mean(measure, arm);
            let text = match measure {
                Measure::Surprisal => format!("{:.2}", mean.exp()),
                Measure::Changed => format!("{:.1} %", 100.0 * mean),
                other => format!("{mean:.*}", other.digits()),
            };
            table += &format!(" {text} |");
        }
        table.push('\n');
    }
    table
}

/// How much more of a measure every arm has.
pub fn gains(results: &Results, task: &Task<'_>, measure: Measure) -> String {
    let base = &results.header.arms[results.base()].name;
    let name = measure.name();
    let mut table = format!(
        "| arm | {name} | beside {base} | at equal perplexity | at equal entropy |\n|---|--:|--:|--:|--:|\n"
    );
    for (arm, record) in results.header.arms.iter().enumerate() {
        let gain = |at| or_dash(task.gain(arm, measure, at), measure.digits());
        let [same, perplexity, entropy] =
            [At::Same, At::EqualPerplexity, At::EqualEntropy].map(gain);
        let mean = task.mean(measure, arm);
        let digits = measure.digits();
        let _ = writeln!(
            table,
            "| {} | {mean:.digits$} | {same} | {perplexity} | {entropy} |",
            record.name
        );
    }
    table
}

/// Methods beside baselines.
pub fn rivalries(
    results: &Results,
    rivalries: &[(usize, usize, Interval)],
    measure: Measure,
) -> String {
    let name = |arm: usize| results.header.arms[arm].name.as_str();
    let mut baselines: Vec<usize> = rivalries.iter().map(|&(_, baseline, _)| baseline).collect();
    let mut methods: Vec<usize> = rivalries.iter().map(|&(method, ..)| method).collect();
    baselines.sort_unstable();
    baselines.dedup();
    methods.dedup();
    let heads: Vec<String> = baselines.iter().map(|&arm| format!("than {}", name(arm))).collect();
    let mut table =
        format!("| arm | {} |\n|---|{}\n", heads.join(" | "), "--:|".repeat(baselines.len()));
    for method in methods {
        let cells = baselines.iter().map(|&baseline| {
            let found = rivalries.iter().find(|found| (found.0, found.1) == (method, baseline));
            or_dash(found.map(|found| &found.2), measure.digits())
        });
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(table, "| {} | {} |", name(method), cells.join(" | "));
    }
    table
}

/// Problems that only one of two arms solves.
pub fn solved(results: &Results, tests: &[(usize, McNemar)]) -> String {
    let base = &results.header.arms[results.base()].name;
    let mut table = format!(
        "| arm | solved by it alone | by {base} alone | p (McNemar, exact) |\n|---|--:|--:|--:|\n"
    );
    for (arm, test) in tests {
        let _ = writeln!(
            table,
            "| {} | {} | {} | {:.2} |",
            results.header.arms[*arm].name, test.only_new, test.only_old, test.p_value
        );
    }
    table
}

/// What each arm is.
pub fn arms(results: &Results) -> String {
    let mut table = "| arm | what it is | role |\n|---|---|---|\n".to_owned();
    for arm in &results.header.arms {
        let role = match arm.role {
            Role::Frontier => "frontier",
            Role::Baseline => "baseline",
            Role::Method => "method",
            Role::Control => "control",
        };
        let _ = writeln!(table, "| {} | {} | {role} |", arm.name, arm.what);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_signs_except_zero() {
        assert_eq!(signed(0.1234, 2), "+0.12");
        assert_eq!(signed(-0.1234, 2), "−0.12");
        assert_eq!(signed(-0.001, 2), "0.00");
        assert_eq!(signed(0.0, 1), "0.0");
        assert_eq!(signed(10.0, 0), "+10");
    }

    #[test]
    fn only_what_rules_out_zero_is_bold() {
        let interval = |low, high| Interval { estimate: 0.5, low, high };
        assert_eq!(difference(&interval(0.25, 0.75), 2), "**+0.50 [+0.25, +0.75]**");
        assert_eq!(difference(&interval(-0.25, 1.0), 2), "+0.50 [−0.25, +1.00]");
        assert_eq!(difference(&interval(0.0, 1.0), 2), "+0.50 [0.00, +1.00]");
    }
}
