//! The decode loop on a thread of its own.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use super::decode_loop::{Masked, run, sampler, sampling};
use crate::device;
use esamp::{
    CompletionId, Decoder, Event, FinishReason, GroupId, Request, TokenId, TokenMasker,
    engine::{Engine, EngineConfig, EngineError, Update, Updates},
    errors::RequestError,
    telemetry::RowTrace,
    testing::{ScriptedLm, TinyLm},
};

const SOON: Duration = Duration::from_secs(60);

fn decoder() -> Decoder<TinyLm> {
    Decoder::new(TinyLm::new(3, &device()), sampler(TinyLm::D_MODEL)).unwrap()
}

fn engine(config: EngineConfig) -> Engine {
    Engine::start(decoder(), config).unwrap()
}

fn request(prompt: Vec<TokenId>, length: usize) -> Request {
    Request::new(prompt).with_max_new_tokens(length).with_sampling(sampling(1.0))
}

/// Waits until `is_so`, which a correct engine makes true within milliseconds.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The tokens of each completion, and why it ended. Checks the order of the updates.
fn read(updates: &mut Updates) -> (Vec<Vec<TokenId>>, Vec<FinishReason>) {
    let Some(Update::Accepted(submitted)) = updates.recv() else {
        panic!("the first update of a valid request");
    };
    let mut tokens = vec![Vec::new(); submitted.completions.len()];
    let mut finish = vec![None; submitted.completions.len()];
    while let Some(update) = updates.recv() {
        match update {
            Update::Event(Event::Token { completion, choice, .. }) => {
                assert_eq!(finish[completion.index as usize], None);
                tokens[completion.index as usize].push(choice.token);
            }
            Update::Event(Event::Finished { completion, .. }) => {
                let index = completion.id.index as usize;
                assert_eq!(completion.tokens(), tokens[index]);
                assert_eq!(finish[index].replace(completion.finish), None);
            }
            other => panic!("{other:?}"),
        }
    }
    (tokens, finish.into_iter().map(Option::unwrap).collect())
}

/// A masker that waits for a switch, and tells when it has been called.
struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
    was_reached: AtomicBool,
}

impl Gate {
    fn new() -> Arc<Self> {
        let (is_open, changed) = (Mutex::new(false), Condvar::new());
        Arc::new(Self { is_open, changed, was_reached: AtomicBool::new(false) })
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn masker(self: &Arc<Self>) -> impl Fn(CompletionId, &[TokenId]) -> Masked + use<> {
        let gate = self.clone();
        move |_, _| {
            gate.pass();
            Ok(None)
        }
    }

    /// Waits until the gate is open.
    fn pass(&self) {
        self.was_reached.store(true, Relaxed);
        let mut is_open = self.is_open.lock().unwrap();
        while !*is_open {
            is_open = self.changed.wait(is_open).unwrap();
        }
    }
}

#[test]
fn the_tokens_are_those_of_the_plain_loop_whatever_the_order() {
    let requests: Vec<Request> = (0..6)
        .map(|i| request(vec![i, i + 1], 6 + i as usize).with_completions(2).with_seed(i.into()))
        .collect();
    let expected: Vec<_> = requests
        .iter()
        .map(|request| {
            let mut decoder = decoder();
            decoder.submit(request.clone()).unwrap();
            run(&mut decoder).iter().map(|c| c.tokens()).collect::<Vec<_>>()
        })
        .collect();
    let config = EngineConfig::default().with_max_unread(2);
    let limited = decoder().with_max_rows(5).unwrap().with_prefill_budget(3).unwrap();
    let engine = Engine::start(limited, config).unwrap();
    std::thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&expected).rev() {
            let engine = engine.clone();
            scope.spawn(move || {
                let mut updates = engine.submit(request.clone().with_completions(2)).unwrap();
                let (tokens, finish) = read(&mut updates);
                assert_eq!(&tokens.iter().map(Vec::len).sum::<usize>(), &expected.concat().len());
                // Two completions that share a distiller may have been paused at different times.
                assert_eq!(tokens[0][0], expected[0][0]);
                assert!(finish.iter().all(|finish| *finish == FinishReason::MaxNewTokens));
            });
        }
    });
    // Without pauses, every token.
    let engine = self::engine(EngineConfig::default());
    std::thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&expected).rev() {
            let engine = engine.clone();
            scope.spawn(move || {
                assert_eq!(&read(&mut engine.submit(request.clone()).unwrap()).0, expected);
            });
        }
    });
    engine.drain();
    let stats = engine.stats();
    assert_eq!((stats.waiting, stats.running, stats.distillers), (0, 0, 0));
    assert_eq!((stats.failed_steps, stats.counters.tokens), (0, 2 * (6 + 7 + 8 + 9 + 10 + 11)));
}

