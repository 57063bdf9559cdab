//! The model: forward passes with taps.

use std::{path::Path, sync::Arc};

use burn::tensor::{Device, Int, Tensor, TensorData};
use esamp::{CausalLm, HiddenStateTap, LmHead, TapSite, TiedHead, errors::ModelError};

use crate::{
    cache::{Engine, LlamaCppCache, Row, State},
    error::LlamaCppError,
    ffi::{Context, Entry, Tapped},
    options::Options,
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
    head: TiedHead,
    d_model: usize,
    vocab: usize,
    layers: usize,
    context_length: usize,
}

impl LlamaCpp {
    /// Loads a GGUF file.
    ///
    /// The LM head, or the embedding matrix of a model that ties the two, is read a second time and dequantised to
    /// `f32`, 4·vocab·d_model bytes: 113 MB for SmolLM2-135M, 2.3 GB for GPT-OSS-20B. Its logits differ from
    /// llama.cpp's by the rounding of quantised activations.
    ///
    /// # Errors
    ///
    /// [`LlamaCppError::Option`] for an option out of range; [`LlamaCppError::Load`] for a file that is no GGUF or
    /// whose head cannot be read; [`LlamaCppError::UnsupportedModel`] for a model with recurrent layers, an encoder
    /// or a head that is not linear; [`LlamaCppError::Setup`] when llama.cpp refuses the file or lacks memory.
    pub fn load(path: impl AsRef<Path>, options: &Options) -> Result<Self, LlamaCppError> {
        options.check()?;
        // Our own reader comes first: it checks what it reads, and its errors say what is wrong with the file.
        let head = TiedHead::from_gguf(path.as_ref(), &Device::flex())?;
        let context = Context::load(path.as_ref(), options)?;
        let (d_model, vocab) = (context.d_model, context.vocab);
        if head.shape() != Some([d_model, vocab]) {
            let got = format!("{:?}", head.weight().dims());
            let expected = "an LM head of shape [vocab, d_model]";
            return Err(LlamaCppError::UnsupportedModel { expected, got });
        }
        let (layers, context_length) = (context.layers, context.cells_of_a_row);
        let engine = Arc::new(Engine::new(context, options.max_rows));
        Ok(Self { engine, head, d_model, vocab, layers, context_length })
    }

    /// Number of transformer blocks.
    pub fn n_layers(&self) -> usize {
        self.layers
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

    /// On an error the cache is as before.
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
        let is_new = cache.rows.is_empty();
        if !is_new && rows != cache.rows.len() {
            let expected = format!("{} rows", cache.rows.len());
            return Err(ModelError::mismatch("tokens for the key-value cache", expected, rows));
        }
        let got = cache.rows.iter().map(|row| row.len).max().unwrap_or(0) + seq;
        if got > self.context_length {
            return Err(ModelError::ContextFull { limit: self.context_length, got });
        }
        let tokens = tokens.try_into_data()?.convert::<i64>().try_into_vec::<i64>();
        let tokens = tokens.map_err(|error| ModelError::Device(format!("{error:?}")))?;

        let mut state = self.engine.lock();
        if is_new {
            // They belong to the cache from here on, which releases them when it is dropped.
            let ids = state.take(rows)?;
            cache.rows = ids.into_iter().map(|sequence| Row { sequence, len: 0 }).collect();
        }
        let mut pass = Pass::new(self, [rows, seq], tap);
        let read = pass.run(&mut state, &cache.rows, &tokens);
        if let Err(error) = read {
            // A pass of several batches may have got part of the way.
            for row in &cache.rows {
                state.truncate(row.sequence, row.len);
            }
            return Err(error.into());
        }
        drop(state);
        for row in &mut cache.rows {
            row.len += seq;
        }
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

    /// The cells of the whole cache if it is unified, those of one row otherwise.
    fn context_length(&self) -> Option<usize> {
        Some(self.context_length)
    }
}

/// One forward pass: where its results go.
struct Pass {
    seq: usize,
    d_model: usize,
    vocab: usize,
    /// Positions of each row whose states are wanted: the last, or all.
    shown: usize,
    /// `[rows, vocab]`.
    logits: Vec<f32>,
    /// The wanted sites with their states, `[rows, shown, d_model]`. Blocks come first, in order.
    states: Vec<(TapSite, Vec<f32>)>,
}

impl Pass {
    fn new(model: &LlamaCpp, [rows, seq]: [usize; 2], tap: &dyn HiddenStateTap) -> Self {
        let shown = if tap.wants_all_positions() { seq } else { 1 };
        let sites = (0..model.layers).map(TapSite::AfterBlock).chain([TapSite::HeadInput]);
        let empty = || vec![0.0; rows * shown * model.d_model];
        let states = sites.filter(|&site| tap.wants(site)).map(|site| (site, empty())).collect();
        let logits = vec![0.0; rows * model.vocab];
        Self { seq, d_model: model.d_model, vocab: model.vocab, shown, logits, states }
    }

