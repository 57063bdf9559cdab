//! The ready decode loop: many prompts, many completions of each, in one batch.

mod admission;
mod error;
mod forward;
mod other;
mod request;
mod row;
mod stop;
mod warm_up;

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc, time::Instant};

pub use error::RequestError;
pub use request::{Completion, DecodeStats, Event, FinishReason, Request, Submitted, TokenMasker};

use crate::{
    causal_lm::{CausalLm, KvCache},
    error::{ConfigError, RowError},
    hidden::TapSite,
    id::{CompletionId, PromptId, TokenId},
    sampler::{Choice, Phase, Sampler, StepError, StepInput},
    tap::{HiddenStateTap, NoTap},
    telemetry::Observer,
    text::Detokenize,
};
use forward::{expect_logits, int_tensor, prefill, rows_of};
use other::{Beside, OtherModel, other_logits};
use request::Accepted;
use row::Row;
use warm_up::PromptWarmUp;

/// Decodes with any [`CausalLm`]: submits prompts, runs them in one batch, streams what comes.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use burn::tensor::Device;
/// use esamp::{CausalLm, Decoder, Event, Request, SamplerConfig, testing::TinyLm};
///
/// let model = TinyLm::new(1, &Device::flex());
/// let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
/// let mut decoder = Decoder::new(&model, sampler).with_detokenizer(TinyLm::detokenizer());
/// decoder.submit(Request::new(vec![1, 2, 3]).with_completions(2).with_max_new_tokens(8))?;
/// let completions = decoder.run(|event| {
///     if let Event::Token { index, text, .. } = event {
///         println!("{index}: {text}");
///     }
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(completions.len(), 2);
/// assert_eq!(decoder.sampler().counters().updates, 7); // the first token is neither steered nor learned
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Each prompt is prefilled once and its cache shared among its completions. Requests may be submitted while others
/// run; they join at the next step. Rows that have ended leave the batch at once. A cache that cannot do all of this says so
/// ([`KvCache`]), and the loop asks it for nothing else: rows that have ended stay, prompts wait.
///
/// # When a step fails
///
/// A row that cannot be given a token ends with [`FinishReason::Failed`], and the others go on. When the model or the
/// sampler fails as a whole, `step` and `run` return the error, the requests that were part of the failed call end with
/// [`FinishReason::Aborted`] and keep what they had ([`take_completions`](Self::take_completions) gives it), and the
/// decoder can be used again.
pub struct Decoder<M: CausalLm> {
    model: M,
    other: Option<Box<dyn OtherModel>>,
    sampler: Sampler,
    detokenizer: Option<Arc<dyn Detokenize>>,
    kv_limit: Option<usize>,
    prefill_chunk: usize,
    sites: [TapSite; 2],
    waiting: VecDeque<Waiting>,
    batch: Option<Batch<M::Cache>>,
    /// What has happened and was not handed to the caller yet.
    events: VecDeque<Event>,
    completions: Vec<Completion>,
    next_prompt: u64,
    stats: DecodeStats,
}

/// A prompt that is not prefilled yet.
struct Waiting {
    request: Arc<Accepted>,
    completions: Vec<CompletionId>,
}

/// The rows that run together. `None` is a row that has ended and is still in the cache.
struct Batch<C> {
    cache: C,
    rows: Vec<Option<Row>>,
}

/// What the sampler chose, row by row.
type Choices = Vec<Result<Choice, RowError>>;

impl<M: CausalLm> Decoder<M> {
    /// A loop over `model`, owned or borrowed, that chooses tokens with `sampler`.
    ///
    /// Its prompts and requests are numbered from behind those that the sampler knows already, so that a sampler that was
    /// [loaded](crate::snapshots::SamplerLoader) does not take them for others.
    pub fn new(model: M, sampler: Sampler) -> Self {
        let known = sampler.completions();
        let next_prompt = known.iter().map(|id| id.prompt.0).max().map_or(0, |id| id + 1);
        Self {
            model,
            other: None,
            sampler,
            detokenizer: None,
            kv_limit: None,
            prefill_chunk: Self::DEFAULT_PREFILL_CHUNK,
            sites: [TapSite::AfterBlock(0), TapSite::HeadInput],
            waiting: VecDeque::new(),
            batch: None,
            events: VecDeque::new(),
            completions: Vec::new(),
            next_prompt,
            stats: DecodeStats::default(),
        }
    }

    /// Turns tokens into text with `detokenizer`. Before the first request.
    pub fn with_detokenizer(mut self, detokenizer: impl Detokenize + 'static) -> Self {
        self.detokenizer = Some(Arc::new(detokenizer));
        self
    }

