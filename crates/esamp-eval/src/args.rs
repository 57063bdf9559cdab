//! The command line.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum, builder::RangedU64ValueParser};
use esamp::Sharing;
use esamp_programs::{
    failure::Failure,
    files::{NamedFile, check_distinct},
    loaded::Place,
    model_source::ModelSource,
};

use crate::{
    arms, known,
    plan::{MOST_RECORDS, planned_records},
    provenance::SessionFile,
    record::{ArmRecord, Header, Split},
    report::gather::Results,
    shard::{self, MOST_SHARDS, Shard},
    tasks::{self, KnownSets, LongStories, Task},
};

/// Run tasks under several sampling methods and write the results as JSON Lines.
///
/// Run the same command again to resume after an interruption or a time limit.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "evaluate",
    version,
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Tasks to run: a comma-separated list of names, or all.
    #[arg(long, default_value = "all")]
    pub tasks: String,
    /// Arms to run: headline, all, or a comma-separated list of names.
    #[arg(long, default_value = "headline")]
    pub arms: String,
    /// The half of each task's problems to use.
    #[arg(long, value_enum, default_value_t = SplitName::Dev)]
    pub split: SplitName,
    /// Problems per task [default: 30, with --quick 2]
    #[arg(long, allow_negative_numbers = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub problems: Option<usize>,
    /// Completions per problem [default: 16, with --quick 8]
    #[arg(long, allow_negative_numbers = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub samples: Option<usize>,
    /// Number of seeds (0, 1, …); every problem runs once per arm and seed [default: 3, with --quick 1]
    #[arg(long, allow_negative_numbers = true, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub seeds: Option<u64>,
    /// Maximum number of tokens per completion; a task may have a lower limit of its own [default: 96, with
    /// --quick 48]
    #[arg(long, allow_negative_numbers = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub tokens: Option<usize>,
    /// Problems of a task to decode together: faster, but an interruption loses all of them [default: one; in arms
    /// whose problems share a distiller 4, with --quick 2]
    #[arg(long, allow_negative_numbers = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub batch: Option<usize>,
    /// Decode the completions of a problem in waves of this many, one after the other, with distillers that go through
    /// all of them; records then have tallies instead of texts. For arms with distillers per prompt.
    #[arg(long, value_name = "N", conflicts_with_all = ["match_entropy", "report", "token_arm", "batch"],
        allow_negative_numbers = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub wave: Option<usize>,
    /// Run a plan, each part to a file of its own in the folder --out; the parts have their own settings.
    #[arg(long, value_enum, conflicts_with_all = NO_PLAN)]
    pub plan: Option<PlanName>,
    /// Parts of the plan to run: a comma-separated list of names [default: all]
    #[arg(long, value_delimiter = ',', requires = "plan")]
    pub parts: Vec<String>,
    /// Print the parts of the plan with their budgets, and exit.
    #[arg(long, requires = "plan")]
    pub dry_run: bool,
    /// Run few problems: takes less than ten minutes on two cores.
    #[arg(long)]
    pub quick: bool,
    /// Time limit in minutes: no batch starts that would exceed it.
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    pub budget: Option<Duration>,
    /// The file of records; a second file with .sessions appended to its name records the runs.
    #[arg(long, value_name = "FILE", default_value = "evaluate.jsonl")]
    pub out: PathBuf,
    /// Run shard I of N of the plan, for example 3/8; `evaluate merge` joins the shards. In a Slurm array
    /// (SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT) or a Kubernetes Indexed Job (JOB_COMPLETION_INDEX with
    /// --shard-count) every task runs its shard without this flag, and a flag that says otherwise is an error.
    #[arg(long, value_name = "I/N", conflicts_with_all = NO_RUN)]
    pub shard: Option<Shard>,
    /// The number of shards, if the environment has only the index of this one.
    #[arg(long, value_name = "N", conflicts_with_all = NO_RUN, allow_negative_numbers = true,
        value_parser = RangedU64ValueParser::<u32>::new().range(1..=u64::from(MOST_SHARDS)))]
    pub shard_count: Option<u32>,
    /// Keep single tokens of this arm, to see what novelty correlates with.
    #[arg(long, value_name = "ARM")]
    pub token_arm: Option<String>,
    /// Only find the temperature at which min-p has this arm's mean entropy. Development split only.
    #[arg(long, value_name = "ARM")]
    pub match_entropy: Option<String>,
    /// Write a report on the records to this Markdown file, with its figures in a folder next to it.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Report on these record files, plain or compressed with gzip, without running anything. Needs
    /// --report.
    #[arg(long, value_name = "FILES", value_delimiter = ',', requires = "report")]
    pub records: Vec<PathBuf>,
    /// List the tasks and the arms, and exit.
    #[arg(long)]
    pub list: bool,
    /// The model: a GGUF file, a Hugging Face folder, or hf:ORG/NAME [default: SmolLM2-135M-Instruct]
    #[arg(long)]
    pub model: Option<OsString>,
    #[command(flatten)]
    pub place: Place,
}

