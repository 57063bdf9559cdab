//! Ten thousand steps with requests that join and leave at random: memory, counters, slots, determinism.
//!
//! The only test of its program, so that the memory of the process is that of the run.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading: --nocapture shows it")]

use burn::tensor::{Device, Tensor};
use esamp::{
    Completion, CompletionId, Counters, Decoder, Event, FinishReason, HiddenStates, Request,
    SamplerConfig, Sampling, Sharing, TokenId,
    distillers::SwiGluConfig,
    optim::{AdaptiveConfig, OptimizerConfig, Staleness, TrainingConfig},
    testing::TinyLm,
};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// The results of a run, in numbers.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// All tokens of all completions, as a hash.
    tokens: u64,
    completions: usize,
    counters: Counters,
}

/// Resident memory in KiB during a run: the peak of each half after the warm-up.
#[derive(Debug, Default)]
struct Memory {
    halves: [u64; 2],
}

/// Runs `steps` decode steps of one to ten rows, from a fixed seed. While fewer than eight completions run, three
/// steps in ten add a request: 1 to 3 completions of 1 to 30 tokens, plain or steered, with several settings. Two
/// steps in a hundred cancel a completion.
fn run(config: &SamplerConfig, steps: u64) -> (Outcome, Memory) {
    let device = Device::flex();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let model = TinyLm::new(4, &device);
    let sampler = config.init(TinyLm::D_MODEL, &device).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let settings = settings();
    let mut running: Vec<CompletionId> = Vec::new();
    let mut totals = Totals::default();
    let mut memory = Memory::default();
    // The number of slots beyond one per running completion: the slot that all prompts share.
    let shared = usize::from(matches!(config.sharing, Sharing::Global | Sharing::Adaptive(_)));

    while decoder.stats().steps < steps {
        let wants = rng.random_bool(0.3) && running.len() < 8;
        if wants || running.is_empty() {
            let prompt: Vec<TokenId> =
                (0..rng.random_range(1..12)).map(|_| rng.random_range(0..64)).collect();
            let request = Request::new(prompt)
                .with_completions(rng.random_range(1..=3))
                .with_max_new_tokens(rng.random_range(1..=30))
                .with_seed(rng.random())
                .with_stop_tokens([0])
                .with_sampling(settings[rng.random_range(0..settings.len())].clone());
            running.extend(decoder.submit(request).unwrap().completions);
        }
        if rng.random_bool(0.02) {
            let victim = running[rng.random_range(0..running.len())];
            decoder.cancel(victim).unwrap();
        }
        for event in decoder.step().unwrap() {
            if let Event::Finished { completion, .. } = event {
                running.retain(|&running| running != completion.id);
                totals.add(&completion);
            }
        }
        assert!(decoder.sampler().distillers() <= running.len() + shared, "a slot leaked");
        measure(&mut memory, decoder.stats().steps, steps);
    }
    while !decoder.is_idle() {
        for event in decoder.step().unwrap() {
            if let Event::Finished { completion, .. } = event {
                totals.add(&completion);
            }
        }
    }
    decoder.sampler_mut().finish().unwrap();
    let outcome = Outcome {
        tokens: totals.hash,
        completions: totals.completions,
        counters: *decoder.sampler().counters(),
    };
    check(&outcome, &totals);
    assert_eq!(decoder.sampler().distillers(), shared, "slots after the last request");
    (outcome, memory)
}

/// Plain, greedy, filtered, strongly steered.
fn settings() -> Vec<Sampling> {
    let base = Sampling::paper;
    [
        base().with_beta(0.0),
        base(),
        base().with_beta(1.0).with_min_p(0.05),
        base().with_temperature(0.0),
        base().with_beta(0.5).with_top_k(8).with_temperature(0.7),
    ]
    .map(|config| config)
    .to_vec()
}

/// What the caller has seen, to compare with the sampler's counters.
#[derive(Debug, Default)]
struct Totals {
    hash: u64,
    completions: usize,
    tokens: u64,
    /// Tokens with a novelty, that is, those that a distiller predicted.
    predicted: u64,
    novelty: f64,
}

