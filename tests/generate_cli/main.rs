//! Runs the examples as a new user would. tests/generate_settings.rs tests what `generate` does with each setting.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod pipes;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use esamp::telemetry::{RowTrace, StepTrace, TraceRecord, read_traces};
use esamp_programs::{
    columns,
    model_source::{Cache, ModelSource},
};
use esamp_testkit::golden;
use serde_json::Value;

/// `cargo test` builds the examples alongside the tests.
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
fn json_reports_what_happened() {
    let report = json(&["--distiller", "low-rank"]);
    assert_eq!(report["model"], "SmolLM2-135M-Instruct");
    assert_eq!(report["prompt_tokens"], 55);
    assert!(report["weight_bytes"].as_u64() > Some(90_000_000), "{}", report["weight_bytes"]);
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
fn weights_are_packed_on_flex_unless_the_flag_says_otherwise() {
    let short = ["--raw", "--prompt", "The tide", "--plain"];
    let with = |weights: &[&str]| json(&[&short[..], weights].concat());
    let [usual, packed, wide] =
        [&[][..], &["--weights", "packed"], &["--weights", "f32"]].map(with);
    assert_eq!(usual["weight_bytes"], packed["weight_bytes"]);
    let bytes = |report: &Value| report["weight_bytes"].as_u64().unwrap();
    assert!(bytes(&wide) > 5 * bytes(&packed), "{} {}", bytes(&wide), bytes(&packed));
    assert_eq!(wide["arms"][0]["samples"], packed["arms"][0]["samples"]);

    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let message = refused(&["--weights", "packed", "--device", "ndarray"], 2);
    let expected = "error: --weights packed: expected --device flex, got ndarray\n\
                    next step: drop --weights packed\n";
    assert_eq!(message, expected);
    let message = refused(&["--weights", "packed", "--model", path], 2);
    let expected = "error: --weights packed: expected a GGUF file, got the folder ";
    assert!(message.contains(expected), "{message}");
}

/// The tokens and steps of a trace file.
fn traces(path: &Path) -> (Vec<RowTrace>, Vec<StepTrace>) {
    let (mut tokens, mut steps) = (Vec::new(), Vec::new());
    for record in read_traces(fs::read(path).unwrap().as_slice()) {
        match record.unwrap() {
            TraceRecord::Token(token) => tokens.push(token),
            TraceRecord::Step(step) => steps.push(step),
            other => panic!("{other:?}"),
        }
    }
    (tokens, steps)
}

fn first_loss(path: &Path) -> f64 {
    traces(path).0.iter().find_map(|token| token.loss).unwrap()
}

#[test]
fn a_trace_has_every_token_of_the_last_column_and_shows_a_warm_up() {
    let folder = tempfile::tempdir().unwrap();
    let [warm, cold] = ["warm", "cold"].map(|name| folder.path().join(name));
    let flags = ["--reweighter", "orthogonal", "--trace"];
    let report = json(&[&flags[..], &[warm.to_str().unwrap(), "--warm-up-updates", "5"]].concat());
    let arm = &report["arms"][1];
    let (tokens, steps) = traces(&warm);
    assert_eq!((tokens.len(), steps.len()), (16, 8), "two completions of eight tokens");
    for (index, sample) in arm["samples"].as_array().unwrap().iter().enumerate() {
        let traced = tokens.iter().filter(|token| token.completion.index == index as u64);
        let traced: Vec<Value> = traced.map(|token| token.token.into()).collect();
        assert_eq!(sample["tokens"], Value::Array(traced));
    }
    let counters = serde_json::to_value(steps[7].counters).unwrap();
    assert_eq!(counters["warm_up_updates"], 5);
    for name in ["tokens", "updates", "rows_learned", "interventions", "warm_up_updates"] {
        assert_eq!(arm["counters"][name], counters[name], "{name}");
    }
    json(&[&flags[..], &[cold.to_str().unwrap()]].concat());
    assert!(first_loss(&warm) < first_loss(&cold), "the prompt was learned");
}

#[test]
#[cfg(target_os = "linux")]
fn a_trace_that_cannot_be_written_ends_the_run() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let flags = ["--json", "--model", path, "--raw", "--prompt", "w1", "--trace", "/dev/full"];
    let message = refused(&flags, 1);
    assert!(message.contains("\nerror: --trace /dev/full: No space left"), "{message}");
}

