//! Clients that leave, models that fail, servers that are full, and servers that end.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod server;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::json;

use server::{Server, ask, get, model, open, post, receive, request, send, slow_model, texts};

const COMPLETIONS: &str = "/v1/completions";
const PAUSE: Duration = Duration::from_millis(2);

/// A request that would run for a long time.
fn long(fields: serde_json::Value) -> serde_json::Value {
    let mut body = ask(json!({"max_tokens": 100_000, "esamp": {"beta": 0}}));
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn what_a_client_has_asked_for_is_cancelled_when_it_leaves() {
    let server = Server::start(slow_model(PAUSE), &[]);
    let mut stream = open(server.address, COMPLETIONS, &long(json!({"stream": true, "n": 4})));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    // One that waits for a whole response, and one that closes only its half.
    let mut whole = TcpStream::connect(server.address).unwrap();
    whole.write_all(&request(COMPLETIONS, long(json!({})).to_string().as_bytes())).unwrap();
    let mut half = TcpStream::connect(server.address).unwrap();
    half.write_all(&request(COMPLETIONS, long(json!({})).to_string().as_bytes())).unwrap();
    server.wait_for("completions_running", 6.0);
    half.shutdown(Shutdown::Write).unwrap();
    server.wait_for("completions_running", 5.0);
    drop(whole);
    server.wait_for("completions_running", 4.0);
    drop(stream);
    server.wait_for("completions_running", 0.0);
    server.wait_for("requests_open", 0.0);
    server.wait_for("connections", 1.0);
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
}

/// Prompts wait for a thread that encodes them, and count for as long as they do.
#[test]
fn a_prompt_that_waits_to_be_encoded_keeps_the_place_of_its_request() {
    let server = Server::start(model(), &["--max-connections", "1"]);
    let (go_on, blocked) = std::sync::mpsc::channel::<()>();
    server.runtime.spawn_blocking(move || blocked.recv());
    let mut gone = TcpStream::connect(server.address).unwrap();
    gone.write_all(&request(COMPLETIONS, ask(json!({})).to_string().as_bytes())).unwrap();
    while server.app.places.available_permits() > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    drop(gone);
    server.wait_for("connections", 1.0);
    assert_eq!(server.app.places.available_permits(), 0); // or the next request would wait as well
    let refused = server.post(COMPLETIONS, &ask(json!({})));
    assert_eq!(refused.status, 429, "{}", refused.body);
    go_on.send(()).unwrap();
    while server.app.places.available_permits() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
}

/// A request for more tokens than the connection, the sockets of both sides and the engine hold.
fn unread(fields: serde_json::Value) -> serde_json::Value {
    let mut body = long(fields);
    body["max_tokens"] = json!(MORE_THAN_IS_HELD);
    body["stream"] = json!(true);
    body
}

const MORE_THAN_IS_HELD: usize = 6_000;

#[test]
fn a_client_that_does_not_read_is_paused_and_let_go() {
    let server = Server::start(slow_model(Duration::ZERO), &["--client-timeout", "2"]);
    let mut stream = open(server.address, COMPLETIONS, &unread(json!({})));
    server.wait_for("completions_paused", 1.0);
    // Others are served meanwhile.
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
    server.wait_for("requests_open", 0.0);
    assert_eq!(server.metric("completions_running"), 0.0);
    // What was on its way arrives, without an end.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest); // an error if the connection was reset
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("[DONE]") && rest.matches("data: ").count() < MORE_THAN_IS_HELD);
}

/// A byte after the body hides from the server that the client has gone, until it writes.
#[test]
fn a_stray_byte_after_the_body_is_noticed_at_the_next_write() {
    let server = Server::start(slow_model(PAUSE), &[]);
    let mut body = request(COMPLETIONS, long(json!({"stream": true})).to_string().as_bytes());
    body.push(b'x');
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.write_all(&body).unwrap();
    server.wait_for("completions_running", 1.0);
    drop(socket);
    server.wait_for("completions_running", 0.0);
}

#[test]
fn health_and_metrics_answer_while_all_connections_are_in_use() {
    let server = Server::start(slow_model(PAUSE), &["--max-connections", "2"]);
    let stream = || open(server.address, COMPLETIONS, &long(json!({"stream": true})));
    let streams = [stream(), stream()];
    server.wait_for("completions_running", 2.0);
    let refused = server.post(COMPLETIONS, &ask(json!({})));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("engine_busy")));
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    // More clients than there are spare connections, which would all like to keep theirs.
    let kept: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut socket = TcpStream::connect(server.address).unwrap();
            socket.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let answer = receive(socket.try_clone().unwrap());
            assert_eq!(answer.status, 200, "{}", answer.head);
            assert!(answer.head.contains("connection: close"), "{}", answer.head);
            socket
        })
        .collect();
    assert_eq!(server.metric("completions_running"), 2.0);
    drop((streams, kept));
    server.wait_for("requests_open", 0.0);
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
}

