//! The report on tallies, from tallies with known figures.

use std::{fs, path::Path};

use esamp::Counters;
use esamp_eval::{
    known::tasks,
    record::{Run, Session, Tally, Totals},
    report::{Origin, tallies},
    tally::WaveRecord,
};

use super::*;

const WAVE: usize = 4;
const SAMPLES: usize = 16;
const PROBLEMS: usize = 12;
/// Arms with what a problem's completions are: 16 letters, and how often answers were given. Every other problem has
/// the second one.
type Arm = (&'static str, [(&'static str, &'static [[u64; 2]]); 2], [f64; 2]);
const ARMS: [Arm; 6] = [
    // 8 and 10 of 16 are right, of which 4 are different.
    (
        "plain-1",
        [("NxNxnxnxTxTxtxtx", &[[2, 4]]), ("NNTTnnttnnxxxxxx", &[[2, 2], [3, 2]])],
        [0.0; 2],
    ),
    // More different ones, but fewer right ones than any method.
    ("plain-1.3", [("NNNNNNxxxxxxxxxx", &[[1, 6]]), ("NNNNNNxxxxxxxxxx", &[[1, 6]])], [0.0; 2]),
    (
        "esamp-0.5-open",
        [("NxNxTxTxNNNNxxxx", &[[1, 8]]), ("NNNNTTTTxxxxxxxx", &[[1, 8]])],
        [1.0, 0.5],
    ),
    (
        "orthogonal-1-open",
        [("NxNxTxTxNNnnxxxx", &[[1, 4], [2, 2]]), ("NNNNTTttxxxxxxxx", &[[1, 4], [2, 2]])],
        [1.0, 0.5],
    ),
    (
        "frozen-0.5-open",
        [("NxNxTxTxnnttxxxx", &[[2, 4]]), ("NNTTnnttxxxxxxxx", &[[2, 4]])],
        [1.0; 2],
    ),
    (
        "elliptical-orthogonal-1-open",
        [("NxNxTxTxNNnnxxxx", &[[1, 4], [2, 2]]), ("NNNNTTttxxxxxxxx", &[[1, 4], [2, 2]])],
        [1.0; 2],
    ),
];

fn record(arm: &Arm, problem: usize) -> ProblemRecord {
    let (name, tallies, error) = arm;
    let (letters, repeats) = tallies[problem % 2];
    let waves = SAMPLES / WAVE;
    let wave = |at: usize| WaveRecord {
        tokens: 8,
        mean_log_prob: -1.0,
        mean_entropy: 1.0,
        mean_kl: 0.0,
        mean_relative_novelty: (error[0] > 0.0)
            .then(|| error[0] + (error[1] - error[0]) * at as f64 / (waves - 1) as f64),
    };
    ProblemRecord {
        task: "circle".into(),
        problem,
        arm: (*name).into(),
        seed: 0,
        prompt: format!("problem {problem}"),
        prompt_tokens: 5,
        expected: None,
        solutions: Some(201_600),
        completions: Vec::new(),
        tally: Some(Tally {
            letters: letters.into(),
            repeats: repeats.to_vec(),
            waves: (0..waves).map(wave).collect(),
            tokens_sha256: format!("{problem}"),
        }),
        totals: Totals { tokens: 32, ..Totals::default() },
        batch_counters: Counters::default(),
        token_sample: Vec::new(),
    }
}

fn run(model: &str, split: Split, problems: usize, arms: &[Arm]) -> Run {
    let circle = tasks().into_iter().find(|task| task.name() == "circle").unwrap();
    let names: Vec<&str> = arms.iter().map(|arm| arm.0).collect();
    let header = header(&*circle, &names.join(","), SAMPLES, WAVE);
    let model = ModelRecord { name: model.into(), sha256: "77".into(), ..header.model.clone() };
    let header = Header { model, split, problems, ..header };
    let all = (0..problems).flat_map(|problem| arms.iter().map(move |arm| record(arm, problem)));
    let run = Run { header, records: all.collect() };
    for record in &run.records {
        assert_eq!(record.tally.as_ref().unwrap().check(SAMPLES, WAVE), Ok(()), "{}", record.arm);
    }
    run
}

fn both() -> Vec<Run> {
    let model = "circle-peaked";
    vec![run(model, Split::Dev, 4, &ARMS), run(model, Split::HeldOut, PROBLEMS, &ARMS)]
}

fn written(runs: Vec<Run>, to: &Path) -> Result<String, Failure> {
    let mut origin =
        Origin { command: vec!["evaluate".into(), "--report".into()], ..Origin::default() };
    origin.sessions.sessions.push(Session {
        command: ["evaluate", "--plan", "round-2"].map(str::to_owned).to_vec(),
        started: 0,
        seconds: 120.0,
        records: [0, 1],
        planned: 1,
        machine: "a machine".into(),
    });
    tallies::write(runs, &origin, to)?;
    Ok(fs::read_to_string(to).unwrap())
}

/// The report of runs, in a folder that is gone afterwards.
fn report(runs: Vec<Run>) -> String {
    let folder = tempfile::tempdir().unwrap();
    written(runs, &folder.path().join("report.md")).unwrap()
}

fn row<'t>(text: &'t str, start: &str) -> Vec<&'t str> {
    let line = text.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no line {start} in {text}"));
    line.trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn levels_are_those_of_the_tallies() {
    let text = report(both());
    let text = &text[text.find("\n## circle-peaked").unwrap()..];
    // Right: 8 and 10 of 16. Different: 4 of 16, of which 2 are new. Tokens: 32 for 2 new ones.
    // Effective: 4 of equal shares, and two of 2/10 and two of 3/10.
    let uneven = -(2.0 * 0.2 * 0.2f64.ln() + 2.0 * 0.3 * 0.3f64.ln());
    let effective = format!("{:.1}", f64::midpoint(4.0, uneven.exp()));
    assert_eq!(
        row(text, "| plain-1 |"),
        ["plain-1", "0.562", "0.250", "0.125", "0.250", &effective, "16.0"]
    );
    assert_eq!(row(text, "| esamp-0.5-open |")[1..4], ["0.500", "0.500", "0.312"]);
    assert_eq!(row(text, "| *the coupon collector's line* |")[2], "0.250");
    assert!(
        text.contains("12 problems, 12 runs of them under each of 6 arms, held-out half"),
        "{text}"
    );
}

