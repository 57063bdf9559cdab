//! How to tap your own burn model, and how to decode it with ESamp.
//!
//! The model is an ordinary one: an embedding, blocks of burn's attention, a norm and a head. Only the
//! lines marked `// esamp` were added. The example decodes it twice: with `Decoder`, and with a
//! hand-written loop around `Sampler::step`.
//!
//! ```sh
//! cargo run --release --example tap_your_model
//! ```

use std::{
    error::Error,
    io::{self, Write},
    ops::ControlFlow,
};

use burn::{
    module::Module,
    nn::{
        Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig,
        attention::{
            MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask,
        },
    },
    tensor::{Device, Int, Tensor},
};
use esamp::{
    CausalLm, CompletionId, Decoder, DrawKey, FinishReason, HiddenStateTap, KvCache, LmHead,
    PairTap, Request, SamplerConfig, Sampling, StepInput, StepRow, TapSite, TokenId,
    errors::ModelError,
};

const VOCAB: usize = 100;
const D_MODEL: usize = 48;

#[derive(Module, Debug)]
struct MyModel {
    embedding: Embedding,
    blocks: Vec<MyBlock>,
    norm: LayerNorm,
    head: Linear,
}

#[derive(Module, Debug)]
struct MyBlock {
    norm: LayerNorm,
    attention: MultiHeadAttention,
}

impl MyModel {
    fn new(device: &Device) -> Self {
        let block = || MyBlock {
            norm: LayerNormConfig::new(D_MODEL).init(device),
            attention: MultiHeadAttentionConfig::new(D_MODEL, 4).with_dropout(0.0).init(device),
        };
        Self {
            embedding: EmbeddingConfig::new(VOCAB, D_MODEL).init(device),
            blocks: vec![block(), block(), block()],
            norm: LayerNormConfig::new(D_MODEL).init(device),
            head: LinearConfig::new(D_MODEL, VOCAB).with_bias(false).init(device),
        }
    }

    /// Maps tokens `[batch, seq]` to the logits of the last position, `[batch, vocab]`.
    fn forward(&self, tokens: Tensor<2, Int>, tap: &mut dyn HiddenStateTap) -> Tensor<2> {
        let [batch, seq] = tokens.dims();
        let mask = generate_autoregressive_mask(batch, seq, &tokens.device());
        let mut hidden = self.embedding.forward(tokens);
        for (i, block) in self.blocks.iter().enumerate() {
            let input = MhaInput::self_attn(block.norm.forward(hidden.clone()));
            hidden = hidden + block.attention.forward(input.mask_attn(mask.clone())).context;
            tap.record(TapSite::AfterBlock(i), &hidden); // esamp
        }
        let hidden = self.norm.forward(hidden);
        tap.record(TapSite::HeadInput, &hidden); // esamp
        let last = hidden.slice([0..batch, seq - 1..seq, 0..D_MODEL]);
        self.head.forward(last.reshape([batch, D_MODEL]))
    }
}

/// The model has no key-value cache and reads the whole sequence at every step, so its cache holds the
/// tokens themselves, `[rows, seq]`. Rows can be repeated and dropped. They all have the same length, so
/// rows of another prompt cannot be appended: a second prompt waits until the first has ended.
#[derive(Default)]
struct Tokens(Option<Tensor<2, Int>>);

impl KvCache for Tokens {
    fn rows(&self) -> usize {
        self.0.as_ref().map_or(0, |tokens| tokens.dims()[0])
    }

    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        if let Some(tokens) = self.0.take() {
            let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            let rows = Tensor::from_data(rows.as_slice(), &tokens.device());
            self.0 = Some(tokens.select(0, rows));
        }
        Ok(())
    }

    fn can_append_rows(&self) -> bool {
        false
    }

    fn append_rows(&mut self, _other: Self) -> Result<(), ModelError> {
        Err(ModelError::Unsupported { operation: "append rows" })
    }
}

impl CausalLm for MyModel {
    type Cache = Tokens;

    fn new_cache(&self) -> Tokens {
        Tokens::default()
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut Tokens,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        let all = match cache.0.take() {
            Some(before) => Tensor::cat(vec![before, tokens], 1),
            None => tokens,
        };
        cache.0 = Some(all.clone());
        Ok(self.forward(all, tap))
    }

    fn lm_head(&self) -> &dyn LmHead {
        &self.head
    }

    fn device(&self) -> Device {
        self.head.weight.val().device()
    }

    fn d_model(&self) -> usize {
        D_MODEL
    }

    fn vocab_size(&self) -> usize {
        VOCAB
    }
}

/// Decodes with `Decoder`. The second prompt is longer than the first, so it runs after it.
fn ready_loop(model: &MyModel) -> Result<(), Box<dyn Error>> {
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
    let mut decoder = Decoder::new(model, sampler)?;
    decoder.submit(Request::new(vec![1, 2, 3]).with_completions(3).with_max_new_tokens(12))?;
    let longer = Request::new(vec![4, 5, 6, 7, 8]);
    decoder.submit(longer.with_completions(2).with_max_new_tokens(12))?;
    for completion in decoder.run(|_event| ControlFlow::Continue(()))? {
        let (prompt, index) = (completion.id.prompt.0, completion.id.index);
        writeln!(io::stdout(), "prompt {prompt}, completion {index}: {:?}", completion.tokens())?;
        assert_eq!(completion.finish, FinishReason::MaxNewTokens);
    }
    writeln!(io::stdout(), "updates: {}\n", decoder.sampler().counters().updates)?;
    Ok(())
}

/// Decodes one sequence with a hand-written loop that calls `Sampler::step` for every token.
fn own_loop(model: &MyModel) -> Result<(), Box<dyn Error>> {
    let device = model.device();
    let mut sampler = SamplerConfig::new().init(model.d_model(), &device)?;
    let sampling = Sampling::default().with_top_k(20).checked()?;
    let prompt: Vec<TokenId> = vec![1, 2, 3];
    let draw = DrawKey::new(42, &prompt, 0);
    let id = CompletionId::new(0, 0);

    let mut generated: Vec<TokenId> = Vec::new();
    let mut tap = PairTap::default();
    while generated.len() < 12 {
        let tokens: Vec<i32> = prompt.iter().chain(&generated).map(|&t| t as i32).collect();
        let tokens = Tensor::<1, Int>::from_data(tokens.as_slice(), &device).unsqueeze();
        let logits = model.forward(tokens, &mut tap);
        let row = StepRow::new(id, draw, &prompt, &generated, &sampling);
        let rows = [row];
        let input = StepInput::new(&rows, logits, &model.head).with_hidden(tap.take()?);
        let output = sampler.step(input)?;
        let choice = output.choices[0].clone()?;
        let novelty = choice.novelty.map_or(0.0, |novelty| novelty.relative());
        writeln!(
            io::stdout(),
            "token {:3}  log-prob {:6.2}  novelty {novelty:.2}",
            choice.token,
            choice.log_prob
        )?;
        generated.push(choice.token);
    }
    sampler.release(id);
    sampler.finish()?; // fails if nothing was learned
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    device.seed(1);
    let model = MyModel::new(&device);
    ready_loop(&model)?;
    own_loop(&model)
}
