//! What `/metrics` shows: dashboards and alerts depend on every name, label and bucket.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod server;

use std::time::{Duration, Instant};

use esamp::telemetry::Counters;
use serde_json::json;

use server::{Server, ask, get, model, open, slow_model, texts};

const COMPLETIONS: &str = "/v1/completions";

/// Names, types and help texts, without the counters of the sampler.
const METRICS: [(&str, &str, &str); 18] = [
    ("connections", "gauge", "Open connections."),
    ("requests_open", "gauge", "Requests for completions that are being answered."),
    ("requests_waiting", "gauge", "Requests whose prompt has not begun."),
    ("completions_running", "gauge", "Completions that are being decoded."),
    ("completions_paused", "gauge", "Completions whose client does not read."),
    ("distillers", "gauge", "Distillers in use."),
    ("distiller_bytes", "gauge", "Memory of the distillers."),
    ("decode_steps_total", "counter", "Decode steps."),
    ("decoded_tokens_total", "counter", "Tokens of decode steps."),
    ("decode_seconds_total", "counter", "Time in decode steps."),
    ("prompt_tokens_total", "counter", "Prompt tokens."),
    ("prefill_seconds_total", "counter", "Time in prefills."),
    ("failed_steps_total", "counter", "Steps that failed as a whole."),
    (
        "time_in_queue_seconds",
        "histogram",
        "From a request's submission to the engine to its admission.",
    ),
    ("time_to_first_token_seconds", "histogram", "From a request to its first token."),
    ("time_between_tokens_seconds", "histogram", "Between two tokens of a completion."),
    ("request_duration_seconds", "histogram", "From a request to its end, whichever it is."),
    ("http_responses_total", "counter", "Responses by path and status."),
];

#[test]
fn every_metric_has_its_name_type_help_and_labels() {
    let server = Server::start(model(), &[]);
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({"seed": 3})))).len(), 1);
    assert_eq!(server.post(COMPLETIONS, &ask(json!({"seed": "3"}))).status, 400);
    server.wait_for("requests_open", 0.0);
    let shown = get(server.address, "/metrics");
    let content_type = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
    assert!(shown.head.contains(content_type), "{}", shown.head);
    let shown = shown.body;
    for (name, kind, help) in METRICS {
        let head = format!("# HELP esamp_{name} {help}\n# TYPE esamp_{name} {kind}\nesamp_{name}");
        assert!(shown.contains(&head), "{head}: {shown}");
    }
    let counters = json!(Counters::default());
    let counters = counters.as_object().unwrap();
    for name in counters.keys() {
        let name = format!("esamp_sampler_{name}_total");
        let head = format!("# HELP {name} See esamp::Counters.\n# TYPE {name} counter\n{name} ");
        assert!(shown.contains(&head), "{head}: {shown}");
    }
    assert_eq!(shown.matches("# TYPE ").count(), METRICS.len() + counters.len(), "{shown}");
    for line in [
        "esamp_connections 1",
        "esamp_decode_steps_total 11",
        "esamp_sampler_tokens_total 12",
        "esamp_http_responses_total{path=\"/v1/completions\",status=\"200\"} 1",
        "esamp_http_responses_total{path=\"/v1/completions\",status=\"400\"} 1",
        "esamp_time_to_first_token_seconds_count 1",
        "esamp_time_between_tokens_seconds_count 11",
        "esamp_request_duration_seconds_count 1",
        "esamp_request_duration_seconds_bucket{le=\"+Inf\"} 1",
    ] {
        assert!(shown.contains(&format!("\n{line}\n")), "{line}: {shown}");
    }
    let bucket = "esamp_time_to_first_token_seconds_bucket{le=\"";
    let buckets = shown.lines().filter_map(|line| line.strip_prefix(bucket)?.split('"').next());
    let expected =
        "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 25 50 100 250 500 +Inf";
    assert_eq!(buckets.collect::<Vec<_>>().join(" "), expected);
}

#[test]
fn buckets_count_all_times_up_to_their_bound() {
    let server = Server::start(model(), &[]);
    for seconds in [0.001, 0.009, 0.01, 0.011, 10.0, 700.0] {
        server.app.traffic.first_token.observe(seconds);
    }
    let shown = get(server.address, "/metrics").body;
    for (bound, count) in [
        ("0.001", 1),
        ("0.005", 1),
        ("0.01", 3),
        ("0.025", 4),
        ("5", 4),
        ("10", 5),
        ("500", 5),
        ("+Inf", 6),
    ] {
        let line = format!("esamp_time_to_first_token_seconds_bucket{{le=\"{bound}\"}} {count}\n");
        assert!(shown.contains(&line), "{line}: {shown}");
    }
    assert_eq!(server.metric("time_to_first_token_seconds_sum"), 710.031);
    assert_eq!(server.metric("time_to_first_token_seconds_count"), 6.0);
}

#[test]
fn servers_of_one_process_count_apart() {
    let servers = [Server::start(model(), &[]), Server::start(model(), &[])];
    servers[0].post(COMPLETIONS, &ask(json!({})));
    servers[0].wait_for("request_duration_seconds_count", 1.0);
    assert_eq!(servers[1].metric("request_duration_seconds_count"), 0.0);
}

#[test]
fn the_time_in_the_queue_ends_when_there_is_room() {
    let server = Server::start(slow_model(Duration::from_millis(2)), &["--max-rows", "1"]);
    let long = ask(json!({"stream": true, "max_tokens": 100_000, "esamp": {"beta": 0}}));
    let first = open(server.address, COMPLETIONS, &long);
    server.wait_for("time_in_queue_seconds_count", 1.0);
    let address = server.address;
    let second = std::thread::spawn(move || server::post(address, COMPLETIONS, &ask(json!({}))));
    server.wait_for("requests_waiting", 1.0);
    let waits = Instant::now();
    let before = server.metric("time_in_queue_seconds_sum");
    // Long enough that the time of the second request does not pass for that of an idle server.
    std::thread::sleep(Duration::from_millis(100));
    let at_least = waits.elapsed().as_secs_f64();
    drop(first);
    assert_eq!(texts(&second.join().unwrap()).len(), 1);
    assert_eq!(server.metric("time_in_queue_seconds_count"), 2.0);
    assert!(server.metric("time_in_queue_seconds_sum") - before >= at_least);
}
