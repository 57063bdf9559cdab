//! ESamp in an engine that hands over slices: no tensor appears in this program. The engine is a toy, a recurrent
//! network with random weights; see the guide's chapter "ESamp in an engine of yours".
//!
//! ```sh
//! cargo run --release --example your_engine
//! ```

use std::error::Error;
use std::io::{self, Write};

use esamp::rand::{RngExt, SeedableRng, rngs::StdRng};
use esamp::{
    CompletionId, DrawKey, HeadRows, HiddenStates, SamplerConfig, Sampling, StepInput, StepRow,
    TokenId,
};

const VOCAB: usize = 64;
const D_MODEL: usize = 16;

/// One sequence: what the engine has read, and what it computed from the last token.
#[derive(Clone, Default)]
struct Sequence {
    tokens: Vec<TokenId>,
    shallow: [f32; D_MODEL],
    deep: [f32; D_MODEL],
}

impl Sequence {
    fn read(&mut self, token: TokenId, embedding: &[f32]) {
        let embedding = &embedding[token as usize * D_MODEL..][..D_MODEL];
        let mixed = |i: usize| 0.6 * self.deep[(i + 1) % D_MODEL] + embedding[i];
        self.shallow = std::array::from_fn(mixed);
        self.deep = std::array::from_fn(|i| 2.0 * (2.0 * self.shallow[i]).sin());
        self.tokens.push(token);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut random =
        || -> Vec<f32> { (0..VOCAB * D_MODEL).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let (embedding, head) = (random(), random());
    let prompt: [TokenId; 3] = [1, 2, 3];
    let mut read = Sequence::default();
    prompt.iter().for_each(|&token| read.read(token, &embedding));
    let mut sequences = vec![read; 4];

    let mut sampler = SamplerConfig::for_short_completions().init_on_cpu(D_MODEL)?;
    let sampling = Sampling::default().with_beta(1.0).checked()?;
    let rows_of_head = HeadRows::from_slice(&head, D_MODEL)?;
    for _ in 0..24 {
        let logits: Vec<f32> = sequences.iter().flat_map(|s| logits(&head, &s.deep)).collect();
        let shallow = sequences.iter().map(|s| s.shallow).collect::<Vec<_>>().concat();
        let deep = sequences.iter().map(|s| s.deep).collect::<Vec<_>>().concat();
        let mut rows = Vec::new();
        for (index, sequence) in (0..).zip(&sequences) {
            let (id, draw) = (CompletionId::new(0, index), DrawKey::new(42, &prompt, index));
            let generated = &sequence.tokens[prompt.len()..];
            rows.push(StepRow::new(id, draw, &prompt, generated, &sampling));
        }
        let input = StepInput::from_slice(&rows, logits, &rows_of_head)?
            .with_hidden(HiddenStates::from_slices(D_MODEL, &shallow, &deep)?);
        let choices = sampler.step(input)?.choices;
        for (sequence, choice) in sequences.iter_mut().zip(choices) {
            sequence.read(choice?.token, &embedding);
        }
    }
    for sequence in &sequences {
        writeln!(io::stdout(), "{:?}", &sequence.tokens[prompt.len()..])?;
    }
    let counters = sampler.counters();
    writeln!(io::stdout(), "{} tokens, {} updates", counters.tokens, counters.updates)?;
    Ok(())
}

fn logits(head: &[f32], deep: &[f32]) -> Vec<f32> {
    let logit = |row: &[f32]| row.iter().zip(deep).map(|(w, x)| w * x).sum();
    head.chunks_exact(D_MODEL).map(logit).collect()
}
