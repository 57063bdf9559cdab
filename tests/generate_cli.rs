//! The examples, as a newcomer runs them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../examples/model_source/mod.rs"]
mod model_source;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use model_source::{Cache, ModelSource};
use serde_json::Value;

/// `cargo test` builds the examples beside the tests.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

fn run(args: &[&str]) -> Output {
    Command::new(example("generate")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let short = ["--json", "--samples", "2", "--max-new-tokens", "8", "--seed", "7"];
    let output = run(&[&short, args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(args: &[&str], code: i32) -> String {
    let output = run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty());
    message
}

#[test]
fn json_says_what_happened() {
    let report = json(&["--distiller", "low-rank"]);
    assert_eq!(report["model"], "SmolLM2-135M-Instruct");
    assert_eq!(report["prompt_tokens"], 55);
    let arms = report["arms"].as_array().unwrap();
    assert_eq!([&arms[0]["name"], &arms[1]["name"]], ["plain", "esamp"]);
    for arm in arms {
        let samples = arm["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 2);
        for sample in samples {
            assert_eq!(sample["tokens"].as_array().unwrap().len(), 8);
            assert!(sample["text"].as_str().unwrap().len() > 8);
            assert_eq!(sample["finish"], "max_new_tokens");
        }
        assert!(arm["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(arms[0]["counters"]["updates"], 0);
    assert_eq!(arms[1]["counters"]["updates"], 7);
    assert_eq!(arms[1]["counters"]["rows_learned"], 14);
    assert_eq!(arms[1]["counters"]["steps"], 8);
    assert!(arms[1]["mean_loss"].as_f64().unwrap() > 0.0);
    assert_ne!(arms[0]["samples"], arms[1]["samples"]);
}

#[test]
fn beta_zero_is_plain_token_for_token() {
    let zero = json(&["--beta", "0"]);
    let plain = json(&["--plain"]);
    assert_eq!(plain["arms"].as_array().unwrap().len(), 1);
    assert_eq!(zero["arms"][1]["samples"], plain["arms"][0]["samples"]);
    assert_eq!(zero["arms"][0]["samples"], plain["arms"][0]["samples"]);
    assert_eq!(zero["arms"][1]["counters"]["updates"], 0);
}

#[test]
fn people_get_two_columns() {
    let output =
        run(&["--samples", "2", "--max-new-tokens", "6", "--raw", "--prompt", "Once upon a time"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("plain") && text.contains("ESamp") && text.contains("tokens/s"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "no escapes where there is no terminal");
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
}

#[test]
fn ndarray_runs_it_too() {
    let report =
        json(&["--device", "ndarray", "--samples", "1", "--max-new-tokens", "2", "--plain"]);
    let flex = json(&["--samples", "1", "--max-new-tokens", "2", "--plain"]);
    assert_eq!(report["arms"][0]["samples"], flex["arms"][0]["samples"]);
}

#[test]
fn a_hugging_face_folder_is_a_model_too() {
    let folder = copy_of_golden("llama");
    fs::write(
        folder.path().join("tokenizer.json"),
        r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": {"a": 10, "b": 11, "?": 12}, "unk_token": "?"}}"#,
    )
    .unwrap();
    let path = folder.path().to_str().unwrap();
    let report = json(&["--model", path, "--prompt", "a b a"]);
    assert_eq!(report["prompt_tokens"], 3);
    assert!(report["arms"][1]["counters"]["updates"].as_u64().unwrap() > 0);
}

#[test]
fn wrong_settings_are_said_before_anything_is_loaded() {
    let message = refused(&["--beta", "-1"], 2);
    assert_eq!(
        message,
        "error: beta: expected a number of at least 0, got -1\n\
         next step: choose a value in the range; --help lists the settings\n"
    );
    assert!(
        refused(&["--min-p", "1.5"], 2).contains("min_p: expected a number in (0, 1], got 1.5")
    );
    assert!(refused(&["--top-p", "0"], 2).contains("top_p: expected a number in (0, 1], got 0"));
    assert!(refused(&["--top-k", "0"], 2).contains("top_k: expected at least 1, got 0"));
    assert!(refused(&["--temperature", "-2"], 2).contains("temperature: expected"));
    assert!(refused(&["--learning-rate", "-2"], 2).contains("learning_rate: expected"));
    assert!(refused(&["--no-such-flag"], 2).contains("--no-such-flag"));
    assert!(refused(&["--model", "no-such-file"], 2).contains("next step: give a .gguf file"));
    assert!(refused(&["--samples", "0"], 1).contains("completions: expected at least 1, got 0"));
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_device_that_is_not_built_in_comes_with_the_command_that_builds_it() {
    let message = refused(&["--device", "cuda"], 2);
    assert!(
        message.contains("cargo run --release --features cuda --example generate"),
        "{message}"
    );
}

#[test]
fn a_damaged_model_is_an_error_that_names_what_is_wrong() {
    let whole = ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap();
    let bytes = fs::read(whole).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let try_first = |count: usize| {
        fs::write(&path, &bytes[..count]).unwrap();
        refused(&["--model", path.to_str().unwrap()], 1)
    };
    assert!(try_first(0).contains("header: expected 4 more bytes"));
    assert!(try_first(1_000_000).contains("expected"));
    let message = try_first(bytes.len() / 2);
    assert!(message.contains("tensor ") && message.contains("is it whole?"), "{message}");
    fs::write(&path, b"PK\x03\x04 this is a zip file").unwrap();
    let message = refused(&["--model", path.to_str().unwrap()], 1);
    assert!(message.contains("expected a file that begins with \"GGUF\""), "{message}");
}

#[test]
fn the_other_examples_run() {
    for (name, word) in [("hello", "ESamp"), ("tap_your_model", "novelty")] {
        let output = Command::new(example(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8(output.stdout).unwrap().contains(word), "{name}");
    }
}

fn copy_of_golden(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama").join(name);
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}
