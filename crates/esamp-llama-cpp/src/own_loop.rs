//! llama.cpp's own way from a prompt to tokens, which tests and the bench compare this crate with.

use std::path::Path;

use esamp::TokenId;

use crate::{
    error::LlamaCppError,
    ffi::{self, Chain, Context, Entry},
    options::Options,
};

/// The instructions and devices that llama.cpp was built for.
pub fn system_info() -> String {
    ffi::system_info()
}

/// A decode loop with llama.cpp's tokenizer and samplers and without taps. For comparisons.
#[derive(Debug)]
pub struct OwnLoop {
    context: Context,
    max_rows: usize,
    /// The best token if `None`; otherwise draws at temperature 1 after this min-p.
    min_p: Option<f32>,
    /// Tokens of the prompt.
    prompt: usize,
    rows: Vec<OwnRow>,
    /// The tensors that decode steps copy, and drop.
    taps: Vec<String>,
}

#[derive(Debug)]
struct OwnRow {
    chain: Chain,
    /// The tokens after the prompt.
    tokens: Vec<i32>,
}

impl OwnLoop {
    /// Loads a GGUF file for greedy decoding, or for sampling after min-p.
    ///
    /// # Errors
    ///
    /// As for [`LlamaCpp::load`](crate::LlamaCpp::load).
    pub fn load(
        path: impl AsRef<Path>,
        options: &Options,
        min_p: Option<f32>,
    ) -> Result<Self, LlamaCppError> {
        options.check()?;
        let context = Context::load(path.as_ref(), options, false)?;
        Ok(Self::with(context, options, min_p, Vec::new()))
    }

    /// Loads one that also copies the two hidden states of every decode step, to measure what that costs.
    ///
    /// # Errors
    ///
    /// As for [`load`](Self::load).
    pub fn load_tapped(
        path: impl AsRef<Path>,
        options: &Options,
        min_p: Option<f32>,
    ) -> Result<Self, LlamaCppError> {
        options.check()?;
        let taps = vec!["l_out-0".to_owned(), "result_norm".to_owned()];
        let context = Context::load(path.as_ref(), options, true)?;
        Ok(Self::with(context, options, min_p, taps))
    }

    fn with(
        mut context: Context,
        options: &Options,
        min_p: Option<f32>,
        taps: Vec<String>,
    ) -> Self {
        let max_rows = options.max_rows;
        // As in llama.cpp's own programs.
        context.rests = false;
        Self { context, max_rows, min_p, prompt: 0, rows: Vec::new(), taps }
    }

    /// The tokens of a text, in which special tokens are recognised; with BOS if `add_special` and the model wants it.
    /// `None` if llama.cpp has no tokenizer for the model.
    pub fn tokenize(&self, text: &str, add_special: bool) -> Option<Vec<TokenId>> {
        let tokens = self.context.tokenize(text, add_special)?;
        Some(tokens.into_iter().map(|token| token as TokenId).collect())
    }

    /// Reads a prompt for `rows` rows and draws their first tokens. Drops the rows before.
    ///
    /// # Errors
    ///
    /// [`LlamaCppError::TooManyRows`], and those of `llama_decode`.
    pub fn start(&mut self, prompt: &[TokenId], rows: usize) -> Result<(), LlamaCppError> {
        if rows > self.max_rows {
            return Err(LlamaCppError::TooManyRows { limit: self.max_rows, got: rows });
        }
        for sequence in 0..self.rows.len() {
            self.context.remove(sequence as i32, 0);
        }
        self.rows.clear();
        self.prompt = prompt.len();
        let entry = |(at, &token): (usize, &TokenId)| Entry {
            token: token as i32,
            position: at as i32,
            sequence: 0,
            output: at + 1 == prompt.len(),
        };
        let entries: Vec<Entry> = prompt.iter().enumerate().map(entry).collect();
        let mut last = 0;
        for entries in entries.chunks(self.context.batch) {
            self.context.decode(entries, Vec::new())?;
            last = entries.len() - 1;
        }
        for row in 0..rows {
            if row > 0 {
                self.context.copy(0, row as i32);
            }
            let chain = Chain::new(self.min_p, row as u32).ok_or_else(no_chain)?;
            self.rows.push(OwnRow { chain, tokens: Vec::new() });
            self.draw(row, last)?;
        }
        Ok(())
    }

    /// Reads the last token of every row and draws the next ones.
    ///
    /// # Errors
    ///
    /// Those of `llama_decode`.
    pub fn step(&mut self) -> Result<(), LlamaCppError> {
        let rows = self.rows.iter().enumerate();
        let entries = rows.filter_map(|(sequence, row)| {
            let position = (self.prompt + row.tokens.len() - 1) as i32;
            let token = *row.tokens.last()?;
            Some(Entry { token, position, sequence: sequence as i32, output: true })
        });
        let entries: Vec<Entry> = entries.collect();
        self.context.decode(&entries, self.taps.clone())?;
        (0..entries.len()).try_for_each(|row| self.draw(row, row))
    }

    /// Puts llama.cpp's threads to sleep until the next step, so that they do not take the CPU from another loop.
    pub fn rest(&mut self) {
        self.context.rest();
    }

    /// The tokens of a row after the prompt.
    pub fn tokens(&self, row: usize) -> Vec<TokenId> {
        self.rows[row].tokens.iter().map(|&token| token as TokenId).collect()
    }

    fn draw(&mut self, row: usize, place: usize) -> Result<(), LlamaCppError> {
        let OwnRow { chain, tokens } = &mut self.rows[row];
        tokens.push(self.context.sample(chain, place).ok_or_else(no_chain)?);
        Ok(())
    }
}

fn no_chain() -> LlamaCppError {
    let reason = "no sampler or no logits".to_owned();
    LlamaCppError::Setup { action: "sample", reason }
}
