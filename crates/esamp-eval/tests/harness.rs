//! The harness of `evaluate`, on models whose answers are known.
//!
//! No test here starts a process: between its fork and its exec it would hold the locks of files that others have closed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use burn::tensor::Device;
use esamp::{
    CausalLm, Decoder, Detokenize, Request, TokenId,
    errors::TextError,
    telemetry::Recorder,
    testing::{ScriptedLm, TinyLm},
};
use esamp_eval::{
    arms, entropy, plan,
    record::{
        self, FORMAT_VERSION, FrequencyRanks, Header, ModelRecord, ProblemRecord, Role, Run, Split,
        TOKEN_SAMPLE, TokenRecord,
    },
    run::{self, Subject},
    store::Store,
    tasks::{Problem, Task, Verdict},
    work::{Ended, problems_of, run_all},
};
use esamp_programs::failure::Failure;

/// A task that TinyLm cannot fail: to say two letters a token. Which solution it is: the first two.
struct Syllables;

impl Task for Syllables {
    fn name(&self) -> &'static str {
        "syllables"
    }

    fn what(&self) -> &'static str {
        "two letters for every token"
    }

    fn tokens(&self) -> usize {
        10
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let check =
            |text: &str| Verdict::one_of_many((text.len() == 2 * 10).then(|| text[..2].to_owned()));
        (0..20).map(|n| Problem::new(format!("say {n}"), check)).collect()
    }
}

/// A task that it cannot solve.
struct Silence;

impl Task for Silence {
    fn name(&self) -> &'static str {
        "silence"
    }

    fn what(&self) -> &'static str {
        "nothing at all"
    }

    fn tokens(&self) -> usize {
        99
    }

    fn problems(&self) -> Vec<Problem> {
        let silent = |text: &str| text.is_empty().then(String::new);
        (0..20)
            .map(|n| Problem::with_answer(format!("be silent {n}"), String::new(), silent))
            .collect()
    }
}

/// Tokens of a text for a model of 64: its bytes, folded.
fn encode(text: &str) -> Result<Vec<TokenId>, Failure> {
    Ok(text.bytes().map(|byte| TokenId::from(byte) % 64).collect())
}

fn subject(model: &TinyLm) -> Subject<'_, TinyLm> {
    Subject {
        model,
        encode: Box::new(encode),
        detokenizer: Arc::new(TinyLm::detokenizer()),
        stop_tokens: Vec::new(),
    }
}

fn tiny_tasks() -> Vec<Box<dyn Task>> {
    vec![Box::new(Syllables), Box::new(Silence)]
}

fn header(tasks: &[Box<dyn Task>], arms: &str) -> Header {
    let tokens = 12;
    Header {
        format_version: FORMAT_VERSION,
        crate_version: "0.0.0".into(),
        commit: "unknown".into(),
        model: ModelRecord {
            name: "tiny".into(),
            sha256: String::new(),
            d_model: TinyLm::D_MODEL,
            vocab: TinyLm::VOCAB,
            device: "flex".into(),
        },
        split: Split::Dev,
        problems: 3,
        samples: 4,
        seeds: 2,
        tokens,
        batch: 2,
        tasks: tasks.iter().map(|task| task.record(tokens)).collect(),
        arms: arms::named(arms).unwrap(),
        token_arm: None,
    }
}

/// Runs a header to its end, or until the time is up.
fn run(header: &Header, path: &Path, budget: Option<Duration>) -> Result<Ended, Failure> {
    let model = TinyLm::new(1, &Device::flex());
    let tasks = tiny_tasks();
    let problems = problems_of(&tasks, header.split, header.problems)?;
    let mut store = Store::open(path, header)?;
    run_all(&subject(&model), header, &problems, &mut store, budget, |_, _| {})
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn error<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    let message = result.unwrap_err().to_string();
    message.lines().next().unwrap().strip_prefix("error: ").unwrap().to_owned()
}

const ARMS: &str = "min-p-1,esamp-0.5,esamp-0.5-shared";

