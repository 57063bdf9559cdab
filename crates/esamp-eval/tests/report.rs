//! The report of `evaluate`, on records whose numbers are known.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use esamp::{Counters, SamplerConfig, Sampling, TokenId};
use esamp_eval::{
    metrics::{mean_interval, pass_at_k},
    record::{
        ArmRecord, CompletionRecord, ErrorName, FORMAT_VERSION, Header, Line, ModelRecord,
        ProblemRecord, Role, Run, Session, Split, TaskRecord, TokenRecord, Totals,
    },
    report::{
        self, Origin,
        compare::{At, Opponents, bootstrap, gain},
        gather::Results,
        measures::Measure,
    },
};
use esamp_programs::failure::Failure;

const SAMPLES: usize = 4;
/// An arm: name, role, temperature, texts of a problem, surprisal and entropy of a token, right completions.
type Arm = (&'static str, Role, f32, [&'static str; SAMPLES], f64, f64, usize);
/// The frontier's Vendi score is its surprisal: 1 at 1, 2 at 2 and 4 at 4. The method has 4 at 2.
const ARMS: [Arm; 6] = [
    ("min-p-0.5", Role::Frontier, 0.5, ["a", "a", "a", "a"], 1.0, 1.0, 1),
    ("min-p-1", Role::Frontier, 1.0, ["a", "a", "b", "b"], 2.0, 2.0, 2),
    ("min-p-2", Role::Frontier, 2.0, ["a", "b", "c", "d"], 4.0, 3.0, 0),
    ("orthogonal-1", Role::Method, 1.0, ["a", "b", "c", "d"], 2.0, 0.5, 3),
    ("matched-orthogonal-1", Role::Control, 1.0, ["a", "a", "b", "b"], 3.0, 2.5, 2),
    // As far above the line as the method is, less a half: at 2.5 the line has 2.5.
    ("old", Role::Baseline, 1.0, ["a", "b", "c", "d"], 2.5, 1.5, 2),
];

/// Different letters are at right angles: the Vendi score of texts in equal shares is their number.
fn embed(texts: &[String]) -> Result<Vec<Vec<f64>>, Failure> {
    let axis = |text: &String| usize::from(text.as_bytes()[0] - b'a');
    let point = |text| (0..4).map(|at| f64::from(u8::from(at == axis(text)))).collect();
    Ok(texts.iter().map(point).collect())
}

fn header(problems: usize, tasks: Vec<TaskRecord>) -> Header {
    let arm = |&(name, role, temperature, ..): &Arm| ArmRecord {
        name: name.into(),
        what: format!("what {name} is"),
        role,
        sampling: Sampling::default().with_min_p(0.05).with_temperature(temperature).into(),
        sampler: SamplerConfig::paper(),
        prompt_warm_up: 0,
        error: ErrorName::Own,
    };
    Header {
        format_version: FORMAT_VERSION,
        crate_version: "0.0.0".into(),
        commit: "0123abcd".into(),
        model: ModelRecord {
            name: "tiny".into(),
            sha256: "77".into(),
            d_model: 8,
            vocab: 64,
            device: "flex".into(),
        },
        split: Split::HeldOut,
        problems,
        samples: SAMPLES,
        seeds: 2,
        tokens: 2,
        batch: 1,
        tasks,
        arms: ARMS.iter().map(arm).collect(),
        token_arm: None,
    }
}

fn task(name: &str, verifiable: bool) -> TaskRecord {
    TaskRecord {
        name: name.into(),
        what: format!("the task {name}"),
        verifiable,
        many_modes: verifiable,
        tokens: 2,
    }
}

fn record(task: &TaskRecord, problem: usize, arm: &Arm, seed: u64) -> ProblemRecord {
    let &(name, _, _, texts, surprisal, entropy, right) = arm;
    let completion = |(at, text): (usize, &str)| {
        let correct = task.verifiable.then_some(at < right);
        let letter = u32::from(text.as_bytes()[0]);
        CompletionRecord {
            text: text.into(),
            tokens: vec![letter, letter],
            finish: if at == 0 { "max_new_tokens" } else { "stop_token" }.into(),
            correct,
            answer: None,
            mode: (correct == Some(true)).then(|| text.to_owned()),
            log_prob_sum: -2.0 * surprisal,
            sampling_log_prob_sum: -2.0,
            mean_entropy: entropy,
            mean_reference_entropy: 1.0,
            mean_kl: 0.125,
            mean_candidates: 3.0,
            mean_novelty: None,
            mean_relative_novelty: None,
            mean_slope: None,
            mean_sharpening: None,
        }
    };
    ProblemRecord {
        task: task.name.clone(),
        problem,
        arm: name.into(),
        seed,
        prompt: format!("problem {problem}"),
        prompt_tokens: 3,
        expected: None,
        solutions: None,
        completions: texts.into_iter().enumerate().map(completion).collect(),
        totals: Totals { tokens: 8, steered: 8, interventions: 2, not_finite: 0, candidates: 24 },
        batch_counters: Counters::default(),
        token_sample: Vec::new(),
    }
}

