//! One model for many callers: a thread that owns a decode loop, and a handle to it.

mod groups;
mod inbox;
mod stream;
mod worker;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use thiserror::Error;

pub use stream::{TimedOut, Update, Updates};

use crate::{
    causal_lm::CausalLm,
    decode::{DecodeStats, Decoder, Request},
    error::ConfigError,
    id::{CompletionId, GroupId, PromptId},
    telemetry::Counters,
};
use inbox::{Command, Inbox};
use stream::Stream;
use worker::Worker;

/// A handle to a decode loop that runs on a thread of its own. Clone it freely and use it from any thread or async
/// runtime; nothing here blocks except where it says so.
///
/// What is promised to callers, and in which order things happen, is on the page `docs/design/engine.md`. In short: a
/// completion with its own seed and its own prompt's distiller has the tokens of the plain loop, whoever else is
/// served; everything that grows is bounded; a caller that does not read, fails or leaves affects no one else.
///
/// ```
/// use burn::tensor::Device;
/// use esamp::{CausalLm, Decoder, Event, Request, SamplerConfig, testing::TinyLm};
/// use esamp::engine::{Engine, EngineConfig, Update};
///
/// let model = TinyLm::new(1, &Device::flex());
/// let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
/// let decoder = Decoder::new(model, sampler)?.with_max_rows(64)?.with_prefill_budget(256)?;
/// let engine = Engine::start(decoder, EngineConfig::default())?;
///
/// let mut updates = engine.submit(Request::new(vec![1, 2, 3]).with_max_new_tokens(8))?;
/// let mut tokens = 0;
/// while let Some(update) = updates.recv() { // in async code: `updates.next().await`
///     match update {
///         Update::Accepted(submitted) => assert_eq!(submitted.completions.len(), 1),
///         Update::Event(Event::Token { .. }) => tokens += 1,
///         _ => {}
///     }
/// }
/// assert_eq!(tokens, 8);
/// engine.drain();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    /// The last handle that is dropped drains the loop.
    _last: Arc<Last>,
}

/// Limits of an [`Engine`]. Those of the batch are set on its [`Decoder`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Requests that have been submitted and whose prompt has not begun. With more, [`Engine::submit`] returns
    /// [`EngineError::Busy`]. Default: 256.
    pub max_waiting: usize,
    /// Tokens of a completion that its caller has not read. With more, the completion is
    /// [paused](Decoder::pause) until half of them have been read. Default: 256.
    pub max_unread: usize,
    /// How long a completion may be paused before it is cancelled: the time in which its caller must read half of
    /// [`max_unread`](Self::max_unread). The slowest rate at which a completion can be read is therefore `max_unread / 2`
    /// tokens per `read_timeout`, 4.3 tokens/s by default, however fast it is decoded. With a `max_unread` below 4, that
    /// is one token. Default: 30 s.
    pub read_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_waiting: 256, max_unread: 256, read_timeout: Duration::from_secs(30) }
    }
}

impl EngineConfig {
    /// Sets the number of requests that may wait, at least 1.
    pub fn with_max_waiting(mut self, requests: usize) -> Self {
        self.max_waiting = requests;
        self
    }

    /// Sets the number of tokens of a completion that may be unread, at least 1.
    pub fn with_max_unread(mut self, tokens: usize) -> Self {
        self.max_unread = tokens;
        self
    }

    /// Sets how long a completion may be paused each time.
    pub fn with_read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }
}

/// What an engine does at the moment, and what it has done.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Requests that wait for their prompt to begin.
    pub waiting: usize,
    /// Completions that are being decoded, without those whose prompt is being read.
    pub running: usize,
    /// Completions whose caller does not read.
    pub paused: usize,
    /// Distillers in use.
    pub distillers: usize,
    /// Bytes of their parameters and optimizer state.
    pub distiller_bytes: usize,
    /// Token counts and timings of the decode loop.
    pub decode: DecodeStats,
    /// The sampler's counters.
    pub counters: Counters,
    /// Steps that failed as a whole, by an error or a panic.
    pub failed_steps: u64,
    /// What the last of them said.
    pub last_failure: Option<String>,
}

