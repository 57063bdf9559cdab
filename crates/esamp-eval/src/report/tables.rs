//! Markdown tables.

use std::fmt::Write;

use super::{
    Rivalry, Task,
    compare::{At, Gain, Verdict},
    gather::Results,
    measures::Measure,
};
use crate::{
    metrics::{Interval, McNemar},
    record::{ArmRecord, CompletionRecord, Role},
};

/// A number with its sign.
pub fn signed(value: f64, digits: usize) -> String {
    // No sign for a value that rounds to zero.
    let text = format!("{value:+.digits$}");
    if text.trim_start_matches(['+', '-', '0', '.']).is_empty() {
        format!("{:.digits$}", 0.0)
    } else {
        text.replace('-', "−")
    }
}

/// A difference with its interval, in bold if it is conclusive; then the ends get as many digits as needed
/// to show on which side of 0 they are.
pub fn difference(interval: &Interval, digits: usize, decides: bool) -> String {
    let numbers = [interval.estimate, interval.low, interval.high];
    let written = |digits: usize| numbers.map(|value| signed(value, digits));
    let zero = |text: &String| text.trim_start_matches(['0', '.']).is_empty();
    let digits = if decides {
        (digits..digits + 4).find(|&digits| !written(digits).iter().any(zero)).unwrap_or(digits)
    } else {
        digits
    };
    let [estimate, low, high] = written(digits);
    let text = format!("{estimate} [{low}, {high}]");
    if decides { format!("**{text}**") } else { text }
}

/// A gain for a table or a sentence.
pub fn gain(gain: &Gain, digits: usize) -> String {
    let decides = matches!(gain.verdict(), Verdict::More | Verdict::Less);
    difference(&gain.interval, digits, decides)
}

fn or_dash(found: Option<&Gain>, digits: usize) -> String {
    found.map_or_else(|| "–".to_owned(), |found| gain(found, digits))
}

/// The means of every measure for every arm.
pub fn levels(results: &Results, task: &Task<'_>) -> String {
    let measures: Vec<Measure> = task.scores.measures.keys().copied().collect();
    let mut table = "| arm |".to_owned();
    for measure in &measures {
        let name = match measure {
            Measure::Surprisal => "perplexity".to_owned(),
            other => other.name(),
        };
        let _ = write!(table, " {name} |");
    }
    table += "\n|---|";
    table += &"--:|".repeat(measures.len());
    table.push('\n');
    for (arm, record) in results.header.arms.iter().enumerate() {
        let _ = write!(table, "| {} |", record.name);
        for &measure in &measures {
            let mean = task.mean(measure, arm);
            let text = match measure {
                Measure::Surprisal => format!("{:.2}", mean.exp()),
                Measure::Cut => format!("{:.0} %", 100.0 * mean),
                other => format!("{mean:.*}", other.digits()),
            };
            let _ = write!(table, " {text} |");
        }
        table.push('\n');
    }
    table
}

/// The effect of steering on the distribution, averaged over tokens.
pub fn steering(results: &Results, task: &Task<'_>) -> String {
    let mut table = "| arm | changed | KL(new ‖ reference) | entropy before | after | relative error | slope | \
    sharpening |\n\
                     |---|--:|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for (arm, about) in results.header.arms.iter().enumerate() {
        let records = task.results.of_arm(arm);
        let completions = || records.iter().flat_map(|record| &record.completions);
        let mean = |number: fn(&CompletionRecord) -> Option<f64>| {
            let known = completions().filter_map(|one| Some((number(one)?, one.tokens.len())));
            let (sum, count) = known.fold((0.0, 0), |(sum, count), (number, tokens)| {
                (sum + number * tokens as f64, count + tokens)
            });
            // Without the sign of a zero.
            let written = |mean: f64| signed(mean, 3).trim_start_matches('+').to_owned();
            if count > 0 { written(sum / count as f64) } else { "–".to_owned() }
        };
        let changed: u64 = records.iter().map(|record| record.totals.interventions).sum();
        let tokens: u64 = records.iter().map(|record| record.totals.tokens).sum();
        let _ = writeln!(
            table,
            "| {} | {:.1} % | {} | {} | {} | {} | {} | {} |",
            about.name,
            100.0 * changed as f64 / (tokens as f64).max(1.0),
            mean(|one| Some(one.mean_kl)),
            mean(|one| Some(one.mean_reference_entropy)),
            mean(|one| Some(one.mean_entropy)),
            mean(|one| one.mean_relative_novelty),
            mean(|one| one.mean_slope),
            mean(|one| one.mean_sharpening),
        );
    }
    table
}