/// The flags that a plan sets itself, or has no use for.
const NO_PLAN: [&str; 14] = [
    "tasks",
    "arms",
    "split",
    "problems",
    "samples",
    "seeds",
    "tokens",
    "batch",
    "wave",
    "token_arm",
    "match_entropy",
    "report",
    "list",
    "model",
];

/// The plans, as command-line values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanName {
    /// The second round of evidence.
    #[value(name = "round-2")]
    Round2,
}

/// The flags with which the plan does not run.
const NO_RUN: [&str; 3] = ["match_entropy", "records", "list"];

/// What the program does instead of running a plan.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Join the records of all shards of a plan, byte for byte as without shards.
    Merge {
        /// The record files of the shards, plain or compressed with gzip, in any order.
        #[arg(required = true)]
        shards: Vec<PathBuf>,
        /// The file of records to write; a second file with .sessions appended to its name records the runs.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl Command {
    /// Refuses a command line on which one file would overwrite another.
    pub fn check_files(&self) -> Result<(), Failure> {
        let Self::Merge { shards, out } = self;
        let mut files = Vec::new();
        for shard in shards {
            files.extend(read_with_sessions("a shard", shard));
        }
        files.extend(written_with_sessions(out));
        check_distinct(&files)
    }
}

/// A file of records that is read, and its sessions.
fn read_with_sessions(flag: &str, records: &Path) -> [NamedFile; 2] {
    [
        NamedFile::read(flag, records),
        NamedFile::read(&format!("the sessions of {flag}"), SessionFile::path_beside(records)),
    ]
}

/// The file of records that is written, and its sessions.
fn written_with_sessions(out: &Path) -> [NamedFile; 2] {
    [
        NamedFile::written("--out", out),
        NamedFile::written("the sessions of --out", SessionFile::path_of(out)),
    ]
}

/// The splits, as command-line values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// For choosing settings.
    Dev,
    /// For reporting; at most 8 arms.
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

/// The most arms on the held-out split. Trying many arms there would amount to choosing by it.
pub const HELD_OUT_ARMS: usize = 8;

impl Args {
    /// The model to run.
    pub fn source(&self) -> Result<ModelSource, Failure> {
        match &self.model {
            None => Ok(ModelSource::SmolLm2),
            Some(model) => Ok(ModelSource::named(model)?),
        }
    }

    /// Refuses a command line on which one file would overwrite another.
    pub fn check_files(&self, model: &ModelSource) -> Result<(), Failure> {
        let mut files = NamedFile::of_model("--model", model);
        for records in &self.records {
            files.extend(read_with_sessions("--records", records));
        }
        if self.records.is_empty() && self.match_entropy.is_none() {
            files.extend(written_with_sessions(&self.out));
        }
        if let Some(report) = &self.report {
            files.push(NamedFile::written("--report", report));
            files.push(NamedFile::written("the figures of --report", report.with_extension("")));
        }
        check_distinct(&files)
    }

