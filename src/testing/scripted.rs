//! Scripted model for tests.

use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::cache::TokenCache;
use crate::{
    causal_lm::{CacheLimits, CausalLm, ModelError},
    hidden::TapSite,
    id::TokenId,
    lm_head::LmHead,
    tap::HiddenStateTap,
};

/// The script of a [`ScriptedLm`]: maps a sequence to the logits of its next token.
type Script = Arc<dyn Fn(&[TokenId]) -> Vec<f32> + Send + Sync>;

/// A model whose logits are a given function of the sequence. It records the tokens it was fed.
///
/// At every tap site the hidden states equal the logits, and the LM head is the identity, so the expected logits
/// equal the distiller's prediction.
///
/// ```
/// use burn::tensor::Device;
/// use esamp::testing::ScriptedLm;
///
/// /// Always predicts the next token of a vocabulary of 8.
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
    cache_limits: CacheLimits,
    fails_at: Option<usize>,
    calls: Arc<Mutex<Vec<Vec<Vec<TokenId>>>>>,
}

impl ScriptedLm {
    /// Creates a model over `vocab` tokens that returns `script(sequence)`, which must be `vocab` logits.
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
            cache_limits: CacheLimits::default(),
            fails_at: None,
            calls: Arc::default(),
        }
    }

    /// Uses a cache that supports neither dropping nor appending rows.
    pub fn with_fixed_cache(mut self) -> Self {
        self.fixed_cache = true;
        self
    }

    /// Limits the length of sequences, in tokens.
    pub fn with_context_length(mut self, limit: usize) -> Self {
        self.context_length = Some(limit);
        self
    }

    /// Sets what its caches have room for.
    pub fn with_cache_limits(mut self, limits: CacheLimits) -> Self {
        self.cache_limits = limits;
        self
    }

    /// Makes forward pass number `call`, counted from 0, fail.
    pub fn failing_at(mut self, call: usize) -> Self {
        self.fails_at = Some(call);
        self
    }

    /// The tokens fed to each forward pass, `[call][row][token]`.
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

    fn cache_limits(&self) -> CacheLimits {
        self.cache_limits
    }

    fn kv_bytes_per_token(&self) -> usize {
        1
    }
}

/// LM head that returns the hidden state as logits.
struct Identity;

impl LmHead for Identity {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden
    }
}
