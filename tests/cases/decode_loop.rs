//! The decode loop, seen from outside.

use std::{ops::ControlFlow, sync::Arc};

use crate::device;
use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, Completion, CompletionId, Decoder, Detokenize, Event, FinishReason, HiddenStateTap,
    KvCache, LmHead, Request, Sampler, SamplerConfig, Sampling, TokenId, TokenMask, TokenMasker,
    errors::{ModelError, RequestError, StepError, TextError},
    testing::{ScriptedLm, TinyLm},
};

fn sampler(d_model: usize) -> Sampler {
    SamplerConfig::new().init(d_model, &device()).unwrap()
}

fn sampling(beta: f32) -> Sampling {
    Sampling::default().with_beta(beta)
}

fn greedy() -> Sampling {
    Sampling::default().with_beta(0.0).with_temperature(0.0)
}

/// Says the next number, modulo 10.
fn counter() -> ScriptedLm {
    ScriptedLm::new(10, &device(), |sequence| {
        let next = (sequence[sequence.len() - 1] + 1) % 10;
        (0..10).map(|token| if token == next { 9.0 } else { 0.0 }).collect()
    })
}

fn digits(tokens: &[TokenId]) -> Result<String, TextError> {
    Ok(tokens.iter().map(ToString::to_string).collect())
}

