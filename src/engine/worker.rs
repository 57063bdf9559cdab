//! The thread that owns the decode loop.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{EngineError, EngineStats, Shared, Update, groups::GroupFile, lock, stream::Stream};
use crate::{
    causal_lm::CausalLm,
    decode::{Decoder, Event, Request},
    error::panic_text,
    id::{CompletionId, GroupId, PromptId},
};

/// What callers ask of the thread.
#[derive(Debug)]
pub(super) enum Command {
    GroupFile(GroupFile),
    Submit(Box<Request>, Arc<Stream>),
    Cancel(CompletionId),
    CancelPrompt(PromptId),
    ReleaseGroup(GroupId),
}

/// The commands that the thread has not taken yet.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
    /// Requests that have left the queue, or never entered it.
    left_queue: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct InboxState {
    commands: VecDeque<Command>,
    /// Requests so far. Those that have not left the queue wait.
    submitted: u64,
    /// No more requests are taken.
    is_closed: bool,
    /// Those that were taken are to be cancelled.
    is_stopped: bool,
    /// A caller has read or gone.
    is_poked: bool,
    has_ended: bool,
}

impl Inbox {
    /// An inbox for a decoder, which may have requests already.
    pub(super) fn new(waiting: usize, left_queue: Arc<AtomicU64>) -> Self {
        let submitted = left_queue.load(Ordering::Relaxed) + waiting as u64;
        let state = InboxState { submitted, ..InboxState::default() };
        Self { state: state.into(), changed: Condvar::new(), left_queue }
    }

    pub(super) fn submit(
        &self,
        request: Request,
        stream: Arc<Stream>,
        max_waiting: usize,
    ) -> Result<(), EngineError> {
        let mut state = lock(&self.state);
        if state.is_closed || state.has_ended {
            return Err(EngineError::Ended);
        }
        let waiting = state.submitted.saturating_sub(self.left_queue.load(Ordering::Relaxed));
        if waiting >= max_waiting as u64 {
            return Err(EngineError::Busy { limit: max_waiting });
        }
        state.submitted += 1;
        state.commands.push_back(Command::Submit(Box::new(request), stream));
        self.changed.notify_all();
        Ok(())
    }

    /// Adds a command that may come too late.
    pub(super) fn send(&self, command: Command) {
        let mut state = lock(&self.state);
        if !state.has_ended {
            state.commands.push_back(command);
            self.changed.notify_all();
        }
    }

    pub(super) fn is_running(&self) -> bool {
        let state = lock(&self.state);
        !state.is_closed && !state.has_ended
    }

    pub(super) fn poke(&self) {
        lock(&self.state).is_poked = true;
        self.changed.notify_all();
    }

    pub(super) fn close(&self, stop: bool) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.is_stopped |= stop;
        self.changed.notify_all();
    }

    pub(super) fn wait_for_end(&self) {
        let mut state = lock(&self.state);
        while !state.has_ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The thread's state.
pub(super) struct Worker<M: CausalLm> {
    decoder: Decoder<M>,
    shared: Arc<Shared>,
    /// The stream of every completion that has not ended.
    served: HashMap<CompletionId, Arc<Stream>>,
    /// Since when completions have been paused.
    paused: HashMap<CompletionId, Instant>,
    failed_steps: u64,
    last_failure: Option<String>,
}

/// Marks the engine as ended when the thread ends, however it ends.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let mut state = lock(&self.0.inbox.state);
        state.has_ended = true;
        let left = std::mem::take(&mut state.commands);
        drop(state);
        for command in left {
            if let Command::Submit(_, stream) = command {
                stream.complete();
            }
        }
        self.0.inbox.changed.notify_all();
    }
}

/// A seed that nobody has asked for.
fn fresh_seed() -> u64 {
    // The standard library's hasher has random keys, from the operating system once per thread and then counted up.
    RandomState::new().hash_one(0)
}