#[test]
fn a_request_without_a_seed_gets_a_new_one() {
    let engine = engine(EngineConfig::default());
    let mut seeds = Vec::new();
    for _ in 0..3 {
        let mut updates = engine.submit(request(vec![1, 2], 1)).unwrap();
        match updates.recv() {
            Some(Update::Accepted(submitted)) => seeds.push(submitted.seed),
            other => panic!("{other:?}"),
        }
    }
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 3);
    let mut updates = engine.submit(request(vec![1, 2], 1).with_seed(7)).unwrap();
    let Some(Update::Accepted(submitted)) = updates.recv() else { panic!() };
    assert_eq!(submitted.seed, 7);
}

#[test]
fn a_request_that_can_never_run_is_refused_and_the_others_go_on() {
    let engine = engine(EngineConfig::default());
    let mut good = engine.submit(request(vec![1], 4)).unwrap();
    let mut bad = engine.submit(request(vec![], 4)).unwrap();
    assert!(matches!(bad.recv(), Some(Update::Refused(RequestError::EmptyPrompt))));
    assert!(bad.recv().is_none());
    assert_eq!(read(&mut good).0[0].len(), 4);
}

#[test]
fn waiting_requests_are_bounded() {
    let engine = engine(EngineConfig::default().with_max_waiting(2));
    let gate = Gate::new();
    let first = engine.submit(request(vec![1], 2).with_masker(gate.masker())).unwrap();
    wait_until("the first request runs", || gate.was_reached.load(Relaxed));
    // The first one still counts: its masks are made before its prompt leaves the queue.
    let second = engine.submit(request(vec![2], 2)).unwrap();
    let third = engine.submit(request(vec![3], 2));
    assert_eq!(third.unwrap_err(), EngineError::Busy { limit: 2 });
    gate.open();
    for mut updates in [first, second] {
        assert_eq!(read(&mut updates).0[0].len(), 2);
    }
    wait_until("room again", || engine.submit(request(vec![3], 2)).is_ok());
}

#[test]
fn a_request_whose_prompt_has_begun_does_not_wait() {
    let gate = Gate::new();
    let observed = gate.clone();
    let decoder = decoder().with_observer(move |_: &RowTrace| observed.pass());
    let engine = Engine::start(decoder, EngineConfig::default().with_max_waiting(1)).unwrap();
    let first = engine.submit(request(vec![1], 2)).unwrap();
    wait_until("its first token is chosen", || gate.was_reached.load(Relaxed));
    let second = engine.submit(request(vec![2], 2)).unwrap();
    let third = engine.submit(request(vec![3], 2));
    assert_eq!(third.unwrap_err(), EngineError::Busy { limit: 1 });
    gate.open();
    for mut updates in [first, second] {
        assert_eq!(read(&mut updates).0[0].len(), 2);
    }
    // Those that are refused or cancelled before their turn do not wait either.
    assert!(matches!(engine.submit(request(vec![], 1)).unwrap().recv(), Some(Update::Refused(_))));
    assert_eq!(read(&mut engine.submit(request(vec![3], 2)).unwrap()).0[0].len(), 2);
}

