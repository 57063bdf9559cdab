//! Models without weights to download: for this crate's tests, and for those of your own distillers, filters and loops.

use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Int, Tensor, TensorData, activation::softmax};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::{
    causal_lm::{CausalLm, KvCache, ModelError},
    hidden::TapSite,
    id::TokenId,
    lm_head::{LmHead, TiedHead},
    tap::HiddenStateTap,
    tensor::index,
    text::{Detokenize, TextError},
};

/// A real transformer, small enough to run anywhere in no time: 64 tokens, width 32, two blocks, random weights.
///
/// It has nothing to say, but it says it the way a language model does: attention over what came before, a final norm, a
/// head, hidden states at every site. Its weights are drawn on the host from a seed, the same on every device.
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
    /// The most tokens in a sequence.
    pub const CONTEXT: usize = 512;

    /// The model whose weights `seed` gives.
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

    /// A detokenizer for it: every token is a syllable.
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

/// The cache of the models here: the sequences themselves. They are small enough to be read again at every step.
#[derive(Clone, Debug, Default)]
pub struct TokenCache {
    sequences: Vec<Vec<TokenId>>,
    fixed: bool,
}

impl TokenCache {
    /// Appends the tokens of each row.
    fn extend(&mut self, tokens: Tensor<2, Int>) -> Result<(), ModelError> {
        let [rows, seq] = tokens.dims();
        if self.sequences.is_empty() {
            self.sequences = vec![Vec::new(); rows];
        }
        if rows != self.sequences.len() {
            let expected = format!("{} rows", self.sequences.len());
            return Err(ModelError::mismatch("tokens for the cache", expected, rows));
        }
        let tokens = tokens.try_into_data()?.convert::<i64>().try_into_vec::<i64>();
        let tokens = tokens.map_err(|error| ModelError::Device(format!("{error:?}")))?;
        for (sequence, new) in self.sequences.iter_mut().zip(tokens.chunks(seq.max(1))) {
            sequence.extend(new.iter().map(|&token| token as TokenId));
        }
        Ok(())
    }
}

impl KvCache for TokenCache {
    fn rows(&self) -> usize {
        self.sequences.len()
    }

    fn can_drop_rows(&self) -> bool {
        !self.fixed
    }

    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        if self.fixed {
            return Err(ModelError::Unsupported { operation: "drop rows" });
        }
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(ModelError::RowOutOfRange { row, rows: self.rows() });
        }
        self.sequences = rows.iter().map(|&row| self.sequences[row].clone()).collect();
        Ok(())
    }

    fn append_rows(&mut self, other: Self) -> Result<(), ModelError> {
        if self.fixed {
            return Err(ModelError::Unsupported { operation: "append rows" });
        }
        self.sequences.extend(other.sequences);
        Ok(())
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

        // Shorter sequences are padded behind their end, where the causal mask hides the padding from them.
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

/// `[1, seq, seq]`, −inf where a query would look ahead.
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

/// What a [`ScriptedLm`] answers: from a sequence to the logits of its next token.
type Script = Arc<dyn Fn(&[TokenId]) -> Vec<f32> + Send + Sync>;

/// A model that answers what you tell it to: its logits are a function of the sequence. It remembers what it was fed.
///
/// Its hidden states are its logits, at every site, and its head is the identity: the expected logits that a distiller
/// gives rise to are simply what it predicts.
///
/// ```
/// use burn::tensor::Device;
/// use esamp::testing::ScriptedLm;
///
/// /// Always the next token of a vocabulary of 8.
/// let counts = ScriptedLm::new(8, &Device::flex(), |sequence| {
///     let next = (sequence.last().unwrap() + 1) % 8;
///     (0..8).map(|token| if token == next { 5.0 } else { 0.0 }).collect()
/// });
/// ```
#[derive(Clone)]
pub struct ScriptedLm {
    script: Script,
    vocab: usize,
    device: Device,
    fixed_cache: bool,
    context_length: Option<usize>,
    fails_at: Option<usize>,
    calls: Arc<Mutex<Vec<Vec<Vec<TokenId>>>>>,
}

impl ScriptedLm {
    /// A model over `vocab` tokens that answers `script(sequence)`: `vocab` logits.
    pub fn new(
        vocab: usize,
        device: &Device,
        script: impl Fn(&[TokenId]) -> Vec<f32> + Send + Sync + 'static,
    ) -> Self {
        Self {
            script: Arc::new(script),
            vocab,
            device: device.clone(),
            fixed_cache: false,
            context_length: None,
            fails_at: None,
            calls: Arc::default(),
        }
    }

    /// Gives it a cache that can neither drop nor append rows.
    pub fn with_fixed_cache(mut self) -> Self {
        self.fixed_cache = true;
        self
    }

    /// Limits its sequences.
    pub fn with_context_length(mut self, limit: usize) -> Self {
        self.context_length = Some(limit);
        self
    }

    /// Lets forward pass number `call`, counted from 0, fail.
    pub fn failing_at(mut self, call: usize) -> Self {
        self.fails_at = Some(call);
        self
    }

    /// What each forward pass was fed, `[call][row][token]`.
    pub fn calls(&self) -> Vec<Vec<Vec<TokenId>>> {
        self.calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl std::fmt::Debug for ScriptedLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedLm").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl CausalLm for ScriptedLm {
    type Cache = TokenCache;

    fn new_cache(&self) -> TokenCache {
        TokenCache { sequences: Vec::new(), fixed: self.fixed_cache }
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut TokenCache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        let seq = tokens.dims()[1];
        cache.extend(tokens)?;
        let fed = cache.sequences.iter().map(|s| s[s.len() - seq..].to_vec()).collect();
        let call = {
            let mut calls = self.calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            calls.push(fed);
            calls.len() - 1
        };
        if self.fails_at == Some(call) {
            return Err(ModelError::other(format!("scripted to fail at call {call}")));
        }
        let rows = cache.sequences.len();
        let logits: Vec<f32> = cache.sequences.iter().flat_map(|s| (self.script)(s)).collect();
        if logits.len() != rows * self.vocab {
            let expected = [rows, self.vocab];
            ModelError::check_shape("logits of the script", &expected, &[logits.len()])?;
        }
        let logits: Tensor<2> =
            Tensor::from_data(TensorData::new(logits, [rows, self.vocab]), &self.device);
        let hidden = logits.clone().reshape([rows, 1, self.vocab]);
        for site in [TapSite::AfterBlock(0), TapSite::HeadInput] {
            tap.record(site, &hidden);
        }
        Ok(logits)
    }

    fn lm_head(&self) -> &dyn LmHead {
        &Identity
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn d_model(&self) -> usize {
        self.vocab
    }

    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn context_length(&self) -> Option<usize> {
        self.context_length
    }

    fn kv_bytes_per_token(&self) -> usize {
        1
    }
}

/// Logits that are the hidden state.
struct Identity;

impl LmHead for Identity {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden
    }
}
