//! The adapter: everything that is needed to decode a Qwen3 of the crate `bunsen` under ESamp, without a change in it.

use bunsen::{
    blocks::transformers::embedding::RotaryEmbedding,
    kits::gpts::qwen3::{Qwen3Meta, Qwen3Model},
    ops::transformers::attention::{KVCache, KVCacheConfig, KVCacheMeta, KVCacheModel},
};
use burn::tensor::{Device, Int, Tensor};
use esamp::{CausalLm, HiddenStateTap, KvCache, LmHead, TapSite, TiedHead, errors::ModelError};

/// A foreign model, and what the decode loop wants to know about it.
pub struct TappedQwen3 {
    model: Qwen3Model,
    /// Tables for all positions; the model is shown a part of them at each pass.
    rotary: RotaryEmbedding,
    head: TiedHead,
    context: usize,
    device: Device,
}

impl TappedQwen3 {
    /// `model`, for sequences of up to `context` tokens.
    pub fn new(model: Qwen3Model, context: usize) -> Self {
        let embedding = model.embed_tokens.weight.val();
        let device = embedding.device();
        let rotary = model.rotary(context, &device);
        Self { model, rotary, head: TiedHead::new(embedding), context, device }
    }

    /// The model itself, as it was given.
    pub fn model(&self) -> &Qwen3Model {
        &self.model
    }
}

impl CausalLm for TappedQwen3 {
    type Cache = Qwen3Cache;

    fn new_cache(&self) -> Qwen3Cache {
        Qwen3Cache(None)
    }

    /// What `Qwen3Model::forward_hidden` does, with a look at the hidden states on the way. Its parts are public, and that
    /// is all that it takes to tap a model from outside.
    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut Qwen3Cache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        let [rows, seq] = tokens.dims();
        // The foreign cache must know its batch when it is made, so it is made at the first pass.
        let cache = cache.0.get_or_insert_with(|| {
            self.model.kv_cache_config().with_batch_size(rows).with_seq_len(self.context).init()
        });
        // The foreign model panics on these two; a loop wants an error.
        if rows != cache.batch_size() {
            let expected = format!("{} rows", cache.batch_size());
            return Err(ModelError::mismatch("tokens for the cache", expected, rows));
        }
        let (start, end) = (cache.pos(), cache.pos() + seq);
        if end > self.context {
            return Err(ModelError::ContextFull { limit: self.context, got: end });
        }

        let rotary = self.rotary.clip_range(start..end);
        let mut cache = Some(cache);
        let mut hidden = self.model.embed(tokens);
        for (i, layer) in self.model.layers.iter().enumerate() {
            hidden = layer.forward(hidden, &rotary, &mut cache);
            tap.record(TapSite::AfterBlock(i), &hidden);
        }
        // The last position is enough: the norm looks at one position at a time.
        let d_model = self.d_model();
        let last = hidden.slice([0..rows, seq - 1..seq, 0..d_model]);
        let head_input = self.model.norm.forward(last);
        tap.record(TapSite::HeadInput, &head_input);
        Ok(self.head.logits(head_input.reshape([rows, d_model])))
    }

    fn lm_head(&self) -> &dyn LmHead {
        &self.head
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn d_model(&self) -> usize {
        Qwen3Meta::d_model(&self.model)
    }

    fn vocab_size(&self) -> usize {
        self.model.n_vocab()
    }

    fn context_length(&self) -> Option<usize> {
        Some(self.context)
    }

    fn kv_bytes_per_token(&self) -> usize {
        let heads = self.model.n_layers() * self.model.n_kv_heads();
        2 * heads * self.model.head_dim() * size_of::<f32>()
    }
}

/// The foreign cache, made at the first pass. Its number of rows is fixed from then on: it cannot drop a row, nor take in
/// those of another cache. All that it can do is to be seeded with a single row, many times over, and that is enough for
/// a prompt to be read once for all of its completions.
pub struct Qwen3Cache(Option<KVCache>);

impl KvCache for Qwen3Cache {
    fn rows(&self) -> usize {
        self.0.as_ref().map_or(0, KVCache::batch_size)
    }

    fn can_drop_rows(&self) -> bool {
        false
    }

    fn can_repeat_rows(&self) -> bool {
        true
    }

    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(ModelError::RowOutOfRange { row, rows: self.rows() });
        }
        let Some(cache) = &mut self.0 else {
            return Ok(());
        };
        if rows.len() == cache.batch_size() {
            cache.reorder(rows);
        } else if cache.batch_size() == 1 {
            let mut many = KVCacheConfig::new(
                rows.len(),
                cache.num_heads(),
                cache.seq_len(),
                cache.head_dim(),
                cache.num_layers(),
            )
            .init();
            many.prefill(cache);
            *cache = many;
        } else {
            return Err(ModelError::Unsupported { operation: "drop rows" });
        }
        Ok(())
    }

    fn append_rows(&mut self, _other: Self) -> Result<(), ModelError> {
        Err(ModelError::Unsupported { operation: "append rows" })
    }
}
