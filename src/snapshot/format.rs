//! What a file consists of: the header, which is JSON in the metadata of a safetensors file, and a hash of everything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    bank::Slot,
    id::PromptId,
    telemetry::Counters,
    train::{SlotState, TrainerState},
};

/// The kind of file, as its metadata say.
pub(super) const FORMAT: &str = "esamp snapshot";
/// The version written here. Files of every version up to it must stay readable: tests/old_snapshots.
///
/// - 1: the members of a slot are plain numbers, without their prompts.
/// - 2: they come with their prompts.
pub(super) const VERSION: u64 = 2;

/// How parameters are stored. Optimizer states, gathered rows and everything else are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SnapshotPrecision {
    /// As they are: a run that is loaded gives the tokens that it would have given without the interruption.
    #[default]
    F32,
    /// Rounded to 11 bits: half the size, for distillers that are kept as a starting point. A run that goes on from
    /// them is close to the uninterrupted one, not equal; a parameter beyond ±65504 is an error.
    F16,
}

/// The part of a file that is no tensor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) config: Value,
    /// The bits of the fractions in it, by their JSON pointers: read as decimal numbers they may come back one unit in
    /// the last place off. (Reading exactly is a feature of serde_json that would build all of burn anew.)
    #[serde(default)]
    pub(super) config_fractions: BTreeMap<String, u64>,
    pub(super) custom_distiller: bool,
    pub(super) d_model: usize,
    pub(super) counters: Counters,
    /// The bits of the counters' sums, which decimal numbers do not keep.
    pub(super) sums: [u64; 4],
    pub(super) trainer: StoredTrainer,
}

/// A slot in the header: numbers of rows that wait, and of parameters, first and second moments.
pub(super) type StoredSlot = Slot<SlotState<usize, [usize; 3]>>;
/// A trainer in the header, with the prompts that there is evidence about.
pub(super) type StoredTrainer = TrainerState<StoredSlot, PromptId>;

/// Turns the header of an older version into one of this version.
pub(super) fn upgrade(header: &mut Value, version: u64) {
    if version < 2
        && let Some(trainer) = header.get_mut("trainer")
    {
        name_prompts(trainer);
    }
}

/// From version 1 to 2: a member of a slot is named by its prompt too. The prompt is that of the slot, if it has one;
/// no file of version 1 knows the others, and they become 0.
fn name_prompts(trainer: &mut Value) {
    let slots = trainer.get_mut("slots").and_then(Value::as_array_mut);
    for slot in slots.into_iter().flatten() {
        let prompt = slot.pointer("/key/prompt").and_then(Value::as_u64).unwrap_or(0);
        let members = slot.get_mut("members").and_then(Value::as_array_mut);
        for member in members.into_iter().flatten() {
            *member = json!({ "prompt": prompt, "index": member.take() });
        }
    }
    for part in ["/shared", "/ahead/0"] {
        if let Some(trainer) = trainer.pointer_mut(part).filter(|trainer| trainer.is_object()) {
            name_prompts(trainer);
        }
    }
}

/// Adds the bits of every fraction in `value`, which stands at the JSON pointer `place`.
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

/// Those of the counters that are sums of fractions.
pub(super) fn sums(counters: &mut Counters) -> [&mut f64; 4] {
    let Counters { mass_outside, novelty_sum, relative_novelty_sum, loss_sum, .. } = counters;
    [mass_outside, novelty_sum, relative_novelty_sum, loss_sum]
}

/// A hash of everything in a file that a sampler is made of.
pub(super) struct ContentHash(Sha256);

impl ContentHash {
    pub(super) fn new(precision: &str, header: &str) -> Self {
        let mut hash = Self(Sha256::new());
        hash.add("precision", precision.as_bytes());
        hash.add("sampler", header.as_bytes());
        hash
    }

    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) {
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
    fn members_of_version_1_get_the_prompt_of_their_slot() {
        let trainer = |slots: Value| json!({ "slots": slots, "shared": null, "ahead": null });
        let old = trainer(json!([{ "key": "everyone", "members": [7] }]));
        let mut header = json!({ "trainer": {
            "slots": [{ "key": { "prompt": 3 }, "members": [5, 6] }], "shared": old, "ahead": [old, {}],
        }});
        upgrade(&mut header, 1);
        let member = |prompt: u64, index: u64| json!({ "prompt": prompt, "index": index });
        let members =
            |place: &str| header.pointer(&format!("/trainer{place}/slots/0/members")).unwrap();
        assert_eq!(members(""), &json!([member(3, 5), member(3, 6)]));
        assert_eq!(members("/shared"), &json!([member(0, 7)]));
        assert_eq!(members("/ahead/0"), &json!([member(0, 7)]));
        let newest = header.clone();
        upgrade(&mut header, 2);
        assert_eq!(header, newest);
    }

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