/// A run in which every arm has met every problem with every seed.
fn run_of(tasks: &[TaskRecord], problems: usize) -> Run {
    let header = header(problems, tasks.to_vec());
    let mut records = Vec::new();
    for seed in 0..header.seeds {
        for problem in 0..problems {
            for task in tasks {
                records.extend(ARMS.iter().map(|arm| record(task, problem, arm, seed)));
            }
        }
    }
    Run { header, records }
}

fn written(results: &Results, folder: &Path) -> String {
    let to = folder.join("report.md");
    let origin = Origin {
        sessions: vec![Session {
            command: ["evaluate", "--out", "a file"].map(str::to_owned).to_vec(),
            started: 0,
            seconds: 120.0,
            records: [0, 1],
            planned: 1,
            machine: "a machine".into(),
        }],
        command: ["evaluate", "--report", "report.md"].map(str::to_owned).to_vec(),
        embedder: "letters".into(),
    };
    let letters = |tokens: &[TokenId]| {
        Ok(tokens.iter().filter_map(|&token| char::from_u32(token)).collect::<String>())
    };
    report::write(results, &origin, &letters, &mut embed, &to).unwrap();
    fs::read_to_string(to).unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

fn error<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn gains_at_equal_perplexity_are_read_off_the_frontier() {
    let (_guard, path) = folder();
    let results = Results::gather(vec![run_of(&[task("texts", false)], 12)]).unwrap();
    let text = written(&results, &path);
    // Every problem is the same, so is every resample: intervals have no width. The line is at 2 where the surprisal is 2,
    // and at 3 where it is 3; the entropy 0.5 lies before its beginning, and between 2 and 3 it rises from 2 to 4. The best
    // temperature has 4.
    for row in [
        "| orthogonal-1 | 4.00 | **+2.00 [+2.00, +2.00]** | **+2.00 [+2.00, +2.00]** | – | 0.00 [0.00, 0.00] |",
        "| matched-orthogonal-1 | 2.00 | 0.00 [0.00, 0.00] | **−1.00 [−1.00, −1.00]** | **−1.00 [−1.00, −1.00]** | \
         **−2.00 [−2.00, −2.00]** |",
        "| min-p-1 | 2.00 | – | – | – | – |",
        "| min-p-0.5 | 1.00 | **−1.00 [−1.00, −1.00]** | – | – | – |",
        // Two above the line beside one below it, and beside one and a half above it.
        "| orthogonal-1 | matched-orthogonal-1 | **+3.00 [+3.00, +3.00]** |",
        "| orthogonal-1 | old | **+0.50 [+0.50, +0.50]** |",
        "| orthogonal-1 | what orthogonal-1 is | 1 | min-p 0.05 | 0.25 | method |",
        // Two tokens of eight, in every problem.
        "| orthogonal-1 | 25.0 % | 0.125 | 1.000 | 0.500 | – | – | – |",
    ] {
        assert!(text.lines().any(|line| line == row), "expected {row:?} in\n{text}");
    }
    let levels = "| arm | Vendi | cosine | adjusted distinct-2 | self-BLEU | perplexity | entropy | tokens | cut |";
    assert!(text.contains(levels), "{text}");
    let pairs = text.matches("than its control or a baseline does, in ").count();
    assert_eq!(pairs, 2, "Vendi, and words besides: {text}");
    // Of self-BLEU less is better: the hottest arm is the best one, and has said the same as the method.
    let (_, bleu) = text.split_once("| arm | self-BLEU | beside").unwrap();
    let row = bleu.lines().find(|line| line.starts_with("| orthogonal-1 |")).unwrap();
    assert!(row.ends_with("| – | 0.000 [0.000, 0.000] |"), "{row}");
    // A cosine of 1 in two pairs of six, and e².
    let level = text.lines().find(|line| line.starts_with("| min-p-1 | 2.00 | 0.333 |")).unwrap();
    assert!(level.ends_with("| 7.39 | 2.000 | 2.0 | 25 % |"), "{level}");
}

#[test]
fn intervals_are_paired_and_over_problems() {
    // By problem: the base has 1 to 6, the method twice as much and one more: the differences are 2 to 7.
    let (_guard, path) = folder();
    let mut run = run_of(&[task("texts", false)], 12);
    for record in &mut run.records {
        let size = (record.problem % 6 + 1) as f64;
        let entropy = match record.arm.as_str() {
            "orthogonal-1" => 2.0 * size + 1.0,
            _ => size,
        };
        // A seed adds or takes away as much: its mean is what counts.
        let entropy = entropy + [0.5, -0.5][record.seed as usize];
        record.completions.iter_mut().for_each(|one| one.log_prob_sum = -2.0 * entropy);
    }
    let results = Results::gather(vec![run]).unwrap();
    let task = report::Task::of(&results, &results.tasks[0], &mut embed).unwrap();
    let (method, base) = (3, 1);
    let opponents = Opponents { base, frontier: Vec::new() };
    let found =
        gain(&task.scores, method, Measure::Surprisal, At::Base, &opponents).unwrap().unwrap();
    let difference: Vec<f64> = (0..12).map(|problem| (problem % 6 + 2) as f64).collect();
    let expected = mean_interval(&difference, &bootstrap(12)).unwrap();
    assert_eq!(found.problems, 12);
    for (found, expected) in [
        (found.interval.estimate, 4.5),
        (found.interval.estimate, expected.estimate),
        (found.interval.low, expected.low),
        (found.interval.high, expected.high),
    ] {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
    drop(path);
}

#[test]
fn the_first_ten_lines_say_what_was_found() {
    let (_guard, path) = folder();
    let tasks = [task("texts", false), task("answers", true)];
    let results = Results::gather(vec![run_of(&tasks, 12)]).unwrap();
    let text = written(&results, &path);
    let top: Vec<&str> = text.lines().take(10).collect();
    let top = top.join("\n");
    for part in [
        "held-out problems of texts (12 problems × 2 seeds) and answers (12 problems × 2 seeds).",
        "**Different ideas** (Vendi score of texts; min-p-1 has 2.00). Beside plain sampling of equal perplexity: orthogonal-1 \
         **+2.00 [+2.00, +2.00]**.",
        "each at its own perplexity: orthogonal-1 than matched-orthogonal-1 **+3.00 [+3.00, +3.00]**, orthogonal-1 than old \
         **+0.50 [+0.50, +0.50]**.",
        "**pass@4** beside min-p-1: answers (min-p-1 has 1.000): no difference found for orthogonal-1 0.000 [0.000, 0.000].",
        "**pass@1** beside min-p-1: answers (min-p-1 has 0.500): orthogonal-1 **+0.250 [+0.250, +0.250]**.",
        "**Worth it?** Vendi on texts, beside plain sampling of equal perplexity: more from orthogonal-1; pass@4 on answers, \
         beside the best of the temperatures: no difference found for orthogonal-1.",
        "One model of 8 dimensions",
    ] {
        assert!(top.contains(part), "expected {part:?} in\n{top}");
    }
}

#[test]
fn the_summary_says_what_it_does_not_know() {
    let summary = |problems: usize, change: &dyn Fn(&mut Run)| {
        let (_guard, path) = folder();
        let mut run = run_of(&[task("texts", false)], problems);
        change(&mut run);
        written(&Results::gather(vec![run]).unwrap(), &path)
    };
    let few = summary(3, &|_| {});
    assert!(
        few.contains("orthogonal-1 +2.00 [+2.00, +2.00] (fewer than 10 problems conclude nothing)"),
        "{few}"
    );
    assert!(few.contains("too few problems to conclude anything about orthogonal-1"), "{few}");

    // Less probable than any temperature of the frontier.
    let beyond = summary(12, &|run| {
        for record in run.records.iter_mut().filter(|record| record.arm == "orthogonal-1") {
            record.completions.iter_mut().for_each(|one| one.log_prob_sum = -100.0);
        }
    });
    assert!(
        beyond.contains("of equal perplexity: orthogonal-1 beyond the ends of the frontier."),
        "{beyond}"
    );
    assert!(beyond.contains("nothing to compare with for orthogonal-1"), "{beyond}");

    let worse = summary(12, &|run| {
        for record in run.records.iter_mut().filter(|record| record.arm == "orthogonal-1") {
            record.completions.iter_mut().for_each(|one| one.text = "a".into());
        }
    });
    assert!(worse.contains("less from orthogonal-1"), "{worse}");

    let none = summary(12, &|run| {
        run.header.arms.retain(|arm| arm.role != Role::Method);
        run.header.split = Split::Dev;
    });
    assert!(none.contains("**Worth it?** No method was run."), "{none}");
    assert!(
        none.contains("development (settings may have been chosen on them) problems"),
        "{none}"
    );

    let unfinished = summary(12, &|run| run.records.truncate(run.records.len() - 1));
    assert!(unfinished.contains("unfinished, planned were 12 × 2."), "{unfinished}");
}

#[test]
fn completions_too_short_for_a_measure_leave_their_problem_out_of_it() {
    let (_guard, path) = folder();
    let mut run = run_of(&[task("texts", false)], 12);
    // One arm has said nothing at all on a problem: no pair of tokens, no self-BLEU, for nobody there.
    let record = run.records.iter_mut().find(|record| record.arm == "old").unwrap();
    for completion in &mut record.completions {
        (completion.tokens, completion.finish) = (vec![7], "stop_token".into());
    }
    let text = written(&Results::gather(vec![run]).unwrap(), &path);
    let note = "On 11 problems: some arm's completions of the others are too short for it.";
    assert_eq!(text.matches(note).count(), 2, "{text}");
}

#[test]
fn right_answers_have_their_tables_and_curves() {
    let (_guard, path) = folder();
    let results = Results::gather(vec![run_of(&[task("answers", true)], 3)]).unwrap();
    let text = written(&results, &path);
    for (name, _, _, _, _, _, right) in ARMS {
        let [one, two] = [1, 2].map(|k| pass_at_k(SAMPLES, right, k).unwrap());
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("| {name} |")) && line.ends_with(" % |"));
        let line = line.unwrap();
        assert!(line.contains(&format!("| {one:.3} | {two:.3} |")), "{line}");
        let place = ARMS.iter().position(|arm| arm.0 == name).unwrap();
        let expected = [1.0, 1.0, 0.0, 3.0, 1.0, 2.0][place];
        assert!(line.contains(&format!("| {expected:.2} |")), "{line}");
    }
    // min-p-2 is never right, the base always once or more: three problems for the base alone, p = 2/2³.
    assert!(text.contains("| min-p-2 | 0 | 3 | 0.250 |"), "{text}");
    assert!(text.contains("![answers-pass-at-k](report/answers-pass-at-k.svg)"), "{text}");
    for figure in ["answers-pass-at-k.svg", "answers-pareto.svg"] {
        let svg = fs::read_to_string(path.join("report").join(figure)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{figure}");
        assert!(ARMS.iter().all(|arm| svg.contains(arm.0)), "every arm has its name in {figure}");
    }
}

#[test]
fn only_what_every_arm_has_met_counts() {
    let (_guard, path) = folder();
    let mut run = run_of(&[task("texts", false)], 3);
    // The last record is gone: the other five of its problem and seed are of no use.
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
fn files_of_one_experiment_are_put_together_and_no_others() {
    let (texts, answers) = (task("texts", false), task("answers", true));
    let [one, two] = [&texts, &answers].map(|task| run_of(std::slice::from_ref(task), 2));
    let results = Results::gather(vec![one.clone(), two]).unwrap();
    let names: Vec<&str> = results.tasks.iter().map(|task| task.task.name.as_str()).collect();
    assert_eq!(names, ["texts", "answers"]);
    assert_eq!(results.commits, ["0123abcd"]);

    let message = error(Results::gather(vec![one.clone(), one.clone()]));
    assert!(message.contains("expected each task in one file, got texts twice"), "{message}");
    let mut other = run_of(&[answers], 2);
    other.header.samples = 5;
    let message = error(Results::gather(vec![one, other]));
    assert!(message.contains("expected files of one experiment, got samples 4 and 5"), "{message}");
    assert!(error(Results::gather(Vec::new())).contains("expected a file, got none"));
}

#[test]
fn where_it_comes_from_is_written() {
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
fn packed_records_are_read_like_others() {
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
fn what_novelty_goes_along_with_is_in_a_section_and_in_the_summary() {
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
                // The error orders tokens as their surprisal does; its square does too.
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
    let line = text.lines().take(10).find(|line| line.contains("**Is it novelty?**")).unwrap();
    assert!(
        line.contains("rank correlations with surprisal **+1.00 [+1.00, +1.00]**, entropy "),
        "{line}"
    );
    assert!(fs::read_to_string(path.join("report/texts-novelty.svg")).unwrap().starts_with("<svg"));
}