/// The gains of every arm in a measure.
pub fn gains(results: &Results, task: &Task<'_>, measure: Measure) -> String {
    let base = &results.header.arms[results.base].name;
    let name = measure.name();
    let comparisons = At::of(measure);
    let headings: Vec<String> = comparisons.iter().map(|at| at.heading(base)).collect();
    let mut table = format!(
        "| arm | {name} | {} |\n|---|--:|{}\n",
        headings.join(" | "),
        "--:|".repeat(headings.len())
    );
    for (arm, record) in results.header.arms.iter().enumerate() {
        let cell = |&at: &At| or_dash(task.gain(arm, measure, at), measure.digits());
        let cells: Vec<String> = comparisons.iter().map(cell).collect();
        let mean = task.mean(measure, arm);
        let digits = measure.digits();
        let _ = writeln!(table, "| {} | {mean:.digits$} | {} |", record.name, cells.join(" | "));
    }
    table
}

/// How much farther above the frontier one arm is than another.
pub fn rivalries(results: &Results, rivalries: &[Rivalry], measure: Measure) -> String {
    let name = |arm: usize| results.header.arms[arm].name.as_str();
    let mut table = "| arm | than | difference |\n|---|---|--:|\n".to_owned();
    for (arm, other, found) in rivalries {
        let found = gain(found, measure.digits());
        let _ = writeln!(table, "| {} | {} | {found} |", name(*arm), name(*other));
    }
    table
}

/// Problems that only one of two arms solves.
pub fn solved(results: &Results, tests: &[(usize, McNemar)]) -> String {
    let base = &results.header.arms[results.base].name;
    let mut table = format!(
        "| arm | solved by it alone | by {base} alone | p (McNemar, exact) |\n|---|--:|--:|--:|\n"
    );
    for (arm, test) in tests {
        let p = match test.p_value {
            small if small < 0.001 => "< 0.001".to_owned(),
            p => format!("{p:.3}"),
        };
        let name = &results.header.arms[*arm].name;
        let _ = writeln!(table, "| {name} | {} | {} | {p} |", test.only_new, test.only_old);
    }
    table
}

/// The descriptions of the arms.
pub fn arms(results: &Results) -> String {
    let mut table =
        "| arm | what it is | temperature | filters | β | role |\n|---|---|--:|---|--:|---|\n"
            .to_owned();
    for arm in &results.header.arms {
        let role = match arm.role {
            Role::Frontier => "frontier",
            Role::Baseline => "baseline",
            Role::Method => "method",
            Role::Control => "control",
        };
        let sampling = &arm.sampling.settings;
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {role} |",
            arm.name,
            arm.what,
            sampling.temperature,
            filters(arm),
            sampling.beta
        );
    }
    table
}

/// The filters with their settings, named as in a settings file.
fn filters(arm: &ArmRecord) -> String {
    let written = arm.sampling.settings.filters().iter().map(|filter| {
        let written = serde_json::to_string(filter).unwrap_or_default();
        let words = written.split(|c: char| !c.is_alphanumeric() && !"._".contains(c));
        // {"min_p":{"p":0.05}}: the name of a single number is omitted.
        let words = words.filter(|word| word.len() > 1).collect::<Vec<&str>>();
        words.join(" ").replace('_', "-")
    });
    let written: Vec<String> = written.collect();
    if written.is_empty() { "none".to_owned() } else { written.join(", ") }
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
    fn what_decides_is_bold_and_shows_its_side_of_zero() {
        let interval = |low, high| Interval { estimate: 0.5, low, high };
        assert_eq!(difference(&interval(0.25, 0.75), 2, true), "**+0.50 [+0.25, +0.75]**");
        assert_eq!(difference(&interval(-0.25, 1.0), 2, false), "+0.50 [−0.25, +1.00]");
        assert_eq!(difference(&interval(0.002, 1.0), 2, true), "**+0.500 [+0.002, +1.000]**");
        assert_eq!(difference(&interval(0.002, 1.0), 2, false), "+0.50 [0.00, +1.00]");
    }
}
