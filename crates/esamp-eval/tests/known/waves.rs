//! Waves on a model whose distribution over answers is known.

use std::fs;

use esamp::{errors::TextError, testing::ScriptedLm};
use esamp_eval::{
    record::{
        Line,
        line::{parse_record, seal},
    },
    store::Store,
    tasks::Verdict,
};

use super::*;

const OPENING: TokenId = 1;
const FIRST: TokenId = 2;
const ANSWERS: usize = 64;
/// Answers from here on are wrong.
const RIGHT: usize = 48;

/// `: ANSWER`, with 64 answers of which 48 are right, and 12 of these known from training.
struct Draws;

impl Task for Draws {
    fn name(&self) -> &'static str {
        "draws"
    }

    fn what(&self) -> &'static str {
        "one of 64"
    }

    fn tokens(&self) -> usize {
        3
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let check = |text: &str| {
            let number = text.strip_prefix(":").and_then(|text| text.parse::<usize>().ok());
            let right = number.filter(|&number| number < RIGHT);
            let trained = right.is_some_and(|number| number < RIGHT / 4);
            Verdict { trained, ..Verdict::one_of_many(right.map(|number| number.to_string())) }
        };
        (0..4).map(|n| Problem::new(format!("draw {n}"), check)).collect()
    }
}

/// All answers equally likely, then the end.
fn model() -> ScriptedLm {
    let vocab = FIRST as usize + ANSWERS;
    ScriptedLm::new(vocab, &Device::flex(), move |sequence| {
        let asked = sequence.len() == 1;
        let answer = sequence.last() == Some(&OPENING);
        let logit = |token: usize| match token {
            0 if !asked && !answer => 4.0,
            1 if asked => 4.0,
            token if answer && token >= FIRST as usize => 4.0,
            _ => f32::NEG_INFINITY,
        };
        (0..vocab).map(logit).map(|logit| logit.max(-20.0)).collect()
    })
}

fn subject(model: &ScriptedLm) -> Subject<'_, ScriptedLm> {
    let text = |tokens: &[TokenId]| -> Result<String, TextError> {
        let word = |&token: &TokenId| match token {
            0 => String::new(),
            OPENING => ":".to_owned(),
            token => (token - FIRST).to_string(),
        };
        Ok(tokens.iter().map(word).collect())
    };
    Subject {
        model,
        encode: Box::new(|_| Ok(vec![0])),
        detokenizer: Arc::new(text),
        stop_tokens: vec![0],
    }
}

fn record(arm: &str, samples: usize, wave: usize) -> ProblemRecord {
    let model = model();
    let header = header(&Draws, arm, samples, wave);
    let unit = Unit { seed: 0, task: 0, arm: 0, problems: 0..1 };
    run_unit(&subject(&model), &header, &unit, &Draws.problems()).unwrap().remove(0)
}

#[test]
fn coverage_is_that_of_independent_draws() {
    let record = record("plain-1", 512, 64);
    let tally = record.tally.unwrap();
    assert_eq!(tally.check(512, 64), Ok(()));
    assert_eq!(record.totals.tokens, 3 * 512);
    let score = tally.score(512);
    // Shares of 512 draws have a standard deviation of 0.02.
    assert!((score.valid - 0.75).abs() < 0.08, "{score:?}");
    assert!((score.trained - 0.1875).abs() < 0.08, "{score:?}");
    // 512 draws of 64 miss an answer with probability e^-8: all 48 right answers are found, 36 of them new.
    assert_eq!((score.distinct * 512.0, score.new * 512.0), (48.0, 36.0));
    // The coupon collector's line after 64 draws: 48·(1 − (63/64)^64) = 30.5 ± 3.
    let early = tally.score(64).distinct * 64.0;
    assert!((early - 30.5).abs() < 10.0, "{early}");
    assert!(tally.effective_answers() > 40.0 && tally.effective_answers() <= 48.0);
}

