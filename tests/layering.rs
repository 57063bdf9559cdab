//! Checks which module may depend on which: the table of ARCHITECTURE.md as data, and no circular imports among the
//! files of a module.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{collections::BTreeMap, fs, path::Path};

/// A module imports from lower layers only.
const LAYERS: [&[&str]; 10] = [
    &["id", "numeric", "tensor", "custom"],
    &["draw", "error", "host"],
    &["hidden", "lm_head", "distiller", "candidates", "penalties", "fire", "text"],
    &["tap", "bank", "novelty", "select"],
    &["train", "sampling", "causal_lm", "telemetry"],
    &["sampler"],
    &["snapshot", "llama", "testing"],
    &["decode"],
    &["engine"],
    &["guide"],
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
fn an_import_of_a_higher_layer_would_be_found() {
    let source = "use crate::{\n    bank::{A, B},\n    train::C,\n};\nuse crate::sampler::X;";
    assert_eq!(imports(source), ["bank", "train", "sampler"]);
    let tests_in_a_file = format!("#[cfg(test)]\nmod tests;\n\n{source}");
    assert_eq!(imports(&tests_in_a_file), ["bank", "train", "sampler"]);
    let tests_inside = format!("{source}\n#[cfg(test)]\nmod tests {{\nuse crate::decode::Y;\n}}");
    assert_eq!(imports(&tests_inside), ["bank", "train", "sampler"]);
}

#[test]
fn the_table_is_that_of_the_architecture_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let page = fs::read_to_string(page).unwrap();
    let section = page.split("## Layers").nth(1).unwrap();
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    for (layer, line) in (0..LAYERS.len()).rev().zip(lines) {
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some(layer.to_string().as_str()), "{line}");
        assert_eq!(words.collect::<Vec<_>>(), LAYERS[layer], "{line}");
    }
}

/// Modules whose files may import each other in one direction only.
const WITHOUT_CIRCLES: [&str; 2] = ["train", "distiller"];

#[test]
fn files_of_a_module_do_not_import_each_other_in_a_circle() {
    for module in WITHOUT_CIRCLES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(module);
        let files = Files::of(module, &folder);
        assert!(files.sources.len() > 5, "{module}: {:?}", files.sources.keys());
        assert_eq!(files.circle(), None, "{module}");
    }
}

#[test]
fn a_circle_would_be_found() {
    let files = |sources: &[(&str, &str)]| Files {
        module: "train".to_owned(),
        sources: sources.iter().map(|&(file, s)| (file.to_owned(), s.to_owned())).collect(),
    };
    let module = ("", "mod a;\nmod b;\npub use a::A;\n");
    let circle = files(&[module, ("a", "\nuse super::b::{B, c};\n"), ("b", "\nuse super::A;\n")]);
    assert_eq!(circle.circle().unwrap(), ["a", "b", "a"]);
    let deeper = files(&[
        module,
        ("a", "\nuse crate::{id::X, train::b::c::C};\n"),
        ("b", "mod c;\nuse c::C;\n"),
        ("b/c", "\nuse super::super::a;\n"),
    ]);
    assert_eq!(deeper.circle().unwrap(), ["a", "b/c", "a"]);
    let line = files(&[module, ("a", "\nuse super::b::B;\n"), ("b", "\nuse super::Own;\n")]);
    assert_eq!(line.circle(), None);
}

/// The files of a module by their paths within it, without `.rs`. `a/mod.rs` is `a`, and the key of the module's own
/// file is empty.
struct Files {
    module: String,
    sources: BTreeMap<String, String>,
}

