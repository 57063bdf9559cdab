//! The sampling settings of an arm, and their written form.

use std::collections::BTreeMap;

use esamp::{
    Fire, LogitsProcessor, Penalties, Sampling, Selection, TemperatureOrder, TokenId,
    filters::{Custom, FilterConfig},
    reweighters::ReweighterConfig,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::{Map, Value};

use super::ControlConfig;

/// How an arm chooses tokens: the library's settings, optionally with a control as the reweighter.
///
/// Serialised as a [`Sampling`] whose `reweighter` names either one of the library's reweighters or a control.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmSampling {
    /// The settings. With a control, their own reweighter is the default and is not used.
    pub settings: Sampling,
    /// The control.
    pub control: Option<ControlConfig>,
}

impl ArmSampling {
    /// These settings with a control as their reweighter.
    pub fn controlled(settings: Sampling, control: ControlConfig) -> Self {
        let settings = settings.with_reweighter(ReweighterConfig::default());
        Self { settings, control: Some(control) }
    }

    /// The settings to sample with.
    pub fn sampling(&self) -> Sampling {
        match self.control {
            None => self.settings.clone(),
            Some(control) => control.applied_to(self.settings.clone()),
        }
    }
}

impl From<Sampling> for ArmSampling {
    fn from(settings: Sampling) -> Self {
        Self { settings, control: None }
    }
}

/// The fields of [`Sampling`], in the same order, with another type of reweighter. Records are compared byte by byte,
/// so neither the order of the keys nor the digits of an `f32` may change.
#[derive(Serialize)]
struct Written<'a> {
    temperature: f32,
    temperature_order: TemperatureOrder,
    filters: &'a Option<Vec<FilterConfig>>,
    beta: f32,
    reweighter: ControlConfig,
    penalties: &'a Penalties,
    logit_bias: &'a BTreeMap<TokenId, f32>,
    fire: Option<Fire>,
    selection: Selection,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits_processor: &'a Option<Custom<dyn LogitsProcessor>>,
}

impl Serialize for ArmSampling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let settings = &self.settings;
        let Some(control) = self.control else {
            return settings.serialize(serializer);
        };
        Written {
            temperature: settings.temperature,
            temperature_order: settings.temperature_order,
            filters: &settings.filters,
            beta: settings.beta,
            reweighter: control,
            penalties: &settings.penalties,
            logit_bias: &settings.logit_bias,
            fire: settings.fire,
            selection: settings.selection.clone(),
            logits_processor: &settings.logits_processor,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ArmSampling {
    fn deserialize<D: Deserializer<'de>>(written: D) -> Result<Self, D::Error> {
        let mut written = Map::<String, Value>::deserialize(written)?;
        let name = written.get("reweighter").cloned().unwrap_or_default();
        // A name that is not a control is left to the library, which reports an error if it does not know it either.
        let control = serde_json::from_value(name).ok();
        if control.is_some() {
            written.remove("reweighter");
        }
        let settings = serde_json::from_value(written.into()).map_err(D::Error::custom)?;
        Ok(Self { settings, control })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use esamp::{errors::RowError, filters::RowContext};

    use super::*;
    use crate::controls::Matched;

    fn settings() -> Sampling {
        Sampling::new()
            .with_beta(0.3)
            .with_min_p(0.05)
            .with_logit_bias(7, -0.1)
            .with_fire(Fire::new(30.0))
    }

    /// A field that `Sampling` has and `Written` lacks would be lost.
    #[test]
    fn a_control_changes_nothing_but_the_name_of_the_reweighter() {
        let plain = serde_json::to_string(&ArmSampling::from(settings())).unwrap();
        assert_eq!(plain, serde_json::to_string(&settings()).unwrap());
        for (control, name) in [
            (ControlConfig::Subtract, r#""subtract""#),
            (ControlConfig::Sharpen, r#""sharpen""#),
            (ControlConfig::RandomReward, r#""random_reward""#),
            (ControlConfig::Surprisal, r#""surprisal""#),
            (
                ControlConfig::MatchedRandom(Matched::Extrapolate),
                r#"{"matched_random":"extrapolate"}"#,
            ),
            (
                ControlConfig::MatchedRandom(Matched::Orthogonal),
                r#"{"matched_random":"orthogonal"}"#,
            ),
        ] {
            let arm = ArmSampling::controlled(settings(), control);
            let written = serde_json::to_string(&arm).unwrap();
            let expected =
                plain.replace(r#""reweighter":"extrapolate""#, &format!(r#""reweighter":{name}"#));
            assert_eq!(written, expected);
            assert_eq!(serde_json::from_str::<ArmSampling>(&written).unwrap(), arm);
        }
        let processed = settings().with_logits_processor(
            |_: &RowContext<'_>, _: &mut [f32]| -> Result<(), RowError> { Ok(()) },
        );
        let arm = ArmSampling::controlled(processed, ControlConfig::Subtract);
        assert!(serde_json::to_string(&arm).is_err(), "as without a control");
    }

    #[test]
    fn names_of_the_library_are_the_librarys() {
        for reweighter in [
            ReweighterConfig::Extrapolate,
            ReweighterConfig::Orthogonal,
            ReweighterConfig::Contrast,
        ] {
            let arm = ArmSampling::from(settings().with_reweighter(reweighter));
            let written = serde_json::to_string(&arm).unwrap();
            assert_eq!(serde_json::from_str::<ArmSampling>(&written).unwrap(), arm);
            assert_eq!(arm.sampling(), arm.settings);
        }
        let unnamed: ArmSampling = serde_json::from_str(r#"{"beta":0.5}"#).unwrap();
        assert_eq!(unnamed, Sampling::new().with_beta(0.5).into());
        let unknown = serde_json::from_str::<ArmSampling>(r#"{"reweighter":"sharpest"}"#);
        let message = unknown.unwrap_err().to_string();
        assert!(message.contains("unknown variant `sharpest`, expected"), "{message}");
    }

    #[test]
    fn a_controls_strength_is_the_settings_beta() {
        let controlled =
            |beta| ArmSampling::controlled(settings().with_beta(beta), ControlConfig::Surprisal);
        assert!(format!("{:?}", controlled(0.5).sampling().reweighter).contains("beta: 0.5"));
        assert!(controlled(0.5).sampling().validate().is_ok());
        assert!(controlled(-0.5).sampling().validate().is_err());
    }
}
