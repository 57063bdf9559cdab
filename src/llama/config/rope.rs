//! The rotary settings of a `config.json`.

use super::{Keys, RopeScaling, positive};
use crate::llama::error::LoadError;

/// What a configuration says about rotary embeddings, read as transformers 5 reads it.
pub(super) struct Settings {
    pub(super) theta: f32,
    pub(super) scaling: RopeScaling,
    /// Maximum number of tokens in a sequence.
    pub(super) context_length: usize,
}

impl Settings {
    pub(super) fn read(keys: &Keys<'_>, warnings: &mut Vec<String>) -> Result<Self, LoadError> {
        let mut context_length = keys.size("max_position_embeddings")?;
        // Newer files group the settings under one key. An object without settings counts as none.
        let group = [("rope_scaling", "rope_scaling."), ("rope_parameters", "rope_parameters.")]
            .into_iter()
            .find_map(|(key, prefix)| {
                let group = keys.get(key)?;
                group
                    .as_object()
                    .is_some_and(|group| !group.is_empty())
                    .then_some(Keys(group, prefix))
            });
        let Some(rope) = group else {
            let theta = keys.number_if_there("rope_theta")?.unwrap_or(10_000.0);
            return Ok(Self { theta, scaling: RopeScaling::None, context_length });
        };
        let theta = match rope.number_if_there("rope_theta")? {
            Some(theta) => theta,
            None => keys.number_if_there("rope_theta")?.unwrap_or(10_000.0),
        };
        let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = if rope.get(key).is_some() { rope.string(key)? } else { "default" };
        let original = || -> Result<f32, LoadError> {
            let key = "original_max_position_embeddings";
            let own = keys.number_if_there(key)?;
            let own = if own.is_some() { own } else { rope.number_if_there(key)? };
            Ok(own.unwrap_or(context_length as f32))
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: rope.number("factor")? },
            "dynamic" => {
                positive("rope_scaling.factor", rope.number("factor")?)?;
                warnings.push(format!(
                    "key {}{key}: expected default, linear, llama3 or yarn, got dynamic: used without scaling, up to \
                     {context_length} tokens, where dynamic scaling begins",
                    rope.1
                ));
                RopeScaling::None
            }
            "llama3" => RopeScaling::Llama3 {
                factor: rope.number("factor")?,
                low_freq_factor: rope.number("low_freq_factor")?,
                high_freq_factor: rope.number("high_freq_factor")?,
                original_context: original()?,
            },
            "yarn" => {
                let original = original()?;
                let scaling = yarn(&rope, original, context_length)?;
                if let RopeScaling::Yarn { factor, .. } = scaling {
                    let longest = f64::from(factor) * f64::from(original);
                    context_length = context_length.max(longest as usize); // saturates; checked with the other sizes
                }
                scaling
            }
            other => {
                return Err(rope.unusable(key, "default, linear, dynamic, llama3 or yarn", other));
            }
        };
        Ok(Self { theta, scaling, context_length })
    }
}

fn yarn(rope: &Keys<'_>, original: f32, context_length: usize) -> Result<RopeScaling, LoadError> {
    let factor = rope.number_if_there("factor")?.unwrap_or(context_length as f32 / original);
    let magnitude = |times: f32| if factor <= 1.0 { 1.0 } else { 0.1 * times * factor.ln() + 1.0 };
    let attention_factor = match rope.number_if_there("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None => match (rope.number_if_there("mscale")?, rope.number_if_there("mscale_all_dim")?) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => magnitude(one) / magnitude(all),
            _ => magnitude(1.0),
        },
    };
    // As in transformers, a bound of 0 means the default.
    let bound = |key: &str, default: f32| -> Result<f32, LoadError> {
        Ok(rope.number_if_there(key)?.filter(|&bound| bound != 0.0).unwrap_or(default))
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: bound("beta_fast", 32.0)?,
        beta_slow: bound("beta_slow", 1.0)?,
        original_context: original,
        truncate: rope.flag("truncate", true)?,
    })
}