    /// Puts another model beside the first, whose logits are the expected ones of requests that are contrasted with it
    /// ([`Contrast`](crate::reweighters::Contrast)). Before the first request.
    ///
    /// It has a cache of its own, which holds only the requests that want it: the others cost nothing. A clone of a model
    /// shares its tensors, so `with_other_model(model.clone())` does not double the weights.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use burn::tensor::Device;
    /// use esamp::{CausalLm, Decoder, Request, SamplerConfig, Sampling, testing::TinyLm};
    ///
    /// let expert = TinyLm::new(1, &Device::flex());
    /// let amateur = TinyLm::new(2, &Device::flex()); // the same vocabulary
    /// let sampler = SamplerConfig::new().init(expert.d_model(), &expert.device())?;
    /// let mut decoder = Decoder::new(&expert, sampler).with_other_model(amateur)?;
    /// let sampling = Sampling::contrastive();
    /// decoder.submit(Request::new(vec![1, 2, 3]).with_sampling(sampling).with_max_new_tokens(8))?;
    /// decoder.run(|_| ControlFlow::Continue(()))?;
    /// assert_eq!(decoder.sampler().counters().contrasted, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError::Vocabulary`] when the two have vocabularies of different size. That equal ids mean equal tokens is
    /// for the caller to know.
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

    /// The most bytes of cache that running rows may need at their longest, as
    /// [`kv_bytes_needed`](Self::kv_bytes_needed) counts them. Prompts wait until they fit.
    pub fn with_kv_limit(mut self, bytes: usize) -> Self {
        self.kv_limit = Some(bytes);
        self
    }

    /// Tokens of a prompt in one forward pass where none are set: the memory of a prefill is bounded, and a matrix product
    /// of this many rows is large enough to be fast.
    pub const DEFAULT_PREFILL_CHUNK: usize = 512;

    /// The most tokens of a prompt that one forward pass reads, at least 1. Attention takes memory for `tokens` × the
    /// prompt's length and not for its square; the logits are the same.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `tokens` is 0.
    pub fn with_prefill_chunk(mut self, tokens: usize) -> Result<Self, ConfigError> {
        ConfigError::at_least_one("prefill_chunk", tokens)?;
        self.prefill_chunk = tokens;
        Ok(self)
    }

    /// Other sites for the shallow and the deep hidden state than the paper's, which are `AfterBlock(0)` and
    /// `HeadInput`.
    pub fn with_sites(mut self, shallow: TapSite, deep: TapSite) -> Self {
        self.sites = [shallow, deep];
        self
    }

    /// Shows every token and every step to `observer`. It changes nothing else: see [`Observer`].
    pub fn with_observer(mut self, observer: Box<dyn Observer>) -> Self {
        self.sampler.set_observer(observer);
        self
    }

    /// Ends the observation and gives the observer back, if there is one.
    pub fn take_observer(&mut self) -> Option<Box<dyn Observer>> {
        self.sampler.take_observer()
    }

    /// The sampler, for its counters.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The sampler, to [finish](Sampler::finish) what it learns in the background or to reset it.
    pub fn sampler_mut(&mut self) -> &mut Sampler {
        &mut self.sampler
    }

    /// Gives the sampler back. Requests that have not ended are dropped, and their distillers with them.
    pub fn into_sampler(mut self) -> Sampler {
        let running = self.batch.take().into_iter().flat_map(|batch| batch.rows).flatten();
        let waiting = self.waiting.iter().flat_map(|prompt| prompt.completions.iter().copied());
        for row in running.map(|row| row.id).chain(waiting) {
            self.sampler.release(row);
        }
        self.sampler
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// How long what took, so far.
    pub fn stats(&self) -> &DecodeStats {
        &self.stats
    }

    /// Whether nothing is waiting, running, or still to be handed over by [`run`](Self::run).
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.batch.is_none() && self.events.is_empty()
    }

    /// Takes a request. Its prompt is prefilled at the next step that has room for it.
    ///
    /// # Errors
    ///
    /// [`RequestError`] for a request that could never run.
    pub fn submit(&mut self, request: Request) -> Result<Submitted, RequestError> {
        self.check(&request)?;
        let request = Accepted::new(request)?;
        let prompt = PromptId(self.next_prompt);
        self.next_prompt += 1;
        let completions: Vec<CompletionId> =
            (0..request.completions as u64).map(|index| CompletionId { prompt, index }).collect();
        let waiting = Waiting { request: Arc::new(request), completions: completions.clone() };
        // A distiller that the prompt shares must outlive the first of its completions.
        for &completion in &completions {
            self.sampler.admit(completion, &waiting.request.sampling);
        }
        self.waiting.push_back(waiting);
        Ok(Submitted { prompt, completions })
    }

