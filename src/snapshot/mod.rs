//! Saves a sampler to disk with what its distillers have learned, so that a run can continue where it stopped.

mod error;
mod format;
mod read;
mod write;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
pub use error::SnapshotError;
pub use format::SnapshotPrecision;
use format::{GROUP, Header, SAMPLER, add_fractions, sums};
use read::Snapshot;
use write::{Tensors, write};

use crate::{
    distiller::Distiller,
    id::PromptId,
    sampler::{Sampler, SamplerBuilder, SamplerState},
    telemetry::Counters,
    train::TrainingWorker,
};

impl Sampler {
    /// Writes everything that the sampler has learned to a file: configuration, parameters, optimizer states, rows
    /// that wait for an update, and counters. The observer is not written. The sampler is unchanged and can continue.
    ///
    /// The file is a safetensors file whose metadata contains `format: esamp snapshot`, a version, the precision and a
    /// SHA-256 of its content. It is written under a temporary name in the same folder, `NAME.PROCESS.NUMBER.partial`,
    /// and then renamed, so a file of this name is always complete. A file that already has the temporary name is left
    /// alone. The file and, on Unix, its folder are synchronized with the disk before this returns.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`] if the file cannot be written, [`SnapshotError::Range`] if a parameter is out of the
    /// range of the precision, and [`SnapshotError::Train`] if background learning has failed.
    pub fn save(
        &mut self,
        path: impl AsRef<Path>,
        precision: SnapshotPrecision,
    ) -> Result<(), SnapshotError> {
        store(self.export()?, None, path.as_ref(), precision)
    }

    /// Writes what the distiller of one prompt has learned to a file, and the index of the prompt's next completion.
    /// [`load_prompt`](Self::load_prompt) reads it. The errors are those of [`save`](Self::save).
    pub(crate) fn save_prompt(
        &mut self,
        prompt: PromptId,
        next: u64,
        path: &Path,
        precision: SnapshotPrecision,
    ) -> Result<(), SnapshotError> {
        self.hold(prompt); // its distiller exists, even if the sampler was reset
        let mut state = self.export()?;
        (state.trainer, state.counters) = (state.trainer.of_prompt(prompt), Counters::default());
        store(state, Some(next), path, precision)
    }

    /// Reads what [`save_prompt`](Self::save_prompt) has written as the distiller of `prompt`, which has none yet, and
    /// holds it. Returns the index of the next completion. After an error, nothing has changed.
    pub(crate) fn load_prompt(
        &mut self,
        prompt: PromptId,
        path: &Path,
    ) -> Result<u64, SnapshotError> {
        let file = Snapshot::open(path, GROUP, &self.device)?;
        file.check_settings(self)?;
        let (next, trainer) = file.into_group()?;
        self.adopt(prompt, trainer)?;
        Ok(next)
    }

    /// Returns a loader for the file that [`save`](Self::save) has written at `path`.
    pub fn loader(path: impl Into<PathBuf>) -> SamplerLoader {
        SamplerLoader { path: path.into(), distiller: None }
    }
}

/// Writes a state to a file: a group's if it has a next completion, and otherwise a sampler's.
fn store(
    mut state: SamplerState,
    next: Option<u64>,
    path: &Path,
    precision: SnapshotPrecision,
) -> Result<(), SnapshotError> {
    let mut tensors = Tensors::new(precision);
    let trainer = tensors.trainer(state.trainer)?;
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
        next,
    };
    let header = serde_json::to_string(&header).map_err(SnapshotError::header)?;
    let kind = if next.is_some() { GROUP } else { SAMPLER };
    write(path, kind, header, &tensors)
}

/// Reads a sampler that [`Sampler::save`] has written. [`Sampler::loader`] makes it.
///
/// Completions keep their ids. [`Sampler::completions`] returns those that were running, to be continued or released.
#[must_use = "nothing is read before `load`"]
pub struct SamplerLoader {
    path: PathBuf,
    distiller: Option<Box<dyn FnOnce(SamplerBuilder) -> SamplerBuilder>>,
}

impl SamplerLoader {
    /// Sets a custom distiller. As in [`SamplerBuilder::with_distiller`], new slots start as copies of `distiller`.
    pub fn with_distiller<D: Distiller>(mut self, distiller: D) -> Self {
        self.distiller = Some(Box::new(|builder| builder.with_distiller(distiller)));
        self
    }

    /// Reads the sampler onto `device`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if the file cannot be read, is not a snapshot, was written by a newer version of this crate,
    /// is damaged, or was written with a custom distiller and is read without one. [`SnapshotError::Misfit`] if the
    /// parameters in the file do not fit the distiller.
    ///
    /// # Memory
    ///
    /// Sizes are compared before anything is allocated for them, so a file from elsewhere cannot ask for more than a
    /// small multiple of its own size. A file without parameters, saved before the first step, may ask for a distiller
    /// of at most 2²⁸ parameters (1 GiB).
    pub fn load(self, device: &Device) -> Result<Sampler, SnapshotError> {
        let (file, builder) = self.open(device)?;
        let sampler = builder.build(file.d_model(), device)?;
        file.into_sampler(sampler)
    }

    /// Does the same as [`load`](Self::load), for a caller that manages its own threads, like
    /// [`SamplerBuilder::build_with_worker`]. If an update was done but not yet visible when the file was written, the
    /// loaded sampler contains it. The sampler waits for the worker no earlier than a new one does.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_with_worker(
        self,
        device: &Device,
    ) -> Result<(Sampler, Option<TrainingWorker>), SnapshotError> {
        let (file, builder) = self.open(device)?;
        let (sampler, worker) = builder.build_with_worker(file.d_model(), device)?;
        Ok((file.into_sampler(sampler)?, worker))
    }

    fn open(self, device: &Device) -> Result<(Snapshot, SamplerBuilder), SnapshotError> {
        let file = Snapshot::open(&self.path, SAMPLER, device)?;
        let config = file.config()?;
        if self.distiller.is_none() {
            // With a distiller of the caller's, its parameters are compared with those in the file when they are
            // imported.
            file.check_distiller(&config)?;
        }
        let builder = Sampler::builder(config);
        let builder = match self.distiller {
            Some(with_distiller) => with_distiller(builder),
            None => builder,
        };
        Ok((file, builder))
    }
}

impl fmt::Debug for SamplerLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplerLoader").field("path", &self.path).finish_non_exhaustive()
    }
}
