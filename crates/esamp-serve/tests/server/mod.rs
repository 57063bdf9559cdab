//! A server for a test, in this process, with a model that needs no weights; and a client that hides nothing.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(unreachable_pub, reason = "a test program has no public API")]

use std::{
    future::pending,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use burn::tensor::Device;
use clap::Parser;
use esamp::{CausalLm, TokenId, testing::ScriptedLm};
use esamp_programs::loaded::Texts;
use esamp_serve::{
    app::App,
    args::Args,
    keys::ApiKeys,
    serve::{bind, serve},
    start::{Served, app},
};
use serde_json::{Value, json};
use tokio::{
    runtime::{self, Handle},
    sync::mpsc::{UnboundedSender, unbounded_channel},
};

pub const VOCAB: usize = 96;
const CONTEXT: usize = 512;

/// A model whose next token depends on the last one, and is never the stop token w2.
pub fn model() -> ScriptedLm {
    ScriptedLm::new(VOCAB, &Device::flex(), logits).with_context_length(CONTEXT)
}

/// [`model`] with a pause per row and forward pass.
pub fn slow_model(pause: Duration) -> ScriptedLm {
    let script = move |sequence: &[TokenId]| {
        thread::sleep(pause);
        logits(sequence)
    };
    ScriptedLm::new(VOCAB, &Device::flex(), script).with_context_length(1 << 20)
}

fn logits(sequence: &[TokenId]) -> Vec<f32> {
    let last = sequence.last().copied().unwrap_or_default();
    let logit = |token: u32| match token {
        2 => -30.0, // finite, because the hidden states of this model are its logits
        // All different.
        token => ((token * 37 + last * 11) % 97) as f32 / 24.0,
    };
    (0..VOCAB as u32).map(logit).collect()
}

pub struct Server {
    pub address: SocketAddr,
    pub app: Arc<App>,
    /// The threads that serve; one of them may block.
    pub runtime: Handle,
    stop: UnboundedSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A server whose model knows the words w0 to w95.
    pub fn start<M>(model: M, flags: &[&str]) -> Self
    where
        M: CausalLm + Send + 'static,
        M::Cache: Send,
    {
        let folder = tempfile::tempdir().unwrap();
        esamp_testkit::word_model::fill(folder.path());
        let template = "{% for m in messages %}w1 {{ m.content }} {% endfor %}w3";
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        Self::with_texts(model, Texts::open(folder.path()).unwrap(), flags)
    }

    pub fn with_texts<M>(model: M, texts: Texts, flags: &[&str]) -> Self
    where
        M: CausalLm + Send + 'static,
        M::Cache: Send,
    {
        let args = Args::parse_from([&["esamp-serve"], flags].concat());
        let keys = ApiKeys::load(args.api_key_file.as_deref()).unwrap();
        let served = Served { name: "words".to_owned(), model, texts, weight_bytes: Some(7) };
        let app = Arc::new(app(&args, keys, served).unwrap());
        let (stop, mut stopped) = unbounded_channel();
        let (bound, address) = std::sync::mpsc::channel();
        let serving = app.clone();
        let grace = Duration::from_secs(args.grace);
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .max_blocking_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
                bound.send((listener.local_addr().unwrap(), Handle::current())).unwrap();
                let stop = async || {
                    if stopped.recv().await.is_none() {
                        pending().await
                    }
                };
                serve(listener, serving, stop, grace).await;
            });
        });
        let (address, runtime) = address.recv().unwrap();
        Self { address, app, runtime, stop, thread: Some(thread) }
    }

    /// Tells the server to stop, as a signal does.
    pub fn stop(&self) {
        let _ = self.stop.send(());
    }

    /// Waits until the server has stopped.
    pub fn join(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        post(self.address, path, body)
    }

    /// One line of the metrics.
    pub fn metric(&self, name: &str) -> f64 {
        metric(self.address, name)
    }

    /// Waits until a metric has this value.
    pub fn wait_for(&self, name: &str, value: f64) {
        let started = Instant::now();
        while self.metric(name) != value {
            let got = self.metric(name);
            assert!(started.elapsed() < Duration::from_secs(20), "{name}: {got}, not {value}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.join();
        }
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The data of the server-sent events.
    pub fn events(&self) -> Vec<&str> {
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }

    /// The events that are JSON, and whether `[DONE]` was the last.
    pub fn chunks(&self) -> (Vec<Value>, bool) {
        let mut events = self.events();
        let is_done = events.last() == Some(&"[DONE]");
        if is_done {
            events.pop();
        }
        (events.iter().map(|event| serde_json::from_str(event).unwrap()).collect(), is_done)
    }
}

/// The head of a request. HTTP/1.0, so that the end of a stream is the end of the connection.
pub fn head(method: &str, path: &str, headers: &[&str]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}

pub fn send(address: SocketAddr, request: &[u8]) -> Answer {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(request).unwrap();
    receive(socket)
}

pub fn receive(mut socket: TcpStream) -> Answer {
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// A POST request with a JSON body.
pub fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.len());
    [head("POST", path, &["Content-Type: application/json", &length]), body.to_vec()].concat()
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    send(address, &request(path, body.to_string().as_bytes()))
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, &head("GET", path, &[]))
}

/// A request whose response has begun: the status line has been read.
pub fn open(address: SocketAddr, path: &str, body: &Value) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(&request(path, body.to_string().as_bytes())).unwrap();
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains(" 200 "), "{line}");
    reader
}

pub fn metric(address: SocketAddr, name: &str) -> f64 {
    let answer = get(address, "/metrics");
    let line = answer.body.lines().find_map(|line| line.strip_prefix(&format!("esamp_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {}", answer.body)).parse().unwrap()
}

/// A request for completions of `w5 w6`, with further fields.
pub fn ask(fields: Value) -> Value {
    let mut body = json!({"model": "words", "prompt": "w5 w6", "max_tokens": 12});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The texts of the choices of a whole response.
pub fn texts(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body = answer.json();
    let choices = body["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}
