//! The decode loop after a custom part has panicked or failed, and what it keeps.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{
    decode_loop::{Masked, count_from, counter, finished, run, sampler},
    narrow,
};
use crate::device;
use esamp::{
    Completion, CompletionId, Decoder, Event, FinishReason, Request, Sampling, Selection, Sharing,
    TokenId, TokenMask, TokenMasker, TokenSelector,
    errors::{RowError, TextError},
    filters::{CandidateFilter, Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter},
    telemetry::RowTrace,
    testing::ScriptedLm,
};

/// Panics at one of its calls.
#[derive(Debug)]
struct Bomb {
    part: &'static str,
    at: usize,
    calls: AtomicUsize,
}

impl Bomb {
    /// Counts a call of a part, if it is the one that holds the bomb.
    fn tick(&self, part: &str) {
        let is_due = part == self.part && self.calls.fetch_add(1, Relaxed) == self.at;
        assert!(!is_due, "the {part} was scripted to panic at call {}", self.at);
    }
}

/// Every part that a step calls.
#[derive(Clone, Debug)]
struct Parts(Arc<Bomb>);

impl CandidateFilter for Parts {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        self.0.tick("filter");
        candidates.truncate(8);
    }
}

impl NoveltyReweighter for Parts {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        self.0.tick("reweighter");
        candidates.rescore(|candidate| 1.5 * candidate.logit - 0.5 * candidate.expected);
    }

    fn expects(&self) -> Expects {
        Expects::Distiller
    }
}

impl TokenSelector for Parts {
    fn select(&self, row: &RowContext<'_>, candidates: &Candidates) -> TokenId {
        self.0.tick("selector");
        let place = (row.draw.uniform() * candidates.len() as f64) as usize;
        candidates.as_slice()[place].token
    }
}

impl TokenMasker for Parts {
    fn mask(&self, row: CompletionId, generated: &[TokenId]) -> Masked {
        self.0.tick("masker");
        let all_but_one = (0..10).filter(|&token| u64::from(token) != row.index);
        Ok((generated.len() % 2 == 1).then(|| TokenMask::allowing(10, all_but_one)))
    }
}

/// Runs two prompts, the second of which joins the first, with a bomb in one part. Returns the completions and whether
/// the bomb has gone off.
fn run_with(part: &'static str, at: usize) -> (BTreeMap<CompletionId, Completion>, bool) {
    let parts = Parts(Arc::new(Bomb { part, at, calls: AtomicUsize::new(0) }));
    let bomb = parts.0.clone();
    let model = ScriptedLm::new(10, &device(), move |sequence| {
        bomb.tick("model");
        let mixed = |token: u32| sequence.iter().fold(token + 1, |mix, &t| (mix * 31 + t) % 97);
        (0..10).map(|token| mixed(token) as f32 / 20.0).collect()
    });
    // Completions learn alone, so that one that ends early does not change the others.
    let config = narrow().with_sharing(Sharing::PerCompletion);
    let sampler = config.init(10, &device()).unwrap();
    let bomb = parts.0.clone();
    let observer = move |_: &RowTrace| bomb.tick("observer");
    let bomb = parts.0.clone();
    let detokenizer = move |tokens: &[TokenId]| -> Result<String, TextError> {
        bomb.tick("detokenizer");
        Ok(tokens.iter().map(ToString::to_string).collect())
    };
    let mut decoder = Decoder::new(&model, sampler)
        .unwrap()
        .with_observer(observer)
        .with_detokenizer(detokenizer);
    let sampling = Sampling::new()
        .with_custom_filter(parts.clone())
        .with_custom_reweighter(parts.clone())
        .with_selection(Selection::custom(parts.clone()));
    let request = |prompt: Vec<TokenId>, completions: usize| {
        let request = Request::new(prompt).with_completions(completions).with_seed(5);
        request.with_sampling(sampling.clone()).with_masker(parts.clone())
    };
    decoder.submit(request(vec![1, 2], 2).with_max_new_tokens(5)).unwrap();
    let (mut finished, mut panicked) = (BTreeMap::new(), false);
    let mut seen: BTreeMap<CompletionId, (Vec<TokenId>, String)> = BTreeMap::new();
    for step in 0.. {
        if step == 2 {
            decoder.submit(request(vec![3, 4, 5], 2).with_max_new_tokens(4)).unwrap();
        } else if decoder.is_idle() {
            break;
        }
        let Ok(events) = catch_unwind(AssertUnwindSafe(|| decoder.step())) else {
            panicked = true;
            continue;
        };
        for event in events.unwrap() {
            match event {
                Event::Token { completion, choice, text } => {
                    let (tokens, shown) = seen.entry(completion).or_default();
                    tokens.push(choice.token);
                    shown.push_str(&text);
                }
                Event::Finished { completion, text } => {
                    seen.entry(completion.id).or_default().1.push_str(&text);
                    assert_eq!(finished.insert(completion.id, completion), None, "ended twice");
                }
                _ => {}
            }
        }
    }
    assert_eq!(decoder.sampler().distillers(), 0, "{part} {at}");
    for (id, completion) in &finished {
        let (tokens, text) = seen.remove(id).unwrap_or_default();
        assert_eq!(completion.text.as_ref(), Some(&text));
        assert!(completion.tokens().starts_with(&tokens));
        assert!(completion.finish == FinishReason::Aborted || completion.tokens() == tokens);
    }
    (finished, panicked)
}

