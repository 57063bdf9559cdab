//! The report on runs by waves: coverage of known answers, from tallies.
//!
//! `gather` sorts records by model, `differences` compares arms, `predictions` decides what
//! `docs/results/predictions.md` says before the runs; `tables` and `figures` render them. Problems are the unit of every
//! interval. Everything is computed from the records: the same records give the same bytes.

pub mod differences;
pub mod figures;
pub mod gather;
pub mod predictions;
pub mod tables;

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use esamp_programs::failure::Failure;

use super::{Origin, capital, command, compare::LEVEL, tables::gain};
use crate::{metrics::BootstrapConfig, record::Run};

use differences::{frontier, half_name};
use gather::{Subject, subjects};
use predictions::{Compared, MODELS, PRIMARY, checks, tokens_per_new};
use tables::Intervals;

/// Writes a report on runs by waves to `to`, and its figures to the folder of the same name without the extension.
///
/// # Errors
///
/// Runs that do not belong together, and I/O errors.
pub fn write(runs: Vec<Run>, origin: &Origin, to: &Path) -> Result<(), Failure> {
    let subjects = subjects(runs)?;
    let folder = to.with_extension("");
    let at = |path: &Path, error| {
        let next = "check the path of --report and the disk";
        Failure::new(format!("{}: {error}", path.display()), next)
    };
    fs::create_dir_all(&folder).map_err(|error| at(&folder, error))?;
    let shown = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut intervals = Intervals::default();
    let mut sections = String::new();
    for subject in &subjects {
        let (text, figures) = section(subject, &mut intervals)?;
        sections += &text;
        for (name, svg) in figures {
            let path = folder.join(&name);
            fs::write(&path, svg).map_err(|error| at(&path, error))?;
            let _ = writeln!(sections, "\n![{}]({shown}/{name})", name.trim_end_matches(".svg"));
        }
    }
    let text = heading(&subjects, intervals.0)? + &sections + &provenance(&subjects, origin);
    fs::write(to, text).map_err(|error| at(to, error))
}

fn heading(subjects: &[Subject], intervals: usize) -> Result<String, Failure> {
    let mut found: Vec<Vec<Option<Compared>>> = Vec::new();
    for primary in &PRIMARY {
        let on = MODELS.iter().map(|model| primary.on(subjects, model));
        found.push(on.collect::<Result<_, _>>()?);
    }
    let mut text = "# What many samples of one prompt find\n\n".to_owned();
    let _ = writeln!(
        text,
        "- **Does it find what plain sampling does not?** {}\n- **Does learning matter?** {}\n- **What does a new right \
         answer cost?** {}\n- The intervals are over problems, which are repetitions with one model and one set of answers: \
         they say nothing about other models. {intervals} intervals follow in the sections, of which one in twenty misses by \
         chance; P1 to P4 were named before the runs.",
        statement(&found, &[0, 1]),
        statement(&found, &[2, 3]),
        costs(subjects),
    );
    text += "\n<!-- Written by the program `evaluate` with --report: a change by hand is lost. -->\n\n## Primary comparisons\n\n\
             Coverage of all completions of held-out problems ([predictions](predictions.md)).\n\n\
             | | model | arm | against | coverage | valid | outcome |\n|---|---|---|---|--:|--:|---|\n";
    for (primary, found) in PRIMARY.iter().zip(&found) {
        for (at, (model, one)) in MODELS.iter().zip(found).enumerate() {
            let outcome = if at == 0 { primary.outcome(found) } else { String::new() };
            let [against, coverage, valid] = match one {
                Some(one) => [one.against.clone(), gain(&one.coverage, 3), gain(&one.valid, 3)],
                None => {
                    [primary.against.unwrap_or("the frontier's best"), "–", "–"].map(str::to_owned)
                }
            };
            let (name, arm) = (primary.name, primary.arm);
            let _ = writeln!(
                text,
                "| {name} | {model} | {arm} | {against} | {coverage} | {valid} | {outcome} |"
            );
        }
    }
    text += "\n## Other predictions\n\n| model | prediction | found | as expected |\n|---|---|---|---|\n";
    for subject in subjects {
        let Some(half) = &subject.held_out else { continue };
        for check in checks(subject, half)? {
            let expected = if check.as_expected { "yes" } else { "**no**" };
            let (name, prediction) = (&subject.name, check.prediction);
            let _ = writeln!(text, "| {name} | {prediction} | {} | {expected} |", check.found);
        }
    }
    text += "\nOf models with held-out records only.\n";
    text += READING;
    text += &arms(subjects);
    Ok(text)
}

/// The primary comparisons with these numbers, in a sentence.
fn statement(found: &[Vec<Option<Compared>>], numbers: &[usize]) -> String {
    let parts = numbers.iter().flat_map(|&number| {
        MODELS.iter().zip(&found[number]).filter_map(move |(model, one)| {
            let one = one.as_ref()?;
            let arm = PRIMARY[number].arm;
            Some(format!("`{arm}` {} against {} on {model}", gain(&one.coverage, 3), one.against))
        })
    });
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        return "Not run yet on held-out problems.".to_owned();
    }
    format!("Coverage: {}.", parts.join("; "))
}

