//! Builds the library's settings from the command line and a file, and refuses combinations that cannot
//! work.

use std::{fs, path::Path};

use crate::failure::Failure;
use esamp::{
    Fire, SamplerConfig, Sampling, Sharing, TemperatureOrder,
    filters::FilterConfig,
    reweighters::{Contrast, Expects, ReweighterConfig},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::args::Args;

/// The settings of one column.
#[derive(Clone, Debug)]
pub struct ArmSettings {
    pub name: String,
    pub sampling: Sampling,
    pub sampler: SamplerConfig,
    /// Whether this column is steered, and so the one that `--load` and `--save` are about.
    pub steered: bool,
}

/// The contents of the `--config` file: the values to change in both configurations.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    sampling: Map<String, Value>,
    sampler: Map<String, Value>,
}

impl Args {
    /// The columns, with checked settings.
    pub fn arms(&self) -> Result<Vec<ArmSettings>, Failure> {
        let written = match &self.files.config {
            Some(path) => read(path)?,
            None => Written::default(),
        };
        let sampling = self.sampling(&written)?;
        let sampler = self.sampler(&written)?;
        sampling.validate()?;
        self.check(&written, &sampling)?;
        self.check_save(sampler.sharing)?;
        sampler.validate()?;

        let unsteered =
            sampling.clone().with_reweighter(ReweighterConfig::default()).with_beta(0.0);
        let plain = ArmSettings {
            name: "plain".to_owned(),
            sampling: unsteered,
            sampler: sampler.clone(),
            steered: false,
        };
        if self.plain {
            return Ok(vec![plain]);
        }
        let name = match &sampling.reweighter {
            ReweighterConfig::Extrapolate => "esamp".to_owned(),
            other => name_of(other),
        };
        Ok(vec![plain, ArmSettings { name, sampling, sampler, steered: true }])
    }

    fn sampling(&self, written: &Written) -> Result<Sampling, Failure> {
        let mut config = overlay(&Sampling::default(), &written.sampling, "sampling")?;
        let is_written = |key: &str| written.sampling.contains_key(key);
        let (steering, drawing) = (&self.steering, &self.drawing);
        set(&mut config.reweighter, steering.reweighter.map(Into::into));
        let usual_beta = (!is_written("beta")).then(|| config.reweighter.usual_beta());
        set(&mut config.beta, steering.beta.or(usual_beta));
        set(&mut config.temperature, drawing.temperature);
        set(&mut config.temperature_order, drawing.temperature_order.map(Into::into));
        set(&mut config.fire, drawing.fire.map(Fire::new).map(Some));
        set(&mut config.selection, drawing.selection());
        set(&mut config.penalties.repetition, drawing.repetition_penalty);
        set(&mut config.penalties.frequency, drawing.frequency_penalty);
        set(&mut config.penalties.presence, drawing.presence_penalty);
        set(&mut config.penalties.no_repeat_ngram, drawing.no_repeat_ngram);
        if let Some(multiplier) = drawing.dry {
            config.penalties.dry.get_or_insert_default().multiplier = multiplier;
        }
        if !is_written("filters") {
            let usual = self.learning.usual_min_p().map(|usual| match &config.reweighter {
                ReweighterConfig::Contrast => Contrast::USUAL_ALPHA,
                _ => usual,
            });
            config.filters = Some(self.filters.list(usual));
        }
        Ok(config)
    }

    fn sampler(&self, written: &Written) -> Result<SamplerConfig, Failure> {
        let mut config = overlay(&self.learning.preset(), &written.sampler, "sampler")?;
        self.learning.apply(&mut config)?;
        Ok(config)
    }