impl Files {
    fn of(module: &str, folder: &Path) -> Self {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(next) = folders.pop() {
            for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let inside = path.strip_prefix(folder).unwrap().with_extension("");
                let name = inside.to_str().unwrap().replace('\\', "/");
                let name = name.strip_suffix("mod").unwrap_or(&name).trim_end_matches('/');
                if !name.split('/').any(|part| part == "tests") {
                    found.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
                }
            }
        }
        Self { module: module.to_owned(), sources: found }
    }

    /// The files that `file` imports from. A re-exported item counts as an import of the file that defines it, not of
    /// the `mod.rs` that re-exports it.
    fn imported_by(&self, file: &str) -> Vec<String> {
        let paths = used_paths(&self.sources[file], "use ");
        let targets = paths.iter().filter_map(|path| self.target(file, path));
        targets.filter(|target| target != file).collect()
    }

    /// The file that `path`, as written in `file`, refers to; `None` if that is outside the module.
    fn target(&self, file: &str, path: &str) -> Option<String> {
        let mut at: Vec<&str> = file.split('/').filter(|part| !part.is_empty()).collect();
        let mut rest: Vec<&str> = path.split("::").collect();
        if rest[0] == "crate" {
            if rest.get(1) != Some(&self.module.as_str()) {
                return None;
            }
            at.clear();
            rest.drain(..2);
        }
        while rest.first() == Some(&"super") {
            at.pop()?; // outside the module
            rest.remove(0);
        }
        let start = at.len();
        while let Some(next) = rest.first() {
            let deeper = [&at[..], &[next]].concat();
            if !self.sources.contains_key(&deeper.join("/")) {
                break;
            }
            at = deeper;
            rest.remove(0);
        }
        if path.starts_with(char::is_lowercase) && !path.starts_with("super") && at.len() == start {
            return (path.starts_with("crate")).then(|| at.join("/")); // another crate
        }
        let here = at.join("/");
        let Some(item) = rest.first() else {
            return Some(here);
        };
        let re_exports = used_paths(&self.sources[&here], "pub use ")
            .into_iter()
            .chain(used_paths(&self.sources[&here], "pub(crate) use "))
            .chain(used_paths(&self.sources[&here], "pub(super) use "));
        let from = re_exports.into_iter().find(|path| path.split("::").last() == Some(item));
        match from {
            Some(from) => self.target(&here, &from),
            None => Some(here),
        }
    }

    /// A circle of imports, if there is one.
    fn circle(&self) -> Option<Vec<String>> {
        fn walk(files: &Files, way: &mut Vec<String>, done: &mut Vec<String>) -> bool {
            let last = way.last().unwrap().clone();
            if done.contains(&last) {
                return false;
            }
            for next in files.imported_by(&last) {
                let closes = way.iter().position(|file| *file == next);
                way.push(next);
                if let Some(start) = closes {
                    way.drain(..start);
                    return true;
                }
                if walk(files, way, done) {
                    return true;
                }
                way.pop();
            }
            done.push(last);
            false
        }
        let mut done = Vec::new();
        self.sources.keys().find_map(|file| {
            let mut way = vec![file.clone()];
            walk(self, &mut way, &mut done).then_some(way)
        })
    }
}

/// All paths in the statements that begin with `keyword`, excluding the tests of a file.
fn used_paths(source: &str, keyword: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut found = Vec::new();
    for tail in format!("\n{code}").split(&format!("\n{keyword}")).skip(1) {
        paths_of("", tail.split(';').next().unwrap(), &mut found);
    }
    found
}

/// Splits `a::{b, c::d}` into `a::b` and `a::c::d`.
fn paths_of(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim().trim_end_matches(',');
    match tree.split_once('{') {
        None => found.push(format!("{prefix}{tree}").split(" as ").next().unwrap().to_owned()),
        Some((head, group)) => {
            let prefix = format!("{prefix}{}", head.trim());
            for item in top_level_items(group).into_iter().filter(|item| !item.trim().is_empty()) {
                paths_of(&prefix, item, found);
            }
        }
    }
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

/// The modules named in `use crate::…`, excluding the tests of a file.
fn imports(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
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

/// Splits `a::{b, c}, d` into `a::{b, c}` and `d`.
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
