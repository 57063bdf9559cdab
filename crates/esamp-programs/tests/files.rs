//! Command lines in which one file would overwrite another.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

use esamp_programs::{
    files::{NamedFile, check_distinct},
    model_source::ModelSource,
};

/// The error of a program that reads `one` or writes it, and writes `two`.
fn error(one: NamedFile, two: &Path) -> Option<String> {
    let checked = check_distinct(&[one, NamedFile::written("--two", two)]);
    checked.err().map(|failure| failure.to_string().lines().next().unwrap().to_owned())
}

#[test]
fn a_file_has_one_name_on_a_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    fs::create_dir(file("sub")).unwrap();
    fs::write(file("there"), "x").unwrap();
    for (one, two, are_same) in [
        ("new", "new", true),
        ("new", "other", false),
        ("new", "sub/../new", true),
        ("there", "there", true),
        ("there", "sub/../there", true),
        ("there", "new", false),
        ("no-such-folder/new", "no-such-folder/new", true),
        ("no-such-folder/new", "new", false),
    ] {
        let (one, two) = (file(one), file(two));
        let expected = are_same.then(|| {
            format!("error: --two {}: expected a file of its own, got that of --one", two.display())
        });
        assert_eq!(error(NamedFile::written("--one", &one), &two), expected);
        assert_eq!(error(NamedFile::read("--one", &one), &two), expected);
    }
    let (one, two) =
        (NamedFile::read("--one", file("there")), NamedFile::read("--two", file("there")));
    assert!(check_distinct(&[one, two]).is_ok(), "reading twice overwrites nothing");
}

#[test]
#[cfg(unix)]
fn links_lead_to_the_same_file() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    fs::write(file("there"), "x").unwrap();
    fs::create_dir(file("sub")).unwrap();
    symlink("there", file("soft")).unwrap();
    symlink("soft", file("soft-to-soft")).unwrap();
    fs::hard_link(file("there"), file("hard")).unwrap();
    symlink("new", file("dangling")).unwrap();
    symlink("sub", file("folder-link")).unwrap();
    symlink("circle", file("circle")).unwrap();
    for (one, two) in [
        ("there", "soft"),
        ("there", "soft-to-soft"),
        ("hard", "soft"),
        ("new", "dangling"),
        ("sub/new", "folder-link/new"),
        ("circle", "circle"),
    ] {
        assert!(
            error(NamedFile::written("--one", file(one)), &file(two)).is_some(),
            "{one}, {two}"
        );
    }
    assert_eq!(error(NamedFile::written("--one", file("there")), &file("dangling")), None);
    let null = Path::new("/dev/null");
    assert_eq!(error(NamedFile::written("--one", null), null), None, "nothing is overwritten");
}

#[test]
fn a_models_own_files_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model-00001-of-00002.safetensors", "run.jsonl"] {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    let model = ModelSource::Path(folder.path().to_owned());
    let check = |name: &str| {
        let mut files = NamedFile::of_model("--model", &model);
        files.push(NamedFile::written("--report", folder.path().join(name)));
        check_distinct(&files).is_ok()
    };
    assert!(!check("config.json") && !check("model-00001-of-00002.safetensors"));
    assert!(check("run.jsonl") && check("report.md"), "the folder may hold other files");
    let one = ModelSource::Path(folder.path().join("run.jsonl"));
    let mut files = NamedFile::of_model("--model", &one);
    files.push(NamedFile::written("--out", folder.path().join("run.jsonl")));
    assert!(check_distinct(&files).is_err());
    assert!(NamedFile::of_model("--model", &ModelSource::Hub("a/b".to_owned())).is_empty());
}
