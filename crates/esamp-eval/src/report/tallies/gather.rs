//! The records of runs by waves, by model and task.

use std::collections::{BTreeMap, BTreeSet};

use esamp_programs::failure::Failure;

use crate::{
    record::{ArmRecord, Header, ModelRecord, ProblemRecord, Run, Split, TaskRecord},
    tally::Tally,
};

/// A task and the model that it was given to.
#[derive(Debug)]
pub struct Subject {
    /// The model's name if it has that of the task in it, otherwise both.
    pub name: String,
    pub model: ModelRecord,
    pub task: TaskRecord,
    /// Completions of a problem, and of a wave.
    pub samples: usize,
    pub wave: usize,
    pub dev: Option<Half>,
    pub held_out: Option<Half>,
}

/// One half of the problems.
#[derive(Debug)]
pub struct Half {
    pub arms: Vec<ArmRecord>,
    /// The problems that all arms have met, in ascending order.
    pub problems: Vec<usize>,
    /// Records of problems and seeds that some arm has not met.
    pub left_out: usize,
    pub commit: String,
    /// `[arm][problem]`, the seeds of each.
    records: Vec<Vec<Vec<ProblemRecord>>>,
}

impl Half {
    fn new(header: &Header, all: Vec<ProblemRecord>) -> Self {
        let arms = header.arms.clone();
        let place = |record: &ProblemRecord| arms.iter().position(|arm| arm.name == record.arm);
        let count = all.len();
        let mut found: BTreeMap<(usize, u64), BTreeMap<usize, ProblemRecord>> = BTreeMap::new();
        for record in all {
            if let Some(arm) = place(&record) {
                found.entry((record.problem, record.seed)).or_default().insert(arm, record);
            }
        }
        found.retain(|_, by_arm| by_arm.len() == arms.len());
        let problems: BTreeSet<usize> = found.keys().map(|&(problem, _)| problem).collect();
        let problems: Vec<usize> = problems.into_iter().collect();
        let left_out = count - found.len() * arms.len();
        let mut records = vec![vec![Vec::new(); problems.len()]; arms.len()];
        for ((problem, _), by_arm) in found {
            let at = problems.partition_point(|&other| other < problem);
            for (arm, record) in by_arm {
                records[arm][at].push(record);
            }
        }
        Self { arms, problems, left_out, commit: header.commit.clone(), records }
    }

    /// The index of an arm.
    pub fn arm(&self, name: &str) -> Option<usize> {
        self.arms.iter().position(|arm| arm.name == name)
    }

    /// A figure of a tally, for each problem the mean over its seeds.
    pub fn of_arm(&self, arm: usize, figure: impl Fn(&Tally) -> f64) -> Vec<f64> {
        let mean = |seeds: &Vec<ProblemRecord>| {
            let figures = seeds.iter().filter_map(|record| record.tally.as_ref()).map(&figure);
            figures.sum::<f64>() / seeds.len() as f64
        };
        self.records[arm].iter().map(mean).collect()
    }

    /// As [`of_arm`](Self::of_arm), `None` if some tally does not have the figure.
    pub fn if_all(&self, arm: usize, figure: impl Fn(&Tally) -> Option<f64>) -> Option<Vec<f64>> {
        let values = self.of_arm(arm, |tally| figure(tally).unwrap_or(f64::NAN));
        values.iter().all(|value| value.is_finite()).then_some(values)
    }

    /// The tallies of an arm, by problem and seed.
    pub fn tallies(&self, arm: usize) -> impl Iterator<Item = &Tally> {
        self.records[arm].iter().flatten().filter_map(|record| record.tally.as_ref())
    }

    /// The tokens of a problem under an arm, for each problem the mean over its seeds.
    pub fn tokens(&self, arm: usize) -> Vec<f64> {
        let mean = |seeds: &Vec<ProblemRecord>| {
            let tokens = seeds.iter().map(|record| record.totals.tokens as f64);
            tokens.sum::<f64>() / seeds.len() as f64
        };
        self.records[arm].iter().map(mean).collect()
    }

    /// The numbers of problems and seeds, as text.
    pub fn extent(&self) -> String {
        let seeds = self.records.first().map_or(0, |arm| arm.iter().map(Vec::len).sum());
        let problems = self.problems.len();
        format!("{problems} problems, {seeds} runs of them under each of {} arms", self.arms.len())
    }
}

impl Subject {
    /// The half that is reported: the held-out one if there are records of it.
    pub fn reported(&self) -> Option<(Split, &Half)> {
        let held_out = self.held_out.as_ref().map(|half| (Split::HeldOut, half));
        held_out.or_else(|| self.dev.as_ref().map(|half| (Split::Dev, half)))
    }

    fn half(&mut self, split: Split) -> &mut Option<Half> {
        match split {
            Split::Dev => &mut self.dev,
            Split::HeldOut => &mut self.held_out,
        }
    }
}

/// Sorts runs by model and task, in the order in which these come first.
///
/// # Errors
///
/// A run without waves, two runs of one model, task and half, halves with different sizes, and a run of which no problem
/// was met by all arms.
pub fn subjects(runs: Vec<Run>) -> Result<Vec<Subject>, Failure> {
    let mut subjects: Vec<Subject> = Vec::new();
    for Run { header, mut records } in runs {
        let Some(wave) = header.wave else {
            return Err(Failure::usage(
                "--records: expected either records with texts or those of waves, got both"
                    .to_owned(),
                "report on them one after the other",
            ));
        };
        for task in &header.tasks {
            let (of_task, rest) = records.into_iter().partition(|one| one.task == task.name);
            records = rest;
            let half = Half::new(&header, of_task);
            let name = if header.model.name.contains(&task.name) {
                header.model.name.clone()
            } else {
                format!("{}, {}", task.name, header.model.name)
            };
            if half.problems.is_empty() {
                return Err(Failure::new(
                    format!("{name}: expected a problem that all arms have met, got none"),
                    "let the run go on, then ask for the report again",
                ));
            }
            let subject = Subject {
                name,
                model: header.model.clone(),
                task: task.clone(),
                samples: header.samples,
                wave,
                dev: None,
                held_out: None,
            };
            let place = add(&mut subjects, subject)?;
            let known = subjects[place].half(header.split);
            if known.is_some() {
                let (name, split) = (&subjects[place].name, header.split);
                return Err(Failure::usage(
                    format!("--records: expected each half once, got {split:?} of {name} twice"),
                    "leave one of the files out",
                ));
            }
            *known = Some(half);
        }
    }
    Ok(subjects)
}

/// The place of a subject, which is added if it is not there.
fn add(subjects: &mut Vec<Subject>, subject: Subject) -> Result<usize, Failure> {
    let is_same = |one: &Subject| one.name == subject.name;
    let Some(place) = subjects.iter().position(is_same) else {
        subjects.push(subject);
        return Ok(subjects.len() - 1);
    };
    let describe = |one: &Subject| {
        format!("{} completions in waves of {} by {}", one.samples, one.wave, one.model.sha256)
    };
    let [known, new] = [&subjects[place], &subject].map(describe);
    if known != new {
        return Err(Failure::usage(
            format!("--records: expected halves of one experiment, got {known} and {new}"),
            "report on each of them by itself",
        ));
    }
    Ok(place)
}