#[test]
fn codes_are_even_in_a_wave_and_shifted_between_waves() {
    // A wave of 64 codes over 64 equal answers has each of them once.
    let even = record("arithmetic", 256, 64).tally.unwrap();
    assert_eq!(even.repeats, [[4, 48]]);
    assert_eq!(even.score(64).distinct, 0.75);
    // Waves of 4 codes, 1/4 apart: the same codes in all waves would find 4 answers at most.
    let few = record("arithmetic", 64, 4).tally.unwrap();
    assert!(few.score(64).distinct * 64.0 > 12.0, "{}", few.letters);
}

#[test]
fn a_distiller_goes_through_all_waves() {
    let record = record("esamp-0.5", 240, 4);
    let tally = record.tally.unwrap();
    let error = |wave: usize| tally.waves[wave].mean_relative_novelty.unwrap();
    // With a new distiller in each wave, all waves would have the error of the first.
    assert!(error(59) < 0.7 * error(0), "{} and {}", error(59), error(0));
    assert_eq!(record.batch_counters.updates, 60 * 2, "two steered steps in each of 60 waves");
}

#[test]
fn novelty_without_gradients_spreads_the_answers_too() {
    let different = |arm: &str| record(arm, 96, 8).tally.unwrap().score(96).valid;
    assert!(different("elliptical-0.5") > 0.0 && different("elliptical-orthogonal-1") > 0.0);
    let hash = |arm: &str| record(arm, 96, 8).tally.unwrap().tokens_sha256;
    assert_eq!(hash("elliptical-0.5"), hash("elliptical-0.5"), "reproducible");
    assert_ne!(hash("elliptical-0.5"), hash("min-p-1"));
    assert_ne!(hash("elliptical-0.5"), hash("esamp-0.5"));
}

#[test]
fn the_last_wave_may_be_smaller() {
    let tally = record("plain-1", 10, 4).tally.unwrap();
    assert_eq!((tally.letters.len(), tally.waves.len()), (10, 3));
    let tokens: Vec<u64> = tally.waves.iter().map(|wave| wave.tokens).collect();
    assert_eq!(tokens, [12, 12, 6]);
}

#[test]
fn a_run_by_waves_is_resumed_problem_by_problem() {
    let model = model();
    let header = Header { problems: 3, ..header(&Draws, "plain-1,esamp-0.5", 8, 4) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("waves.jsonl");
    let problems = Draws.problems();
    let run = |most: usize| {
        let mut store = Store::open(&path, &header).unwrap();
        for _ in 0..most {
            let Some(unit) = store.next().cloned() else { break };
            let records = run_unit(&subject(&model), &header, &unit, &problems).unwrap();
            store.append(records).unwrap();
        }
        (store.records(), store.planned())
    };
    assert_eq!(run(2), (2, 6));
    assert_eq!(run(99), (6, 6));
    let resumed = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(run(99), (6, 6));
    assert_eq!(fs::read(&path).unwrap(), resumed, "byte for byte");
}

#[test]
fn a_record_that_does_not_fit_is_refused() {
    let header = header(&Draws, "plain-1", 8, 4);
    let right = record("plain-1", 8, 4);
    let parse = |record: &ProblemRecord, header: &Header| {
        let line = serde_json::to_string(&Line::Problem(Box::new(record.clone()))).unwrap();
        parse_record(&seal(&line), header, true).map(drop)
    };
    let vocab =
        Header { model: ModelRecord { vocab: 66, ..header.model.clone() }, ..header.clone() };
    assert_eq!(parse(&right, &vocab), Ok(()));
    let without = ProblemRecord { tally: None, ..right.clone() };
    assert_eq!(parse(&without, &vocab), Err("one without a tally in a file with waves".into()));
    let texts = Header { wave: None, samples: 0, ..vocab.clone() };
    assert_eq!(parse(&right, &texts), Err("one with a tally in a file without waves".into()));
    let mut more = right.clone();
    more.totals.tokens += 1;
    assert_eq!(parse(&more, &vocab), Err("a total of 25 tokens of at most 24".into()));
}
