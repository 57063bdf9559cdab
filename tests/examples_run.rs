//! Runs the small examples as a new user would. `generate` is tested in tests/generate_cli.rs and
//! tests/generate_settings.rs, and examples/third_party is a package with its own tests.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// `cargo test` builds the examples alongside the tests.
fn example(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    Command::new(path.join("examples").join(name))
}

fn run(name: &str) -> String {
    let output = example(name).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The number before `what`.
fn number(text: &str, what: &str) -> u64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| word.trim_end_matches(',') == what).unwrap();
    words[at - 1].parse().unwrap()
}

#[test]
fn hello_prints_different_completions_with_and_without_esamp() {
    let text = run("hello");
    let (plain, esamp) = text.split_once("ESamp").unwrap();
    assert_eq!((number(plain, "tokens"), number(plain, "updates")), (96, 0));
    assert_eq!((number(esamp, "tokens"), number(esamp, "updates")), (96, 23));
    let said = |text: &str| text.lines().skip(1).take(4).map(str::to_owned).collect::<Vec<_>>();
    assert_ne!(said(plain), said(esamp));
}

#[test]
fn tap_your_model_runs_in_both_loops() {
    let text = run("tap_your_model");
    assert_eq!(text.matches("completion ").count(), 5, "3 of one prompt and 2 of another");
    assert!(text.contains("updates: 22\n"), "11 of each prompt\n{text}");
    assert_eq!(text.matches("log-prob").count(), 12);
}

#[test]
fn your_engine_needs_no_tensors() {
    let text = run("your_engine");
    assert_eq!((number(&text, "tokens"), number(&text, "updates")), (96, 23));
    assert_eq!(text.lines().take(4).collect::<std::collections::HashSet<_>>().len(), 4, "{text}");
    let source = include_str!("../examples/your_engine.rs");
    assert!(!source.contains("burn::") && !source.contains("Tensor"));
}

#[test]
fn a_reader_that_closes_the_output_is_no_panic() {
    for name in ["hello", "tap_your_model", "your_engine"] {
        let mut child =
            example(name).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("Broken pipe") && !message.contains("panicked"), "{message}");
    }
}
