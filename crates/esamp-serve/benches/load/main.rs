//! The server under load, on SmolLM2-135M, over HTTP: many clients that stream, twice; many that stream while one sends
//! a long prompt; many that leave in the middle of a stream; and SIGTERM while all are served. Ends with an error where
//! something is lost, doubled or left over.
//!
//! ```sh
//! cargo bench -p esamp-serve --bench load                       # about four minutes on two cores
//! cargo bench -p esamp-serve --bench load -- --seconds 60
//! ```

mod server;

use std::{
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use esamp_bench::load::{LoadArgs, all, quantile, say};
use serde_json::json;

use server::{Server, Stream};

/// The server under load.
#[derive(Debug, Parser)]
struct Args {
    /// Tokens of the long prompt; 0 leaves this part out.
    #[arg(long, default_value_t = 1500)]
    long_prompt: usize,
    #[command(flatten)]
    load: LoadArgs,
}

/// The limit that is given to requests after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// What the server needs at most after it to tell those that are left.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Megabytes that a load may add to what an equal one before it has left. glibc keeps freed memory in heaps of up to
/// 64 MB, and which thread allocates decides which heap is used: one more is allowed. What is lost with every request
/// grows from load to load.
const MOST_ADDED: f64 = 64.0;

fn main() -> Result<()> {
    let Args { long_prompt: tokens, load: args } = Args::parse();
    let server = Server::start()?;
    if args.seconds > 0 {
        let first = streaming(&server, &args)?;
        let second = streaming(&server, &args)?;
        say(&format!("the second load added {:.0} MB resident", second - first))?;
        ensure!(
            second - first <= MOST_ADDED,
            "resident: expected at most {MOST_ADDED} MB more after the second load, got {:.0} MB",
            second - first
        );
    }
    if tokens > 0 {
        long_prompt(&server, &args, tokens)?;
    }
    if args.leaving > 0 {
        leaving(&server, &args)?;
    }
    terminated(server, &args)
}

/// Many clients that stream. Returns the resident memory after them, in MB.
fn streaming(server: &Server, args: &LoadArgs) -> Result<f64> {
    let [first, gaps] = [const { Mutex::new(Vec::new()) }; 2];
    let [tokens, requests] = [const { AtomicU64::new(0) }; 2];
    let round = |client: u64, turn: u64| -> Result<()> {
        let asked = Instant::now();
        let mut stream =
            server.stream(1 + (client + turn) % 3, 8 + (client * 7 + turn * 13) % 40)?;
        let (mut times, mut last) = (Vec::new(), None);
        while stream.read()? {
            if stream.about != Some(0) {
                continue;
            }
            let now = Instant::now();
            match last.replace(now) {
                None => {
                    let waited = now.duration_since(asked).as_secs_f64();
                    first.lock().map(|mut first| first.push(waited)).ok();
                }
                Some(last) => times.push(now.duration_since(last).as_secs_f64()),
            }
        }
        stream.read_all()?;
        ensure!(stream.error.is_none(), "expected [DONE], got the error {:?}", stream.error);
        gaps.lock().map(|mut gaps| gaps.append(&mut times)).ok();
        tokens.fetch_add(stream.tokens, Relaxed);
        requests.fetch_add(1, Relaxed);
        Ok(())
    };
    // A round of all clients first, so that what is allocated once does not count as left over.
    all(args.clients, |client| round(client, 0))?;
    server.wait_until_idle()?;
    let before = server.resident();
    for counter in [&tokens, &requests] {
        counter.store(0, Relaxed);
    }
    for times in [&first, &gaps] {
        times.lock().map(|mut times| times.clear()).ok();
    }
    let began = Instant::now();
    all(args.clients, |client| {
        let mut turn = 1;
        while began.elapsed().as_secs() < args.seconds {
            round(client, turn)?;
            turn += 1;
        }
        Ok(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    server.wait_until_idle()?;
    let [mut first, mut gaps] = [first, gaps].map(|times| times.into_inner().unwrap_or_default());
    let after = server.resident();
    say(&format!(
        "{} clients for {seconds:.0} s: {} streams, {} tokens, none lost or doubled, each with an end; {:.0} tokens/s; \
         first event after median {:.0} ms, p99 {:.0} ms; between events of a completion median {:.1} ms, p99 {:.0} ms; \
         resident {before:.0} MB before, {after:.0} MB after",
        args.clients,
        requests.load(Relaxed),
        tokens.load(Relaxed),
        tokens.load(Relaxed) as f64 / seconds,
        1e3 * quantile(&mut first, 0.5),
        1e3 * quantile(&mut first, 0.99),
        1e3 * quantile(&mut gaps, 0.5),
        1e3 * quantile(&mut gaps, 0.99),
    ))?;
    Ok(after)
}

/// Clients that stream, one completion each, while another sends a long prompt.
fn long_prompt(server: &Server, args: &LoadArgs, tokens: usize) -> Result<()> {
    /// Gaps per client that are measured before.
    const ALONE: usize = 10;
    const OVER: usize = 2;
    let gaps = [const { Mutex::new(Vec::new()) }; OVER];
    let phase = AtomicUsize::new(0); // 0 before the prompt, 1 while it is read
    let count = |phase: usize| gaps[phase].lock().map_or(0, |gaps| gaps.len());
    let client = |_| {
        while phase.load(Relaxed) < OVER {
            let (mut stream, mut last) = (server.stream(1, 400)?, None);
            while phase.load(Relaxed) < OVER && stream.read()? {
                if stream.about.is_none() {
                    continue;
                }
                let now = Instant::now();
                if let Some(last) = last.replace(now)
                    && let Some(gaps) = gaps.get(phase.load(Relaxed))
                {
                    let gap = now.duration_since(last).as_secs_f64() * 1e3;
                    gaps.lock().map(|mut gaps| gaps.push(gap)).ok();
                }
            }
        }
        Ok(())
    };
    let took = thread::scope(|scope| -> Result<_> {
        let clients = scope.spawn(|| all(args.clients, client));
        let asked = || -> Result<_> {
            while server.metric("completions_running")? < args.clients as f64 {
                ensure!(!clients.is_finished(), "expected clients that stream, got none");
                thread::sleep(Duration::from_millis(5));
            }
            gaps[0].lock().map(|mut gaps| gaps.clear()).ok(); // those while the others began
            while count(0) < ALONE * args.clients as usize {
                ensure!(!clients.is_finished(), "expected clients that stream, got none");
                thread::sleep(Duration::from_millis(5));
            }
            let prompt: Vec<usize> = (0..tokens).map(|at| 1000 + at * 31 % 40_000).collect();
            phase.store(1, Relaxed);
            let began = Instant::now();
            let response = server.post(json!({"prompt": prompt, "max_tokens": 1}))?;
            let took = began.elapsed().as_secs_f64();
            ensure!(response.status() == 200, "expected status 200, got {}", response.status());
            Ok(took)
        };
        let asked = asked();
        phase.store(OVER, Relaxed);
        clients.join().unwrap_or_else(|_| bail!("expected no panic, got one"))?;
        asked
    })?;
    server.wait_until_idle()?;
    let [mut alone, mut reading] = gaps.map(|gaps| gaps.into_inner().unwrap_or_default());
    ensure!(!reading.is_empty(), "expected events while the prompt is read, got none");
    let (median, late) = (quantile(&mut alone, 0.5), quantile(&mut reading, 0.99));
    say(&format!(
        "{} clients, between events of a completion: median {median:.1} ms; while a prompt of {tokens} tokens is read, \
         for {took:.1} s: median {:.1} ms, p99 {late:.1} ms, {:.2} times the median without",
        args.clients,
        quantile(&mut reading, 0.5),
        late / median,
    ))
}

/// Clients that leave in the middle of a stream, some of them alongside one that stays.
fn leaving(server: &Server, args: &LoadArgs) -> Result<()> {
    let before = server.resident();
    let began = Instant::now();
    let next = AtomicU64::new(0);
    all(32, |_| {
        loop {
            let client = next.fetch_add(1, Relaxed);
            if client >= args.leaving {
                return Ok(());
            }
            let mut stream = server.stream(1 + client % 2, 400)?;
            for _ in 0..client % 4 {
                stream.read()?;
            }
        }
    })?;
    let took = began.elapsed().as_secs_f64();
    let idle = server.wait_until_idle()?;
    say(&format!(
        "{} clients that leave, in {took:.0} s: nothing left {:.0} ms after the last one; resident {before:.0} MB before, \
         {:.0} MB after",
        args.leaving,
        idle.as_secs_f64() * 1e3,
        server.resident(),
    ))
}

/// SIGTERM while all clients are served or wait.
fn terminated(mut server: Server, args: &LoadArgs) -> Result<()> {
    let ended = thread::scope(|scope| -> Result<_> {
        let running = &server;
        let clients = scope.spawn(|| {
            all(args.clients, |client| {
                // Some have time to end.
                let tokens = if client % 4 == 0 { 4 } else { 400 };
                let response = running.ask(1 + client % 2, tokens)?;
                let status = response.status().as_u16();
                let mut stream = Stream::new(response, 1 + client % 2);
                if status == 200 {
                    stream.read_all()?;
                }
                Ok((status, stream.is_done, stream.error))
            })
        });
        let began = Instant::now();
        let most = (args.clients / 2) as f64;
        while running.metric("completions_running")? < most {
            ensure!(
                began.elapsed().as_secs() < 30,
                "expected {most} running completions, got fewer"
            );
            thread::sleep(Duration::from_millis(5));
        }
        let kill =
            Command::new("kill").arg("-TERM").arg(running.process.id().to_string()).status()?;
        ensure!(kill.success(), "expected kill to succeed, got {kill}");
        let began = Instant::now();
        let ended = clients.join().unwrap_or_else(|_| bail!("expected no panic, got one"))?;
        Ok((ended, began))
    });
    let (ended, began) = ended?;
    let status = server.process.wait()?;
    let after = began.elapsed();
    ensure!(
        after <= GRACE + LAST_WORDS,
        "expected an end within the limit, got one after {after:?}"
    );
    ensure!(status.success(), "expected exit status 0, got {status}");
    let [mut whole, mut cancelled, mut refused] = [0; 3];
    for (status, is_done, error) in ended {
        match (status, is_done, error.as_deref()) {
            (200, true, None) => whole += 1,
            (200, false, Some("shutting_down")) => cancelled += 1,
            (429 | 503, ..) => refused += 1,
            other => bail!("expected an end with a reason, got {other:?}"),
        }
    }
    say(&format!(
        "SIGTERM with {} clients, {} s grace: all ended after {:.1} s: {whole} whole, {cancelled} told that the server stops, \
         {refused} refused with 429 or 503",
        args.clients,
        GRACE.as_secs(),
        after.as_secs_f64(),
    ))
}
