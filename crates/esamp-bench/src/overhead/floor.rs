//! A lower bound on the cost of ESamp, from counted work.

use esamp::{distillers::DistillerConfig, llama::LlamaConfig};

use super::run::Case;

/// Counted work of a step.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Multiplications and additions.
    pub flops: f64,
    /// The least bytes that are read from memory and written to it.
    pub bytes: f64,
}

/// The counted work of a decode step. Multiplications count the same for every type. The distillers compute in `f32`,
/// which a GPU does many times slower than the model's `bf16`; there the true limit is below the floor.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Of the model.
    pub model: Cost,
    /// Of ESamp, in addition.
    pub extra: Cost,
}

/// The least memory traffic of an Adam update per parameter, in bytes: reading and writing the parameter
/// and both moments. This is all that moves on flex with up to 64 rows per slot, where the gradient is
/// computed from its factors during the update. An update that stores the gradient, as on a GPU, moves 32.
const ADAM_BYTES: f64 = 24.0;

/// What a model takes in memory.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// Of its matrices.
    pub of_weights: usize,
    /// Of a number in its cache.
    pub of_number: usize,
}

impl Work {
    /// The distillers use `f32`.
    pub fn of(
        config: &LlamaConfig,
        case: &Case,
        bytes: Bytes,
        candidates: f64,
        tokens: usize,
    ) -> Self {
        let (rows, slots) = ((case.prompts * case.completions) as f64, case.slots() as f64);
        let d = config.d_model as f64;
        // Every weight is read once per step and multiplied with every row; the embedding is read only as
        // the head.
        let weights = config.num_params() as f64;
        // Packed numbers have fewer than four bytes each.
        let weight_bytes = bytes.of_weights as f64 / weights;
        // An untied embedding is read only at the rows of the step's tokens.
        let embedding =
            if config.tied_embeddings { 0.0 } else { (config.vocab_size * config.d_model) as f64 };
        let weights = weights - embedding;
        // Attention reads the keys and values of the prompt and, on average, half the completion.
        let columns = 12.0 + tokens as f64 / 2.0;
        let kv = 2.0 * (config.n_layers * config.n_kv_heads * config.head_dim) as f64;
        let attention = 2.0 * (config.n_layers * config.n_heads * config.head_dim) as f64;
        let model_flops = rows * (2.0 * weights + 2.0 * attention * columns);
        let model_bytes = weight_bytes * weights + bytes.of_number as f64 * rows * kv * columns;
        let model = Cost { flops: model_flops, bytes: model_bytes };
        if case.beta == 0.0 {
            return Self { model, extra: Cost { flops: 0.0, bytes: 0.0 } };
        }

        let parameters = match case.distiller.config() {
            DistillerConfig::SwiGlu(swiglu) => {
                (swiglu.blocks * 3 * swiglu.d_hidden * config.d_model) as f64
            }
            DistillerConfig::LowRank(low_rank) => {
                3.0 * d * low_rank.rank as f64 + low_rank.rank as f64 + 2.0 * d
            }
            _ => 0.0,
        };
        // One forward pass to predict. To learn: another forward pass, and a backward pass for parameters
        // and inputs.
        let distiller_flops = rows * 2.0 * parameters * 4.0 + slots * 12.0 * parameters;
        let distiller_bytes = slots * parameters * (4.0 + ADAM_BYTES);
        let expected_flops = rows * 2.0 * candidates * d;
        // Head rows: one per candidate, or all of them once, whichever is less.
        let expected_bytes = weight_bytes * (rows * candidates).min(config.vocab_size as f64) * d;
        let extra = Cost {
            flops: distiller_flops + expected_flops,
            bytes: distiller_bytes + expected_bytes,
        };
        Self { model, extra }
    }

    /// The best possible ratio of plain to steered time on a machine that only arithmetic limits.
    pub fn floor_flops(&self) -> f64 {
        self.model.flops / (self.model.flops + self.extra.flops)
    }

    /// The same on a machine that only memory traffic limits. The smaller of the two is the floor.
    pub fn floor_bytes(&self) -> f64 {
        self.model.bytes / (self.model.bytes + self.extra.bytes)
    }
}
