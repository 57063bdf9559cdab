//! The decode loop: several prompts and several completions of each prompt in one batch.

mod admission;
mod cancel;
mod ending;
mod error;
mod forward;
mod groups;
mod interrupted;
mod memory;
mod other;
mod pause;
mod prefill;
mod request;
mod row;
mod stop;
mod warm_up;

use std::{
    collections::{HashSet, VecDeque},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

pub use error::{GroupError, RequestError};
pub use request::{Completion, DecodeStats, Event, FinishReason, Request, Submitted, TokenMasker};

use crate::{
    causal_lm::CausalLm,
    error::{ConfigError, RowError},
    hidden::TapSite,
    id::{CompletionId, PromptId, TokenId},
    sampler::{Choice, Phase, Sampler, StepError, StepInput},
    tap::{HiddenStateTap, NoTap},
    telemetry::Observer,
    text::Detokenize,
};
use ending::{accept, make_masks, take_ended};
use forward::{expect_logits, int_tensor, rows_of};
use groups::Groups;
use interrupted::Work;
use other::{Beside, OtherModel, other_logits};
use pause::Paused;
use prefill::Reading;
use request::Accepted;
use row::Row;

/// Decode loop for any [`CausalLm`]: accepts requests, runs their completions in one batch and streams the tokens.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use burn::tensor::Device;
/// use esamp::{CausalLm, Decoder, Event, Request, SamplerConfig, testing::TinyLm};
///
/// let model = TinyLm::new(1, &Device::flex());
/// let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
/// let mut decoder = Decoder::new(&model, sampler)?.with_detokenizer(TinyLm::detokenizer());
/// decoder.submit(Request::new(vec![1, 2, 3]).with_completions(2).with_max_new_tokens(8))?;
/// let completions = decoder.run(|event| {
///     if let Event::Token { completion, text, .. } = event {
///         println!("{completion}: {text}");
///     }
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(completions.len(), 2);
/// assert_eq!(decoder.sampler().counters().updates, 7); // the first token is neither steered nor learned
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Each prompt is prefilled once, and its completions share the resulting KV cache. Requests may be submitted while
/// others run; they join the batch at the next step. Rows that have finished leave the batch at once. If the cache does
/// not support these operations (see [`KvCache`](crate::KvCache)), finished rows stay in the batch and prompts wait
/// until it is empty.
///
/// # When a step fails
///
/// A row for which no token can be chosen ends with [`FinishReason::Failed`], and the other rows continue. When the
/// model or the sampler fails as a whole, `step` and `run` return the error. The completions that were part of the
/// failed call then end with [`FinishReason::Aborted`] and keep the tokens they have
/// ([`take_completions`](Self::take_completions) returns them): after a prefill that fails, those of its prompt, and
/// after a decode step, all that run. A prefill that fails does not keep the running completions from their decode
/// step; if that fails too, the error is that of the prefill. The decoder remains usable, and the next call returns the
/// events of the step.
///
/// # When a part panics
///
/// A panic of a custom part (a masker, filter, reweighter, observer, detokenizer or model) passes through the decoder.
/// A caller that catches it can go on with the decoder: the next call ends the completions that the panic may have
/// left between two tokens with [`FinishReason::Aborted`], and all others go on as if it had not happened. After a
/// panic of a masker that is its row alone, because masks are made before the forward pass; after a panic during a
/// prefill, the completions of that prompt; after any other, all completions that were running.
///
/// A panic of a [logits processor](crate::LogitsProcessor) does not leave the step: it ends its own row with
/// [`FinishReason::Failed`].
pub struct Decoder<M: CausalLm> {
    model: M,
    other: Option<Box<dyn OtherModel>>,
    sampler: Sampler,
    detokenizer: Option<Arc<dyn Detokenize>>,
    memory_limit: Option<usize>,
    max_rows: usize,
    prefill_chunk: usize,
    prefill_budget: usize,
    sites: [TapSite; 2],
    waiting: VecDeque<Waiting>,
    /// Prompts that have left the queue. Shared with the callers of an engine, who may ask while a step runs.
    left_queue: Arc<AtomicU64>,
    /// The requests that this step has admitted, or the last one: their first completion, and when.
    admitted: Vec<(CompletionId, Instant)>,
    /// The prompts that have begun and have not been read to their end, in the order in which they began.
    reading: Vec<Reading<M::Cache>>,
    /// The rows of the prompt whose first tokens are being chosen. Empty between steps, unless a panic has left the
    /// step.
    joining: Vec<Option<Row>>,
    paused: Vec<Paused<M::Cache>>,
    batch: Option<Batch<M::Cache>>,
    /// What the step is doing. `None` between steps, unless a panic has left the step.
    work: Option<Work>,
    /// Events that have not been returned to the caller yet.
    events: VecDeque<Event>,
    completions: Vec<Completion>,
    /// Maskers that have not been told yet that this completion has ended.
    untold: VecDeque<(Arc<dyn TokenMasker>, CompletionId)>,
    next_prompt: u64,
    groups: Groups,
    stats: DecodeStats,
}

/// A prompt that has not been prefilled yet, with its completions.
struct Waiting {
    request: Arc<Accepted>,
    completions: Vec<CompletionId>,
    /// How many prompts that were submitted later have begun before it.
    overtaken: usize,
}

/// The rows that are decoded together. `None` marks a finished row that is still in the cache.
struct Batch<C> {
    cache: C,
    rows: Vec<Option<Row>>,
}

/// The sampler's result for each row.
type Choices = Vec<Result<Choice, RowError>>;

impl<M: CausalLm> Decoder<M> {
    /// Creates a decode loop over `model`, owned or borrowed, that chooses tokens with `sampler`.
    ///
    /// Prompt ids start after the highest one the sampler already knows, so that a
    /// [loaded](crate::snapshots::SamplerLoader) sampler does not confuse new prompts with old ones.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Mismatch`] when the sampler was built for a model of another width or on another device, when
    /// the model's LM head reports another shape than the model, or when no prompt id is left after those that the
    /// sampler knows.
    pub fn new(model: M, sampler: Sampler) -> Result<Self, ConfigError> {
        sampler.check_model(model.d_model(), &model.device())?;
        if let Some(got) = model.lm_head().shape() {
            let expected = [model.d_model(), model.vocab_size()];
            ConfigError::check_equal("shape of the model's LM head", expected, got)?;
        }
        let running = sampler.completions().into_iter().map(|id| id.prompt);
        let last = running.chain(sampler.held()).map(|prompt| prompt.0).max();
        let next_prompt = match last {
            None => 0,
            Some(u64::MAX) => {
                let (what, last) = ("prompt ids that the sampler knows", u64::MAX.to_string());
                let expected = format!("ids below {last}");
                return Err(ConfigError::Mismatch { what, expected, got: last });
            }
            Some(last) => last + 1,
        };
        Ok(Self {
            model,
            other: None,
            sampler,
            detokenizer: None,
            memory_limit: None,
            max_rows: usize::MAX,
            prefill_chunk: Self::DEFAULT_PREFILL_CHUNK,
            prefill_budget: usize::MAX,
            sites: [TapSite::AfterBlock(0), TapSite::HeadInput],
            waiting: VecDeque::new(),
            left_queue: Arc::default(),
            admitted: Vec::new(),
            reading: Vec::new(),
            joining: Vec::new(),
            paused: Vec::new(),
            batch: None,
            work: None,
            events: VecDeque::new(),
            completions: Vec::new(),
            untold: VecDeque::new(),
            next_prompt,
            groups: Groups::new(),
            stats: DecodeStats::default(),
        })
    }

    /// Sets the detokenizer that turns tokens into text. Call it before the first request.
    pub fn with_detokenizer(mut self, detokenizer: impl Detokenize + 'static) -> Self {
        self.detokenizer = Some(Arc::new(detokenizer));
        self
    }

    /// Adds a second model, whose logits serve as the expected logits of requests that contrast with it
    /// ([`Contrast`](crate::reweighters::Contrast)). Call it before the first request.
    ///
    /// The second model has its own KV cache, which holds only the completions that use it; other completions cost
    /// nothing. A clone of a model shares its tensors, so `with_other_model(model.clone())` does not double the
    /// weights.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use burn::tensor::Device;
    /// use esamp::{CausalLm, Decoder, Request, SamplerConfig, Sampling, testing::TinyLm};
    ///
    /// let expert = TinyLm::new(1, &Device::flex());
    /// let other = TinyLm::new(2, &Device::flex()); // the same vocabulary
    /// let sampler = SamplerConfig::new().init(expert.d_model(), &expert.device())?;
    /// let mut decoder = Decoder::new(&expert, sampler)?.with_other_model(other)?;
    /// let sampling = Sampling::contrastive();
    /// decoder.submit(Request::new(vec![1, 2, 3]).with_sampling(sampling).with_max_new_tokens(8))?;
    /// decoder.run(|_| ControlFlow::Continue(()))?;
    /// assert_eq!(decoder.sampler().counters().contrasted, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError::Vocabulary`] when the two vocabularies differ in size. The caller must ensure that equal ids
    /// mean equal tokens.
    pub fn with_other_model<A>(mut self, other: A) -> Result<Self, ConfigError>
    where
        A: CausalLm + Send + 'static,
        A::Cache: Send,
    {
        let (expected, got) = (self.model.vocab_size(), other.vocab_size());
        if expected != got {
            return Err(ConfigError::Vocabulary { expected, got });
        }
        self.other = Some(Box::new(Beside::new(other)));
        Ok(self)
    }

    /// Sets the tap sites of the shallow and the deep hidden state. The defaults are the paper's, `AfterBlock(0)` and
    /// `HeadInput`.
    pub fn with_sites(mut self, shallow: TapSite, deep: TapSite) -> Self {
        self.sites = [shallow, deep];
        self
    }

    /// Sets an observer that receives every token and every step. It does not affect the output: see [`Observer`].
    pub fn with_observer(mut self, observer: impl Observer + 'static) -> Self {
        self.sampler.set_observer(observer);
        self
    }

    /// Removes the observer and returns it, if one is set.
    pub fn take_observer(&mut self) -> Option<Box<dyn Observer>> {
        self.sampler.take_observer()
    }

    /// The sampler, for example to read its counters.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Mutable access to the sampler, for example to [finish](Sampler::finish) background learning or to reset it.
    pub fn sampler_mut(&mut self) -> &mut Sampler {
        &mut self.sampler
    }

    /// Returns the sampler. Completions that have not ended are dropped together with their distillers.
    pub fn into_sampler(mut self) -> Sampler {
        for completion in self.live() {
            self.sampler.release(completion);
        }
        self.sampler
    }

    /// The completions that have not ended.
    pub(crate) fn live(&self) -> Vec<CompletionId> {
        let begun = self.rows().chain(self.joining.iter().flatten()).map(|row| row.id);
        let waiting = self.waiting.iter().flat_map(|prompt| prompt.completions.iter().copied());
        begun.chain(waiting).collect()
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Token counts and timings so far.
    pub fn stats(&self) -> &DecodeStats {
        &self.stats
    }

    /// Whether nothing is waiting, running, or still to be delivered by [`run`](Self::run). [Paused](Self::pause)
    /// completions do not count until they are resumed, nor do prompts that wait for the room that these take.
    pub fn is_idle(&self) -> bool {
        self.reading.is_empty()
            && self.joining.is_empty()
            && self.batch.is_none()
            && !self.paused.iter().any(Paused::is_resumed)
            && self.events.is_empty()
            && (self.waiting.is_empty() || self.are_prompts_blocked())
    }

    /// Number of requests whose prompt has not begun to be read.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The number of prompts that have been read, are being read, or were cancelled before.
    pub(crate) fn left_queue(&self) -> Arc<AtomicU64> {
        self.left_queue.clone()
    }

    /// The requests that the last step has admitted: their first completion, and when.
    pub(crate) fn admitted(&self) -> &[(CompletionId, Instant)] {
        &self.admitted
    }

    /// Counts prompts that have left the queue.
    fn leave_queue(&self, prompts: usize) {
        self.left_queue.fetch_add(prompts as u64, Ordering::Relaxed);
    }

    /// Number of completions in the batch.
    pub fn running(&self) -> usize {
        self.batch.iter().map(|batch| batch.rows.iter().flatten().count()).sum()
    }

    /// Submits a request. Its prompt is prefilled at the next step that has room for it.
    ///
    /// # Errors
    ///
    /// [`RequestError`] for a request that can never run.
    pub fn submit(&mut self, request: Request) -> Result<Submitted, RequestError> {
        self.check(&request)?;
        let request = Accepted::new(request, self.detokenizer.as_deref())?;
        let count = request.completions as u64;
        let extended = request.group.and_then(|group| self.groups.extend(group, count));
        let (prompt, first) = match extended {
            Some(place) => place,
            None => {
                let prompt = PromptId(self.next_prompt);
                self.next_prompt =
                    self.next_prompt.checked_add(1).ok_or(RequestError::NoPromptId)?;
                if let Some(group) = request.group {
                    self.found_group(group, prompt, count);
                }
                (prompt, 0)
            }
        };
        let completions: Vec<CompletionId> =
            (first..first + count).map(|index| CompletionId { prompt, index }).collect();
        let seed = request.seed();
        let waiting =
            Waiting { request: Arc::new(request), completions: completions.clone(), overtaken: 0 };
        // Admit every completion now: a distiller shared by the prompt must not be dropped when the first completion
        // ends while others still wait.
        for &completion in &completions {
            self.sampler.admit(completion, &waiting.request.ready);
        }
        self.waiting.push_back(waiting);
        Ok(Submitted { prompt, completions, seed })
    }

    /// Steps until every request has ended or `on_event` breaks. Returns the completions that have ended since the
    /// last call, in the order of their ids, without those that [`step`](Self::step) has returned.
    ///
    /// A break loses nothing: the next call continues the running completions and first delivers the events that are
    /// still queued.
    ///
    /// # Errors
    ///
    /// [`StepError`]: see [above](Self#when-a-step-fails).
    pub fn run(
        &mut self,
        mut on_event: impl FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>, StepError> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if on_event(event).is_break() {
                    return Ok(self.take_completions());
                }
            }
            if self.is_idle() {
                return Ok(self.take_completions());
            }
            self.advance()?;
        }
    }

    /// Runs one step: reads the prompts for which there is room, as far as the
    /// [budget](Self::with_prefill_budget) allows, then runs one forward pass and chooses one token for every running
    /// row. Returns the resulting events. The completions that have ended are in their
    /// [`Event::Finished`], and are not kept for [`take_completions`](Self::take_completions).
    ///
    /// # Errors
    ///
    /// [`StepError`]: see [above](Self#when-a-step-fails).
    pub fn step(&mut self) -> Result<Vec<Event>, StepError> {
        self.advance()?;
        Ok(self.take_events())
    }

    /// The events that have not been returned yet, as [`step`](Self::step) returns them.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        let events: Vec<Event> = self.events.drain(..).collect();
        let finished = events.iter().filter_map(|event| match event {
            Event::Finished { completion, .. } => Some(completion.id),
            Event::Token { .. } => None,
        });
        let finished: HashSet<CompletionId> = finished.collect();
        self.completions.retain(|completion| !finished.contains(&completion.id));
        events
    }

    /// Takes the completions that have ended, in the order of their ids: those that neither [`run`](Self::run) nor an
    /// earlier call has returned, and whose [`Event::Finished`] [`step`](Self::step) has not returned. After an error
    /// of `run` or `step`, these include the aborted ones.
    pub fn take_completions(&mut self) -> Vec<Completion> {
        let mut completions = std::mem::take(&mut self.completions);
        completions.sort_by_key(|completion| completion.id);
        completions
    }

    fn advance(&mut self) -> Result<(), StepError> {
        self.recover();
        self.admitted.clear();
        let joined = self.rejoin().and_then(|()| self.prefill_waiting());
        // A failure there ends only the completions that were to join. The running ones decode in any case.
        let started = Instant::now();
        let decoded = self.decode();
        if decoded.is_err() {
            self.abort();
        }
        self.stats.decode_seconds += started.elapsed().as_secs_f64();
        self.work = None;
        self.tell_maskers();
        joined.and(decoded)
    }

    /// Runs one forward pass and chooses one token for every running row.
    fn decode(&mut self) -> Result<(), StepError> {
        if let Some(batch) = &mut self.batch {
            let vocab = self.model.vocab_size();
            let failed = make_masks(&mut batch.rows, vocab, &mut self.work);
            self.end(failed);
        }
        self.work = Some(Work::Batch);
        // Drop finished rows before the forward pass, so that no work is spent on them.
        self.compact()?;
        let Some(batch) = &mut self.batch else {
            return Ok(());
        };
        // Finished rows that the cache cannot drop get token 0 as a dummy.
        let tokens: Vec<TokenId> =
            batch.rows.iter().map(|row| row.as_ref().map_or(0, Row::last_token)).collect();
        let live = batch.live();
        let settings = batch.rows.iter().flatten().map(Row::sampling);
        let mut pair = self.sampler.tap_for(settings, self.sites);
        let tap: &mut dyn HiddenStateTap = match &mut pair {
            Some(pair) => pair,
            None => &mut NoTap,
        };

        let tokens = int_tensor(&tokens, [tokens.len(), 1], &self.model.device());
        let logits = self.model.forward(tokens, &mut batch.cache, tap)?;
        expect_logits(&logits, [batch.rows.len(), self.model.vocab_size()])?;
        let hidden = pair.map(|mut pair| pair.take()).transpose()?;
        // From here on only live rows: the dummy rows must reach neither the sampler nor the distillers.
        let (logits, hidden) = rows_of(logits, hidden, batch.rows.len(), &live)?;
        let other_logits = match &mut self.other {
            Some(other) => other_logits(&mut **other, batch)?,
            None => None,
        };

        let rows: Vec<_> =
            batch.rows.iter().flatten().map(|row| row.step_row(Phase::Decode)).collect();
        let input = StepInput::new(&rows, logits, self.model.lm_head())
            .with_hidden(hidden)
            .with_other_logits(other_logits);
        let output = self.sampler.step(input)?;
        self.stats.steps += 1;
        self.stats.decoded_tokens += output.choices.iter().flatten().count() as u64;
        let detokenizer = self.detokenizer.as_deref();
        let ended = accept(&mut batch.rows, output.choices, detokenizer, &mut self.events);
        self.end(ended);
        Ok(())
    }
}

impl<C> Batch<C> {
    /// Indices of the rows that have not ended.
    fn live(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|&at| self.rows[at].is_some()).collect()
    }
}