/// A request that the engine does not take. A request that the decode loop refuses is an [`Update::Refused`] instead,
/// because only the loop's thread can tell.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Too many requests wait.
    #[error("engine: expected fewer than {limit} waiting requests, got as many")]
    Busy {
        /// The limit.
        limit: usize,
    },
    /// The engine drains, has stopped, or its thread has ended.
    #[error("engine: expected one that accepts requests, got one that ends")]
    Ended,
}

/// What the handles and the thread share.
#[derive(Debug)]
struct Shared {
    inbox: Inbox,
    stats: Mutex<EngineStats>,
    config: EngineConfig,
}

#[derive(Debug)]
struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.inbox.close(false);
    }
}

/// Locks a mutex. A thread that panicked while it held the lock has left nothing half done: all critical sections here
/// are single assignments and queue operations.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Starts a thread that runs `decoder` until the engine is [drained](Self::drain), [stopped](Self::stop), or its
    /// last handle is dropped; the last of these lets the accepted requests end first.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for a limit of 0, [`ConfigError::Thread`] when the thread cannot be started.
    pub fn start<M>(decoder: Decoder<M>, config: EngineConfig) -> Result<Self, ConfigError>
    where
        M: CausalLm + Send + 'static,
        M::Cache: Send,
    {
        ConfigError::at_least_one("max_waiting", config.max_waiting)?;
        ConfigError::at_least_one("max_unread", config.max_unread)?;
        let inbox = Inbox::new(decoder.waiting(), decoder.left_queue());
        inbox.began(&decoder.live());
        inbox.keep(decoder.groups());
        let shared = Arc::new(Shared { inbox, stats: Mutex::default(), config });
        let worker = Worker::new(decoder, shared.clone());
        let thread = thread::Builder::new().name("esamp-engine".to_owned());
        let started = thread.spawn(move || worker.run());
        started.map_err(|error| ConfigError::Thread {
            purpose: "engine",
            reason: error.to_string(),
        })?;
        Ok(Self { _last: Arc::new(Last(shared.clone())), shared })
    }

    /// Submits a request and returns its updates. Without a [seed](Request::with_seed) it gets a random one, which
    /// [`Submitted::seed`](crate::Submitted) reports.
    ///
    /// # Errors
    ///
    /// [`EngineError::Busy`] when too many requests wait, [`EngineError::Ended`] when the engine takes no more.
    pub fn submit(&self, request: Request) -> Result<Updates, EngineError> {
        let stream = Arc::new(Stream::new());
        self.shared.inbox.submit(request, stream.clone(), self.shared.config.max_waiting)?;
        Ok(Updates::new(stream, self.shared.clone()))
    }

    /// Cancels a completion that has been [accepted](Update::Accepted), before the next step. Its updates end with
    /// [`FinishReason::Cancelled`](crate::FinishReason::Cancelled). Does nothing if it has ended.
    pub fn cancel(&self, completion: CompletionId) {
        self.shared.inbox.send(Command::Cancel(completion));
    }

    /// Cancels all completions of a prompt, as [`cancel`](Self::cancel) does for one.
    pub fn cancel_prompt(&self, prompt: PromptId) {
        self.shared.inbox.send(Command::CancelPrompt(prompt));
    }

    /// Forgets a [group](Request::with_group), before the next step: see
    /// [`Decoder::release_group`](crate::Decoder::release_group). Does nothing if it is not kept.
    pub fn release_group(&self, group: GroupId) {
        self.shared.inbox.send(Command::ReleaseGroup(group));
    }

    /// The state after the last step. A caller who has received an event of a step finds that step in it.
    pub fn stats(&self) -> EngineStats {
        lock(&self.shared.stats).clone()
    }

    /// Whether it takes requests: it neither drains nor has stopped, and its thread runs.
    pub fn is_running(&self) -> bool {
        self.shared.inbox.is_running()
    }

    /// Takes no more requests, and returns when all that were accepted have ended and the thread too. Blocks.
    pub fn drain(&self) {
        self.shared.inbox.close(false);
        self.shared.inbox.wait_for_end();
    }

    /// Takes no more requests, cancels all others, and returns when the thread has ended. Blocks for at most one step.
    pub fn stop(&self) {
        self.shared.inbox.close(true);
        self.shared.inbox.wait_for_end();
    }
}
