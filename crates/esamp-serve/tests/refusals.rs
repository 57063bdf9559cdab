//! What a client gets that asks for what cannot be: a status, and an error that names the field.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod server;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use serde_json::{Value, json};

use server::{Server, ask, get, head, model, receive, request, send, texts};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[test]
fn wrong_fields_are_named() {
    let server = Server::start(model(), &["--max-prompt", "300"]);
    let long = "w1 ".repeat(301);
    for (fields, param, says) in [
        (
            json!({"temperature": "hot"}),
            "temperature",
            "expected a number from 0 to 2, got \"hot\"",
        ),
        (json!({"temperature": 2.5}), "temperature", "got 2.5"),
        (json!({"temperature": -1}), "temperature", "got -1"),
        (json!({"top_p": 0}), "top_p", "above 0"),
        (json!({"top_k": -2}), "top_k", "from -1"),
        (json!({"top_k": 1.5}), "top_k", "a whole number"),
        (json!({"min_p": 1.1}), "min_p", "from 0 to 1"),
        (json!({"n": 0}), "n", "a whole number from 1 to 16, got 0"),
        (json!({"n": 17}), "n", "got 17"),
        (json!({"n": "4"}), "n", "got \"4\""),
        (json!({"best_of": 3}), "best_of", "the value of n, 1"),
        (json!({"max_tokens": 0}), "max_tokens", "from 1"),
        (json!({"max_tokens": 1e12}), "max_tokens", "from 1"),
        (json!({"seed": -9.3e18}), "seed", "from -9223372036854775808 to 18446744073709551615"),
        (json!({"stop": ["a", 1]}), "stop", "got an array of 2"),
        (json!({"stop": ""}), "stop", "of 1 to 256 bytes"),
        (json!({"stream": "yes"}), "stream", "true or false"),
        (json!({"stream_options": {"usage": true}}), "stream_options.usage", "unknown"),
        (json!({"logprobs": 21}), "logprobs", "from 0 to 20"),
        (json!({"logprobs": true}), "logprobs", "from 0 to 20"),
        (json!({"top_logprobs": 2}), "top_logprobs", "unknown"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "cannot be constrained",
        ),
        (json!({"tools": [{}]}), "tools", "not told about tools"),
        (json!({"echo": true}), "echo", "expected false"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias", "token ids"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias", "from -100 to 100"),
        (json!({"logit_bias": {"96": 1}}), "logit_bias", "an id below 96"),
        (json!({"presence_penalty": 3}), "presence_penalty", "from -2 to 2"),
        (json!({"frequency_penalty": []}), "frequency_penalty", "got an array of 0"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "above 0"),
        (json!({"min_tokens": -1}), "min_tokens", "from 0"),
        (json!({"min_tokens": 13}), "min_tokens", "expected at most max_tokens, 12, got 13"),
        (json!({"no_repeat_ngram_size": -1}), "no_repeat_ngram_size", "from 0"),
        (json!({"dry_multiplier": -1}), "dry_multiplier", "from 0 to 100"),
        (json!({"dry_base": 0.5}), "dry_base", "from 1 to 100"),
        (json!({"dry_allowed_length": 0}), "dry_allowed_length", "from 1"),
        (json!({"dry_sequence_breakers": [1]}), "dry_sequence_breakers", "got an array of 1"),
        (
            json!({"dry_sequence_breakers": [" w1", " w1 w2"]}),
            "dry_sequence_breakers",
            "expected texts of one token each, got \" w1 w2\", which is none",
        ),
        (json!({"temprature": 1}), "temprature", "unknown"),
        (json!({"max_completion_tokens": 1}), "max_completion_tokens", "unknown"),
        (json!({"prompt": 7}), "prompt", "a string, an array of token ids"),
        (json!({"prompt": null}), "prompt", "got none"),
        (json!({"prompt": []}), "prompt", "at least one token"),
        (json!({"prompt": [1, "w2"]}), "prompt[0]", "an array of such prompts, got 1"),
        (json!({"prompt": ["w1", [2, -1]]}), "prompt[1]", "got -1"),
        (json!({"prompt": ["w1", []]}), "prompt[1]", "at least one token"),
        (json!({"prompt": ["w1", [1, 96]]}), "prompt[1]", "an id below 96"),
        (json!({"prompt": ["w1", long]}), "prompt[1]", "at most 300 tokens, got 301 tokens"),
        (
            json!({"prompt": ["w1", "w2"], "n": 9}),
            "prompt",
            "at most 16 completions in all, n of each prompt, got 2 prompts with n 9",
        ),
        (json!({"prompt": [1, 96]}), "prompt", "an id below 96"),
        (json!({"prompt": long}), "prompt", "at most 300 tokens, got 301 tokens"),
        (json!({"model": 7}), "model", "a string"),
        (json!({"model": null}), "model", "expected \"words\", got none"),
        (json!({"esamp": 1}), "esamp", "an object"),
        (json!({"esamp": {"beta": -1}}), "esamp.beta", "from 0 to 100"),
        (json!({"esamp": {"reweighter": "contrast"}}), "esamp.reweighter", "\"orthogonal\""),
        (json!({"esamp": {"group": ""}}), "esamp.group", "of 1 to 256 bytes"),
        (json!({"esamp": {"warm_up_updates": 101}}), "esamp.warm_up_updates", "from 0 to 100"),
        (
            json!({"esamp": {"distiller": "low-rank"}}),
            "esamp.distiller",
            "expected none: all requests share this setting, which --distiller sets when the server starts, got \"low-rank\"",
        ),
        (json!({"esamp": {"settings": "paper"}}), "esamp.settings", "which --settings sets"),
        (json!({"esamp": {"rank": 8}}), "esamp.rank", "which --rank sets"),
        (json!({"esamp": {"learning_rate": 1}}), "esamp.learning_rate", "--learning-rate sets"),
        (json!({"esamp": {"sharing": "global"}}), "esamp.sharing", "which --sharing sets"),
        (
            json!({"esamp": {"updates_before_steering": 2}}),
            "esamp.updates_before_steering",
            "which --updates-before-steering sets",
        ),
        (json!({"esamp": {"gamma": 1}}), "esamp.gamma", "unknown"),
    ] {
        check(&server, COMPLETIONS, &ask(fields), 400, param, says);
    }
    check(&server, COMPLETIONS, &ask(json!({"model": "gpt-4"})), 404, "model", "got \"gpt-4\"");
    // It still serves.
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
}

