//! A sampler on disk: what its distillers have learned, so that a run can go on where it ended.

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
use format::{Header, add_fractions, sums};
use read::Snapshot;
use write::{Tensors, write};

use crate::{
    distiller::Distiller,
    sampler::{Sampler, SamplerBuilder},
    train::TrainingWorker,
};

impl Sampler {
    /// Writes everything that the sampler has learned to a file: configuration, parameters, optimizer states, rows that
    /// wait to be learned, counters. The observer is not written. The sampler goes on unchanged.
    ///
    /// The file is a safetensors file whose metadata says `format: esamp snapshot`, a version, the precision and a
    /// SHA-256 of its content. It is written under another name and renamed, so that a file of this name is always
    /// whole; file and, on Unix, folder are synchronised with the disk before this returns.
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
/// Requests are known by the ids that they had: those that were running are in [`Sampler::requests`], to be gone on
/// with or released.
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
        let (file, builder) = self.open(device)?;
        let sampler = builder.build(file.d_model(), device)?;
        file.into_sampler(sampler)
    }

    /// [`load`](Self::load) for a caller with threads of its own, as [`SamplerBuilder::build_with_worker`]. An update
    /// that was done and not visible yet when the file was written is in the sampler: it waits for the worker no
    /// earlier than one that was started afresh.
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
        let file = Snapshot::open(&self.path, device)?;
        if self.distiller.is_none() {
            file.check_distiller()?;
        }
        let builder = Sampler::builder(file.config()?);
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
