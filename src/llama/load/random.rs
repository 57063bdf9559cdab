//! Models with random weights, for benchmarks and tests.

use burn::tensor::{DType, Device, Distribution, Tensor};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::{EMBEDDING, HEAD, TensorSource};
use crate::{
    host::{
        is_flex,
        packed::{Codes, LANES, PackedMatrix, PackedRows, Scales},
    },
    llama::error::LoadError,
    llama::{
        Llama, LlamaConfig,
        config::{positive, unusable},
    },
};

impl Llama {
    /// Creates a model with random weights: uniform in ±√(3 / fan-in), norms 1, drawn on the host from `seed`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Key`] if the configuration is inconsistent.
    pub fn random(config: LlamaConfig, seed: u64, device: &Device) -> Result<Self, LoadError> {
        let mut source = RandomSource(ChaCha8Rng::seed_from_u64(seed));
        Self::from_source(config, &mut source, device)
    }

    /// Creates a model with random weights drawn on the device, one matrix at a time, in their final precision.
    /// Intended for benchmarks of shapes whose `f32` weights would take minutes to draw on the host or would not fit
    /// in memory.
    ///
    /// The distribution is that of [`random`](Self::random), but the numbers differ, also between backends. The
    /// logits of `random` are flat: their standard deviation is 1 for every shape. Here it is about `logit_std`,
    /// because the LM head is scaled by it (and so is the embedding if it is tied). With 4, min-p 0.05 keeps about 10
    /// to 20 of 50,000 to 150,000 tokens.
    ///
    /// The device's generator is shared with all other code that draws from it: two models with the same seed are
    /// equal only if nothing else draws in between.
    ///
    /// # Errors
    ///
    /// [`LoadError::Key`] if the configuration is inconsistent, `logit_std` is not a finite number above 0, or
    /// `dtype` is not `f32`, `f16` or `bf16` or is not supported by the device.
    pub fn random_on_device(
        config: LlamaConfig,
        logit_std: f32,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, LoadError> {
        positive("logit_std", logit_std)?;
        // Check before drawing gigabytes.
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(unusable("dtype", "f32, f16 or bf16", format!("{dtype:?}")));
        }
        if !device.supports_dtype(dtype) {
            return Err(unusable("dtype", "a type that the device has", format!("{dtype:?}")));
        }
        device.seed(seed);
        let bound = Bound::new(&config, logit_std);
        let mut source = DeviceSource { bound, dtype };
        let model = Self::from_source(config, &mut source, device)?;
        // Casts norms and biases. Tensors that already have the type are unchanged.
        model.cast(dtype).map_err(|error| unusable("dtype", "a type for every tensor", error))
    }

    /// Creates a model with random weights of four bits each, in groups of 32 with a scale and a least number as in GGUF's
    /// kind Q4_K. Intended for benchmarks: 4.75 bits a weight, so a shape of 7 billion weights takes 4.5 GB.
    ///
    /// The codes are uniform and the weights so in ±√(3 / fan-in); `logit_std` is that of
    /// [`random_on_device`](Self::random_on_device). Norms and biases are 1.
    ///
    /// # Errors
    ///
    /// [`LoadError::Key`] if the configuration is inconsistent, `logit_std` is not a finite number above 0, the device is
    /// not `flex`, which alone multiplies with packed weights, or the width of a matrix is not a multiple of 32.
    pub fn random_packed(
        config: LlamaConfig,
        logit_std: f32,
        seed: u64,
        device: &Device,
    ) -> Result<Self, LoadError> {
        positive("logit_std", logit_std)?;
        if !is_flex(device) {
            return Err(unusable("device", "flex, for packed weights", format!("{device:?}")));
        }
        let bound = Bound::new(&config, logit_std);
        let mut source = PackedSource { bound, rng: ChaCha8Rng::seed_from_u64(seed) };
        Self::from_source(config, &mut source, device)
    }
}

