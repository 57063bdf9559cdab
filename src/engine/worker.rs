//! The thread that owns the decode loop.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{EngineStats, Shared, Update, inbox::Command, lock, stream::Stream};
use crate::{
    causal_lm::CausalLm,
    decode::{Decoder, Event, Request, RequestError},
    error::panic_text,
    id::CompletionId,
};

/// The thread's state.
pub(super) struct Worker<M: CausalLm> {
    decoder: Decoder<M>,
    shared: Arc<Shared>,
    /// The completions that have not ended.
    served: HashMap<CompletionId, Served>,
    failed_steps: u64,
    last_failure: Option<String>,
}

/// A completion that has not ended.
struct Served {
    stream: Arc<Stream>,
    /// Since when it has been paused, if it is.
    paused_since: Option<Instant>,
}

impl Served {
    fn new(stream: Arc<Stream>) -> Self {
        Self { stream, paused_since: None }
    }

    /// How long it has been paused, if it is.
    fn paused(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.paused_since?))
    }
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
        Self { decoder, shared, served: HashMap::new(), failed_steps: 0, last_failure: None }
    }

    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        while let Some(commands) = self.commands() {
            if !commands.is_empty() {
                for command in commands {
                    self.carry_out(command);
                }
                self.shared.inbox.keep(self.decoder.groups());
            }
            self.guarded(Self::cancel_abandoned);
            self.guarded(|worker| worker.resume(Instant::now()));
            if !self.decoder.is_idle() {
                self.step();
                // Again, before the thread may wait: a caller that has read before its completion was paused does not
                // wake it.
                self.guarded(|worker| worker.resume(Instant::now()));
            }
        }
        self.publish();
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
    fn commands(&self) -> Option<VecDeque<Command>> {
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
            self.publish();
            let timeout = self.shared.config.read_timeout;
            let now = Instant::now();
            let paused = self.served.values().filter_map(|served| served.paused(now));
            let deadline = paused.map(|paused| timeout.saturating_sub(paused)).min();
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
                // First, so that a caller who has heard of its completions can cancel them.
                self.shared.inbox.began(&submitted.completions);
                for &completion in &submitted.completions {
                    self.served.insert(completion, Served::new(stream.clone()));
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
        let gone = self.served.iter().filter(|(_, served)| served.stream.is_abandoned());
        let gone: HashSet<CompletionId> = gone.map(|(&completion, _)| completion).collect();
        self.cancel(&gone);
    }

    /// Resumes the completions whose caller has read, and cancels those that have been paused for too long.
    // Half of the queue is what a caller must read in that time. So a steady reader is never cancelled, however slow
    // the decoding makes it look, and one that reads a little now and then does not keep its rows.
    fn resume(&mut self, now: Instant) {
        let config = &self.shared.config;
        let mut late = HashSet::new();
        for (&completion, served) in &mut self.served {
            let Some(paused) = served.paused(now) else { continue };
            if served.stream.has_read(completion, config.max_unread / 2) {
                served.paused_since = None;
                // An error means that it has ended meanwhile.
                let _ = self.decoder.resume(completion);
            } else if paused >= config.read_timeout {
                late.insert(completion);
            }
        }
        self.cancel(&late);
    }

    /// Cancels completions at once. Those that are unknown have ended, which is what was wanted.
    fn cancel(&mut self, completions: &HashSet<CompletionId>) {
        if !completions.is_empty() {
            self.decoder.cancel_where(|id| completions.contains(&id));
        }
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
        for (completion, at) in self.decoder.admitted() {
            if let Some(served) = self.served.get(completion) {
                served.stream.admit(*at);
            }
        }
        self.deliver(events);
    }

    fn deliver(&mut self, events: Vec<Event>) {
        let mut full = Vec::new();
        for event in events {
            let (id, has_ended) = match &event {
                Event::Token { completion, .. } => (*completion, false),
                Event::Finished { completion, .. } => (completion.id, true),
            };
            if has_ended {
                self.shared.inbox.ended(id);
            }
            let Some(served) = self.served.get(&id) else {
                continue;
            };
            let unread = served.stream.push(Update::Event(event));
            if has_ended {
                served.stream.close_one();
                self.served.remove(&id);
            } else if unread >= self.shared.config.max_unread && served.paused_since.is_none() {
                full.push(id);
            }
        }
        if !full.is_empty() {
            self.guarded(|worker| worker.pause(&full));
        }
    }

    /// Pauses the completions of a step together, because each split of the cache copies all of its rows.
    fn pause(&mut self, completions: &[CompletionId]) {
        let results = self.decoder.pause_all(completions);
        let mut refused = HashSet::new();
        for (&id, result) in completions.iter().zip(results) {
            match result {
                Ok(()) => {
                    if let Some(served) = self.served.get_mut(&id) {
                        served.paused_since = Some(Instant::now());
                    }
                }
                // It cannot be paused, and its caller's queue is full.
                Err(RequestError::CannotPause { .. }) => {
                    refused.insert(id);
                }
                // It has ended with this token.
                Err(_) => {}
            }
        }
        self.cancel(&refused);
    }

    fn publish(&self) {
        let sampler = self.decoder.sampler();
        let stats = EngineStats {
            waiting: self.decoder.waiting(),
            running: self.decoder.running(),
            paused: self.served.values().filter(|served| served.paused_since.is_some()).count(),
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
        for served in self.served.values() {
            served.stream.complete();
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        decode::FinishReason,
        engine::{EngineConfig, Inbox, Updates},
        sampler::SamplerConfig,
        testing::TinyLm,
    };

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// An engine without a thread, and the updates of a request of 20 tokens. At most 4 may be unread.
    fn serve() -> (Worker<TinyLm>, Updates) {
        let model = TinyLm::new(1, &Device::flex());
        let sampler = SamplerConfig::new().init(TinyLm::D_MODEL, &Device::flex()).unwrap();
        let decoder = Decoder::new(model, sampler).unwrap();
        let inbox = Inbox::new(decoder.waiting(), decoder.left_queue());
        let config = EngineConfig::default().with_max_unread(4).with_read_timeout(TIMEOUT);
        let shared = Arc::new(Shared { inbox, stats: Default::default(), config });
        let mut worker = Worker::new(decoder, shared.clone());
        let stream = Arc::new(Stream::new());
        let request = Request::new(vec![1, 2]).with_max_new_tokens(20);
        worker.carry_out(Command::Submit(Box::new(request), stream.clone()));
        let mut updates = Updates::new(stream, shared);
        assert!(matches!(updates.recv(), Some(Update::Accepted(_))));
        (worker, updates)
    }

    /// Steps until the completion is paused or has ended.
    fn run(worker: &mut Worker<TinyLm>) {
        while !worker.decoder.is_idle() {
            worker.step();
        }
    }

    fn end(updates: &mut Updates) -> Option<(usize, FinishReason)> {
        std::iter::from_fn(|| updates.recv()).find_map(|update| match update {
            Update::Event(Event::Finished { completion, .. }) => {
                Some((completion.tokens().len(), completion.finish))
            }
            _ => None,
        })
    }

    #[test]
    fn a_caller_that_reads_steadily_is_never_cancelled() {
        let (mut worker, mut updates) = serve();
        run(&mut worker);
        let mut pauses = 0;
        while !worker.decoder.paused().is_empty() {
            let began = Instant::now();
            for seconds in [12, 25] {
                worker.resume(began + Duration::from_secs(seconds));
                assert_eq!(worker.decoder.paused().len(), 1, "it is still paused");
                assert!(matches!(updates.recv(), Some(Update::Event(Event::Token { .. }))));
            }
            worker.resume(began + Duration::from_secs(25));
            pauses += 1;
            run(&mut worker);
        }
        assert_eq!(pauses, 8, "together much longer than the limit");
        assert_eq!(end(&mut updates), Some((20, FinishReason::MaxNewTokens)));
    }

    #[test]
    fn a_caller_that_reads_one_token_now_and_then_is_cancelled() {
        let (mut worker, mut updates) = serve();
        run(&mut worker);
        let began = Instant::now();
        worker.resume(began + Duration::from_secs(29));
        assert!(matches!(updates.recv(), Some(Update::Event(Event::Token { .. }))));
        worker.resume(began + Duration::from_secs(29));
        assert_eq!(worker.decoder.paused().len(), 1, "one is less than half of the queue");
        worker.resume(began + Duration::from_secs(31));
        run(&mut worker);
        assert_eq!(end(&mut updates), Some((4, FinishReason::Cancelled)));
    }
}