#[test]
fn wrong_conversations_are_named() {
    let server = Server::start(model(), &[]);
    let user = json!({"role": "user", "content": "w1"});
    for (messages, param) in [
        (json!("w1"), "messages"),
        (json!([]), "messages"),
        (json!([user, 3]), "messages[1]"),
        (json!([{"content": "w1"}]), "messages[0].role"),
        (json!([{"role": "tool", "content": "w1"}]), "messages[0].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": "user", "content": 1}]), "messages[0].content"),
        (
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            "messages[0].content[0].type",
        ),
        (json!([{"role": "user", "content": "w1", "name": "x"}]), "messages[0].name"),
        (json!([{"role": "user", "content": "w1 ".repeat(600)}]), "messages"),
    ] {
        let body = json!({"model": "words", "messages": messages});
        check(&server, CHAT, &body, 400, param, "expected");
    }
    let both =
        json!({"model": "words", "messages": [user], "max_tokens": 1, "max_completion_tokens": 1});
    check(&server, CHAT, &both, 400, "max_completion_tokens", "got both");
}

fn check(server: &Server, path: &str, body: &Value, status: u16, param: &str, says: &str) {
    let answer = server.post(path, body);
    assert_eq!(answer.status, status, "{body}: {}", answer.body);
    assert!(answer.head.contains("content-type: application/json"));
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    assert_eq!(error["param"], param, "{error}");
    assert!(error["code"].is_string() && error.as_object().unwrap().len() == 4, "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(says), "{says}: {message}");
}

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let server = Server::start(model(), &[]);
    let big = format!("{{\"prompt\": \"{}\"}}", "x".repeat(10 << 20));
    let deep = "[".repeat(100_000);
    for (body, status, code) in [
        (&b"{\"model\""[..], 400, "invalid_json"),
        (&b""[..], 400, "invalid_json"),
        (&b"hello"[..], 400, "invalid_json"),
        (&b"[1]"[..], 400, "invalid_value"),
        (&b"{\"model\": \"\xff\"}"[..], 400, "invalid_utf8"),
        (deep.as_bytes(), 400, "invalid_json"),
        (big.as_bytes(), 413, "body_too_large"),
    ] {
        let answer = send(server.address, &request(COMPLETIONS, body));
        assert_eq!(answer.status, status, "{code}: {}", answer.body);
        assert_eq!(answer.json()["error"]["code"], code);
    }
    let form = head("POST", COMPLETIONS, &["Content-Length: 2"]);
    let answer = send(server.address, &[form, b"{}".to_vec()].concat());
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (415, &json!("unsupported_media_type"))
    );
    assert_eq!(get(server.address, COMPLETIONS).status, 405);
    let lost = get(server.address, "/v2/nothing");
    assert_eq!((lost.status, &lost.json()["error"]["code"]), (404, &json!("not_found")));
    assert_eq!(get(server.address, "/v1/models/other/one").status, 404);
}

