//! The formula for memory in docs/guide/performance.md, against the bytes that are allocated.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::tensor::Device;
use esamp::{
    CausalLm, Decoder, Request, SamplerConfig, Sampling,
    distillers::{DistillerConfig, LowRankConfig},
    llama::{Llama, LlamaConfig},
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

struct Run {
    name: &'static str,
    config: LlamaConfig,
    /// Rows of each request.
    rows: usize,
    prompt: usize,
    new: usize,
    chunk: usize,
    sampling: Sampling,
    /// Whether the expected logits are computed.
    is_steered: bool,
    /// Whether a second request of the same size joins the first.
    is_joined: bool,
    /// The part of the tokens that are candidates at most.
    candidates: f64,
}

impl Run {
    fn new(name: &'static str, config: LlamaConfig, prompt: usize) -> Self {
        Self {
            name,
            config: config.with_context_length(4096),
            rows: 1,
            prompt,
            new: 2,
            chunk: 512,
            sampling: Sampling::default().with_beta(0.0),
            is_steered: false,
            is_joined: false,
            candidates: 0.25, // min-p of flat logits, and room to grow
        }
    }

    /// The formula, in bytes, without weights and distillers.
    fn formula(&self) -> f64 {
        let config = &self.config;
        let rows = if self.is_joined { 2 * self.rows } else { self.rows };
        let [r, c, vocab, d, h, heads, layers] = [
            rows,
            self.prompt + self.new,
            config.vocab_size,
            config.d_model,
            config.d_hidden,
            config.n_heads,
            config.n_layers,
        ]
        .map(|n| n as f64);
        let t = r.max(self.prompt.min(self.chunk) as f64);
        let e = 4.0;
        let cache = r * c * 2.0 * layers * (config.n_kv_heads * config.head_dim) as f64 * e;
        let spare = cache + 2.0 * cache / layers;
        let newcomers = if self.is_joined { cache } else { 0.0 };
        let logits = r * vocab * (e + 4.0);
        let candidates = (12.0 * r + 40.0) * vocab * self.candidates;
        let expected = if self.is_steered { r * vocab * (e + 4.0) } else { 0.0 };
        let activations = t * e * (4.0 * d + 3.0 * h) + (2.0 * heads + 1.0) * t * c * e;
        cache + spare + newcomers + logits + candidates + expected + activations
    }

    /// Compares the formula with what is allocated in addition to the model and the distillers at most.
    fn check(&self) -> Result<String, String> {
        let before = MEMORY.current_usage();
        let model = Llama::random(self.config.clone(), 1, &Device::flex()).unwrap();
        let weights =
            (MEMORY.current_usage() - before) as f64 / (4 * self.config.num_params()) as f64;
        assert!((1.0..1.1).contains(&weights), "{}: {weights} of the weights", self.name);

        let distiller = DistillerConfig::LowRank(LowRankConfig::new().with_rank(4));
        let sampler = SamplerConfig::new().with_distiller(distiller);
        let sampler = sampler.init(model.d_model(), &model.device()).unwrap();
        let mut decoder =
            Decoder::new(&model, sampler).unwrap().with_prefill_chunk(self.chunk).unwrap();
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        for _ in 0..if self.is_joined { 2 } else { 1 } {
            let prompt: Vec<u32> = (0..self.prompt as u32).map(|at| at % 90).collect();
            let request = Request::new(prompt)
                .with_completions(self.rows)
                .with_max_new_tokens(self.new)
                .with_sampling(self.sampling.clone());
            decoder.submit(request).unwrap();
            decoder.step().unwrap();
        }
        while !decoder.is_idle() {
            decoder.step().unwrap();
        }
        let peak = (MEMORY.peak_usage() - before) as f64;
        let share = peak / self.formula();
        let what = format!("{}: {:.2} MB, {share:.2} of the formula", self.name, peak / 1e6);
        // The library for matrix products keeps buffers for each thread.
        let buffers = std::thread::available_parallelism().map_or(1, usize::from) as f64 * 2.2e6;
        let is_right = share > 0.5 && peak < 1.05 * self.formula() + buffers;
        if is_right { Ok(what) } else { Err(what) }
    }
}

#[test]
fn what_is_allocated_is_what_the_guide_says() {
    let cache = LlamaConfig::new(64, 64, 4, 4, 128);
    let vocab = LlamaConfig::new(16, 16, 1, 1, 50_000);
    let min_p = Sampling::default();
    let steered = |name, sampling, candidates| Run {
        is_steered: true,
        sampling,
        candidates,
        ..Run::new(name, vocab.clone(), 8)
    };
    let all_candidates = |name| Run {
        sampling: Sampling::paper().with_beta(0.0),
        candidates: 1.0,
        ..Run::new(name, vocab.clone(), 8)
    };
    let runs = [
        Run { rows: 8, new: 20, ..Run::new("cache", cache.clone(), 500) },
        Run { rows: 4, new: 20, is_joined: true, ..Run::new("newcomers", cache, 500) },
        Run { rows: 16, ..Run::new("logits", vocab.clone(), 8) },
        Run { rows: 16, ..steered("steered", min_p, 0.25) },
        Run { rows: 16, ..all_candidates("all candidates") },
        Run { rows: 4, ..all_candidates("four rows") },
        Run { rows: 16, ..steered("all candidates, steered", Sampling::paper(), 1.0) },
        Run::new("scores", LlamaConfig::new(64, 16, 2, 8, 128), 1024),
        Run {
            chunk: 128,
            ..Run::new("scores of a chunk", LlamaConfig::new(64, 16, 2, 8, 128), 1024)
        },
        Run::new("activations", LlamaConfig::new(256, 1024, 2, 1, 128), 256),
        Run::new("narrow activations", LlamaConfig::new(512, 256, 2, 1, 128), 256),
    ];
    let measured: Vec<_> = runs.iter().map(Run::check).collect();
    assert!(measured.iter().all(Result::is_ok), "{measured:#?}");
}