#[test]
fn what_is_known_of_the_answers_is_in_the_records() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = header(&tiny_tasks(), ARMS);
    assert_eq!(run(&header, &path, None).unwrap(), Ended::Complete);
    let run = Run::read(&path).unwrap();
    assert_eq!(run.header, header);
    assert_eq!(run.records.len(), 2 * 3 * 3 * 2, "seeds, problems, arms, tasks");
    let detokenizer = TinyLm::detokenizer();
    for record in &run.records {
        assert_eq!(record.completions.len(), 4);
        for completion in &record.completions {
            let right = record.task == "syllables";
            assert_eq!(completion.correct, Some(right));
            assert_eq!(completion.tokens.len(), if right { 10 } else { 12 });
            assert_eq!(completion.text, detokenizer.decode(&completion.tokens).unwrap());
            assert_eq!(completion.mode.as_deref(), right.then_some(&completion.text[..2]));
            assert_eq!(completion.answer.is_some(), right);
            assert_eq!(completion.finish, "max_new_tokens");
            let plain = record.arm == "min-p-1";
            assert_eq!(completion.mean_kl == 0.0, plain);
            assert_eq!(completion.mean_novelty.is_none(), plain);
        }
        let tokens = record.completions.iter().map(|c| c.tokens.len() as u64).sum::<u64>();
        assert_eq!(record.totals.tokens, tokens);
        let steered = if record.arm == "min-p-1" { 0 } else { tokens - 4 }; // all but the first ones
        assert_eq!((record.totals.steered, record.totals.not_finite), (steered, 0));
    }
}

/// Every number of a record, from a decoder of its own and from its traces.
#[test]
fn a_record_says_what_a_plain_decode_loop_gives() {
    let header =
        Header { problems: 1, token_arm: Some("esamp-0.5".into()), ..header(&tiny_tasks(), ARMS) };
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    run(&header, &path, None).unwrap();
    let model = TinyLm::new(1, &Device::flex());
    for record in Run::read(&path).unwrap().records {
        let arm = header.arms.iter().find(|arm| arm.name == record.arm).unwrap();
        let recorder = Arc::new(Mutex::new(Recorder::new()));
        let sampler = arm.sampler.init(model.d_model(), &model.device()).unwrap();
        let mut decoder = Decoder::new(&model, sampler).with_observer(Box::new(recorder.clone()));
        let request = Request::new(encode(&record.prompt).unwrap())
            .with_completions(4)
            .with_max_new_tokens(if record.task == "syllables" { 10 } else { 12 })
            .with_seed(record.seed)
            .with_sampling(arm.sampling.sampling())
            .with_reference_log_probs();
        decoder.submit(request).unwrap();
        let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
        // A fraction may come back from a file with another last digit.
        let (got, expected) = (record.batch_counters, *decoder.sampler().counters());
        assert_eq!(
            (got.steps, got.tokens, got.steered, got.interventions, got.updates, got.candidates),
            (
                expected.steps,
                expected.tokens,
                expected.steered,
                expected.interventions,
                expected.updates,
                expected.candidates
            )
        );
        assert!((got.novelty_sum - expected.novelty_sum).abs() < 1e-9);
        let recorder = recorder.lock().unwrap();
        let mut interventions = 0;
        for (index, (got, expected)) in record.completions.iter().zip(&completions).enumerate() {
            assert_eq!(got.tokens, expected.tokens());
            let traces: Vec<_> =
                recorder.tokens().filter(|t| t.completion == expected.id).collect();
            let mean = |numbers: Vec<f64>| numbers.iter().sum::<f64>() / numbers.len() as f64;
            let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-9);
            let log_probs =
                expected.choices.iter().map(|c| f64::from(c.reference_log_prob.unwrap()));
            close(got.log_prob_sum, log_probs.sum());
            let log_probs = expected.choices.iter().map(|c| f64::from(c.log_prob));
            close(got.sampling_log_prob_sum, log_probs.sum());
            close(got.mean_entropy, mean(traces.iter().map(|t| t.entropy).collect()));
            let reference = traces.iter().map(|t| t.reference_entropy).collect();
            close(got.mean_reference_entropy, mean(reference));
            close(got.mean_kl, mean(traces.iter().map(|t| t.kl).collect()));
            close(got.mean_candidates, mean(traces.iter().map(|t| t.candidates as f64).collect()));
            let some = |number: fn(&esamp::telemetry::RowTrace) -> Option<f64>| {
                let numbers: Vec<f64> = traces.iter().filter_map(|t| number(t)).collect();
                (!numbers.is_empty()).then(|| mean(numbers))
            };
            let pairs = [
                (got.mean_novelty, some(|t| t.novelty.map(f64::from))),
                (got.mean_relative_novelty, some(|t| t.relative_novelty)),
                (got.mean_slope, some(|t| t.slope)),
                (got.mean_sharpening, some(|t| t.sharpening)),
            ];
            for (got, expected) in pairs {
                assert_eq!(got.is_some(), expected.is_some());
                close(got.unwrap_or(0.0), expected.unwrap_or(0.0));
            }
            interventions += traces
                .iter()
                .filter(|t| t.unsteered_token.is_some_and(|token| token != t.token))
                .count() as u64;
            let kept: Vec<&TokenRecord> =
                record.token_sample.iter().filter(|kept| kept.completion == index).collect();
            if record.arm != "esamp-0.5" {
                assert!(kept.is_empty());
                continue;
            }
            assert_eq!(kept.len(), traces.len() - 1, "all but the first");
            for (kept, trace) in kept.iter().zip(&traces[1..]) {
                assert_eq!((kept.position, kept.token), (trace.position, trace.token));
                close(kept.novelty, f64::from(trace.novelty.unwrap()));
                close(kept.relative_novelty, trace.relative_novelty.unwrap());
                close(kept.surprisal, f64::from(trace.model_surprisal.unwrap()));
                close(kept.reference_entropy, trace.reference_entropy);
            }
        }
        assert_eq!(record.totals.interventions, interventions);
    }
}