    /// The shard of the plan to run, if not all of it, and what says so; `variable` reads the environment. See
    /// [`shard::choose`].
    ///
    /// # Errors
    ///
    /// A shard that cannot be known, and a report, which needs the whole plan.
    pub fn shard(
        &self,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<(Shard, &'static str)>, Failure> {
        if self.match_entropy.is_some() || self.list || !self.records.is_empty() {
            return Ok(None);
        }
        let chosen = shard::choose(self.shard, self.shard_count, variable)?;
        match chosen {
            Some((shard, _)) if self.report.is_some() => Err(Failure::usage(
                format!("--report: expected a run of the whole plan, got shard {shard}"),
                "run all shards, merge them, then report on the merged file with --records",
            )),
            _ => Ok(chosen),
        }
    }

    /// Refuses a plan with more records than anyone will wait for: its list alone would fill the memory.
    pub fn check_size(&self, tasks: usize, arms: usize) -> Result<(), Failure> {
        let sizes = [self.problem_count() as u64, self.seed_count(), tasks as u64, arms as u64];
        if planned_records(sizes) <= MOST_RECORDS {
            return Ok(());
        }
        let [problems, seeds, tasks, arms] = sizes;
        Err(Failure::usage(
            format!(
                "--seeds: expected a plan of at most {MOST_RECORDS} records, got {seeds} seeds × {problems} problems × \
                 {tasks} tasks × {arms} arms"
            ),
            "reduce one of them",
        ))
    }

    fn problem_count(&self) -> usize {
        self.problems.unwrap_or(if self.quick { 2 } else { 30 })
    }

    fn seed_count(&self) -> u64 {
        self.seeds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// The tasks to run, in the order given.
    pub fn tasks(&self) -> Result<Vec<Box<dyn Task>>, Failure> {
        if self.tasks == "all" {
            return Ok(tasks::all());
        }
        // Tasks that are not among all: they need a model of their own, or more time.
        let mut known = tasks::all();
        known.push(Box::new(LongStories));
        known.push(Box::new(KnownSets));
        known.extend(known::tasks());
        let names: Vec<&str> = known.iter().map(|task| task.name()).collect();
        let mut places = Vec::new();
        for name in self.tasks.split(',').map(str::trim) {
            match names.iter().position(|&known| known == name) {
                Some(place) if !places.contains(&place) => places.push(place),
                Some(_) => {
                    return Err(Failure::usage(
                        format!("--tasks: expected each task once, got {name} twice"),
                        "remove one of them",
                    ));
                }
                None => {
                    return Err(Failure::usage(
                        format!("--tasks: expected the name of a task, got {name}"),
                        &format!("use all, or some of: {}", names.join(", ")),
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

    /// The arms to run.
    pub fn arms(&self) -> Result<Vec<ArmRecord>, Failure> {
        let arms = arms::named(&self.arms)?;
        // A plan is fixed before its runs, and names its comparisons.
        if self.plan.is_none() && self.split == SplitName::HeldOut && arms.len() > HELD_OUT_ARMS {
            return Err(Failure::usage(
                format!(
                    "--arms: expected at most {HELD_OUT_ARMS} on the held-out split, got {}",
                    arms.len()
                ),
                "choose arms with --split dev first",
            ));
        }
        if let Some(report) = &self.report {
            if report.extension().is_none() {
                return Err(Failure::usage(
                    format!(
                        "--report: expected a file name with an extension, got {}",
                        report.display()
                    ),
                    "the folder for figures is named without it: try r.md",
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
        let shares = |arm: &&ArmRecord| !has_waves(arm.sampler.sharing);
        if let (Some(_), Some(arm)) = (self.wave, arms.iter().find(shares)) {
            return Err(Failure::usage(
                format!("--wave: expected arms with distillers per prompt, got {}", arm.name),
                "remove the arm, or --wave",
            ));
        }
        Ok(arms)
    }

    /// The arm to match, if `--match-entropy` is given.
    pub fn arm_to_match(&self) -> Result<Option<ArmRecord>, Failure> {
        let Some(name) = &self.match_entropy else {
            return Ok(None);
        };
        if self.split == SplitName::HeldOut {
            return Err(Failure::usage(
                "--match-entropy: expected the development split, got the held-out one".to_owned(),
                "a temperature is a setting: choose it with --split dev",
            ));
        }
        let mut arms = arms::named(name)?;
        match (arms.pop(), arms.len()) {
            (Some(arm), 0) => Ok(Some(arm)),
            (_, more) => Err(Failure::usage(
                format!("--match-entropy: expected one arm, got {}", more + 1),
                "match one arm at a time",
            )),
        }
    }

    /// Adds the settings to a header that already has its provenance.
    pub fn fill(&self, header: Header) -> Header {
        let or = |set: Option<usize>, usual: usize, quick: usize| {
            set.unwrap_or(if self.quick { quick } else { usual })
        };
        Header {
            split: self.split.into(),
            problems: self.problem_count(),
            samples: or(self.samples, 16, 8),
            seeds: self.seed_count(),
            tokens: or(self.tokens, 96, 48),
            batch: or(self.batch, 4, 2),
            one_by_one: self.batch.is_none(),
            wave: self.wave,
            token_arm: self.token_arm.clone(),
            ..header
        }
    }
}

/// Whether the distillers of a prompt can go through waves.
fn has_waves(sharing: Sharing) -> bool {
    matches!(sharing, Sharing::PerPrompt)
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes = text.parse::<f64>().ok().filter(|&minutes| minutes > 0.0);
    let duration = minutes.and_then(|minutes| Duration::try_from_secs_f64(minutes * 60.0).ok());
    duration.ok_or_else(|| "expected a number above 0".to_owned())
}
