//! How the flags of the example `generate` map to the library's settings, on a model of 96 words.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod output;

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use esamp::telemetry::{TraceRecord, read_traces};
use esamp_testkit::word_model;
use serde_json::{Value, json};

/// A folder with a model, which also holds output files.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        word_model::fill(folder.path());
        Self { folder }
    }

    fn model(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Both columns of a run of two completions of eight tokens, unless `args` changes these numbers.
    fn arms(&self, args: &[&str]) -> Vec<Value> {
        let short = ["--json", "--model", self.model(), "--prompt", "w1 w2 w3", "--seed", "7"];
        let short = [&short[..], &["--samples", "2", "--max-new-tokens", "8"], args].concat();
        let output = run(&short);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
        serde_json::from_value(report["arms"].take()).unwrap()
    }

    /// The last column.
    fn arm(&self, args: &[&str]) -> Value {
        self.arms(args).pop().unwrap()
    }
}

/// `cargo test` builds the examples alongside the tests.
fn run(args: &[&str]) -> Output {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    Command::new(path.join("examples/generate")).args(args).output().unwrap()
}

/// The error message of a run that fails before it looks for its model.
fn refused(args: &[&str]) -> String {
    let output = run(&[&["--model", "no-such-file"], args].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty());
    message
}

/// The first line, without its "error: ".
fn error(args: &[&str]) -> String {
    let message = refused(args);
    assert!(message.contains("\nnext step: "), "{message}");
    message.lines().next().unwrap().strip_prefix("error: ").unwrap().to_owned()
}

#[test]
fn reweighters_have_the_librarys_names_and_their_usual_strength() {
    let bench = Bench::new();
    for (reweighter, name, beta) in
        [("extrapolate", "esamp", 0.25), ("orthogonal", "orthogonal", 1.0)]
    {
        let arm = bench.arm(&["--reweighter", reweighter]);
        assert_eq!(arm["name"], name);
        assert_eq!(arm["sampling"]["reweighter"], reweighter);
        assert_eq!(arm["sampling"]["beta"], beta);
        assert_eq!(arm["counters"]["updates"], 7, "{name}");
    }
    let arm = bench.arm(&["--reweighter", "orthogonal", "--beta", "0.5"]);
    assert_eq!(arm["sampling"]["beta"], 0.5);
}

#[test]
fn a_model_contrasted_with_itself_is_plain() {
    let bench = Bench::new();
    let flags = ["--reweighter", "contrast", "--contrast-with", bench.model()];
    let arms = bench.arms(&flags);
    assert_eq!(arms[1]["counters"]["contrasted"], 16);
    assert_eq!(arms[1]["samples"], arms[0]["samples"]);
    assert_eq!(arms[1]["sampling"]["beta"], 0.5);
    let min_p = arms[1]["sampling"]["filters"][0]["min_p"]["p"].as_f64().unwrap();
    assert!((min_p - 0.1).abs() < 1e-6, "{min_p}");
}

#[test]
fn filters_run_in_the_order_of_the_help_text() {
    let bench = Bench::new();
    let arm = bench.arm(&[
        "--xtc",
        "0.2,0.5",
        "--eta",
        "0.001",
        "--epsilon",
        "0.002",
        "--min-p",
        "0.01",
        "--top-p",
        "0.9",
        "--typical",
        "0.95",
        "--top-k",
        "50",
        "--top-n-sigma",
        "2",
    ]);
    let filters = arm["sampling"]["filters"].as_array().unwrap();
    let names: Vec<&str> = filters
        .iter()
        .flat_map(|filter| filter.as_object().unwrap().keys())
        .map(|k| &**k)
        .collect();
    assert_eq!(
        names,
        [
            "top_n_sigma",
            "top_k",
            "typical",
            "top_p",
            "min_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "xtc",
        ]
    );
    // The best token alone is what a temperature of 0 takes.
    let best = bench.arm(&["--top-k", "1"]);
    assert_eq!(best["counters"]["candidates"], 16);
    assert_eq!(best["samples"], bench.arm(&["--temperature", "0", "--top-k", "1"])["samples"]);
}