#[test]
fn a_request_waits_until_there_is_room_for_it() {
    let decoder = decoder().with_max_rows(2).unwrap();
    let config = EngineConfig::default().with_max_unread(2).with_read_timeout(SOON);
    let engine = Engine::start(decoder, config).unwrap();
    let mut slow = engine.submit(request(vec![1], 20).with_completions(2)).unwrap();
    wait_until("it is paused", || engine.stats().paused == 2);
    assert!(slow.waited().is_some(), "it has been admitted");
    let mut next = engine.submit(request(vec![2], 3)).unwrap();
    let mut cancelled = engine.submit(request(vec![3], 3)).unwrap();
    wait_until("both wait", || engine.stats().waiting == 2);
    let wait = Instant::now();
    let Some(Update::Accepted(submitted)) = cancelled.recv() else { panic!() };
    engine.cancel_prompt(submitted.prompt);
    while cancelled.recv().is_some() {}
    assert_eq!((next.waited(), cancelled.waited()), (None, None), "neither has been admitted");
    let at_least = wait.elapsed();
    read(&mut slow);
    read(&mut next);
    assert!(next.waited().unwrap() >= at_least);
    assert_eq!(cancelled.waited(), None);
    let mut refused = engine.submit(request(vec![], 1)).unwrap();
    while refused.recv().is_some() {}
    assert_eq!(refused.waited(), None);
}

#[test]
fn a_group_can_be_released() {
    let engine = engine(EngineConfig::default());
    let group = |prompt| request(prompt, 3).with_group(GroupId(5));
    for prompt in 1..3 {
        let mut updates = engine.submit(group(vec![prompt])).unwrap();
        while updates.recv().is_some() {}
        assert_eq!(engine.stats().distillers, 1, "it is kept for the next request");
    }
    engine.release_group(GroupId(5));
    engine.release_group(GroupId(6)); // it is not kept, which is what was wanted
    wait_until("its distiller is freed", || engine.stats().distillers == 0);
}

#[test]
fn the_statistics_are_those_of_the_step_whose_events_are_read() {
    let engine = engine(EngineConfig::default());
    for seed in 0..50 {
        let mut updates = engine.submit(request(vec![1], 1).with_seed(seed)).unwrap();
        while let Some(update) = updates.recv() {
            if let Update::Event(Event::Finished { .. }) = update {
                let stats = engine.stats();
                assert_eq!((stats.running, stats.counters.tokens), (0, seed + 1));
            }
        }
    }
}

#[test]
fn a_caller_that_does_not_read_pauses_only_its_own() {
    let config = EngineConfig::default().with_max_unread(4).with_read_timeout(SOON);
    let engine = engine(config);
    let mut slow = engine.submit(request(vec![1, 2], 40).with_seed(1)).unwrap();
    wait_until("the slow one is paused", || engine.stats().paused == 1);
    let mut quick = engine.submit(request(vec![3, 4], 40).with_seed(2)).unwrap();
    assert_eq!(read(&mut quick).0[0].len(), 40);
    // The quick one may have been paused too, until its reader had caught up.
    wait_until("only the slow one is paused", || engine.stats().paused == 1);
    let (tokens, finish) = read(&mut slow);
    assert_eq!(finish, [FinishReason::MaxNewTokens]);
    let mut alone = decoder();
    alone.submit(request(vec![1, 2], 40).with_seed(1)).unwrap();
    assert_eq!(tokens[0], run(&mut alone)[0].tokens(), "a pause does not change its tokens");
}

