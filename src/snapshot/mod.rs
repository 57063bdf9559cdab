//! A sampler on disk: what its distillers have learned, so that a run can go on where it ended.

mod error;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use error::SnapshotError;

use crate::{
    bank::SlotKey,
    distiller::Distiller,
    hidden::HiddenStates,
    id::{PromptId, RequestId},
    sampler::{Sampler, SamplerBuilder, SamplerConfig},
    telemetry::Counters,
    train::{Learned, SlotState, SlotTensors, TrainerState, TrainingWorker},
};

/// What the file says that it is.
const FORMAT: &str = "esamp snapshot";
/// The version written here. Files of every version up to it can be read, for ever: tests/old_snapshots.
const VERSION: &str = "1";

/// Settings that files of earlier versions may have and that mean nothing any more.
const RETIRED: [&str; 2] = ["overlap", "expected_control"];

/// How parameters are stored. Optimizer states, gathered rows and everything else are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SnapshotPrecision {
    /// As they are: a run that is loaded gives the tokens that it would have given without the interruption.
    #[default]
    F32,
    /// Rounded to 11 bits: half the size, for distillers that are kept as a starting point. A run that goes on from them
    /// is close to the uninterrupted one, not equal; a parameter beyond ±65504 is an error.
    F16,
}

/// The part of a file that is no tensor.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    config: Value,
    /// The bits of the fractions in it, by their JSON pointers: read as decimal numbers they may come back one unit in the
    /// last place off. (Reading exactly is a feature of serde_json that would build all of burn anew.)
    #[serde(default)]
    config_fractions: BTreeMap<String, u64>,
    custom_distiller: bool,
    d_model: usize,
    counters: Counters,
    /// The bits of the counters' sums, which decimal numbers do not keep.
    sums: [u64; 4],
    trainer: TrainerHeader,
}

/// Adds the bits of every fraction in `value`, which stands at the JSON pointer `place`.
fn add_fractions(value: &Value, place: &str, fractions: &mut BTreeMap<String, u64>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Number(number) if number.is_f64() => {
            fractions.extend(number.as_f64().map(|number| (place.to_owned(), number.to_bits())));
        }
        Value::Array(values) => {
            let places = values.iter().enumerate();
            places
                .for_each(|(at, value)| add_fractions(value, &format!("{place}/{at}"), fractions));
        }
        Value::Object(values) => {
            let places =
                values.iter().map(|(key, value)| (format!("{place}/{}", escaped(key)), value));
            places.for_each(|(place, value)| add_fractions(value, &place, fractions));
        }
        _ => {}
    }
}

/// Those of the counters that are sums of fractions.
fn sums(counters: &mut Counters) -> [&mut f64; 4] {
    let Counters { mass_outside, novelty_sum, relative_novelty_sum, loss_sum, .. } = counters;
    [mass_outside, novelty_sum, relative_novelty_sum, loss_sum]
}