#[test]
fn penalties_prevent_repetitions() {
    let bench = Bench::new();
    for penalty in ["--presence-penalty", "--frequency-penalty"] {
        // With three candidate words, at least one occurs twice in 24 tokens, unless a penalty prevents it.
        let flags = ["--plain", "--min-p", "0", "--max-new-tokens", "24", "--top-k", "3"];
        let repeats = |arm: &Value| {
            let tokens = arm["samples"][0]["tokens"].as_array().unwrap();
            tokens.iter().enumerate().any(|(at, token)| tokens[..at].contains(token))
        };
        assert!(repeats(&bench.arm(&flags)));
        assert!(!repeats(&bench.arm(&[&flags[..], &[penalty, "1000"]].concat())), "{penalty}");
    }
    // Only two words, until a penalty for sequences lets no pair of words occur twice.
    let settings = bench.file("two.json");
    let two = json!({"5": 100.0, "6": 100.0});
    let written =
        json!({"sampling": {"logit_bias": two, "penalties": {"dry": {"allowed_length": 1}}}});
    fs::write(&settings, written.to_string()).unwrap();
    let flags = ["--plain", "--min-p", "0", "--max-new-tokens", "24", "--config", &settings];
    let pairs = |arm: &Value| {
        let tokens: Vec<Value> = arm["samples"][0]["tokens"].as_array().unwrap().clone();
        let count = |pair: &[Value]| tokens.windows(2).filter(|other| *other == pair).count();
        tokens.windows(2).map(count).max().unwrap()
    };
    let weak = bench.arm(&[&flags[..], &["--dry", "0.0625"]].concat());
    assert!(pairs(&weak) > 1);
    let dry = json!({"multiplier": 0.0625, "base": 1.75, "allowed_length": 1, "breakers": [], "range": null});
    assert_eq!(weak["sampling"]["penalties"]["dry"], dry);
    for penalty in [["--dry", "1000"], ["--no-repeat-ngram", "2"]] {
        assert_eq!(pairs(&bench.arm(&[&flags[..], &penalty].concat())), 1, "{penalty:?}");
    }
    // Greedy decoding with a strong repetition penalty, which also counts the prompt: none of its words occurs again.
    let arm = bench.arm(&["--plain", "--temperature", "0", "--repetition-penalty", "1000"]);
    let tokens = arm["samples"][0]["tokens"].as_array().unwrap();
    assert!([1, 2, 3].iter().all(|&word| !tokens.contains(&json!(word))), "{tokens:?}");
}

#[test]
fn arithmetic_completions_begin_with_each_token_in_proportion_to_its_probability() {
    let bench = Bench::new();
    let trace = bench.file("trace");
    let flags = ["--plain", "--samples", "64", "--max-new-tokens", "1", "--trace", &trace];
    // For each token, how often it occurred, and how often 64 completions should begin with it.
    let counts = |extra: &[&str]| -> Vec<(f64, f64)> {
        bench.arm(&[&flags[..], extra].concat());
        let mut counts: HashMap<u32, (f64, f64)> = HashMap::new();
        for record in read_traces(fs::read(&trace).unwrap().as_slice()) {
            if let TraceRecord::Token(token) = record.unwrap() {
                let expected = 64.0 * f64::from(token.log_prob).exp();
                counts.entry(token.token).or_insert((0.0, expected)).0 += 1.0;
            }
        }
        counts.into_values().collect()
    };
    let is_spread = |counts: &[(f64, f64)]| {
        counts.iter().all(|(count, expected)| (count - expected).abs() <= 1.0 + 1e-3)
    };
    assert!(!is_spread(&counts(&[])), "independent draws are not as even");
    assert!(is_spread(&counts(&["--arithmetic"])));
}

#[test]
fn a_hot_start_is_only_the_first_token() {
    let bench = Bench::new();
    let flags = ["--plain", "--temperature", "0", "--samples", "16", "--max-new-tokens", "3"];
    for cool in [&["--top-k", "5"][..], &["--temperature-order", "after-filters"]] {
        let arm = bench.arm(&[&flags[..], &["--fire", "30"], cool].concat());
        let mut rest = HashMap::new();
        for sample in arm["samples"].as_array().unwrap() {
            let tokens = sample["tokens"].as_array().unwrap();
            let after = rest.entry(tokens[0].as_u64().unwrap()).or_insert(&tokens[1..]);
            assert_eq!(*after, &tokens[1..], "greedy behind it");
        }
        assert!(rest.len() > 1, "and itself drawn");
    }
}

