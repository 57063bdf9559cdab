//! The model: forward passes with taps.

use std::{path::Path, sync::Arc};

use burn::tensor::{Device, Int, Tensor, TensorData};
use esamp::{
    CacheLimits, CausalLm, HeadRows, HiddenStateTap, LmHead, PairTap, TapSite, errors::ModelError,
};

use crate::{
    cache::{Engine, LlamaCppCache, Lost, Row},
    error::LlamaCppError,
    ffi::Context,
    options::Options,
    pass::Pass,
};

/// A model that llama.cpp computes.
///
/// The model owns one llama.cpp context; see [`LlamaCppCache`] for how its caches share it. Several threads may use
/// one model: their forward passes take turns. A clone is the same model.
///
/// Hidden states and logits are copied to tensors of burn's flex backend, on which the distillers run. The hidden
/// states are those of [`TapSite`]: `AfterBlock(i)` is llama.cpp's tensor `l_out-i`, `HeadInput` its `result_norm`.
#[derive(Clone)]
pub struct LlamaCpp {
    engine: Arc<Engine>,
    head: HeadRows<'static>,
    d_model: usize,
    vocab: usize,
    layers: usize,
    context_length: usize,
    limits: CacheLimits,
}

/// The part of the largest logit by which llama.cpp's logits may differ from those that the LM head makes of the
/// tapped state. Quantised activations cause about 0.01. A scale of the logits or a wrong tensor causes far more.
const HEAD_TOLERANCE: f32 = 0.1;

impl LlamaCpp {
    /// Loads a GGUF file, and reads one token to check that both hidden states can be tapped and that the LM head makes
    /// the logits from the deep one.
    ///
    /// The LM head, or the embedding matrix of a model that ties the two, is read a second time and kept packed, as in
    /// the file ([`HeadRows::from_gguf`]). llama.cpp's logits differ from its product with the deep state by the
    /// rounding of quantised activations, which is not taken for novelty.
    ///
    /// Our own reader checks the structure of the file first, but llama.cpp trusts what it describes, and ends the
    /// process where an assertion of its own fails: load only files whose origin you trust.
    ///
    /// # Errors
    ///
    /// [`LlamaCppError::Option`] for an option out of range; [`LlamaCppError::Load`] for a file that is no GGUF or
    /// whose head cannot be read; [`LlamaCppError::UnsupportedModel`] for a model with recurrent layers, an encoder
    /// or a head that is not linear; [`LlamaCppError::Tap`] for one whose hidden states have no name in llama.cpp;
    /// [`LlamaCppError::Setup`] when llama.cpp refuses the file or lacks memory.
    pub fn load(path: impl AsRef<Path>, options: &Options) -> Result<Self, LlamaCppError> {
        options.check()?;
        // Our own reader comes first: it checks what it reads, and its errors say what is wrong with the file.
        let head = HeadRows::from_gguf(path.as_ref())?;
        let context = Context::load(path.as_ref(), options, true)?;
        if !context.has_cache() {
            let got = "one without a KV cache, such as an encoder".to_owned();
            let expected = "a model that decodes one token after another";
            return Err(LlamaCppError::UnsupportedModel { expected, got });
        }
        let (d_model, vocab) = (context.d_model, context.vocab);
        if head.shape() != Some([d_model, vocab]) {
            let [own_width, own_vocab] = head.shape().unwrap_or_default();
            let got =
                format!("{:?}, where llama.cpp has {:?}", [own_vocab, own_width], [vocab, d_model]);
            let expected = "an LM head of shape [vocab, d_model]";
            return Err(LlamaCppError::UnsupportedModel { expected, got });
        }
        let layers = context.layers;
        let trained_length = context.trained_length.unwrap_or(usize::MAX);
        let context_length = context.cells_of_a_row.min(trained_length);
        // Separate buffers have room for `context_length` tokens in every row.
        let tokens = if options.unified_cache { context.cells } else { usize::MAX };
        let limits = CacheLimits { rows: options.max_rows, tokens };
        let logit_scale = context.logit_scale;
        let engine = Arc::new(Engine::new(context, options));
        let mut model = Self { engine, head, d_model, vocab, layers, context_length, limits };
        model.check_taps_and_head(logit_scale)?;
        Ok(model)
    }

    /// Number of transformer blocks.
    pub fn n_layers(&self) -> usize {
        self.layers
    }

