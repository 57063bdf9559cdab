//! Distillers: the flags that set them, and groups, which keep them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod server;

use burn::tensor::Device;
use esamp::testing::TinyLm;
use serde_json::{Value, json};

use server::{Server, ask, head, model, send, texts};

const COMPLETIONS: &str = "/v1/completions";

#[test]
fn a_group_goes_on_with_what_its_earlier_requests_have_learned() {
    let server = Server::start(model(), &["--max-groups", "2"]);
    let novelty = |group: Option<&str>| -> f64 {
        let fields = json!({"n": 2, "seed": 1, "max_tokens": 30,
                            "esamp": {"beta": 1, "details": true, "group": group}});
        let body = server.post(COMPLETIONS, &ask(fields)).json();
        assert_eq!(body["esamp"]["group"]["id"].as_str(), group, "{body}");
        let tokens = body["choices"][0]["esamp"]["tokens"].as_array().unwrap();
        tokens[1]["novelty"].as_f64().unwrap()
    };
    let first = novelty(Some("a"));
    assert_eq!(server.metric("distillers"), 1.0, "kept");
    assert!(novelty(Some("a")) < first, "it has learned");
    assert_eq!(novelty(None), novelty(None), "each has its own");
    server.wait_for("distillers", 1.0);
    novelty(Some("b"));
    novelty(Some("c"));
    server.wait_for("distillers", 2.0); // the oldest made room
}

#[test]
fn the_flags_of_the_distillers_reach_the_sampler() {
    let fields = |esamp: Value| ask(json!({"n": 2, "seed": 4, "max_tokens": 30, "esamp": esamp}));
    let bytes_and_texts = |flags: &[&str]| {
        let server = Server::start(model(), flags);
        let said = texts(&server.post(COMPLETIONS, &fields(json!({"beta": 2, "group": "a"}))));
        (server.metric("distiller_bytes"), said)
    };
    let (usual, said) = bytes_and_texts(&[]);
    let (low_rank, other) = bytes_and_texts(&["--distiller", "low-rank"]);
    assert!(0.0 < low_rank && low_rank < usual && other != said, "{low_rank} {usual}");
    let (lower, _) = bytes_and_texts(&["--settings", "reference", "--rank", "8"]);
    assert!(0.0 < lower && lower < low_rank, "{lower} {low_rank}");
    let (same, other) = bytes_and_texts(&["--learning-rate", "1e-2"]);
    assert!(same == usual && other != said);

    let steered = |flags: &[&str], esamp: Value| {
        // The other model shows its states at the last position alone, which is no prompt to learn from.
        let server = Server::start(TinyLm::new(1, &Device::flex()), flags);
        assert_eq!(server.post(COMPLETIONS, &fields(esamp)).status, 200);
        server.metric("sampler_steered_total")
    };
    assert!(steered(&[], json!({})) > 0.0);
    assert_eq!(steered(&["--updates-before-steering", "99"], json!({})), 0.0);
    // Updates on the prompt count: those of the flag, unless the request has its own number.
    let flags = ["--updates-before-steering", "99", "--warm-up-updates", "100"];
    assert!(steered(&flags, json!({})) > 0.0);
    assert_eq!(steered(&flags, json!({"warm_up_updates": 0})), 0.0);

    let server = Server::start(model(), &["--sharing", "global"]);
    let refused = server.post(COMPLETIONS, &fields(json!({"group": "a"})));
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["param"]), (400, &json!("esamp.group")), "{error}");
    // The preset without a filter has none here either.
    let server = Server::start(model(), &["--settings", "paper"]);
    let hot = ask(json!({"temperature": 1, "max_tokens": 200, "seed": 1, "esamp": {"beta": 0}}));
    let mut off = hot.clone();
    off["min_p"] = json!(0);
    let mut usual = hot.clone();
    usual["min_p"] = json!(0.05);
    let said = |body: &Value| texts(&server.post(COMPLETIONS, body));
    assert!(said(&hot) == said(&off) && said(&off) != said(&usual));
}

#[test]
fn a_request_hears_whether_its_group_was_kept() {
    let server = Server::start(model(), &["--max-groups", "2"]);
    let group = |name: &str| {
        let body = server.post(COMPLETIONS, &ask(json!({"esamp": {"group": name}}))).json();
        assert_eq!(body["esamp"]["group"]["id"], name, "{body}");
        body["esamp"]["group"]["known"].as_bool().unwrap()
    };
    assert_eq!(["a", "a", "b", "a"].map(group), [false, true, false, true]);
    // The one that was not used for the longest time makes room.
    assert_eq!(["c", "a", "b"].map(group), [false, true, false]);
    // A request that is refused does not.
    let refused = ask(json!({"esamp": {"group": "d"}, "prompt": [96]}));
    assert_eq!(server.post(COMPLETIONS, &refused).status, 400);
    assert_eq!(["b", "a"].map(group), [true, true]);
    let stream = ask(json!({"esamp": {"group": "a"}, "stream": true}));
    let (chunks, _) = server.post(COMPLETIONS, &stream).chunks();
    assert_eq!(chunks[0]["esamp"]["group"], json!({"id": "a", "known": true}));
    assert_eq!(server.metric("distillers"), 2.0);
}

#[test]
fn a_group_may_be_named_in_a_header() {
    let server = Server::start(model(), &[]);
    let with = |headers: &[&str], fields: Value| {
        let body = ask(fields).to_string();
        let length = format!("Content-Length: {}", body.len());
        let headers = [&["Content-Type: application/json", &length], headers].concat();
        send(server.address, &[head("POST", COMPLETIONS, &headers), body.into()].concat())
    };
    let a = json!({"esamp": {"group": "a"}});
    for answer in [
        with(&["X-Esamp-Group: a"], json!({})),
        with(&["x-esamp-group: a"], a.clone()),
        with(&[], a.clone()),
    ] {
        assert_eq!(answer.json()["esamp"]["group"]["id"], "a", "{}", answer.body);
    }
    server.wait_for("distillers", 1.0);
    let long = format!("X-Esamp-Group: {}", "x".repeat(257));
    for (headers, fields, says) in [
        (&["X-Esamp-Group: b"][..], a, "the value of esamp.group, \"a\", got \"b\""),
        (&["X-Esamp-Group: a", "X-Esamp-Group: a"], json!({}), "one such header, got several"),
        (&["X-Esamp-Group:"], json!({}), "1 to 256 bytes, got 0 bytes"),
        (&[&long], json!({}), "got 257 bytes"),
    ] {
        let answer = with(headers, fields);
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!("X-Esamp-Group")), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}
