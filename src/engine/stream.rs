//! The updates of one request, between the decode thread and the caller.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, OnceLock},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::{Shared, lock};
use crate::{
    decode::{Event, RequestError, Submitted},
    id::CompletionId,
};

/// What a caller hears of its request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// The request is valid and waits for its turn. The first update of every valid request.
    Accepted(Submitted),
    /// The request can never run. The only update then.
    Refused(RequestError),
    /// A token, or the end of a completion.
    Event(Event),
}

/// The updates of one request, in order. Ends after the last completion has ended.
///
/// Dropping it cancels the request.
#[derive(Debug)]
pub struct Updates {
    stream: Arc<Stream>,
    shared: Arc<Shared>,
}

/// The queue of one request. The decode thread never waits for the caller.
#[derive(Debug)]
pub(super) struct Stream {
    state: Mutex<State>,
    changed: Condvar,
    submitted: Instant,
    /// How long the request has waited for its admission.
    waited: OnceLock<Duration>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Update>,
    /// Tokens in the queue, of each completion that has some.
    unread: HashMap<CompletionId, usize>,
    waker: Option<Waker>,
    /// Completions that have not ended.
    open: usize,
    /// Nothing more will be added.
    is_complete: bool,
    /// The caller has gone.
    is_abandoned: bool,
    /// A completion is paused, so the decode thread wants to know when the caller reads.
    is_paused: bool,
}

impl State {
    fn pop(&mut self) -> Option<Update> {
        let update = self.queue.pop_front()?;
        if let Update::Event(Event::Token { completion, .. }) = &update {
            let unread = self.unread.get_mut(completion);
            if let Some(unread) = unread {
                *unread -= 1;
                if *unread == 0 {
                    self.unread.remove(completion);
                }
            }
        }
        Some(update)
    }
}

impl Stream {
    /// The queue of a request that is submitted now.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            submitted: Instant::now(),
            waited: OnceLock::new(),
        }
    }

    /// Says when the request was admitted.
    pub(super) fn admit(&self, at: Instant) {
        let _ = self.waited.set(at.duration_since(self.submitted)); // it is admitted once
    }

    /// Adds an update. Returns the number of unread tokens of its completion.
    pub(super) fn push(&self, update: Update) -> usize {
        let mut state = lock(&self.state);
        if state.is_abandoned {
            return 0;
        }
        let unread = match &update {
            Update::Event(Event::Token { completion, .. }) => {
                let unread = state.unread.entry(*completion).or_default();
                *unread += 1;
                *unread
            }
            _ => 0,
        };
        state.queue.push_back(update);
        let waker = state.waker.take();
        drop(state);
        self.wake(waker);
        unread
    }

    /// Sets the number of completions.
    pub(super) fn open(&self, completions: usize) {
        lock(&self.state).open = completions;
    }

    /// Says that one of the completions has ended, after its last update.
    pub(super) fn close_one(&self) {
        let mut state = lock(&self.state);
        state.open = state.open.saturating_sub(1);
        let is_last = state.open == 0;
        drop(state);
        if is_last {
            self.complete();
        }
    }

    /// Says that nothing more will be added.
    pub(super) fn complete(&self) {
        let mut state = lock(&self.state);
        state.is_complete = true;
        let waker = state.waker.take();
        drop(state);
        self.wake(waker);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        lock(&self.state).is_abandoned
    }

    /// Whether a completion has at most `limit` unread tokens. If not, the caller's reading will wake the thread.
    pub(super) fn has_read(&self, completion: CompletionId, limit: usize) -> bool {
        let mut state = lock(&self.state);
        let has = state.unread.get(&completion).is_none_or(|&unread| unread <= limit);
        state.is_paused |= !has;
        has
    }

    // Without the lock: a waker may run code of the caller.
    fn wake(&self, waker: Option<Waker>) {
        self.changed.notify_all();
        if let Some(waker) = waker {
            // A runtime that panics here must not take the decode thread with it.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

impl Updates {
    pub(super) fn new(stream: Arc<Stream>, shared: Arc<Shared>) -> Self {
        Self { stream, shared }
    }

    /// How long the request has waited in the queue: from [`Engine::submit`](super::Engine::submit) to its admission,
    /// when there is room for all of its completions and its prompt can be read. Reading it may begin later: shorter
    /// prompts are read first ([`Decoder::with_prefill_budget`](crate::Decoder::with_prefill_budget)).
    ///
    /// `None` until the step in which it is admitted has ended, which is before its first token arrives, and for good
    /// if it is refused, cancelled or given up before.
    pub fn waited(&self) -> Option<Duration> {
        self.stream.waited.get().copied()
    }

    /// The next update; `None` after the last one. For async code of any runtime. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Update> {
        poll_fn(|context| {
            let mut state = lock(&self.stream.state);
            if let Some(update) = state.pop() {
                let is_paused = std::mem::take(&mut state.is_paused);
                drop(state);
                self.poke(is_paused);
                return Poll::Ready(Some(update));
            }
            if state.is_complete {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The next update; `None` after the last one. Blocks until there is one.
    pub fn recv(&mut self) -> Option<Update> {
        self.recv_until(None).ok().flatten()
    }

    /// The next update; `Ok(None)` after the last one. Blocks for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`] when there is none by then.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Update>, TimedOut> {
        self.recv_until(Instant::now().checked_add(timeout))
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Option<Update>, TimedOut> {
        let mut state = lock(&self.stream.state);
        loop {
            if let Some(update) = state.pop() {
                let is_paused = std::mem::take(&mut state.is_paused);
                drop(state);
                self.poke(is_paused);
                return Ok(Some(update));
            }
            if state.is_complete {
                return Ok(None);
            }
            let changed = &self.stream.changed;
            state = match deadline {
                None => changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(TimedOut);
                    }
                    let waited = changed.wait_timeout(state, left);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
            };
        }
    }

    /// Tells the decode thread that a paused completion may go on.
    fn poke(&self, is_paused: bool) {
        if is_paused {
            self.shared.inbox.poke();
        }
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        let mut state = lock(&self.stream.state);
        state.is_abandoned = true;
        state.queue.clear();
        state.unread.clear();
        let is_complete = state.is_complete;
        drop(state);
        if !is_complete {
            self.shared.inbox.poke();
        }
    }
}

/// No update has arrived in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("updates: expected one within the time limit, got none")]
pub struct TimedOut;
