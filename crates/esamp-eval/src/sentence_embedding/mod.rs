//! Sentence embeddings: texts with similar meanings are close together. The evaluation uses them to measure
//! how different the completions of a prompt are, with a model unrelated to the one that wrote them.
//!
//! The model is all-MiniLM-L6-v2 (Wang et al., *MiniLM*, arXiv 2002.10957; trained on pairs of sentences as
//! in Reimers and Gurevych, *Sentence-BERT*, arXiv 1908.10084): a BERT of six layers whose last hidden
//! states are averaged over the tokens and scaled to length 1. `model_source` downloads it.

mod bert;

use std::{fs, path::Path};

use burn::tensor::{DType, Device, ExecutionError, Int, Tensor, TensorData};
use esamp::errors::LoadError;
use tokenizers::{Tokenizer, TruncationParams};

use bert::{Bert, BertConfig};

/// Maps texts to unit vectors.
#[derive(Debug)]
pub struct SentenceEmbedder {
    tokenizer: Tokenizer,
    model: Bert,
    width: usize,
    device: Device,
}

/// Texts could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// An error of the tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An error of the device.
    #[error("device: {0}")]
    Device(String),
}

impl SentenceEmbedder {
    /// The most tokens of a text that are used, including the two at its ends; the model was not trained on
    /// longer texts.
    pub const MAX_TOKENS: usize = 256;
    /// Texts per forward pass.
    const BATCH: usize = 32;

    /// Loads the model from a folder with `config.json`, `tokenizer.json` and `model.safetensors`, in `f32`.
    ///
    /// # Errors
    ///
    /// A [`LoadError`] that names the file, what was expected and what was found.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, LoadError> {
        let config_path = folder.join("config.json");
        let config = BertConfig::from_json(&config_path, &read(&config_path)?)?;
        if config.max_position_embeddings < Self::MAX_TOKENS {
            return Err(LoadError::Format {
                path: config_path,
                what: "key max_position_embeddings".to_owned(),
                expected: format!("at least {}", Self::MAX_TOKENS),
                got: config.max_position_embeddings.to_string(),
            });
        }
        let tokenizer_path = folder.join("tokenizer.json");
        let tokenizer = Tokenizer::from_bytes(read(&tokenizer_path)?).and_then(|mut tokenizer| {
            // The file always pads to 128 tokens. The model was trained with up to 256, and here rows are
            // only as long as necessary.
            let max_length = Self::MAX_TOKENS;
            tokenizer
                .with_truncation(Some(TruncationParams { max_length, ..Default::default() }))?;
            tokenizer.with_padding(None);
            Ok(tokenizer)
        });
        let tokenizer = tokenizer.map_err(|error| LoadError::Format {
            path: tokenizer_path,
            what: "content".to_owned(),
            expected: "a tokenizer".to_owned(),
            got: error.to_string(),
        })?;
        let model = Bert::load(&config, &folder.join("model.safetensors"), device)?;
        Ok(Self { tokenizer, model, width: config.hidden_size, device: device.clone() })
    }

    /// Width of an embedding: 384.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The tokens of a text, truncated to [`MAX_TOKENS`](Self::MAX_TOKENS).
    ///
    /// # Errors
    ///
    /// An error of the tokenizer.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, EmbedError> {
        let encoding = self.tokenizer.encode(text, true);
        let encoding = encoding.map_err(|error| EmbedError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns an embedding of length 1 for each text, in order; the scalar product of two is their cosine.
    /// An empty text has a valid embedding too.
    ///
    /// A text of 60 tokens takes about 40 ms on two CPU cores.
    ///
    /// # Errors
    ///
    /// An [`EmbedError`] of the tokenizer or the device.
    pub fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let tokens: Vec<Vec<u32>> =
            texts.iter().map(|text| self.tokens(text)).collect::<Result<_, _>>()?;
        let mut by_length: Vec<usize> = (0..texts.len()).collect();
        by_length.sort_by_key(|&text| tokens[text].len()); // texts of similar length need little padding
        let mut embeddings = vec![Vec::new(); texts.len()];
        for batch in by_length.chunks(Self::BATCH) {
            let rows: Vec<&[u32]> = batch.iter().map(|&text| &tokens[text][..]).collect();
            let numbers = self.forward(&rows)?;
            for (&text, embedding) in batch.iter().zip(numbers.chunks_exact(self.width)) {
                embeddings[text] = embedding.to_vec();
            }
        }
        Ok(embeddings)
    }

    /// The concatenated embeddings of rows of tokens. No row is empty: each has its two end tokens.
    fn forward(&self, rows: &[&[u32]]) -> Result<Vec<f32>, EmbedError> {
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let shape = [rows.len(), longest];
        let (mut tokens, mut real) = (Vec::new(), Vec::new());
        for row in rows {
            let padding = longest - row.len();
            tokens.extend(row.iter().map(|&token| i64::from(token)).chain((0..padding).map(|_| 0)));
            real.extend(row.iter().map(|_| 1.0f32).chain((0..padding).map(|_| 0.0)));
        }
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, shape), &self.device);
        let real = TensorData::new(real, shape);
        let real = Tensor::<2>::from_data(real, (&self.device, DType::F32));

        let states = self.model.forward(tokens, real.clone().equal_elem(0.0)); // [rows, longest, width]
        let real = real.unsqueeze_dim::<3>(2);
        let sum = (states * real.clone()).sum_dim(1).squeeze_dim::<2>(1);
        let mean = sum / real.sum_dim(1).squeeze_dim::<2>(1);
        let length = mean.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
        let data = (mean / length).try_into_data().map_err(device_error)?;
        data.try_into_vec().map_err(|error| EmbedError::Device(format!("{error:?}")))
    }
}

fn device_error(error: ExecutionError) -> EmbedError {
    EmbedError::Device(format!("{error:?}"))
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Io { path: path.to_owned(), source })
}