#[test]
fn a_client_that_sends_too_slowly_is_let_go() {
    let server = Server::start(model(), &["--client-timeout", "1"]);
    let mut body = TcpStream::connect(server.address).unwrap();
    let headers = ["Content-Type: application/json", "Content-Length: 100"];
    body.write_all(&head("POST", COMPLETIONS, &headers)).unwrap();
    let mut header = TcpStream::connect(server.address).unwrap();
    header.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: t").unwrap();
    let idle = TcpStream::connect(server.address).unwrap();
    let answer = receive(body);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (408, &json!("request_timeout")));
    let message = "headers: expected all of them within 1 s";
    assert_eq!(bytes(header), last("408 Request Timeout", "request_timeout", message));
    assert_eq!(bytes(idle), "", "nobody waits for an answer");
    let counted = "esamp_http_responses_total{path=\"other\",status=\"408\"} 1\n";
    assert!(get(server.address, "/metrics").body.contains(counted));
    server.wait_for("connections", 1.0); // that of the question itself
}

/// All that a server sends.
fn bytes(mut socket: TcpStream) -> String {
    let mut bytes = String::new();
    socket.read_to_string(&mut bytes).unwrap();
    bytes
}

/// The response to what is no request.
fn last(status: &str, code: &str, message: &str) -> String {
    let kind = "invalid_request_error";
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

#[test]
fn what_is_no_request_of_http_gets_an_error_with_a_body() {
    let server = Server::start(model(), &[]);
    let said = |sent: &[u8]| {
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.write_all(sent).unwrap();
        bytes(socket)
    };
    let long = "x".repeat(100_000);
    for (sent, status, code, message) in [
        (
            "hello\r\n\r\n".to_owned(),
            "400 Bad Request",
            "invalid_http",
            "request: expected a head of HTTP/1.1, got: invalid HTTP method parsed",
        ),
        (
            "GET / HTTP/9.9\r\n\r\n".to_owned(),
            "400 Bad Request",
            "invalid_http",
            "request: expected a head of HTTP/1.1, got: invalid HTTP version parsed",
        ),
        (
            "GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(),
            "400 Bad Request",
            "invalid_http",
            "request: expected a head of HTTP/1.1, got: invalid HTTP header parsed",
        ),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "400 Bad Request",
            "invalid_http",
            "request: expected a head of HTTP/1.1, got: invalid HTTP version parsed (found HTTP2 preface)",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
            "431 Request Header Fields Too Large",
            "headers_too_large",
            "headers: expected at most 32768 bytes in 100 fields, got more",
        ),
        (
            format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            "414 URI Too Long",
            "path_too_long",
            "path: expected a head of at most 32768 bytes, got more",
        ),
    ] {
        assert_eq!(said(sent.as_bytes()), last(status, code, message));
    }
    // After a request that was answered.
    let both = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nhello\r\n\r\n";
    let said = said(both.as_bytes());
    assert!(said.starts_with("HTTP/1.1 200 OK") && said.contains("invalid_http"), "{said}");
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({})))).len(), 1);
}

