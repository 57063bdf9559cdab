//! Python clients against the program, with a real model: the official package of OpenAI, and lm-evaluation-harness.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// The program, which is killed when this is dropped.
struct Running {
    process: Child,
    model: String,
    address: String,
}

impl Running {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_esamp-serve"))
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (model, address) = line.trim().split_once(" on ").unwrap();
        let (model, address) = (model.to_owned(), address.to_owned());
        Self { process, model, address }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The folder of programs of a virtual environment with a package.
fn environment(name: &str, package: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let programs = folder.join("bin");
    if !programs.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    }
    let install = ["-m", "pip", "install", "--quiet", package];
    run(Command::new(programs.join("python")).args(install));
    programs
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

#[test]
#[ignore = "needs Python with pip and venv, and downloads the package openai"]
fn the_official_package_of_openai_gets_what_it_expects() {
    let programs = environment("openai", "openai>=2,<3");
    let server = Running::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let mut python = Command::new(programs.join("python"));
    run(python.arg(script).args([&server.address, &server.model]));
}

/// A task that the model can do: to go on counting.
const TASK: &str = r#"
task: counting
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [","], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"#;

#[test]
#[ignore = "needs Python with pip and venv, and downloads the package lm_eval (400 MB with what it needs)"]
fn lm_evaluation_harness_evaluates_the_model() {
    let programs = environment("lm_eval", "lm_eval[api]>=0.4.11,<0.5");
    let server = Running::start();
    let folder = tempfile::tempdir().unwrap();
    let mut data = String::new();
    for first in 1..9 {
        let numbers: Vec<String> = (first..first + 5).map(|number| number.to_string()).collect();
        let (question, answer) = (format!("{},", numbers.join(", ")), format!(" {}", first + 5));
        let line = serde_json::json!({"question": question, "answer": answer});
        writeln!(data, "{line}").unwrap();
    }
    let data_file = folder.path().join("counting.jsonl");
    fs::write(&data_file, data).unwrap();
    let task = TASK.replace("DATA", data_file.to_str().unwrap());
    fs::write(folder.path().join("counting.yaml"), task).unwrap();
    let settings = format!(
        "model={},base_url={}/v1/completions,tokenized_requests=False,tokenizer_backend=None,num_concurrent=2",
        server.model, server.address
    );
    let results = folder.path().join("results");
    let mut harness = Command::new(programs.join("lm_eval"));
    harness.args([
        "--model",
        "local-completions",
        "--model_args",
        &settings,
        "--tasks",
        "counting",
        "--gen_kwargs",
        "{\"esamp\": {\"beta\": 0}}",
        // Several prompts in one request.
        "--batch_size",
        "3",
    ]);
    harness.arg("--include_path").arg(folder.path()).arg("--output_path").arg(&results);
    // The data set is a file: nothing is to be downloaded.
    run(harness.envs([("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1")]));

    let metrics = ureq::get(format!("{}/metrics", server.address)).call().unwrap();
    let metrics = metrics.into_body().read_to_string().unwrap();
    assert!(metrics.contains("esamp_sampler_steered_total 0\n"), "{metrics}");

    let results = results_file(&results).unwrap();
    let results: Value = serde_json::from_slice(&fs::read(results).unwrap()).unwrap();
    assert_eq!(results["n-samples"]["counting"]["effective"], 8, "{results}");
    let right = results["results"]["counting"]["exact_match,none"].as_f64().unwrap();
    assert!(right >= 0.5, "{right}");
}

/// The file of results, in a folder that is named after the model.
fn results_file(folder: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder).ok()?.map(|entry| entry.unwrap().path());
    entries.find_map(|path| if path.is_dir() { results_file(&path) } else { Some(path) })
}
