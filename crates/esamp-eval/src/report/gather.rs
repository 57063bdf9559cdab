//! Combines the records of one or several files, keeping only problems and seeds that every arm has run.

use std::collections::{BTreeMap, BTreeSet};

use esamp_programs::failure::Failure;

use crate::record::{ArmRecord, Header, ProblemRecord, Role, Run, TaskRecord};

/// All results that a report covers.
#[derive(Debug)]
pub struct Results {
    /// The header of the first file, with the tasks of all files.
    pub header: Header,
    /// The commits of the records, without repetitions.
    pub commits: Vec<String>,
    /// The tasks, in order, with their results.
    pub tasks: Vec<TaskResults>,
    /// Index of the arm that all others are compared with: plain sampling at temperature 1.
    pub base: usize,
}

/// The records of a task.
#[derive(Debug)]
pub struct TaskResults {
    pub task: TaskRecord,
    /// The problems that all arms have run, in ascending order.
    pub problems: Vec<usize>,
    /// The pairs of problem and seed that all arms have run.
    pub groups: BTreeSet<(usize, u64)>,
    /// Number of records left out because some arm has none for the same problem and seed; only in
    /// unfinished runs.
    pub left_out: usize,
    records: BTreeMap<(usize, usize, u64), ProblemRecord>,
}

impl Results {
    /// Combines files of one experiment: the same model, split, samples, seeds, arms and limits, with
    /// different tasks. Files of the same tasks with different arms are joined first.
    ///
    /// # Errors
    ///
    /// Files of different experiments, files that share a task and an arm, or no problem that all arms have run.
    pub fn gather(runs: Vec<Run>) -> Result<Self, Failure> {
        let mut commits: Vec<String> = Vec::new();
        for run in &runs {
            if !commits.contains(&run.header.commit) {
                commits.push(run.header.commit.clone());
            }
        }
        let mut runs = joined(runs)?.into_iter();
        let Some(first) = runs.next() else {
            return Err(Failure::usage(
                "--records: expected a file, got none".to_owned(),
                "name the files of a run",
            ));
        };
        let mut results = Self {
            header: Header { tasks: Vec::new(), ..first.header.clone() },
            commits,
            tasks: Vec::new(),
            base: 0,
        };
        results.add(first)?;
        results.base = Self::base_of(&results.header.arms)?;
        for run in runs {
            check_same(&results.header, &run.header)?;
            let arms = results.header.arms.iter().zip(&run.header.arms);
            if let Some((arm, _)) = arms.into_iter().find(|(one, other)| one != other) {
                return Err(Failure::usage(
                    format!(
                        "--records: expected files of one experiment, got two settings of the arm {}",
                        arm.name
                    ),
                    "report on each of them by itself",
                ));
            }
            results.add(run)?;
        }
        Ok(results)
    }

