//! The plan of the second round of evidence: parts that are runs of this program, with their budgets.
//!
//! `docs/design/round-2.md` says why, `docs/results/predictions.md` what is expected.

use std::path::{Path, PathBuf};

use esamp_programs::failure::Failure;

use crate::{
    args::{Args, PlanName, SplitName},
    tasks::Task,
};

/// The model of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartModel {
    /// SmolLM2-135M-Instruct.
    SmolLm2,
    /// A folder of `crates/esamp-eval/known`.
    Known(&'static str),
}

/// A run of the plan. It is written to a file of its own, named after it.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub model: PartModel,
    /// As for `--tasks`.
    pub tasks: &'static str,
    /// As for `--arms`.
    pub arms: String,
    pub split: SplitName,
    pub problems: usize,
    pub samples: usize,
    pub wave: Option<usize>,
    pub seeds: u64,
    pub tokens: usize,
    /// Tokens per second on two cores, for the budget.
    pub speed: f64,
}

/// The arms of the parts with known answers: the frontier of temperature and filter, rivals, methods and controls.
pub const KNOWN_ARMS: [&str; 24] = [
    "plain-0.7",
    "plain-1",
    "plain-1.3",
    "min-p-1",
    "min-p-1.3",
    "top-p-1",
    "top-p-1.3",
    "arithmetic",
    "esamp-paper-0.25",
    "esamp-0.5",
    "esamp-0.5-t1.3",
    "orthogonal-1",
    "orthogonal-1-t1.3",
    "elliptical-0.5",
    "elliptical-orthogonal-1",
    "frozen-0.5",
    "matched-0.5",
    "matched-orthogonal-1",
    "arithmetic-esamp-0.5",
    "fire-esamp-0.5",
    "esamp-0.5-open",
    "orthogonal-1-open",
    "elliptical-orthogonal-1-open",
    "frozen-0.5-open",
];
/// The arms of the parts with texts that are judged.
const TEXT_ARMS: [&str; 10] = [
    "min-p-1",
    "min-p-0.85",
    "esamp-0.5",
    "orthogonal-1",
    "min-p-1.3",
    "arithmetic",
    "esamp-paper-0.25",
    "elliptical-0.5",
    "elliptical-orthogonal-1",
    "frozen-0.5",
];
/// The arms of stories: the frontier, and those that were only on development problems in the first round.
const STORY_ARMS: [&str; 9] = [
    "min-p-0.85",
    "min-p-1",
    "min-p-1.3",
    "orthogonal-1-t1.3",
    "arithmetic",
    "fire-esamp-0.5",
    "elliptical-0.5",
    "elliptical-orthogonal-1",
    "frozen-0.5",
];
/// Methods of other authors, in files of their own: a report joins them with the other arms of their task.
const RIVAL_ARMS: [&str; 2] = ["crowding", "recoding"];
/// The arms of the known sets.
const SET_ARMS: [&str; 14] = [
    "plain-1",
    "plain-1.3",
    "esamp-0.5",
    "orthogonal-1",
    "plain-0.7",
    "min-p-1",
    "min-p-1.3",
    "arithmetic",
    "elliptical-orthogonal-1",
    "frozen-0.5",
    "crowding",
    "recoding",
    "esamp-0.5-open",
    "orthogonal-1-open",
];
/// The arms of long completions.
const LONG_ARMS: [&str; 4] = ["min-p-1", "esamp-paper-0.25", "esamp-0.25", "orthogonal-1"];

/// The trained models, each with its task.
pub const KNOWN: &[(&str, &str)] = &[
    ("sibling", "sibling-even"),
    ("sibling", "sibling-peaked"),
    ("triangle", "triangle-even"),
    ("triangle", "triangle-peaked"),
    ("circle", "circle-even"),
    ("circle", "circle-peaked"),
    ("line", "line-even"),
    ("line", "line-peaked"),
];

/// Tokens per second of a trained model at 64 rows, over all arms: twice what a run of them needed of processor time, for two
/// cores. The siblings have the most words, so their head is the largest.
fn known_speed(task: &str) -> f64 {
    match task {
        "sibling" => 9_000.0,
        "triangle" => 13_000.0,
        _ => 20_000.0,
    }
}

