//! The harness of `evaluate`, on models with known answers.
//!
//! No test here starts a process: between fork and exec it would hold locks on files that other tests have
//! closed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod files;
mod plan_and_arms;
mod records;
mod rivals;
mod shards;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use burn::tensor::Device;
use esamp::{
    CausalLm, Decoder, Detokenize, Request, TokenId,
    errors::TextError,
    telemetry::Recorder,
    testing::{ScriptedLm, TinyLm},
};
use esamp_eval::{
    arms, entropy, plan,
    provenance::{SessionFile, Sessions},
    record::{
        self, FORMAT_VERSION, FrequencyRanks, Header, ModelRecord, ProblemRecord, Role, Run,
        Session, Split, TOKEN_SAMPLE, TokenRecord,
        line::{seal, unseal},
    },
    run::{self, Subject},
    store::Store,
    tasks::{Problem, Task, Verdict},
    work::{Ended, problems_of, run_all},
};
use esamp_programs::failure::Failure;

/// A task that TinyLm always solves: two letters per token. The first two letters are the mode.
struct Syllables;

impl Task for Syllables {
    fn name(&self) -> &'static str {
        "syllables"
    }

    fn what(&self) -> &'static str {
        "two letters for every token"
    }

    fn tokens(&self) -> usize {
        10
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let check =
            |text: &str| Verdict::one_of_many((text.len() == 2 * 10).then(|| text[..2].to_owned()));
        (0..20).map(|n| Problem::new(format!("say {n}"), check)).collect()
    }
}

/// A task that TinyLm cannot solve.
struct Silence;

impl Task for Silence {
    fn name(&self) -> &'static str {
        "silence"
    }

    fn what(&self) -> &'static str {
        "nothing at all"
    }

    fn tokens(&self) -> usize {
        99
    }

    fn problems(&self) -> Vec<Problem> {
        let silent = |text: &str| text.is_empty().then(String::new);
        (0..20)
            .map(|n| Problem::with_answer(format!("be silent {n}"), String::new(), silent))
            .collect()
    }
}

/// Encodes a text for a vocabulary of 64: its bytes modulo 64.
fn encode(text: &str) -> Result<Vec<TokenId>, Failure> {
    Ok(text.bytes().map(|byte| TokenId::from(byte) % 64).collect())
}

fn subject(model: &TinyLm) -> Subject<'_, TinyLm> {
    Subject {
        model,
        encode: Box::new(encode),
        detokenizer: Arc::new(TinyLm::detokenizer()),
        stop_tokens: Vec::new(),
    }
}

fn tiny_tasks() -> Vec<Box<dyn Task>> {
    vec![Box::new(Syllables), Box::new(Silence)]
}

fn header(tasks: &[Box<dyn Task>], arms: &str) -> Header {
    let tokens = 12;
    Header {
        format_version: FORMAT_VERSION,
        crate_version: "0.0.0".into(),
        commit: "unknown".into(),
        model: ModelRecord {
            name: "tiny".into(),
            sha256: String::new(),
            d_model: TinyLm::D_MODEL,
            vocab: TinyLm::VOCAB,
            device: "flex".into(),
        },
        split: Split::Dev,
        problems: 3,
        samples: 4,
        seeds: 2,
        tokens,
        batch: 2,
        one_by_one: false,
        tasks: tasks.iter().map(|task| task.record(tokens)).collect(),
        arms: arms::named(arms).unwrap(),
        token_arm: None,
        wave: None,
        shard: None,
    }
}

/// Runs a header to its end or until the time limit.
fn run(header: &Header, path: &Path, budget: Option<Duration>) -> Result<Ended, Failure> {
    let model = TinyLm::new(1, &Device::flex());
    let tasks = tiny_tasks();
    let problems = problems_of(&tasks, header.split, header.problems)?;
    let mut store = Store::open(path, header)?;
    run_all(&subject(&model), header, &problems, &mut store, budget, |_, _| {})
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn error<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    let message = result.unwrap_err().to_string();
    message.lines().next().unwrap().strip_prefix("error: ").unwrap().to_owned()
}

const ARMS: &str = "min-p-1,esamp-0.5,esamp-0.5-shared";