    /// Checks that both states can be tapped and that the head makes the logits of the deep one. Some architectures
    /// multiply the logits by `logit_scale`, others divide by it: the head takes the scale that fits.
    fn check_taps_and_head(&mut self, logit_scale: Option<f32>) -> Result<(), LlamaCppError> {
        let (mut cache, tap) = (self.new_cache(), PairTap::default());
        let pass = self.read(&[0], [1, 1], &mut cache, &tap)?;
        // Blocks come first, see `Pass`.
        let Some((TapSite::HeadInput, deep)) = pass.states.into_iter().last() else {
            return Ok(());
        };
        let deep = Tensor::from_data(TensorData::new(deep, [1, self.d_model]), &Device::flex());
        let of_head = self.head.logits(deep).into_data().try_into_vec::<f32>().unwrap_or_default();
        let largest = |numbers: &mut dyn Iterator<Item = f32>| {
            // Not `f32::max`, which would ignore a NaN.
            numbers.fold(0.0, |max: f32, x| if x.is_nan() || x.abs() > max { x.abs() } else { max })
        };
        let allowed = HEAD_TOLERANCE * largest(&mut pass.logits.iter().copied());
        let difference = |scale: f32| {
            let pairs = pass.logits.iter().zip(&of_head);
            largest(&mut pairs.map(|(theirs, ours)| theirs - scale * ours))
        };
        let scales = logit_scale.map_or(vec![1.0], |scale| vec![scale, scale.recip()]);
        let fitting =
            scales.iter().copied().min_by(|&a, &b| difference(a).total_cmp(&difference(b)));
        let scale = fitting.unwrap_or(1.0);
        let difference = difference(scale);
        if of_head.len() == self.vocab && difference <= allowed {
            if scale != 1.0 {
                self.head = self.head.clone().with_scale(scale);
            }
            return Ok(());
        }
        Err(LlamaCppError::UnsupportedModel {
            expected: "logits that the LM head makes from `result_norm` (W·x alone)",
            got: format!(
                "some that differ by up to {difference}, where rounding explains {allowed}"
            ),
        })
    }

    /// Reads `tokens`, `[rows, seq]`. On an error the cache is as before.
    fn read(
        &self,
        tokens: &[i64],
        [rows, seq]: [usize; 2],
        cache: &mut LlamaCppCache,
        tap: &dyn HiddenStateTap,
    ) -> Result<Pass, LlamaCppError> {
        let mut state = self.engine.lock();
        let is_new = cache.rows.is_empty();
        if is_new {
            // They belong to the cache from here on, which releases them when it is dropped.
            let ids = state.take(rows)?;
            cache.rows = ids.into_iter().map(|sequence| Row { sequence, len: 0 }).collect();
        }
        let mut pass = Pass::new([rows, seq], [self.d_model, self.vocab], self.layers, tap);
        if let Err(error) = pass.run(&mut state, &cache.rows, tokens) {
            // A pass of several batches may have got part of the way.
            for row in &cache.rows {
                state.truncate(row.sequence, row.len);
            }
            cache.lost = state.lost(&cache.rows);
            if is_new {
                state.release_all(&mut cache.rows);
            }
            return Err(error);
        }
        drop(state);
        for row in &mut cache.rows {
            row.len += seq;
        }
        Ok(pass)
    }
}

impl std::fmt::Debug for LlamaCpp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaCpp")
            .field("d_model", &self.d_model)
            .field("vocab", &self.vocab)
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

impl CausalLm for LlamaCpp {
    type Cache = LlamaCppCache;

    fn new_cache(&self) -> LlamaCppCache {
        LlamaCppCache::new(self.engine.clone())
    }

    /// On an error the sequences in the cache are as before.
    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut LlamaCppCache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        let [rows, seq] = tokens.dims();
        if !cache.is_of(&self.engine) {
            let (expected, got) = ("one of this model", "one of another");
            return Err(ModelError::mismatch("key-value cache", expected, got));
        }
        if rows == 0 || seq == 0 {
            let got = format!("{:?}", [rows, seq]);
            return Err(ModelError::mismatch("tokens", "at least one row and one token", got));
        }
        if let Some(Lost { window, kept }) = cache.lost {
            return Err(LlamaCppError::Lost { window, kept }.into());
        }
        if !cache.rows.is_empty() && rows != cache.rows.len() {
            let expected = format!("{} rows", cache.rows.len());
            return Err(ModelError::mismatch("tokens for the key-value cache", expected, rows));
        }
        let got = cache.rows.iter().map(|row| row.len).max().unwrap_or(0) + seq;
        if got > self.context_length {
            return Err(ModelError::ContextFull { limit: self.context_length, got });
        }
        let tokens = tokens.try_into_data()?.convert::<i64>().try_into_vec::<i64>();
        let tokens = tokens.map_err(|error| ModelError::Device(format!("{error:?}")))?;
        if let Some(token) = tokens.iter().find(|&&token| token < 0 || token >= self.vocab as i64) {
            let expected = format!("ids below {}", self.vocab);
            return Err(ModelError::mismatch("tokens", expected, token));
        }

        let pass = self.read(&tokens, [rows, seq], cache, tap)?;
        let device = Device::flex();
        let shape = [rows, pass.shown, self.d_model];
        for (site, values) in pass.states {
            tap.record(site, &Tensor::from_data(TensorData::new(values, shape), &device));
        }
        Ok(Tensor::from_data(TensorData::new(pass.logits, [rows, self.vocab]), &device))
    }

    fn lm_head(&self) -> &dyn LmHead {
        &self.head
    }

    fn device(&self) -> Device {
        Device::flex()
    }

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// The context length that the model was trained with, or the cells of the cache (of one row, if each has a buffer
    /// of its own) if those are fewer.
    fn context_length(&self) -> Option<usize> {
        Some(self.context_length)
    }

    fn cache_limits(&self) -> CacheLimits {
        self.limits
    }
}
