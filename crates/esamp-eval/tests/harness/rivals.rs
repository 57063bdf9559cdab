//! Methods of other authors that are set up with the model, and completions that are made to begin with a text.

use std::collections::HashSet;

use esamp_eval::{
    plan::Unit,
    record::{ArmRecord, Rival},
};

use super::*;

const STOP: TokenId = 0;
const WORDS: [&str; 12] =
    ["", " Apple", " Bread", " Candle", "App", "Bre", "Can", "le", "ad", "dle", ".", "Answer"];

/// A model for which all words are equally likely, whatever came before.
fn even() -> ScriptedLm {
    ScriptedLm::new(WORDS.len(), &Device::flex(), |_| vec![0.0; WORDS.len()])
}

fn words(model: &ScriptedLm) -> Subject<'_, ScriptedLm> {
    let text = |tokens: &[TokenId]| -> Result<String, TextError> {
        Ok(tokens.iter().map(|&token| WORDS[token as usize]).collect())
    };
    Subject {
        model,
        // The priming phrase is longer than the prompt, and tells the completions apart.
        encode: Box::new(|text| Ok(vec![text.len() as TokenId % 12, 1])),
        detokenizer: Arc::new(text),
        stop_tokens: vec![STOP],
    }
}

fn problem(opening: Option<&'static str>) -> Problem {
    let problem = Problem::new("say something".into(), |_: &str| Verdict::default());
    match opening {
        Some(opening) => problem.with_opening(opening),
        None => problem,
    }
}

/// The record of one problem under one arm.
fn record<M: CausalLm>(
    subject: &Subject<'_, M>,
    arm: &str,
    problem: Problem,
    wave: Option<usize>,
) -> Result<ProblemRecord, Failure> {
    let header =
        Header { samples: 8, problems: 1, seeds: 1, wave, ..header(&tiny_tasks()[..1], arm) };
    let unit = Unit { seed: 5, task: 0, arm: 0, problems: 0..1 };
    let records = run::run_unit(subject, &header, &unit, &[problem]);
    records.map(|mut records| records.remove(0))
}

fn texts(record: &ProblemRecord) -> Vec<&str> {
    record.completions.iter().map(|completion| completion.text.as_str()).collect()
}

#[test]
fn every_sentence_of_recoding_begins_with_a_stem() {
    let model = even();
    let subject = words(&model);
    let run = || record(&subject, "recoding", problem(None), None).unwrap();
    let found = run();
    assert_eq!(found, run(), "a function of the seed");
    assert_eq!(found.completions.len(), 8);
    let mut stems = HashSet::new();
    for text in texts(&found) {
        // Words of two letters or more end with a full stop, so the sentences can be told apart.
        for sentence in text.split_terminator('.').filter(|sentence| !sentence.is_empty()) {
            let begun = sentence.trim_start();
            let stem = ["App", "Bre", "Can"].into_iter().find(|stem| begun.starts_with(stem));
            stems.insert(stem.unwrap_or_else(|| panic!("{text:?}")));
        }
    }
    assert_eq!(stems.len(), 3);
    let plain = record(&subject, "min-p-1", problem(None), None).unwrap();
    let free = texts(&plain).iter().any(|text| !text.starts_with([' ', 'A', 'B', 'C']));
    assert!(free, "{:?}", texts(&plain));
}

#[test]
fn completions_begin_with_the_opening_under_every_arm() {
    let model = even();
    let subject = words(&model);
    for arm in ["min-p-1", "esamp-0.5", "fire", "recoding"] {
        let found = record(&subject, arm, problem(Some("Answer")), None).unwrap();
        for text in texts(&found) {
            let rest = text.strip_prefix("Answer").unwrap_or_else(|| panic!("{arm}: {text:?}"));
            let begins = ["App", "Bre", "Can"].iter().any(|stem| rest.trim().starts_with(stem));
            assert!(arm != "recoding" || begins, "{text:?}");
        }
        let others: HashSet<&str> = texts(&found).into_iter().collect();
        assert!(others.len() > 4, "{arm}: the rest is drawn: {others:?}");
    }
    let plain = record(&subject, "min-p-1", problem(None), None).unwrap();
    assert!(texts(&plain).iter().any(|text| !text.starts_with("Answer")));
    // In waves too, of which only a tally is left.
    let opened = |text: &str| Verdict::one_of_many(text.strip_prefix("Answer").map(str::to_owned));
    for arm in ["min-p-1", "recoding"] {
        let problem = Problem::new("say something".into(), opened).with_opening("Answer");
        let tally = record(&subject, arm, problem, Some(4)).unwrap().tally.unwrap();
        assert_eq!((tally.score(8).valid, tally.waves.len()), (1.0, 2));
        assert!(tally.score(8).distinct > 0.5, "waves do not repeat each other");
    }
}

#[test]
fn crowding_changes_tokens_after_the_first() {
    let model = TinyLm::new(1, &Device::flex());
    let subject = subject(&model);
    let run = |arm| record(&subject, arm, problem(None), None).unwrap();
    let (plain, crowded) = (run("plain-1"), run("crowding-open"));
    assert_eq!(crowded, run("crowding-open"));
    let tokens = |record: &ProblemRecord| -> Vec<Vec<TokenId>> {
        record.completions.iter().map(|completion| completion.tokens.clone()).collect()
    };
    let (plain_tokens, crowded_tokens) = (tokens(&plain), tokens(&crowded));
    assert!(plain_tokens != crowded_tokens);
    for (plain, crowded) in plain_tokens.iter().zip(&crowded_tokens) {
        assert_eq!(plain[0], crowded[0], "the first token is not reweighted");
    }
    assert!(crowded.completions.iter().any(|completion| completion.mean_kl > 0.0));
    assert_eq!(crowded.batch_counters.updates, 0, "no distiller");
}

#[test]
fn models_without_what_a_rival_needs_are_refused() {
    let model = even();
    let error = record(&words(&model), "crowding", problem(None), None).unwrap_err().to_string();
    assert!(error.contains("crowding: expected a model with a linear LM head"), "{error}");
    let model = TinyLm::new(1, &Device::flex());
    let error = record(&subject(&model), "recoding", problem(None), None).unwrap_err().to_string();
    assert!(error.contains("recoding: expected a vocabulary with capitalised words"), "{error}");
}

#[test]
fn rivals_are_written_and_other_arms_are_as_before() {
    let arms = arms::named("crowding,recoding,min-p-1").unwrap();
    let written: Vec<String> = arms.iter().map(|arm| serde_json::to_string(arm).unwrap()).collect();
    assert!(written[0].ends_with(r#""error":"own","rival":"crowding"}"#), "{}", written[0]);
    assert!(written[1].ends_with(r#""error":"own","rival":"recoding"}"#), "{}", written[1]);
    assert!(written[2].ends_with(r#""error":"own"}"#), "{}", written[2]);
    let rivals = written.iter().map(|arm| serde_json::from_str::<ArmRecord>(arm).unwrap().rival);
    let rivals: Vec<_> = rivals.collect();
    assert_eq!(rivals, [Some(Rival::Crowding), Some(Rival::Recoding), None]);
}
