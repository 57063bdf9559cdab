//! The format of a file: a JSON header in the metadata of a safetensors file, and a hash of the whole content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    bank::Slot,
    id::PromptId,
    telemetry::Counters,
    train::{SlotState, TrainerState},
};

/// The kind of file with everything that a sampler has learned, as stored in its metadata.
pub(super) const SAMPLER: &str = "esamp snapshot";
/// The kind of file with what one group has learned.
pub(super) const GROUP: &str = "esamp group";
/// The version that is written. Files of every earlier version stay readable: see tests/old_snapshots.
pub(super) const VERSION: u64 = 1;

/// How parameters are stored. Optimizer states, gathered rows and everything else are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SnapshotPrecision {
    /// Exact: a loaded run gives the same tokens as without the interruption.
    #[default]
    F32,
    /// Rounded to 11 significant bits: half the size, for distillers that are kept as a starting point. A run that
    /// continues from them is close to the uninterrupted one, but not equal. A parameter beyond ±65504 is an error.
    F16,
}

/// The part of a file that is not tensors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) config: Value,
    /// The bits of the fractions in the header, by their JSON pointers: a fraction parsed from decimal may differ in
    /// the last bit. (Exact parsing is a feature of serde_json that would rebuild all of burn.)
    #[serde(default)]
    pub(super) config_fractions: BTreeMap<String, u64>,
    pub(super) custom_distiller: bool,
    pub(super) d_model: usize,
    pub(super) counters: Counters,
    /// The bits of the sums in the counters, which decimal numbers do not preserve.
    pub(super) sums: [u64; 4],
    pub(super) trainer: StoredTrainer,
    /// For a group, the index of its next completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<u64>,
}

/// A slot in the header, with the number of waiting rows and the numbers of parameters, first and second moments.
pub(super) type StoredSlot = Slot<SlotState<usize, [usize; 3]>>;
/// A trainer in the header, with the prompts that it has evidence about.
pub(super) type StoredTrainer = TrainerState<StoredSlot, PromptId>;

/// Adds the bits of every fraction in `value`, whose JSON pointer is `place`.
pub(super) fn add_fractions(value: &Value, place: &str, fractions: &mut BTreeMap<String, u64>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Number(number) if number.is_f64() => {
            fractions.extend(number.as_f64().map(|number| (place.to_owned(), number.to_bits())));
        }
        Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                add_fractions(value, &format!("{place}/{at}"), fractions);
            }
        }
        Value::Object(values) => {
            for (key, value) in values {
                add_fractions(value, &format!("{place}/{}", escaped(key)), fractions);
            }
        }
        _ => {}
    }
}

/// Returns the counters that are sums of fractions.
pub(super) fn sums(counters: &mut Counters) -> [&mut f64; 4] {
    let Counters { mass_outside, novelty_sum, relative_novelty_sum, loss_sum, .. } = counters;
    [mass_outside, novelty_sum, relative_novelty_sum, loss_sum]
}

/// A hash of everything in a file that the sampler's state depends on.
pub(super) struct ContentHash(Sha256);

impl ContentHash {
    pub(super) fn new(precision: &str, header: &str) -> Self {
        let mut hash = Self(Sha256::new());
        hash.add("precision", precision.as_bytes());
        hash.add("sampler", header.as_bytes());
        hash
    }

    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) {
        // With the lengths, no two lists of parts give the hash the same bytes.
        for part in [name.as_bytes(), bytes] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    pub(super) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fraction_is_found_wherever_it_stands() {
        let value = serde_json::json!({
            "a": 0.1, "b": 3, "c": [1.5, {"d/e~f": -2.5, "g": null}], "h": "0.1"
        });
        let mut fractions = BTreeMap::new();
        add_fractions(&value, "", &mut fractions);
        let expected = [("/a", 0.1f64), ("/c/0", 1.5), ("/c/1/d~1e~0f", -2.5)];
        let expected = expected.map(|(place, number)| (place.to_owned(), number.to_bits()));
        assert_eq!(fractions, BTreeMap::from(expected));
        assert!(fractions.keys().all(|place| value.pointer(place).is_some()));
    }
}
