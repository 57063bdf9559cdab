//! The engine under load, on SmolLM2-135M: what it costs compared with the bare loop, how long others wait while a
//! long prompt is read, many clients that stream, and many that leave.
//!
//! Times are printed. What the engine promises whatever the machine is asserted: nothing is lost or doubled, every
//! stream ends with a reason, what a client leaves is freed within a step, and no memory is kept.
//!
//! ```sh
//! cargo bench --bench engine                       # about five minutes on two cores
//! cargo bench --bench engine -- --seconds 60       # longer under load
//! ```

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use burn::tensor::Device;
use clap::Parser;
use esamp::{
    CausalLm, Decoder, Event, FinishReason, Request, SamplerConfig, Sampling, TokenId,
    distillers::{DistillerConfig, LowRankConfig},
    engine::{Engine, EngineConfig, EngineError, EngineStats, Update, Updates},
    llama::{Llama, Tokenizer},
};
use esamp_bench::load::{LoadArgs, all, quantile, resident, say};
use esamp_programs::{
    model_source::{Cache, ModelSource},
    weights::{WeightsArg, megabytes},
};
use peak_alloc::PeakAlloc;

/// Counts the bytes that are allocated and not freed: what the process holds of the system's memory also depends on what
/// the allocator keeps for later.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes per thread that may be left after a load: the buffers of the library for matrix products, as in tests/memory.rs.
const KEPT_PER_THREAD: usize = 2_200_000;

/// The engine under load.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of the comparison with the bare loop; the median is printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Prompt tokens that the engine reads per step.
    #[arg(long, default_value_t = 24)]
    prefill_budget: usize,
    #[command(flatten)]
    weights: WeightsArg,
    #[command(flatten)]
    load: LoadArgs,
}

const PROMPT: &str = "The lighthouse had been dark for twenty years when";

fn main() -> Result<()> {
    let args = Args::parse();
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
    let model = args.weights.apply(Llama::from_gguf(&path, &Device::flex())?)?;
    say(&format!("{} of matrices", megabytes(model.weight_bytes())))?;
    let prompt = Tokenizer::from_gguf(&path)?.encode(PROMPT)?;
    compare(&model, &prompt, args.rounds)?;
    let step = long_prompt(&model, &prompt, args.prefill_budget)?;
    first_token(&model, &prompt, &args, &step)?;
    if args.load.seconds > 0 {
        clients(&model, &prompt, &args)?;
    }
    if args.load.leaving > 0 {
        leaving(&model, &prompt, &args)?;
    }
    Ok(())
}

fn decoder(model: &Llama) -> Result<Decoder<Llama>> {
    let low_rank = DistillerConfig::LowRank(LowRankConfig::new());
    let config = SamplerConfig::new().with_distiller(low_rank);
    Ok(Decoder::new(model.clone(), config.init(model.d_model(), &model.device())?)?)
}

fn request(prompt: &[TokenId], completions: usize, tokens: usize) -> Request {
    let sampling = Sampling::default().with_beta(0.25).with_min_p(0.05);
    Request::new(prompt.to_vec())
        .with_completions(completions)
        .with_max_new_tokens(tokens)
        .with_sampling(sampling)
}