#[derive(Debug, Serialize, Deserialize)]
struct TrainerHeader {
    slots: Vec<SlotHeader>,
    /// Prompts that there is evidence about.
    evidence: Vec<PromptId>,
    shared: Option<Box<TrainerHeader>>,
    /// An update that is done and not visible yet, and what it has learned.
    ahead: Option<(Box<TrainerHeader>, Learned)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SlotHeader {
    key: SlotKey,
    members: Vec<RequestId>,
    updates: u64,
    age: u64,
    is_fitted: bool,
    /// Numbers of parts.
    gathered: usize,
    first_rows: usize,
    /// Numbers of parameters, first and second moments.
    tensors: Option<[usize; 3]>,
}

impl Sampler {
    /// Writes everything that the sampler has learned to a file: configuration, parameters, optimizer states, rows that
    /// wait to be learned, counters. The observer is not written. The sampler goes on unchanged.
    ///
    /// The file is a safetensors file whose metadata says `format: esamp snapshot`, a version, the precision and a SHA-256
    /// of its content. It is written beside `path` and renamed, so that a file of this name is always a whole one; file
    /// and, on Unix, folder are synchronised with the disk before this returns.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`], [`SnapshotError::Range`] for a parameter that does not fit into the precision, and
    /// [`SnapshotError::Train`] when learning in the background has failed.
    pub fn save(
        &mut self,
        path: impl AsRef<Path>,
        precision: SnapshotPrecision,
    ) -> Result<(), SnapshotError> {
        let mut state = self.export()?;
        let mut tensors = Tensors { precision, stored: BTreeMap::new() };
        let trainer = tensors.trainer("own", state.trainer)?;
        let config = serde_json::to_value(&state.config).map_err(SnapshotError::header)?;
        let mut config_fractions = BTreeMap::new();
        add_fractions(&config, "", &mut config_fractions);
        let header = Header {
            config,
            config_fractions,
            custom_distiller: state.custom_distiller,
            d_model: state.d_model,
            counters: state.counters,
            sums: sums(&mut state.counters).map(|sum| sum.to_bits()),
            trainer,
        };
        let header = serde_json::to_string(&header).map_err(SnapshotError::header)?;
        write(path.as_ref(), header, &tensors)
    }

    /// A reader of the file that [`save`](Self::save) has written at `path`.
    pub fn loader(path: impl Into<PathBuf>) -> SamplerLoader {
        SamplerLoader { path: path.into(), distiller: None }
    }
}

/// Reads a sampler that [`Sampler::save`] has written: made by [`Sampler::loader`].
///
/// Requests are known by the ids that they had: those that were running are in [`Sampler::requests`], to be gone on with or
/// released.
#[must_use = "nothing is read before `load`"]
pub struct SamplerLoader {
    path: PathBuf,
    distiller: Option<Box<dyn FnOnce(SamplerBuilder) -> SamplerBuilder>>,
}

impl SamplerLoader {
    /// Reads a sampler with a distiller of your own: `distiller` is what fresh slots start from, as in
    /// [`SamplerBuilder::with_distiller`].
    pub fn with_distiller<D: Distiller>(mut self, distiller: D) -> Self {
        self.distiller = Some(Box::new(|builder| builder.with_distiller(distiller)));
        self
    }

    /// Reads the sampler onto `device`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for a file that cannot be read, is none of ours, is newer than this crate, is damaged, or was
    /// written with a distiller of the user's own and is read without one; [`SnapshotError::Misfit`] when the file's
    /// parameters are not those of the distiller.
    pub fn load(self, device: &Device) -> Result<Sampler, SnapshotError> {
        let (file, builder) = self.open()?;
        let sampler = builder.build(file.header.d_model, device)?;
        file.into_sampler(sampler, device)
    }

    /// [`load`](Self::load) for a caller with threads of its own, as [`SamplerBuilder::build_with_worker`]. An update that
    /// was done and not visible yet when the file was written is in the sampler: it waits for the worker no earlier than one
    /// that was started afresh.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_with_worker(
        self,
        device: &Device,
    ) -> Result<(Sampler, Option<TrainingWorker>), SnapshotError> {
        let (file, builder) = self.open()?;
        let (sampler, worker) = builder.build_with_worker(file.header.d_model, device)?;
        Ok((file.into_sampler(sampler, device)?, worker))
    }

    fn open(self) -> Result<(Snapshot, SamplerBuilder), SnapshotError> {
        let file = Snapshot::open(&self.path)?;
        match self.distiller {
            Some(with_distiller) => {
                let builder = with_distiller(Sampler::builder(file.config()?));
                Ok((file, builder))
            }
            None => {
                let file = file.of_this_crate()?;
                let builder = Sampler::builder(file.config()?);
                Ok((file, builder))
            }
        }
    }
}

impl fmt::Debug for SamplerLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplerLoader").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The tensors of a snapshot that is being made.
struct Tensors {
    precision: SnapshotPrecision,
    stored: BTreeMap<String, Stored>,
}

