//! BERT (Devlin et al., arXiv 1810.04805) as an encoder: maps tokens to their last hidden states.

use std::path::Path;

use burn::{
    module::Module,
    nn::{
        Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig,
    },
    store::{
        FloatCastAdapter, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore,
    },
    tensor::{
        Bool, DType, Device, Int, Tensor,
        activation::{gelu, softmax},
    },
};
use esamp::errors::LoadError;
use serde::Deserialize;

/// The keys of `config.json` that are used here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct BertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    hidden_act: String,
    position_embedding_type: String,
}

impl BertConfig {
    /// Parses and checks the configuration; `path` is used in error messages.
    pub(crate) fn from_json(path: &Path, bytes: &[u8]) -> Result<Self, LoadError> {
        let wrong = |what: &str, expected: &str, got: String| LoadError::Format {
            path: path.to_owned(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| wrong("content", "the configuration of a BERT", error.to_string()))?;
        if config.hidden_act != "gelu" {
            return Err(wrong("key hidden_act", "gelu", config.hidden_act));
        }
        if config.position_embedding_type != "absolute" {
            let got = config.position_embedding_type;
            return Err(wrong("key position_embedding_type", "absolute", got));
        }
        if config.num_attention_heads == 0
            || !config.hidden_size.is_multiple_of(config.num_attention_heads)
        {
            let (heads, width) = (config.num_attention_heads, config.hidden_size);
            return Err(wrong(
                "key num_attention_heads",
                &format!("a divisor of {width}"),
                heads.to_string(),
            ));
        }
        Ok(config)
    }
}

/// The encoder.
#[derive(Module, Debug)]
pub(crate) struct Bert {
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: LayerNorm,
    blocks: Vec<Block>,
}

/// Attention and a two-layer network, each added to its input and then normalised.
#[derive(Module, Debug)]
struct Block {
    attention: Attention,
    attention_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    outer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

/// Maps the tensor names of the file to the fields of this module.
const NAMES: [(&str, &str); 11] = [
    (r"^embeddings\.word_embeddings\.", "words."),
    (r"^embeddings\.position_embeddings\.", "positions."),
    (r"^embeddings\.token_type_embeddings\.", "types."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.attention\.output\.dense\.", ".attention.output."),
    (r"\.intermediate\.dense\.", ".inner."),
    (r"\.output\.LayerNorm\.", ".outer_norm."),
    (r"\.output\.dense\.", ".outer."),
];

impl Bert {
    /// Loads the weights. The pooler of the file is ignored, because the mean does not use it.
    pub(crate) fn load(
        config: &BertConfig,
        path: &Path,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let unusable = |what: &str, expected: &str, got: String| LoadError::Format {
            path: path.to_owned(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        std::fs::File::open(path)
            .map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
        let to_f32 = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
        let mut store = SafetensorsStore::from_file(path)
            .with_from_adapter(to_f32)
            .allow_partial(true)
            .validate(false);
        for (theirs, ours) in NAMES {
            store = store.with_key_remapping(theirs, ours);
        }
        let mut model = Self::empty(config, device);
        let whole = "a safetensors file that holds the weights";
        let loaded = model
            .load_from(&mut store)
            .map_err(|error| unusable("content", whole, error.to_string()))?;
        if let Some(error) = loaded.errors.first() {
            let shapes = "tensors of the shapes that config.json asks for";
            return Err(unusable("tensors", shapes, error.to_string()));
        }
        if let Some((name, _)) = loaded.missing.first() {
            return Err(unusable(&format!("tensor {name}"), "numbers", "none".to_owned()));
        }
        Ok(model)
    }

    /// Initialised with zeros: random weights, overwritten at once, would advance the device's random
    /// generator.
    fn empty(config: &BertConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let embedding = |count| {
            EmbeddingConfig::new(count, width).with_initializer(Initializer::Zeros).init(device)
        };
        let linear = |input, output| {
            LinearConfig::new(input, output).with_initializer(Initializer::Zeros).init(device)
        };
        let norm = || LayerNormConfig::new(width).with_epsilon(config.layer_norm_eps).init(device);
        let block = || Block {
            attention: Attention {
                query: linear(width, width),
                key: linear(width, width),
                value: linear(width, width),
                output: linear(width, width),
                heads: config.num_attention_heads,
            },
            attention_norm: norm(),
            inner: linear(width, config.intermediate_size),
            outer: linear(config.intermediate_size, width),
            outer_norm: norm(),
        };
        Self {
            words: embedding(config.vocab_size),
            positions: embedding(config.max_position_embeddings),
            types: embedding(config.type_vocab_size),
            norm: norm(),
            blocks: (0..config.num_hidden_layers).map(|_| block()).collect(),
        }
    }

    /// Maps `[rows, seq]` to `[rows, seq, width]`. Tokens where `padding` is true are masked out; every row
    /// has at least one other token.
    pub(crate) fn forward(&self, tokens: Tensor<2, Int>, padding: Tensor<2, Bool>) -> Tensor<3> {
        let [rows, seq] = tokens.dims();
        let positions = self.positions.weight.val().narrow(0, 0, seq).unsqueeze::<3>();
        let first_type = self.types.weight.val().narrow(0, 0, 1).unsqueeze::<3>();
        let x = self.norm.forward(self.words.forward(tokens) + positions + first_type);
        let padding = padding.reshape([rows, 1, 1, seq]);
        self.blocks.iter().fold(x, |x, block| block.forward(x, &padding))
    }
}

impl Block {
    fn forward(&self, x: Tensor<3>, padding: &Tensor<4, Bool>) -> Tensor<3> {
        let x = self.attention_norm.forward(x.clone() + self.attention.forward(x, padding));
        let inner = gelu(self.inner.forward(x.clone()));
        self.outer_norm.forward(x + self.outer.forward(inner))
    }
}

impl Attention {
    fn forward(&self, x: Tensor<3>, padding: &Tensor<4, Bool>) -> Tensor<3> {
        let [rows, seq, width] = x.dims();
        let head_dim = width / self.heads;
        let heads = |linear: &Linear| {
            let y = linear.forward(x.clone()).reshape([rows, seq, self.heads, head_dim]);
            y.swap_dims(1, 2) // [rows, heads, seq, head_dim]
        };
        let queries = heads(&self.query).mul_scalar((head_dim as f32).powf(-0.5));
        let scores = queries.matmul(heads(&self.key).swap_dims(2, 3));
        let padding = padding.clone().expand([rows, self.heads, seq, seq]);
        let weights = softmax(scores.mask_fill(padding, f32::NEG_INFINITY), 3);
        let mixed = weights.matmul(heads(&self.value)).swap_dims(1, 2);
        self.output.forward(mixed.reshape([rows, seq, width]))
    }
}
