//! Writes a sampler to a file.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use burn::tensor::Tensor;
use half::f16;
use safetensors::{Dtype, tensor::TensorView};

use super::{
    error::SnapshotError,
    format::{ContentHash, SnapshotPrecision, StoredSlot, StoredTrainer, VERSION},
};
use crate::{
    hidden::HiddenStates,
    id::PromptId,
    train::{ExportedSlot, SlotState, SlotTensors, TrainerState},
};

/// The tensors of a snapshot, collected before it is written.
pub(super) struct Tensors {
    precision: SnapshotPrecision,
    stored: BTreeMap<String, Stored>,
}

/// One tensor as bytes.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensors {
    pub(super) fn new(precision: SnapshotPrecision) -> Self {
        Self { precision, stored: BTreeMap::new() }
    }

    /// Stores the tensors of a trainer and returns the rest as its header.
    pub(super) fn trainer(&mut self, state: TrainerState) -> Result<StoredTrainer, SnapshotError> {
        state.try_map("own", self, Self::slot, Self::evidence)
    }

    fn evidence(
        &mut self,
        place: &str,
        (prompt, values): (PromptId, Tensor<1>),
    ) -> Result<PromptId, SnapshotError> {
        self.add(place.to_owned(), values)?;
        Ok(prompt)
    }

    fn slot(&mut self, place: &str, slot: ExportedSlot) -> Result<StoredSlot, SnapshotError> {
        slot.try_map(|slot| {
            Ok(SlotState {
                updates: slot.updates,
                age: slot.age,
                is_fitted: slot.is_fitted,
                gathered: self.rows(place, "gathered", slot.gathered)?,
                first_rows: self.rows(place, "first_rows", slot.first_rows)?,
                tensors: slot.tensors.map(|tensors| self.tensors(place, tensors)).transpose()?,
            })
        })
    }

    fn rows(
        &mut self,
        place: &str,
        name: &str,
        parts: Vec<HiddenStates>,
    ) -> Result<usize, SnapshotError> {
        let count = parts.len();
        for (at, part) in parts.into_iter().enumerate() {
            self.add(format!("{place}.{name}.{at}.shallow"), part.shallow().clone())?;
            self.add(format!("{place}.{name}.{at}.deep"), part.deep().clone())?;
        }
        Ok(count)
    }

    fn tensors(&mut self, place: &str, tensors: SlotTensors) -> Result<[usize; 3], SnapshotError> {
        let counts = tensors.counts();
        for (at, parameter) in tensors.parameters.into_iter().enumerate() {
            self.add_parameter(format!("{place}.parameter.{at}"), parameter)?;
        }
        for (name, moments) in [("first", tensors.first), ("second", tensors.second)] {
            for (at, moment) in moments.into_iter().enumerate() {
                self.add(format!("{place}.{name}.{at}"), moment)?;
            }
        }
        Ok(counts)
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
            // A parameter that is already infinite or NaN fits f16 as it is: the precision is not at fault.
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

/// The number of files that this process has begun to write. It makes temporary names unique, because two threads may
/// save to the same path.
static ATTEMPTS: AtomicU64 = AtomicU64::new(0);

/// Writes a file of a kind next to `path` and renames it, so that `path` is always a complete file.
pub(super) fn write(
    path: &Path,
    kind: &str,
    header: String,
    tensors: &Tensors,
) -> Result<(), SnapshotError> {
    let failed = |source| SnapshotError::Io { path: path.to_owned(), source };
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
        ("format".to_owned(), kind.to_owned()),
        ("version".to_owned(), VERSION.to_string()),
        ("precision".to_owned(), precision.to_owned()),
        ("sampler".to_owned(), header),
        ("sha256".to_owned(), hash.finish()),
    ]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(SnapshotError::header)?;

    let (partial, mut file) = create_partial(path).map_err(failed)?;
    // The file is in the same folder, because a rename is atomic only within a file system. It is synced before the
    // rename: otherwise a crash could leave the new name with content that never reached the disk.
    let written = file
        .write_all(&bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| {
            drop(file);
            fs::rename(&partial, path)
        })
        .and_then(|()| sync_folder(folder_of(path)));
    if written.is_err() {
        // The incomplete file is useless. If it cannot be removed either, the first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(failed)
}

/// Creates a new file next to `path`. It never opens a file that exists, such as one that an ended process of the same
/// number has left, or a link that another process has put there.
fn create_partial(path: &Path) -> io::Result<(PathBuf, File)> {
    const MOST_TRIES: usize = 1000;
    let mut taken = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..MOST_TRIES {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}.{attempt}.partial", std::process::id()));
        let partial = path.with_file_name(name);
        match File::create_new(&partial) {
            Ok(file) => return Ok((partial, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

/// Returns the folder of a file.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes a rename in this folder durable: on Unix the new name is an entry of the folder, which must be synchronized
/// too.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, Unsupported};
    match File::open(folder)?.sync_all() {
        // Some file systems store folders differently and report that they cannot be synchronized.
        Err(error) if matches!(error.kind(), InvalidInput | Unsupported) => Ok(()),
        result => result,
    }
}

/// Other systems have no such call.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that the next files would have are taken, one of them by a link to a file of another owner.
    #[test]
    fn a_partial_file_is_a_new_one_and_is_removed_after_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sampler");
        let others = folder.path().join("others");
        fs::write(&others, "not ours").unwrap();
        let next = ATTEMPTS.load(Ordering::Relaxed);
        let name = |attempt: u64| format!("sampler.{}.{attempt}.partial", std::process::id());
        let taken: Vec<PathBuf> =
            (next..next + 10).map(|attempt| folder.path().join(name(attempt))).collect();
        for taken in &taken[1..] {
            fs::write(taken, "not ours").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(&others, &taken[0]).unwrap();
        let entries = || fs::read_dir(folder.path()).unwrap().count();
        let before = entries();
        let save = || write(&path, "kind", "{}".to_owned(), &Tensors::new(SnapshotPrecision::F32));
        save().unwrap();
        assert_eq!(entries(), before + 1, "the file and nothing else");
        for taken in taken.iter().chain([&others]).filter(|path| path.exists()) {
            assert_eq!(fs::read_to_string(taken).unwrap(), "not ours");
        }
        // A folder cannot be replaced by a file.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(save(), Err(SnapshotError::Io { .. })));
        assert_eq!(entries(), before + 1, "the partial file is removed");
    }

    #[test]
    fn a_file_without_a_folder_is_in_the_current_one() {
        for (path, folder) in [("a.st", "."), ("./a.st", "."), ("b/a.st", "b"), ("/a.st", "/")] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder));
        }
        sync_folder(Path::new(".")).unwrap();
        if cfg!(unix) {
            assert!(sync_folder(Path::new("no such folder")).is_err());
        }
    }
}
