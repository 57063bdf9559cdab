//! The fields that both kinds of request share: how many completions, how long, and how their tokens are chosen.

use axum::http::HeaderMap;
use esamp::{
    Request, Sampling, TokenId,
    filters::{MinP, TopK, TopP},
    reweighters::ReweighterConfig,
};
use serde_json::Value;

use crate::{
    app::{App, Kind},
    error::ApiError,
    fields::{Fields, shown, whole},
    groups,
    penalties::penalties,
};

/// What a request asks for, without its prompt.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) completions: usize,
    /// As many as the context has room for, if `None`.
    pub(crate) max_new_tokens: Option<usize>,
    pub(crate) min_new_tokens: usize,
    /// As it is reported: OpenAI's seeds have a sign, and larger ones are accepted here.
    pub(crate) seed: i128,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) is_streamed: bool,
    /// Whether a stream ends with the number of tokens.
    pub(crate) wants_usage: bool,
    /// The number of alternatives to each token that are returned with their log-probabilities; `None` without any.
    pub(crate) log_probs: Option<usize>,
    /// Whether the novelty of every token is returned.
    pub(crate) wants_details: bool,
    pub(crate) group: Option<String>,
    pub(crate) warm_up_updates: usize,
}

/// Fields that clients of OpenAI send and that change nothing here.
const IGNORED: [&str; 7] = [
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// The largest number that JavaScript holds exactly, so that a reported seed can be sent again.
const LARGEST_DRAWN_SEED: u64 = (1 << 53) - 1;

/// Settings of the distillers, in the object `esamp`, and the flags that set them.
const OF_THE_SERVER: [(&str, &str); 6] = [
    ("settings", "--settings"),
    ("distiller", "--distiller"),
    ("rank", "--rank"),
    ("learning_rate", "--learning-rate"),
    ("sharing", "--sharing"),
    ("updates_before_steering", "--updates-before-steering"),
];

const MOST_BIASES: usize = 1024;

impl Params {
    /// Reads and checks the fields. Only what is about the prompt is left.
    pub(crate) fn read(
        body: &mut Fields,
        headers: &HeaderMap,
        kind: Kind,
        app: &App,
    ) -> Result<Self, ApiError> {
        body.ignore(&IGNORED);
        refuse_unsupported(body)?;
        let most = app.limits.completions as i128;
        let completions = count(body.integer("n", 1..=most)?).unwrap_or(1);
        let best_of = body.count("best_of", 1)?;
        if let Some(best_of) = best_of.filter(|&best_of| best_of != completions) {
            let expected = format!("the value of n, {completions}");
            return Err(ApiError::field("best_of", &expected, &best_of.to_string()));
        }
        let seed = body.integer("seed", i128::from(i64::MIN)..=i128::from(u64::MAX))?;
        let is_streamed = body.flag("stream")?;
        let mut options = body.object("stream_options")?;
        let wants_usage = options.flag("include_usage")?;
        options.flag("include_obfuscation")?; // a field of OpenAI's that hides the lengths of chunks
        options.end()?;
        let mut esamp = body.object("esamp")?;
        refuse_settings_of_the_server(&mut esamp)?;
        let sampling = sampling(body, &mut esamp, app)?;
        let params = Self {
            completions,
            max_new_tokens: max_new_tokens(body, kind)?,
            min_new_tokens: body.count("min_tokens", 0)?.unwrap_or(0),
            seed: seed.unwrap_or_else(drawn_seed),
            sampling,
            stop: body.texts("stop")?.unwrap_or_default(),
            is_streamed,
            wants_usage,
            log_probs: log_probs(body, kind)?,
            wants_details: esamp.flag("details")?,
            group: groups::requested(headers, &mut esamp)?,
            warm_up_updates: count(esamp.integer("warm_up_updates", 0..=100)?)
                .unwrap_or(app.limits.warm_up_updates),
        };
        esamp.end()?;
        Ok(params)
    }
}

fn count(number: Option<i128>) -> Option<usize> {
    number.and_then(|number| usize::try_from(number).ok())
}

/// A seed that nobody has asked for; it is reported.
fn drawn_seed() -> i128 {
    (crate::app::random() & LARGEST_DRAWN_SEED).into()
}

/// Fields of OpenAI's that ask for what cannot be kept. Their values that ask for nothing are accepted.
fn refuse_unsupported(body: &mut Fields) -> Result<(), ApiError> {
    let off = |value: &Value| match value {
        Value::Bool(flag) => !flag,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty() || text == "none",
        Value::Object(format) => {
            format.len() == 1 && format.get("type").is_some_and(|kind| kind == "text")
        }
        other => whole(other) == Some(0),
    };
    for (field, why) in [
        ("response_format", "expected {\"type\": \"text\"}: the output cannot be constrained"),
        ("tools", "expected none: the model is not told about tools"),
        ("tool_choice", "expected none: the model is not told about tools"),
        ("functions", "expected none: the model is not told about functions"),
        ("function_call", "expected none: the model is not told about functions"),
        ("echo", "expected false: the prompt is not repeated in the completion"),
        ("suffix", "expected none: a completion has nothing after it"),
    ] {
        if body.take(field).is_some_and(|value| !off(&value)) {
            return Err(ApiError::unsupported(field, why));
        }
    }
    Ok(())
}

/// One sampler computes the distillers of all requests together, so they are alike.
fn refuse_settings_of_the_server(esamp: &mut Fields) -> Result<(), ApiError> {
    for (field, flag) in OF_THE_SERVER {
        if let Some(value) = esamp.take(field) {
            let expected = format!(
                "none: all requests share this setting, which {flag} sets when the server starts"
            );
            let error = esamp.wrong(field, &expected, &value);
            return Err(ApiError { code: "unsupported_value", ..error });
        }
    }
    Ok(())
}

fn max_new_tokens(body: &mut Fields, kind: Kind) -> Result<Option<usize>, ApiError> {
    let tokens = body.count("max_tokens", 1)?;
    match kind {
        // As in OpenAI's API.
        Kind::Completion => Ok(Some(tokens.unwrap_or(16))),
        Kind::Chat => {
            let newer = body.count("max_completion_tokens", 1)?;
            match (tokens, newer) {
                (Some(_), Some(_)) => {
                    Err(ApiError::field("max_completion_tokens", "it or max_tokens", "both"))
                }
                (older, newer) => Ok(newer.or(older)),
            }
        }
    }
}

fn log_probs(body: &mut Fields, kind: Kind) -> Result<Option<usize>, ApiError> {
    let range = 0..=Request::MAX_TOP_LOG_PROBS as i128;
    match kind {
        Kind::Completion => Ok(count(body.integer("logprobs", range)?)),
        Kind::Chat => {
            let is_wanted = body.flag("logprobs")?;
            let alternatives = count(body.integer("top_logprobs", range)?).unwrap_or(0);
            if alternatives > 0 && !is_wanted {
                let expected = "logprobs to be true with it";
                return Err(ApiError::field("top_logprobs", expected, &alternatives.to_string()));
            }
            Ok(is_wanted.then_some(alternatives))
        }
    }
}

/// How tokens are chosen. The filters run in the order of the program `generate`: top-k, top-p, min-p.
fn sampling(body: &mut Fields, esamp: &mut Fields, app: &App) -> Result<Sampling, ApiError> {
    let temperature =
        body.number("temperature", "a number from 0 to 2", |t| (0.0..=2.0).contains(&t))?;
    let top_p = body.number("top_p", "a number above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
    let top_k = body.integer("top_k", -1..=i128::from(u32::MAX))?;
    let min_p = body.number("min_p", "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
    let mut sampling = Sampling::default().without_filters();
    if let Some(temperature) = temperature {
        // Logits divided by less could leave the range of numbers. The best token has all of the probability long before.
        let is_greedy = temperature < Sampling::LOWEST_TEMPERATURE;
        sampling = sampling.with_temperature(if is_greedy { 0.0 } else { temperature });
    }
    if let Some(k) = count(top_k).filter(|&k| k > 0) {
        sampling = sampling.with_filter(TopK { k });
    }
    if let Some(p) = top_p.filter(|&p| p < 1.0) {
        sampling = sampling.with_filter(TopP { p });
    }
    let min_p = min_p.unwrap_or(app.limits.min_p);
    if min_p > 0.0 {
        sampling = sampling.with_filter(MinP { p: min_p });
    }
    let penalties = penalties(body, &app.texts.tokenizer)?;
    let mut sampling = sampling.with_penalties(penalties);
    for (token, bias) in logit_bias(body)? {
        sampling = sampling.with_logit_bias(token, bias);
    }

    let reweighter = match esamp.text("reweighter")?.as_deref() {
        None | Some("extrapolate") => ReweighterConfig::Extrapolate,
        Some("orthogonal") => ReweighterConfig::Orthogonal,
        Some(other) => {
            let expected = "\"extrapolate\" or \"orthogonal\"";
            return Err(esamp.wrong("reweighter", expected, &Value::from(other)));
        }
    };
    let beta = esamp.number("beta", "a number from 0 to 100", |b| (0.0..=100.0).contains(&b))?;
    let usual = match &reweighter {
        ReweighterConfig::Extrapolate => app.limits.beta,
        other => other.usual_beta(),
    };
    Ok(sampling.with_reweighter(reweighter).with_beta(beta.unwrap_or(usual)))
}

fn logit_bias(body: &mut Fields) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(value) = body.take("logit_bias") else {
        return Ok(Vec::new());
    };
    let expected = format!(
        "an object of at most {MOST_BIASES} token ids, as strings, with numbers from -100 to 100"
    );
    let Value::Object(biases) = &value else {
        return Err(body.wrong("logit_bias", &expected, &value));
    };
    if biases.len() > MOST_BIASES {
        let got = format!("{} of them", biases.len());
        return Err(ApiError::field("logit_bias", &expected, &got));
    }
    let read = |(token, bias): (&String, &Value)| {
        let number = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        match (token.parse::<TokenId>(), number) {
            (Ok(token), Some(bias)) => Ok((token, bias as f32)),
            _ => {
                let got = format!("{} for {}", shown(bias), shown(&Value::from(token.as_str())));
                Err(ApiError::field("logit_bias", &expected, &got))
            }
        }
    };
    biases.iter().map(read).collect()
}
