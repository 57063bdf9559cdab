//! The command line of `evaluate`, run on a model of 96 words.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod plan;
mod reports;
mod shards;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use esamp_eval::{
    provenance,
    record::{Run, Session, Split, line},
};
use esamp_testkit::word_model;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model")).unwrap();
        word_model::fill(&folder.path().join("model"));
        Self { folder }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("run.jsonl")
    }

    fn evaluate(&self, args: &[&str]) -> Output {
        let out = self.out();
        let model = self.folder.path().join("model");
        let usual = ["--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
        evaluate(&[&usual[..], args].concat())
    }

    fn said(&self, args: &[&str]) -> String {
        let output = self.evaluate(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn evaluate(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

/// The program, outside any job array.
fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_evaluate"));
    program.env_remove("SLURM_ARRAY_TASK_ID").env_remove("JOB_COMPLETION_INDEX");
    program
}

const SMALL: [&str; 12] = [
    "--tasks",
    "products,stories",
    "--problems",
    "3",
    "--samples",
    "2",
    "--seeds",
    "2",
    "--tokens",
    "6",
    "--batch",
    "2",
];
const ARMS: [&str; 4] = ["--arms", "min-p-1,esamp-0.5", "--token-arm", "esamp-0.5"];

#[test]
fn a_run_is_written_once_and_only_once() {
    let bench = Bench::new();
    let args = [&SMALL[..], &ARMS].concat();
    let planned = 2 * 3 * 2 * 2;
    let first = bench.said(&args);
    assert!(first.starts_with(&format!("{planned} of {planned} records in ")), "{first}");
    let bytes = fs::read(bench.out()).unwrap();
    let run = Run::read(&bench.out()).unwrap();
    let header = &run.header;
    assert_eq!((header.problems, header.samples, header.seeds, header.tokens), (3, 2, 2, 6));
    assert_eq!((header.split, header.batch), (Split::Dev, 2));
    assert_eq!((header.model.vocab, header.model.sha256.len()), (96, 64));
    assert_eq!(header.crate_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(run.records.len(), planned);
    for record in &run.records {
        assert_eq!(record.token_sample.is_empty(), record.arm == "min-p-1");
        let judged = record.completions.iter().map(|completion| completion.correct);
        assert!(judged.into_iter().all(|correct| correct.is_none() == (record.task == "stories")));
    }

    let second = bench.said(&args);
    assert!(second.contains(", 0 of them new"), "{second}");
    assert!(fs::read(bench.out()).unwrap() == bytes);
    let mut sessions = bench.out().into_os_string();
    sessions.push(".sessions");
    let sessions = fs::read_to_string(sessions).unwrap();
    let sessions: Vec<Session> =
        sessions.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let records: Vec<[usize; 2]> = sessions.iter().map(|session| session.records).collect();
    assert_eq!(records, [[0, planned]], "a run that had nothing to do leaves no session");
    assert!(sessions[0].command.contains(&"products,stories".to_owned()));

    let other = bench.evaluate(&[&args[..], &["--seeds", "3"]].concat());
    assert_eq!(other.status.code(), Some(2));
    let message = String::from_utf8(other.stderr).unwrap();
    assert!(
        message.contains(": expected a file of seeds 3, got one of 2\nnext step: "),
        "{message}"
    );
    assert!(fs::read(bench.out()).unwrap() == bytes);
}

#[test]
fn a_chat_template_stops_only_what_needs_it_and_a_missing_one_is_noted_once() {
    let bench = Bench::new();
    let args = [&SMALL[..], &["--arms", "min-p-1"]].concat();
    let output = bench.evaluate(&args);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{notes}");
    assert_eq!(notes.matches("note: the model has no chat template").count(), 1, "{notes}");

    // A run that has nothing left to do reads no prompt. Its header has the hash of the model.
    let model = bench.folder.path().join("model");
    let hash = || provenance::model_hash(&model).unwrap();
    let without = hash();
    fs::write(model.join("chat_template.jinja"), "{% if %}").unwrap();
    let text = fs::read_to_string(bench.out()).unwrap();
    let (header, records) = text.split_once('\n').unwrap();
    let header = line::unseal(header).unwrap().object.replace(&without, &hash());
    fs::write(bench.out(), format!("{}\n{records}", line::seal(&header))).unwrap();
    assert!(bench.said(&args).contains(", 0 of them new"));

    fs::remove_file(bench.out()).unwrap();
    let output = bench.evaluate(&args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("error: chat template: line 1: "), "{message}");
    assert!(
        message.contains("next step: mend or remove the chat template of the model"),
        "{message}"
    );
}

#[test]
fn a_budget_ends_a_run_and_the_same_command_resumes_it() {
    let bench = Bench::new();
    let args = [&SMALL[..], &ARMS].concat();
    let said = bench.said(&[&args[..], &["--budget", "0.0000001"]].concat());
    // Six microseconds: enough to start one batch, but not a second one.
    assert!(said.ends_with("time limit reached; run the same command again to resume\n"), "{said}");
    assert!(bench.said(&args).starts_with("24 of 24 records in "));
    let whole = Bench::new();
    whole.said(&args);
    let [one, other] = [bench, whole].map(|bench| fs::read_to_string(bench.out()).unwrap());
    assert_eq!(one, other);
}

#[test]
fn flags_that_cannot_work_are_refused_before_any_download() {
    let refused = |args: &[&str]| {
        let output = evaluate(&[&["--model", "no-such-file"], args].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        message.lines().next().unwrap().strip_prefix("error: ").unwrap().to_owned()
    };
    for (args, wording) in [
        (&["--tasks", "poems"][..], "--tasks: expected the name of a task, got poems"),
        (&["--tasks", "gcd,gcd"], "--tasks: expected each task once, got gcd twice"),
        (&["--arms", "poems"], "--arms: expected the name of an arm, got poems"),
        (
            &["--split", "held-out", "--arms", "all"],
            "--arms: expected at most 8 on the held-out split, got 50",
        ),
        (&["--token-arm", "plain"], "--token-arm: expected one of the arms that run, got plain"),
        (
            &["--split", "held-out", "--match-entropy", "esamp-0.5"],
            "--match-entropy: expected the development split, got the held-out one",
        ),
        (
            &["--seeds", "18446744073709551615"],
            "--seeds: expected a plan of at most 1000000 records, got 18446744073709551615 seeds × 30 problems × 7 tasks × \
             8 arms",
        ),
        (&["--out", "x"], "--model: expected a path that exists or hf:ORG/NAME, got no-such-file"),
    ] {
        assert_eq!(refused(args), wording);
    }
    let bench = Bench::new();
    let output = bench.evaluate(&["--tasks", "letters", "--problems", "71"]);
    let message = String::from_utf8(output.stderr).unwrap();
    let wording = "error: --problems: expected at most the 70 of letters in this split, got 71";
    // After a note on the size of the model.
    assert_eq!(message.lines().nth(1), Some(wording), "{message}");
    assert!(!bench.out().exists());
    for budget in ["0", "-1", "soon", "nan", "inf"] {
        let output = evaluate(&[&format!("--budget={budget}")[..]]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("expected a number above 0"), "{message}");
    }
}

#[test]
fn the_list_names_tasks_and_arms() {
    let output = evaluate(&["--list"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["sentences", "stories", "esamp-paper-0.25", "matched-orthogonal-1", "cool-0.5"] {
        assert!(
            text.lines().any(|line| line.trim_start().starts_with(&format!("{name} "))),
            "{text}"
        );
    }
    let public = text.lines().find(|line| line.trim_start().starts_with("reasoning-gym ")).unwrap();
    assert!(public.contains("from the public set reasoning-gym"), "{public}");
    assert!(public.ends_with(" (80 and 80)"), "{public}");
}

#[test]
fn a_temperature_is_found_and_nothing_is_written() {
    let bench = Bench::new();
    let said = bench.said(&[&SMALL[..], &["--match-entropy", "min-p-0.9"]].concat());
    assert!(said.starts_with("min-p-0.9: "), "{said}");
    assert!(said.contains(" nats a token; its entropy-matched control is min-p-"), "{said}");
    assert!(!bench.out().exists());
}

#[test]
fn a_commit_is_that_of_the_checkout_or_unknown() {
    let folder = tempfile::tempdir().unwrap();
    // Only if the folder is not inside another checkout.
    if provenance::commit(folder.path()) != "unknown" {
        return;
    }
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=a", "-c", "user.email=a@b"]).arg("-C").arg(folder.path());
        assert!(git.args(arguments).output().unwrap().status.success());
    };
    git(&["init", "--quiet"]);
    fs::create_dir(folder.path().join("src")).unwrap();
    fs::write(folder.path().join("src/lib.rs"), "1").unwrap();
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "one"]);
    let commit = provenance::commit(folder.path());
    assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{commit}");
    fs::write(folder.path().join("notes"), "1").unwrap();
    assert_eq!(provenance::commit(folder.path()), commit, "untracked files do not count");
    fs::write(folder.path().join("src/lib.rs"), "2").unwrap();
    assert_eq!(provenance::commit(folder.path()), format!("{commit}-modified"));
}

#[test]
fn numbers_below_their_range_are_refused_with_the_range() {
    for flag in ["--seeds", "--problems", "--samples", "--tokens", "--batch"] {
        let output = evaluate(&[flag, "-1"]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(flag) && message.contains("invalid value '-1'"), "{message}");
    }
}

#[test]
fn a_file_does_not_overwrite_another() {
    let bench = Bench::new();
    let args = [&SMALL[..], &ARMS].concat();
    bench.said(&args);
    let records = fs::read(bench.out()).unwrap();
    let file = |name: &str| bench.folder.path().join(name).to_str().unwrap().to_owned();
    let (out, link) = (file("run.jsonl"), file("link.md"));
    #[cfg(unix)]
    std::os::unix::fs::symlink(&out, &link).unwrap();
    #[cfg(not(unix))]
    fs::hard_link(&out, &link).unwrap();
    let (sessions, weights) = (out.clone() + ".sessions", file("model/model.safetensors"));
    for (path, other) in [
        (&out, "--out"),
        (&link, "--out"),
        (&sessions, "the sessions of --out"),
        (&weights, "--model"),
    ] {
        let output = bench.evaluate(&[&args[..], &["--report", path]].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        let expected =
            format!("error: --report {path}: expected a file of its own, got that of {other}\n");
        assert!(message.starts_with(&expected), "{message}");
    }
    let figures = bench.evaluate(&["--report", &format!("{out}.md")]);
    assert!(String::from_utf8(figures.stderr).unwrap().contains("the figures of --report"));
    let again = bench.evaluate(&["--records", &link, "--report", &out]);
    assert!(String::from_utf8(again.stderr).unwrap().contains("got that of --records"));
    assert!(fs::read(bench.out()).unwrap() == records, "nothing was written");
}

#[test]
#[cfg(target_os = "linux")]
fn paths_need_not_be_utf_8() {
    use std::{
        ffi::{OsStr, OsString},
        os::unix::ffi::OsStrExt,
    };
    let bench = Bench::new();
    let file = |name: &[u8]| bench.folder.path().join(OsStr::from_bytes(name)).into_os_string();
    let (model, out, report) =
        (file(b"model-\xff"), file(b"run-\xff.jsonl"), file(b"report-\xff.md"));
    fs::rename(bench.folder.path().join("model"), &model).unwrap();
    let words = [&SMALL[..], &ARMS].concat();
    let mut words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    words.extend(["--model".into(), model.clone(), "--out".into(), out.clone()]);
    words.extend(["--report".into(), report.clone()]);
    let run = program().args(&words).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(fs::read_to_string(&report).unwrap().contains("run-\u{fffd}.jsonl"), "the command");

    let records = [OsStr::new("--records"), &out, OsStr::new("--report"), &report];
    let model = [OsStr::new("--model"), &model];
    let run = program().args(records).args(model).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