/// All parts, in the order in which they run: first what development problems decide.
pub fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    for (split, half, problems) in
        [(SplitName::Dev, "dev", 10), (SplitName::HeldOut, "held-out", 20)]
    {
        parts.extend(KNOWN.iter().map(|&(tasks, model)| Part {
            name: format!("{model}-{half}"),
            model: PartModel::Known(model),
            tasks,
            arms: KNOWN_ARMS.join(","),
            split,
            problems,
            samples: 1024,
            wave: Some(64),
            seeds: 1,
            tokens: 96,
            speed: known_speed(tasks),
        }));
    }
    let text = |name: &str, tasks: &'static str, arms: &[&str]| Part {
        name: name.to_owned(),
        model: PartModel::SmolLm2,
        tasks,
        arms: arms.join(","),
        split: SplitName::HeldOut,
        problems: 100,
        samples: 64,
        wave: None,
        seeds: 1,
        tokens: 96,
        speed: 600.0,
    };
    parts.push(text("sentences-64", "sentences", &TEXT_ARMS));
    parts.push(Part { problems: 40, ..text("reasoning-gym-64", "reasoning-gym", &TEXT_ARMS) });
    let stories = |name: &str, arms: &[&str]| {
        let stories = text(name, "stories", arms);
        Part { problems: 30, samples: 16, seeds: 3, speed: 420.0, ..stories }
    };
    parts.push(stories("stories", &STORY_ARMS));
    let long = text("stories-long", "stories-long", &LONG_ARMS);
    parts.push(Part { problems: 20, samples: 16, tokens: 512, speed: 420.0, ..long });
    parts.push(text("sentences-64-rivals", "sentences", &RIVAL_ARMS));
    parts.push(stories("stories-rivals", &RIVAL_ARMS));
    for (split, half, problems) in
        [(SplitName::Dev, "dev", 20), (SplitName::HeldOut, "held-out", 60)]
    {
        let sets = text("", "known-sets", &SET_ARMS);
        let name = format!("known-sets-{half}");
        parts.push(Part { name, split, problems, samples: 256, wave: Some(64), ..sets });
    }
    parts
}

impl Part {
    /// The part in a form that takes minutes: one problem, few completions, the first four arms.
    pub fn quick(mut self) -> Self {
        let first: Vec<&str> = self.arms.split(',').take(4).collect();
        self.arms = first.join(",");
        self.problems = 1;
        self.samples = self.wave.map_or(8, |wave| 2 * wave);
        self.seeds = 1;
        self.tokens = self.tokens.min(48);
        self
    }

    /// The most tokens of the part.
    ///
    /// # Errors
    ///
    /// A task that does not exist.
    pub fn most_tokens(&self, args: &Args) -> Result<u64, Failure> {
        let tasks = args.tasks()?;
        let arms = self.arms.split(',').count() as u64;
        let longest = |task: &dyn Task| task.tokens().min(self.tokens) as u64;
        let all: u64 = tasks.iter().map(|task| longest(&**task)).sum();
        Ok(all * arms * self.seeds * (self.problems * self.samples) as u64)
    }

    /// The file of records in the folder of the plan.
    pub fn file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.jsonl", self.name))
    }

    /// The command line of the part: that of the plan with the part's settings.
    pub fn args(&self, plan: &Args) -> Args {
        Args {
            tasks: self.tasks.to_owned(),
            arms: self.arms.clone(),
            split: self.split,
            problems: Some(self.problems),
            samples: Some(self.samples),
            wave: self.wave,
            seeds: Some(self.seeds),
            tokens: Some(self.tokens),
            out: self.file(&plan.out),
            model: match self.model {
                PartModel::SmolLm2 => None,
                PartModel::Known(name) => {
                    let known = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/known"));
                    Some(known.join(name).into())
                }
            },
            ..plan.clone()
        }
    }
}

/// The parts that a command line asks for.
///
/// # Errors
///
/// The name of a part that the plan does not have.
pub fn chosen(args: &Args) -> Result<Vec<Part>, Failure> {
    let mut parts = match args.plan {
        Some(PlanName::Round2) => parts(),
        None => Vec::new(),
    };
    if let Some(unknown) =
        args.parts.iter().find(|name| !parts.iter().any(|part| part.name == **name))
    {
        let known: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        return Err(Failure::usage(
            format!("--parts: expected the name of a part, got {unknown}"),
            &format!("use some of: {}", known.join(", ")),
        ));
    }
    parts.retain(|part| args.parts.is_empty() || args.parts.contains(&part.name));
    Ok(if args.quick { parts.into_iter().map(Part::quick).collect() } else { parts })
}