impl Totals {
    fn add(&mut self, completion: &Completion) {
        assert!(
            matches!(
                completion.finish,
                FinishReason::MaxNewTokens | FinishReason::StopToken(0) | FinishReason::Cancelled
            ),
            "{:?}",
            completion.finish
        );
        self.completions += 1;
        self.tokens += completion.choices.len() as u64;
        for (at, choice) in completion.choices.iter().enumerate() {
            assert!(choice.log_prob.is_finite() && choice.candidates > 0);
            assert!(at > 0 || choice.novelty.is_none(), "the first token is nobody's");
            self.predicted += u64::from(choice.novelty.is_some());
            self.novelty += choice.novelty.map_or(0.0, |novelty| f64::from(novelty.error));
        }
        // FNV-1a over ids and tokens, so that a different order or token shows.
        let name = [completion.id.prompt.0, completion.id.index];
        for number in name.into_iter().chain(completion.tokens().into_iter().map(u64::from)) {
            self.hash = (self.hash ^ number).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn check(outcome: &Outcome, totals: &Totals) {
    let Outcome { counters, .. } = outcome;
    assert_eq!(counters.tokens, totals.tokens, "every token is in a completion");
    assert_eq!(
        counters.eligible,
        counters.steered + counters.rows_untrained + counters.rows_not_finite
    );
    assert_eq!((counters.failed, counters.rows_not_finite, counters.rows_untrained), (0, 0, 0));
    assert_eq!(counters.eligible, totals.predicted);
    assert_eq!(counters.rows_learned, counters.eligible - counters.rows_not_finite);
    assert!(counters.updates > 0 && counters.updates <= counters.rows_learned);
    assert!((counters.novelty_sum - totals.novelty).abs() < 1e-6 * totals.novelty);
    assert!(counters.interventions > 0 && counters.interventions < counters.steered);
}

/// Resident memory of this process in KiB, if the system reports it.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Samples the memory. The first fifth is a warm-up, in which allocators and caches fill.
fn measure(memory: &mut Memory, step: u64, steps: u64) {
    let warm_up = steps / 5;
    if step < warm_up || !step.is_multiple_of(50) {
        return;
    }
    let half = usize::from(step >= warm_up + (steps - warm_up) / 2);
    memory.halves[half] = memory.halves[half].max(resident().unwrap_or(0));
}

const STEPS: u64 = 10_000;

/// KiB by which the peak of the second half may exceed that of the first: half of what leaking one hidden row per
/// step would add. That is 2 states × 32 numbers × 4 bytes × 4,000 steps = 1,000 KiB, without the tensors' own
/// overhead ([`a_leak_would_show`] measures both). Without a leak, less than 64 was measured.
const MARGIN: u64 = 512;

/// A learning rate at which a distiller that misses one update gives different tokens within a few hundred tokens.
fn config() -> SamplerConfig {
    let optimizer = OptimizerConfig::paper().with_learning_rate(1e-2);
    let small = esamp::distillers::DistillerConfig::SwiGlu(SwiGluConfig::new().with_d_hidden(16));
    SamplerConfig::new().with_distiller(small).with_optimizer(optimizer)
}

fn assert_flat(memory: &Memory) {
    let [first, second] = memory.halves;
    if resident().is_none() {
        println!("memory: not measured, there is no /proc/self/status here");
        return;
    }
    println!("memory: at most {first} KiB in the first half, {second} KiB in the second");
    assert!(second < first + MARGIN, "from {first} KiB to {second} KiB in {STEPS} steps");
}

/// Leaks the hidden states of one row per step of a half on purpose, and checks that they would exceed the margin.
fn a_leak_would_show() {
    let Some(before) = resident() else {
        return;
    };
    let row = || Tensor::<2>::ones([1, TinyLm::D_MODEL], &Device::flex());
    let leaked: Vec<_> =
        (0..STEPS * 2 / 5).map(|_| HiddenStates::new(row(), row()).unwrap()).collect();
    let grown = resident().unwrap() - before;
    println!("memory: {} leaked rows take {grown} KiB", leaked.len());
    assert!(grown > MARGIN, "a leak of one row a step would not be seen: {grown} KiB");
}

#[test]
fn ten_thousand_steps_with_requests_that_come_and_go() {
    let (first, memory) = run(&config(), STEPS);
    assert_flat(&memory);
    let (second, _) = run(&config(), STEPS);
    assert_eq!(first, second, "the same tokens, the same counters");
    a_leak_would_show();

    let background = TrainingConfig::new().with_staleness(Staleness::Background);
    let mut seen = vec![run(&config(), STEPS / 10).0.tokens];
    for config in [
        config().with_sharing(Sharing::PerCompletion),
        config().with_sharing(Sharing::Global),
        config().with_sharing(Sharing::Adaptive(AdaptiveConfig::default())),
        config().with_training(background),
    ] {
        let (first, memory) = run(&config, STEPS / 10);
        println!("{:?}: {memory:?}", config.sharing);
        assert_eq!(run(&config, STEPS / 10).0, first, "{config:?}");
        assert!(!seen.contains(&first.tokens), "every setting says something else: {config:?}");
        seen.push(first.tokens);
    }
}