/// One tensor, as bytes.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensors {
    fn trainer(
        &mut self,
        place: &str,
        state: TrainerState,
    ) -> Result<TrainerHeader, SnapshotError> {
        let mut slots = Vec::with_capacity(state.slots.len());
        for (at, slot) in state.slots.into_iter().enumerate() {
            slots.push(self.slot(&format!("{place}.{at}"), slot)?);
        }
        let mut evidence = Vec::with_capacity(state.evidence.len());
        for (prompt, values) in state.evidence {
            self.add(format!("{place}.evidence.{}", evidence.len()), values)?;
            evidence.push(prompt);
        }
        let shared = match state.shared {
            Some(shared) => Some(Box::new(self.trainer(&format!("{place}.shared"), *shared)?)),
            None => None,
        };
        let ahead = match state.ahead {
            Some((ahead, learned)) => {
                let ahead = self.trainer(&format!("{place}.ahead"), *ahead)?;
                Some((Box::new(ahead), learned))
            }
            None => None,
        };
        Ok(TrainerHeader { slots, evidence, shared, ahead })
    }

    fn slot(&mut self, place: &str, slot: SlotState) -> Result<SlotHeader, SnapshotError> {
        let header = SlotHeader {
            key: slot.key,
            members: slot.members,
            updates: slot.updates,
            age: slot.age,
            is_fitted: slot.is_fitted,
            gathered: slot.gathered.len(),
            first_rows: slot.first_rows.len(),
            tensors: slot.tensors.as_ref().map(SlotTensors::counts),
        };
        for (name, parts) in [("gathered", slot.gathered), ("first_rows", slot.first_rows)] {
            for (at, part) in parts.into_iter().enumerate() {
                self.add(format!("{place}.{name}.{at}.shallow"), part.shallow().clone())?;
                self.add(format!("{place}.{name}.{at}.deep"), part.deep().clone())?;
            }
        }
        if let Some(tensors) = slot.tensors {
            for (at, parameter) in tensors.parameters.into_iter().enumerate() {
                self.add_parameter(format!("{place}.parameter.{at}"), parameter)?;
            }
            for (name, moments) in [("first", tensors.first), ("second", tensors.second)] {
                for (at, moment) in moments.into_iter().enumerate() {
                    self.add(format!("{place}.{name}.{at}"), moment)?;
                }
            }
        }
        Ok(header)
    }

    fn add<const D: usize>(
        &mut self,
        name: String,
        tensor: Tensor<D>,
    ) -> Result<(), SnapshotError> {
        let shape = tensor.dims().to_vec();
        let bytes = values(tensor)?.into_iter().flat_map(f32::to_le_bytes).collect();
        self.stored.insert(name, Stored { dtype: Dtype::F32, shape, bytes });
        Ok(())
    }

    fn add_parameter(&mut self, name: String, tensor: Tensor<1>) -> Result<(), SnapshotError> {
        if self.precision == SnapshotPrecision::F32 {
            return self.add(name, tensor);
        }
        let shape = tensor.dims().to_vec();
        let mut bytes = Vec::with_capacity(2 * shape[0]);
        for value in values(tensor)? {
            let half = f16::from_f32(value);
            if value.is_finite() && !half.is_finite() {
                return Err(SnapshotError::Range { what: name, got: value });
            }
            bytes.extend(half.to_le_bytes());
        }
        self.stored.insert(name, Stored { dtype: Dtype::F16, shape, bytes });
        Ok(())
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, SnapshotError> {
    let device = |error: String| SnapshotError::Device(error);
    let data = tensor.try_into_data().map_err(|error| device(error.to_string()))?;
    data.try_into_vec::<f32>().map_err(|error| device(format!("{error:?}")))
}

/// Files begun by this process: two threads that save to one place must not share one.
static ATTEMPTS: AtomicU64 = AtomicU64::new(0);

/// Writes the file beside its place and renames it.
fn write(path: &Path, header: String, tensors: &Tensors) -> Result<(), SnapshotError> {
    let io = |source| SnapshotError::Io { path: path.to_owned(), source };
    let precision = match tensors.precision {
        SnapshotPrecision::F32 => "f32",
        SnapshotPrecision::F16 => "f16",
    };
    let mut hash = ContentHash::new(precision, &header);
    let mut views = Vec::with_capacity(tensors.stored.len());
    for (name, stored) in &tensors.stored {
        hash.add(name, &stored.bytes);
        let view = TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes);
        views.push((name, view.map_err(SnapshotError::header)?));
    }
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("version".to_owned(), VERSION.to_owned()),
        ("precision".to_owned(), precision.to_owned()),
        ("sampler".to_owned(), header),
        ("sha256".to_owned(), hash.finish()),
    ]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(SnapshotError::header)?;

    let mut name = path.file_name().unwrap_or_default().to_owned();
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}.{attempt}.partial", std::process::id()));
    let partial = path.with_file_name(name);
    let written = File::create(&partial)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&partial, path))
        .and_then(|()| sync_folder(folder_of(path)));
    if written.is_err() {
        // What is left of the attempt is of no use; that it cannot be removed is not what went wrong.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(io)
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes a rename in this folder last: on Unix the new name is an entry of the folder's own, written when the folder is.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{InvalidInput, Unsupported};
    match File::open(folder)?.sync_all() {
        // Some file systems keep folders in another way and say that there is nothing to synchronise.
        Err(error) if matches!(error.kind(), InvalidInput | Unsupported) => Ok(()),
        result => result,
    }
}

