//! The report of `evaluate`, on records with known figures.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod findings;
mod sources;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use esamp::{Counters, SamplerConfig, Sampling, TokenId};
use esamp_eval::{
    metrics::{mean_interval, pass_at_k},
    provenance::Sessions,
    record::{
        ArmRecord, CompletionRecord, ErrorName, FORMAT_VERSION, Header, Line, ModelRecord,
        ProblemRecord, Role, Run, Session, Split, TaskRecord, TokenRecord, Totals,
    },
    report::{
        self, Origin,
        compare::{At, Opponents, bootstrap, gain},
        gather::Results,
        measures::Measure,
    },
};
use esamp_programs::failure::Failure;

const SAMPLES: usize = 4;
/// An arm: name, role, temperature, texts per problem, surprisal and entropy per token, right completions.
type Arm = (&'static str, Role, f32, [&'static str; SAMPLES], f64, f64, usize);
/// The Vendi score of the frontier equals its surprisal: 1 at 1, 2 at 2 and 4 at 4. The method has 4 at 2.
const ARMS: [Arm; 6] = [
    ("min-p-0.5", Role::Frontier, 0.5, ["a", "a", "a", "a"], 1.0, 1.0, 1),
    ("min-p-1", Role::Frontier, 1.0, ["a", "a", "b", "b"], 2.0, 2.0, 2),
    ("min-p-2", Role::Frontier, 2.0, ["a", "b", "c", "d"], 4.0, 3.0, 0),
    ("orthogonal-1", Role::Method, 1.0, ["a", "b", "c", "d"], 2.0, 0.5, 3),
    ("matched-orthogonal-1", Role::Control, 1.0, ["a", "a", "b", "b"], 3.0, 2.5, 2),
    // Half a unit less above the line than the method: at 2.5 the line has 2.5.
    ("old", Role::Baseline, 1.0, ["a", "b", "c", "d"], 2.5, 1.5, 2),
];

/// Different letters are orthogonal, so the Vendi score of equally frequent texts is their number.
fn embed(texts: &[String]) -> Result<Vec<Vec<f64>>, Failure> {
    let axis = |text: &String| usize::from(text.as_bytes()[0] - b'a');
    let point = |text| (0..4).map(|at| f64::from(u8::from(at == axis(text)))).collect();
    Ok(texts.iter().map(point).collect())
}

fn header(problems: usize, tasks: Vec<TaskRecord>) -> Header {
    let arm = |&(name, role, temperature, ..): &Arm| ArmRecord {
        name: name.into(),
        what: format!("what {name} is"),
        role,
        sampling: Sampling::default().with_min_p(0.05).with_temperature(temperature).into(),
        sampler: SamplerConfig::paper(),
        prompt_warm_up: 0,
        error: ErrorName::Own,
        rival: None,
    };
    Header {
        format_version: FORMAT_VERSION,
        crate_version: "0.0.0".into(),
        commit: "0123abcd".into(),
        model: ModelRecord {
            name: "tiny".into(),
            sha256: "77".into(),
            d_model: 8,
            vocab: 128,
            device: "flex".into(),
        },
        split: Split::HeldOut,
        problems,
        samples: SAMPLES,
        seeds: 2,
        tokens: 2,
        batch: 1,
        one_by_one: false,
        tasks,
        arms: ARMS.iter().map(arm).collect(),
        token_arm: None,
        wave: None,
        shard: None,
    }
}

fn task(name: &str, verifiable: bool) -> TaskRecord {
    TaskRecord {
        name: name.into(),
        what: format!("the task {name}"),
        verifiable,
        many_modes: verifiable,
        tokens: 2,
    }
}

fn record(task: &TaskRecord, problem: usize, arm: &Arm, seed: u64) -> ProblemRecord {
    let &(name, _, _, texts, surprisal, entropy, right) = arm;
    let completion = |(at, text): (usize, &str)| {
        let correct = task.verifiable.then_some(at < right);
        let letter = u32::from(text.as_bytes()[0]);
        CompletionRecord {
            text: text.into(),
            tokens: vec![letter, letter],
            finish: if at == 0 { "max_new_tokens" } else { "stop_token" }.into(),
            correct,
            answer: None,
            mode: (correct == Some(true)).then(|| text.to_owned()),
            log_prob_sum: -2.0 * surprisal,
            sampling_log_prob_sum: -2.0,
            mean_entropy: entropy,
            mean_reference_entropy: 1.0,
            mean_kl: 0.125,
            mean_candidates: 3.0,
            mean_novelty: None,
            mean_relative_novelty: None,
            mean_slope: None,
            mean_sharpening: None,
        }
    };
    ProblemRecord {
        task: task.name.clone(),
        problem,
        arm: name.into(),
        seed,
        prompt: format!("problem {problem}"),
        prompt_tokens: 3,
        expected: None,
        solutions: None,
        completions: texts.into_iter().enumerate().map(completion).collect(),
        tally: None,
        totals: Totals { tokens: 8, steered: 8, interventions: 2, not_finite: 0, candidates: 24 },
        batch_counters: Counters::default(),
        token_sample: Vec::new(),
    }
}

/// A run in which every arm has run every problem with every seed.
fn run_of(tasks: &[TaskRecord], problems: usize) -> Run {
    let header = header(problems, tasks.to_vec());
    let mut records = Vec::new();
    for seed in 0..header.seeds {
        for problem in 0..problems {
            for task in tasks {
                records.extend(ARMS.iter().map(|arm| record(task, problem, arm, seed)));
            }
        }
    }
    Run { header, records }
}

fn written(results: &Results, folder: &Path) -> String {
    let to = folder.join("report.md");
    let origin = Origin {
        sessions: Sessions {
            damaged: 0,
            sessions: vec![Session {
                command: ["evaluate", "--out", "a file"].map(str::to_owned).to_vec(),
                started: 0,
                seconds: 120.0,
                records: [0, 1],
                planned: 1,
                machine: "a machine".into(),
            }],
        },
        command: ["evaluate", "--report", "report.md"].map(str::to_owned).to_vec(),
        embedder: "letters".into(),
    };
    let letters = |tokens: &[TokenId]| {
        Ok(tokens.iter().filter_map(|&token| char::from_u32(token)).collect::<String>())
    };
    report::write(results, &origin, &letters, &mut embed, &to).unwrap();
    fs::read_to_string(to).unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

fn error<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    result.unwrap_err().to_string()
}