#[test]
fn the_thread_sleeps_while_a_caller_that_does_not_read_keeps_others_waiting() {
    let decoder = decoder().with_max_rows(1).unwrap();
    let engine = Engine::start(decoder, EngineConfig::default().with_max_unread(2)).unwrap();
    let mut slow = engine.submit(request(vec![1, 2], 20)).unwrap();
    wait_until("it is paused", || engine.stats().paused == 1);
    let mut next = engine.submit(request(vec![3], 4)).unwrap();
    wait_until("it waits", || engine.stats().waiting == 1);
    let before = engine.stats();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(engine.stats().decode, before.decode, "no step");
    assert_eq!(read(&mut slow).0[0].len(), 20);
    assert_eq!(read(&mut next).0[0].len(), 4);
}

#[test]
fn a_caller_that_reads_too_late_is_cancelled() {
    let config = EngineConfig::default().with_max_unread(4);
    let engine = engine(config.with_read_timeout(Duration::from_millis(20)));
    let mut slow = engine.submit(request(vec![1, 2], 400)).unwrap();
    wait_until("the slow one is paused", || engine.stats().counters.tokens >= 4);
    wait_until("the slow one is cancelled", || engine.stats().distillers == 0);
    let (tokens, finish) = read(&mut slow);
    assert_eq!((tokens[0].len(), &finish[0]), (4, &FinishReason::Cancelled));
}

#[test]
fn a_caller_that_leaves_frees_its_rows() {
    let engine = engine(EngineConfig::default());
    let mut stays = engine.submit(request(vec![7], 60)).unwrap();
    for prompt in 0..8 {
        let mut updates = engine.submit(request(vec![prompt, 3], 400).with_completions(3)).unwrap();
        if prompt % 2 == 0 {
            updates.recv();
        }
        drop(updates);
    }
    assert_eq!(read(&mut stays).0[0].len(), 60);
    engine.drain();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.distillers), (0, 0, 0));
    assert!(stats.counters.tokens < 60 + 8 * 3 * 400, "{}", stats.counters.tokens);
}

#[test]
fn completions_and_prompts_can_be_cancelled() {
    let engine = engine(EngineConfig::default());
    let mut updates = engine.submit(request(vec![1], 400).with_completions(2)).unwrap();
    let Some(Update::Accepted(submitted)) = updates.recv() else { panic!() };
    engine.cancel(submitted.completions[1]);
    let ended = |updates: &mut Updates| loop {
        if let Some(Update::Event(Event::Finished { completion, .. })) = updates.recv() {
            break completion;
        }
    };
    let completion = ended(&mut updates);
    assert_eq!(
        (completion.id, completion.finish),
        (submitted.completions[1], FinishReason::Cancelled)
    );
    engine.cancel_prompt(submitted.prompt);
    assert_eq!(ended(&mut updates).finish, FinishReason::Cancelled);
    assert!(updates.recv().is_none());
    engine.cancel_prompt(submitted.prompt); // it has ended, which is what was wanted
}

#[test]
fn a_panic_of_a_request_ends_only_what_it_must() {
    let engine = engine(EngineConfig::default());
    let mut good = engine.submit(request(vec![1, 2], 50).with_seed(3)).unwrap();
    let bomb = |_: CompletionId, generated: &[TokenId]| -> Masked {
        assert!(generated.len() < 3, "a masker that is scripted to panic");
        Ok(None)
    };
    let mut bad = engine.submit(request(vec![5], 50).with_masker(bomb)).unwrap();
    let (tokens, finish) = read(&mut bad);
    assert_eq!((tokens[0].len(), &finish[0]), (3, &FinishReason::Aborted));
    let mut alone = decoder();
    alone.submit(request(vec![1, 2], 50).with_seed(3)).unwrap();
    assert_eq!(read(&mut good).0[0], run(&mut alone)[0].tokens());
    let stats = engine.stats();
    assert_eq!(stats.failed_steps, 1);
    assert!(stats.last_failure.unwrap().contains("scripted to panic"));
}

/// A masker that panics when its completion has ended.
struct PanicsAtTheEnd;

impl TokenMasker for PanicsAtTheEnd {
    fn mask(&self, _: CompletionId, _: &[TokenId]) -> Masked {
        Ok(None)
    }