#[test]
fn a_group_in_use_is_not_evicted() {
    let server = Server::start(slow_model(PAUSE), &["--max-groups", "1"]);
    let group = |name: &str| json!({"stream": true, "esamp": {"group": name, "beta": 0.5}});
    let stream = open(server.address, COMPLETIONS, &long(group("a")));
    let refused = server.post(COMPLETIONS, &long(group("b")));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.json()["error"]["param"], "esamp.group");
    drop(stream);
    server.wait_for("completions_running", 0.0);
    let stream = open(server.address, COMPLETIONS, &long(group("b")));
    drop(stream);
}

#[test]
fn a_full_server_says_when_to_come_back() {
    let server = Server::start(slow_model(PAUSE), &["--max-rows", "1", "--max-waiting", "1"]);
    let first = open(server.address, COMPLETIONS, &long(json!({"stream": true})));
    server.wait_for("completions_running", 1.0);
    let second = open(server.address, COMPLETIONS, &long(json!({"stream": true})));
    server.wait_for("requests_waiting", 1.0);
    let refused = server.post(COMPLETIONS, &ask(json!({})));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    drop((first, second));
    server.wait_for("requests_waiting", 0.0);
    server.wait_for("completions_running", 0.0);
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
}

#[test]
fn a_model_that_fails_is_an_error_of_those_in_the_step() {
    let server = Server::start(model().failing_at(5), &[]);
    let failed = server.post(COMPLETIONS, &ask(json!({"n": 2})));
    assert_eq!(failed.status, 500, "{}", failed.body);
    let error = &failed.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("server_error"), &json!("internal_error"))
    );
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({"n": 2})))).len(), 2);
    assert_eq!(server.metric("failed_steps_total"), 1.0);

    let server = Server::start(model().failing_at(5), &[]);
    let streamed = server.post(COMPLETIONS, &ask(json!({"stream": true})));
    let (chunks, is_done) = streamed.chunks();
    assert_eq!(streamed.status, 200);
    assert!(!is_done && chunks.len() > 3, "{}", streamed.body);
    assert_eq!(chunks.last().unwrap()["error"]["type"], "server_error");
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
}

/// A token of which the first completion has been told not to have it again fails, and with it the whole response.
#[test]
fn a_whole_response_ends_when_a_completion_fails() {
    let server = Server::start(slow_model(PAUSE), &[]);
    // One prompt fills its completions' choice of tokens with itself: none is left at once. The other one has all.
    let words: Vec<u32> = (0..96).collect();
    let fields = json!({"prompt": [[5], words], "no_repeat_ngram_size": 1, "max_tokens": 90,
                        "min_tokens": 90, "esamp": {"beta": 0}});
    let failed = server.post(COMPLETIONS, &ask(fields));
    assert_eq!((failed.status, &failed.json()["error"]["code"]), (400, &json!("no_token_left")));
    server.wait_for("completions_running", 0.0);
    let tokens = server.metric("sampler_tokens_total");
    assert!(tokens < 45.0, "the other one is cancelled: {tokens}");
}

#[test]
fn a_second_signal_ends_the_grace() {
    let mut server = Server::start(slow_model(PAUSE), &["--grace", "600"]);
    let bounded = json!({"stream": true, "max_tokens": 5_000});
    let stream = open(server.address, COMPLETIONS, &long(bounded));
    server.wait_for("completions_running", 1.0);
    server.stop();
    server.stop();
    let rest: Vec<String> = stream.lines().map(Result::unwrap).collect();
    let last = rest.iter().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
    assert!(last.contains("\"code\":\"shutting_down\""), "{last}");
    server.join();
}

