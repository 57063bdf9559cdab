//! How often pausing and resuming copies the cache.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use super::decode_loop::{Masked, count_from, counter, run, sampler};
use crate::device;
use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, Completion, CompletionId, Decoder, Event, FinishReason, HiddenStateTap, KvCache,
    LmHead, Request, TokenId,
    engine::{Engine, EngineConfig, Update, Updates},
    errors::ModelError,
    testing::ScriptedLm,
};

/// What copies rows of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    /// Tokens for which there is room.
    Reserve(usize),
    /// Rows that are kept.
    Keep(usize),
    /// Rows that are moved away, and those that stay.
    Split(usize, usize),
    /// Rows that were there, and those that are added.
    Append(usize, usize),
}
use Copied::{Append, Keep, Reserve, Split};

type Log = Arc<Mutex<Vec<Copied>>>;

/// A model that writes down how its caches are copied.
struct Logged {
    inner: ScriptedLm,
    log: Log,
}

struct LoggedCache {
    inner: <ScriptedLm as CausalLm>::Cache,
    log: Log,
}

impl Logged {
    fn new() -> (Self, Log) {
        let log = Log::default();
        (Self { inner: counter(), log: log.clone() }, log)
    }
}

fn take(log: &Log) -> Vec<Copied> {
    std::mem::take(&mut log.lock().unwrap())
}

impl KvCache for LoggedCache {
    fn rows(&self) -> usize {
        self.inner.rows()
    }

    fn reserve(&mut self, tokens: usize) {
        self.log.lock().unwrap().push(Reserve(tokens));
    }

    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        self.log.lock().unwrap().push(Keep(rows.len()));
        self.inner.keep_rows(rows)
    }

    fn append_rows(&mut self, other: Self) -> Result<(), ModelError> {
        self.log.lock().unwrap().push(Append(self.rows(), other.rows()));
        self.inner.append_rows(other.inner)
    }

    fn split_rows(&mut self, rows: &[usize]) -> Result<Self, ModelError> {
        self.log.lock().unwrap().push(Split(rows.len(), self.rows() - rows.len()));
        Ok(Self { inner: self.inner.split_rows(rows)?, log: self.log.clone() })
    }
}

impl CausalLm for Logged {
    type Cache = LoggedCache;

    fn new_cache(&self) -> LoggedCache {
        LoggedCache { inner: self.inner.new_cache(), log: self.log.clone() }
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut LoggedCache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        self.inner.forward(tokens, &mut cache.inner, tap)
    }

    fn lm_head(&self) -> &dyn LmHead {
        self.inner.lm_head()
    }

    fn device(&self) -> Device {
        device()
    }

    fn d_model(&self) -> usize {
        self.inner.d_model()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
}

/// So that the cache is not copied while the prompt is read in pieces.
#[test]
fn a_cache_has_room_before_its_prompt_is_read() {
    let (model, log) = Logged::new();
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
    decoder.submit(Request::new(vec![1; 50]).with_completions(2)).unwrap();
    decoder.step().unwrap();
    assert_eq!(take(&log), [Reserve(50), Keep(2)]);
}

#[test]
fn completions_that_are_resumed_together_copy_the_running_rows_once() {
    let (model, log) = Logged::new();
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
    let ids = decoder.submit(count_from(1).with_completions(7)).unwrap().completions;
    decoder.step().unwrap();
    take(&log);
    for &id in &ids[..4] {
        decoder.pause(id).unwrap();
    }
    assert_eq!(take(&log), [Split(1, 6), Split(1, 5), Split(1, 4), Split(1, 3)]);
    for &id in &ids[..4] {
        decoder.resume(id).unwrap();
    }
    decoder.step().unwrap();
    assert_eq!(take(&log), [Append(1, 1), Append(2, 1), Append(3, 1), Append(3, 4)]);
    assert!(run(&mut decoder).iter().all(|completion| completion.tokens() == [2, 3, 4, 5, 6]));
}

/// An engine with one completion that makes a step whenever it is permitted, and eight that nobody has read and that
/// have been paused.
struct Eight {
    engine: Engine,
    log: Log,
    permits: mpsc::Sender<()>,
    /// The engine waits for a permit.
    waits: mpsc::Receiver<()>,
    running: Updates,
    paused: Option<Updates>,
}

impl Eight {
    fn new() -> Self {
        let (model, log) = Logged::new();
        let decoder = Decoder::new(model, sampler(10)).unwrap();
        let engine = Engine::start(decoder, EngineConfig::default().with_max_unread(4)).unwrap();
        let (permits, permitted) = mpsc::channel();
        let (reached, waits) = mpsc::channel();
        let permitted = Mutex::new(permitted);
        let wait = move |_: CompletionId, _: &[TokenId]| -> Masked {
            let _ = reached.send(());
            let _ = permitted.lock().unwrap().recv();
            Ok(None)
        };
        let long = count_from(5).with_max_new_tokens(400).with_masker(wait);
        let mut running = engine.submit(long).unwrap();
        assert!(matches!(running.recv(), Some(Update::Accepted(_))));
        waits.recv().unwrap(); // before its first token
        permits.send(()).unwrap();
        waits.recv().unwrap(); // before its second one, in the same step
        let eight = count_from(1).with_completions(8).with_max_new_tokens(6);
        let paused = Some(engine.submit(eight).unwrap());
        let mut this = Self { engine, log, permits, waits, running, paused };
        this.step();
        assert!(matches!(this.running.recv(), Some(Update::Event(Event::Token { .. }))));
        while this.engine.stats().paused < 8 {
            this.step();
        }
        this
    }

