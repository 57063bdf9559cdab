//! The decode loop through its public interface.

use std::{ops::ControlFlow, sync::Arc};

use super::narrow;
use crate::device;
use esamp::{
    CausalLm, Completion, CompletionId, Decoder, Detokenize, Event, FinishReason, Request, Sampler,
    SamplerConfig, Sampling, TokenId, TokenMask, TokenMasker,
    errors::{RequestError, RowError, TextError},
    testing::{ScriptedLm, TinyLm},
};

pub(super) fn sampler(d_model: usize) -> Sampler {
    narrow().init(d_model, &device()).unwrap()
}

pub(super) fn sampling(beta: f32) -> Sampling {
    Sampling::paper().with_beta(beta)
}

fn greedy() -> Sampling {
    Sampling::paper().with_beta(0.0).with_temperature(0.0)
}

/// What a masker returns.
pub(super) type Masked = Result<Option<TokenMask>, RowError>;

/// Predicts the next number, modulo 10.
pub(super) fn counter() -> ScriptedLm {
    ScriptedLm::new(10, &device(), |sequence| {
        let next = (sequence[sequence.len() - 1] + 1) % 10;
        (0..10).map(|token| if token == next { 9.0 } else { 0.0 }).collect()
    })
}

pub(super) fn digits(tokens: &[TokenId]) -> Result<String, TextError> {
    Ok(tokens.iter().map(ToString::to_string).collect())
}

pub(super) fn run<M: CausalLm>(decoder: &mut Decoder<M>) -> Vec<Completion> {
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

/// The completions that have ended, of the events of a step.
pub(super) fn finished(events: Vec<Event>) -> Vec<Completion> {
    let completion = |event| match event {
        Event::Finished { completion, .. } => Some(completion),
        _ => None,
    };
    events.into_iter().filter_map(completion).collect()
}

pub(super) fn count_from(start: TokenId) -> Request {
    Request::new(vec![start]).with_sampling(greedy()).with_max_new_tokens(5)
}

#[test]
fn prompts_of_different_lengths_run_in_one_batch_and_end_independently() {
    let model = counter();
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap().with_detokenizer(digits);
    assert_eq!(decoder.stats().tokens_per_second(), None);
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
    // Each prompt is read once, then three rows run, then the remaining one.
    let rows: Vec<usize> = model.calls().iter().map(Vec::len).collect();
    assert_eq!(rows, [1, 1, 3, 1, 1, 1]);
    assert!(decoder.is_idle());
    let stats = decoder.stats();
    assert_eq!((stats.steps, stats.decoded_tokens, stats.prompt_tokens), (4, 6, 7));
    assert!(stats.prefill_seconds > 0.0 && stats.decode_seconds > 0.0);
    let rate = stats.tokens_per_second().unwrap();
    assert!((rate * stats.decode_seconds - 6.0).abs() < 1e-9, "{rate}");
}

#[test]
fn events_agree_with_the_completions() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_detokenizer(digits);
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
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_detokenizer(digits);
    decoder.submit(count_from(1).with_stop_tokens([8, 4])).unwrap();
    let completion = &run(&mut decoder)[0];
    assert_eq!(completion.tokens(), [2, 3, 4]);
    assert_eq!(completion.text.as_deref(), Some("23"));
    assert_eq!(completion.finish, FinishReason::StopToken(4));
}

#[test]
fn stop_strings_end_a_completion_at_any_token_boundary() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_detokenizer(digits);
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
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
    decoder.submit(Request::new(vec![1, 2, 3]).with_sampling(greedy())).unwrap();
    let completion = &run(&mut decoder)[0];
    assert_eq!(completion.tokens(), [4, 5, 6]);
    assert_eq!(completion.finish, FinishReason::ContextFull);
    assert_eq!(completion.text, None);
}

