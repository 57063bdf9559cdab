//! Llama-type decoder.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{
    attention::{Attention, Pass},
    block::{Block, Mlp},
    cache::{LlamaCache, MIN_CAPACITY},
    config::LlamaConfig,
    linear::Linear,
    load::{EMBEDDING, HEAD, TensorSource},
    norm::RmsNorm,
    rope::Rope,
    weight::{Head, Weight},
};
use crate::{
    causal_lm::{BatchSize, CausalLm, ModelError},
    error::ConfigError,
    hidden::TapSite,
    host::{Awake, Mask, is_flex},
    llama::error::LoadError,
    lm_head::LmHead,
    tap::HiddenStateTap,
};

/// A Llama-type decoder for inference. Its weights are plain tensors, not parameters, and cannot be trained.
#[derive(Clone, Debug)]
pub struct Llama {
    config: LlamaConfig,
    embedding: Weight,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Head,
    rope: Rope,
    device: Device,
    pub(super) warnings: Vec<String>,
}

impl Llama {
    /// Builds the model that `config` describes from the weights in `source`.
    pub(super) fn from_source(
        mut config: LlamaConfig,
        source: &mut dyn TensorSource,
        device: &Device,
    ) -> Result<Self, LoadError> {
        config.validate()?;
        let mut warnings = Vec::new();
        let mut weights = Weights { source, device };
        let embedding = weights.matrix(EMBEDDING, [config.vocab_size, config.d_model])?;
        let blocks = (0..config.n_layers)
            .map(|block| weights.block(&config, block))
            .collect::<Result<_, _>>()?;
        let norm = weights.norm("model.norm.weight", config.d_model, &config)?;
        let own_head = if !config.tied_embeddings {
            Some(weights.matrix(HEAD, [config.vocab_size, config.d_model])?)
        } else if weights.source.has(HEAD)? {
            // Some files store the tied matrix twice. Some were trained untied and kept the setting of their base
            // model: transformers uses their head.
            let head = weights.matrix(HEAD, [config.vocab_size, config.d_model])?;
            (!head.is_equal(&embedding)).then_some(head)
        } else {
            None
        };
        if own_head.is_some() && config.tied_embeddings {
            config.tied_embeddings = false;
            warnings.push(format!(
                "tensor {HEAD}: expected the embedding, because the configuration ties them, got another matrix: \
                 used as the LM head"
            ));
        }
        let head = own_head.unwrap_or_else(|| embedding.clone());
        Ok(Self {
            warnings,
            rope: Rope::new(&config),
            head: Head { weight: head, device: device.clone() },
            device: device.clone(),
            config,
            embedding,
            blocks,
            norm,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// What is unusual about the files that the model was loaded from, and what was done about it, one text each.
    /// Programs should show them.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes of the matrices in memory: 4 per parameter in `f32`, and about those of the file where they stay packed
    /// ([`from_gguf`](Self::from_gguf)). Norms and biases are not counted.
    pub fn weight_bytes(&self) -> usize {
        let of_block = |block: &Block| {
            let Block { attention, mlp, .. } = block;
            let all = [&attention.qkv, &attention.output, &mlp.gate_up, &mlp.down];
            all.into_iter().map(|linear| linear.weight().bytes()).sum::<usize>()
        };
        let head = if self.config.tied_embeddings { 0 } else { self.head.weight.bytes() };
        self.embedding.bytes() + head + self.blocks.iter().map(of_block).sum::<usize>()
    }

    /// The weights of the MLP of one block, counted from 0, in the layout of checkpoints. `None` past the last block.
    /// Gate and up are views of one tensor, so nothing is copied.
    pub fn ffn_weights(&self, block: usize) -> Option<FfnWeights> {
        let mlp = &self.blocks.get(block)?.mlp;
        let gate_up = mlp.gate_up.weight().to_tensor(&self.device);
        let d_hidden = gate_up.dims()[0] / 2;
        Some(FfnWeights {
            gate: gate_up.clone().narrow(0, 0, d_hidden),
            up: gate_up.clone().narrow(0, d_hidden, d_hidden),
            down: mlp.down.weight().to_tensor(&self.device),
        })
    }

    /// Casts the model to another precision: `f32`, `f16` or `bf16`. Its caches use the same type, and so do its
    /// hidden states until [`HiddenStates::new`](crate::HiddenStates::new) casts them to `f32`, in which distillers
    /// learn.
    ///
    /// Norms are computed in `f32` at every precision. A cache can only be used at the precision that filled it.
    /// States beyond 65,504 overflow in `f16`; `bf16` has the range of `f32` but is eight times coarser than `f16`.
    /// On the CPU backends `f32` is fastest: flex multiplies `bf16` by converting the weights on every call, and
    /// ndarray supports neither.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for any other type, and for a type that the device does not support.
    pub fn cast(self, dtype: DType) -> Result<Self, ConfigError> {
        let known = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        ConfigError::check(known, "dtype", "f32, f16 or bf16", format!("{dtype:?}"))?;
        let there = self.device.supports_dtype(dtype);
        ConfigError::check(there, "dtype", "a type that the device has", format!("{dtype:?}"))?;
        let device = &self.device;
        let embedding = self.embedding.cast(dtype, device);
        let head = if self.config.tied_embeddings {
            embedding.clone()
        } else {
            self.head.weight.cast(dtype, device)
        };
        Ok(Self {
            head: Head { weight: head, device: device.clone() },
            embedding,
            blocks: self.blocks.into_iter().map(|block| block.cast(dtype, device)).collect(),
            norm: self.norm.cast(dtype),
            ..self
        })
    }
}

/// The weights of a SwiGLU MLP, `[out, in]` each, used by
/// [`LowRankConfig::init_from_ffn`](crate::distillers::LowRankConfig::init_from_ffn).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FfnWeights {
    /// `[d_hidden, d_model]`
    pub gate: Tensor<2>,
    /// `[d_hidden, d_model]`
    pub up: Tensor<2>,
    /// `[d_model, d_hidden]`
    pub down: Tensor<2>,
}

impl Llama {
    /// Bytes of an element of the weights and the cache.
    fn element_bytes(&self) -> usize {
        if self.embedding.dtype() == DType::F32 { 4 } else { 2 }
    }
}

impl CausalLm for Llama {
    type Cache = LlamaCache;

    fn new_cache(&self) -> LlamaCache {
        LlamaCache::new(self.config.n_layers, self.config.context_length)
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut LlamaCache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        let [rows, seq] = tokens.dims();
        if rows == 0 || seq == 0 {
            let expected = [rows.max(1), seq.max(1)];
            ModelError::check_shape("tokens", &expected, &[rows, seq])?;
        }
        cache.check(&self.config, self.embedding.dtype(), &self.device)?;
        let _awake = is_flex(&self.device).then(Awake::new);
        let positions = cache.begin(rows, seq)?;
        let d_model = self.config.d_model;
        let mut x = self.embedding.rows(tokens.reshape([rows * seq])).reshape([rows, seq, d_model]);
        let pass = Pass {
            angles: self.rope.angles(&positions, &self.device).cast_like(&x),
            mask: Mask::default(),
        };
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, &pass, i, cache);
            tap.record(TapSite::AfterBlock(i), &x);
        }
        cache.commit(seq);
        // Normalise the whole prompt only if a tap reads all positions.
        let all = tap.wants_all_positions() && tap.wants(TapSite::HeadInput);
        let shown = if all { x } else { x.narrow(1, seq - 1, 1) };
        let head_input = self.norm.forward(shown);
        tap.record(TapSite::HeadInput, &head_input);
        let last = head_input.dims()[1] - 1;
        Ok(self.head.logits(head_input.narrow(1, last, 1).reshape([rows, d_model])))
    }

