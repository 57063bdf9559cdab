//! What was found, in plain sentences. Every word of them follows from the figures: nothing here knows the outcome.

use esamp::metrics::Interval;

use super::{
    Task,
    compare::{At, Verdict, verdict},
    gather::Results,
    measures::Measure,
    tables::difference,
};
use crate::record::{Role, Split};

/// The lines of the summary, a list item each.
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
    lines.push(verdict_for_users(results, tasks));
    lines.push(format!(
        "One model of {} dimensions, its own perplexity as the measure of quality, {intervals} intervals without \
         correction: about {} of them rule out 0 by chance alone. Brackets hold 95 % paired intervals over problems; **bold** \
         rules out 0.",
        results.header.model.d_model,
        (intervals as f64 / 20.0).round(),
    ));
    lines
}

fn what_was_run(results: &Results, tasks: &[Task<'_>]) -> String {
    let split = match results.header.split {
        Split::Dev => "development",
        Split::HeldOut => "held-out",
    };
    let each =
        tasks.iter().map(|task| format!("{} ({})", task.results.task.name, task.results.extent()));
    format!(
        "**{}**, {} ways to sample {} completions, on {split} problems of {}.",
        results.header.model.name,
        results.header.arms.len(),
        results.header.samples,
        list(each.collect()),
    )
}

/// Diversity of texts.
fn ideas(results: &Results, tasks: &[Task<'_>]) -> Vec<String> {
    let texts = tasks.iter().filter(|task| !task.results.task.verifiable);
    texts
        .filter_map(|task| {
            let measure = *task.scores.principal().first()?;
            let base = &results.header.arms[results.base()].name;
            let methods = arms_of(results, Role::Method);
            let found = |at| each(results, task, &methods, measure, at);
            Some(format!(
                "**Different ideas** ({} score of {}; {base} has {:.2}). At equal perplexity: {}. Beside {base} itself: {}.",
                measure.name(),
                task.results.task.name,
                task.mean(measure, results.base()),
                found(At::EqualPerplexity),
                found(At::Same),
            ))
        })
        .collect()
}

/// What comes without having learned anything: other ways to sample, and the controls.
fn what_else(results: &Results, tasks: &[Task<'_>]) -> Vec<String> {
    let texts = tasks.iter().filter(|task| !task.results.task.verifiable);
    texts
        .filter_map(|task| {
            let measure = *task.scores.principal().first()?;
            let kinds = [
                (Role::Baseline, "without a distiller"),
                (Role::Control, "controls, which change scores as much without what was learned"),
            ];
            let parts: Vec<String> = kinds
                .iter()
                .map(|&(role, what)| (arms_of(results, role), what))
                .filter(|(arms, _)| !arms.is_empty())
                .map(|(arms, what)| {
                    let found = each(results, task, &arms, measure, At::EqualPerplexity);
                    format!("{what}: {found}")
                })
                .collect();
            (!parts.is_empty()).then(|| {
                format!(
                    "**Is it what was learned?** At equal perplexity on {}, {}.",
                    task.results.task.name,
                    parts.join("; ")
                )
            })
        })
        .collect()
}

/// Right answers.
fn answers(results: &Results, tasks: &[Task<'_>]) -> Vec<String> {
    let methods = arms_of(results, Role::Method);
    let base = &results.header.arms[results.base()].name;
    let checked: Vec<&Task<'_>> =
        tasks.iter().filter(|task| task.results.task.verifiable).collect();
    let mut lines = Vec::new();
    for which in [usize::MAX, 1] {
        let parts: Vec<String> = checked
            .iter()
            .filter_map(|task| {
                let passes = task.scores.passes();
                let k = *if which == 1 { passes.first() } else { passes.last() }?;
                let measure = Measure::Pass(k);
                Some(format!(
                    "{}, {} ({base} has {:.3}): {}",
                    task.results.task.name,
                    measure.name(),
                    task.mean(measure, results.base()),
                    each(results, task, &methods, measure, At::Same),
                ))
            })
            .collect();
        if !parts.is_empty() {
            let title = if which == 1 { "One try" } else { "Right answers in many tries" };
            lines.push(format!("**{title}**, beside {base}: {}.", parts.join("; ")));
        }
    }
    lines
}

/// Who should use it, and who should not.
fn verdict_for_users(results: &Results, tasks: &[Task<'_>]) -> String {
    let methods = arms_of(results, Role::Method);
    let gaining = |verifiable: bool, measures: &dyn Fn(&Task<'_>) -> Vec<Measure>| {
        let mut names = Vec::new();
        for &arm in &methods {
            let of = tasks.iter().filter(|task| task.results.task.verifiable == verifiable);
            let any = of.clone().any(|task| {
                measures(task).into_iter().any(|measure| {
                    let gain = task.gain(arm, measure, At::EqualPerplexity);
                    gain.is_some_and(|gain| verdict(gain) == Verdict::More)
                })
            });
            if any {
                names.push(results.header.arms[arm].name.clone());
            }
        }
        names
    };
    let ideas = gaining(false, &|task| task.scores.principal().into_iter().take(1).collect());
    let passes =
        |task: &Task<'_>| task.scores.passes().into_iter().map(Measure::Pass).collect::<Vec<_>>();
    let right = gaining(true, &passes);
    let texts = tasks.iter().any(|task| !task.results.task.verifiable);
    let checked = tasks.iter().any(|task| task.results.task.verifiable);
    let mut parts = Vec::new();
    if texts {
        parts.push(match ideas.is_empty() {
            true => "nothing was gained over a change of temperature where different texts are wanted".to_owned(),
            false => format!(
                "where different texts are wanted, {} gave more than any temperature of plain sampling at the same perplexity",
                list(ideas)
            ),
        });
    }
    if checked {
        parts.push(match right.is_empty() {
            true => "where answers are checked (pass@k), nothing was gained over a change of temperature: not worth it there"
                .to_owned(),
            false => format!(
                "where answers are checked, {} solved more at some k than plain sampling at the same perplexity",
                list(right)
            ),
        });
    }
    format!("**For whom?** On this model, {}.", parts.join("; "))
}

fn arms_of(results: &Results, role: Role) -> Vec<usize> {
    let arms = results.header.arms.iter().enumerate();
    arms.filter(|(_, arm)| arm.role == role).map(|(at, _)| at).collect()
}

/// What each of the arms gains, those first of which something is known.
fn each(results: &Results, task: &Task<'_>, arms: &[usize], measure: Measure, at: At) -> String {
    let name = |arm: usize| results.header.arms[arm].name.clone();
    let (mut known, mut none, mut unreached) = (Vec::new(), Vec::new(), Vec::new());
    for &arm in arms {
        match task.gain(arm, measure, at) {
            None => unreached.push(name(arm)),
            Some(gain) if verdict(gain) == Verdict::NoDifference => none.push((name(arm), gain)),
            Some(gain) => known.push((name(arm), gain)),
        }
    }
    let written = |(name, gain): &(String, &Interval)| {
        format!("{name} {}", difference(gain, measure.digits()))
    };
    let mut parts: Vec<String> = known.iter().map(written).collect();
    if !none.is_empty() {
        let none = none.iter().map(written).collect();
        parts.push(format!("no difference found for {}", list(none)));
    }
    if !unreached.is_empty() {
        parts.push(format!("{} beyond the ends of the frontier", list(unreached)));
    }
    match parts.is_empty() {
        true => "nothing to compare".to_owned(),
        false => parts.join(", "),
    }
}

/// One, two and three.
fn list(mut items: Vec<String>) -> String {
    match items.pop() {
        None => String::new(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}