struct RandomSource(ChaCha8Rng);

impl TensorSource for RandomSource {
    fn take(&mut self, _name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(match *shape {
            [rows, columns] => {
                let bound = (3.0 / columns as f32).sqrt();
                (0..rows * columns).map(|_| self.0.random_range(-bound..bound)).collect()
            }
            _ => ones(shape),
        })
    }
}

fn ones(shape: &[usize]) -> Vec<f32> {
    vec![1.0; shape.iter().product()]
}

/// The bound of a matrix's weights, so that the logits have a given standard deviation.
struct Bound {
    /// Name of the matrix that produces the logits.
    head: &'static str,
    logit_std: f32,
}

impl Bound {
    fn new(config: &LlamaConfig, logit_std: f32) -> Self {
        Self { head: if config.tied_embeddings { EMBEDDING } else { HEAD }, logit_std }
    }

    fn of(&self, name: &str, columns: usize) -> f64 {
        let std = if name == self.head { self.logit_std } else { 1.0 };
        f64::from(std) * (3.0 / columns as f64).sqrt()
    }
}

/// Draws matrices on the device.
struct DeviceSource {
    bound: Bound,
    dtype: DType,
}

impl TensorSource for DeviceSource {
    fn take(&mut self, _name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(ones(shape))
    }

    fn take_matrices(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
        device: &Device,
    ) -> Result<Tensor<2>, LoadError> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        // The head is never one of several parts.
        let bound = self.bound.of(parts.first().map_or("", |(name, _)| name), columns);
        // Draw in f32 for every type: some generators do not support all types.
        let uniform = Distribution::Uniform(-bound, bound);
        let weights = Tensor::<2>::random([rows, columns], uniform, (device, DType::F32));
        Ok(weights.cast(self.dtype))
    }
}

/// Draws the bits of packed matrices.
struct PackedSource {
    bound: Bound,
    rng: ChaCha8Rng,
}

impl TensorSource for PackedSource {
    fn take(&mut self, _name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(ones(shape))
    }

