//! The report: Markdown with figures, generated entirely from the records.
//!
//! `gather` combines records, `measures` turns them into values per problem, and `compare` into differences
//! with intervals; `tables`, `plots` and `summary` render them. `tallies` is a report of its own, on runs by waves. Problems are the unit of every interval:
//! the seeds and completions of a problem are not independent, so only their mean is used.

pub mod compare;
pub mod embeddings;
pub mod first_screen;
pub mod gather;
pub mod measures;
pub mod novelty;
pub mod novelty_plot;
pub mod novelty_section;
pub mod plots;
pub mod summary;
pub mod tables;
pub mod tallies;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use esamp::Detokenize;
use esamp_programs::failure::Failure;

use crate::{
    metrics::{BootstrapConfig, McNemar, mcnemar},
    provenance::Sessions,
    record::{ArmRecord, Role},
};

use compare::{At, Gain, LEVEL, Opponents, gain, rivalry};
use gather::{Results, TaskResults};
use measures::{Embed, Measure, TaskScores};
use novelty_section::novelty_section;
use plots::{Curve, Point};

/// A task with everything computed from it.
#[derive(Debug)]
pub struct Task<'r> {
    pub results: &'r TaskResults,
    pub scores: TaskScores,
    gains: BTreeMap<(usize, Measure, At), Gain>,
    /// By measure: see [`Rivalry`].
    rivalries: BTreeMap<Measure, Vec<Rivalry>>,
}

/// A method, a control or baseline, and how much farther above the frontier the method is.
pub type Rivalry = (usize, usize, Gain);

impl<'r> Task<'r> {
    /// Computes the comparisons of a task.
    ///
    /// # Errors
    ///
    /// Errors of embedding and of the bootstrap.
    pub fn of(
        results: &Results,
        task: &'r TaskResults,
        embed: &mut Embed<'_>,
    ) -> Result<Self, Failure> {
        let arms = &results.header.arms;
        let scores = TaskScores::of(task, arms.len(), embed)?;
        let opponents = Opponents { base: results.base, frontier: results.frontier() };
        let mut gains = BTreeMap::new();
        for (arm, record) in arms.iter().enumerate() {
            for measure in scores.principal() {
                for at in At::of(measure) {
                    // An arm of the frontier lies on it, so it is only compared with the base.
                    let itself = match at {
                        At::Base => arm == opponents.base,
                        _ => record.role == Role::Frontier,
                    };
                    if !itself && let Some(found) = gain(&scores, arm, measure, at, &opponents)? {
                        gains.insert((arm, measure, at), found);
                    }
                }
            }
        }
        let mut rivalries: BTreeMap<Measure, Vec<Rivalry>> = BTreeMap::new();
        // Texts can differ in meaning and still repeat their words, so word diversity is compared too.
        let words = (!task.task.verifiable).then_some(Measure::Distinct);
        for measure in scores.most_telling().into_iter().chain(words) {
            for pair in pairs(results) {
                if let Some(found) = rivalry(&scores, pair, measure, &opponents)? {
                    rivalries.entry(measure).or_default().push((pair[0], pair[1], found));
                }
            }
        }
        Ok(Self { results: task, scores, gains, rivalries })
    }

