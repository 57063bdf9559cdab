//! `--plan`: the budgets, and parts that are resumed.

use super::*;

fn plan(out: &str, args: &[&str]) -> Output {
    evaluate(&[&["--plan", "round-2", "--out", out][..], args].concat())
}

#[test]
fn a_dry_run_prints_budgets_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("round-2");
    let output = plan(out.to_str().unwrap(), &["--dry-run"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // 100 problems × 64 samples × 40 tokens × 10 arms, at 600 tokens a second.
    let line = text.lines().find(|line| line.starts_with("sentences-64 ")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(fields[1..], ["100", "64", "10", "2560", "71.1", "0", "of", "1000"]);
    assert!(text.lines().last().unwrap().contains("million tokens at most"), "{text}");
    assert!(!out.exists());
}

#[test]
fn a_part_is_run_and_its_records_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let part = ["--quick", "--parts", "sibling-even-dev"];
    for new in [4, 0] {
        let output = plan(out, &part);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.starts_with("4 of 4 records in "), "{text}");
        assert!(text.contains(&format!("{new} of them new")), "{text}");
    }
    let run = Run::read(&folder.path().join("sibling-even-dev.jsonl")).unwrap();
    assert_eq!(
        (run.header.samples, run.header.wave, run.header.split),
        (128, Some(64), Split::Dev)
    );
    let records = folder.path().join("sibling-even-dev.jsonl");
    let report = folder.path().join("report.md");
    let flags = ["--records", records.to_str().unwrap(), "--report", report.to_str().unwrap()];
    let output = evaluate(&flags);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&report).unwrap();
    assert!(text.contains("\n## sibling-even\n"), "{text}");
    assert!(folder.path().join("report/sibling-even-coverage.svg").exists());
    let output = plan(out, &[&part[..], &["--dry-run"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.ends_with("4 of 4")), "{text}");
}
