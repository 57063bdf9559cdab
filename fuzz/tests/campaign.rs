//! Campaigns on targets with known faults.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, time::Duration};

use esamp_fuzz::{
    campaign::{Folder, Limits, run, run_one},
    targets::{Outcome, Target},
};

const LIMITS: Limits = Limits { executions: 200_000, time: Duration::from_secs(60) };

fn target(run: fn(&[u8]) -> Outcome) -> Target {
    Target { name: "known", run, seeds: || vec![b"begin".to_vec()] }
}

/// A fault after two checks, each of which has an outcome of its own.
fn deep(input: &[u8]) -> Outcome {
    if input.first() != Some(&b'B') {
        return Ok("first letter".into());
    }
    if input.get(1) != Some(&b'\xff') {
        return Ok("second letter".into());
    }
    assert!(input.get(2) != Some(&0), "the third letter");
    Ok("accepted".into())
}

#[test]
fn a_panic_is_found_step_by_step_and_its_input_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let fault = run(&target(deep), 1, LIMITS, &Folder::at(folder.path())).unwrap_err();
    assert_eq!(fault.what, "panics: the third letter");
    let input = fs::read(&fault.input).unwrap();
    assert!(input.starts_with(&[b'B', 0xff, 0]), "{input:?}");
    let again = run_one(&target(deep), &input, &Folder::at(folder.path())).unwrap_err();
    assert_eq!(again.what, fault.what);
    let found = fs::read_dir(folder.path().join("found")).unwrap();
    assert_eq!(found.count(), 1, "nothing but the input of the fault is left");
}

#[test]
fn a_broken_promise_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let long = |input: &[u8]| {
        if input.len() > 40 { Err("it is too long".to_owned()) } else { Ok("short".to_owned()) }
    };
    let fault = run(&target(long), 1, LIMITS, &Folder::at(folder.path())).unwrap_err();
    assert_eq!(fault.what, "it is too long");
    assert!(fs::read(fault.input).unwrap().len() > 40);
}

#[test]
fn inputs_depend_on_the_seed_only_and_include_the_corpus() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("corpus/known")).unwrap();
    fs::write(folder.path().join("corpus/known/one"), "committed").unwrap();
    let committed = |input: &[u8]| {
        if input == b"committed" { Err("read".to_owned()) } else { Ok(String::new()) }
    };
    let fault = run(&target(committed), 1, LIMITS, &Folder::at(folder.path())).unwrap_err();
    assert_eq!(fault.what, "read");

    let outcomes = |seed: u64| {
        let length = |input: &[u8]| Ok(input.len().to_string());
        let limits = Limits { executions: 500, ..LIMITS };
        let empty = tempfile::tempdir().unwrap();
        run(&target(length), seed, limits, &Folder::at(empty.path())).unwrap().outcomes
    };
    assert_eq!(outcomes(1), outcomes(1));
    assert_ne!(outcomes(1), outcomes(2));
}