/// Tokens per new right answer, of the cheapest arm of the frontier and of the arms of the primary comparisons.
fn costs(subjects: &[Subject]) -> String {
    let parts = subjects.iter().filter(|one| MODELS.contains(&one.name.as_str()));
    let parts = parts.filter_map(|subject| {
        let half = subject.held_out.as_ref()?;
        let cost = |arm: usize| tokens_per_new(subject, half, arm).map(|cost| (arm, cost));
        let cheapest = frontier(half).into_iter().filter_map(cost);
        let (plain, least) = cheapest.min_by(|a, b| a.1.total_cmp(&b.1))?;
        let others = ["esamp-0.5-open", "orthogonal-1-open"].into_iter().filter_map(|name| {
            let (_, own) = cost(half.arm(name)?)?;
            let ratio = least / own;
            Some(format!(
                "{own:.1} under `{name}` (worth it below {ratio:.2} times the time per token)"
            ))
        });
        let others: Vec<String> = others.collect();
        let plain = &half.arms[plain].name;
        let model = &subject.name;
        Some(format!("{model}: {least:.1} tokens under `{plain}`, {}", others.join(", ")))
    });
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        return "Not run yet on held-out problems.".to_owned();
    }
    format!("{}.", parts.join("; "))
}

/// Explains the columns.
const READING: &str = "
## How to read it

- Coverage at n: different right answers among the first n completions of a problem, as a share of n. New: those of them \
  that the model was not trained on (the score of arXiv 2504.15266), and memorised: completions with an answer that it was \
  trained on, both among all completions. Effective answers: exp(entropy) of the right answers.
- The coupon collector's line: what n independent draws from the model's own distribution find on average, from the answers \
  of `plain-1` in random order (Hurlbert, 1971).
- Compared with: plain sampling at the temperature and with the filter that covers most on the development half, among those \
  that are at least as valid as the arm there; without records of that half, on the same problems. *None is as valid*: then it \
  is the most valid one, and a difference in coverage alone says little.
- Repetitions: the share of a wave's right completions whose answer was given before, in this wave or an earlier one. They \
  grow under independent draws too, so their growth is compared with that of `plain-1`.
- Relative error: the distiller's, relative to the deep state. Growth: last wave minus first.
- In bold: the 95 % interval excludes 0. A problem's completions and seeds are one value; intervals are over problems.
";

/// What the arms are.
fn arms(subjects: &[Subject]) -> String {
    let mut known: BTreeMap<&str, ()> = BTreeMap::new();
    let mut table = "\n| arm | what it is |\n|---|---|\n".to_owned();
    for (_, half) in subjects.iter().filter_map(Subject::reported) {
        for arm in &half.arms {
            if known.insert(&arm.name, ()).is_none() {
                let _ = writeln!(table, "| {} | {} |", arm.name, arm.what);
            }
        }
    }
    table
}

/// A section with its figures.
type Section = (String, Vec<(String, String)>);

fn section(subject: &Subject, intervals: &mut Intervals) -> Result<Section, Failure> {
    let Some((split, half)) = subject.reported() else {
        return Ok(Section::default());
    };
    let mut text = format!(
        "\n## {}\n\n{}. {}, {} half, {} completions in waves of {}.",
        subject.name,
        capital(&subject.task.what),
        capital(&half.extent()),
        half_name(split),
        subject.samples,
        subject.wave,
    );
    if half.left_out > 0 {
        let _ = write!(
            text,
            " {} records are left out: not every arm has met their problem and seed.",
            half.left_out
        );
    }
    let _ = write!(text, "\n\n{}", tables::levels(subject, half));
    let plain = half.arm("plain-1");
    let frontier = frontier(half);
    if half.problems.len() > 1 {
        let _ = write!(
            text,
            "\nMinus the best of the frontier that is as valid:\n\n{}",
            tables::against_frontier(subject, half, &frontier, intervals)?
        );
        if let Some(plain) = plain {
            let _ = write!(
                text,
                "\nMinus `plain-1`:\n\n{}",
                tables::against_plain(subject, half, plain, intervals)?
            );
        }
    }
    if subject.samples > subject.wave {
        let _ = write!(
            text,
            "\nThe first wave and the last:\n\n{}",
            tables::waves(subject, half, plain, intervals)?
        );
    }
    text += &tables::order(subject, half);
    Ok((text, figures::of(subject, half)?))
}

fn provenance(subjects: &[Subject], origin: &Origin) -> String {
    let mut text = "\n## Where it comes from\n\n| model | SHA-256 | half | commit of the records |\n|---|---|---|---|\n".to_owned();
    for subject in subjects {
        for (name, half) in [("development", &subject.dev), ("held-out", &subject.held_out)] {
            if let Some(half) = half {
                let (model, hash) = (&subject.name, &subject.model.sha256);
                let _ = writeln!(text, "| {model} | `{hash}` | {name} | {} |", half.commit);
            }
        }
    }
    let _ = writeln!(
        text,
        "\nIntervals: {:.0} %, expanded percentile bootstrap over problems, {} resamples.",
        100.0 * LEVEL,
        BootstrapConfig::default().resamples
    );
    let sessions = &origin.sessions.sessions;
    if !sessions.is_empty() {
        let minutes = sessions.iter().map(|session| session.seconds).sum::<f64>() / 60.0;
        let mut machines: Vec<&str> = sessions.iter().map(|one| one.machine.as_str()).collect();
        machines.sort_unstable();
        machines.dedup();
        let count = sessions.len();
        let s = if count == 1 { "" } else { "s" };
        let _ = writeln!(
            text,
            "\nRun time: {minutes:.0} min in {count} session{s} on {}.",
            machines.join("; ")
        );
        let mut commands: Vec<String> = Vec::new();
        for session in sessions {
            let command = command(&session.command);
            if !commands.contains(&command) {
                commands.push(command);
            }
        }
        let _ = write!(text, "\nRecords:\n\n```sh\n{}\n```\n", commands.join("\n"));
    }
    let _ = write!(text, "\nThis report:\n\n```sh\n{}\n```\n", command(&origin.command));
    text
}
