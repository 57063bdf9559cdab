//! What callers ask of the thread, between its steps.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{EngineError, groups::GroupFile, lock, stream::Stream};
use crate::{
    decode::Request,
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
    pub(super) state: Mutex<InboxState>,
    pub(super) changed: Condvar,
    /// Requests that have left the queue, or never entered it.
    pub(super) left_queue: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
pub(super) struct InboxState {
    /// Bounded: by the requests that may wait, by `live` and `groups`, and by the callers that wait for a file.
    pub(super) commands: VecDeque<Command>,
    /// Completions that have not ended and that nobody has cancelled. A command takes its completions out, so that no
    /// completion is named twice.
    live: BTreeSet<CompletionId>,
    /// Groups that are kept, or will be when the commands have been carried out.
    groups: HashSet<GroupId>,
    /// Requests so far. Those that have not left the queue wait.
    submitted: u64,
    /// No more requests are taken.
    pub(super) is_closed: bool,
    /// Those that were taken are to be cancelled.
    pub(super) is_stopped: bool,
    /// A caller has read or gone.
    pub(super) is_poked: bool,
    pub(super) has_ended: bool,
}

impl InboxState {
    fn push(&mut self, command: Command) {
        self.note_group(&command);
        self.commands.push_back(command);
    }

    /// Notes what a command will do to the groups.
    fn note_group(&mut self, command: &Command) {
        match command {
            Command::Submit(request, _) => self.groups.extend(request.group),
            Command::GroupFile(file) => self.groups.extend(file.loaded()),
            Command::ReleaseGroup(group) => {
                self.groups.remove(group);
            }
            Command::Cancel(_) | Command::CancelPrompt(_) => {}
        }
    }
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
        state.push(Command::Submit(Box::new(request), stream));
        self.changed.notify_all();
        Ok(())
    }

    /// Adds a command that may come too late. It is dropped if it names nothing, or nothing that an earlier command has
    /// not named.
    pub(super) fn send(&self, command: Command) {
        let mut state = lock(&self.state);
        let names_something = match &command {
            Command::Submit(..) | Command::GroupFile(_) => true,
            Command::Cancel(completion) => state.live.remove(completion),
            Command::CancelPrompt(prompt) => {
                let of = |index| CompletionId { prompt: *prompt, index };
                state.live.extract_if(of(0)..=of(u64::MAX), |_| true).count() > 0
            }
            Command::ReleaseGroup(group) => state.groups.contains(group),
        };
        if names_something && !state.has_ended {
            state.push(command);
            self.changed.notify_all();
        }
    }

    /// Notes completions that can be cancelled from now on.
    pub(super) fn began(&self, completions: &[CompletionId]) {
        lock(&self.state).live.extend(completions);
    }

    /// Notes that a completion has ended.
    pub(super) fn ended(&self, completion: CompletionId) {
        lock(&self.state).live.remove(&completion);
    }

    /// Notes which groups are kept, before the commands that have not been taken.
    pub(super) fn keep(&self, groups: Vec<GroupId>) {
        let mut state = lock(&self.state);
        state.groups = groups.into_iter().collect();
        let commands = std::mem::take(&mut state.commands);
        commands.iter().for_each(|command| state.note_group(command));
        state.commands = commands;
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        causal_lm::CausalLm,
        decode::Decoder,
        engine::{Engine, EngineConfig},
        sampler::SamplerConfig,
        testing::TinyLm,
    };

    fn commands(inbox: &Inbox) -> usize {
        lock(&inbox.state).commands.len()
    }

    fn of_group(group: GroupId) -> Request {
        Request::new(vec![1]).with_max_new_tokens(2).with_group(group)
    }

    #[test]
    fn callers_that_repeat_themselves_do_not_fill_it() {
        let inbox = Inbox::new(0, Arc::default());
        let completions = [0, 1, 2].map(|index| CompletionId::new(4, index));
        inbox.began(&completions);
        inbox.began(&[CompletionId::new(5, 0)]);
        inbox.keep(vec![GroupId(1), GroupId(2)]);
        for turn in 0..1000 {
            inbox.send(Command::Cancel(completions[1]));
            inbox.send(Command::Cancel(CompletionId::new(turn + 6, 0)));
            inbox.send(Command::CancelPrompt(PromptId(turn + 4)));
            inbox.send(Command::ReleaseGroup(GroupId(turn + 2)));
        }
        let expected = "Cancel(CompletionId { prompt: PromptId(4), index: 1 }), CancelPrompt(PromptId(4)), \
                        ReleaseGroup(GroupId(2)), CancelPrompt(PromptId(5))";
        assert_eq!(format!("{:?}", lock(&inbox.state).commands), format!("[{expected}]"));

        // A group that a request will found can be released, once for each of its requests.
        for _ in 0..2 {
            inbox.submit(of_group(GroupId(5)), Arc::new(Stream::new()), 9).unwrap();
            inbox.send(Command::ReleaseGroup(GroupId(5)));
            inbox.send(Command::ReleaseGroup(GroupId(5)));
        }
        assert_eq!(commands(&inbox), 4 + 4);
        // The thread tells which groups are kept; what it has not taken yet follows from that.
        inbox.keep(vec![GroupId(1), GroupId(2), GroupId(5)]);
        assert_eq!(lock(&inbox.state).groups, HashSet::from([GroupId(1)]));
    }

    #[test]
    fn what_has_ended_is_not_named_any_more() {
        let model = TinyLm::new(1, &Device::flex());
        let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
        let mut decoder = Decoder::new(model, sampler).unwrap();
        let before = decoder.submit(of_group(GroupId(3))).unwrap();
        let engine = Engine::start(decoder, EngineConfig::default()).unwrap();
        engine.submit(Request::new(vec![])).unwrap();
        let mut updates = engine.submit(of_group(GroupId(4)).with_completions(2)).unwrap();
        while updates.recv().is_some() {}
        let inbox = &engine.shared.inbox;
        for completion in before.completions {
            engine.cancel(completion);
        }
        engine.drain();
        let state = lock(&inbox.state);
        assert_eq!((state.live.len(), state.commands.len()), (0, 0));
        assert_eq!(state.groups, HashSet::from([GroupId(3), GroupId(4)]));
    }
}