    /// Lets the engine end a step and begin the next one, in which it waits again.
    fn step(&mut self) {
        self.permits.send(()).unwrap();
        let update = self.running.recv();
        assert!(matches!(update, Some(Update::Event(Event::Token { .. }))), "{update:?}");
        self.waits.recv().unwrap();
    }

    /// Reads an update of those that were paused.
    fn next(&mut self) -> Option<Update> {
        self.paused.as_mut().unwrap().recv()
    }

    /// Reads what there is. Returns the completions that have ended.
    fn ends(&mut self) -> Vec<Completion> {
        let mut ends = Vec::new();
        let paused = self.paused.as_mut().unwrap();
        while let Ok(Some(update)) = paused.recv_timeout(Duration::ZERO) {
            if let Update::Event(Event::Finished { completion, .. }) = update {
                ends.push(completion);
            }
        }
        ends
    }

    fn stop(self) {
        drop((self.running, self.permits)); // its next steps need no permit
        self.engine.stop();
    }
}

#[test]
fn completions_that_fill_their_queues_together_leave_and_return_together() {
    let mut eight = Eight::new();
    let log = take(&eight.log);
    assert_eq!(log, [Reserve(1), Reserve(1), Keep(8), Append(1, 8), Split(8, 1)]);
    let mut tokens = vec![Vec::new(); 8];
    // Read what there is while no step can be made, so that all of them are resumed before the next one.
    for _ in 0..1 + 8 * 4 {
        if let Some(Update::Event(Event::Token { completion, choice, .. })) = eight.next() {
            tokens[completion.index as usize].push(choice.token);
        }
    }
    assert_eq!(tokens, vec![vec![2, 3, 4, 5]; 8]);
    let mut ended = 0;
    while ended < 8 {
        eight.step();
        for completion in eight.ends() {
            assert_eq!(completion.tokens(), [2, 3, 4, 5, 6, 7]);
            ended += 1;
        }
    }
    assert_eq!(take(&eight.log)[0], Append(1, 8));
    eight.stop();
}

#[test]
fn paused_completions_whose_caller_has_gone_are_dropped_at_once() {
    let mut eight = Eight::new();
    take(&eight.log);
    eight.paused = None;
    while eight.engine.stats().paused > 0 {
        eight.step();
    }
    assert_eq!(take(&eight.log), []);
    eight.stop();
}

#[test]
fn some_of_those_that_were_paused_together_return_and_others_end() {
    let mut eight = Eight::new();
    take(&eight.log);
    let Some(Update::Accepted(submitted)) = eight.next() else { panic!("the first update") };
    for &id in &submitted.completions[2..5] {
        eight.engine.cancel(id);
    }
    // A step adds a token of each: after these, the first two have two unread tokens left and the others three.
    for _ in 0..8 + 2 {
        eight.next();
    }
    eight.step();
    assert_eq!(take(&eight.log), [Keep(7), Keep(6), Keep(5), Split(2, 3), Append(1, 2)]);
    let mut ends = Vec::new();
    while ends.len() < 8 {
        eight.step();
        ends.extend(eight.ends());
    }
    ends.sort_by_key(|completion| completion.id);
    for (at, completion) in ends.iter().enumerate() {
        let cancelled = ([2, 3, 4, 5].as_slice(), FinishReason::Cancelled);
        let whole = ([2, 3, 4, 5, 6, 7].as_slice(), FinishReason::MaxNewTokens);
        let (tokens, finish) = if (2..5).contains(&at) { cancelled } else { whole };
        assert_eq!((completion.tokens(), &completion.finish), (tokens.to_vec(), &finish), "{at}");
    }
    eight.stop();
}
