//! The program with a model on llama.cpp.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod server;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::json;

use server::{metric, post, texts};

const COMPLETIONS: &str = "/v1/completions";

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_esamp-serve"));
    program.args(["--listen", "127.0.0.1:0", "--llama-cpp"]);
    program
}

#[test]
fn a_quantised_model_is_served() {
    let mut program = program();
    program.args(["--model-name", "smol", "--cells", "1024", "--max-rows", "4"]);
    let mut program = program.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit_once("http://").unwrap().1.parse().unwrap();

    let ask = |tokens: u32| json!({"model": "smol", "prompt": "Once upon a time", "n": 4, "seed": 1, "max_tokens": tokens});
    let answer = post(address, COMPLETIONS, &ask(12));
    let said = texts(&answer);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 48, "{}", answer.body);
    assert!(said.iter().all(|text| !text.is_empty()), "{said:?}");
    assert!(metric(address, "sampler_steered_total") > 0.0);
    // More than the cache has room for is refused, and the server goes on.
    let refused = post(address, COMPLETIONS, &ask(400));
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(texts(&post(address, COMPLETIONS, &ask(12))).len(), 4);

    program.kill().unwrap();
    program.wait().unwrap();
}

#[test]
fn a_folder_of_another_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = program().arg("--model").arg(folder.path()).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("expected a GGUF file, got a Hugging Face model"), "{said}");
    // Its flags mean nothing without it.
    let alone = Command::new(env!("CARGO_BIN_EXE_esamp-serve")).args(["--cells", "9"]).output();
    assert_eq!(alone.unwrap().status.code(), Some(2));
}