/// Whatever panics, at whichever call: a completion has the tokens of an undisturbed run, or its finish says that it
/// was aborted.
#[test]
fn a_panic_that_is_caught_changes_no_tokens_in_silence() {
    let (undisturbed, _) = run_with("nothing", 0);
    assert_eq!(undisturbed.len(), 4);
    let parts = ["masker", "filter", "reweighter", "selector", "observer", "detokenizer", "model"];
    for part in parts {
        let mut calls = 0;
        loop {
            let (completions, panicked) = run_with(part, calls);
            if !panicked {
                break;
            }
            assert_eq!(completions.len(), 4, "{part} {calls}");
            let mut aborted = 0;
            for (id, completion) in &completions {
                let expected = &undisturbed[id];
                if completion.finish == FinishReason::Aborted {
                    assert!(expected.tokens().starts_with(&completion.tokens()));
                    aborted += 1;
                } else {
                    assert_eq!(completion.tokens(), expected.tokens(), "{part} {calls}");
                    assert_eq!(completion.finish, expected.finish, "{part} {calls}");
                    assert_eq!(completion.text, expected.text, "{part} {calls}");
                }
            }
            assert!(aborted > 0, "{part} {calls}");
            if part == "masker" {
                assert_eq!(aborted, 1, "only the row whose masker has panicked");
            }
            calls += 1;
        }
        assert!(calls >= 10, "{part}: {calls} calls");
    }
}

#[test]
fn completions_returned_as_events_are_not_kept() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    decoder.submit(count_from(1).with_completions(2)).unwrap();
    let mut ended = 0;
    while !decoder.is_idle() {
        ended += finished(decoder.step().unwrap()).len();
        assert_eq!(decoder.take_completions(), []);
    }
    assert_eq!(ended, 2);

    // `run` returns them although it has passed them on as events.
    decoder.submit(count_from(1)).unwrap();
    assert_eq!(run(&mut decoder).len(), 1);

    // After an error nothing was returned, so the aborted ones are kept.
    let mut decoder = Decoder::new(counter().failing_at(2), sampler(10)).unwrap();
    let cancelled = decoder.submit(count_from(1).with_completions(2)).unwrap().completions[0];
    decoder.step().unwrap();
    decoder.cancel(cancelled).unwrap();
    assert!(decoder.step().is_err());
    let ends: Vec<_> = decoder.take_completions().iter().map(|c| c.finish.name()).collect();
    assert_eq!(ends, ["cancelled", "aborted"]);
    assert_eq!(decoder.step().unwrap().len(), 2, "their events");
    assert_eq!(decoder.take_completions(), []);
}

/// Forbids everything for one row, fails for another, and counts the ends.
#[derive(Default)]
struct Strict {
    ended: Mutex<Vec<CompletionId>>,
    panics: bool,
}

impl TokenMasker for Strict {
    fn mask(&self, row: CompletionId, generated: &[TokenId]) -> Masked {
        match (row.index, generated.len()) {
            (0, 2) => Err(RowError::masker("no rule for 3")),
            (1, 0) => Err(RowError::masker("no rule for the start")),
            (2, 1) => Ok(Some(TokenMask::allowing(10, []))),
            _ => Ok(None),
        }
    }