impl<M: CausalLm> Worker<M> {
    pub(super) fn new(decoder: Decoder<M>, shared: Arc<Shared>) -> Self {
        Self {
            decoder,
            shared,
            served: HashMap::new(),
            paused: HashMap::new(),
            failed_steps: 0,
            last_failure: None,
        }
    }

    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        while let Some(commands) = self.commands() {
            for command in commands {
                self.carry_out(command);
            }
            self.guarded(Self::cancel_abandoned);
            self.guarded(Self::resume);
            if !self.decoder.is_idle() {
                self.step();
                // Again, before the thread may wait: a caller that has read before its completion was paused does not
                // wake it.
                self.guarded(Self::resume);
            }
            self.publish();
        }
    }

    /// Does something in which code of a caller runs. Its panic counts as a failed step and stops no one else. Returns
    /// whether there was none.
    fn guarded(&mut self, task: impl FnOnce(&mut Self)) -> bool {
        let done = catch_unwind(AssertUnwindSafe(|| task(self)));
        done.map_err(|panic| self.failed(format!("panic: {}", panic_text(&*panic)))).is_ok()
    }

    fn failed(&mut self, why: String) {
        self.failed_steps += 1;
        self.last_failure = Some(why);
    }

    /// Waits for something to do. Returns the commands since the last call; `None` when the thread should end.
    fn commands(&mut self) -> Option<VecDeque<Command>> {
        let inbox = &self.shared.inbox;
        let mut state = lock(&inbox.state);
        loop {
            let is_quiet = self.decoder.is_idle() && state.commands.is_empty();
            if state.is_closed && is_quiet && self.served.is_empty() {
                return None;
            }
            if state.is_stopped {
                let cancelled = self.served.keys().map(|&id| Command::Cancel(id));
                state.commands.extend(cancelled);
            }
            if !is_quiet || state.is_stopped || state.is_poked {
                state.is_poked = false;
                return Some(std::mem::take(&mut state.commands));
            }
            let timeout = self.shared.config.read_timeout;
            let deadline =
                self.paused.values().map(|since| timeout.saturating_sub(since.elapsed()));
            let deadline = deadline.min();
            state = match deadline {
                Some(left) if left.is_zero() => return Some(VecDeque::new()),
                Some(left) => {
                    inbox
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => inbox.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn carry_out(&mut self, command: Command) {
        if let Command::Submit(request, stream) = command {
            let accepted = stream.clone();
            if !self.guarded(|worker| worker.accept(*request, accepted)) {
                self.never_queued();
                stream.complete();
            }
            return;
        }
        self.guarded(|worker| match command {
            Command::GroupFile(file) => file.carry_out(&mut worker.decoder),
            Command::Submit(..) => {}
            // A completion or prompt that is unknown has ended, which is what was wanted.
            Command::Cancel(completion) => {
                let _ = worker.decoder.cancel(completion);
            }
            Command::CancelPrompt(prompt) => {
                let _ = worker.decoder.cancel_prompt(prompt);
            }
            // A group that is unknown is not kept, which is what was wanted.
            Command::ReleaseGroup(group) => {
                let _ = worker.decoder.release_group(group);
            }
        });
    }

    fn accept(&mut self, request: Request, stream: Arc<Stream>) {
        if stream.is_abandoned() {
            self.never_queued();
            return;
        }
        let is_stopped = lock(&self.shared.inbox.state).is_stopped;
        match self.decoder.submit(request.with_seed_if_none(fresh_seed)) {
            Ok(submitted) => {
                stream.open(submitted.completions.len());
                for &completion in &submitted.completions {
                    self.served.insert(completion, stream.clone());
                    if is_stopped {
                        let _ = self.decoder.cancel(completion);
                    }
                }
                stream.push(Update::Accepted(submitted));
            }
            Err(error) => {
                self.never_queued();
                stream.push(Update::Refused(error));
                stream.complete();
            }
        }
    }

    /// Counts a request that the decoder does not get.
    fn never_queued(&self) {
        self.shared.inbox.left_queue.fetch_add(1, Ordering::Relaxed);
    }

    /// Cancels the requests whose caller has gone.
    fn cancel_abandoned(&mut self) {
        let gone = self.served.iter().filter(|(_, stream)| stream.is_abandoned());
        let gone: Vec<CompletionId> = gone.map(|(&completion, _)| completion).collect();
        for completion in gone {
            let _ = self.decoder.cancel(completion);
        }
    }

    /// Resumes the completions whose caller has read, and cancels those whose caller has not for too long.
    fn resume(&mut self) {
        let config = &self.shared.config;
        let (served, decoder) = (&self.served, &mut self.decoder);
        self.paused.retain(|&completion, since| {
            let stream = served.get(&completion);
            let has_read =
                stream.is_none_or(|stream| stream.has_read(completion, config.max_unread / 2));
            if has_read {
                // An error means that it has ended meanwhile.
                let _ = decoder.resume(completion);
                return false;
            }
            if since.elapsed() >= config.read_timeout {
                let _ = decoder.cancel(completion);
                return false;
            }
            true
        });
    }

    fn step(&mut self) {
        let stepped = catch_unwind(AssertUnwindSafe(|| self.decoder.step()));
        // After a failure the decoder has ended the completions that were in the step; after a panic it does so at the
        // next call.
        let events = match stepped {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => {
                self.failed(error.to_string());
                self.decoder.take_events()
            }
            Err(panic) => {
                self.failed(format!("panic: {}", panic_text(&*panic)));
                self.decoder.take_events()
            }
        };
        // First, so that a caller who has heard of a step finds it in the statistics.
        self.publish();
        self.deliver(events);
    }

    fn deliver(&mut self, events: Vec<Event>) {
        for event in events {
            let (id, has_ended) = match &event {
                Event::Token { completion, .. } => (*completion, false),
                Event::Finished { completion, .. } => (completion.id, true),
            };
            let Some(stream) = self.served.get(&id) else {
                continue;
            };
            let unread = stream.push(Update::Event(event));
            if has_ended {
                self.paused.remove(&id);
                stream.close_one();
                self.served.remove(&id);
            } else if unread >= self.shared.config.max_unread && !self.paused.contains_key(&id) {
                self.guarded(|worker| worker.pause(id));
            }
        }
    }

    fn pause(&mut self, id: CompletionId) {
        match self.decoder.pause(id) {
            Ok(()) => {
                self.paused.insert(id, Instant::now());
            }
            // It cannot be paused, and its caller's queue is full.
            Err(crate::decode::RequestError::CannotPause { .. }) => {
                let _ = self.decoder.cancel(id);
            }
            // It has ended with this token: its last event follows.
            Err(_) => {}
        }
    }

    fn publish(&mut self) {
        let sampler = self.decoder.sampler();
        let stats = EngineStats {
            waiting: self.decoder.waiting(),
            running: self.decoder.running(),
            paused: self.paused.len(),
            distillers: sampler.distillers(),
            distiller_bytes: sampler.state_bytes(),
            decode: *self.decoder.stats(),
            counters: *sampler.counters(),
            failed_steps: self.failed_steps,
            last_failure: self.last_failure.clone(),
        };
        *lock(&self.shared.stats) = stats;
    }
}

impl<M: CausalLm> Drop for Worker<M> {
    fn drop(&mut self) {
        // Nobody waits for more, however the thread has ended.
        for stream in self.served.values() {
            stream.complete();
        }
    }
}