/// The same 16 completions in the bare loop and through the engine, in turns.
fn compare(model: &Llama, prompt: &[TokenId], rounds: usize) -> Result<()> {
    const ROWS: usize = 16;
    const TOKENS: usize = 64;
    let mut ratios = Vec::new();
    let mut first = Vec::new();
    for round in 0..=rounds {
        let began = Instant::now();
        let mut bare = decoder(model)?;
        bare.submit(request(prompt, ROWS, TOKENS).with_seed(7))?;
        let expected = bare.run(|_| ControlFlow::Continue(()))?;
        let bare = began.elapsed().as_secs_f64();

        let began = Instant::now();
        let engine = Engine::start(decoder(model)?, EngineConfig::default())?;
        let mut updates = engine.submit(request(prompt, ROWS, TOKENS).with_seed(7))?;
        let mut tokens = vec![Vec::new(); ROWS];
        let mut to_first = None;
        while let Some(update) = updates.recv() {
            if let Update::Event(Event::Token { completion, choice, .. }) = update {
                to_first.get_or_insert_with(|| began.elapsed().as_secs_f64());
                tokens[completion.index as usize].push(choice.token);
            }
        }
        let served = began.elapsed().as_secs_f64();
        let same = expected.iter().zip(&tokens).all(|(a, b)| a.tokens() == *b);
        ensure!(same, "expected the tokens of the bare loop, got others");
        if round > 0 {
            // The first round warms up.
            ratios.push(bare / served);
            first.extend(to_first);
        }
    }
    let (low, high) = ratios.iter().fold((f64::MAX, 0.0_f64), |(l, h), &r| (l.min(r), h.max(r)));
    say(&format!(
        "engine / bare loop, 16 rows: {:.3} [{low:.3}, {high:.3}]; submit to first token of an idle engine \
         {:.0} ms",
        quantile(&mut ratios, 0.5),
        1e3 * quantile(&mut first, 0.5)
    ))
}

/// Starts an engine in which 16 rows run, and waits for their first token.
fn running(
    model: &Llama,
    prompt: &[TokenId],
    budget: usize,
    tokens: usize,
) -> Result<(Engine, Updates)> {
    let decoder = decoder(model)?.with_prefill_budget(budget)?;
    let engine = Engine::start(decoder, EngineConfig::default().with_max_unread(tokens + 1))?;
    let mut running = engine.submit(request(prompt, 16, tokens).with_seed(1))?;
    for expected in ["accepted", "a token"] {
        ensure!(running.recv().is_some(), "expected {expected}, got an end");
    }
    Ok((engine, running))
}

/// The first `tokens` tokens of a prompt that repeats `prompt`.
fn repeated(prompt: &[TokenId], tokens: usize) -> Vec<TokenId> {
    prompt.iter().copied().cycle().take(tokens).collect()
}

/// Milliseconds of a step of 16 rows.
struct StepTime {
    alone: f64,
    /// While a prompt is read at the budget.
    reading: f64,
}

/// Time between tokens of 16 rows while prompts of 1,500 tokens are read, one after the other.
fn long_prompt(model: &Llama, prompt: &[TokenId], budget: usize) -> Result<StepTime> {
    /// One of them is read in too few steps for a p99.
    const PROMPTS: usize = 4;
    const TOKENS: usize = 1500;
    const ALONE: usize = 100;
    let enough = ALONE + PROMPTS * (TOKENS.div_ceil(budget) + 8) + 8;
    let (engine, mut running) = running(model, prompt, budget, enough)?;
    let long = repeated(prompt, TOKENS);
    let (mut gaps, mut last, mut submitted) = ([Vec::new(), Vec::new()], None, 0);
    let read = std::sync::Arc::new(AtomicU64::new(0));
    while let Some(update) = running.recv() {
        let Update::Event(Event::Token { completion, .. }) = update else { continue };
        if completion.index != 0 {
            continue;
        }
        let now = Instant::now();
        let is_reading = read.load(Relaxed) < submitted;
        if let Some(last) = last.replace(now) {
            gaps[usize::from(is_reading)].push(now.duration_since(last).as_secs_f64() * 1e3);
        }
        if gaps[0].len() >= ALONE && !is_reading && submitted < PROMPTS as u64 {
            let mut updates = engine.submit(request(&long, 1, 1).with_seed(2))?;
            let read = read.clone();
            submitted += 1;
            thread::spawn(move || {
                while updates.recv().is_some() {}
                read.fetch_add(1, Relaxed);
            });
        }
    }
    let got = read.load(Relaxed);
    ensure!(got == PROMPTS as u64, "expected {PROMPTS} prompts that are read, got {got}");
    let [mut alone, mut reading] = gaps;
    for gaps in [&alone, &reading] {
        ensure!(!gaps.is_empty(), "expected steps, got none");
    }
    let median = quantile(&mut alone, 0.5);
    let late = quantile(&mut reading, 0.99);
    say(&format!(
        "time to the next token, 16 rows: median {:.1} ms; while {PROMPTS} prompts of 1,500 tokens are read, {budget} a step \
         ({} steps): median {:.1} ms, p99 {:.1} ms, {:.2} times the median alone",
        median,
        reading.len(),
        quantile(&mut reading, 0.5),
        late,
        late / median
    ))?;
    Ok(StepTime { alone: median, reading: quantile(&mut reading, 0.5) })
}

