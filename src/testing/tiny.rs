//! Small transformer with random weights.

use burn::tensor::{Device, Int, Tensor, TensorData, activation::softmax};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::cache::TokenCache;
use crate::{
    causal_lm::{CausalLm, ModelError},
    hidden::TapSite,
    id::TokenId,
    lm_head::{LmHead, TiedHead},
    tap::HiddenStateTap,
    tensor::index,
    text::{Detokenize, TextError},
};

/// A small transformer with random weights: 64 tokens, width 32, two blocks. It runs on any device in negligible
/// time.
///
/// Its output is meaningless, but it has the structure of a language model: causal attention, a final norm, an LM
/// head, and hidden states at every tap site. Weights are drawn on the host from a seed and are the same on every
/// device.
#[derive(Clone, Debug)]
pub struct TinyLm {
    embedding: Tensor<2>,
    positions: Tensor<2>,
    blocks: Vec<TinyBlock>,
    head: TiedHead,
    device: Device,
}

#[derive(Clone, Debug)]
struct TinyBlock {
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
}

impl TinyLm {
    /// Size of the vocabulary.
    pub const VOCAB: usize = 64;
    /// Width of the hidden states.
    pub const D_MODEL: usize = 32;
    /// Maximum number of tokens in a sequence.
    pub const CONTEXT: usize = 512;

    /// The model with weights drawn from `seed`.
    pub fn new(seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut matrix = |rows: usize, columns: usize, scale: f32| {
            let bound = scale * (3.0 / rows as f32).sqrt();
            let numbers: Vec<f32> =
                (0..rows * columns).map(|_| rng.random_range(-bound..bound)).collect();
            Tensor::from_data(TensorData::new(numbers, [rows, columns]), device)
        };
        let d = Self::D_MODEL;
        let embedding = matrix(Self::VOCAB, d, 4.0);
        let positions = matrix(Self::CONTEXT, d, 4.0);
        let blocks = (0..2)
            .map(|_| TinyBlock {
                query: matrix(d, d, 1.5),
                key: matrix(d, d, 1.5),
                value: matrix(d, d, 1.0),
                up: matrix(d, 2 * d, 1.5),
                down: matrix(2 * d, d, 1.5),
            })
            .collect();
        Self {
            head: TiedHead::new(matrix(Self::VOCAB, d, 3.0)),
            embedding,
            positions,
            blocks,
            device: device.clone(),
        }
    }

    /// A detokenizer for this model: every token is a syllable.
    pub fn detokenizer() -> impl Detokenize {
        |tokens: &[TokenId]| -> Result<String, TextError> {
            let consonants =
                ["b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z"];
            let vowels = ["a", "e", "i", "o"];
            let syllable = |&token: &TokenId| {
                let token = token as usize % Self::VOCAB;
                [consonants[token / 4], vowels[token % 4]].concat()
            };
            Ok(tokens.iter().map(syllable).collect())
        }
    }
}

impl CausalLm for TinyLm {
    type Cache = TokenCache;

    fn new_cache(&self) -> TokenCache {
        TokenCache::default()
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut TokenCache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        let seq = tokens.dims()[1];
        let longest = cache.sequences.iter().map(Vec::len).max().unwrap_or(0) + seq;
        if longest > Self::CONTEXT {
            return Err(ModelError::ContextFull { limit: Self::CONTEXT, got: longest });
        }
        cache.extend(tokens)?;
        let (rows, d) = (cache.sequences.len(), Self::D_MODEL);

        // Shorter sequences are padded on the right, where the causal mask hides the padding from them.
        let padded = cache
            .sequences
            .iter()
            .flat_map(|s| (0..longest).map(|at| s.get(at).map_or(0, |&token| token as usize)));
        let padded = index(padded, &self.device);
        let embedded = self.embedding.clone().select(0, padded).reshape([rows, longest, d]);
        let positions = self.positions.clone().slice([0..longest, 0..d]).unsqueeze();
        let mask = causal_mask(longest, &self.device);
        let mut x = embedded + positions;
        let shown = if tap.wants_all_positions() { seq.max(1) } else { 1 };
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, &mask);
            tap.record(TapSite::AfterBlock(i), &end_positions(&x, &cache.sequences, shown));
        }
        let head_input = rms_norm(end_positions(&x, &cache.sequences, shown));
        tap.record(TapSite::HeadInput, &head_input);
        let last = head_input.narrow(1, shown - 1, 1);
        Ok(self.head.logits(last.reshape([rows, d])))
    }

    fn lm_head(&self) -> &dyn LmHead {
        &self.head
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn d_model(&self) -> usize {
        Self::D_MODEL
    }

    fn vocab_size(&self) -> usize {
        Self::VOCAB
    }

    fn context_length(&self) -> Option<usize> {
        Some(Self::CONTEXT)
    }

    fn kv_bytes_per_token(&self) -> usize {
        size_of::<TokenId>()
    }
}

impl TinyBlock {
    fn forward(&self, x: Tensor<3>, mask: &Tensor<3>) -> Tensor<3> {
        let normed = rms_norm(x.clone());
        let project = |weight: &Tensor<2>| normed.clone().matmul(weight.clone().unsqueeze());
        let scores = project(&self.query).matmul(project(&self.key).swap_dims(1, 2));
        let scores = scores.div_scalar((TinyLm::D_MODEL as f32).sqrt()) + mask.clone();
        let x = x + softmax(scores, 2).matmul(project(&self.value));
        let hidden = rms_norm(x.clone()).matmul(self.up.clone().unsqueeze());
        x + hidden.tanh().matmul(self.down.clone().unsqueeze())
    }
}

fn rms_norm(x: Tensor<3>) -> Tensor<3> {
    let mean_square = x.clone().square().mean_dim(2);
    x / mean_square.add_scalar(1e-5).sqrt()
}

/// Causal mask `[1, seq, seq]`: −inf where a query would attend to a later position.
fn causal_mask(seq: usize, device: &Device) -> Tensor<3> {
    let at = |query: usize, key: usize| if key > query { f32::NEG_INFINITY } else { 0.0 };
    let numbers: Vec<f32> = (0..seq * seq).map(|i| at(i / seq, i % seq)).collect();
    Tensor::from_data(TensorData::new(numbers, [1, seq, seq]), device)
}

/// The states of the last `count` positions of each sequence, `[rows, count, d_model]`.
fn end_positions(x: &Tensor<3>, sequences: &[Vec<TokenId>], count: usize) -> Tensor<3> {
    let [rows, seq, d] = x.dims();
    let ends = sequences.iter().enumerate().map(|(row, s)| row * seq + s.len());
    let places = index(ends.flat_map(|end| end - count..end), &x.device());
    x.clone().reshape([rows * seq, d]).select(0, places).reshape([rows, count, d])
}