#[test]
fn every_arm_runs_and_those_that_should_learn_do() {
    let model = TinyLm::new(1, &Device::flex());
    let tasks: Vec<Box<dyn Task>> = vec![Box::new(Syllables)];
    let header = Header { problems: 2, seeds: 1, ..header(&tasks, "all") };
    let problems = problems_of(&tasks, Split::Dev, 2).unwrap();
    for unit in plan::units(&header) {
        let arm = &header.arms[unit.arm];
        let records = run::run_unit(&subject(&model), &header, &unit, &problems[0]).unwrap();
        let counters = records[0].batch_counters;
        let updates = match arm.name.as_str() {
            "frozen-0.5" | "sharpen-0.5" | "cool-0.5" => 0,
            // Both learn, the one for all and each prompt's own.
            "esamp-0.5-adaptive" => 3 * 9,
            "esamp-0.5-shared" => 9,
            _ if arm.role == Role::Method || arm.role == Role::Control => 2 * 9,
            _ => 0,
        };
        assert_eq!(counters.updates, updates, "{}", arm.name);
        let steers = updates > 0 || arm.name == "frozen-0.5";
        assert_eq!(counters.steered, if steers { 8 * 9 } else { 0 }, "{}", arm.name);
        let sharpening = records[0].completions[0].mean_sharpening;
        match arm.name.as_str() {
            "sharpen-0.5" => assert!((sharpening.unwrap() - 0.5).abs() < 1e-5, "{sharpening:?}"),
            "orthogonal-1" => assert!(sharpening.unwrap().abs() < 1e-5, "{sharpening:?}"),
            _ => assert_eq!(sharpening.is_some(), steers, "{}", arm.name),
        }
        let warm_up = if arm.prompt_warm_up > 0 { 2 * 20 } else { 0 };
        assert_eq!(counters.warm_up_updates, warm_up, "{}", arm.name);
    }
}