#[test]
fn a_server_that_stops_cancels_what_is_left_after_the_grace() {
    let mut server = Server::start(slow_model(PAUSE), &["--grace", "10"]);
    let stream = open(server.address, COMPLETIONS, &long(json!({"stream": true, "n": 2})));
    let address = server.address;
    let whole = thread::spawn(move || post(address, COMPLETIONS, &long(json!({}))));
    let short =
        thread::spawn(move || post(address, COMPLETIONS, &long(json!({"max_tokens": 100}))));
    server.wait_for("completions_running", 4.0);
    server.stop();
    let rest: Vec<String> = stream.lines().map(Result::unwrap).collect();
    let last = rest.iter().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
    assert!(last.contains("\"code\":\"shutting_down\""), "{last}");
    let whole = whole.join().unwrap();
    assert_eq!(whole.status, 503, "{}", whole.body);
    assert!(whole.head.contains("retry-after: "));
    assert_eq!(texts(&short.join().unwrap()).len(), 1, "it had time to end");
    server.join();
}

/// The program with a small model of random weights, and its address.
#[cfg(unix)]
fn program(flags: &[&str]) -> (Child, SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    esamp_testkit::word_model::fill(folder.path());
    let mut program = Command::new(env!("CARGO_BIN_EXE_esamp-serve"))
        .args(["--listen", "127.0.0.1:0", "--grace", "1", "--model-name", "words", "--model"])
        .arg(folder.path())
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit_once("http://").unwrap().1.parse().unwrap();
    (program, address)
}

#[cfg(unix)]
fn terminate(program: &Child) {
    let killed = Command::new("kill").arg("-TERM").arg(program.id().to_string()).status();
    assert!(killed.unwrap().success());
}

/// What a program that ends has logged.
#[cfg(unix)]
fn log(mut program: Child) -> String {
    assert!(program.wait().unwrap().success());
    let mut log = String::new();
    program.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    log
}

#[cfg(unix)]
#[test]
fn the_log_has_no_text_of_requests_unless_it_is_asked_for() {
    for (flags, levels) in [
        (&["--log", "debug"][..], &["DEBUG", "INFO"][..]),
        (&[], &["INFO"]),
        (&["--log", "warn", "--log-prompts"], &[]),
        (&["--log-prompts"], &["INFO"]),
    ] {
        let (program, address) = program(flags);
        let served = post(address, COMPLETIONS, &ask(json!({"stop": "w77", "logprobs": 2})));
        assert_eq!(texts(&served).len(), 1);
        for wrong in [
            json!({"temperature": "w77"}),
            json!({"w77": 1}),
            json!({"prompt": "w77 w77", "n": 99}),
        ] {
            assert_eq!(post(address, COMPLETIONS, &ask(wrong)).status, 400);
        }
        assert_eq!(send(address, &request(COMPLETIONS, b"w77")).status, 400);
        assert_eq!(get(address, "/w77").status, 404);
        terminate(&program);
        let log = log(program);
        for level in ["DEBUG", "INFO", "WARN"] {
            assert_eq!(
                log.contains(&format!(" {level} ")),
                levels.contains(&level),
                "{flags:?}: {log}"
            );
        }
        let is_shown = flags == ["--log-prompts"];
        assert_eq!(log.contains("w5 w6"), is_shown, "{flags:?}: {log}");
        let said = served.json()["choices"][0]["text"].as_str().unwrap().to_owned();
        assert!(!log.contains("w77") && !log.contains(&said), "{flags:?}: {log}");
    }
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_the_program() {
    let (mut program, address) = program(&["--grace", "600", "--client-timeout", "10"]);
    // A request whose body does not come: without the signal it has ten seconds, and then all have ended.
    let mut open = TcpStream::connect(address).unwrap();
    let headers = ["Content-Type: application/json", "Content-Length: 9"];
    open.write_all(&server::head("POST", COMPLETIONS, &headers)).unwrap();
    while server::metric(address, "connections") < 2.0 {}
    terminate(&program);
    let mut lines = BufReader::new(program.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("stopping")));
    terminate(&program);
    assert!(lines.any(|line| line.contains("cancelling")));
    assert!(program.wait().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_signal_under_load_ends_every_stream_with_a_reason() {
    let (program, address) = program(&[]);
    let fields = json!({"stream": true, "n": 4, "max_tokens": 120, "prompt": "w5 w6"});
    let streams: Vec<_> =
        (0..12).map(|_| open(address, COMPLETIONS, &ask(fields.clone()))).collect();
    terminate(&program);
    for stream in streams {
        let lines: Vec<String> = stream.lines().map(Result::unwrap).collect();
        let last = lines.iter().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
        assert!(last == "[DONE]" || last.contains("\"shutting_down\""), "{last}");
    }
    let log = log(program);
    assert!(log.contains("stopped") && log.contains("completion_tokens"), "{log}");
    assert!(!log.contains("w5"), "no text of requests: {log}");
    assert!(TcpStream::connect(address).is_err());
}