    /// The mean of a measure over problems.
    pub fn mean(&self, measure: Measure, arm: usize) -> f64 {
        let values = self.scores.measures.get(&measure).map(|scores| &scores.of_arm[arm]);
        values.map_or(f64::NAN, |values| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The difference in a main measure; `None` if it is undefined or compares an arm with itself.
    pub fn gain(&self, arm: usize, measure: Measure, at: At) -> Option<&Gain> {
        self.gains.get(&(arm, measure, at))
    }

    /// Number of differences that are printed.
    pub fn intervals(&self) -> usize {
        self.gains.len() + self.rivalries.values().map(Vec::len).sum::<usize>()
    }

    /// McNemar's test of every other arm against the base: is a problem solved by any completion of its
    /// first seed?
    fn solved(&self, base: usize) -> Result<Vec<(usize, McNemar)>, Failure> {
        // Only one seed: the test assumes independent outcomes, and runs of the same problem are not.
        let mut firsts: BTreeMap<usize, usize> = BTreeMap::new();
        for (place, &(problem, _)) in self.results.groups.iter().enumerate() {
            firsts.entry(problem).or_insert(place);
        }
        let of = |arm: usize| -> Vec<bool> {
            firsts.values().map(|&place| self.scores.solved[arm][place]).collect()
        };
        let others = (0..self.scores.solved.len()).filter(|&arm| arm != base);
        let test = |arm| {
            let tested = mcnemar(&of(arm), &of(base));
            Ok((
                arm,
                tested.map_err(|error| Failure::runtime(error, "report this with the records"))?,
            ))
        };
        others.map(test).collect()
    }
}

/// Pairs of methods and their controls, then of methods and baselines.
fn pairs(results: &Results) -> Vec<[usize; 2]> {
    let of_role = |role: Role| {
        let arms = results.header.arms.iter().enumerate();
        arms.filter(move |(_, arm)| arm.role == role).map(|(at, _)| at)
    };
    let controls =
        of_role(Role::Control).filter_map(|control| Some([results.controlled(control)?, control]));
    let baselines = of_role(Role::Method)
        .flat_map(|method| of_role(Role::Baseline).map(move |baseline| [method, baseline]));
    controls.chain(baselines).collect()
}

/// A section and its figures, each with file name and SVG.
#[derive(Debug)]
pub struct Section {
    pub text: String,
    pub figures: Vec<(String, String)>,
}

/// The provenance of records.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The sessions of the program that wrote them.
    pub sessions: Sessions,
    /// The command that wrote this report.
    pub command: Vec<String>,
    /// The embedding model and its hash.
    pub embedder: String,
}

/// Writes a report to `to`, and its figures to the folder of the same name without the extension. If an arm
/// has kept single tokens, `detokenizer` provides their text.
///
/// # Errors
///
/// Errors of the measures, and I/O errors.
pub fn write(
    results: &Results,
    origin: &Origin,
    detokenizer: &dyn Detokenize,
    embed: &mut Embed<'_>,
    to: &Path,
) -> Result<(), Failure> {
    let tasks: Vec<Task<'_>> = results
        .tasks
        .iter()
        .map(|task| Task::of(results, task, embed))
        .collect::<Result<_, _>>()?;
    let folder = to.with_extension("");
    let at = |path: &Path, error| {
        Failure::new(
            format!("{}: {error}", path.display()),
            "check the path of --report and the disk",
        )
    };
    fs::create_dir_all(&folder).map_err(|error| at(&folder, error))?;
    let shown = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();

    let mut sections = Vec::new();
    for task in &tasks {
        sections.push(section(results, task)?);
    }
    let mut lines = Vec::new();
    for task in &results.tasks {
        if let Some(found) = novelty_section(results, task, detokenizer, embed)? {
            sections.push(found.section);
            // The summary only has room for the first task that has it.
            lines.push(found.line);
        }
    }
    let mut text = heading(results, &tasks, lines.first())?;
    for section in sections {
        text += &section.text;
        for (name, svg) in section.figures {
            let path = folder.join(&name);
            fs::write(&path, svg).map_err(|error| at(&path, error))?;
            let _ = writeln!(text, "\n![{}]({shown}/{name})", name.trim_end_matches(".svg"));
        }
    }
    text += &provenance(results, origin);
    fs::write(to, text).map_err(|error| at(to, error))
}

fn heading(
    results: &Results,
    tasks: &[Task<'_>],
    novelty: Option<&String>,
) -> Result<String, Failure> {
    let first = first_screen::lines(results, tasks)?;
    let intervals = tasks.iter().map(Task::intervals).sum::<usize>() + first.intervals;
    let mut text = format!("# Does exploring help {}?\n\n", results.header.model.name);
    for line in first.lines {
        let _ = writeln!(text, "{line}\n");
    }
    for line in summary::lines(results, tasks, novelty, intervals) {
        let _ = writeln!(text, "- {line}");
    }
    let base = &results.header.arms[results.base].name;
    let _ = write!(
        text,
        "\n<!-- Written by the program `evaluate` with --report: a change by hand is lost. -->\n\n## How to read it\n\n\
         Differences are the arm's mean minus that of plain sampling on the same problems. *vs {base}*: at \
         {base}'s own \
         temperature. *At equal perplexity* and *at equal entropy*: plain sampling at the temperature that \
         would give it the \
         arm's perplexity (under the model, at temperature 1, no filter) or the entropy of what tokens are \
         drawn from, read off \
         the broken line through the frontier's arms, in log-perplexity; a dash where that line does not reach. \
         *At equal validity*: the same with the share of right answers (pass@1). *vs the best \
         temperature*: compared with the frontier's arm that is best in it on these problems. A lower \
         temperature makes texts more \
         probable and less diverse, so a difference in one of the two at unequal perplexity says little about \
         exploring.\n\n\
         {}",
        READING
    );
    let _ = write!(text, "\n{}", tables::arms(results));
    Ok(text)
}

/// Explains the columns and their limitations.
const READING: &str = "\
- Vendi: effective number of different completions of a problem, by sentence embeddings. Cosine: their mean \
similarity. \
  Adjusted distinct-2: different pairs of tokens relative to those expected of as many random ones. Self-BLEU: \
  overlap of \
  completions. Solutions: different right completions of a problem. pass@k: chance of a right one among k; \
  maj@k: of a right \
  majority. Perplexity: exp of the mean over problems of a token's surprisal. Cut: share of completions that \
  end at the limit.
- Changed: tokens that differ from what the same random number would have chosen without steering. Slope: of the \
  distiller's error on the reference logits, and sharpening: of what was added to them; steering that only \
  sharpens is a lower \
  temperature. Entropy before and after: of the reference distribution and of the one drawn from.
- A problem's completions and seeds are not independent: their mean is one number, and intervals are over problems, \
  widened for few of them. Few problems of which only one arm solves a part decide less than such an interval \
  says: there look \
  at McNemar's p. Problems of one task are made from the same lists of parts, in both halves.
- Completions that are cut, and those of different lengths, are compared as they are.
";

fn section(results: &Results, task: &Task<'_>) -> Result<Section, Failure> {
    let (about, name) = (&task.results.task, &task.results.task.name);
    let mut text = format!(
        "\n## {name}\n\n{}. {} under every arm, at most {} tokens.",
        capital(&about.what),
        task.results.extent(),
        about.tokens,
    );
    if task.results.left_out > 0 {
        let _ = write!(
            text,
            " {} records are left out: not every arm has met their problem and seed.",
            task.results.left_out
        );
    }
    let _ = write!(text, "\n\n{}", tables::levels(results, task));
    let _ = write!(
        text,
        "\nWhat steering did to a token's distribution:\n\n{}",
        tables::steering(results, task)
    );
    let all = task.results.problems.len();
    for measure in task.scores.principal() {
        let _ = write!(text, "\n{}", tables::gains(results, task, measure));
        let met = task.scores.measures.get(&measure).map_or(0, |scores| scores.problems.len());
        if met < all {
            let _ = writeln!(
                text,
                "\nOn {met} problems: some arm's completions of the others are too short for it."
            );
        }
    }
    for (measure, rivalries) in &task.rivalries {
        let _ = write!(
            text,
            "\nHow much farther a method lies above the frontier than its control or a baseline does, in {}, \
             each at its own \
             perplexity:\n\n{}",
            measure.name(),
            tables::rivalries(results, rivalries, *measure)
        );
    }
    let mut figures = Vec::new();
    let passes = task.scores.passes();
    if !passes.is_empty() {
        let tests = task.solved(results.base)?;
        let _ = write!(
            text,
            "\nProblems of which any of the first seed's {} completions is right:\n\n{}",
            results.header.samples,
            tables::solved(results, &tests)
        );
        let curve = |(arm, record): (usize, &ArmRecord)| Curve {
            name: record.name.clone(),
            colour: plots::colour(arm),
            role: record.role,
            points: passes.iter().map(|&k| (k, task.mean(Measure::Pass(k), arm))).collect(),
        };
        let curves: Vec<Curve> = results.header.arms.iter().enumerate().map(curve).collect();
        figures.push((
            format!("{name}-pass-at-k.svg"),
            plots::pass_curves(&format!("{name}: pass@k"), &curves)?,
        ));
    }
    if task.scores.measures.contains_key(&Measure::Vendi) {
        let point = |(arm, record): (usize, &ArmRecord)| Point {
            name: record.name.clone(),
            colour: plots::colour(arm),
            role: record.role,
            perplexity: task.mean(Measure::Surprisal, arm).exp(),
            diversity: task.mean(Measure::Vendi, arm),
        };
        let points: Vec<Point> = results.header.arms.iter().enumerate().map(point).collect();
        let title = format!("{name}: diversity against perplexity");
        let diversity = format!("Vendi score of {} completions", results.header.samples);
        figures.push((format!("{name}-pareto.svg"), plots::pareto(&title, &diversity, &points)?));
    }
    Ok(Section { text, figures })
}

fn provenance(results: &Results, origin: &Origin) -> String {
    let header = &results.header;
    let seeds: BTreeSet<u64> = results.tasks.iter().flat_map(TaskResults::seeds).collect();
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let bootstrap = BootstrapConfig::default();
    let Sessions { sessions, damaged } = &origin.sessions;
    let (machine, mut time) = match sessions.len() {
        0 => ("not recorded".to_owned(), "not recorded".to_owned()),
        count => {
            let machines: BTreeSet<&str> =
                sessions.iter().map(|session| session.machine.as_str()).collect();
            let minutes = sessions.iter().map(|session| session.seconds).sum::<f64>() / 60.0;
            let machines: Vec<&str> = machines.into_iter().collect();
            let s = if count == 1 { "" } else { "s" };
            (machines.join("; "), format!("{minutes:.0} min in {count} session{s}"))
        }
    };
    if *damaged > 0 {
        let _ = write!(time, "; {damaged} more with a damaged line");
    }
    let mut text = format!(
        "\n## Where it comes from\n\n| | |\n|---|---|\n| model | {}, SHA-256 `{}` |\n| embeddings | {} |\n| \
         commit of the \
         records | {} |\n| seeds | {} |\n| machine | {machine} |\n| run time | {time} |\n| intervals | {:.0} %, \
         expanded \
         percentile bootstrap over problems, {} resamples |\n",
        header.model.name,
        header.model.sha256,
        origin.embedder,
        results.commits.join(", "),
        seeds.join(", "),
        100.0 * LEVEL,
        bootstrap.resamples,
    );
    let mut commands: Vec<String> = Vec::new();
    for session in sessions {
        let command = command(&session.command);
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    if !commands.is_empty() {
        let _ = write!(text, "\nRecords:\n\n```sh\n{}\n```\n", commands.join("\n"));
    }
    let _ = write!(text, "\nThis report:\n\n```sh\n{}\n```\n", command(&origin.command));
    text
}

/// A command as typed in a shell.
fn command(words: &[String]) -> String {
    let quoted = |word: &String| {
        if word.contains(char::is_whitespace) { format!("'{word}'") } else { word.clone() }
    };
    let words: Vec<String> = words.iter().skip(1).map(quoted).collect();
    format!("cargo run --release --bin evaluate -- {}", words.join(" "))
}

/// Capitalises the first letter.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
