//! The least that ESamp can cost, from counted work.

use esamp::{distillers::DistillerConfig, llama::LlamaConfig};

use super::run::Case;

/// The best ratios of plain to steered time that the counted work allows: if a machine did nothing but multiply, and if
/// it did nothing but move memory. The smaller one is the floor. Multiplications count alike whatever their type; the distillers'
/// are in `f32`, which a GPU does many times slower than the model's `bf16`: there the floor is further away than it says.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub floor_flops: f64,
    pub floor_bytes: f64,
}

/// The fewest bytes that an update of Adam can move per parameter: it reads and writes the parameter and both moments. On flex,
/// with up to 64 rows a slot, no more are moved: the gradient is multiplied out of its factors where it is used. An update
/// that stores it, as on a GPU, moves 32.
const ADAM_BYTES: f64 = 24.0;

impl Work {
    /// `weight_bytes` is the size of one of the model's numbers, in its weights and its cache. The distillers' are `f32`.
    pub fn of(
        config: &LlamaConfig,
        case: &Case,
        weight_bytes: usize,
        candidates: f64,
        tokens: usize,
    ) -> Self {
        let (rows, slots) = ((case.prompts * case.completions) as f64, case.slots() as f64);
        let weight_bytes = weight_bytes as f64;
        let d = config.d_model as f64;
        // Every weight is read once a step and multiplied with every row; the embedding is read only as the head.
        let weights = config.num_params() as f64;
        // Where the embedding is a matrix of its own, only the rows of the step's tokens are read of it.
        let embedding = match config.tied_embeddings {
            true => 0.0,
            false => (config.vocab_size * config.d_model) as f64,
        };
        let weights = weights - embedding;
        // Attention: keys and values of half the completion on average, and the prompt.
        let columns = 12.0 + tokens as f64 / 2.0;
        let kv = 2.0 * (config.n_layers * config.n_kv_heads * config.head_dim) as f64;
        let attention = 2.0 * (config.n_layers * config.n_heads * config.head_dim) as f64;
        let model_flops = rows * (2.0 * weights + 2.0 * attention * columns);
        let model_bytes = weight_bytes * (weights + rows * kv * columns);
        if case.beta == 0.0 {
            return Self { floor_flops: 1.0, floor_bytes: 1.0 };
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
        // Forward once to predict; forward again, and back with respect to parameters and inputs, to learn.
        let distiller_flops = rows * 2.0 * parameters * 4.0 + slots * 12.0 * parameters;
        let distiller_bytes = slots * parameters * (4.0 + ADAM_BYTES);
        let expected_flops = rows * 2.0 * candidates * d;
        // Rows of the head for each candidate, or all of them once.
        let expected_bytes = weight_bytes * (rows * candidates).min(config.vocab_size as f64) * d;
        let ratio = |model: f64, extra: f64| model / (model + extra);
        Self {
            floor_flops: ratio(model_flops, distiller_flops + expected_flops),
            floor_bytes: ratio(model_bytes, distiller_bytes + expected_bytes),
        }
    }
}
