//! The official Python package of OpenAI against the program, with a real model.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// Ends the program when the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs Python with pip and venv, and downloads the package openai"]
fn the_official_python_package_is_content() {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai");
    let python = environment.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
    }
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "openai>=2,<3"]));

    let mut program = Command::new(env!("CARGO_BIN_EXE_esamp-serve"));
    let program = program.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn();
    let mut program = Running(program.unwrap());
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (model, address) = line.trim().split_once(" on ").unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    run(Command::new(&python).arg(script).args([address, model]));
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
