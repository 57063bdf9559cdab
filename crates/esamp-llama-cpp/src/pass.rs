//! One forward pass: batches for llama.cpp, and where their results go.

use esamp::{HiddenStateTap, TapSite};

use crate::{
    cache::{Row, State},
    error::LlamaCppError,
    ffi::{Entry, Tapped},
};

/// One forward pass over `[rows, seq]` tokens.
pub(crate) struct Pass {
    rows: usize,
    seq: usize,
    d_model: usize,
    vocab: usize,
    /// Positions of each row whose states are wanted: the last, or all.
    pub(crate) shown: usize,
    /// `[rows, vocab]`.
    pub(crate) logits: Vec<f32>,
    /// The wanted sites with their states, `[rows, shown, d_model]`. Blocks come first, in order.
    pub(crate) states: Vec<(TapSite, Vec<f32>)>,
}

/// A token of the pass: its row, and its position in the pass.
type Place = (usize, usize);

impl Pass {
    pub(crate) fn new(
        [rows, seq]: [usize; 2],
        [d_model, vocab]: [usize; 2],
        layers: usize,
        tap: &dyn HiddenStateTap,
    ) -> Self {
        let shown = if tap.wants_all_positions() { seq } else { 1 };
        let sites = (0..layers).map(TapSite::AfterBlock).chain([TapSite::HeadInput]);
        let empty = || vec![0.0; rows * shown * d_model];
        let states = sites.filter(|&site| tap.wants(site)).map(|site| (site, empty())).collect();
        // Filled row by row: zeros that are overwritten would cost as much as the copies.
        let logits = Vec::with_capacity(rows * vocab);
        Self { rows, seq, d_model, vocab, shown, logits, states }
    }

    /// Reads `tokens`, `[rows, seq]`, with the sequences of `rows`.
    ///
    /// The callback sees rows in the order in which llama.cpp computes them. That is the order of the batch if it is
    /// sorted by sequence id and no sequence has several tokens alongside another one; with separate buffers, llama.cpp
    /// reorders any other batch.
    pub(crate) fn run(
        &mut self,
        state: &mut State,
        rows: &[Row],
        tokens: &[i64],
    ) -> Result<(), LlamaCppError> {
        if self.seq > 1 {
            return self.run_row_by_row(state, rows, tokens);
        }
        let mut order: Vec<usize> = (0..self.rows).collect();
        order.sort_unstable_by_key(|&row| rows[row].sequence);
        let places: Vec<Place> = order.iter().map(|&row| (row, 0)).collect();
        self.read(state, rows, tokens, &places)?;
        let mut place_of = vec![0; self.rows];
        for (place, row) in order.into_iter().enumerate() {
            place_of[row] = place;
        }
        place_of.into_iter().try_for_each(|place| self.keep_logits(state, place))
    }

    fn run_row_by_row(
        &mut self,
        state: &mut State,
        rows: &[Row],
        tokens: &[i64],
    ) -> Result<(), LlamaCppError> {
        let all = self.shown > 1 && !self.states.is_empty();
        let limit = if all { state.context.outputs } else { state.context.batch };
        for row in 0..self.rows {
            let places: Vec<Place> = (0..self.seq).map(|at| (row, at)).collect();
            for places in places.chunks(limit) {
                self.read(state, rows, tokens, places)?;
            }
            self.keep_logits(state, (self.seq - 1) % limit)?;
        }
        Ok(())
    }

    /// Appends the logits of a token of the last batch.
    fn keep_logits(&mut self, state: &mut State, place: usize) -> Result<(), LlamaCppError> {
        let logits = state.context.logits(place).ok_or_else(|| LlamaCppError::Tap {
            name: "result_output".to_owned(),
            expected: format!("{} logits", self.vocab),
            got: "none".to_owned(),
        })?;
        self.logits.extend_from_slice(logits);
        Ok(())
    }

    /// Reads the tokens at `places` as one batch, and keeps the states that are wanted.
    fn read(
        &mut self,
        state: &mut State,
        rows: &[Row],
        tokens: &[i64],
        places: &[Place],
    ) -> Result<(), LlamaCppError> {
        let (seq, d_model) = (self.seq, self.d_model);
        // Without states to keep, only the logits of the last position are wanted.
        let shown = if self.states.is_empty() { 1 } else { self.shown };
        let first_shown = seq - shown;
        let entry = |&(row, at): &Place| Entry {
            token: tokens[row * seq + at] as i32,
            position: (rows[row].len + at) as i32,
            sequence: rows[row].sequence,
            output: at >= first_shown,
        };
        let entries: Vec<Entry> = places.iter().map(entry).collect();
        let outputs = entries.iter().filter(|entry| entry.output).count();
        let names = self.states.iter().map(|(site, _)| match site {
            TapSite::AfterBlock(block) => format!("l_out-{block}"),
            // `HeadInput`: `new` keeps no other sites.
            _ => "result_norm".to_owned(),
        });
        // A part of a prompt that shows nothing.
        let names = if outputs == 0 { Vec::new() } else { names.collect() };
        let tapped = state.context.decode(&entries, names)?;
        for (tapped, (_, values)) in tapped.iter().zip(&mut self.states) {
            let is_per_token = is_per_token(tapped, [places.len(), outputs], d_model)?;
            let mut output = 0;
            for (index, &(row, at)) in places.iter().enumerate() {
                if !entries[index].output {
                    continue;
                }
                let from = if is_per_token { index } else { output };
                let to = row * shown + at - first_shown;
                values[to * d_model..][..d_model]
                    .copy_from_slice(&tapped.values[from * d_model..][..d_model]);
                output += 1;
            }
        }
        Ok(())
    }
}

/// Whether a copied tensor has a row per token. Otherwise it has one per output: in the last block, most architectures
/// drop the positions that are none.
fn is_per_token(
    tapped: &Tapped,
    [tokens, outputs]: [usize; 2],
    d_model: usize,
) -> Result<bool, LlamaCppError> {
    let rows = tapped.values.len() / tapped.width.max(1);
    if tapped.width == d_model && (rows == tokens || rows == outputs) {
        return Ok(rows == tokens);
    }
    let expected = format!("{tokens} or {outputs} rows of {d_model} numbers");
    let got = if rows == 0 { "none".to_owned() } else { format!("{rows} of {}", tapped.width) };
    Err(LlamaCppError::Tap { name: tapped.name.clone(), expected, got })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{ffi::Context, options::Options};

    #[test]
    fn a_state_that_the_model_does_not_compute_is_an_error() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/qwen2.gguf");
        let options = Options::new().with_threads(1).with_cells(256).with_max_rows(2);
        let mut context = Context::load(&path, &options, true).unwrap();
        let entries =
            [0, 1].map(|sequence| Entry { token: 7, position: 0, sequence, output: sequence == 1 });
        let names = ["l_out-0", "l_out-1", "l_out-2"].map(str::to_owned).to_vec();
        let tapped = context.decode(&entries, names).unwrap();
        // The first has a row per token, the last block's one per output.
        assert!(is_per_token(&tapped[0], [2, 1], 64).unwrap());
        assert!(!is_per_token(&tapped[1], [2, 1], 64).unwrap());
        let message = |at: usize, width: usize| {
            is_per_token(&tapped[at], [2, 1], width).unwrap_err().to_string()
        };
        let expected = "tensor l_out-2: expected 2 or 1 rows of 64 numbers, got none";
        assert_eq!(message(2, 64), expected);
        let expected = "tensor l_out-0: expected 2 or 1 rows of 32 numbers, got 2 of 64";
        assert_eq!(message(0, 32), expected);
    }
}