#[test]
fn settings_of_the_paper_and_of_the_reference() {
    let bench = Bench::new();
    let arm = bench.arm(&["--settings", "reference"]);
    assert_eq!(arm["sampler"]["optimizer"]["learning_rate"], 1e-3);
    assert_eq!(arm["sampler"]["optimizer"]["rule"], "sgd");
    assert_eq!(arm["sampling"]["filters"], json!([]));
    assert_eq!(arm["counters"]["rows_learned"], 7, "of each prompt one row");
    let arm = bench.arm(&["--settings", "paper", "--top-k", "9"]);
    assert!(arm["sampler"]["distiller"]["swi_glu"].is_object());
    assert_eq!(arm["sampling"]["filters"], json!([{"top_k": {"k": 9}}]));
    assert_eq!(arm["counters"]["rows_learned"], 14);
}

#[test]
fn sharing_and_the_first_updates() {
    let bench = Bench::new();
    for (name, updates) in [("global", 7), ("per-prompt", 7), ("per-completion", 14)] {
        let arm = bench.arm(&["--sharing", name]);
        assert_eq!(arm["counters"]["updates"], updates, "{name}");
    }
    let adaptive = bench.arm(&["--sharing", "adaptive", "--distiller", "low-rank"]);
    assert!(adaptive["sampler"]["sharing"]["adaptive"].is_object());
    assert!(adaptive["sampler"]["distiller"]["low_rank"].is_object());
    let arm = bench.arm(&["--updates-before-steering", "3"]);
    assert_eq!(arm["counters"]["rows_untrained"], 6, "three steps of two rows");
    assert_eq!(arm["counters"]["steered"], 8);
}

#[test]
fn a_run_continues_from_what_another_has_learned() {
    let bench = Bench::new();
    let [snapshot, fresh, loaded] = ["snapshot", "fresh", "loaded"].map(|name| bench.file(name));
    let learn = ["--sharing", "global", "--learning-rate", "3e-3", "--save", &snapshot];
    let before = bench.arm(&[&learn[..], &["--trace", &fresh]].concat());
    let after = bench.arm(&["--load", &snapshot, "--trace", &loaded]);
    assert_eq!(after["sampler"], before["sampler"], "its settings are the file's");
    assert_eq!(after["counters"]["updates"], 14, "and its counters go on");
    let loss = |path: &str| {
        let traces: Vec<_> = read_traces(fs::read(path).unwrap().as_slice()).collect();
        let mut losses = traces.into_iter().filter_map(|record| match record.unwrap() {
            TraceRecord::Token(token) => token.loss,
            _ => None,
        });
        losses.next().unwrap()
    };
    assert!(loss(&loaded) < loss(&fresh), "the same first state is expected better");

    assert_eq!(
        error(&["--save", &snapshot]),
        "--save: expected a distiller that outlives its prompt, got sharing per-prompt"
    );
    assert_eq!(
        error(&["--load", &snapshot, "--sharing", "global"]),
        "--load: expected the learning settings of the file, got --sharing"
    );
    let nowhere = "no-such-folder/snapshot";
    assert_eq!(
        error(&["--sharing", "global", "--save", nowhere]),
        format!("--save {nowhere}: expected a folder that exists, got none")
    );
}