fn run<M: CausalLm>(decoder: &mut Decoder<M>) -> Vec<Completion> {
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

fn count_from(start: TokenId) -> Request {
    Request::new(vec![start]).with_sampling(greedy()).with_max_new_tokens(5)
}

#[test]
fn prompts_of_all_lengths_run_in_one_batch_and_end_at_their_own_time() {
    let model = counter();
    let mut decoder = Decoder::new(&model, sampler(10)).with_detokenizer(digits);
    decoder.submit(count_from(3)).unwrap();
    let long = Request::new(vec![0, 1, 2, 3, 4, 5]);
    decoder
        .submit(long.with_sampling(greedy()).with_max_new_tokens(2).with_completions(2))
        .unwrap();
    let completions = run(&mut decoder);
    let texts: Vec<_> = completions.iter().map(|c| c.text.clone().unwrap()).collect();
    assert_eq!(texts, ["45678", "67", "67"]);
    assert_eq!(completions.iter().map(|c| c.id.index).collect::<Vec<_>>(), [0, 0, 1]);
    assert!(completions.iter().all(|c| c.finish == FinishReason::MaxNewTokens));
    // Each prompt is read once, then three rows, then the one that is left.
    let rows: Vec<usize> = model.calls().iter().map(Vec::len).collect();
    assert_eq!(rows, [1, 1, 3, 1, 1, 1]);
    assert!(decoder.is_idle());
    let stats = decoder.stats();
    assert_eq!((stats.steps, stats.decoded_tokens, stats.prompt_tokens), (4, 6, 7));
}

#[test]
fn events_tell_the_same_story_as_the_completions() {
    let mut decoder = Decoder::new(counter(), sampler(10)).with_detokenizer(digits);
    let submitted = decoder.submit(count_from(1).with_completions(2)).unwrap();
    let mut texts = vec![String::new(); 2];
    let mut finished = Vec::new();
    let completions = decoder
        .run(|event| {
            match event {
                Event::Token { completion, text, .. } => {
                    texts[completion.index as usize].push_str(&text);
                }
                Event::Finished { completion, text } => {
                    texts[completion.id.index as usize].push_str(&text);
                    finished.push(completion);
                }
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(finished, completions);
    assert_eq!(texts, ["23456", "23456"]);
    let ids: Vec<CompletionId> = completions.iter().map(|c| c.id).collect();
    assert_eq!(ids, submitted.completions);
    assert!(completions.iter().all(|c| c.id.prompt == submitted.prompt));
}

#[test]
fn stop_tokens_end_a_completion_and_have_no_text() {
    let mut decoder = Decoder::new(counter(), sampler(10)).with_detokenizer(digits);
    decoder.submit(count_from(1).with_stop_tokens([8, 4])).unwrap();
    let completion = &run(&mut decoder)[0];
    assert_eq!(completion.tokens(), [2, 3, 4]);
    assert_eq!(completion.text.as_deref(), Some("23"));
    assert_eq!(completion.finish, FinishReason::StopToken(4));
}

#[test]
fn stop_strings_end_a_completion_wherever_tokens_end() {
    let mut decoder = Decoder::new(counter(), sampler(10)).with_detokenizer(digits);
    decoder.submit(count_from(1).with_stop_strings(["99", "45"])).unwrap();
    decoder.submit(count_from(1).with_stop_strings(["67"])).unwrap();
    let mut shown = vec![String::new(); 2];
    let completions = decoder
        .run(|event| {
            match event {
                Event::Token { completion, text, .. } => {
                    shown[completion.prompt.0 as usize].push_str(&text);
                }
                Event::Finished { completion, text } => {
                    shown[completion.id.prompt.0 as usize].push_str(&text);
                }
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(completions[0].text.as_deref(), Some("23"));
    assert_eq!(completions[0].finish, FinishReason::StopString("45".to_owned()));
    assert_eq!(completions[0].tokens(), [2, 3, 4, 5]);
    assert_eq!(
        completions[1].text.as_deref(),
        Some("23456"),
        "what was held back comes at the end"
    );
    assert_eq!(shown, ["23", "23456"], "no part of a stop string is ever shown");
}

#[test]
fn the_context_ends_a_completion() {
    let model = counter().with_context_length(6);
    let mut decoder = Decoder::new(&model, sampler(10));
    decoder.submit(Request::new(vec![1, 2, 3]).with_sampling(greedy())).unwrap();
    let completion = &run(&mut decoder)[0];
    assert_eq!(completion.tokens(), [4, 5, 6]);
    assert_eq!(completion.finish, FinishReason::ContextFull);
    assert_eq!(completion.text, None);
}

#[test]
fn a_break_loses_nothing() {
    let whole = {
        let mut decoder = Decoder::new(counter(), sampler(10));
        decoder.submit(count_from(1).with_completions(2)).unwrap();
        let mut events = 0;
        decoder
            .run(|_| {
                events += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        events
    };
    for stop_after in 1..whole {
        let mut decoder = Decoder::new(counter(), sampler(10));
        decoder.submit(count_from(1).with_completions(2)).unwrap();
        let mut events = 0;
        let mut completions = decoder
            .run(|_| {
                events += 1;
                if events == stop_after {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
        assert_eq!(events, stop_after);
        completions.extend(
            decoder
                .run(|_| {
                    events += 1;
                    ControlFlow::Continue(())
                })
                .unwrap(),
        );
        assert_eq!(events, whole);
        assert_eq!(completions.len(), 2);
        assert!(completions.iter().all(|c| c.tokens() == [2, 3, 4, 5, 6]));
    }
}

#[test]
fn a_request_can_be_cancelled_while_it_waits_and_while_it_runs() {
    let mut decoder = Decoder::new(counter(), sampler(10));
    let running = decoder.submit(count_from(1).with_completions(2)).unwrap();
    decoder.step().unwrap();
    let waiting = decoder.submit(count_from(5).with_completions(2)).unwrap();
    decoder.cancel(running.completions[0]).unwrap();
    decoder.cancel(waiting.completions[1]).unwrap();
    let completions = run(&mut decoder);
    let got: Vec<_> = completions.iter().map(|c| (c.tokens(), c.finish.name())).collect();
    assert_eq!(got[0], (vec![2, 3], "cancelled"));
    assert_eq!(got[1], (vec![2, 3, 4, 5, 6], "max_new_tokens"));
    assert_eq!(got[2], (vec![6, 7, 8, 9, 0], "max_new_tokens"));
    assert_eq!(got[3], (vec![], "cancelled"));
    let gone = decoder.cancel(running.completions[0]).unwrap_err();
    assert_eq!(gone, RequestError::UnknownCompletion { completion: running.completions[0] });
    assert_eq!(decoder.sampler().distillers(), 0);
}

#[test]
fn a_prompt_is_cancelled_with_all_of_its_completions() {
    let mut decoder = Decoder::new(counter(), sampler(10));
    let running = decoder.submit(count_from(1).with_completions(2)).unwrap();
    decoder.step().unwrap();
    let waiting = decoder.submit(count_from(5).with_completions(2)).unwrap();
    let other = decoder.submit(count_from(7)).unwrap();
    decoder.cancel(running.completions[1]).unwrap();
    decoder.cancel_prompt(running.prompt).unwrap();
    decoder.cancel_prompt(waiting.prompt).unwrap();
    let completions = run(&mut decoder);
    let cancelled = |c: &&Completion| c.finish == FinishReason::Cancelled;
    assert_eq!(completions.iter().filter(cancelled).count(), 4);
    assert_eq!(completions[4].id, other.completions[0]);
    assert_eq!(completions[4].tokens(), [8, 9, 0, 1, 2]);
    let gone = decoder.cancel_prompt(running.prompt).unwrap_err();
    assert_eq!(gone, RequestError::UnknownPrompt { prompt: running.prompt });
    assert_eq!(
        gone.to_string(),
        "prompt 0: expected one with completions that wait or run, got one without"
    );
}

#[test]
fn a_long_prompt_is_read_in_chunks() {
    let model = counter();
    let mut decoder = Decoder::new(&model, sampler(10)).with_prefill_chunk(2).unwrap();
    let request = Request::new(vec![5, 4, 3, 2, 1]).with_completions(2);
    decoder.submit(request.with_sampling(greedy()).with_max_new_tokens(1)).unwrap();
    assert!(run(&mut decoder).iter().all(|completion| completion.tokens() == [2]));
    assert_eq!(model.calls(), [[vec![5, 4]], [vec![3, 2]], [vec![1]]]);

    let fixed = counter().with_fixed_cache();
    let mut decoder = Decoder::new(&fixed, sampler(10)).with_prefill_chunk(2).unwrap();
    let request = Request::new(vec![3, 2, 1]).with_completions(2);
    decoder.submit(request.with_sampling(greedy()).with_max_new_tokens(1)).unwrap();
    assert!(run(&mut decoder).iter().all(|completion| completion.tokens() == [2]));
    assert_eq!(fixed.calls(), [[vec![3, 2], vec![3, 2]], [vec![1], vec![1]]]);

    let error = Decoder::new(&model, sampler(10)).with_prefill_chunk(0).err().unwrap();
    assert_eq!(error.to_string(), "prefill_chunk: expected at least 1, got 0");
}

#[test]
fn chunks_do_not_change_what_is_said() {
    let model = TinyLm::new(7, &device());
    let completions = |chunk: usize| {
        let mut decoder =
            Decoder::new(&model, sampler(TinyLm::D_MODEL)).with_prefill_chunk(chunk).unwrap();
        let request = Request::new((0..40).map(|at| at * 7 % 64).collect()).with_completions(2);
        let request = request.with_sampling(sampling(0.25)).with_max_new_tokens(6);
        decoder.submit(request.with_reference_log_probs()).unwrap();
        run(&mut decoder)
    };
    let whole = completions(40);
    for chunk in [1, 7, 39] {
        for (got, expected) in completions(chunk).iter().zip(&whole) {
            assert_eq!(got.tokens(), expected.tokens());
            for (got, expected) in got.choices.iter().zip(&expected.choices) {
                let [got, expected] = [got, expected].map(|c| c.reference_log_prob.unwrap());
                assert!((got - expected).abs() < 1e-4, "{got} {expected}");
            }
        }
    }
}

#[test]
fn a_prefill_that_fails_has_taken_time_too() {
    let mut decoder = Decoder::new(counter().failing_at(0), sampler(10));
    decoder.submit(count_from(1)).unwrap();
    assert!(decoder.step().is_err());
    assert!(decoder.stats().prefill_seconds > 0.0);
}

#[test]
fn requests_join_a_running_batch() {
    let mut decoder = Decoder::new(counter(), sampler(10));
    decoder.submit(count_from(1)).unwrap();
    decoder.step().unwrap();
    decoder.step().unwrap();
    decoder.submit(count_from(7)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3, 4, 5, 6]);
    assert_eq!(completions[1].tokens(), [8, 9, 0, 1, 2]);
}

#[test]
fn prompts_wait_until_the_cache_has_room() {
    let model = counter(); // one byte a token
    let mut decoder = Decoder::new(&model, sampler(10)).with_kv_limit(12);
    assert_eq!(decoder.kv_bytes_needed(&count_from(1).with_completions(2)), 12);
    decoder.submit(count_from(1).with_completions(2)).unwrap();
    decoder.submit(count_from(5)).unwrap();
    assert_eq!(
        decoder.submit(count_from(1).with_completions(3)).unwrap_err(),
        RequestError::CacheLimit { limit: 12, needed: 18 }
    );
    let completions = run(&mut decoder);
    assert_eq!(completions[2].tokens(), [6, 7, 8, 9, 0]);
    assert!(model.calls().iter().all(|rows| rows.len() <= 2), "never three rows at once");
}

#[test]
fn a_mask_decides_what_may_be_said() {
    let masker = |row: CompletionId, generated: &[TokenId]| -> Option<TokenMask> {
        // The second completion must say 9, 8, 7, …; the first may say what it likes.
        let forced = 9 - generated.len() as TokenId;
        (row.index == 1).then(|| TokenMask::allowing(10, [forced]))
    };
    let mut decoder = Decoder::new(counter(), sampler(10));
    decoder.submit(count_from(1).with_completions(2).with_masker(masker)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3, 4, 5, 6]);
    assert_eq!(completions[1].tokens(), [9, 8, 7, 6, 5]);
}

#[test]
fn a_row_that_fails_ends_and_the_others_go_on() {
    let masker = |row: CompletionId, generated: &[TokenId]| -> Option<TokenMask> {
        (row.index == 0 && generated.len() == 2).then(|| TokenMask::allowing(10, []))
    };
    let mut decoder = Decoder::new(counter(), sampler(10));
    decoder.submit(count_from(1).with_completions(2).with_masker(masker)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3]);
    assert_eq!(completions[0].finish.name(), "failed");
    assert_eq!(completions[1].tokens(), [2, 3, 4, 5, 6]);
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let mut decoder = Decoder::new(counter(), sampler(10));
    let warm = Sampling::default().with_beta(0.0).with_top_k(1);
    decoder.submit(count_from(1).with_sampling(warm).with_reference_log_probs()).unwrap();
    let choices = &run(&mut decoder)[0].choices;
    let expected = 9.0 - (9.0f64.exp() + 9.0).ln();
    for choice in choices {
        assert_eq!(choice.log_prob, 0.0, "the only candidate");
        assert!((f64::from(choice.reference_log_prob.unwrap()) - expected).abs() < 1e-6);
    }
}

#[test]
fn a_cache_that_cannot_drop_rows_works_too() {
    let flexible = counter();
    let fixed = counter().with_fixed_cache();
    let script = |model: &ScriptedLm| {
        let mut decoder = Decoder::new(model, sampler(10));
        let stop = count_from(1).with_sampling(sampling(0.5)).with_stop_tokens([4]).with_seed(3);
        decoder.submit(stop.with_completions(3)).unwrap();
        decoder.submit(count_from(6).with_completions(2)).unwrap();
        let completions = run(&mut decoder);
        (completions, *decoder.sampler().counters())
    };
    let (a, counters_a) = script(&flexible);
    let (b, counters_b) = script(&fixed);
    let tokens = |all: &[Completion]| all.iter().map(Completion::tokens).collect::<Vec<_>>();
    assert_eq!(tokens(&a), tokens(&b));
    assert_eq!(counters_a.rows_learned, counters_b.rows_learned, "dead rows are not learned");
    assert_eq!(counters_a.tokens, counters_b.tokens, "nor sampled");
    // The second prompt waits until the first has ended, and both of its rows stand in the batch from the start.
    assert!(fixed.calls().iter().all(|rows| [2, 3].contains(&rows.len())));
}

/// A model whose cache can do only what it says it can, and fails otherwise.
struct Limited {
    inner: ScriptedLm,
    can: Can,
}

#[derive(Clone, Copy)]
struct Can {
    repeat: bool,
    drop: bool,
    append: bool,
}

struct LimitedCache {
    inner: <ScriptedLm as CausalLm>::Cache,
    can: Can,
}

impl KvCache for LimitedCache {
    fn rows(&self) -> usize {
        self.inner.rows()
    }

    fn can_drop_rows(&self) -> bool {
        self.can.drop
    }

    fn can_repeat_rows(&self) -> bool {
        self.can.repeat
    }

    fn can_append_rows(&self) -> bool {
        self.can.append
    }

    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        let repeats = (1..rows.len()).any(|at| rows[..at].contains(&rows[at]));
        let drops = (0..self.rows()).any(|row| !rows.contains(&row));
        if repeats && !self.can.repeat || drops && !self.can.drop {
            return Err(ModelError::Unsupported { operation: "keep these rows" });
        }
        self.inner.keep_rows(rows)
    }

    fn append_rows(&mut self, other: Self) -> Result<(), ModelError> {
        if !self.can.append {
            return Err(ModelError::Unsupported { operation: "append rows" });
        }
        self.inner.append_rows(other.inner)
    }
}

impl CausalLm for Limited {
    type Cache = LimitedCache;

    fn new_cache(&self) -> LimitedCache {
        LimitedCache { inner: self.inner.new_cache(), can: self.can }
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut LimitedCache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        self.inner.forward(tokens, &mut cache.inner, tap)
    }

    fn lm_head(&self) -> &dyn LmHead {
        self.inner.lm_head()
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn d_model(&self) -> usize {
        self.inner.d_model()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
}

#[test]
fn a_cache_is_asked_for_nothing_that_it_cannot_do() {
    // Three completions that end after 2, 3 and 4 tokens, then two of another prompt that end after 3. What is fed at each
    // forward pass, worked out by hand.
    let table: [([bool; 3], &[usize]); 6] = [
        // repeat, drop, append
        ([true, true, true], &[1, 1, 5, 4, 1]),
        ([false, true, true], &[3, 2, 5, 4, 1]),
        ([true, true, false], &[1, 3, 2, 1, 1, 2, 2]),
        ([true, false, true], &[1, 3, 3, 3, 1, 2, 2]),
        ([true, false, false], &[1, 3, 3, 3, 1, 2, 2]),
        ([false, false, false], &[3, 3, 3, 3, 2, 2, 2]),
    ];
    for ([repeat, drop, append], fed) in table {
        let model = Limited { inner: counter(), can: Can { repeat, drop, append } };
        let mut decoder = Decoder::new(&model, sampler(10));
        let steered = Sampling::default().with_beta(0.5).with_temperature(0.0);
        let steered = steered;
        let masker = |row: CompletionId, generated: &[TokenId]| -> Option<TokenMask> {
            let end = generated.len() as u64 == row.index + 1;
            Some(TokenMask::allowing(10, [if end { 9 } else { 1 }]))
        };
        let first = count_from(1).with_completions(3).with_masker(masker).with_stop_tokens([9]);
        decoder.submit(first.with_sampling(steered.clone())).unwrap();
        let second = count_from(6).with_completions(2).with_max_new_tokens(3);
        decoder.submit(second.with_sampling(steered)).unwrap();

        let tokens: Vec<_> = run(&mut decoder).iter().map(Completion::tokens).collect();
        let expected: [&[TokenId]; 5] =
            [&[1, 9], &[1, 1, 9], &[1, 1, 1, 9], &[7, 8, 9], &[7, 8, 9]];
        assert_eq!(tokens, expected, "repeat {repeat}, drop {drop}, append {append}");
        let rows: Vec<usize> = model.inner.calls().iter().map(Vec::len).collect();
        assert_eq!(rows, fed, "repeat {repeat}, drop {drop}, append {append}");
        let counters = decoder.sampler().counters();
        assert_eq!((counters.tokens, counters.rows_learned), (15, 10), "dead rows do not count");
    }
}

#[test]
fn a_model_that_fails_ends_what_was_running_and_nothing_else() {
    let model = counter().failing_at(3);
    let mut decoder = Decoder::new(&model, sampler(10));
    decoder.submit(count_from(1).with_sampling(sampling(0.5))).unwrap();
    let error = decoder.run(|_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, StepError::Model(_)));
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "scripted to fail at call 3"
    );
    decoder.submit(count_from(5)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].finish, FinishReason::Aborted);
    assert_eq!(completions[0].choices.len(), 3);
    assert_eq!(completions[1].tokens(), [6, 7, 8, 9, 0]);
    assert_eq!(decoder.sampler().distillers(), 0);

    let model = counter().failing_at(0); // in a prefill
    let mut decoder = Decoder::new(&model, sampler(10));
    decoder.submit(count_from(1)).unwrap();
    assert!(decoder.step().is_err());
    assert_eq!(decoder.take_completions()[0].finish, FinishReason::Aborted);
    assert!(decoder.step().unwrap().len() <= 1);
}

#[test]
fn what_could_never_run_is_refused() {
    let model = counter().with_context_length(8);
    let mut decoder = Decoder::new(&model, sampler(10));
    let mut refused = |request: Request| decoder.submit(request).unwrap_err().to_string();
    assert_eq!(refused(Request::new(vec![])), "prompt: expected at least one token, got none");
    assert_eq!(
        refused(count_from(1).with_completions(0)),
        "completions: expected at least 1, got 0"
    );
    assert_eq!(
        refused(count_from(1).with_max_new_tokens(0)),
        "max_new_tokens: expected at least 1, got 0"
    );
    assert_eq!(
        refused(count_from(1).with_completions(usize::MAX)),
        format!("completions: expected at most 65536, got {}", usize::MAX)
    );
    assert_eq!(refused(count_from(10)), "prompt token 10: expected an id below 10");
    assert_eq!(
        refused(count_from(1).with_stop_tokens([12])),
        "stop token 12: expected an id below 10"
    );
    assert_eq!(
        refused(Request::new(vec![0; 8])),
        "prompt of 8 tokens: expected at most 7, to leave room for one new token in the model's context"
    );
    assert_eq!(
        refused(count_from(1).with_stop_strings(["x"])),
        "stop strings: expected a decoder built with a detokenizer, got none"
    );
    assert!(decoder.is_idle());
}

/// A model whose answers have the wrong number of rows or the wrong width.
struct Misshapen {
    inner: ScriptedLm,
    answer: fn(Tensor<2>) -> Tensor<2>,
}

impl CausalLm for Misshapen {
    type Cache = <ScriptedLm as CausalLm>::Cache;

    fn new_cache(&self) -> Self::Cache {
        self.inner.new_cache()
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut Self::Cache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        Ok((self.answer)(self.inner.forward(tokens, cache, tap)?))
    }

    fn lm_head(&self) -> &dyn LmHead {
        self.inner.lm_head()
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn d_model(&self) -> usize {
        self.inner.d_model()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
}

#[test]
fn a_model_that_answers_for_other_rows_or_tokens_is_refused() {
    let twice: fn(Tensor<2>) -> Tensor<2> = |logits| logits.repeat_dim(0, 2);
    let wide: fn(Tensor<2>) -> Tensor<2> = |logits| logits.repeat_dim(1, 2);
    let fewer: fn(Tensor<2>) -> Tensor<2> = |logits| match logits.dims()[0] {
        1 => logits,
        _ => logits.narrow(0, 0, 1),
    };
    for (answer, message) in [
        (twice, "logits: expected shape [1, 10], got [2, 10]"),
        (wide, "logits: expected shape [1, 10], got [1, 20]"),
        (fewer, "logits: expected shape [2, 10], got [1, 10]"),
    ] {
        let mut decoder = Decoder::new(Misshapen { inner: counter(), answer }, sampler(10));
        decoder.submit(count_from(1).with_completions(2)).unwrap();
        let error = decoder.run(|_| ControlFlow::Continue(())).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_detokenizer_that_fails_ends_its_row_only() {
    let broken = |tokens: &[TokenId]| match tokens.contains(&4) {
        true => Err(TextError::new("no 4")),
        false => digits(tokens),
    };
    let mut decoder = Decoder::new(counter(), sampler(10)).with_detokenizer(broken);
    decoder.submit(count_from(1)).unwrap();
    decoder.submit(count_from(4).with_max_new_tokens(3)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3, 4]);
    assert_eq!(completions[0].finish, FinishReason::NoText(TextError::new("no 4")));
    assert_eq!(completions[1].text.as_deref(), Some("567"));
}

#[test]
fn steering_learns_every_row_but_the_first_token() {
    let model = TinyLm::new(1, &device());
    let mut decoder = Decoder::new(&model, sampler(TinyLm::D_MODEL));
    decoder
        .submit(Request::new(vec![1, 2, 3]).with_completions(4).with_max_new_tokens(10))
        .unwrap();
    let completions = run(&mut decoder);
    let counters = *decoder.sampler().counters();
    assert_eq!(counters.tokens, 40);
    assert_eq!(counters.rows_learned, 4 * 9, "K new tokens give K − 1 learned rows");
    assert_eq!(counters.updates, 9, "one distiller for the prompt, one update a step");
    for completion in &completions {
        assert_eq!(completion.choices[0].novelty, None);
        assert!(completion.choices[1..].iter().all(|choice| choice.novelty.is_some()));
    }
    assert_eq!(decoder.sampler().distillers(), 0, "released with the last completion");
    assert!(decoder.sampler_mut().finish().is_ok());
}

#[test]
fn a_plain_run_needs_no_taps() {
    let plain = Sampling::default().with_beta(0.0);
    let mut decoder = Decoder::new(TinyLm::new(1, &device()), sampler(TinyLm::D_MODEL))
        .with_sites(esamp::TapSite::AfterBlock(77), esamp::TapSite::HeadInput);
    decoder.submit(Request::new(vec![1]).with_sampling(plain)).unwrap();
    run(&mut decoder);
    decoder.submit(Request::new(vec![1])).unwrap();
    let error = decoder.run(|_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tap site AfterBlock(77): expected one `record` in the forward pass, got none"
    );
}

#[test]
fn a_model_and_its_parts_may_be_shared_by_pointer() {
    let model = Arc::new(TinyLm::new(3, &device()));
    let masker: Arc<dyn TokenMasker> = Arc::new(|_: CompletionId, _: &[TokenId]| {
        Some(TokenMask::allowing(TinyLm::VOCAB, [1, 2, 5]))
    });
    let detokenizer: Arc<dyn Detokenize> = Arc::new(TinyLm::detokenizer());
    fn run(
        model: impl CausalLm,
        masker: Arc<dyn TokenMasker>,
        text: Arc<dyn Detokenize>,
    ) -> String {
        let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
        let mut decoder = Decoder::new(model, sampler).with_detokenizer(text);
        let request = Request::new(vec![1, 2]).with_max_new_tokens(6).with_masker(masker);
        decoder.submit(request).unwrap();
        let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
        assert!(completions[0].tokens().iter().all(|token| [1, 2, 5].contains(token)));
        completions[0].text.clone().unwrap()
    }
    let borrowed = run(&*model, masker.clone(), detokenizer.clone());
    assert_eq!(run(model.clone(), masker.clone(), detokenizer.clone()), borrowed);
    assert_eq!(run(Box::new((*model).clone()), masker, detokenizer), borrowed);
}