#[test]
fn a_break_loses_nothing() {
    let whole = {
        let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
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
        let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
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
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
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
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
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
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap().with_prefill_chunk(2).unwrap();
    let request = Request::new(vec![5, 4, 3, 2, 1]).with_completions(2);
    decoder.submit(request.with_sampling(greedy()).with_max_new_tokens(1)).unwrap();
    assert!(run(&mut decoder).iter().all(|completion| completion.tokens() == [2]));
    assert_eq!(model.calls(), [[vec![5, 4]], [vec![3, 2]], [vec![1]]]);

    let fixed = counter().with_fixed_cache();
    let mut decoder = Decoder::new(&fixed, sampler(10)).unwrap().with_prefill_chunk(2).unwrap();
    let request = Request::new(vec![3, 2, 1]).with_completions(2);
    decoder.submit(request.with_sampling(greedy()).with_max_new_tokens(1)).unwrap();
    assert!(run(&mut decoder).iter().all(|completion| completion.tokens() == [2]));
    assert_eq!(fixed.calls(), [[vec![3, 2], vec![3, 2]], [vec![1], vec![1]]]);

    let error = Decoder::new(&model, sampler(10)).unwrap().with_prefill_chunk(0).err().unwrap();
    assert_eq!(error.to_string(), "prefill_chunk: expected at least 1, got 0");
}

#[test]
fn chunks_do_not_change_the_tokens() {
    let model = TinyLm::new(7, &device());
    let completions = |chunk: usize| {
        let mut decoder = Decoder::new(&model, sampler(TinyLm::D_MODEL))
            .unwrap()
            .with_prefill_chunk(chunk)
            .unwrap();
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
fn requests_join_a_running_batch() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
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
    let model = counter();
    let decoder = Decoder::new(&model, sampler(10)).unwrap();
    let [two, three] =
        [2, 3].map(|rows| decoder.bytes_needed(&count_from(1).with_completions(rows)));
    // A row more takes one byte per token of the cache, and per token of the vocabulary 4 of logits and 12 of
    // candidates.
    assert_eq!(three - two, (1 + 5) + 10 * (4 + 12));
    let mut decoder = decoder.with_memory_limit(two);
    decoder.submit(count_from(1).with_completions(2)).unwrap();
    decoder.submit(count_from(5)).unwrap();
    assert_eq!(
        decoder.submit(count_from(1).with_completions(3)).unwrap_err(),
        RequestError::MemoryLimit { limit: two, needed: three }
    );
    let completions = run(&mut decoder);
    assert_eq!(completions[2].tokens(), [6, 7, 8, 9, 0]);
    assert!(model.calls().iter().all(|rows| rows.len() <= 2), "never three rows at once");
}

#[test]
fn a_mask_decides_which_tokens_are_allowed() {
    let masker = |row: CompletionId, generated: &[TokenId]| -> Masked {
        // The second completion must be 9, 8, 7, …; the first is unrestricted.
        let forced = 9 - generated.len() as TokenId;
        Ok((row.index == 1).then(|| TokenMask::allowing(10, [forced])))
    };
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    decoder.submit(count_from(1).with_completions(2).with_masker(masker)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3, 4, 5, 6]);
    assert_eq!(completions[1].tokens(), [9, 8, 7, 6, 5]);
}

#[test]
fn a_row_that_fails_ends_and_the_others_continue() {
    let masker = |row: CompletionId, generated: &[TokenId]| -> Masked {
        Ok((row.index == 0 && generated.len() == 2).then(|| TokenMask::allowing(10, [])))
    };
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    decoder.submit(count_from(1).with_completions(2).with_masker(masker)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3]);
    assert_eq!(completions[0].finish.name(), "failed");
    assert_eq!(completions[1].tokens(), [2, 3, 4, 5, 6]);
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
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
        let mut decoder = Decoder::new(model, sampler(10)).unwrap();
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
    // The second prompt waits until the first has ended, and both of its rows are in the batch from the start.
    assert!(fixed.calls().iter().all(|rows| [2, 3].contains(&rows.len())));
}

#[test]
fn steering_learns_every_row_but_the_first_token() {
    let model = TinyLm::new(1, &device());
    let mut decoder = Decoder::new(&model, sampler(TinyLm::D_MODEL)).unwrap();
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
    let plain = Sampling::paper().with_beta(0.0);
    let mut decoder = Decoder::new(TinyLm::new(1, &device()), sampler(TinyLm::D_MODEL))
        .unwrap()
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
        Ok(Some(TokenMask::allowing(TinyLm::VOCAB, [1, 2, 5])))
    });
    let detokenizer: Arc<dyn Detokenize> = Arc::new(TinyLm::detokenizer());
    fn run(
        model: impl CausalLm,
        masker: Arc<dyn TokenMasker>,
        text: Arc<dyn Detokenize>,
    ) -> String {
        let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
        let mut decoder = Decoder::new(model, sampler).unwrap().with_detokenizer(text);
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