/// A model that answers even questions and not odd ones.
#[test]
fn right_answers_are_counted_as_the_script_has_them() {
    struct Even;

    impl Task for Even {
        fn name(&self) -> &'static str {
            "even"
        }

        fn what(&self) -> &'static str {
            "say what was said"
        }

        fn tokens(&self) -> usize {
            3
        }

        fn problems(&self) -> Vec<Problem> {
            let problem = |n: usize| {
                let find = |text: &str| text.chars().next().map(String::from);
                Problem::with_answer(n.to_string(), n.to_string(), find)
            };
            (0..10).map(problem).collect()
        }
    }

    let device = Device::flex();
    let model = ScriptedLm::new(10, &device, |sequence| {
        let said = if sequence[0] % 2 == 0 { sequence[0] } else { 0 };
        (0..10).map(|token| if token == said { 40.0 } else { 0.0 }).collect()
    });
    let digits = |tokens: &[TokenId]| -> Result<String, TextError> {
        Ok(tokens.iter().map(TokenId::to_string).collect())
    };
    let subject = Subject {
        model: &model,
        encode: Box::new(|text| Ok(vec![text.parse().unwrap()])),
        detokenizer: Arc::new(digits),
        stop_tokens: Vec::new(),
    };
    let tasks: Vec<Box<dyn Task>> = vec![Box::new(Even)];
    for split in [Split::Dev, Split::HeldOut] {
        let header = Header { problems: 5, split, ..header(&tasks, "min-p-1,orthogonal-1") };
        let problems = problems_of(&tasks, split, 5).unwrap();
        for unit in plan::units(&header) {
            for record in run::run_unit(&subject, &header, &unit, &problems[0]).unwrap() {
                let asked: u64 = record.prompt.parse().unwrap();
                let said = if asked.is_multiple_of(2) { record.prompt.clone() } else { "0".into() };
                for completion in record.completions {
                    assert_eq!(completion.text, said.repeat(3));
                    assert_eq!(completion.answer.as_ref(), Some(&said));
                    assert_eq!(completion.correct, Some(asked.is_multiple_of(2)), "{asked}");
                    assert!(completion.log_prob_sum.abs() < 1e-6, "it was sure");
                }
            }
        }
    }
}

#[test]
fn a_run_that_was_killed_ends_with_the_same_bytes() {
    let folder = Folder::new();
    let header = header(&tiny_tasks(), ARMS);
    let whole = folder.file("whole.jsonl");
    run(&header, &whole, None).unwrap();
    let bytes = fs::read(&whole).unwrap();
    let ends: Vec<usize> =
        (0..bytes.len()).filter(|&at| bytes[at] == b'\n').map(|at| at + 1).collect();
    assert_eq!(ends.len(), 37);
    // Nothing, a part of the header, and around the ends of lines that do and do not end a batch.
    let mut cuts = vec![0, 10, bytes.len() - 1, bytes.len()];
    cuts.extend(ends.iter().step_by(7).chain(&ends[..4]).flat_map(|&end| [end - 1, end, end + 9]));
    for cut in cuts.into_iter().filter(|&cut| cut <= bytes.len()) {
        let path = folder.file("cut.jsonl");
        fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(run(&header, &path, None).unwrap(), Ended::Complete);
        assert!(fs::read(&path).unwrap() == bytes, "cut at {cut}");
    }
}

#[test]
fn a_run_that_is_out_of_time_goes_on_later() {
    let folder = Folder::new();
    let (path, whole) = (folder.file("run.jsonl"), folder.file("whole.jsonl"));
    let header = header(&tiny_tasks(), ARMS);
    assert_eq!(run(&header, &path, Some(Duration::ZERO)).unwrap(), Ended::OutOfTime);
    assert_eq!(Run::read(&path).unwrap().records, []);
    assert_eq!(run(&header, &path, Some(Duration::MAX / 4)).unwrap(), Ended::Complete);
    run(&header, &whole, None).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&whole).unwrap());
}