    fn ended(&self, _: CompletionId) {
        panic!("at the end");
    }
}

#[test]
fn a_panic_between_two_steps_stops_no_one_else() {
    let engine = engine(EngineConfig::default());
    let mut stays = engine.submit(request(vec![7], 200)).unwrap();
    let mut leaves = engine.submit(request(vec![8], 200).with_masker(PanicsAtTheEnd)).unwrap();
    for _ in 0..2 {
        leaves.recv().unwrap(); // accepted, and its first token
    }
    drop(leaves);
    assert_eq!(read(&mut stays).0[0].len(), 200);
    wait_until("it is counted", || engine.stats().failed_steps > 0);
    assert_eq!(engine.stats().last_failure.as_deref(), Some("panic: at the end"));
    assert!(engine.is_running());
    engine.drain();
    assert!(!engine.is_running());
}

#[test]
fn callers_hear_of_a_failure_although_no_later_step_succeeds() {
    let model = ScriptedLm::new(10, &device(), |_| vec![0.0; 10]).failing_at(0);
    let decoder = Decoder::new(model, sampler(10)).unwrap();
    let engine = Engine::start(decoder, EngineConfig::default()).unwrap();
    let mut updates = engine.submit(Request::new(vec![1])).unwrap();
    assert_eq!(read(&mut updates).1, [FinishReason::Aborted]);
}

#[test]
fn draining_ends_what_was_accepted_and_stopping_cancels_it() {
    let engine = engine(EngineConfig::default());
    let mut updates = engine.submit(request(vec![1], 30)).unwrap();
    engine.drain();
    assert_eq!(engine.submit(request(vec![1], 3)).unwrap_err(), EngineError::Ended);
    assert_eq!(read(&mut updates).0[0].len(), 30);

    let engine = self::engine(EngineConfig::default().with_max_unread(1_000));
    let mut running = engine.submit(request(vec![1], 500)).unwrap();
    let mut paused = self::engine(EngineConfig::default()).submit(request(vec![2], 5)).unwrap();
    assert!(matches!(running.recv(), Some(Update::Accepted(_))));
    engine.stop();
    let mut last = None;
    while let Some(update) = running.recv() {
        last = Some(update);
    }
    match last {
        Some(Update::Event(Event::Finished { completion, .. })) => {
            assert!(matches!(completion.finish, FinishReason::Cancelled), "{completion:?}");
        }
        other => panic!("{other:?}"),
    }
    // The handle of the other engine is gone. What it had accepted ends all the same.
    assert_eq!(read(&mut paused).0[0].len(), 5);
}

#[test]
fn updates_can_be_awaited() {
    struct Flag(AtomicBool, std::thread::Thread);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
            self.1.unpark();
        }
    }
    let engine = engine(EngineConfig::default());
    let mut updates = engine.submit(request(vec![1], 5)).unwrap();
    let flag = Arc::new(Flag(AtomicBool::new(false), std::thread::current()));
    let waker = Waker::from(flag.clone());
    let mut count = 0;
    loop {
        let mut next = Box::pin(updates.next());
        let update = loop {
            match next.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(update) => break update,
                Poll::Pending => {
                    while !flag.0.swap(false, Relaxed) {
                        std::thread::park_timeout(SOON);
                    }
                }
            }
        };
        match update {
            Some(_) => count += 1,
            None => break,
        }
    }
    assert_eq!(count, 1 + 5 + 1);
    let mut idle = engine.submit(request(vec![1], 200).with_masker(Gate::new().masker())).unwrap();
    assert!(matches!(idle.recv_timeout(SOON), Ok(Some(Update::Accepted(_)))));
    assert!(idle.recv_timeout(Duration::from_millis(5)).is_err());
}

#[test]
fn limits_of_zero_are_refused() {
    for config in
        [EngineConfig::default().with_max_waiting(0), EngineConfig::default().with_max_unread(0)]
    {
        assert!(Engine::start(decoder(), config).is_err());
    }
}
