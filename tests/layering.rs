//! Who may depend on whom: the table of ARCHITECTURE.md, as data.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{collections::BTreeMap, fs, path::Path};

/// A module imports from lower layers only; inside of a module there are no rules.
const LAYERS: [&[&str]; 8] = [
    &["id", "numeric", "tensor", "custom"],
    &["draw", "error", "host"],
    &["hidden", "lm_head", "distiller", "candidates", "penalties", "fire", "text"],
    &["tap", "bank", "novelty", "select"],
    &["causal_lm", "train", "sampling", "telemetry"],
    &["sampler"],
    &["decode", "snapshot", "llama", "testing"],
    &["prelude", "guide"],
];

#[test]
fn modules_import_from_lower_layers_only() {
    let layer: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(layer, modules)| modules.iter().map(move |&module| (module, layer)))
        .collect();
    let mut faults = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (module, source) in sources(&src) {
        let Some(&from) = layer.get(module.as_str()) else {
            faults.push(format!("{module} has no layer"));
            continue;
        };
        for import in imports(&source) {
            if import == module {
                continue;
            }
            let Some(&to) = layer.get(import.as_str()) else {
                continue; // a type re-exported by lib.rs, in a doc link
            };
            if to >= from {
                faults.push(format!("{module} (layer {from}) imports {import} (layer {to})"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn an_import_that_goes_up_would_be_seen() {
    let source = "use crate::{\n    bank::{A, B},\n    train::C,\n};\nuse crate::sampler::X;";
    assert_eq!(imports(source), ["bank", "train", "sampler"]);
}

/// Every source file with the name of the top-level module that it belongs to.
fn sources(src: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![src.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inside = path.strip_prefix(src).unwrap();
            let first = inside.iter().next().unwrap().to_str().unwrap();
            let module = first.trim_end_matches(".rs").to_owned();
            if module != "lib" {
                found.push((module, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The modules named in `use crate::…` of the code above the tests of a file.
fn imports(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let mut found = Vec::new();
    for tail in format!("\n{code}").split("\nuse crate::").skip(1) {
        let tail = tail.split(';').next().unwrap();
        let group = match tail.strip_prefix('{') {
            None => vec![tail],
            Some(group) => top_level_items(group),
        };
        for item in group {
            let module = item.trim().split("::").next().unwrap().trim();
            if !module.is_empty() && module.starts_with(char::is_lowercase) {
                found.push(module.to_owned());
            }
        }
    }
    found
}

/// `a::{b, c}, d` into `a::{b, c}` and `d`.
fn top_level_items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                return items;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&group[start..]);
    items
}