    /// Refuses settings that cannot be combined.
    fn check(&self, written: &Written, config: &Sampling) -> Result<(), Failure> {
        let given = |flags: &[(&'static str, bool)]| -> Option<&'static str> {
            flags.iter().find(|(_, is_given)| *is_given).map(|&(flag, _)| flag)
        };
        let (learning, files) = (&self.learning, &self.files);
        let of_a_distiller = [
            ("--warm-up-updates", learning.warm_up_updates.is_some()),
            ("--updates-before-steering", learning.updates_before_steering.is_some()),
            ("--load", files.load.is_some()),
            ("--save", files.save.is_some()),
        ];
        let of_steering = [
            ("--reweighter", self.steering.reweighter.is_some()),
            ("--contrast-with", self.steering.contrast_with.is_some()),
        ];
        if self.plain
            && let Some(flag) = given(&[&of_steering[..], &of_a_distiller].concat())
        {
            return Err(Failure::usage(
                format!("--plain: expected no steering, got {flag}"),
                "drop one of the two",
            ));
        }
        let expects = config.expects();
        if expects != Expects::Distiller
            && let Some(flag) = given(&of_a_distiller)
        {
            let (name, beta) = (name_of(&config.reweighter), config.beta);
            return Err(Failure::usage(
                format!(
                    "{flag}: expected a reweighter that asks a distiller, got {name} at beta {beta}"
                ),
                "drop the flag, or choose another --reweighter or --beta",
            ));
        }
        match (&config.reweighter, &self.steering.contrast_with) {
            (ReweighterConfig::Contrast, None) => Err(Failure::usage(
                "--reweighter contrast: expected a second model, got none".to_owned(),
                "name one of the same tokenizer with --contrast-with MODEL",
            )),
            (other, Some(_)) if *other != ReweighterConfig::Contrast => Err(Failure::usage(
                format!("--contrast-with: expected --reweighter contrast, got {}", name_of(other)),
                "drop one of the two",
            )),
            _ => Ok(()),
        }?;
        if written.sampling.contains_key("filters") && self.filters.any() {
            return Err(Failure::usage(
                "filters: expected them on the command line or in --config, got some in both"
                    .to_owned(),
                "their order matters: put all of them in one place",
            ));
        }
        if config.is_greedy() && self.drawing.arithmetic && config.fire.is_none() {
            return Err(Failure::usage(
                "--arithmetic: expected a temperature above 0, got 0".to_owned(),
                "the best token is not drawn: drop one of the two",
            ));
        }
        check_fire(config)?;
        let of_the_snapshot = [
            ("--settings", learning.settings.is_some()),
            ("--distiller", learning.distiller.is_some()),
            ("--rank", learning.rank.is_some()),
            ("--learning-rate", learning.learning_rate.is_some()),
            ("--sharing", learning.sharing.is_some()),
            ("--updates-before-steering", learning.updates_before_steering.is_some()),
            ("sampler settings in --config", !written.sampler.is_empty()),
        ];
        if files.load.is_some()
            && let Some(flag) = given(&of_the_snapshot)
        {
            return Err(Failure::usage(
                format!("--load: expected the learning settings of the file, got {flag}"),
                "drop one of the two: a snapshot keeps its learning settings",
            ));
        }
        Ok(())
    }

    /// Refuses a `--save` that would fail at the end of the run.
    fn check_save(&self, sharing: Sharing) -> Result<(), Failure> {
        let Some(path) = &self.files.save else {
            return Ok(());
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) {
            return Err(Failure::usage(
                format!("--save {}: expected a folder that exists, got none", path.display()),
                "make the folder, or choose another",
            ));
        }
        // With --load the snapshot sets the sharing; it is checked after loading.
        if self.files.load.is_some() { Ok(()) } else { check_outlives("--save", sharing) }
    }
}

/// Refuses FIRE without a filter that still narrows. At the hot temperature all tokens are about as likely
/// as the best one, so filters that compare probabilities keep them all.
fn check_fire(config: &Sampling) -> Result<(), Failure> {
    let narrows = |filter: &FilterConfig| {
        let after = config.temperature_order == TemperatureOrder::AfterFilters;
        after || matches!(filter, FilterConfig::TopK(_) | FilterConfig::TopNSigma(_))
    };
    match config.fire {
        Some(fire) if fire.temperature > 1.0 && !config.filters().iter().any(narrows) => {
            Err(Failure::usage(
                format!(
                    "--fire {}: expected a filter that does not see the hot temperature, got none",
                    fire.temperature
                ),
                "add --top-k 20, or --temperature-order after-filters",
            ))
        }
        _ => Ok(()),
    }
}

/// Refuses to save or load a distiller that ends with its prompt.
pub fn check_outlives(flag: &str, sharing: Sharing) -> Result<(), Failure> {
    match sharing {
        Sharing::Global | Sharing::Adaptive(_) => Ok(()),
        other => Err(Failure::usage(
            format!(
                "{flag}: expected a distiller that outlives its prompt, got sharing {}",
                name_of(other)
            ),
            "use --sharing global or --sharing adaptive when saving",
        )),
    }
}

/// The command-line name of a value: its serde name, or the variant's name if it carries settings.
pub fn name_of(value: impl Serialize) -> String {
    let name = match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        Ok(Value::Object(variant)) => variant.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    name.replace('_', "-")
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

const WRITTEN_STEP: &str =
    "docs/guide/settings.md lists the settings; --json prints those of a run";

fn read(path: &Path) -> Result<Written, Failure> {
    let place = || format!("--config {}", path.display());
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", place()), "check the path"))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("{}: {error}", place()), WRITTEN_STEP))
}

/// Replaces the values in `settings` that the file names.
fn overlay<T: Serialize + DeserializeOwned>(
    settings: &T,
    written: &Map<String, Value>,
    what: &str,
) -> Result<T, Failure> {
    let refused =
        |error: String| Failure::usage(format!("--config: {what}: {error}"), WRITTEN_STEP);
    let mut all = serde_json::to_value(settings).map_err(|error| refused(error.to_string()))?;
    for (key, value) in written {
        all[key] = value.clone();
    }
    serde_json::from_value(all).map_err(|error| refused(error.to_string()))
}
