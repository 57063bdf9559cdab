//! Checks that every file of tests/cases is run on every kind of device.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn assert_has_line(file: &Path, line: &str) {
    let source = fs::read_to_string(file).unwrap();
    assert!(source.lines().any(|l| l == line), "{}: expected {line}, got none", file.display());
}

#[test]
fn every_case_is_run_on_every_device() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let is_device = |name: &String| name.starts_with("on_") && name.ends_with(".rs");
    let devices: Vec<String> = names(&tests).into_iter().filter(is_device).collect();
    assert_eq!(devices.len(), 5, "{devices:?}");
    for device in devices {
        assert_has_line(&tests.join(device), "mod cases;");
    }
    let cases = tests.join("cases");
    let files = names(&cases);
    assert!(files.len() > 10, "{files:?}");
    for case in files.iter().filter_map(|name| name.strip_suffix(".rs")) {
        if case != "mod" {
            assert_has_line(&cases.join("mod.rs"), &format!("mod {case};"));
        }
    }
}
