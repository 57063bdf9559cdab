//! Tasks with known answers: the worlds, the networks and their training, waves, and the plan that runs them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod networks;
mod plan;
mod report;
mod waves;
mod worlds;

use std::{path::PathBuf, sync::Arc};

use burn::tensor::Device;
use esamp::{
    TokenId,
    llama::{Llama, Tokenizer},
};
use esamp_eval::{
    arms,
    plan::Unit,
    record::{FORMAT_VERSION, Header, ModelRecord, ProblemRecord, Split},
    run::{Subject, run_unit},
    tasks::{Problem, Task},
};
use esamp_programs::failure::Failure;

/// The folder of the models that are part of the repository.
fn known() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/known").into()
}

/// A run of one problem of `task` under `arms`, in waves.
fn header(task: &dyn Task, arms: &str, samples: usize, wave: usize) -> Header {
    Header {
        format_version: FORMAT_VERSION,
        crate_version: "0.0.0".into(),
        commit: "unknown".into(),
        model: ModelRecord {
            name: "known".into(),
            sha256: String::new(),
            d_model: 0,
            vocab: 0,
            device: "flex".into(),
        },
        split: Split::Dev,
        problems: 1,
        samples,
        seeds: 1,
        tokens: 96,
        batch: 1,
        one_by_one: true,
        tasks: vec![task.record(96)],
        arms: arms::named(arms).unwrap(),
        token_arm: None,
        wave: Some(wave),
        shard: None,
    }
}

/// A model of a folder, with its tokenizer.
struct Loaded {
    model: Llama,
    tokenizer: Tokenizer,
}

impl Loaded {
    fn open(folder: &std::path::Path) -> Self {
        Self {
            model: Llama::from_hf_folder(folder, &Device::flex()).unwrap(),
            tokenizer: Tokenizer::from_hf_folder(folder).unwrap(),
        }
    }

    fn subject(&self) -> Subject<'_, Llama> {
        let encode = |text: &str| -> Result<Vec<TokenId>, Failure> {
            self.tokenizer.encode(text).map_err(Failure::loading)
        };
        Subject {
            model: &self.model,
            encode: Box::new(encode),
            detokenizer: Arc::new(self.tokenizer.clone()),
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
        }
    }

    /// The records of one problem, one for each arm.
    fn run(&self, header: &Header, problem: Problem) -> Vec<ProblemRecord> {
        let unit = |arm| Unit { seed: 0, task: 0, arm, problems: 0..1 };
        let problems = [problem];
        let run = |arm| run_unit(&self.subject(), header, &unit(arm), &problems).unwrap().remove(0);
        (0..header.arms.len()).map(run).collect()
    }
}
