//! The findings in plain sentences, derived entirely from the figures.

use super::{
    Rivalry, Task,
    compare::{At, FEWEST, Gain, LEVEL, Verdict},
    gather::Results,
    measures::Measure,
    tables::gain,
};
use crate::record::{Role, Split};

/// The most differences listed in a sentence; the tables have the rest.
const MOST: usize = 4;

/// The lines of the summary, one per list item.
pub fn lines(
    results: &Results,
    tasks: &[Task<'_>],
    novelty: Option<&String>,
    intervals: usize,
) -> Vec<String> {
    let mut lines = vec![what_was_run(results, tasks)];
    lines.extend(ideas(results, tasks));
    lines.extend(what_else(results, tasks));
    lines.extend(novelty.cloned());
    lines.extend(answers(results, tasks));
    lines.push(for_whom(results, tasks));
    lines.push(format!(
        "One model of {} dimensions, its own perplexity as the measure of quality, {intervals} intervals without \
         correction: if no arm differed from another, about {} would rule out 0. Brackets: {:.0} % paired \
         intervals over \
         problems; **bold** rules out 0.",
        results.header.model.d_model,
        (intervals as f64 * (1.0 - LEVEL)).round(),
        100.0 * LEVEL,
    ));
    lines
}

fn what_was_run(results: &Results, tasks: &[Task<'_>]) -> String {
    let split = match results.header.split {
        Split::Dev => "development (settings may have been chosen on them)",
        Split::HeldOut => "held-out",
    };
    let each =
        tasks.iter().map(|task| format!("{} ({})", task.results.task.name, task.results.extent()));
    let header = &results.header;
    let planned = header.problems * header.seeds as usize;
    let unfinished = tasks.iter().any(|task| task.results.groups.len() < planned);
    format!(
        "**{}**, {} ways to sample {} completions, on {split} problems of {}{}.",
        header.model.name,
        header.arms.len(),
        header.samples,
        list(each.collect()),
        if unfinished {
            format!("; unfinished, planned were {} × {}", header.problems, header.seeds)
        } else {
            String::new()
        }
    )
}

/// Diversity of texts.
fn ideas(results: &Results, tasks: &[Task<'_>]) -> Vec<String> {
    let base = &results.header.arms[results.base].name;
    let methods = arms_of(results, Role::Method);
    let texts = tasks.iter().filter(|task| !task.results.task.verifiable);
    texts
        .filter_map(|task| {
            let measure = task.scores.most_telling()?;
            let found = |at| each(results, &methods, measure, |arm| task.gain(arm, measure, at));
            Some(format!(
                "**Different ideas** ({} score of {}; {base} has {:.2}). Compared with plain sampling of equal \
                 perplexity: {}. Compared with \
                 {base} itself: {}.",
                measure.name(),
                task.results.task.name,
                task.mean(measure, results.base),
                found(At::EqualPerplexity),
                found(At::Base),
            ))
        })
        .collect()
}

/// Methods compared with their controls and with other sampling methods.
fn what_else(results: &Results, tasks: &[Task<'_>]) -> Vec<String> {
    let name = |arm: usize| results.header.arms[arm].name.as_str();
    let texts = tasks.iter().filter(|task| !task.results.task.verifiable);
    texts
        .filter_map(|task| {
            let measure = task.scores.most_telling()?;
            let rivalries = task.rivalries.get(&measure)?;
            let pair = |(arm, other, found): &Rivalry| {
                format!("{} than {} {}", name(*arm), name(*other), gain(found, measure.digits()))
            };
            // Controls come first.
            let pairs: Vec<String> = rivalries.iter().take(2 * MOST).map(pair).collect();
            let more = match rivalries.len() - pairs.len() {
                0 => String::new(),
                more => format!(", and {more} more pairs below"),
            };
            let without: Vec<String> = arms_of(results, Role::Method)
                .into_iter()
                .filter(|&method| {
                    !arms_of(results, Role::Control)
                        .iter()
                        .any(|&control| results.controlled(control) == Some(method))
                })
                .map(|method| name(method).to_owned())
                .collect();
            let without = if without.is_empty() {
                String::new()
            } else {
                format!(" No control in this run: {}.", list(shortened(without)))
            };
            Some(format!(
                "**Is it what was learned?** On {}, how much farther above plain sampling, each at its own perplexity: \
                 {}{more}.{without}",
                task.results.task.name,
                pairs.join(", "),
            ))
        })
        .collect()
}

/// Right answers.
fn answers(results: &Results, tasks: &[Task<'_>]) -> Vec<String> {
    let methods = arms_of(results, Role::Method);
    let base = &results.header.arms[results.base].name;
    let checked = || tasks.iter().filter(|task| task.results.task.verifiable);
    let most = checked().filter_map(|task| task.scores.passes().last().copied()).max();
    let (mut lines, mut tries) = (Vec::new(), vec![most, Some(1)]);
    tries.dedup();
    for k in tries.into_iter().flatten() {
        let measure = Measure::Pass(k);
        let parts: Vec<String> = checked()
            .filter(|task| task.scores.measures.contains_key(&measure))
            .map(|task| {
                let found = |arm| task.gain(arm, measure, At::Base);
                format!(
                    "{} ({base} has {:.3}): {}",
                    task.results.task.name,
                    task.mean(measure, results.base),
                    each(results, &methods, measure, found),
                )
            })
            .collect();
        if !parts.is_empty() {
            lines.push(format!(
                "**{}** compared with {base}: {}.",
                measure.name(),
                parts.join("; ")
            ));
        }
    }
    lines
}

/// For whom it is useful, by the main measure of each task. Right answers are compared with the best
/// temperature, because users can choose it.
fn for_whom(results: &Results, tasks: &[Task<'_>]) -> String {
    let methods = arms_of(results, Role::Method);
    let parts = tasks.iter().filter_map(|task| {
        let measure = task.scores.most_telling()?;
        let (at, baseline) = if task.results.task.verifiable {
            (At::BestTemperature, "the best of the temperatures")
        } else {
            (At::EqualPerplexity, "plain sampling of equal perplexity")
        };
        let of = |wanted: Option<Verdict>| {
            let is = |&&arm: &&usize| task.gain(arm, measure, at).map(Gain::verdict) == wanted;
            let names = methods.iter().filter(is).map(|&arm| results.header.arms[arm].name.clone());
            list(shortened(names.collect()))
        };
        let outcomes = [
            (Some(Verdict::More), "more from"),
            (Some(Verdict::Less), "less from"),
            (Some(Verdict::NoDifference), "no difference found for"),
            (Some(Verdict::TooFew), "too few problems to conclude anything about"),
            (None, "nothing to compare with for"),
        ];
        let outcomes = outcomes.iter().map(|&(verdict, words)| (of(verdict), words));
        let outcomes = outcomes.filter(|(names, _)| !names.is_empty());
        let outcomes: Vec<String> =
            outcomes.map(|(names, words)| format!("{words} {names}")).collect();
        (!outcomes.is_empty()).then(|| {
            let name = &task.results.task.name;
            format!(
                "{} on {name}, compared with {baseline}: {}",
                measure.name(),
                outcomes.join(", ")
            )
        })
    });
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        "**Worth it?** No method was run.".to_owned()
    } else {
        format!("**Worth it?** {}.", parts.join("; "))
    }
}

pub(super) fn arms_of(results: &Results, role: Role) -> Vec<usize> {
    let arms = results.header.arms.iter().enumerate();
    arms.filter(|(_, arm)| arm.role == role).map(|(at, _)| at).collect()
}

/// The gains of the arms; those with a conclusion come first.
pub(super) fn each<'t>(
    results: &Results,
    arms: &[usize],
    measure: Measure,
    found: impl Fn(usize) -> Option<&'t Gain>,
) -> String {
    let name = |arm: usize| results.header.arms[arm].name.clone();
    let (mut known, mut none, mut few, mut unreached) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut arms = arms.to_vec();
    if arms.len() > MOST {
        // Not all are listed, so the largest come first.
        let size = |&arm: &usize| found(arm).map_or(0.0, |found| found.interval.estimate.abs());
        arms.sort_by(|a, b| size(b).total_cmp(&size(a)));
    }
    for arm in arms {
        let written = |found: &Gain| format!("{} {}", name(arm), gain(found, measure.digits()));
        match found(arm) {
            None => unreached.push(name(arm)),
            Some(found) => match found.verdict() {
                Verdict::More | Verdict::Less => known.push(written(found)),
                Verdict::NoDifference => none.push(written(found)),
                Verdict::TooFew => few.push(written(found)),
            },
        }
    }
    let mut parts = shortened(known);
    if !none.is_empty() {
        parts.push(format!("no difference found for {}", list(shortened(none))));
    }
    if !few.is_empty() {
        parts.push(format!(
            "{} (fewer than {FEWEST} problems conclude nothing)",
            list(shortened(few))
        ));
    }
    if !unreached.is_empty() {
        parts.push(format!("{} beyond the ends of the frontier", list(shortened(unreached))));
    }
    if parts.is_empty() { "no method was run".to_owned() } else { parts.join(", ") }
}

/// The first items and the number of further ones.
fn shortened(mut items: Vec<String>) -> Vec<String> {
    if items.len() > MOST + 1 {
        let more = items.len() - MOST;
        items.truncate(MOST);
        items.push(format!("{more} more"));
    }
    items
}

/// Joins items as in "a, b and c".
fn list(mut items: Vec<String>) -> String {
    match items.pop() {
        None => String::new(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_end_in_a_number() {
        let items = |n: usize| (0..n).map(|at| at.to_string()).collect::<Vec<_>>();
        for (n, text) in [
            (0, ""),
            (1, "0"),
            (3, "0, 1 and 2"),
            (5, "0, 1, 2, 3 and 4"),
            (9, "0, 1, 2, 3 and 5 more"),
        ] {
            assert_eq!(list(shortened(items(n))), text);
        }
    }
}
