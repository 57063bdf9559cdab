//! Decodes a language model of another crate under ESamp, without changing that crate.
//!
//! The model is the Qwen3 of [`bunsen`](https://crates.io/crates/bunsen), small and with random weights, so
//! that the example runs in a second without a download. A model loaded from a checkpoint is tapped the
//! same way. `lib.rs` is the whole adapter.
//!
//! Its cache can neither drop rows nor take in new ones. Completions that have ended therefore stay in the
//! batch and are fed a dummy token, and the second request waits until the first has ended. The decode loop
//! does this without further settings.
//!
//! ```sh
//! cargo run --release -p esamp-third-party
//! ```

use std::{
    error::Error,
    io::{self, Write},
};

use bunsen::{kits::gpts::qwen3::Qwen3Config, prelude::ModuleInit};
use burn::{
    nn::{EmbeddingConfig, Initializer},
    tensor::Device,
};
use esamp::{
    CausalLm, Decoder, Event, Request, SamplerConfig, Sampling, TokenId, optim::OptimizerConfig,
};
use esamp_third_party::TappedQwen3;

const VOCAB: usize = 96;
const D_MODEL: usize = 48;
const COMPLETIONS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    device.seed(7);
    let mut model = Qwen3Config::new(VOCAB, D_MODEL, 3, 4, 2, 12, 96).init(&device);
    // The embedding is also the head. With the default initial scale the model would repeat its last token
    // forever.
    let small = Initializer::Normal { mean: 0.0, std: 0.2 };
    let embedding = EmbeddingConfig::new(VOCAB, D_MODEL).with_initializer(small);
    model.embed_tokens = embedding.init(&device);
    let model = TappedQwen3::new(model, 128);

    // Completions of a few dozen tokens are few updates, so the learning rate is higher than the default.
    let optimizer = OptimizerConfig::paper().with_learning_rate(3e-3);
    let config = SamplerConfig::new().with_optimizer(optimizer);
    let sampler = config.init(model.d_model(), &model.device())?;
    let sampling = Sampling::default().with_min_p(0.05);
    // Stop tokens; enough of them that completions end at different times.
    let stop_tokens: Vec<TokenId> = (0..VOCAB as TokenId).step_by(8).collect();

    let mut decoder = Decoder::new(model, sampler)?;
    for prompt in [vec![1, 2, 3], vec![4, 5, 6, 7, 8]] {
        let request = Request::new(prompt)
            .with_completions(COMPLETIONS)
            .with_max_new_tokens(60)
            .with_stop_tokens(stop_tokens.clone())
            .with_sampling(sampling.clone());
        decoder.submit(request)?;
    }

    while !decoder.is_idle() {
        let events = decoder.step()?;
        let step = decoder.stats().steps;
        for event in events {
            if let Event::Finished { completion, .. } = event {
                writeln!(
                    io::stdout(),
                    "step {step:3}: prompt {}, completion {} has ended after {} tokens ({})",
                    completion.id.prompt.0,
                    completion.id.index,
                    completion.choices.len(),
                    completion.finish.name(),
                )?;
            }
        }
    }

    // Every step feeds all rows of its request, including those of completions that have ended.
    let stats = *decoder.stats();
    let fed = stats.steps * COMPLETIONS as u64;
    writeln!(io::stdout(), "\n{fed} rows fed, {} of them dead", fed - stats.decoded_tokens)?;
    let counters = *decoder.sampler().counters();
    writeln!(io::stdout(), "{} tokens, {} updates", counters.tokens, counters.updates)?;
    if let Some(novelty) = counters.mean_relative_novelty() {
        writeln!(io::stdout(), "relative novelty {novelty:.2} (an untrained distiller has 1)")?;
    }
    decoder.sampler_mut().finish()?; // fails if nothing was learned
    writeln!(io::stdout(), "ESamp has learned")?;
    Ok(())
}
