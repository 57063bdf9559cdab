//! Every file of tests/cases is run on every kind of device.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn no_device_leaves_a_case_out() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let is_device = |name: &String| name.starts_with("on_") && name.ends_with(".rs");
    let devices: Vec<String> = names(&tests).into_iter().filter(is_device).collect();
    assert_eq!(devices.len(), 4, "{devices:?}");
    for device in devices {
        let source = fs::read_to_string(tests.join(&device)).unwrap();
        for case in names(&tests.join("cases")) {
            let line = format!("#[path = \"cases/{case}\"]");
            assert!(source.contains(&line), "tests/{device}: expected {line}, got none");
        }
    }
}