    fn add(&mut self, run: Run) -> Result<(), Failure> {
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

    /// The index of an arm.
    pub fn arm(&self, name: &str) -> Option<usize> {
        self.header.arms.iter().position(|arm| arm.name == name)
    }

    /// The index of plain sampling at temperature 1.
    ///
    /// # Errors
    ///
    /// Arms without it.
    pub fn base_of(arms: &[ArmRecord]) -> Result<usize, Failure> {
        let plain = |arm: &ArmRecord| {
            arm.role == Role::Frontier && arm.sampling.settings.temperature == 1.0
        };
        arms.iter().position(plain).ok_or_else(|| {
            let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
            Failure::usage(
                format!("--report: expected min-p-1 among the arms, got {}", names.join(", ")),
                "everything is compared with it: add it to --arms",
            )
        })
    }

    /// The method that a control belongs to, if it is in the run: `matched-orthogonal-B` and `elliptical-orthogonal-B` belong
    /// to `orthogonal-B`, every other control with strength B to `esamp-B`, and those without a filter (`-open`) to the
    /// method without a filter.
    pub fn controlled(&self, control: usize) -> Option<usize> {
        let name = &self.header.arms[control].name;
        let (name, open) = match name.strip_suffix("-open") {
            Some(name) => (name, "-open"),
            None => (name.as_str(), ""),
        };
        let (kind, beta) = name.rsplit_once('-')?;
        let method = if kind.ends_with("-orthogonal") { "orthogonal" } else { "esamp" };
        self.arm(&format!("{method}-{beta}{open}"))
    }

    /// The indices of the arms on the frontier.
    pub fn frontier(&self) -> Vec<usize> {
        let arms = self.header.arms.iter().enumerate();
        arms.filter(|(_, arm)| arm.role == Role::Frontier).map(|(at, _)| at).collect()
    }
}

/// Joins files of the same tasks with different arms, so that arms can be added to a finished run.
fn joined(runs: Vec<Run>) -> Result<Vec<Run>, Failure> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        let Some(other) = joined.iter_mut().find(|other| other.header.tasks == run.header.tasks)
        else {
            joined.push(run);
            continue;
        };
        let known = &other.header.arms;
        let shared =
            run.header.arms.iter().find(|arm| known.iter().any(|one| one.name == arm.name));
        if let (Some(arm), Some(task)) = (shared, run.header.tasks.first()) {
            return Err(Failure::usage(
                format!(
                    "--records: expected each task and arm in one file, got {} under {} twice",
                    task.name, arm.name
                ),
                "leave one of the files out",
            ));
        }
        let arms = [known.clone(), run.header.arms.clone()].concat();
        other.header.arms.clone_from(&arms);
        check_same(&other.header, &Header { arms, ..run.header })?;
        other.records.extend(run.records);
    }
    Ok(joined)
}

/// Refuses files of different experiments.
fn check_same(one: &Header, other: &Header) -> Result<(), Failure> {
    for ((what, one), (_, other)) in experiment(one).into_iter().zip(experiment(other)) {
        if one != other {
            return Err(Failure::usage(
                format!(
                    "--records: expected files of one experiment, got {what} {one} and {other}"
                ),
                "report on each of them by itself",
            ));
        }
    }
    Ok(())
}

/// The settings that must be the same in all files, as text.
fn experiment(header: &Header) -> [(&'static str, String); 8] {
    let arms: Vec<&str> = header.arms.iter().map(|arm| arm.name.as_str()).collect();
    [
        ("model", header.model.sha256.clone()),
        ("split", format!("{:?}", header.split)),
        ("problems", header.problems.to_string()),
        ("samples", header.samples.to_string()),
        ("seeds", header.seeds.to_string()),
        ("tokens", header.tokens.to_string()),
        ("token arm", format!("{:?}", header.token_arm)),
        ("arms", arms.join(", ")),
    ]
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

    /// The numbers of problems and seeds, as text.
    pub fn extent(&self) -> String {
        let (problems, groups) = (self.problems.len(), self.groups.len());
        if groups.is_multiple_of(problems) && self.is_even() {
            let seeds = groups / problems;
            format!("{problems} problems × {seeds} seed{}", if seeds == 1 { "" } else { "s" })
        } else {
            format!("{problems} problems, {groups} runs of them with several seeds")
        }
    }

    /// Whether every problem has the same number of seeds.
    fn is_even(&self) -> bool {
        let seeds = |problem: usize| self.groups.iter().filter(|group| group.0 == problem).count();
        self.problems
            .iter()
            .all(|&problem| seeds(problem) == self.groups.len() / self.problems.len())
    }

    /// The seeds that were run, in ascending order.
    pub fn seeds(&self) -> BTreeSet<u64> {
        self.groups.iter().map(|&(_, seed)| seed).collect()
    }

    /// The record of an arm for a problem and seed.
    pub fn record(&self, arm: usize, (problem, seed): (usize, u64)) -> &ProblemRecord {
        // `new` keeps only groups that every arm has.
        &self.records[&(arm, problem, seed)]
    }

    /// All records of an arm, ordered by problem and seed.
    pub fn of_arm(&self, arm: usize) -> Vec<&ProblemRecord> {
        self.groups.iter().map(|&group| self.record(arm, group)).collect()
    }
}
