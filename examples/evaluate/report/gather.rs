//! Records of one or several files, put side by side: the same problems and seeds under every arm, or not at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    failure::Failure,
    record::{ArmRecord, Header, ProblemRecord, Role, Run, TaskRecord},
};

/// Everything that a report is about.
#[derive(Debug)]
pub struct Results {
    /// The header of the first file, with the tasks of all of them.
    pub header: Header,
    /// Commits that the records were made at, each once.
    pub commits: Vec<String>,
    /// The tasks, in their order, with what was found on them.
    pub tasks: Vec<TaskResults>,
}

/// The records of a task.
#[derive(Debug)]
pub struct TaskResults {
    pub task: TaskRecord,
    /// The problems that all arms have met, in ascending order.
    pub problems: Vec<usize>,
    /// Pairs of problem and seed that all arms have met.
    pub groups: BTreeSet<(usize, u64)>,
    /// Records left out since some arm has none of the same problem and seed: a run that was not finished.
    pub left_out: usize,
    records: BTreeMap<(usize, usize, u64), ProblemRecord>,
}

impl Results {
    /// Puts files together. They must be of one experiment: the same model, split, samples, seeds, arms and limits; only
    /// their tasks differ.
    ///
    /// # Errors
    ///
    /// Files that are of different experiments, share a task, or hold no problem that all arms have met.
    pub fn gather(runs: Vec<Run>) -> Result<Self, Failure> {
        let mut runs = runs.into_iter();
        let Some(first) = runs.next() else {
            return Err(Failure::usage(
                "--records: expected a file, got none".to_owned(),
                "name the files of a run",
            ));
        };
        let mut results = Self {
            header: Header { tasks: Vec::new(), ..first.header.clone() },
            commits: Vec::new(),
            tasks: Vec::new(),
        };
        results.add(first)?;
        for run in runs {
            let (one, other) = (experiment(&results.header), experiment(&run.header));
            if one != other {
                return Err(Failure::usage(
                    format!(
                        "--records: expected files of one experiment, got\n{one:?}\nand\n{other:?}"
                    ),
                    "report on each of them by itself",
                ));
            }
            results.add(run)?;
        }
        Ok(results)
    }

    fn add(&mut self, run: Run) -> Result<(), Failure> {
        if !self.commits.contains(&run.header.commit) {
            self.commits.push(run.header.commit.clone());
        }
        let mut of_task: BTreeMap<String, Vec<ProblemRecord>> = BTreeMap::new();
        for record in run.records {
            of_task.entry(record.task.clone()).or_default().push(record);
        }
        for task in run.header.tasks {
            if self.header.tasks.iter().any(|known| known.name == task.name) {
                return Err(Failure::usage(
                    format!("--records: expected each task in one file, got {} twice", task.name),
                    "leave one of the files out",
                ));
            }
            let records = of_task.remove(&task.name).unwrap_or_default();
            self.tasks.push(TaskResults::new(task.clone(), records, &run.header.arms)?);
            self.header.tasks.push(task);
        }
        Ok(())
    }

    /// The place of an arm.
    pub fn arm(&self, name: &str) -> Option<usize> {
        self.header.arms.iter().position(|arm| arm.name == name)
    }

    /// The arm that all others are compared with: min-p at temperature 1, or else the first arm.
    pub fn base(&self) -> usize {
        let arms = &self.header.arms;
        let plain = |arm: &ArmRecord| arm.role == Role::Frontier && arm.sampling.temperature == 1.0;
        arms.iter().position(plain).unwrap_or(0)
    }

    /// The places of the arms that make the frontier.
    pub fn frontier(&self) -> Vec<usize> {
        let arms = self.header.arms.iter().enumerate();
        arms.filter(|(_, arm)| arm.role == Role::Frontier).map(|(at, _)| at).collect()
    }
}

/// What must be the same in all files.
fn experiment(header: &Header) -> (&str, crate::record::Split, [usize; 4], u64, &[ArmRecord]) {
    let numbers = [header.problems, header.samples, header.tokens, header.batch];
    (&header.model.sha256, header.split, numbers, header.seeds, &header.arms)
}

impl TaskResults {
    fn new(task: TaskRecord, all: Vec<ProblemRecord>, arms: &[ArmRecord]) -> Result<Self, Failure> {
        let place = |name: &str| arms.iter().position(|arm| arm.name == name);
        let mut records = BTreeMap::new();
        for record in all {
            if let Some(arm) = place(&record.arm) {
                records.insert((arm, record.problem, record.seed), record);
            }
        }
        let count = records.len();
        let met: BTreeSet<(usize, u64)> =
            records.keys().map(|&(_, problem, seed)| (problem, seed)).collect();
        let by_all = |&(problem, seed): &(usize, u64)| {
            (0..arms.len()).all(|arm| records.contains_key(&(arm, problem, seed)))
        };
        let groups: BTreeSet<_> = met.into_iter().filter(by_all).collect();
        let problems: BTreeSet<usize> = groups.iter().map(|&(problem, _)| problem).collect();
        if problems.len() < 2 {
            return Err(Failure::new(
                format!(
                    "{}: expected at least 2 problems that all arms have met, got {}",
                    task.name,
                    problems.len()
                ),
                "let the run go on, then ask for the report again",
            ));
        }
        records.retain(|&(_, problem, seed), _| groups.contains(&(problem, seed)));
        let left_out = count - records.len();
        Ok(Self { task, problems: problems.into_iter().collect(), groups, left_out, records })
    }

    /// How many problems with how many seeds.
    pub fn extent(&self) -> String {
        let (problems, groups) = (self.problems.len(), self.groups.len());
        match groups.is_multiple_of(problems) && self.is_even() {
            true => format!("{problems} problems × {} seeds", groups / problems),
            false => format!("{problems} problems, {groups} runs of them with several seeds"),
        }
    }

    /// Whether every problem has as many seeds.
    fn is_even(&self) -> bool {
        let seeds = |problem: usize| self.groups.iter().filter(|group| group.0 == problem).count();
        self.problems
            .iter()
            .all(|&problem| seeds(problem) == self.groups.len() / self.problems.len())
    }

    /// The record of an arm.
    pub fn record(&self, arm: usize, (problem, seed): (usize, u64)) -> &ProblemRecord {
        // `new` has kept the groups that every arm has.
        &self.records[&(arm, problem, seed)]
    }

    /// All records of an arm, in the order of problems and seeds.
    pub fn of_arm(&self, arm: usize) -> Vec<&ProblemRecord> {
        self.groups.iter().map(|&group| self.record(arm, group)).collect()
    }
}
