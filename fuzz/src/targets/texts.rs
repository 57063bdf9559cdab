//! Readers of text.

use esamp::{
    SamplerConfig, Sampling,
    llama::{ChatMessage, ChatTemplate},
    telemetry::read_traces,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Outcome, kind};

/// The source of a chat template, rendered for two messages.
pub(super) fn template(bytes: &[u8]) -> Outcome {
    let source = String::from_utf8_lossy(bytes);
    let messages = [ChatMessage::system("be brief"), ChatMessage::user("hello <b>'world'</b>")];
    let template = ChatTemplate::new(source, "<s>", "</s>");
    let rendered = template.and_then(|template| template.render(&messages));
    Ok(rendered.map_or_else(kind, |_| "rendered".into()))
}

/// A file of traces.
pub(super) fn trace(bytes: &[u8]) -> Outcome {
    let error = read_traces(bytes).find_map(Result::err);
    Ok(error.map_or_else(|| "read".into(), kind))
}

/// The settings of a request or of a sampler, as JSON. What is accepted is accepted again after it has been
/// written.
pub(super) fn settings(bytes: &[u8]) -> Outcome {
    let sampling = serde_json::from_slice::<Sampling>(bytes);
    let sampling = sampling.map_err(kind).and_then(|settings| {
        settings.checked().map_err(kind)?;
        Ok(settings)
    });
    if let Ok(settings) = &sampling {
        accepted_again(settings)?;
    }
    let sampler = serde_json::from_slice::<SamplerConfig>(bytes);
    let sampler = sampler.map_err(kind).and_then(|settings| {
        settings.validate().map_err(kind)?;
        Ok(settings)
    });
    if let Ok(settings) = &sampler {
        accepted_again(settings)?;
    }
    let said =
        |outcome: Result<(), String>| outcome.map_or_else(|error| error, |()| "valid".into());
    Ok(format!("{}; {}", said(sampling.map(drop)), said(sampler.map(drop))))
}

/// Whether settings that were accepted are accepted again after they have been written. Their numbers need not be the
/// same to the last digit.
fn accepted_again<T: Serialize + DeserializeOwned>(settings: &T) -> Result<(), String> {
    let text = serde_json::to_string(settings).map_err(|error| error.to_string())?;
    let read = serde_json::from_str::<T>(&text);
    read.map(drop).map_err(|error| format!("{text}: accepted, written and refused: {error}"))
}

/// The defaults and presets, in full.
pub(super) fn settings_seeds() -> Vec<Vec<u8>> {
    let samplings = [
        Sampling::default(),
        Sampling::new().with_beta(1.0).with_top_k(5).with_top_p(0.9).with_typical(0.9),
        Sampling::new().with_temperature(0.0).with_min_p(0.1).with_xtc(0.1, 0.5),
    ];
    let samplers = [
        SamplerConfig::paper(),
        SamplerConfig::reference(),
        SamplerConfig::for_short_completions(),
    ];
    let samplings = samplings.iter().map(serde_json::to_vec);
    let all = samplings.chain(samplers.iter().map(serde_json::to_vec));
    all.filter_map(Result::ok).collect()
}