#[test]
fn the_settings_that_a_run_prints_give_the_same_run() {
    let bench = Bench::new();
    let path = bench.file("settings.json");
    let write = |text: &str| fs::write(Path::new(&path), text).unwrap();
    let flags = [
        "--reweighter",
        "orthogonal",
        "--temperature",
        "0.7",
        "--top-k",
        "30",
        "--sharing",
        "global",
        "--distiller",
        "low-rank",
        "--learning-rate",
        "1e-2",
        "--frequency-penalty",
        "0.3",
    ];
    let first = bench.arm(&flags);
    let settings = json!({"sampling": first["sampling"], "sampler": first["sampler"]});
    write(&settings.to_string());
    let second = bench.arm(&["--config", &path]);
    for key in ["name", "sampling", "sampler", "samples", "counters"] {
        assert_eq!(second[key], first[key], "{key}");
    }
    // Settings missing in the file take their defaults, flags override the file, and beta defaults to the usual one.
    write(r#"{"sampling": {"reweighter": "orthogonal", "temperature": 0.5}}"#);
    let arm = bench.arm(&["--config", &path, "--temperature", "0.25"]);
    assert_eq!(arm["sampling"]["temperature"], 0.25);
    assert_eq!(arm["sampling"]["beta"], 1.0);
    assert!(arm["sampling"]["filters"][0]["min_p"].is_object());

    let wrong = |text: &str, flags: &[&str]| {
        write(text);
        error(&[&["--config", &path], flags].concat())
    };
    for (text, name) in [
        (r#"{"sampler": {"training": {"update_evry": 4}}}"#, "update_evry"),
        (r#"{"sampler": {"sharring": "global"}}"#, "sharring"),
        (r#"{"sampling": {"tempreature": 1}}"#, "tempreature"),
    ] {
        assert!(wrong(text, &[]).contains(&format!("unknown field `{name}`")));
    }
    assert!(wrong(r#"{"samplings": {}}"#, &[]).contains("unknown field `samplings`"));
    assert!(wrong("{", &[]).starts_with("--config ") && wrong("{", &[]).contains("EOF"));
    assert_eq!(
        wrong(r#"{"sampling": {"filters": []}}"#, &["--top-k", "3"]),
        "filters: expected them on the command line or in --config, got some in both"
    );
    assert_eq!(
        wrong(r#"{"sampler": {"sharing": "global"}}"#, &["--load", "x"]),
        "--load: expected the learning settings of the file, got sampler settings in --config"
    );
}

#[test]
fn flags_that_cannot_be_combined_are_refused_before_anything_is_loaded() {
    for (flags, message) in [
        (
            &["--reweighter", "contrast"][..],
            "--reweighter contrast: expected a second model, got none",
        ),
        (
            &["--contrast-with", "x"],
            "--contrast-with: expected --reweighter contrast, got extrapolate",
        ),
        (
            &["--reweighter", "contrast", "--contrast-with", "x", "--warm-up-updates", "3"],
            "--warm-up-updates: expected a reweighter that asks a distiller, got contrast at beta 0.5",
        ),
        (
            &["--beta", "0", "--updates-before-steering", "3"],
            "--updates-before-steering: expected a reweighter that asks a distiller, got extrapolate at beta 0",
        ),
        (
            &["--plain", "--reweighter", "orthogonal"],
            "--plain: expected no steering, got --reweighter",
        ),
        (&["--plain", "--load", "x"], "--plain: expected no steering, got --load"),
        (
            &["--fire", "30"],
            "--fire 30: expected a filter that does not see the hot temperature, got none",
        ),
        (&["--fire", "0"], "fire temperature: expected a number above 0, got 0"),
        (
            &["--arithmetic", "--temperature", "0"],
            "--arithmetic: expected a temperature above 0, got 0",
        ),
        (&["--xtc", "0.1,2"], "xtc probability: expected a number in [0, 1], got 2"),
        (
            &["--settings", "reference", "--sharing", "per-completion"],
            "train_rows: expected all, because every completion has its own distiller, got first_per_prompt",
        ),
        (&["--learning-rate", "-1"], "learning_rate: expected a number above 0, got -1"),
        (&["--rank", "8"], "--rank: expected the low-rank distiller, got another"),
    ] {
        assert_eq!(error(flags), message);
    }
    assert!(refused(&["--xtc", "0.1"]).contains("expected two numbers, as in 0.1,0.5"));
    let names = refused(&["--reweighter", "esamp"]);
    assert!(names.contains("possible values: extrapolate, orthogonal, contrast"), "{names}");
}

#[test]
fn the_error_for_a_missing_second_model_names_its_flag() {
    let bench = Bench::new();
    let flags =
        ["--model", bench.model(), "--reweighter", "contrast", "--contrast-with", "nowhere"];
    assert_eq!(
        error(&flags),
        "--contrast-with: expected a path that exists or hf:ORG/NAME, got nowhere"
    );
}
