//! Metrics in the text format of Prometheus.
//!
//! Written by hand: the numbers are kept by the engine and the sampler, and a library's registry would be a second copy
//! of them for the sake of `name value`.

use std::{
    fmt::Write,
    sync::{PoisonError, atomic::Ordering},
};

use serde_json::Value;

use crate::app::App;

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The current numbers.
pub(crate) fn metrics(app: &App) -> String {
    let stats = app.engine.stats();
    let mut out = String::new();
    let connections = app.traffic.connections.load(Ordering::Relaxed) as f64;
    let open = app.traffic.open.load(Ordering::Relaxed) as f64;
    for (name, help, value) in [
        ("connections", "Open connections.", connections),
        ("requests_open", "Requests for completions that are being answered.", open),
        ("requests_waiting", "Requests whose prompt has not begun.", stats.waiting as f64),
        ("completions_running", "Completions that are being decoded.", stats.running as f64),
        ("completions_paused", "Completions whose client does not read.", stats.paused as f64),
        ("distillers", "Distillers in use.", stats.distillers as f64),
        ("distiller_bytes", "Memory of the distillers.", stats.distiller_bytes as f64),
    ] {
        metric(&mut out, name, "gauge", help, value);
    }
    let decode = &stats.decode;
    for (name, help, value) in [
        ("decode_steps_total", "Decode steps.", decode.steps as f64),
        ("decoded_tokens_total", "Tokens of decode steps.", decode.decoded_tokens as f64),
        ("decode_seconds_total", "Time in decode steps.", decode.decode_seconds),
        ("prompt_tokens_total", "Prompt tokens.", decode.prompt_tokens as f64),
        ("prefill_seconds_total", "Time in prefills.", decode.prefill_seconds),
        ("failed_steps_total", "Steps that failed as a whole.", stats.failed_steps as f64),
    ] {
        metric(&mut out, name, "counter", help, value);
    }
    // All counters of the sampler, under their own names.
    if let Ok(Value::Object(counters)) = serde_json::to_value(stats.counters) {
        for (name, value) in &counters {
            let value = value.as_f64().unwrap_or(f64::NAN);
            let name = format!("sampler_{name}_total");
            metric(&mut out, &name, "counter", "See esamp::Counters.", value);
        }
    }
    for (name, help, times) in [
        (
            "time_to_first_token_seconds",
            "From a request to its first token.",
            &app.traffic.first_token,
        ),
        (
            "time_between_tokens_seconds",
            "Between two tokens of a completion.",
            &app.traffic.between_tokens,
        ),
        (
            "request_duration_seconds",
            "From a request to its end, whichever it is.",
            &app.traffic.requests,
        ),
    ] {
        head(&mut out, name, "histogram", help);
        times.write(&mut out, &format!("esamp_{name}"));
    }
    let responses = app.traffic.responses.lock().unwrap_or_else(PoisonError::into_inner);
    head(&mut out, "http_responses_total", "counter", "Responses by path and status.");
    for ((path, status), count) in responses.iter() {
        let labels = format!("{{path=\"{path}\",status=\"{status}\"}}");
        let _ = writeln!(out, "esamp_http_responses_total{labels} {count}");
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP esamp_{name} {help}\n# TYPE esamp_{name} {kind}");
}

fn metric(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    head(out, name, kind, help);
    let _ = writeln!(out, "esamp_{name} {value}");
}