/// Elsewhere there is no such call.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> std::io::Result<()> {
    Ok(())
}

/// A hash of everything in a file that a sampler is made of.
struct ContentHash(Sha256);

impl ContentHash {
    fn new(precision: &str, header: &str) -> Self {
        let mut hash = Self(Sha256::new());
        hash.add("precision", precision.as_bytes());
        hash.add("sampler", header.as_bytes());
        hash
    }

    fn add(&mut self, name: &str, bytes: &[u8]) {
        for part in [name.as_bytes(), bytes] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A file that has been read and checked.
struct Snapshot {
    path: PathBuf,
    header: Header,
    tensors: HashMap<String, Read>,
}

/// One tensor of a file, as numbers.
struct Read {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Snapshot {
    fn open(path: &Path) -> Result<Self, SnapshotError> {
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
        if tag("format") != FORMAT {
            return Err(format("format", FORMAT, tag("format").to_owned()));
        }
        if tag("version") != VERSION {
            return Err(format("version", VERSION, tag("version").to_owned()));
        }
        let (precision, header) = (tag("precision"), tag("sampler"));
        let mut names: Vec<&str> = file.names();
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
        if hash != tag("sha256") {
            return Err(format("SHA-256 of the content", tag("sha256"), hash));
        }
        let header = serde_json::from_str(header)
            .map_err(|error| format("sampler", "its description in JSON", error.to_string()))?;
        Ok(Self { path: path.to_owned(), header, tensors })
    }

    /// Refuses a file whose distillers this crate cannot make.
    fn of_this_crate(self) -> Result<Self, SnapshotError> {
        if self.header.custom_distiller {
            return Err(self.format("distiller", "one of this crate's", "one of the user's own"));
        }
        Ok(self)
    }

    fn format(&self, what: &str, expected: &str, got: &str) -> SnapshotError {
        SnapshotError::Format {
            path: self.path.clone(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }

    /// The configuration. Settings that the file does not know have their defaults.
    fn config(&self) -> Result<SamplerConfig, SnapshotError> {
        let mut config = self.header.config.clone();
        if let Some(settings) = config.as_object_mut() {
            RETIRED.iter().for_each(|name| drop(settings.remove(*name)));
        }
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

    fn into_sampler(
        mut self,
        mut sampler: Sampler,
        device: &Device,
    ) -> Result<Sampler, SnapshotError> {
        let device = device.clone().inner();
        let header = std::mem::replace(
            &mut self.header.trainer,
            TrainerHeader { slots: Vec::new(), evidence: Vec::new(), shared: None, ahead: None },
        );
        let trainer = self.trainer("own", header, &device)?;
        let mut counters = self.header.counters;
        for (sum, bits) in sums(&mut counters).into_iter().zip(self.header.sums) {
            *sum = f64::from_bits(bits);
        }
        sampler.import(counters, trainer)?;
        Ok(sampler)
    }

    fn trainer(
        &mut self,
        place: &str,
        header: TrainerHeader,
        device: &Device,
    ) -> Result<TrainerState, SnapshotError> {
        let mut slots = Vec::with_capacity(header.slots.len());
        for (at, slot) in header.slots.into_iter().enumerate() {
            slots.push(self.slot(&format!("{place}.{at}"), slot, device)?);
        }
        let mut evidence = Vec::with_capacity(header.evidence.len());
        for (at, prompt) in header.evidence.into_iter().enumerate() {
            evidence.push((prompt, self.take(&format!("{place}.evidence.{at}"), device)?));
        }
        let shared = match header.shared {
            Some(shared) => {
                Some(Box::new(self.trainer(&format!("{place}.shared"), *shared, device)?))
            }
            None => None,
        };
        let ahead = match header.ahead {
            Some((ahead, learned)) => {
                let ahead = self.trainer(&format!("{place}.ahead"), *ahead, device)?;
                Some((Box::new(ahead), learned))
            }
            None => None,
        };
        Ok(TrainerState { slots, evidence, shared, ahead })
    }

    fn slot(
        &mut self,
        place: &str,
        header: SlotHeader,
        device: &Device,
    ) -> Result<SlotState, SnapshotError> {
        let mut rows = |name: &str, count: usize| -> Result<Vec<HiddenStates>, SnapshotError> {
            (0..count)
                .map(|at| {
                    let shallow = self.take(&format!("{place}.{name}.{at}.shallow"), device)?;
                    let deep = self.take(&format!("{place}.{name}.{at}.deep"), device)?;
                    HiddenStates::new(shallow, deep)
                        .map_err(|error| self.format(place, "rows that fit", &error.to_string()))
                })
                .collect()
        };
        let gathered = rows("gathered", header.gathered)?;
        let first_rows = rows("first_rows", header.first_rows)?;
        let tensors = match header.tensors {
            Some([parameters, first, second]) => {
                let mut list = |name: &str, count: usize| -> Result<Vec<_>, SnapshotError> {
                    (0..count)
                        .map(|at| self.take(&format!("{place}.{name}.{at}"), device))
                        .collect()
                };
                Some(SlotTensors {
                    parameters: list("parameter", parameters)?,
                    first: list("first", first)?,
                    second: list("second", second)?,
                })
            }
            None => None,
        };
        Ok(SlotState {
            key: header.key,
            members: header.members,
            updates: header.updates,
            age: header.age,
            is_fitted: header.is_fitted,
            gathered,
            first_rows,
            tensors,
        })
    }

    fn take<const D: usize>(
        &mut self,
        name: &str,
        device: &Device,
    ) -> Result<Tensor<D>, SnapshotError> {
        let Some(Read { shape, values }) = self.tensors.remove(name) else {
            return Err(self.format(&format!("tensor {name}"), "one of this name", "none"));
        };
        if shape.len() != D {
            let (expected, got) = (format!("{D} dimensions"), format!("shape {shape:?}"));
            return Err(self.format(&format!("tensor {name}"), &expected, &got));
        }
        Ok(Tensor::from_data(TensorData::new(values, shape), (device, DType::F32)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_folder_is_in_the_one_at_hand() {
        for (path, folder) in [("a.st", "."), ("./a.st", "."), ("b/a.st", "b"), ("/a.st", "/")] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder));
        }
        sync_folder(Path::new(".")).unwrap();
        if cfg!(unix) {
            assert!(sync_folder(Path::new("no such folder")).is_err());
        }
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