    fn ended(&self, row: CompletionId) {
        self.ended.lock().unwrap().push(row);
        assert!(!self.panics || row.index != 2, "scripted to panic");
    }
}

#[test]
fn a_masker_may_fail_and_hears_of_every_end() {
    let masker = Arc::new(Strict::default());
    let model = counter();
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
    let request = || count_from(1).with_masker(masker.clone());
    let ids = decoder.submit(request().with_completions(5)).unwrap().completions;
    let waiting = decoder.submit(request()).unwrap();
    decoder.cancel_prompt(waiting.prompt).unwrap();
    assert_eq!(*masker.ended.lock().unwrap(), waiting.completions);
    let mut completions = finished(decoder.step().unwrap());
    decoder.cancel(ids[3]).unwrap();
    completions.extend(run(&mut decoder));
    completions.sort_by_key(|completion| completion.id);
    let ends: Vec<_> = completions.iter().map(|c| (c.tokens().len(), c.finish.name())).collect();
    let waiting_end = (0, "cancelled");
    let of_the_first =
        [(2, "failed"), (0, "failed"), (1, "failed"), (2, "cancelled"), (5, "max_new_tokens")];
    assert_eq!(ends, [&of_the_first[..], &[waiting_end]].concat());
    let message = RowError::Masker { message: "no rule for 3".to_owned() };
    assert_eq!(completions[0].finish, FinishReason::Failed(message.clone()));
    assert_eq!(message.to_string(), "token masker: no rule for 3");
    // The row that failed before its first token was not read, and the other left before the forward pass.
    let rows: Vec<usize> = model.calls().iter().map(Vec::len).collect();
    assert_eq!(rows, [1, 4, 1, 1, 1]);
    let mut ended = masker.ended.lock().unwrap().clone();
    ended.sort_unstable();
    assert_eq!(ended, [ids, waiting.completions].concat(), "each once");
}

#[test]
fn a_panic_of_a_masker_that_hears_of_an_end_loses_nothing() {
    let masker = Arc::new(Strict { panics: true, ..Strict::default() });
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    let request = count_from(1).with_completions(4).with_masker(masker.clone());
    decoder.submit(request).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| decoder.step())).is_err());
    let completions = run(&mut decoder);
    let ends: Vec<_> = completions.iter().map(|c| (c.tokens().len(), c.finish.name())).collect();
    assert_eq!(ends, [(2, "failed"), (0, "failed"), (1, "failed"), (5, "max_new_tokens")]);
    assert_eq!(masker.ended.lock().unwrap().len(), 4);
}

/// Three prompts that are read in pieces: one is cancelled, one panics, and the third has the tokens that it has alone.
#[test]
fn a_prompt_that_ends_while_it_is_read_leaves_the_others() {
    let model = ScriptedLm::new(10, &device(), |sequence| {
        assert!(!sequence.contains(&7), "scripted to panic");
        (0..10).map(|token| (sequence.len() as f32 * (token as f32 + 1.0)).sin()).collect()
    });
    let request = |prompt: Vec<TokenId>| Request::new(prompt).with_max_new_tokens(4).with_seed(3);
    let mut alone = Decoder::new(&model, sampler(10)).unwrap();
    alone.submit(request(vec![1; 60])).unwrap();
    let expected = run(&mut alone).remove(0);

    let decoder = Decoder::new(&model, sampler(10)).unwrap().with_prefill_chunk(10).unwrap();
    let mut decoder = decoder.with_prefill_budget(10).unwrap();
    let third = decoder.submit(request(vec![1; 60])).unwrap().completions[0];
    decoder.step().unwrap();
    let first = decoder.submit(request(vec![2; 40])).unwrap().completions[0];
    decoder.step().unwrap();
    let second =
        decoder.submit(request([vec![3; 15], vec![7; 10]].concat())).unwrap().completions[0];
    decoder.step().unwrap();
    decoder.cancel(first).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| decoder.step())).is_err());
    let completions = run(&mut decoder);
    let ends: Vec<_> = completions.iter().map(|c| (c.id, c.finish.name())).collect();
    assert_eq!(ends, [(third, "max_new_tokens"), (first, "cancelled"), (second, "aborted")]);
    assert_eq!(completions[0].tokens(), expected.tokens());
    assert_eq!(decoder.sampler().distillers(), 0);
}