    /// Ends one completion, waiting or running. It comes with [`FinishReason::Cancelled`] and what it had by then.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownCompletion`] when it has ended or never was.
    pub fn cancel(&mut self, completion: CompletionId) -> Result<(), RequestError> {
        match self.cancel_where(|id| id == completion) {
            0 => Err(RequestError::UnknownCompletion { completion }),
            _ => Ok(()),
        }
    }

    /// Ends all completions of a prompt, waiting or running, as [`cancel`](Self::cancel) does for one.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownPrompt`] when all of them have ended or the prompt never was.
    pub fn cancel_prompt(&mut self, prompt: PromptId) -> Result<(), RequestError> {
        match self.cancel_where(|id| id.prompt == prompt) {
            0 => Err(RequestError::UnknownPrompt { prompt }),
            _ => Ok(()),
        }
    }

    /// Ends the completions that `is_cancelled` names, and says how many there were.
    fn cancel_where(&mut self, is_cancelled: impl Fn(CompletionId) -> bool) -> usize {
        let rows = self.batch.iter().flat_map(|batch| batch.rows.iter().enumerate());
        let running: Vec<(usize, FinishReason)> = rows
            .filter(|(_, row)| row.as_ref().is_some_and(|row| is_cancelled(row.id)))
            .map(|(at, _)| (at, FinishReason::Cancelled))
            .collect();
        let mut waiting = Vec::new();
        for prompt in &mut self.waiting {
            for id in prompt.completions.extract_if(.., |id| is_cancelled(*id)) {
                waiting.push((id, prompt.request.clone()));
            }
        }
        self.waiting.retain(|prompt| !prompt.completions.is_empty());
        let count = running.len() + waiting.len();
        self.end(running);
        for (id, request) in waiting {
            let context = self.context_length(&request);
            self.hand_over(Row::new(id, request, context), FinishReason::Cancelled);
        }
        count
    }

    /// Steps until every request has ended, or `on_event` breaks. Returns the completions that have ended since the last
    /// call, in the order of their requests.
    ///
    /// After a break nothing is lost: what is running goes on with the next call, and events that were not handed over
    /// come first then.
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

    /// One step: prefills the prompts that have room, then one forward pass and one token for every running row.
    /// Returns what happened.
    ///
    /// # Errors
    ///
    /// [`StepError`]: see [above](Self#when-a-step-fails).
    pub fn step(&mut self) -> Result<Vec<Event>, StepError> {
        self.advance()?;
        Ok(self.events.drain(..).collect())
    }

    /// The completions that have ended since the last time they were taken, in the order of their requests.
    pub fn take_completions(&mut self) -> Vec<Completion> {
        let mut completions = std::mem::take(&mut self.completions);
        completions.sort_by_key(|completion| completion.id);
        completions
    }

    fn advance(&mut self) -> Result<(), StepError> {
        while let Some(waiting) = self.waiting.pop_front() {
            if !self.has_room(&waiting) {
                self.waiting.push_front(waiting);
                break;
            }
            let started = Instant::now();
            let prefilled = self.prefill(waiting);
            self.stats.prefill_seconds += started.elapsed().as_secs_f64();
            prefilled?;
        }
        let started = Instant::now();
        let decoded = self.decode();
        if decoded.is_err() {
            self.abort();
        }
        self.stats.decode_seconds += started.elapsed().as_secs_f64();
        decoded
    }

    /// Runs a prompt through the model once, chooses the first token of each completion, and lets them join the batch.
    fn prefill(&mut self, waiting: Waiting) -> Result<(), StepError> {
        let context = self.context_length(&waiting.request);
        let mut rows: Vec<Row> = waiting
            .completions
            .iter()
            .map(|&id| Row::new(id, waiting.request.clone(), context))
            .collect();
        let prompt = &waiting.request.prompt;
        let first = self.first_tokens(prompt, &mut rows);
        let (cache, choices) = match first {
            Ok(first) => first,
            Err(error) => {
                rows.into_iter().for_each(|row| self.hand_over(row, FinishReason::Aborted));
                return Err(error);
            }
        };
        self.stats.prompt_tokens += prompt.len() as u64;
        let newcomers = Batch { cache, rows: rows.into_iter().map(Some).collect() };
        let running = self.batch.replace(newcomers);
        self.accept(choices);
        match (running, self.batch.take()) {
            (Some(running), Some(newcomers)) => self.join(running, newcomers),
            (running, newcomers) => {
                self.batch = running.or(newcomers);
                Ok(())
            }
        }
    }

    /// Makes one batch of two.
    fn join(
        &mut self,
        mut running: Batch<M::Cache>,
        newcomers: Batch<M::Cache>,
    ) -> Result<(), StepError> {
        let joined = running.cache.append_rows(newcomers.cache);
        match &joined {
            Ok(()) => running.rows.extend(newcomers.rows),
            Err(_) => {
                let rows = newcomers.rows.into_iter().flatten();
                for row in rows {
                    self.hand_over(row, FinishReason::Aborted);
                }
            }
        }
        self.batch = Some(running);
        Ok(joined?)
    }

