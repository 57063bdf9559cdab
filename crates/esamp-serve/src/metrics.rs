//! Metrics in the text format of Prometheus.
//!
//! The numbers of the engine and the sampler are read at each scrape, so that nothing is counted twice.

use esamp::engine::{Engine, EngineStats};
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, Result,
    TextEncoder, core::Collector, proto::MetricFamily,
};
use serde_json::Value;

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The upper bounds of the buckets, in seconds: three per factor of ten, from a token on a GPU to a long chat on a CPU.
const BOUNDS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
    100.0, 250.0, 500.0,
];

/// What has been asked of the server. All times are in seconds.
#[derive(Debug)]
pub struct Traffic {
    registry: Registry,
    pub connections: IntGauge,
    /// Requests for completions whose response has not ended.
    pub open: IntGauge,
    /// From the submission of a request to the engine to its admission.
    pub queue: Histogram,
    /// From the request to the first token of its completions.
    pub first_token: Histogram,
    /// Between two tokens of a completion.
    pub between_tokens: Histogram,
    /// From the request to its end.
    pub requests: Histogram,
    /// Responses by path and status.
    pub responses: IntCounterVec,
}

impl Traffic {
    pub fn new() -> Result<Self> {
        let registry = registry()?;
        let gauge = |name, help| registered(&registry, IntGauge::new(name, help));
        let times = |name, help| {
            let options = HistogramOpts::new(name, help).buckets(BOUNDS.to_vec());
            registered(&registry, Histogram::with_opts(options))
        };
        let responses = Opts::new("http_responses_total", "Responses by path and status.");
        let responses = IntCounterVec::new(responses, &["path", "status"]);
        Ok(Self {
            connections: gauge("connections", "Open connections.")?,
            open: gauge("requests_open", "Requests for completions that are being answered.")?,
            queue: times(
                "time_in_queue_seconds",
                "From a request's submission to the engine to its admission.",
            )?,
            first_token: times(
                "time_to_first_token_seconds",
                "From a request to its first token.",
            )?,
            between_tokens: times(
                "time_between_tokens_seconds",
                "Between two tokens of a completion.",
            )?,
            requests: times(
                "request_duration_seconds",
                "From a request to its end, whichever it is.",
            )?,
            responses: registered(&registry, responses)?,
            registry,
        })
    }

    /// The current numbers, with those of the engine.
    pub(crate) fn text(&self, engine: &Engine) -> Result<String> {
        let families = [self.registry.gather(), of_engine(&engine.stats())?].concat();
        TextEncoder::new().encode_to_string(&families)
    }
}

fn registry() -> Result<Registry> {
    Registry::new_custom(Some("esamp".to_owned()), None)
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: Result<C>) -> Result<C> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// What the engine and its sampler count.
fn of_engine(stats: &EngineStats) -> Result<Vec<MetricFamily>> {
    let registry = registry()?;
    for (name, help, value) in [
        ("requests_waiting", "Requests whose prompt has not begun.", stats.waiting),
        ("completions_running", "Completions that are being decoded.", stats.running),
        ("completions_paused", "Completions whose client does not read.", stats.paused),
        ("distillers", "Distillers in use.", stats.distillers),
        ("distiller_bytes", "Memory of the distillers.", stats.distiller_bytes),
    ] {
        registered(&registry, Gauge::new(name, help))?.set(value as f64);
    }
    let counter = |name: &str, help: &str, value: f64| {
        registered(&registry, Counter::new(name, help)).map(|counter| counter.inc_by(value))
    };
    let decode = &stats.decode;
    counter("decode_steps_total", "Decode steps.", decode.steps as f64)?;
    counter("decoded_tokens_total", "Tokens of decode steps.", decode.decoded_tokens as f64)?;
    counter("decode_seconds_total", "Time in decode steps.", decode.decode_seconds)?;
    counter("prompt_tokens_total", "Prompt tokens.", decode.prompt_tokens as f64)?;
    counter("prefill_seconds_total", "Time in prefills.", decode.prefill_seconds)?;
    counter("failed_steps_total", "Steps that failed as a whole.", stats.failed_steps as f64)?;
    // All counters of the sampler, under their own names.
    if let Ok(Value::Object(counters)) = serde_json::to_value(stats.counters) {
        for (name, value) in &counters {
            let value = value.as_f64().unwrap_or(f64::INFINITY); // which JSON writes as null
            counter(&format!("sampler_{name}_total"), "See esamp::Counters.", value)?;
        }
    }
    Ok(registry.gather())
}
