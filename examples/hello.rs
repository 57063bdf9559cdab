//! A minimal run: plain sampling and ESamp on a tiny model that needs no download.
//!
//! ```sh
//! cargo run --release --example hello
//! ```

use std::{
    error::Error,
    io::{self, Write},
    ops::ControlFlow,
};

use burn::tensor::Device;
use esamp::{CausalLm, Decoder, Request, SamplerConfig, Sampling, testing::TinyLm};

fn main() -> Result<(), Box<dyn Error>> {
    let model = TinyLm::new(1, &Device::flex());
    for (name, beta) in [("plain", 0.0), ("ESamp", 1.0)] {
        let config = SamplerConfig::for_short_completions();
        let sampler = config.init(model.d_model(), &model.device())?;

        let sampling = Sampling::default().with_beta(beta).with_min_p(0.05);
        let request = Request::new(vec![1, 2, 3])
            .with_completions(4)
            .with_max_new_tokens(24)
            .with_sampling(sampling);

        let mut decoder = Decoder::new(&model, sampler)?.with_detokenizer(TinyLm::detokenizer());
        decoder.submit(request)?;
        let completions = decoder.run(|_event| ControlFlow::Continue(()))?;

        writeln!(io::stdout(), "{name}")?;
        for completion in completions {
            writeln!(io::stdout(), "  {}", completion.text.unwrap_or_default())?;
        }
        let counters = decoder.sampler().counters();
        writeln!(io::stdout(), "  {} tokens, {} updates\n", counters.tokens, counters.updates)?;
    }
    Ok(())
}
