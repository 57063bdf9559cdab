//! The program under load, and a client that checks what it gets.

use std::{
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use esamp_bench::load::resident;
use serde_json::{Value, json};
use ureq::{Agent, BodyReader, http::Response};

use crate::GRACE;

/// The program, which is killed when this is dropped.
pub(crate) struct Server {
    pub(crate) process: Child,
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
    pub(crate) fn start() -> Result<Self> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_esamp-serve"))
            .args(["--listen", "127.0.0.1:0", "--grace", &GRACE.as_secs().to_string()])
            // One row more than clients, for the long prompt.
            .args(["--max-rows", "65", "--max-connections", "1024", "--max-waiting", "256"])
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

    /// A request for a stream.
    pub(crate) fn ask(&self, completions: u64, tokens: u64) -> Result<Response<ureq::Body>> {
        self.post(json!({
            "prompt": "The lighthouse had been dark for twenty years when",
            "n": completions, "max_tokens": tokens, "stream": true, "logprobs": 0,
            "stream_options": {"include_usage": true},
        }))
    }

    /// A request for completions. Each has a connection of its own.
    pub(crate) fn post(&self, mut body: Value) -> Result<Response<ureq::Body>> {
        let agent: Agent = Agent::config_builder().http_status_as_error(false).build().into();
        body["model"] = json!(self.model);
        let request = agent.post(format!("{}/v1/completions", self.address));
        Ok(request.header("Content-Type", "application/json").send(body.to_string())?)
    }

    /// A stream; tries again while the server is busy.
    pub(crate) fn stream(&self, completions: u64, tokens: u64) -> Result<Stream> {
        loop {
            let response = self.ask(completions, tokens)?;
            match response.status().as_u16() {
                200 => return Ok(Stream::new(response, completions)),
                429 => thread::sleep(Duration::from_millis(20)),
                status => bail!("expected status 200 or 429, got {status}"),
            }
        }
    }

    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = ureq::get(format!("{}/metrics", self.address)).call()?;
        let text = text.into_body().read_to_string()?;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("esamp_{name} ")));
        Ok(line.with_context(|| format!("expected the metric {name}, got none"))?.parse()?)
    }

    /// Waits until nothing is left of any request. Returns how long that took.
    pub(crate) fn wait_until_idle(&self) -> Result<Duration> {
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

    pub(crate) fn resident(&self) -> f64 {
        resident(Some(self.process.id()))
    }
}

/// A stream of completions, with what has come of each.
pub(crate) struct Stream {
    lines: io::Lines<BufReader<BodyReader<'static>>>,
    characters: Vec<usize>,
    finish: Vec<Option<String>>,
    pub(crate) tokens: u64,
    /// The completion that the last event was about.
    pub(crate) about: Option<usize>,
    pub(crate) error: Option<String>,
    pub(crate) is_done: bool,
}

impl Stream {
    pub(crate) fn new(response: Response<ureq::Body>, completions: u64) -> Self {
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
    pub(crate) fn read(&mut self) -> Result<bool> {
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
    pub(crate) fn read_all(&mut self) -> Result<()> {
        while self.read()? {}
        ensure!(self.is_done != self.error.is_some(), "expected [DONE] or an error, got neither");
        let is_whole = self.finish.iter().all(Option::is_some);
        ensure!(is_whole || self.error.is_some(), "expected an end of each completion, got fewer");
        Ok(())
    }
}