#[test]
fn an_arm_is_compared_with_the_best_of_the_frontier_that_is_as_valid() {
    let text = report(both());
    let minus = text.find("Minus the best of the frontier").unwrap();
    let found = row(&text[minus..], "| esamp-0.5-open |");
    // plain-1.3 covers 6/16, but is less valid than 8/16.
    assert_eq!(found[1], "plain-1");
    assert_eq!(found[3], "**+0.250 [+0.250, +0.250]**");
    // If no arm is as valid, that is said, and the most valid one is taken.
    let only = [ARMS[1], ARMS[2]];
    let text = report(vec![run("circle-even", Split::Dev, PROBLEMS, &only)]);
    let minus = text.find("Minus the best of the frontier").unwrap();
    assert_eq!(row(&text[minus..], "| esamp-0.5-open |")[1], "plain-1.3 (none is as valid)");
    assert!(text.contains("development half"), "{text}");
}

/// The choice is made on the development half, even where the held-out half says otherwise.
#[test]
fn the_frontier_is_chosen_on_the_development_half() {
    let mut runs = both();
    // On the development half, plain-1.3 is as valid and covers more.
    for record in &mut runs[0].records {
        if record.arm == "plain-1.3" {
            let tally = record.tally.as_mut().unwrap();
            (tally.letters, tally.repeats) = ("NNNNNNNNNxxxxxxx".into(), vec![[1, 9]]);
        }
    }
    let text = report(runs);
    let line = row(&text, "| P1 | circle-peaked |");
    assert_eq!(line[3], "plain-1.3");
    // 8/16 − 6/16.
    assert_eq!(line[4], "**+0.125 [+0.125, +0.125]**");
    let text = report(both().split_off(1));
    assert_eq!(row(&text, "| P1 | circle-peaked |")[3], "plain-1, chosen on the same problems");
}

#[test]
fn primary_comparisons_have_an_outcome() {
    let outcomes = |runs: Vec<Run>| {
        let text = report(runs);
        ["P1", "P2", "P3", "P4"]
            .map(|name| row(&text, &format!("| {name} | circle-peaked |"))[6].to_owned())
    };
    assert_eq!(outcomes(both()), [(); 4].map(|()| "not run yet: sibling-peaked".to_owned()));
    let with = |sibling: &[Arm], problems: usize| {
        // The task's name is that of the other; only the model's counts.
        let mut runs = both();
        runs.push(run("sibling-peaked-circle", Split::HeldOut, problems, sibling));
        runs[2].header.model.name = "sibling-peaked".into();
        runs[2].header.tasks[0].name = "sibling".into();
        runs[2].records.iter_mut().for_each(|record| record.task = "sibling".into());
        runs
    };
    // ESamp finds 8 and the others 6 of 16; plain-1 and the frozen distiller find 4.
    let expected =
        ["as expected on both", "as expected on both", "as expected on both", "not refuted"];
    assert_eq!(outcomes(with(&ARMS, PROBLEMS)), expected);
    let few = "too few problems: sibling-peaked";
    assert_eq!(outcomes(with(&ARMS, 4)), [few; 4]);
    // The same completions under every arm but the directions without gradients, which cover less.
    let mut same = ARMS;
    for arm in [2, 3, 4] {
        same[arm].1 = ARMS[0].1;
    }
    same[5].1 = [("Nnnnxxxxxxxxxxxx", &[[4, 1]]); 2];
    let on_circle = "as expected on circle-peaked only";
    assert_eq!(
        outcomes(with(&same, PROBLEMS)),
        [on_circle, on_circle, on_circle, "not refuted: more on sibling-peaked only"]
    );
}

