//! Plain greedy decoding with candle-transformers' Llama, for `benches/compare.sh`.
//!
//! Takes a folder with `model.safetensors` and `config.json`, prints `ready`, and then answers each line
//! `ROWS PROMPT_IDS NEW_TOKENS` (ids separated by commas) with `SECONDS TOKENS`: the time of the decode
//! steps alone, and the new tokens of the first row.

use std::{
    io::{BufRead, Write},
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaEosToks};

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("expected a folder, got nothing")?;
    let folder = Path::new(&folder);
    let device = Device::Cpu;
    let config = config();
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &device)?;
    let weights = VarBuilder::from_tensors(weights, DType::F32, &device);
    let model = Llama::load(weights, &config)?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let mut word = || words.next().context("expected ROWS PROMPT_IDS NEW_TOKENS, got less");
        let rows: usize = word()?.parse()?;
        let prompt: Vec<u32> = word()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let new_tokens: usize = word()?.parse()?;

        let mut cache = Cache::new(true, DType::F32, &config, &device)?;
        let input = Tensor::from_vec(prompt.repeat(rows), (rows, prompt.len()), &device)?;
        let mut logits = model.forward(&input, 0, &mut cache)?;
        let mut tokens = Vec::new();
        let mut seconds = 0.0;
        for step in 0..new_tokens {
            let started = Instant::now();
            if step > 0 {
                let last = Tensor::from_vec(vec![tokens[step - 1]; 1], (1, 1), &device)?;
                let last = last.expand((rows, 1))?.contiguous()?;
                logits = model.forward(&last, prompt.len() + step - 1, &mut cache)?;
            }
            let chosen = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
            tokens.push(chosen[0]);
            if step > 1 {
                seconds += started.elapsed().as_secs_f64();
            }
        }
        let tokens: Vec<String> = tokens.iter().map(u32::to_string).collect();
        writeln!(out, "{seconds} {}", tokens.join(","))?;
        out.flush()?;
    }
    Ok(())
}

/// The configuration of SmolLM2-135M-Instruct.
fn config() -> Config {
    Config {
        hidden_size: 576,
        intermediate_size: 1536,
        vocab_size: 49_152,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 100_000.0,
        bos_token_id: Some(1),
        eos_token_id: Some(LlamaEosToks::Single(2)),
        rope_scaling: None,
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
    }
}
