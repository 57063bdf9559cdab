//! The formula for memory in docs/guide/performance.md, against the bytes that are allocated.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::tensor::{DType, Device};
use esamp::{
    CausalLm, Decoder, Request, SamplerConfig, Sampling,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    llama::{Llama, LlamaConfig},
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

struct Run {
    name: &'static str,
    config: LlamaConfig,
    distiller: DistillerConfig,
    /// Rows of each request.
    rows: usize,
    prompt: usize,
    new: usize,
    chunk: usize,
    sampling: Sampling,
    /// Whether a second request of the same size joins the first.
    is_joined: bool,
    /// Warm-up updates on the prompt.
    warm_up: usize,
    /// Whether half of the rows pause for a step.
    is_paused: bool,
    /// Whether the model is in `f16`, for which flex has no attention of its own.
    is_half: bool,
    /// The part of the estimate that is used at least.
    least: f64,
}

impl Run {
    fn new(name: &'static str, config: LlamaConfig, prompt: usize) -> Self {
        Self {
            name,
            config: config.with_context_length(4096),
            distiller: DistillerConfig::LowRank(LowRankConfig::new().with_rank(4)),
            rows: 1,
            prompt,
            new: 2,
            chunk: 512,
            sampling: Sampling::paper().with_beta(0.0),
            is_joined: false,
            is_paused: false,
            warm_up: 0,
            is_half: false,
            least: 0.5,
        }
    }

    fn request(&self, rows: usize) -> Request {
        let prompt = (0..self.prompt as u32).map(|at| at % 90).collect();
        let request = Request::new(prompt).with_completions(rows).with_max_new_tokens(self.new);
        request.with_sampling(self.sampling.clone()).with_prompt_warm_up(self.warm_up)
    }

    /// Compares the estimate with what is allocated in addition to the model at most.
    fn check(&self) -> Result<String, String> {
        let before = MEMORY.current_usage();
        let model = Llama::random(self.config.clone(), 1, &Device::flex()).unwrap();
        let weights =
            (MEMORY.current_usage() - before) as f64 / (4 * self.config.num_params()) as f64;
        assert!((1.0..1.1).contains(&weights), "{}: {weights} of the weights", self.name);

        let model = if self.is_half { model.cast(DType::F16).unwrap() } else { model };

        let sampler = SamplerConfig::new().with_distiller(self.distiller.clone());
        let sampler = sampler.init(model.d_model(), &model.device()).unwrap();
        let mut decoder =
            Decoder::new(&model, sampler).unwrap().with_prefill_chunk(self.chunk).unwrap();
        let estimate = if self.is_joined {
            // Both prompts as one, and the rows of the second while they are copied.
            let newcomers = self.rows * (self.prompt + self.new) * model.kv_bytes_per_token();
            let distiller = decoder.bytes_needed(&self.request(1))
                - decoder.bytes_needed(
                    &self.request(1).with_sampling(self.sampling.clone().with_beta(0.0)),
                );
            decoder.bytes_needed(&self.request(2 * self.rows)) + newcomers + distiller
        } else {
            decoder.bytes_needed(&self.request(self.rows))
        };
        decoder = decoder.with_memory_limit(estimate);
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let requests = if self.is_joined { 2 } else { 1 };
        let mut rows = Vec::new();
        for _ in 0..requests {
            rows.extend(decoder.submit(self.request(self.rows)).unwrap().completions);
            decoder.step().unwrap();
        }
        if self.is_joined {
            assert_eq!(decoder.running(), 2 * self.rows, "{}", self.name);
        }
        if self.is_paused {
            for &row in &rows[..rows.len() / 2] {
                decoder.pause(row).unwrap();
            }
            decoder.step().unwrap();
            for &row in &rows[..rows.len() / 2] {
                decoder.resume(row).unwrap();
            }
        }
        while !decoder.is_idle() {
            decoder.step().unwrap();
        }
        let peak = (MEMORY.peak_usage() - before) as f64;
        let share = peak / estimate as f64;
        let what = format!("{}: {:.2} MB, {share:.2} of the estimate", self.name, peak / 1e6);
        // The library for matrix products keeps buffers for each thread.
        let buffers = std::thread::available_parallelism().map_or(1, usize::from) as f64 * 2.2e6;
        let is_right = share > self.least && peak < estimate as f64 + buffers;
        if is_right { Ok(what) } else { Err(what) }
    }
}

#[test]
fn what_is_allocated_is_what_the_decoder_says() {
    let cache = LlamaConfig::new(64, 64, 4, 4, 128);
    let vocab = LlamaConfig::new(16, 16, 1, 1, 50_000);
    let wide = LlamaConfig::new(512, 64, 1, 1, 128);
    let few_candidates = |name, sampling| Run {
        // All tokens are counted as candidates, but min-p leaves a part of them.
        least: 0.35,
        sampling,
        ..Run::new(name, vocab.clone(), 8)
    };
    let steered = |name, config| Run { sampling: Sampling::paper(), ..Run::new(name, config, 8) };
    // Little cache and small passes, so that most is the warm-up's.
    let few_keys = wide.clone().with_heads(1, 16);
    let warm = |name, distiller| Run {
        warm_up: 3,
        chunk: 64,
        distiller,
        sampling: Sampling::paper(),
        ..Run::new(name, few_keys.clone(), 2000)
    };
    let runs = [
        Run { rows: 8, new: 20, ..Run::new("cache", cache.clone(), 500) },
        Run { rows: 8, new: 20, is_paused: true, ..Run::new("pauses", cache.clone(), 500) },
        Run { rows: 4, new: 20, is_joined: true, ..Run::new("newcomers", cache, 500) },
        Run { rows: 16, ..few_candidates("logits", Sampling::default().with_beta(0.0)) },
        Run { rows: 16, ..few_candidates("steered", Sampling::default()) },
        Run { rows: 16, ..Run::new("all candidates", vocab.clone(), 8) },
        Run { rows: 4, ..Run::new("four rows", vocab.clone(), 8) },
        Run { rows: 16, ..steered("all candidates, steered", vocab.clone()) },
        Run::new("long prompt", LlamaConfig::new(64, 16, 2, 8, 128), 1024),
        Run { is_half: true, ..Run::new("scores", LlamaConfig::new(64, 16, 2, 8, 128), 1024) },
        Run {
            chunk: 128,
            is_half: true,
            ..Run::new("scores of a chunk", LlamaConfig::new(64, 16, 2, 8, 128), 1024)
        },
        Run::new("activations", LlamaConfig::new(256, 1024, 2, 1, 128), 256),
        Run::new("narrow activations", LlamaConfig::new(512, 256, 2, 1, 128), 256),
        warm("warm-up", DistillerConfig::SwiGlu(SwiGluConfig::new())),
        warm("warm-up, low-rank", DistillerConfig::LowRank(LowRankConfig::new().with_rank(64))),
        Run {
            distiller: DistillerConfig::SwiGlu(SwiGluConfig::new()),
            new: 6,
            ..steered("distiller", wide.clone())
        },
        Run {
            distiller: DistillerConfig::SwiGlu(SwiGluConfig::new()),
            new: 12,
            is_joined: true,
            ..steered("two distillers", wide)
        },
    ];
    let measured: Vec<_> = runs.iter().map(Run::check).collect();
    assert!(measured.iter().all(Result::is_ok), "{measured:#?}");
}