    fn take_packed(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Option<PackedMatrix>, LoadError> {
        /// Numbers of a group.
        const GROUP: usize = 32;
        /// Groups of a block.
        const GROUPS: usize = 8;
        /// Codes of a word.
        const CODES: usize = 8;
        /// The greatest integer of a group.
        const MOST: u8 = 63;
        if !columns.is_multiple_of(GROUP) {
            return Err(unusable("width of a packed matrix", "a multiple of 32", columns));
        }
        let Self { bound, rng } = self;
        let parts = parts.iter().map(|&(name, rows)| {
            let words_of_row = columns.div_ceil(LANES * CODES) * LANES;
            let words = (0..rows * words_of_row).map(|_| rng.random()).collect();
            let groups = rows * columns / GROUP;
            let bound = bound.of(name, columns) as f32 / f32::from(MOST);
            let scales = Scales::Blocks {
                integers: vec![[MOST; 2]; groups],
                blocks: vec![[bound * 2.0 / 15.0, bound]; groups.div_ceil(GROUPS)],
            };
            PackedRows { rows, codes: Codes::Four(words, scales) }
        });
        Ok(Some(PackedMatrix::new(columns, parts.collect())))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Int;

    use super::*;
    use crate::{CausalLm, NoTap, llama::RopeScaling};

    fn shape(tied_embeddings: bool) -> LlamaConfig {
        LlamaConfig {
            d_model: 64,
            d_hidden: 96,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
            vocab_size: 4096,
            context_length: 16,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            tied_embeddings,
            qkv_bias: true,
            o_bias: false,
            qk_norm: false,
        }
    }

    /// A logit is a sum over the width of independent weights times a state whose squares sum to the width, so its
    /// variance is that of `width` weights, `logit_std²`.
    #[test]
    fn logits_have_the_requested_deviation() {
        let device = Device::flex();
        for (tied, std) in [(false, 1.0), (false, 4.0), (true, 4.0)] {
            let model = Llama::random_on_device(shape(tied), std, 5, DType::F32, &device);
            let model = model.unwrap();
            let tokens = Tensor::<1, Int>::from_data([3, 1, 4], &device).unsqueeze::<2>();
            let logits = model.forward(tokens, &mut model.new_cache(), &mut NoTap).unwrap();
            let logits: Vec<f32> = logits.into_data().try_into_vec().unwrap();
            let square = logits.iter().map(|logit| logit * logit).sum::<f32>() / 4096.0;
            // 4096 draws give the deviation to within about 1.1 %. A tied head also sees the token's own row.
            assert!((square.sqrt() / std - 1.0).abs() < 0.06, "{tied} {std}: {}", square.sqrt());
        }
    }

    #[test]
    fn weights_are_drawn_in_their_final_type() {
        let device = Device::flex();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let model = Llama::random_on_device(shape(false), 4.0, 5, dtype, &device).unwrap();
            assert_eq!(model.kv_bytes_per_token(), 2 * 2 * 2 * 16 * dtype.size());
            let tokens = Tensor::<1, Int>::from_data([3], &device).unsqueeze::<2>();
            let logits = model.forward(tokens, &mut model.new_cache(), &mut NoTap).unwrap();
            assert_eq!((logits.dims(), logits.dtype()), ([1, 4096], dtype));
        }
    }

    #[test]
    fn packed_weights_are_as_many_bits_and_as_wide_as_they_say() {
        let device = Device::flex();
        for std in [1.0, 4.0] {
            let model = Llama::random_packed(shape(false), std, 5, &device).unwrap();
            // Embedding and head, and for both blocks q, k, v, output, gate, up and down. A row of 64 or 96 codes takes 16
            // words, which have room for 128.
            let rows = 2 * 4096 + 2 * (64 + 32 + 32 + 64 + 2 * 96 + 64);
            let scales = |numbers: usize| 2 * (numbers / 32) + 8 * (numbers / 256);
            let numbers = 64 * 2 * 4096 + 2 * 64 * (64 + 32 + 32 + 64 + 2 * 96) + 2 * 96 * 64;
            assert_eq!(model.weight_bytes(), rows * 64 + scales(numbers));
            let tokens = Tensor::<1, Int>::from_data([3, 1, 4], &device).unsqueeze::<2>();
            let logits = model.forward(tokens, &mut model.new_cache(), &mut NoTap).unwrap();
            let logits: Vec<f32> = logits.into_data().try_into_vec().unwrap();
            let square = logits.iter().map(|logit| logit * logit).sum::<f32>() / 4096.0;
            assert!((square.sqrt() / std - 1.0).abs() < 0.1, "{std}: {}", square.sqrt());
        }
        let mut config = shape(false);
        config.d_hidden = 72;
        let error = Llama::random_packed(config, 4.0, 5, &device).unwrap_err().to_string();
        assert_eq!(error, "key width of a packed matrix: expected a multiple of 32, got 72");
    }

    #[test]
    fn a_model_that_cannot_be_drawn_is_refused() {
        let device = Device::flex();
        let refused = |std: f32, dtype: DType| {
            Llama::random_on_device(shape(false), std, 5, dtype, &device).unwrap_err().to_string()
        };
        for std in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let expected = format!("key logit_std: expected a finite number above 0, got {std}");
            assert_eq!(refused(std, DType::F32), expected);
        }
        assert_eq!(refused(4.0, DType::F64), "key dtype: expected f32, f16 or bf16, got F64");
        let mut config = shape(false);
        config.n_kv_heads = 3;
        let error = Llama::random_on_device(config, 4.0, 5, DType::F32, &device).unwrap_err();
        assert_eq!(error.to_string(), "key n_kv_heads: expected a divisor of 4 heads, got 3");
    }
}