#[test]
fn a_client_that_closes_its_half_is_told_so() {
    let server = Server::start(model(), &[]);
    let half = |sent: &[u8]| {
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.write_all(sent).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        bytes(socket)
    };
    let message = "connection: expected it to stay open until the response is read, got the end of the client's sending half";
    let closed = last("400 Bad Request", "connection_closed", message);
    for stream in [false, true] {
        let asked = ask(json!({"stream": stream, "max_tokens": 500})).to_string();
        assert_eq!(half(&request(COMPLETIONS, asked.as_bytes())), closed);
    }
    server.wait_for("completions_running", 0.0);
    let message = "headers: expected all of them, got the end of the connection";
    let cut = last("400 Bad Request", "connection_closed", message);
    assert_eq!(half(b"GET /health HTTP/1.1\r\nHost:"), cut);
    let body =
        half(&head("POST", COMPLETIONS, &["Content-Type: application/json", "Content-Length: 9"]));
    assert!(body.contains("body: expected all of it"), "{body}");
    assert_eq!(half(b""), "");
}

#[test]
fn keys_are_required_where_there_are_some() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one\ntwo\n").unwrap();
    let server = Server::start(model(), &["--api-key-file", file.path().to_str().unwrap()]);
    let body = ask(json!({"esamp": {"group": "g"}})).to_string();
    let length = format!("Content-Length: {}", body.len());
    let with = |headers: &[&str]| {
        let headers = [&["Content-Type: application/json", &length], headers].concat();
        send(server.address, &[head("POST", COMPLETIONS, &headers), body.clone().into()].concat())
    };
    for wrong in [&[][..], &["Authorization: Bearer three"], &["Authorization: Basic one"]] {
        let answer = with(wrong);
        assert_eq!(answer.status, 401);
        assert!(answer.head.contains("www-authenticate: bearer"));
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
    assert_eq!(with(&["Authorization: Bearer one"]).status, 200);
    assert_eq!(with(&["Authorization: bearer two"]).status, 200);
    // Two clients do not share a group of one name.
    let answer = send(server.address, &head("GET", "/metrics", &["Authorization: Bearer one"]));
    assert!(answer.body.contains("esamp_distillers 2\n"), "{}", answer.body);
    assert_eq!(get(server.address, "/metrics").status, 401);
    assert_eq!(get(server.address, "/health").status, 200);
    assert!(get(server.address, "/").body.contains("id=\"key\""));
}

#[test]
fn a_web_page_of_another_site_cannot_use_the_server() {
    let server = Server::start(model(), &["--allowed-host", "models.example.org"]);
    let body = ask(json!({})).to_string();
    let length = format!("Content-Length: {}", body.len());
    let post = |host: &str, headers: &[&str]| {
        let headers = [&[host, &length], headers].concat();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let head = format!("POST {COMPLETIONS} HTTP/1.0\r\n{headers}\r\n");
        send(server.address, &[head.into_bytes(), body.clone().into()].concat())
    };
    // Under a name of its own that points here.
    let json = "Content-Type: application/json";
    for host in ["Host: evil.example", "Host: 127.0.0.1.evil.example:8000"] {
        let refused = post(host, &[json]);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (403, &json!("Host")), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for path in ["/", "/health", "/metrics", "/v1/models"] {
        let request = format!("GET {path} HTTP/1.0\r\nHost: evil.example\r\n\r\n");
        assert_eq!(send(server.address, request.as_bytes()).status, 403, "{path}");
    }
    for host in ["Host: localhost:1", "Host: [::1]", "Host: models.example.org"] {
        assert_eq!(post(host, &[json]).status, 200, "{host}");
    }
    // Under this server's name: what a browser sends without asking first is no JSON, and asking is not answered.
    let origin = "Origin: https://evil.example";
    for kind in [
        "Content-Type: text/plain",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: multipart/form-data; boundary=application/json",
    ] {
        assert_eq!(post("Host: localhost", &[origin, kind]).status, 415, "{kind}");
    }
    let ask_first = ["Access-Control-Request-Method: POST", origin];
    let answer = send(server.address, &head("OPTIONS", COMPLETIONS, &ask_first));
    assert_eq!(answer.status, 405);
    assert!(!answer.head.contains("access-control"), "{}", answer.head);
}
