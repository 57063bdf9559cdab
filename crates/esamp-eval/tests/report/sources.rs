//! The records that a report uses, their provenance, and the novelty section.

use super::*;

#[test]
fn only_problems_and_seeds_that_every_arm_has_run_count() {
    let (_guard, path) = folder();
    let mut run = run_of(&[task("texts", false)], 3);
    // Without the last record, the other five records of its problem and seed are not used either.
    let last = run.records.pop().unwrap();
    assert_eq!((last.problem, last.seed), (2, 1));
    let results = Results::gather(vec![run]).unwrap();
    let text = written(&results, &path);
    assert!(
        text.contains("3 problems, 5 runs of them with several seeds under every arm"),
        "{text}"
    );
    assert!(text.contains("5 records are left out"), "{text}");

    let mut run = run_of(&[task("texts", false)], 2);
    run.records.retain(|record| record.problem == 0 || record.arm != "orthogonal-1");
    let message = error(Results::gather(vec![run]));
    let expected = "texts: expected at least 2 problems that all arms have met, got 1";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn only_files_of_one_experiment_are_combined() {
    let (texts, answers) = (task("texts", false), task("answers", true));
    let [one, two] = [&texts, &answers].map(|task| run_of(std::slice::from_ref(task), 2));
    let results = Results::gather(vec![one.clone(), two]).unwrap();
    let names: Vec<&str> = results.tasks.iter().map(|task| task.task.name.as_str()).collect();
    assert_eq!(names, ["texts", "answers"]);
    assert_eq!(results.commits, ["0123abcd"]);

    let message = error(Results::gather(vec![one.clone(), one.clone()]));
    let twice = "expected each task and arm in one file, got texts under min-p-0.5 twice";
    assert!(message.contains(twice), "{message}");
    let both = run_of(&[texts, answers.clone()], 2);
    let message = error(Results::gather(vec![one.clone(), both]));
    assert!(message.contains("expected each task in one file, got texts twice"), "{message}");
    let mut other = run_of(&[answers], 2);
    other.header.samples = 5;
    let message = error(Results::gather(vec![one, other]));
    assert!(message.contains("expected files of one experiment, got samples 4 and 5"), "{message}");
    assert!(error(Results::gather(Vec::new())).contains("expected a file, got none"));
}

/// Some arms in one file and some in another are as all of them in one.
#[test]
fn arms_can_be_in_files_of_their_own() {
    let whole = run_of(&[task("texts", false)], 3);
    let part = |first: bool| {
        let mut part = whole.clone();
        let is_old = |name: &str| name == "old";
        part.header.arms.retain(|arm| is_old(&arm.name) != first);
        part.records.retain(|record| is_old(&record.arm) != first);
        part
    };
    let text = |runs: Vec<Run>| {
        let (_guard, path) = folder();
        written(&Results::gather(runs).unwrap(), &path)
    };
    let mut later = part(false);
    assert_eq!((part(true).header.arms.len(), later.header.arms.len()), (5, 1));
    assert_eq!(text(vec![part(true), later.clone()]), text(vec![whole.clone()]));
    later.header.commit = "4567cdef".into();
    let both = text(vec![part(true), later.clone()]);
    assert!(both.contains("| commit of the records | 0123abcd, 4567cdef |"), "{both}");

    later.header.samples = 5;
    let message = error(Results::gather(vec![part(true), later]));
    assert!(message.contains("expected files of one experiment, got samples 4 and 5"), "{message}");
    let message = error(Results::gather(vec![part(true), whole]));
    let twice = "expected each task and arm in one file, got texts under min-p-0.5 twice";
    assert!(message.contains(twice), "{message}");
}

#[test]
fn the_report_states_its_provenance() {
    let (_guard, path) = folder();
    let results = Results::gather(vec![run_of(&[task("texts", false)], 2)]).unwrap();
    let text = written(&results, &path);
    for part in [
        "| commit of the records | 0123abcd |",
        "| seeds | 0, 1 |",
        "| machine | a machine |",
        "| run time | 2 min in 1 session |",
        "| embeddings | letters |",
        "| intervals | 95 %, expanded percentile bootstrap over problems, 10000 resamples |",
        "cargo run --release --bin evaluate -- --out 'a file'\n",
        "cargo run --release --bin evaluate -- --report report.md\n",
    ] {
        assert!(text.contains(part), "expected {part:?} in {text}");
    }
}

#[test]
fn compressed_records_are_read_like_others() {
    let (_guard, path) = folder();
    let run = run_of(&[task("texts", false)], 2);
    let mut lines = vec![Line::Header(Box::new(run.header.clone()))];
    lines.extend(run.records.iter().map(|record| Line::Problem(Box::new(record.clone()))));
    let lines: Vec<String> =
        lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
    let text = lines.join("\n") + "\n";
    let (plain, packed) = (path.join("run.jsonl"), path.join("run.jsonl.gz"));
    fs::write(&plain, &text).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(
        fs::File::create(&packed).unwrap(),
        flate2::Compression::best(),
    );
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
    assert_eq!(Run::read(&plain).unwrap(), run);
    assert_eq!(Run::read(&packed).unwrap(), run);
}

#[test]
fn correlates_of_novelty_are_in_a_section_and_in_the_summary() {
    let (_guard, path) = folder();
    let mut run = run_of(&[task("texts", false)], 4);
    run.header.token_arm = Some("orthogonal-1".into());
    for record in run.records.iter_mut().filter(|record| record.arm == "orthogonal-1") {
        let token = |place: usize| {
            let surprisal = (100 * record.problem + 10 * record.seed as usize + place) as f64;
            TokenRecord {
                completion: place % SAMPLES,
                position: (place * 7 % 5) as u64,
                token: 97 + (place * 3 % 4) as u32,
                // The error orders tokens as their surprisal does, and so does its square.
                novelty: surprisal.powi(2),
                relative_novelty: surprisal,
                surprisal,
                reference_entropy: ((place * 5 + record.problem) % 7) as f64,
            }
        };
        record.token_sample = (0..6).map(token).collect();
    }
    let results = Results::gather(vec![run]).unwrap();
    let text = written(&results, &path);
    assert!(text.contains("## Is it novelty? (texts)\n"), "{text}");
    assert!(text.contains("over 48 tokens of orthogonal-1 in 4 problems"), "{text}");
    for of in ["novelty", "relative novelty"] {
        let row =
            format!("| {of} | surprisal | **+1.00 [+1.00, +1.00]** | **+1.00 [+1.00, +1.00]** |");
        assert!(text.contains(&row), "{text}");
    }
    assert!(text.contains("The completions are too short for the semantic question"), "{text}");
    let line = text.lines().take(20).find(|line| line.contains("**Is it novelty?**")).unwrap();
    assert!(
        line.contains("rank correlations with surprisal **+1.00 [+1.00, +1.00]**, entropy "),
        "{line}"
    );
    assert!(fs::read_to_string(path.join("report/texts-novelty.svg")).unwrap().starts_with("<svg"));
}