#[test]
fn waves_are_compared_with_the_first() {
    let text = report(both());
    let waves = &text[text.find("The first wave and the last").unwrap()..];
    // Wave 4 of plain-1 has two right completions, both repetitions, in one half of the problems, none in the other:
    // there no share exists.
    assert_eq!(row(waves, "| plain-1 |")[1..4], ["0.000", "–", "–"]);
    assert_eq!(
        row(waves, "| esamp-0.5-open |")[4..],
        ["1.000", "0.500", "**−0.500 [−0.500, −0.500]**"]
    );
    assert_eq!(row(waves, "| frozen-0.5-open |")[4..], ["1.000", "1.000", "0.000 [0.000, 0.000]"]);
}

#[test]
fn a_report_is_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("report.md");
    let all = || {
        let text = written(both(), &to).unwrap();
        let mut figures: Vec<_> = fs::read_dir(folder.path().join("report"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        figures.sort();
        let bytes: Vec<Vec<u8>> = figures.iter().map(|file| fs::read(file).unwrap()).collect();
        let names: Vec<_> = figures
            .iter()
            .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        (text, names, bytes)
    };
    let first = all();
    assert_eq!(first, all());
    let figures = ["coverage", "error", "repetitions", "validity"];
    // No arm has right completions in every wave: there is no curve of repetitions.
    let drawn: Vec<String> = figures
        .iter()
        .filter(|figure| **figure != "repetitions")
        .map(|figure| format!("circle-peaked-{figure}.svg"))
        .collect();
    assert_eq!(first.1, drawn);
    assert!(drawn.iter().all(|name| first.0.contains(&format!("(report/{name})"))));
    assert!(first.0.contains("2 min in 1 session on a machine"), "{}", first.0);
}

/// One problem, as `--quick` runs it, has levels but no intervals.
#[test]
fn one_problem_has_no_intervals() {
    let text = report(vec![run("circle-peaked", Split::HeldOut, 1, &ARMS)]);
    assert_eq!(row(&text, "| esamp-0.5-open |").len(), 2, "the list of arms");
    assert!(text.contains("\n| esamp-0.5-open | 0.500 | 0.500 |"), "{text}");
    assert!(!text.contains("Minus"), "{text}");
}

#[test]
fn runs_that_do_not_belong_together_are_refused() {
    let error = |runs: Vec<Run>| {
        let folder = tempfile::tempdir().unwrap();
        written(runs, &folder.path().join("report.md")).unwrap_err().to_string()
    };
    let dev = || run("circle-even", Split::Dev, 2, &ARMS);
    let twice = error(vec![dev(), dev()]);
    assert!(twice.contains("expected each half once, got Dev of circle-even twice"), "{twice}");
    let mut texts = dev();
    texts.header.wave = None;
    let mixed = error(vec![dev(), texts]);
    assert!(
        mixed.contains("expected either records with texts or those of waves, got both"),
        "{mixed}"
    );
    let mut other = run("circle-even", Split::HeldOut, 2, &ARMS);
    other.header.model.sha256 = "78".into();
    let models = error(vec![dev(), other]);
    assert!(
        models.contains(
            "expected halves of one experiment, got 16 completions in waves of 4 by 77 and 16 completions in waves of 4 by 78"
        ),
        "{models}"
    );
    let mut empty = dev();
    empty.records.clear();
    let none = error(vec![empty]);
    assert!(
        none.contains("circle-even: expected a problem that all arms have met, got none"),
        "{none}"
    );
}

#[test]
fn records_that_some_arm_lacks_are_left_out() {
    let mut unfinished = run("circle-peaked", Split::HeldOut, 3, &ARMS);
    unfinished.records.pop();
    let text = report(vec![unfinished]);
    assert!(text.contains("2 problems, 2 runs of them"), "{text}");
    assert!(text.contains(" 5 records are left out"), "{text}");
}