#[test]
fn a_file_of_other_settings_is_refused_by_the_first_that_differs() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let begun = header(&tiny_tasks(), ARMS);
    run(&begun, &path, Some(Duration::ZERO)).unwrap();
    let name = path.display().to_string();
    let refused = |header: &Header| {
        error(Store::open(&path, header)).strip_prefix(&format!("{name}: ")).unwrap().to_owned()
    };
    let mut others = vec![
        (Header { problems: 4, ..begun.clone() }, "expected a file of problems 4, got one of 3"),
        (
            Header { split: Split::HeldOut, ..begun.clone() },
            r#"expected a file of split "held_out", got one of "dev""#,
        ),
        (
            Header { commit: "abc".into(), ..begun.clone() },
            r#"expected a file of commit "abc", got one of "unknown""#,
        ),
        (
            Header { arms: arms::named("min-p-1,fire").unwrap(), ..begun.clone() },
            "expected a file of arms min-p-1, fire, got one of min-p-1, esamp-0.5, esamp-0.5-shared",
        ),
        (
            Header { token_arm: Some("esamp-0.5".into()), ..begun.clone() },
            r#"expected a file of token_arm "esamp-0.5", got one of null"#,
        ),
    ];
    let mut model = begun.clone();
    model.model.sha256 = "00".into();
    others.push((model, r#"expected a file of model.sha256 "00", got one of """#));
    let mut beta = begun.clone();
    beta.arms[1].sampling.settings.beta = 0.75;
    others.push((beta, "expected a file of arms.esamp-0.5.sampling.beta 0.75, got one of 0.5"));
    for (header, wording) in others {
        assert_eq!(refused(&header), wording);
    }
    let other = Header { format_version: 0, ..begun.clone() };
    let other =
        format!("{}\n", serde_json::to_string(&record::Line::Header(Box::new(other))).unwrap());
    fs::write(&path, other).unwrap();
    assert!(
        refused(&begun).contains("expected a header of format version 1, got format version 0")
    );
    for foreign in ["a letter to somebody\n", "a letter", "\u{feff}"] {
        fs::write(&path, foreign).unwrap();
        assert!(refused(&begun).starts_with("expected a file that this program has written, got "));
        assert_eq!(fs::read_to_string(&path).unwrap(), foreign, "nothing of it is lost");
    }
}

#[test]
fn records_that_are_not_those_of_the_plan_are_refused() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = header(&tiny_tasks(), ARMS);
    run(&header, &path, None).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let open = |lines: &[&str]| {
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        let message = error(run(&header, &path, None));
        message.strip_prefix(path.to_str().unwrap()).unwrap().to_owned()
    };
    assert_eq!(
        open(&[lines[0], lines[2]]),
        ", line 2: expected syllables 0 under min-p-1, seed 0, got syllables 1 under min-p-1, seed 0"
    );
    assert!(
        open(&[lines[0], "{}"])
            .starts_with(", line 2: expected syllables 0 under min-p-1, seed 0, got ")
    );
    assert_eq!(open(&[&lines[..], &[lines[1]]].concat()), ": expected 36 records, got more");
    // The first of a batch of two, but not as it was.
    let changed = lines[1].replacen("\"text\":\"", "\"text\":\"x", 1);
    assert_eq!(
        open(&[lines[0], &changed]),
        ": expected the 1 records before its end to come out as they did, got others"
    );
}

#[test]
fn a_file_has_one_writer() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = header(&tiny_tasks(), ARMS);
    let first = Store::open(&path, &header).unwrap();
    let wording = ": expected to be the only writer, another one has it";
    assert!(error(Store::open(&path, &header)).ends_with(wording));
    drop(first);
    Store::open(&path, &header).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_says_where() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = Header { problems: 1, seeds: 1, ..header(&tiny_tasks(), "min-p-1") };
    run(&header, &path, None).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        Run::read(&path).map(|run| run.records.len()).map_err(|error| {
            error.to_string().strip_prefix(path.to_str().unwrap()).unwrap().to_owned()
        })
    };
    assert_eq!(read(&text), Ok(2));
    assert_eq!(read(&text[..text.len() - 5]), Ok(1), "an unfinished line is left out");
    assert_eq!(read(""), Err(": expected a header of format version 1, got an empty file".into()));
    let first = text.lines().next().unwrap();
    assert_eq!(
        read(&format!("{first}\n{first}\n")),
        Err(", line 2: expected a record, got a second header".into())
    );
}

#[test]
fn all_arms_have_met_the_same_problems_wherever_a_run_stops() {
    let header = Header { problems: 5, ..header(&tiny_tasks(), ARMS) };
    let units = plan::units(&header);
    let mut keys: Vec<plan::Key> = units.iter().flat_map(|unit| unit.keys(&header)).collect();
    assert_eq!(keys.len(), 2 * 5 * 2 * 3);
    for whole in (0..units.len()).step_by(3) {
        let met = |arm: usize| -> Vec<_> {
            let of_arm = units[..whole].iter().filter(|unit| unit.arm == arm);
            of_arm.map(|unit| (unit.task, unit.seed, unit.problems.clone())).collect()
        };
        assert!(met(0) == met(1) && met(1) == met(2));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 60, "each once");
}

