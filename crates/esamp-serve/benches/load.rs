//! The server under load, on SmolLM2-135M, over HTTP: many clients that stream, many that leave in the middle of a
//! stream, and SIGTERM while all are served. Ends with an error where something is lost, doubled or left over.
//!
//! ```sh
//! cargo bench -p esamp-serve --bench load                       # about two minutes on two cores
//! cargo bench -p esamp-serve --bench load -- --seconds 60
//! ```

use std::{
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use esamp_bench::load::{LoadArgs, all, quantile, resident, say};
use serde_json::{Value, json};
use ureq::{Agent, BodyReader, http::Response};

/// The server under load.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    load: LoadArgs,
}

/// The limit that is given to requests after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// What the server needs at most after it to tell those that are left.
const LAST_WORDS: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let args = Args::parse().load;
    let server = Server::start()?;
    if args.seconds > 0 {
        streaming(&server, &args)?;
    }
    if args.leaving > 0 {
        leaving(&server, &args)?;
    }
    terminated(server, &args)
}

/// The program, which is killed when this is dropped.
struct Server {
    process: Child,
    model: String,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start() -> Result<Self> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_esamp-serve"))
            .args(["--listen", "127.0.0.1:0", "--grace", &GRACE.as_secs().to_string()])
            .args(["--max-rows", "64", "--max-connections", "1024", "--max-waiting", "256"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let stdout = process.stdout.take().context("standard output of the server")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let (model, address) = line.trim().split_once(" on ").context("the line of the server")?;
        let (model, address) = (model.to_owned(), address.to_owned());
        Ok(Self { process, model, address })
    }

    /// A request for a stream. Each has a connection of its own.
    fn ask(&self, completions: u64, tokens: u64) -> Result<Response<ureq::Body>> {
        let agent: Agent = Agent::config_builder().http_status_as_error(false).build().into();
        let body = json!({
            "model": self.model, "prompt": "The lighthouse had been dark for twenty years when",
            "n": completions, "max_tokens": tokens, "stream": true, "logprobs": 0,
            "stream_options": {"include_usage": true},
        });
        let request = agent.post(format!("{}/v1/completions", self.address));
        Ok(request.header("Content-Type", "application/json").send(body.to_string())?)
    }

    /// A stream; tries again while the server is busy.
    fn stream(&self, completions: u64, tokens: u64) -> Result<Stream> {
        loop {
            let response = self.ask(completions, tokens)?;
            match response.status().as_u16() {
                200 => return Ok(Stream::new(response, completions)),
                429 => thread::sleep(Duration::from_millis(20)),
                status => bail!("expected status 200 or 429, got {status}"),
            }
        }
    }

    fn metric(&self, name: &str) -> Result<f64> {
        let text = ureq::get(format!("{}/metrics", self.address)).call()?;
        let text = text.into_body().read_to_string()?;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("esamp_{name} ")));
        Ok(line.with_context(|| format!("expected the metric {name}, got none"))?.parse()?)
    }

    /// Waits until nothing is left of any request. Returns how long that took.
    fn wait_until_idle(&self) -> Result<Duration> {
        let began = Instant::now();
        for name in [
            "completions_running",
            "completions_paused",
            "requests_waiting",
            "requests_open",
            "distillers",
            "distiller_bytes",
        ] {
            loop {
                let left = self.metric(name)?;
                if left == 0.0 {
                    break;
                }
                ensure!(began.elapsed().as_secs() < 30, "{name}: expected 0, got {left}");
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(began.elapsed())
    }

    fn resident(&self) -> f64 {
        resident(Some(self.process.id()))
    }
}

/// A stream of completions, with what has come of each.
struct Stream {
    lines: io::Lines<BufReader<BodyReader<'static>>>,
    characters: Vec<usize>,
    finish: Vec<Option<String>>,
    tokens: u64,
    /// The completion that the last event was about.
    about: Option<usize>,
    error: Option<String>,
    is_done: bool,
}

impl Stream {
    fn new(response: Response<ureq::Body>, completions: u64) -> Self {
        let count = completions as usize;
        Self {
            lines: BufReader::new(response.into_body().into_reader()).lines(),
            characters: vec![0; count],
            finish: vec![None; count],
            tokens: 0,
            about: None,
            error: None,
            is_done: false,
        }
    }

    /// Reads the next event and checks that it follows those before it; `false` at the end.
    fn read(&mut self) -> Result<bool> {
        while let Some(line) = self.lines.next() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            ensure!(
                !self.is_done && self.error.is_none(),
                "expected no event after the last, got one"
            );
            if data == "[DONE]" {
                self.is_done = true;
            } else {
                self.take(&serde_json::from_str(data)?)?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn take(&mut self, event: &Value) -> Result<()> {
        self.about = None;
        if let Some(code) = event["error"]["code"].as_str() {
            self.error = Some(code.to_owned());
            return Ok(());
        }
        if let Some(total) = event["usage"]["completion_tokens"].as_u64() {
            ensure!(total == self.tokens, "expected {total} tokens, got {}", self.tokens);
            return Ok(());
        }
        let choice = &event["choices"][0];
        let at = choice["index"].as_u64().context("expected an index, got none")? as usize;
        self.about = Some(at);
        ensure!(self.finish[at].is_none(), "expected nothing after the end of a completion");
        // Says of each token how many characters are before it, so that a lost or doubled one does not fit.
        let log_probs = &choice["logprobs"];
        if let Some(offset) = log_probs["text_offset"].get(0).and_then(Value::as_u64) {
            let expected = self.characters[at];
            ensure!(offset as usize == expected, "expected offset {expected}, got {offset}");
        }
        self.tokens += log_probs["tokens"].as_array().map_or(0, Vec::len) as u64;
        self.characters[at] += choice["text"].as_str().unwrap_or_default().chars().count();
        self.finish[at] = choice["finish_reason"].as_str().map(str::to_owned);
        Ok(())
    }

    /// Reads to the end and checks that it has a reason: an error, or the end of each completion.
    fn read_all(&mut self) -> Result<()> {
        while self.read()? {}
        ensure!(self.is_done != self.error.is_some(), "expected [DONE] or an error, got neither");
        let is_whole = self.finish.iter().all(Option::is_some);
        ensure!(is_whole || self.error.is_some(), "expected an end of each completion, got fewer");
        Ok(())
    }
}

/// Many clients that stream.
fn streaming(server: &Server, args: &LoadArgs) -> Result<()> {
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
    say(&format!(
        "{} clients for {seconds:.0} s: {} streams, {} tokens, none lost or doubled, each with an end; {:.0} tokens/s; \
         first event after median {:.0} ms, p99 {:.0} ms; between events of a completion median {:.1} ms, p99 {:.0} ms; \
         resident {before:.0} MB before, {:.0} MB after",
        args.clients,
        requests.load(Relaxed),
        tokens.load(Relaxed),
        tokens.load(Relaxed) as f64 / seconds,
        1e3 * quantile(&mut first, 0.5),
        1e3 * quantile(&mut first, 0.99),
        1e3 * quantile(&mut gaps, 0.5),
        1e3 * quantile(&mut gaps, 0.99),
        server.resident(),
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
        while running.metric("completions_running")? < 32.0 {
            ensure!(began.elapsed().as_secs() < 30, "expected 32 running completions, got fewer");
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
