//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum, builder::RangedU64ValueParser};
use esamp_programs::{device::DeviceName, failure::Failure, model_source::ModelSource};

use crate::{
    arms,
    record::{ArmRecord, Header, Split},
    report::gather::Results,
    tasks::{self, Task},
};

/// Runs tasks under several ways to sample, and writes what came of it as JSON Lines.
///
/// Killed or out of time, the same command goes on where it was.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version, args_override_self = true)]
pub struct Args {
    /// What the model is asked: names with commas between them, or all.
    #[arg(long, default_value = "all")]
    pub tasks: String,
    /// Ways to sample: headline, all, or names with commas between them.
    #[arg(long, default_value = "headline")]
    pub arms: String,
    /// Which half of each task's problems.
    #[arg(long, value_enum, default_value_t = SplitName::Dev)]
    pub split: SplitName,
    /// Problems of each task [default: 30, with --quick 2]
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub problems: Option<usize>,
    /// Completions of each problem [default: 16, with --quick 8]
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub samples: Option<usize>,
    /// How often every problem is run under every arm: with the seeds 0, 1, … [default: 3, with --quick 1]
    #[arg(long, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub seeds: Option<u64>,
    /// The most tokens of a completion; tasks that need fewer take fewer [default: 96, with --quick 48]
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub tokens: Option<usize>,
    /// Problems of a task that run in one batch [default: 4, with --quick 2]
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub batch: Option<usize>,
    /// Few problems: done in less than ten minutes on two cores.
    #[arg(long)]
    pub quick: bool,
    /// Minutes after which no more is begun.
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    pub budget: Option<Duration>,
    /// Where the records go; with a file of the same name and .sessions behind it.
    #[arg(long, value_name = "FILE", default_value = "evaluate.jsonl")]
    pub out: PathBuf,
    /// Keep single tokens of this arm, to see what novelty goes along with.
    #[arg(long, value_name = "ARM")]
    pub token_arm: Option<String>,
    /// Find the temperature at which min-p has this arm's mean entropy, and do nothing else. Development split only.
    #[arg(long, value_name = "ARM")]
    pub match_entropy: Option<String>,
    /// Write what the records say to this file, in Markdown, with its figures in a folder beside it.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Report on the records of these files, packed with gzip or not, instead of running anything. Needs --report.
    #[arg(long, value_name = "FILES", value_delimiter = ',', requires = "report")]
    pub records: Vec<PathBuf>,
    /// Show the tasks and the arms, and do nothing else.
    #[arg(long)]
    pub list: bool,
    /// A GGUF file, a Hugging Face folder, or hf:ORG/NAME [default: SmolLM2-135M-Instruct]
    #[arg(long)]
    pub model: Option<String>,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    pub device: DeviceName,
}

/// The splits, as flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// For choosing settings.
    Dev,
    /// For reporting, at most 8 arms.
    HeldOut,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Dev => Self::Dev,
            SplitName::HeldOut => Self::HeldOut,
        }
    }
}

/// The most arms on the held-out split: whoever tries many there chooses by it.
pub const HELD_OUT_ARMS: usize = 8;

impl Args {
    /// The model asked for.
    pub fn source(&self) -> Result<ModelSource, Failure> {
        match &self.model {
            None => Ok(ModelSource::SmolLm2),
            Some(model) => Ok(model.parse::<ModelSource>()?),
        }
    }

    /// The tasks asked for, in the order asked for.
    pub fn tasks(&self) -> Result<Vec<Box<dyn Task>>, Failure> {
        let mut known = tasks::all();
        if self.tasks == "all" {
            return Ok(known);
        }
        let names: Vec<&str> = known.iter().map(|task| task.name()).collect();
        let mut places = Vec::new();
        for name in self.tasks.split(',').map(str::trim) {
            match names.iter().position(|&known| known == name) {
                Some(place) if !places.contains(&place) => places.push(place),
                Some(_) => {
                    return Err(Failure::usage(
                        format!("--tasks: expected each task once, got {name} twice"),
                        "leave one of them out",
                    ));
                }
                None => {
                    return Err(Failure::usage(
                        format!("--tasks: expected the name of a task, got {name}"),
                        &format!("all, or some of: {}", names.join(", ")),
                    ));
                }
            }
        }
        let mut chosen: Vec<(usize, Box<dyn Task>)> = Vec::new();
        for (at, task) in known.drain(..).enumerate() {
            if let Some(turn) = places.iter().position(|&place| place == at) {
                chosen.push((turn, task));
            }
        }
        chosen.sort_by_key(|&(turn, _)| turn);
        Ok(chosen.into_iter().map(|(_, task)| task).collect())
    }

    /// The arms asked for.
    pub fn arms(&self) -> Result<Vec<ArmRecord>, Failure> {
        let arms = arms::named(&self.arms)?;
        if self.split == SplitName::HeldOut && arms.len() > HELD_OUT_ARMS {
            return Err(Failure::usage(
                format!(
                    "--arms: expected at most {HELD_OUT_ARMS} on the held-out split, got {}",
                    arms.len()
                ),
                "choose among them with --split dev first",
            ));
        }
        if let Some(report) = &self.report {
            if report.extension().is_none() {
                return Err(Failure::usage(
                    format!("--report: expected a name with an ending, got {}", report.display()),
                    "the folder of the figures has the name without it: try r.md",
                ));
            }
            if self.records.is_empty() {
                Results::base_of(&arms)?;
            }
        }
        if let Some(name) = &self.token_arm
            && !arms.iter().any(|arm| arm.name == *name)
        {
            return Err(Failure::usage(
                format!("--token-arm: expected one of the arms that run, got {name}"),
                "add it to --arms",
            ));
        }
        Ok(arms)
    }

    /// The arm to match, if that is what is asked.
    pub fn arm_to_match(&self) -> Result<Option<ArmRecord>, Failure> {
        let Some(name) = &self.match_entropy else {
            return Ok(None);
        };
        if self.split == SplitName::HeldOut {
            return Err(Failure::usage(
                "--match-entropy: expected the development split, got the held-out one".to_owned(),
                "a temperature is a setting: find it with --split dev",
            ));
        }
        let mut arms = arms::named(name)?;
        match (arms.pop(), arms.len()) {
            (Some(arm), 0) => Ok(Some(arm)),
            (_, more) => Err(Failure::usage(
                format!("--match-entropy: expected one arm, got {}", more + 1),
                "match them one by one",
            )),
        }
    }

    /// Puts the settings into a header whose provenance is known.
    pub fn fill(&self, header: Header) -> Header {
        let or = |set: Option<usize>, usual: usize, quick: usize| {
            set.unwrap_or(if self.quick { quick } else { usual })
        };
        Header {
            split: self.split.into(),
            problems: or(self.problems, 30, 2),
            samples: or(self.samples, 16, 8),
            seeds: self.seeds.unwrap_or(if self.quick { 1 } else { 3 }),
            tokens: or(self.tokens, 96, 48),
            batch: or(self.batch, 4, 2),
            token_arm: self.token_arm.clone(),
            ..header
        }
    }
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes = text.parse::<f64>().ok().filter(|&minutes| minutes > 0.0);
    let duration = minutes.and_then(|minutes| Duration::try_from_secs_f64(minutes * 60.0).ok());
    duration.ok_or_else(|| "expected a number above 0".to_owned())
}
