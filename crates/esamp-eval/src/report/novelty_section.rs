//! The section "Is it novelty?" and its line in the summary.

use std::fmt::Write;

use esamp::Detokenize;
use esamp_programs::failure::Failure;

use super::{
    Section,
    gather::{Results, TaskResults},
    measures::Embed,
    novelty::{
        Correlation, Known, Level, MAX_GROUPS, Measure, WINDOW, WindowError, WindowLevel,
        intervals, token_level, window_level,
    },
    novelty_plot::novelty_figure,
    tables::difference,
};
use crate::{
    metrics::MetricError,
    record::{FrequencyRanks, TOKEN_SAMPLE},
};

/// The results for a task.
#[derive(Debug)]
pub struct NoveltySection {
    pub section: Section,
    /// The line for the summary.
    pub line: String,
}

/// Analyses the single tokens that an arm has kept on a task; `None` if no arm has.
///
/// # Errors
///
/// Errors of embedding, detokenizing and drawing. Completions that are too short for windows are no error;
/// the section says so.
pub fn novelty_section(
    results: &Results,
    task: &TaskResults,
    detokenizer: &dyn Detokenize,
    embed: &mut Embed<'_>,
) -> Result<Option<NoveltySection>, Failure> {
    let arm = results.header.token_arm.as_ref().and_then(|name| results.arm(name));
    let Some(arm) = arm else {
        return Ok(None);
    };
    let records = task.of_arm(arm);
    let ranks = FrequencyRanks::count(task.of_arm(results.base));
    let tokens = match token_level(&records, &ranks, &intervals()) {
        Ok(tokens) => tokens,
        Err(MetricError::TooFew { .. }) => return Ok(None),
        Err(error) => return Err(Failure::runtime(error, "report this with the records")),
    };
    let windows = match window_level(&records, &ranks, detokenizer, embed, MAX_GROUPS, &intervals())
    {
        Ok(windows) => Some(windows),
        Err(WindowError::Metric(MetricError::TooFew { .. })) => None,
        Err(error) => return Err(error.into()),
    };
    let (name, arm) = (&task.task.name, &results.header.arms[arm].name);
    let figure = novelty_figure(
        &format!("{name}, {arm}: what the relative error goes along with"),
        &tokens.deciles,
        windows.as_ref().map(|windows| &windows.before.deciles),
    )
    .map_err(|error| Failure::runtime(error, "report this with the records"))?;
    let section = Section {
        text: text(name, arm, &tokens, windows.as_ref()),
        figures: vec![(format!("{name}-novelty.svg"), figure)],
    };
    Ok(Some(NoveltySection { section, line: line(name, &tokens, windows.as_ref()) }))
}

fn text(task: &str, arm: &str, tokens: &Level, windows: Option<&WindowLevel>) -> String {
    let mut text = format!(
        "\n## Is it novelty? ({task})\n\nRank correlations (Spearman) of the distiller's error with what it may \
         stand for, over \
         {} tokens of {arm} in {} problems. *Others fixed*: the partial correlation given surprisal, entropy, \
         frequency rank \
         and position, as far as they are not the measure itself. *Within problems*: with the problem held \
         fixed too. Novelty \
         is `‖deep − expected deep‖`, relative novelty the same as a multiple of `‖deep‖`. Only steered tokens \
         are looked at, and \
         steering pushes towards tokens that the error points to: a part of any correlation with surprisal is \
         its own doing. Of \
         a run of a problem at most {TOKEN_SAMPLE} tokens were kept. Intervals: {:.0} %, {} resamples of problems.\n\n",
        tokens.n,
        tokens.problems,
        100.0 * intervals().level,
        intervals().resamples,
    );
    text += &table(&tokens.correlations);
    match windows {
        None => {
            text += "\nThe completions are too short for the semantic question, which asks about windows of text.\n";
        }
        Some(windows) => {
            let _ = write!(
                text,
                "\nThe semantic question: how far are {WINDOW} tokens from what the other completions of the \
                 prompt have said \
                 before them (1 − the largest, or the mean, cosine of sentence embeddings)? {} windows of {} of \
                 {} runs of \
                 problems, the first by seed. First with the mean error of the {WINDOW} tokens *in front of* \
                 the window, \
                 which is known before the window is written. These means are over the tokens that were kept, \
                 so what is held \
                 fixed is held fixed by a noisy measure of it:\n\n",
                windows.windows, windows.groups, windows.all_groups
            );
            text += &table(&windows.before.correlations);
            text += "\nThen with that of the window's own tokens:\n\n";
            text += &table(&windows.during.correlations);
        }
    }
    text
}

fn table(correlations: &[Correlation]) -> String {
    let mut table =
        "| of | with | ρ | others fixed | within problems |\n|---|---|--:|--:|--:|\n".to_owned();
    for found in correlations {
        let [plain, partial, within] = [&found.spearman, &found.partial, &found.within].map(known);
        let _ =
            writeln!(table, "| {} | {} | {plain} | {partial} | {within} |", found.of, found.with);
    }
    table
}

fn known(known: &Known) -> String {
    match known {
        Ok(interval) => difference(interval, 2, interval.excludes(0.0)),
        // Undefined: a constant measure, or too few items.
        Err(_) => "–".to_owned(),
    }
}

/// The correlations of relative novelty with the other measures, in one sentence.
fn line(task: &str, tokens: &Level, windows: Option<&WindowLevel>) -> String {
    let found = |level: &Level, with: Measure| {
        let of = level
            .correlations
            .iter()
            .find(|one| one.of == Measure::RelativeNovelty && one.with == with);
        of.cloned()
    };
    let estimate = |found: Option<Correlation>| {
        found.map_or_else(|| "–".to_owned(), |found| known(&found.spearman))
    };
    let plain = [
        (Measure::Surprisal, "surprisal"),
        (Measure::Entropy, "entropy"),
        (Measure::FrequencyRank, "rarity"),
        (Measure::Position, "position"),
    ]
    .map(|(measure, name)| format!("{name} {}", estimate(found(tokens, measure))));
    let mut line = format!(
        "**Is it novelty?** On {task}, the relative error of a token has rank correlations with {}",
        plain.join(", ")
    );
    if let Some(found) = windows.and_then(|windows| found(&windows.before, Measure::Distance)) {
        let _ = write!(
            line,
            "; with how far the next {WINDOW} tokens are from all that other samples have said: {}, and {} once \
             those four and \
             the problem are held fixed",
            known(&found.spearman),
            known(&found.within)
        );
    }
    line.push('.');
    line
}
