//! The decode loop with models, caches, requests and detokenizers that cannot do what is asked of them.

use std::ops::ControlFlow;

use super::decode_loop::{Masked, count_from, counter, digits, run, sampler, sampling};
use crate::device;
use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, Completion, CompletionId, Decoder, Event, FinishReason, HiddenStateTap, KvCache,
    LmHead, Request, Sampler, SamplerConfig, Sampling, TiedHead, TokenId, TokenMask,
    distillers::{LowRankConfig, SwiGluConfig},
    errors::{ModelError, RequestError, StepError, TextError},
    testing::ScriptedLm,
};

/// A model whose cache supports only some operations, and fails on the others.
pub(super) struct Limited {
    pub(super) inner: ScriptedLm,
    pub(super) can: Can,
}

#[derive(Clone, Copy)]
pub(super) struct Can {
    pub(super) repeat: bool,
    pub(super) drop: bool,
    pub(super) append: bool,
}

pub(super) struct LimitedCache {
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
fn a_cache_is_never_asked_for_an_unsupported_operation() {
    // Three completions that end after 2, 3 and 4 tokens, then two of another prompt that end after 3. The number of
    // rows fed to each forward pass, worked out by hand.
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
        let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
        let steered = Sampling::paper().with_beta(0.5).with_temperature(0.0);
        let steered = steered;
        let masker = |row: CompletionId, generated: &[TokenId]| -> Masked {
            let end = generated.len() as u64 == row.index + 1;
            Ok(Some(TokenMask::allowing(10, [if end { 9 } else { 1 }])))
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
fn a_failure_of_the_model_aborts_only_running_completions() {
    let model = counter().failing_at(3);
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
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
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
    decoder.submit(count_from(1)).unwrap();
    assert!(decoder.step().is_err());
    assert_eq!(decoder.take_completions()[0].finish, FinishReason::Aborted);
    assert!(decoder.step().unwrap().len() <= 1);
}

#[test]
fn a_prefill_that_fails_does_not_stop_the_running_completions() {
    // The third forward pass is the prefill of the second prompt.
    let mut decoder = Decoder::new(counter().failing_at(2), sampler(10)).unwrap();
    let first = decoder.submit(count_from(1)).unwrap().completions[0];
    assert_eq!(decoder.step().unwrap().len(), 2);
    let second = decoder.submit(count_from(5)).unwrap().completions[0];
    assert!(matches!(decoder.step(), Err(StepError::Model(_))));
    assert_eq!(decoder.stats().steps, 2);
    assert_eq!(decoder.take_completions()[0].id, second);
    let events = decoder.step().unwrap();
    let tokens = events
        .iter()
        .filter(|event| matches!(event, Event::Token { completion, .. } if *completion == first));
    assert_eq!(tokens.count(), 2, "that of the step that failed, and that of this one");
    assert_eq!(run(&mut decoder)[0].tokens(), [2, 3, 4, 5, 6]);
}

#[test]
fn requests_that_can_never_run_are_refused() {
    let model = counter().with_context_length(8);
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
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

/// A model whose logits have the wrong number of rows or the wrong width, or whose head has the wrong shape.
struct Misshapen {
    inner: ScriptedLm,
    answer: fn(Tensor<2>) -> Tensor<2>,
    head: Option<TiedHead>,
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
        self.head.as_ref().map_or(self.inner.lm_head(), |head| head)
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

fn misshapen(answer: fn(Tensor<2>) -> Tensor<2>, head: Option<TiedHead>) -> Misshapen {
    Misshapen { inner: counter(), answer, head }
}

#[test]
fn parts_that_do_not_fit_each_other_are_refused_before_the_first_step() {
    let wide = Decoder::new(counter(), sampler(11)).err().unwrap();
    assert_eq!(wide.to_string(), "width of the sampler's model: expected 10, got 11");
    let head = TiedHead::new(Tensor::zeros([12, 10], &device()));
    let model = misshapen(|logits| logits, Some(head));
    let head = Decoder::new(&model, sampler(10)).err().unwrap();
    assert_eq!(head.to_string(), "shape of the model's LM head: expected [10, 10], got [10, 12]");

    let swiglu = SwiGluConfig::new().init(9, 0, &device()).unwrap();
    let builder = Sampler::builder(SamplerConfig::new()).with_distiller(swiglu.clone());
    let wide = builder.build(10, &device()).unwrap_err();
    assert_eq!(wide.to_string(), "width of the distiller: expected 10, got 9");
    let low_rank = LowRankConfig::new().init(12, 0, &device()).unwrap();
    let builder = Sampler::builder(SamplerConfig::new()).with_distiller(low_rank);
    let wide = builder.build_with_worker(10, &device()).unwrap_err();
    assert_eq!(wide.to_string(), "width of the distiller: expected 10, got 12");
    let builder = Sampler::builder(SamplerConfig::new()).with_distiller(swiglu);
    assert!(builder.build(9, &device()).is_ok());
}

#[test]
fn prompt_ids_end_in_an_error_and_do_not_wrap() {
    let knows = |prompt: u64| {
        let mut sampler = sampler(10);
        sampler.admit(CompletionId::new(prompt, 0), &sampling(0.5).checked().unwrap());
        Decoder::new(counter(), sampler)
    };
    let none_left = knows(u64::MAX).err().unwrap();
    assert_eq!(
        none_left.to_string(),
        "prompt ids that the sampler knows: expected ids below 18446744073709551615, got 18446744073709551615"
    );
    let mut last = knows(u64::MAX - 2).unwrap();
    assert_eq!(last.submit(count_from(1)).unwrap().prompt.0, u64::MAX - 1);
    let none_left = last.submit(count_from(1)).unwrap_err();
    assert_eq!(none_left, RequestError::NoPromptId);
    assert_eq!(none_left.to_string(), "prompt id: expected one that has not been used, got none");
    assert_eq!(run(&mut last).len(), 1);
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
        let mut decoder = Decoder::new(misshapen(answer, None), sampler(10)).unwrap();
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
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_detokenizer(broken);
    decoder.submit(count_from(1)).unwrap();
    decoder.submit(count_from(4).with_max_new_tokens(3)).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3, 4]);
    assert_eq!(completions[0].finish, FinishReason::NoText(TextError::new("no 4")));
    assert_eq!(completions[1].text.as_deref(), Some("567"));
}

#[test]
fn a_prefill_that_fails_is_timed_too() {
    let mut decoder = Decoder::new(counter().failing_at(0), sampler(10)).unwrap();
    decoder.submit(count_from(1)).unwrap();
    assert!(decoder.step().is_err());
    assert!(decoder.stats().prefill_seconds > 0.0);
}
