//! Files and tests that the documentation names exist.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `folder` whose name ends with `ending`.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root().join("docs/guide"), ".md");
    pages.extend(files(&root().join("docs/design"), ".md"));
    let names = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    pages.extend(names.map(|name| root().join(name)));
    pages
}

/// The words of `text` that are paths of files in the repository's folders.
fn paths(text: &str) -> BTreeSet<String> {
    const FOLDERS: [&str; 6] = ["src/", "tests/", "crates/", "examples/", "benches/", "docs/"];
    let is_path = |c: char| c.is_ascii_alphanumeric() || "/._-{}*,".contains(c);
    let words = text.split(|c: char| !is_path(c)).map(|word| word.trim_end_matches(['.', ',']));
    let in_folder = |word: &&str| FOLDERS.iter().any(|folder| word.starts_with(folder));
    let is_file = |word: &&str| word.ends_with(".rs") || word.ends_with(".md");
    words
        .filter(in_folder)
        .filter(is_file)
        .filter(|w| !w.contains(['{', '*']))
        .map(str::to_owned)
        .collect()
}

#[test]
fn files_that_the_documentation_names_exist() {
    let mut missing = Vec::new();
    let mut named = 0;
    for page in pages() {
        for path in paths(&fs::read_to_string(&page).unwrap()) {
            named += 1;
            if !root().join(&path).exists() {
                missing.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(named > 40, "{named}");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn tests_that_the_page_of_traps_names_exist() {
    let mut sources = String::new();
    for folder in ["src", "tests", "crates"] {
        for path in files(&root().join(folder), ".rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    let page = fs::read_to_string(root().join("docs/design/traps.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #"));
    let mut named = 0;
    for row in rows {
        let tests = row.rsplit(" | ").next().unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            named += 1;
            let name = name.rsplit("::").next().unwrap();
            assert!(sources.contains(&format!("fn {name}(")), "expected a test {name}: {row}");
        }
    }
    assert!(named > 25, "{named}");
}