    fn run(
        &mut self,
        state: &mut State,
        rows: &[Row],
        tokens: &[i64],
    ) -> Result<(), LlamaCppError> {
        // The callback sees rows in the order in which llama.cpp computes them. That is the order of the batch if it
        // is sorted by sequence id and no sequence has several tokens beside another one.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| rows[row].sequence);
        let rows_at_once = if self.seq == 1 { rows.len() } else { 1 };
        let limit = state.context.batch;
        for group in order.chunks(rows_at_once) {
            let places: Vec<(usize, usize)> =
                group.iter().flat_map(|&row| (0..self.seq).map(move |at| (row, at))).collect();
            for places in places.chunks(limit) {
                self.read(state, rows, tokens, places)?;
            }
        }
        Ok(())
    }

    /// Reads the tokens at `places`, pairs of a row and a position in this pass, as one batch.
    fn read(
        &mut self,
        state: &mut State,
        rows: &[Row],
        tokens: &[i64],
        places: &[(usize, usize)],
    ) -> Result<(), LlamaCppError> {
        let (seq, first_shown) = (self.seq, self.seq - self.shown);
        let entry = |&(row, at): &(usize, usize)| Entry {
            token: tokens[row * seq + at] as i32,
            position: (rows[row].len + at) as i32,
            sequence: rows[row].sequence,
            output: at >= first_shown,
        };
        let entries: Vec<Entry> = places.iter().map(entry).collect();
        let outputs = entries.iter().filter(|entry| entry.output).count();
        let blocks = self.states.iter().filter_map(|(site, _)| match site {
            TapSite::AfterBlock(block) if outputs > 0 => Some(format!("l_out-{block}")),
            _ => None,
        });
        let blocks = blocks.collect();
        let head_input = self.states.iter().any(|(site, _)| *site == TapSite::HeadInput);
        let tapped = state.context.decode(&entries, blocks, head_input && outputs > 0)?;
        let missing = |name: &str| LlamaCppError::Tap {
            name: name.to_owned(),
            expected: entries.len().to_string(),
            got: "none".to_owned(),
        };
        let mut output = 0;
        for (index, &(row, at)) in places.iter().enumerate() {
            if !entries[index].output {
                continue;
            }
            if at + 1 == seq {
                let logits = state.context.logits(index).ok_or_else(|| missing("result_output"))?;
                self.logits[row * self.vocab..][..self.vocab].copy_from_slice(logits);
            }
            let to = (row * self.shown + at - first_shown) * self.d_model;
            for (site, (_, values)) in self.states.iter_mut().enumerate() {
                let from = match tapped.get(site) {
                    Some(tapped) => {
                        row_of(tapped, index, output, [entries.len(), outputs], self.d_model)?
                    }
                    None => {
                        state.context.head_input(index).ok_or_else(|| missing("result_norm"))?
                    }
                };
                values[to..][..self.d_model].copy_from_slice(from);
            }
            output += 1;
        }
        Ok(())
    }
}

/// The state of one output in a copied tensor, which has a row per token, or per output after llama.cpp has dropped
/// the other positions, as it does in the last block.
fn row_of(
    tapped: &Tapped,
    index: usize,
    output: usize,
    [tokens, outputs]: [usize; 2],
    d_model: usize,
) -> Result<&[f32], LlamaCppError> {
    let rows = tapped.values.len() / tapped.width.max(1);
    let at = match rows {
        _ if tapped.width != d_model => None,
        rows if rows == tokens => Some(index),
        rows if rows == outputs => Some(output),
        _ => None,
    };
    at.map(|at| &tapped.values[at * d_model..][..d_model]).ok_or_else(|| LlamaCppError::Tap {
        name: tapped.name.clone(),
        expected: format!("{tokens} or {outputs} rows of {d_model} numbers"),
        got: format!("{rows} of {}", tapped.width),
    })
}
