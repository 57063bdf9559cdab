//! The three statements at the top of a report: what exploring finds, whether learning matters, and what it costs.

use esamp_programs::failure::Failure;

use super::{
    Rivalry, Task, capital,
    compare::{At, Gain, Opponents, best_temperature, token_price},
    gather::Results,
    measures::Measure,
    summary::{arms_of, each},
    tables::gain,
};
use crate::{metrics::Interval, record::Role};

/// The statements, and the number of intervals that are nowhere else in the report.
pub struct FirstScreen {
    pub lines: [String; 3],
    pub intervals: usize,
}

/// Makes the statements from the figures.
///
/// # Errors
///
/// Errors of the bootstrap.
pub fn lines(results: &Results, tasks: &[Task<'_>]) -> Result<FirstScreen, Failure> {
    let (cost, intervals) = cost(results, tasks)?;
    Ok(FirstScreen { lines: [finds(results, tasks), learning(results, tasks), cost], intervals })
}

/// What the methods find: different right answers at equal validity, or different texts at equal perplexity.
fn finds(results: &Results, tasks: &[Task<'_>]) -> String {
    let methods = arms_of(results, Role::Method);
    let opponents = opponents(results);
    let part = |task: &Task<'_>| {
        let (name, samples) = (&task.results.task.name, results.header.samples);
        if task.results.task.verifiable {
            let measure = Measure::Solutions;
            let best = best_temperature(&task.scores, measure, &opponents)?;
            return Some(format!(
                "different right answers among {samples} on {name}, where the best temperature, {}, has {:.2} of them at \
                 a validity of {:.3}: at equal validity {}; against the best temperature, whatever the validity, {}",
                results.header.arms[best].name,
                task.mean(measure, best),
                task.mean(Measure::Pass(1), best),
                each(results, &methods, measure, |arm| task.gain(arm, measure, At::EqualValidity)),
                each(results, &methods, measure, |arm| task.gain(
                    arm,
                    measure,
                    At::BestTemperature
                )),
            ));
        }
        let measure = task.scores.most_telling()?;
        let found = |arm| task.gain(arm, measure, At::EqualPerplexity);
        Some(format!(
            "different texts ({}) on {name}, at equal perplexity: {}",
            measure.name(),
            each(results, &methods, measure, found)
        ))
    };
    let parts: Vec<String> = tasks.iter().filter_map(part).collect();
    statement(
        "What does it find that plain sampling does not?",
        &parts,
        "No task counts different answers or texts.",
    )
}

/// Methods compared with their controls, each at its own perplexity.
fn learning(results: &Results, tasks: &[Task<'_>]) -> String {
    let name = |arm: usize| results.header.arms[arm].name.as_str();
    let is_control = |arm: usize| results.header.arms[arm].role == Role::Control;
    let part = |task: &Task<'_>| {
        let measure = task.scores.most_telling()?;
        let pair = |(arm, other, found): &Rivalry| {
            format!("{} than {} {}", name(*arm), name(*other), gain(found, measure.digits()))
        };
        let pairs = task.rivalries.get(&measure)?.iter();
        let pairs: Vec<String> =
            pairs.filter(|(_, other, _)| is_control(*other)).map(pair).collect();
        (!pairs.is_empty()).then(|| {
            format!(
                "{} on {}, how much farther above plain sampling: {}",
                measure.name(),
                task.results.task.name,
                pairs.join(", ")
            )
        })
    };
    let parts: Vec<String> = tasks.iter().filter_map(part).collect();
    statement(
        "Does learning matter?",
        &parts,
        "No control was run together with its method and a frontier.",
    )
}

/// Tokens per different right answer, against the best temperature.
fn cost(results: &Results, tasks: &[Task<'_>]) -> Result<(String, usize), Failure> {
    let (mut parts, mut intervals) = (Vec::new(), 0);
    let opponents = opponents(results);
    for task in tasks {
        let Some(best) = best_temperature(&task.scores, Measure::Solutions, &opponents) else {
            continue;
        };
        let tokens = results.header.samples as f64 * task.mean(Measure::Tokens, best);
        let mut of_methods = Vec::new();
        for arm in arms_of(results, Role::Method) {
            if let Some(found) = token_price(&task.scores, [arm, best])? {
                intervals += 1;
                of_methods.push(format!(
                    "{} {}{}",
                    results.header.arms[arm].name,
                    percent(&found),
                    worth(&found)
                ));
            }
        }
        if !of_methods.is_empty() {
            parts.push(format!(
                "on {}, {} needs {:.0} tokens for each different right answer; compared with it: {}",
                task.results.task.name,
                results.header.arms[best].name,
                tokens / task.mean(Measure::Solutions, best),
                of_methods.join(", ")
            ));
        }
    }
    let note = "Time is not in the records: a method is worth it where a token of it costs less in addition than it \
                saves (docs/guide/performance.md has the measured overhead).";
    if !parts.is_empty() {
        parts.push(note.trim_end_matches('.').to_owned());
    }
    let none = "No task of this run counts different right answers.";
    Ok((statement("What does a new right answer cost?", &parts, none), intervals))
}

/// A price as a percentage with its interval.
fn percent(found: &Gain) -> String {
    let scaled = Interval {
        estimate: 100.0 * found.interval.estimate,
        low: 100.0 * found.interval.low,
        high: 100.0 * found.interval.high,
    };
    format!("{} %", gain(&Gain { interval: scaled, ..*found }, 1))
}

/// The overhead at which a method that saves tokens breaks even.
fn worth(found: &Gain) -> String {
    let price = found.interval.estimate;
    if price < 0.0 {
        format!(
            " tokens (breaks even at an overhead of {:.1} %)",
            100.0 * (1.0 / (1.0 + price) - 1.0)
        )
    } else {
        " tokens".to_owned()
    }
}

fn opponents(results: &Results) -> Opponents {
    Opponents { base: results.base, frontier: results.frontier() }
}

fn statement(question: &str, parts: &[String], none: &str) -> String {
    if parts.is_empty() {
        return format!("**{question}** {none}");
    }
    let sentences: Vec<String> = parts.iter().map(|part| capital(part)).collect();
    format!("**{question}** {}.", sentences.join(". "))
}