/// Time from the submission of a request to its first token while 16 rows run, and what the engine promises: the rest of
/// the step that runs, and the steps in which the prompt is read.
fn first_token(model: &Llama, prompt: &[TokenId], args: &Args, step: &StepTime) -> Result<()> {
    const PROMPTS: [usize; 3] = [10, 55, 200];
    let budget = args.prefill_budget;
    let steps = |tokens: usize| tokens.div_ceil(budget);
    let enough = (args.rounds + 1) * PROMPTS.map(|tokens| steps(tokens) + 4).iter().sum::<usize>();
    let (engine, mut running) = running(model, prompt, budget, enough)?;
    let reader = thread::spawn(move || while running.recv().is_some() {});
    for tokens in PROMPTS {
        let mut waited = Vec::new();
        for _ in 0..args.rounds {
            let began = Instant::now();
            let mut updates = engine.submit(request(&repeated(prompt, tokens), 1, 1))?;
            loop {
                match updates.recv() {
                    Some(Update::Event(Event::Token { .. })) => break,
                    Some(_) => {}
                    None => bail!("expected a token, got an end"),
                }
            }
            waited.push(began.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(engine.stats().running >= 16, "expected 16 rows to the end, got fewer");
        let bound = step.alone + steps(tokens) as f64 * step.reading;
        let most = waited.iter().copied().fold(0.0, f64::max);
        say(&format!(
            "submit to first token while 16 rows run, prompt of {tokens}: median {:.0} ms, at most {most:.0} ms; bound {bound:.0} \
             ms (the running step, {:.0} ms, and {} with a prefill, {:.0} ms each)",
            quantile(&mut waited, 0.5),
            step.alone,
            steps(tokens),
            step.reading
        ))?;
    }
    engine.stop();
    reader.join().map_err(|_| anyhow::anyhow!("expected a reader that ends, got a panic"))
}

/// Reads a request to its end. Returns the number of its tokens.
fn read_all(updates: &mut Updates) -> Result<u64> {
    let Some(Update::Accepted(submitted)) = updates.recv() else {
        bail!("expected an accepted request, got something else");
    };
    let (mut positions, mut open) = (vec![0; submitted.completions.len()], 0);
    let start = submitted.completions[0].index;
    while let Some(update) = updates.recv() {
        match update {
            Update::Event(Event::Token { completion, .. }) => {
                positions[(completion.index - start) as usize] += 1;
            }
            Update::Event(Event::Finished { completion, .. }) => {
                open += 1;
                let seen = positions[(completion.id.index - start) as usize];
                ensure!(seen == completion.choices.len(), "expected every token once, got {seen}");
                let is_proper = matches!(
                    completion.finish,
                    FinishReason::MaxNewTokens | FinishReason::StopToken(_)
                );
                ensure!(is_proper, "expected a proper end, got {:?}", completion.finish);
            }
            _ => bail!("expected events, got something else"),
        }
    }
    ensure!(open == submitted.completions.len(), "expected an end of each completion, got {open}");
    Ok(positions.iter().sum::<usize>() as u64)
}

/// Submits, and tries again while the engine is busy.
fn submit(engine: &Engine, request: &Request) -> Result<Updates> {
    loop {
        match engine.submit(request.clone()) {
            Err(EngineError::Busy { .. }) => thread::sleep(Duration::from_millis(5)),
            other => return Ok(other?),
        }
    }
}

/// Asserts that no more memory is allocated than before a load. Returns what to print.
fn memory_since(before: usize, resident_before: f64) -> Result<String> {
    let after = MEMORY.current_usage();
    let [was, is] = [before, after].map(|bytes| bytes as f64 / 1e6);
    let left = after.saturating_sub(before);
    let kept = KEPT_PER_THREAD * thread::available_parallelism().map_or(1, usize::from);
    ensure!(left <= kept, "memory: expected at most {kept} more bytes than before, got {left}");
    let resident_after = resident(None);
    Ok(format!(
        "allocated {was:.1} MB before, {is:.1} MB after; resident {resident_before:.0} MB before, \
         {resident_after:.0} MB after"
    ))
}

fn loaded_engine(model: &Llama, budget: usize) -> Result<Engine> {
    let decoder = decoder(model)?.with_max_rows(64)?.with_prefill_budget(budget)?;
    Ok(Engine::start(decoder, EngineConfig::default())?)
}

/// Many clients that stream.
fn clients(model: &Llama, prompt: &[TokenId], args: &Args) -> Result<()> {
    let engine = loaded_engine(model, args.prefill_budget)?;
    let (tokens, requests) = (AtomicU64::new(0), AtomicU64::new(0));
    let (before, resident_before) = (MEMORY.current_usage(), resident(None));
    let began = Instant::now();
    all(args.load.clients, |client| {
        let mut turn = 0;
        while began.elapsed().as_secs() < args.load.seconds {
            let length = 4 + (client * 7 + turn * 13) % 24;
            let count = 1 + (client + turn) % 3;
            let request = request(prompt, count as usize, length as usize);
            let read = read_all(&mut submit(&engine, &request)?)?;
            ensure!(read == length * count, "expected {} tokens, got {read}", length * count);
            tokens.fetch_add(read, Relaxed);
            requests.fetch_add(1, Relaxed);
            turn += 1;
        }
        Ok(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    engine.drain();
    let stats = engine.stats();
    ensure!(is_empty(&stats), "expected nothing left, got {stats:?}");
    drop(engine);
    say(&format!(
        "{} clients for {seconds:.0} s: {} requests, {} tokens, none lost or doubled, each with an end, {:.0} tokens/s; {}",
        args.load.clients,
        requests.into_inner(),
        tokens.load(Relaxed),
        tokens.load(Relaxed) as f64 / seconds,
        memory_since(before, resident_before)?,
    ))
}

/// Whether nothing is left of any request.
fn is_empty(stats: &EngineStats) -> bool {
    (stats.running, stats.waiting, stats.paused, stats.distillers) == (0, 0, 0, 0)
}

/// Clients that leave in the middle of a stream.
fn leaving(model: &Llama, prompt: &[TokenId], args: &Args) -> Result<()> {
    /// Those that leave at the same time, after their first token.
    const LAST: usize = 32;
    let engine = loaded_engine(model, args.prefill_budget)?;
    let (before, resident_before) = (MEMORY.current_usage(), resident(None));
    for client in 0..args.load.leaving {
        let mut updates = submit(&engine, &request(prompt, 1 + client as usize % 2, 200))?;
        // Some leave at once, some after their request is accepted, some after a token.
        for _ in 0..client % 3 {
            updates.recv();
        }
    }
    let mut last = Vec::new();
    for _ in 0..LAST {
        last.push(submit(&engine, &request(prompt, 1, 200))?);
    }
    for updates in &mut last {
        for expected in ["accepted", "a token"] {
            ensure!(updates.recv().is_some(), "expected {expected}, got an end");
        }
    }
    ensure!(engine.stats().running >= LAST, "expected {LAST} rows, got {:?}", engine.stats());
    drop(last);
    // The step that is running now may still end. Then the rows go, before the next one.
    let (left_at, left) = (Instant::now(), engine.stats());
    let stats = loop {
        let stats = engine.stats();
        if is_empty(&stats) {
            break stats;
        }
        ensure!(left_at.elapsed().as_secs() < 30, "expected nothing left, got {stats:?}");
        thread::sleep(Duration::from_millis(1));
    };
    let milliseconds = left_at.elapsed().as_secs_f64() * 1e3;
    let steps = stats.decode.steps - left.decode.steps;
    ensure!(steps <= 1, "expected nothing left after a step, got {steps} steps");
    engine.drain();
    drop(engine);
    say(&format!(
        "{} clients that leave, the last {LAST} at the same time: nothing left after {steps} steps, {milliseconds:.0} ms; {}",
        args.load.leaving + LAST as u64,
        memory_since(before, resident_before)?
    ))
}