#[test]
fn the_run_ends_with_one_line_of_counters() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let flags = ["--model", path, "--raw", "--prompt", "w1", "--samples", "2", "--max-new-tokens"];
    let output = run(&[&flags[..], &["6", "--top-k", "7", "--min-p", "0", "--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let interventions = &report["arms"][1]["counters"]["interventions"];
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!(
            "note: the matrices of the model take 0.1 MB\n\
             esamp: 12 tokens, 5 updates, 10 rows learned, 7.0 mean candidates, \
             {interventions} interventions\n"
        )
    );
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
fn text_output_has_two_columns() {
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
#[cfg(feature = "ndarray")]
fn ndarray_runs_it_too() {
    let report =
        json(&["--device", "ndarray", "--samples", "1", "--max-new-tokens", "2", "--plain"]);
    let flex = json(&["--samples", "1", "--max-new-tokens", "2", "--plain"]);
    assert_eq!(report["arms"][0]["samples"], flex["arms"][0]["samples"]);
}

#[test]
fn a_hugging_face_folder_is_a_model_too() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let report = json(&["--model", path, "--prompt", "w1 w2 w1"]);
    assert_eq!(report["prompt_tokens"], 3);
    assert!(report["arms"][1]["counters"]["updates"].as_u64().unwrap() > 0);
}

#[test]
fn a_model_without_a_chat_template_says_so_once() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let notes = |more: &[&str]| {
        let output =
            run(&[&["--model", path, "--prompt", "w1 w2", "--max-new-tokens", "2"], more].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr)
            .unwrap()
            .matches("note: the model has no chat template")
            .count()
    };
    assert_eq!(notes(&[]), 1);
    assert_eq!(notes(&["--raw"]), 0);
}

#[test]
fn a_broken_chat_template_stops_only_what_needs_it() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let hostile = "{% if '\u{1b}[31m' \u{1b}]0;OWNED\u{7} %}";
    for template in [
        hostile,
        "{{ raise_exception('\\x1b[31m no') }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    ] {
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let message = refused(&["--model", path, "--prompt", "w1 w2"], 1);
        assert!(message.starts_with("error: chat template: line 1: "), "{message}");
        assert!(message.contains("next step: try --raw"), "{message}");
        assert!(!message.contains(|c: char| c.is_control() && c != '\n'), "{message:?}");
        assert_eq!(json(&["--model", path, "--prompt", "w1 w2", "--raw"])["prompt_tokens"], 2);
    }
}

#[test]
fn invalid_settings_are_refused_before_anything_is_loaded() {
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
    assert!(refused(&["--temperature", "-2"], 2).contains("temperature: expected"));
    assert!(refused(&["--learning-rate", "-2"], 2).contains("learning_rate: expected"));
    assert!(refused(&["--no-such-flag"], 2).contains("--no-such-flag"));
    assert!(refused(&["--model", "no-such-file"], 2).contains("next step: give a .gguf file"));
    // Nothing is loaded: the model named here does not exist, and the error is not about it.
    for (flag, value) in [("--samples", "0"), ("--samples", "4097"), ("--max-new-tokens", "0")]
        .into_iter()
        .chain([("--samples", "18446744073709551615"), ("--samples", "99999999999999999999")])
        .chain([("--samples", "-1"), ("--max-new-tokens", "-1"), ("--top-k", "-2")])
        .chain([("--seed", "-2"), ("--warm-up-updates", "-1"), ("--stop-token", "-1")])
    {
        let message = refused(&["--model", "no-such-file", flag, value], 2);
        assert!(message.contains(flag) && message.contains(value), "{message}");
    }
}

#[test]
fn the_error_for_a_device_that_is_not_built_in_names_the_build_command() {
    for (device, built) in
        [("cuda", cfg!(feature = "cuda")), ("ndarray", cfg!(feature = "ndarray"))]
    {
        if !built {
            let message = refused(&["--device", device], 2);
            let command = format!("cargo run --release --features {device} --example generate");
            assert!(message.contains(&command), "{message}");
        }
    }
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
    assert!(try_first(0).contains("expected a GGUF file, got an empty file"));
    assert!(try_first(1_000_000).contains("expected"));
    let message = try_first(bytes.len() / 2);
    assert!(message.contains("tensor ") && message.contains("is it whole?"), "{message}");
    fs::write(&path, b"PK\x03\x04 this is a zip file").unwrap();
    let message = refused(&["--model", path.to_str().unwrap()], 1);
    assert!(message.contains("expected a GGUF file, got a ZIP archive"), "{message}");
}