    fn lm_head(&self) -> &dyn LmHead {
        &self.head
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn d_model(&self) -> usize {
        self.config.d_model
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> Option<usize> {
        Some(self.config.context_length)
    }

    fn kv_bytes_per_token(&self) -> usize {
        2 * self.config.n_layers
            * self.config.n_kv_heads
            * self.config.head_dim
            * self.element_bytes()
    }

    /// The terms of docs/guide/performance.md, which tests/memory.rs compares with what is allocated.
    fn working_bytes(&self, batch: BatchSize) -> usize {
        let BatchSize { rows, columns, joining, pass } = batch;
        let config = &self.config;
        let product = |factors: &[usize]| factors.iter().copied().fold(1, usize::saturating_mul);
        let column = self.kv_bytes_per_token();
        let spare = product(&[rows, columns.max(MIN_CAPACITY), column]);
        // A full cache is copied layer by layer.
        let copied = product(&[2, rows, columns, column]) / config.n_layers.max(1);
        let newcomers = product(&[joining, columns, column]);
        let logits = product(&[rows, config.vocab_size, self.element_bytes()]);
        // On flex attention keeps the scores of a few queries only.
        let keeps_scores = !is_flex(&self.device) || self.element_bytes() != 4;
        let scores = usize::from(keeps_scores) * (2 * config.n_heads + 1);
        let scores = product(&[scores, columns]);
        let activations = (4 * config.d_model + 3 * config.d_hidden).saturating_add(scores);
        let activations = product(&[pass, activations, self.element_bytes()]);
        [spare, copied, newcomers, logits, activations].into_iter().fold(0, usize::saturating_add)
    }
}

/// Creates device tensors from the weights in a source.
struct Weights<'a> {
    source: &'a mut dyn TensorSource,
    device: &'a Device,
}

impl Weights<'_> {
    fn block(&mut self, config: &LlamaConfig, block: usize) -> Result<Block, LoadError> {
        let at = |name: &str| format!("model.layers.{block}.{name}");
        let (d_model, width) = (config.d_model, config.head_dim);
        let (q, kv) = (config.n_heads * width, config.n_kv_heads * width);
        let qkv = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)]
            .map(|(name, rows)| (at(&format!("self_attn.{name}")), rows));
        let qk_norm = if config.qk_norm {
            Some((
                self.norm(&at("self_attn.q_norm.weight"), width, config)?,
                self.norm(&at("self_attn.k_norm.weight"), width, config)?,
            ))
        } else {
            None
        };
        let output = [(at("self_attn.o_proj"), d_model)];
        let attention = Attention::new(
            config,
            self.stacked(&qkv, d_model, config.qkv_bias)?,
            self.stacked(&output, q, config.o_bias)?,
            qk_norm,
        );
        let gate_up =
            [(at("mlp.gate_proj"), config.d_hidden), (at("mlp.up_proj"), config.d_hidden)];
        let mlp = Mlp {
            gate_up: self.stacked(&gate_up, d_model, false)?,
            down: self.stacked(&[(at("mlp.down_proj"), d_model)], config.d_hidden, false)?,
        };
        Ok(Block {
            attention_norm: self.norm(&at("input_layernorm.weight"), d_model, config)?,
            attention,
            mlp_norm: self.norm(&at("post_attention_layernorm.weight"), d_model, config)?,
            mlp,
        })
    }

    /// Fuses several linear layers with the same input by stacking their matrices along the rows.
    fn stacked(
        &mut self,
        parts: &[(String, usize)],
        d_input: usize,
        has_bias: bool,
    ) -> Result<Linear, LoadError> {
        let named: Vec<(String, usize)> =
            parts.iter().map(|(name, rows)| (format!("{name}.weight"), *rows)).collect();
        let named: Vec<(&str, usize)> =
            named.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
        let weight = self.matrices(&named, d_input)?;
        let mut bias = Vec::new();
        if has_bias {
            for (name, rows) in parts {
                bias.extend(self.source.take(&format!("{name}.bias"), &[*rows])?);
            }
        }
        let rows = bias.len();
        let bias = has_bias.then(|| Tensor::from_data(TensorData::new(bias, [rows]), self.device));
        Ok(Linear::new(weight, bias))
    }

    fn matrix(&mut self, name: &str, [rows, columns]: [usize; 2]) -> Result<Weight, LoadError> {
        self.matrices(&[(name, rows)], columns)
    }

    /// Matrices of `columns` columns, given by name and number of rows, concatenated along the rows; packed if the
    /// source has them so and the device multiplies with packed rows.
    fn matrices(&mut self, parts: &[(&str, usize)], columns: usize) -> Result<Weight, LoadError> {
        if is_flex(self.device)
            && let Some(packed) = self.source.take_packed(parts, columns)?
        {
            return Ok(Weight::Packed(Arc::new(packed)));
        }
        self.source.take_matrices(parts, columns, self.device).map(Weight::Dense)
    }

    fn norm(
        &mut self,
        name: &str,
        width: usize,
        config: &LlamaConfig,
    ) -> Result<RmsNorm, LoadError> {
        let values = self.source.take(name, &[width])?;
        let weight = Tensor::from_data(TensorData::new(values, [width]), self.device);
        Ok(RmsNorm::new(weight, config.rms_norm_eps))
    }
}