    fn first_tokens(
        &mut self,
        prompt: &[TokenId],
        rows: &mut [Row],
    ) -> Result<(M::Cache, Choices), StepError> {
        let chunk = self.prefill_chunk;
        let mut warm_up = PromptWarmUp::new(rows, self.sites);
        let (cache, logits) = prefill(&self.model, prompt, rows.len(), chunk, &mut warm_up)?;
        warm_up.learn(&mut self.sampler, rows)?;
        let contrasted: Vec<CompletionId> =
            other::contrasted(rows.iter()).map(|row| row.id).collect();
        let other_logits = match &mut self.other {
            Some(other) if !contrasted.is_empty() => {
                Some(other.prefill(prompt, &contrasted, chunk)?)
            }
            _ => None,
        };
        rows.iter_mut().for_each(Row::prepare);
        let step_rows: Vec<_> = rows.iter().map(|row| row.step_row(Phase::FirstToken)).collect();
        let input = StepInput::new(&step_rows, logits, self.model.lm_head());
        let output = self.sampler.step(input.with_other_logits(other_logits))?;
        Ok((cache, output.choices))
    }

    /// One forward pass and one token for every running row.
    fn decode(&mut self) -> Result<(), StepError> {
        self.compact()?;
        let Some(batch) = &mut self.batch else {
            return Ok(());
        };
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
        let (logits, hidden) = rows_of(logits, hidden, batch.rows.len(), &live)?;
        let other_logits = match &mut self.other {
            Some(other) => other_logits(&mut **other, batch)?,
            None => None,
        };

        batch.rows.iter_mut().flatten().for_each(Row::prepare);
        let rows: Vec<_> =
            batch.rows.iter().flatten().map(|row| row.step_row(Phase::Decode)).collect();
        let input = StepInput::new(&rows, logits, self.model.lm_head())
            .with_hidden(hidden)
            .with_other_logits(other_logits);
        let output = self.sampler.step(input)?;
        self.stats.steps += 1;
        self.stats.decoded_tokens += output.choices.iter().flatten().count() as u64;
        self.accept(output.choices);
        Ok(())
    }

    /// Gives each live row of the batch its choice, and ends those that have ended.
    fn accept(&mut self, choices: Choices) {
        let Some(batch) = &mut self.batch else {
            return;
        };
        let detokenizer = self.detokenizer.as_deref();
        let rows = batch.rows.iter_mut().enumerate();
        let rows = rows.filter_map(|(at, row)| Some((at, row.as_mut()?)));
        let ended = rows
            .zip(choices)
            .filter_map(|((at, row), choice)| {
                Some((at, row.accept(choice, detokenizer, &mut self.events)?))
            })
            .collect();
        self.end(ended);
    }

    /// Ends some rows of the batch.
    fn end(&mut self, ended: Vec<(usize, FinishReason)>) {
        if ended.is_empty() {
            return;
        }
        let Some(mut batch) = self.batch.take() else {
            return;
        };
        for (at, reason) in ended {
            if let Some(row) = batch.rows[at].take() {
                self.hand_over(row, reason);
            }
        }
        if batch.rows.iter().any(Option::is_some) {
            self.batch = Some(batch);
        }
    }

    /// Drops rows that have ended from the cache. One that cannot do so keeps them, and they are fed a dummy token.
    fn compact(&mut self) -> Result<(), StepError> {
        if let Some(other) = &mut self.other {
            let rows = self.batch.iter().flat_map(|batch| batch.rows.iter().flatten());
            let kept: Vec<CompletionId> = other::contrasted(rows).map(|row| row.id).collect();
            other.keep(&kept)?;
        }
        let Some(batch) = &mut self.batch else {
            return Ok(());
        };
        if batch.cache.can_drop_rows() && batch.rows.iter().any(Option::is_none) {
            batch.cache.keep_rows(&batch.live())?;
            batch.rows.retain(Option::is_some);
        }
        Ok(())
    }

    /// Makes a completion of a row.
    fn hand_over(&mut self, row: Row, reason: FinishReason) {
        self.sampler.release(row.id);
        let (completion, text) = row.finish(reason, self.detokenizer.as_deref());
        self.completions.push(completion.clone());
        self.events.push_back(Event::Finished { completion, text });
    }

    /// Ends everything that is running.
    fn abort(&mut self) {
        let rows = self.batch.take().into_iter().flat_map(|batch| batch.rows).flatten();
        rows.for_each(|row| self.hand_over(row, FinishReason::Aborted));
    }
}

impl<C> Batch<C> {
    /// Places of the rows that have not ended.
    fn live(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|&at| self.rows[at].is_some()).collect()
    }
}
