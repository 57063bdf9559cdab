//! Reads a sampler from a file.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{
    error::SnapshotError,
    format::{ContentHash, Header, StoredSlot, StoredTrainer, VERSION, sums},
};
use crate::{
    hidden::HiddenStates,
    id::PromptId,
    sampler::{Sampler, SamplerConfig},
    train::{ExportedSlot, SlotState, SlotTensors, TrainerState},
};

/// A file that was read and checked.
pub(super) struct Snapshot {
    path: PathBuf,
    header: Header,
    tensors: HashMap<String, Read>,
    /// The device of the tensors.
    device: Device,
}

/// The most parameters of a distiller in a file that has no parameters to compare with, 1 GiB: the paper's distiller
/// has as many at a width of 116,000.
const MOST_PARAMETERS: usize = 1 << 28;
/// The most tensors that they are in.
const MOST_TENSORS: usize = 1 << 12;

/// One tensor of a file, as numbers.
struct Read {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Snapshot {
    /// Reads a file of a kind.
    pub(super) fn open(path: &Path, kind: &str, device: &Device) -> Result<Self, SnapshotError> {
        let bytes =
            fs::read(path).map_err(|source| SnapshotError::Io { path: path.to_owned(), source })?;
        let format = |what: &str, expected: &str, got: String| SnapshotError::Format {
            path: path.to_owned(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let foreign = |error: &dyn fmt::Display| {
            format("content", "a whole safetensors file", error.to_string())
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| foreign(&e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| foreign(&e))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let tag = |key: &str| metadata.get(key).map_or("none", String::as_str);
        if tag("format") != kind {
            return Err(format("format", kind, tag("format").to_owned()));
        }
        let version = tag("version").parse().unwrap_or(0);
        if !(1..=VERSION).contains(&version) {
            let expected = format!("at most {VERSION}");
            return Err(format("version", &expected, tag("version").to_owned()));
        }
        let (precision, header) = (tag("precision"), tag("sampler"));
        let mut names: Vec<&str> = file.names();
        // The order in which the file was hashed when it was written, where the tensors were in a `BTreeMap`.
        names.sort_unstable();
        let mut hash = ContentHash::new(precision, header);
        let mut tensors = HashMap::new();
        for name in names {
            let view = file.tensor(name).map_err(|e| foreign(&e))?;
            let bytes = view.data();
            hash.add(name, bytes);
            let values = match view.dtype() {
                Dtype::F32 => bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
                Dtype::F16 => bytes
                    .chunks_exact(2)
                    .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect(),
                other => return Err(format(name, "F32 or F16", format!("{other:?}"))),
            };
            tensors.insert(name.to_owned(), Read { shape: view.shape().to_vec(), values });
        }
        let hash = hash.finish();
        // Checked before anything is read from the header, so that damage is reported as such and not as an invalid
        // setting.
        if hash != tag("sha256") {
            return Err(format("SHA-256 of the content", tag("sha256"), hash));
        }
        let header = serde_json::from_str(header)
            .map_err(|error| format("sampler", "its description in JSON", error.to_string()))?;
        Ok(Self { path: path.to_owned(), header, tensors, device: device.clone().inner() })
    }

    /// Returns an error if this crate cannot make the file's distillers, or if their parameters are not as many as
    /// the configuration asks for.
    // Making the sampler allocates what the configuration asks for, so this comes first: a file may ask for any number.
    pub(super) fn check_distiller(&self, config: &SamplerConfig) -> Result<(), SnapshotError> {
        if self.header.custom_distiller {
            return Err(self.format("distiller", "one of this crate's", "one of the user's own"));
        }
        let [tensors, parameters] = config.distiller.size(self.d_model());
        let mut slots: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            if let Some((slot, _)) = name.split_once(".parameter.") {
                let [tensors, parameters] = slots.entry(slot).or_default();
                *tensors += 1;
                *parameters += tensor.values.len();
            }
        }
        if slots.is_empty() && (parameters > MOST_PARAMETERS || tensors > MOST_TENSORS) {
            let most = format!("at most {MOST_PARAMETERS} parameters in {MOST_TENSORS} tensors");
            let got = format!("{parameters} in {tensors}");
            return Err(self.format("distiller", &most, &got));
        }
        for (slot, got) in slots {
            let pairs = [("tensors", tensors, got[0]), ("values", parameters, got[1])];
            for (what, expected, got) in pairs {
                if expected != got {
                    let what = format!("parameter {what} of {slot}");
                    return Err(SnapshotError::Misfit { what, expected, got });
                }
            }
        }
        Ok(())
    }

    fn format(&self, what: &str, expected: &str, got: &str) -> SnapshotError {
        SnapshotError::Format {
            path: self.path.clone(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }

    /// Returns the configuration. Settings that are missing in the file have their defaults.
    pub(super) fn config(&self) -> Result<SamplerConfig, SnapshotError> {
        let mut config = self.header.config.clone();
        for (place, &bits) in &self.header.config_fractions {
            let fraction = f64::from_bits(bits);
            let setting = config.pointer_mut(place).filter(|setting| setting.is_f64());
            let (Some(setting), true) = (setting, fraction.is_finite()) else {
                return Err(self.format("configuration", "a fraction at each place of one", place));
            };
            *setting = Value::from(fraction);
        }
        serde_json::from_value(config).map_err(|error| {
            self.format("configuration", "settings that this crate knows", &error.to_string())
        })
    }

    /// The width of the model that the distillers belong to.
    pub(super) fn d_model(&self) -> usize {
        self.header.d_model
    }

    /// Restores everything that was learned into a sampler with the file's configuration.
    pub(super) fn into_sampler(mut self, mut sampler: Sampler) -> Result<Sampler, SnapshotError> {
        let trainer = self.trainer()?;
        let mut counters = self.header.counters;
        for (sum, bits) in sums(&mut counters).into_iter().zip(self.header.sums) {
            *sum = f64::from_bits(bits);
            if !sum.is_finite() {
                return Err(self.format("counters", "finite sums", &sum.to_string()));
            }
        }
        sampler.import(counters, trainer)?;
        Ok(sampler)
    }

    /// Returns what the group in the file has learned, and the index of its next completion.
    pub(super) fn into_group(mut self) -> Result<(u64, TrainerState), SnapshotError> {
        let StoredTrainer { slots, evidence, shared, ahead } = &self.header.trainer;
        let is_one = slots.len() == 1 && evidence.len() <= 1 && shared.is_none() && ahead.is_none();
        // Indices beyond are not reached by counting, and their sum must not overflow.
        let next = self.header.next.filter(|&next| next < u64::MAX / 2);
        let (Some(next), true) = (next, is_one) else {
            let next = self.header.next.map_or("none".to_owned(), |next| next.to_string());
            let got = format!("{} and {next}", slots.len());
            return Err(self.format("group", "one distiller and its number of completions", &got));
        };
        Ok((next, self.trainer()?))
    }

    /// Returns an error unless a sampler of this configuration has made the file.
    pub(super) fn check_settings(&self, sampler: &Sampler) -> Result<(), SnapshotError> {
        let written = |config: &SamplerConfig, d_model: usize, has_own: bool| {
            let mut settings = serde_json::to_value(config).map_err(SnapshotError::header)?;
            settings["d_model"] = d_model.into();
            settings["custom_distiller"] = has_own.into();
            Ok::<_, SnapshotError>(settings)
        };
        let expected = written(sampler.config(), sampler.d_model, sampler.custom_distiller)?;
        let got = written(&self.config()?, self.d_model(), self.header.custom_distiller)?;
        for (setting, expected) in expected.as_object().into_iter().flatten() {
            if *expected != got[setting] {
                let (expected, got) = (expected.to_string(), got[setting].to_string());
                return Err(self.format(setting, &expected, &got));
            }
        }
        Ok(())
    }

    /// Reads everything that was learned.
    fn trainer(&mut self) -> Result<TrainerState, SnapshotError> {
        let stored = std::mem::replace(&mut self.header.trainer, StoredTrainer::new(Vec::new()));
        stored.try_map("own", self, Self::slot, Self::evidence)
    }

    fn evidence(
        &mut self,
        place: &str,
        prompt: PromptId,
    ) -> Result<(PromptId, Tensor<1>), SnapshotError> {
        let values = self.tensors.get(place).map_or(&[][..], |tensor| &tensor.values);
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            // The evidence is a running mean, so it would never be a number again.
            return Err(self.format(place, "finite numbers", &value.to_string()));
        }
        Ok((prompt, self.take(place)?))
    }

    fn slot(&mut self, place: &str, slot: StoredSlot) -> Result<ExportedSlot, SnapshotError> {
        slot.try_map(|slot| {
            Ok(SlotState {
                updates: slot.updates,
                age: slot.age,
                is_fitted: slot.is_fitted,
                gathered: self.rows(place, "gathered", slot.gathered)?,
                first_rows: self.rows(place, "first_rows", slot.first_rows)?,
                tensors: slot.tensors.map(|counts| self.tensors(place, counts)).transpose()?,
            })
        })
    }

    fn rows(
        &mut self,
        place: &str,
        name: &str,
        count: usize,
    ) -> Result<Vec<HiddenStates>, SnapshotError> {
        let mut rows = Vec::new();
        for at in 0..count {
            let shallow = self.take(&format!("{place}.{name}.{at}.shallow"))?;
            let deep = self.take(&format!("{place}.{name}.{at}.deep"))?;
            let states = HiddenStates::new(shallow, deep)
                .map_err(|e| self.format(place, "rows that fit", &e.to_string()))?;
            if states.d_model() != self.d_model() || states.rows() == 0 {
                let expected = format!("rows of width {}", self.d_model());
                let got = format!("shape {:?}", states.shallow().dims());
                return Err(self.format(&format!("{place}.{name}.{at}"), &expected, &got));
            }
            rows.push(states);
        }
        Ok(rows)
    }

    fn tensors(
        &mut self,
        place: &str,
        [parameters, first, second]: [usize; 3],
    ) -> Result<SlotTensors, SnapshotError> {
        let mut list = |name: &str, count: usize| -> Result<Vec<_>, SnapshotError> {
            (0..count).map(|at| self.take(&format!("{place}.{name}.{at}"))).collect()
        };
        Ok(SlotTensors {
            parameters: list("parameter", parameters)?,
            first: list("first", first)?,
            second: list("second", second)?,
        })
    }

    fn take<const D: usize>(&mut self, name: &str) -> Result<Tensor<D>, SnapshotError> {
        // Each tensor is needed once. Removing it avoids a copy of its numbers.
        let Some(Read { shape, values }) = self.tensors.remove(name) else {
            return Err(self.format(&format!("tensor {name}"), "one of this name", "none"));
        };
        if shape.len() != D {
            let (expected, got) = (format!("{D} dimensions"), format!("shape {shape:?}"));
            return Err(self.format(&format!("tensor {name}"), &expected, &got));
        }
        Ok(Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::F32)))
    }
}
