//! What `benches/compare.sh` asks of every program that it compares.

use std::{
    error::Error,
    io::{self, BufRead, Write},
};

use esamp::TokenId;

/// Prints `ready`, then answers each line `ROWS PROMPT_IDS NEW_TOKENS` on standard input (ids separated by commas) with
/// `SECONDS TOKENS`: what `generate` returns for them, the time of the decode steps after the second token and the new
/// tokens of the first row.
pub fn answer(
    mut generate: impl FnMut(usize, Vec<TokenId>, usize) -> Result<(f64, Vec<TokenId>), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let [rows, prompt, new_tokens] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("expected ROWS PROMPT_IDS NEW_TOKENS, got {line:?}").into());
        };
        let prompt = prompt.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let (seconds, tokens) = generate(rows.parse()?, prompt, new_tokens.parse()?)?;
        let tokens: Vec<String> = tokens.iter().map(TokenId::to_string).collect();
        writeln!(out, "{seconds} {}", tokens.join(","))?;
        out.flush()?;
    }
    Ok(())
}
