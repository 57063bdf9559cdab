//! Shards, from their environment to the report on all of them.

use std::path::Path;

use super::*;

const PLAN: [&str; 4] = ["--tasks", "products,stories", "--arms", "min-p-1,esamp-0.5-shared"];
const SIZE: [&str; 10] =
    ["--problems", "5", "--samples", "2", "--seeds", "2", "--tokens", "6", "--batch", "2"];

/// Runs the program in a folder that has the model, as a job array with these variables would.
fn in_array(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut program = program();
    program.current_dir(folder).envs(variables.iter().copied());
    program.args(args).output().unwrap()
}

fn plan(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Output {
    in_array(folder, variables, &[&["--model", "model"], &PLAN[..], &SIZE, args].concat())
}

fn succeeds(output: Output) -> String {
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{message}");
    String::from_utf8(output.stdout).unwrap() + &message
}

fn usage(output: Output) -> String {
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    message.lines().next().unwrap().to_owned()
}

/// The three shards of a plan, run by a flag, a Slurm array that begins with 7, and an Indexed Job.
fn run_three(folder: &Path) {
    let said = succeeds(plan(folder, &[], &["--shard", "1/3", "--out", "1.jsonl"]));
    assert!(said.starts_with("shard 1/3: "), "{said}");
    assert!(!said.contains("note: shard"), "{said}");
    let slurm = [
        ("SLURM_ARRAY_TASK_ID", "8"),
        ("SLURM_ARRAY_TASK_COUNT", "3"),
        ("SLURM_ARRAY_TASK_MIN", "7"),
        ("SLURM_ARRAY_TASK_MAX", "9"),
        ("SLURM_ARRAY_TASK_STEP", "1"),
    ];
    let said = succeeds(plan(folder, &slurm, &["--out", "2.jsonl"]));
    assert!(
        said.contains("note: shard 2/3 of the plan, because SLURM_ARRAY_TASK_ID is set"),
        "{said}"
    );
    let indexed = [("JOB_COMPLETION_INDEX", "2")];
    succeeds(plan(folder, &indexed, &["--shard-count", "3", "--out", "3.jsonl"]));
}

#[test]
fn merged_shards_give_the_records_and_the_report_of_the_whole_plan() {
    let [whole, parts] = [Bench::new(), Bench::new()];
    let (whole, parts) = (whole.folder.path(), parts.folder.path());
    succeeds(plan(whole, &[], &["--out", "all.jsonl"]));
    run_three(parts);
    // Merging does not depend on the environment.
    let slurm = [("SLURM_ARRAY_TASK_ID", "8")];
    let said = succeeds(in_array(
        parts,
        &slurm,
        &["merge", "3.jsonl", "1.jsonl", "2.jsonl", "--out", "all.jsonl"],
    ));
    assert_eq!(said, "40 records of 3 shards in all.jsonl\n");
    assert!(
        fs::read(whole.join("all.jsonl")).unwrap() == fs::read(parts.join("all.jsonl")).unwrap()
    );

    // Where and when they ran, and so the last section of a report, is what shards and the whole plan do not share.
    let report = ["--model", "model", "--records", "all.jsonl", "--report", "report.md"];
    let text = |folder: &Path| {
        succeeds(in_array(folder, &slurm, &report));
        fs::read_to_string(folder.join("report.md")).unwrap()
    };
    let [one, other] = [whole, parts].map(text);
    let figures = |text: &str| text.split_once("\n## Where it comes from\n").unwrap().0.to_owned();
    assert_eq!(figures(&one), figures(&other));
    assert!(other.contains(" min in 3 sessions |"), "{other}");
    for command in [
        "--shard 1/3 --out 1.jsonl\n",
        "--out 2.jsonl --shard 2/3\n",
        "--shard-count 3 --out 3.jsonl --shard 3/3\n",
    ] {
        assert!(other.contains(command), "{other}");
    }
    // Without sessions it is the same report, byte for byte.
    let text = |folder: &Path| {
        fs::remove_file(folder.join("all.jsonl.sessions")).unwrap();
        text(folder)
    };
    let [one, other] = [whole, parts].map(text);
    assert_eq!(one, other);
    for figure in ["products-pass-at-k.svg", "products-pareto.svg", "stories-pareto.svg"] {
        let read = |folder: &Path| fs::read(folder.join("report").join(figure)).unwrap();
        assert!(read(whole) == read(parts), "{figure}");
    }

    // A command that was recorded gives the same shard outside its array.
    let bytes = fs::read(parts.join("3.jsonl")).unwrap();
    let again = ["--shard-count", "3", "--out", "again.jsonl", "--shard", "3/3"];
    succeeds(plan(parts, &[], &again));
    assert!(fs::read(parts.join("again.jsonl")).unwrap() == bytes);
}

#[test]
fn shards_that_cannot_be_meant_are_refused() {
    let bench = Bench::new();
    let folder = bench.folder.path();
    let indexed = [("JOB_COMPLETION_INDEX", "2")];
    for (variables, args, wording) in [
        (
            &indexed[..],
            &["--shard", "1/3"][..],
            "error: --shard: expected 3/3 as in JOB_COMPLETION_INDEX, got 1/3",
        ),
        (
            &indexed,
            &[],
            "error: JOB_COMPLETION_INDEX: expected the number of shards in --shard-count, got none",
        ),
        (
            &[],
            &["--shard", "1/3", "--report", "r.md"],
            "error: --report: expected a run of the whole plan, got shard 1/3",
        ),
    ] {
        assert_eq!(usage(plan(folder, variables, args)), wording);
    }
    for (args, wording) in [
        (
            &["--shard", "0/3"][..],
            "error: invalid value '0/3' for '--shard <I/N>': expected I/N with I from 1 to N",
        ),
        (&["--shard-count", "0"], "error: invalid value '0' for '--shard-count <N>': "),
        (
            &["--shard", "1/3", "--list"],
            "error: the argument '--shard <I/N>' cannot be used with '--list'",
        ),
        (
            &["--shard", "1/3", "merge", "1.jsonl", "--out", "x"],
            "error: the subcommand 'merge' cannot be used with '--shard <I/N>'",
        ),
        (&["merge", "--out", "x"], "error: the following required arguments were not provided:"),
        (
            &["merge", "1.jsonl", "--out", "1.jsonl"],
            "error: --out 1.jsonl: expected a file of its own, got that of a shard",
        ),
    ] {
        let got = usage(in_array(folder, &[], args));
        assert!(got.starts_with(wording), "{got}");
    }
    assert!(!folder.join("evaluate.jsonl").exists());

    run_three(folder);
    let report = ["--model", "model", "--records", "1.jsonl", "--report", "report.md"];
    let wording = "error: 1.jsonl: expected the records of a whole plan, got shard 1/3";
    assert_eq!(usage(in_array(folder, &[], &report)), wording);
    let output = in_array(folder, &[], &["merge", "1.jsonl", "3.jsonl", "--out", "all.jsonl"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let wording = "error: expected all shards from 1/3 to 3/3, got no file of 2/3\nnext step: ";
    assert!(message.starts_with(wording), "{message}");
    assert!(!folder.join("all.jsonl").exists());
}