#[test]
fn arms_are_found_by_name() {
    let all = arms::all();
    for arm in &all {
        assert_eq!(arms::named(&arm.name).unwrap(), std::slice::from_ref(arm));
        arm.sampling.sampling().validate().unwrap();
        arm.sampler.init(32, &Device::flex()).unwrap();
    }
    assert_eq!(arms::named("all").unwrap(), all);
    let headline = arms::named("headline").unwrap();
    assert_eq!(headline.len(), 8);
    assert_eq!(headline.iter().filter(|arm| arm.role == Role::Frontier).count(), 3);
    let matched = arms::named("min-p-0.93, fire").unwrap();
    assert_eq!((matched[0].sampling.settings.temperature, matched[0].role), (0.93, Role::Frontier));
    for (names, wording) in [
        ("esamp", "--arms: expected the name of an arm, got esamp"),
        ("min-p-1.0", "--arms: expected the name of an arm, got min-p-1.0"),
        ("min-p--1", "--arms: expected the name of an arm, got min-p--1"),
        ("", "--arms: expected the name of an arm, got "),
        ("fire,fire", "--arms: expected each arm once, got fire twice"),
    ] {
        assert_eq!(error(arms::named(names)), wording);
    }
}

#[test]
fn the_matched_temperature_is_found_by_halving() {
    // An entropy of 1.5 nats per unit of temperature.
    for target in [0.9, 1.23, 2.0] {
        let mut tries = 0;
        let tried = entropy::halve(target, |temperature| {
            tries += 1;
            Ok(1.5 * f64::from(temperature))
        });
        let best = *tried.unwrap().last().unwrap();
        assert!((f64::from(best.temperature) - target / 1.5).abs() <= 0.011, "{best:?}");
        assert!(tries <= 8);
    }
    for target in [0.01, 9.0] {
        let wording = format!(
            "--match-entropy: expected an entropy that min-p has between T 0.2 and T 2, got {target}"
        );
        let found = entropy::halve(target, |temperature| Ok(1.5 * f64::from(temperature)));
        assert_eq!(error(found), wording);
    }
}

#[test]
fn entropy_is_matched_on_the_model() {
    let model = TinyLm::new(1, &Device::flex());
    let tasks = tiny_tasks();
    let header = Header { problems: 2, seeds: 1, ..header(&tasks, ARMS) };
    let problems = problems_of(&tasks, Split::Dev, 2).unwrap();
    // An arm that is a point of the frontier is its own control.
    let arm = arms::min_p_at(0.8);
    let matched =
        entropy::match_entropy(&subject(&model), &header, &problems, &arm, |_, _| {}).unwrap();
    let best = matched.tried.last().unwrap();
    assert!((best.entropy - matched.target).abs() < 0.05, "{matched:?}");
}

#[test]
fn a_sample_of_tokens_is_of_a_fixed_size_and_in_order() {
    let token = |at: usize| TokenRecord {
        completion: at / 100,
        position: at as u64 % 100,
        token: 0,
        novelty: at as f64,
        relative_novelty: 0.0,
        surprisal: 0.0,
        reference_entropy: 0.0,
    };
    for (count, left) in [(0, 0), (512, 512), (513, 512), (1600, 512)] {
        let all: Vec<TokenRecord> = (0..count).map(token).collect();
        let mut kept = all.clone();
        run::decimate(&mut kept);
        assert_eq!(kept.len(), left);
        assert!(kept.is_sorted_by(|a, b| a.novelty < b.novelty), "in order, and each once");
    }
    assert_eq!(TOKEN_SAMPLE, 512);
    // Which of 1600 are kept has nothing to do with their position: a mean of 49.5 ± 1.05 (28.9 / √512, and a third less).
    let mut kept: Vec<TokenRecord> = (0..1600).map(token).collect();
    run::decimate(&mut kept);
    let mean = kept.iter().map(|kept| kept.position as f64).sum::<f64>() / 512.0;
    assert!((mean - 49.5).abs() < 4.0, "{mean}");
}

#[test]
fn ranks_by_hand() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    run(&Header { seeds: 1, ..header(&tiny_tasks(), "min-p-1") }, &path, None).unwrap();
    let mut record: ProblemRecord = Run::read(&path).unwrap().records.remove(0);
    record.completions.truncate(2);
    record.completions[0].tokens = vec![5, 3, 5];
    record.completions[1].tokens = vec![9, 3, 5, 1];
    let ranks = FrequencyRanks::count([&record]);
    // 9 and 1 come once each, and share ranks 2 and 3; there are four tokens before any other.
    assert_eq!([5, 3, 9, 1, 7].map(|token| ranks.of(token)), [0.0, 1.0, 2.5, 2.5, 4.0]);
}