#[test]
fn the_other_examples_run() {
    for (name, word) in [("hello", "ESamp"), ("tap_your_model", "novelty")] {
        let output = Command::new(example(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8(output.stdout).unwrap().contains(word), "{name}");
    }
}

/// A model with a vocabulary of 96 words, `word(id)` each; all of its weights are in `model.safetensors`.
fn small_model(word: impl Fn(usize) -> String) -> tempfile::TempDir {
    let folder = copy_of_golden("llama");
    let vocab: serde_json::Map<String, Value> = (0..96).map(|id| (word(id), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": word(0)},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

/// Overwrites some of a tensor's values with NaN.
fn spoil(folder: &tempfile::TempDir, name: &str, numbers: std::ops::Range<usize>) {
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(json[name]["dtype"], "F32");
    let start = 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    for number in numbers {
        bytes[start + number * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_run_in_which_every_sample_fails_fails() {
    let folder = small_model(|id| format!("w{id}"));
    spoil(&folder, "model.norm.weight", 0..32);
    let path = folder.path().to_str().unwrap();
    let output = run(&["--model", path, "--prompt", "w1", "--samples", "2"]);
    let (text, message) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    let (text, message) = (text.unwrap(), message.unwrap());
    assert_eq!(output.status.code(), Some(1), "{message}");
    let reason = "logits: expected numbers or -inf, got NaN for token 0";
    assert!(message.contains("2 of 2 failed") && message.contains(reason), "{message}");
    assert_eq!(text.matches("[failed: logits: expected").count(), 4, "{text}");

    let output = run(&["--model", path, "--prompt", "w1", "--samples", "2", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["arms"][1]["samples"][1]["finish"], "failed");
    assert_eq!(report["arms"][1]["samples"][1]["error"], reason);
}

#[test]
fn a_sample_that_fails_reports_why_and_the_others_continue() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let common = ["--model", path, "--prompt", "w1", "--plain", "--samples", "8"];
    let run = || json(&[&common[..], &["--max-new-tokens", "3"]].concat());
    // A word in the first sample that does not occur in every sample. A sample that contains it has no valid logits
    // for its next token.
    let word = run()["arms"][0]["samples"][0]["tokens"][1].as_u64().unwrap() as usize;
    spoil(&folder, "model.embed_tokens.weight", 32 * word..32 * (word + 1));
    let report = run();
    let samples = report["arms"][0]["samples"].as_array().unwrap();
    let failed: Vec<bool> = samples.iter().map(|sample| sample["finish"] == "failed").collect();
    assert!(failed[0] && failed.contains(&false), "{report}");
    for (sample, failed) in samples.iter().zip(failed) {
        assert_eq!(sample["error"].is_string(), failed);
    }
}

#[test]
fn a_model_cannot_control_the_terminal() {
    let folder = small_model(|id| format!("\u{1b}[2J\u{9b}{id}"));
    let path = folder.path().to_str().unwrap();
    let output = run(&["--model", path, "--prompt", "x", "--max-new-tokens", "20"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\\u{1b}[2J\\u{9b}"), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
}

#[test]
fn a_template_that_cannot_be_parsed_does_not_stop_a_raw_prompt() {
    let folder = small_model(|id| format!("w{id}"));
    fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let path = folder.path().to_str().unwrap();
    let flags = ["--model", path, "--prompt", "w1 w2"];
    let message = refused(&flags, 1);
    assert!(message.starts_with("error: chat template: "), "{message}");
    assert!(message.contains("\nnext step: try --raw"), "{message}");
    assert_eq!(json(&[&flags[..], &["--raw"]].concat())["prompt_tokens"], 2);
}

#[test]
fn a_model_without_a_template_is_noted_once() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let errors = |extra: &[&str]| {
        let output = run(&[&["--model", path, "--prompt", "w1"], extra].concat());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(errors(&[]).matches("the model has no chat template").count(), 1);
    assert!(!errors(&["--raw"]).contains("template"));
}

#[test]
fn tokens_that_could_not_be_steered_are_counted_in_the_text() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    let flags = ["--model", path, "--prompt", "w1", "--samples", "2", "--max-new-tokens", "8"];
    let note = "tokens not steered, because a value was not";
    let text = |flags: &[&str]| {
        let text = String::from_utf8(run(flags).stdout).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // The distiller diverges with its first update.
    let diverged = text(&[&flags[..], &["--learning-rate", "1e30"]].concat());
    assert!(diverged.contains(note), "{diverged}");
    let usual = text(&flags);
    assert!(!usual.contains(note), "{usual}");
}

#[test]
fn the_width_of_a_line_counts_escaped_characters() {
    let wrap = columns::wrap;
    assert_eq!(wrap("one two three", 7), ["one two", "three"]);
    assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
    assert_eq!(wrap("a\u{1b}[31mb", 20), ["a\\u{1b}[31mb"]);
    assert_eq!(wrap("\u{7}\u{202e}\u{7f}", 20), ["\\u{7}\\u{202e}\\u{7f}"]);
    assert_eq!(wrap("a\rb\tc\u{b}d", 20), ["a b c d"]);
    let both = columns::side_by_side(&[wrap("x\u{8}", 10), wrap("y", 10)], 10);
    assert_eq!(both, [format!("x\\u{{8}}    {}y         ", columns::GAP)]);
}

fn copy_of_golden(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden::path("llama").join(name)).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}
