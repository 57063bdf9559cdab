//! Counts what one decode step asks of a GPU: kernel launches, uploads, and transfers to the host, during each of which
//! the host waits. Needs a WebGPU device, as on_wgpu.rs does.
//!
//! wgpu-core logs every call of its interface, and this test reads that log. So nothing is missed that burn does by
//! itself, and no code of the crate takes part in the counting.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use burn::tensor::{DType, Device, DeviceType};
use esamp::{
    CausalLm, Decoder, Request, SamplerConfig, Sampling,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    llama::{Llama, LlamaConfig},
    unstable::LogitsTransfer,
};
use esamp_testkit::first_gpu::first_gpu;

const VOCAB: usize = 16_384;
const ROWS: usize = 16;
const STEPS: u64 = 8;

static LOG: CallLog = CallLog {
    launches: AtomicU64::new(0),
    uploads: AtomicU64::new(0),
    reads: AtomicU64::new(0),
    read_bytes: AtomicU64::new(0),
    waits: AtomicU64::new(0),
    is_new_submission: AtomicU64::new(0),
};

/// Counts the calls in wgpu-core's log.
struct CallLog {
    launches: AtomicU64,
    /// Writes to buffers. The arguments of a kernel are a write too, unless an equal one is cached.
    uploads: AtomicU64,
    /// Buffers that were read.
    reads: AtomicU64,
    read_bytes: AtomicU64,
    /// How often the host waits: for the tensors of a transaction once, and for each `Device::sync`.
    waits: AtomicU64,
    is_new_submission: AtomicU64,
}

impl CallLog {
    fn counts(&self) -> [u64; 5] {
        [&self.launches, &self.uploads, &self.reads, &self.read_bytes, &self.waits]
            .map(|count| count.load(Relaxed))
    }
}

impl log::Log for CallLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("wgpu_core")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = record.args().to_string();
        let starts = |call: &str| line.starts_with(call);
        let add = |count: &AtomicU64, n: u64| {
            count.fetch_add(n, Relaxed);
        };
        if line == "Queue::on_submitted_work_done" {
            // `Device::sync`.
            add(&self.waits, 1);
        } else if starts("ComputePass::dispatch") {
            add(&self.launches, 1);
        } else if starts("Queue::write_buffer") {
            add(&self.uploads, 1);
        } else if starts("CommandEncoder::copy_buffer_to_buffer") {
            // "… -> … Some(64)bytes"
            let size = line.rsplit_once("Some(").and_then(|(_, rest)| rest.split_once(')'));
            add(&self.read_bytes, size.unwrap().0.parse().unwrap());
        } else if starts("Buffer::map_async") {
            add(&self.reads, 1);
            // One transaction is one submission and then a mapping for each tensor.
            add(&self.waits, self.is_new_submission.swap(0, Relaxed));
        } else if starts("Queue::submit returned") {
            self.is_new_submission.store(1, Relaxed);
        }
    }

    fn flush(&self) {}
}

#[derive(Debug)]
struct PerStep {
    launches: f64,
    uploads: f64,
    reads: f64,
    read_bytes: f64,
    waits: f64,
}

/// Decodes 4 prompts × 4 completions and counts over steps in which every row runs and learns.
fn count(distiller: Option<DistillerConfig>, transfer: LogitsTransfer, device: &Device) -> PerStep {
    let config = LlamaConfig::new(64, 128, 2, 4, VOCAB);
    let model = Llama::random_on_device(config, 4.0, 1, DType::F32, device).unwrap();
    let beta = if distiller.is_some() { 0.25 } else { 0.0 };
    let config = match distiller {
        Some(distiller) => SamplerConfig::new().with_distiller(distiller),
        None => SamplerConfig::new(),
    };
    let config = config.with_logits_transfer(transfer);
    let sampler = config.init(model.d_model(), device).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    for prompt in 0..4 {
        let sampling = Sampling::paper().with_min_p(0.05).with_beta(beta);
        let request = Request::new(vec![prompt + 1; 8]).with_completions(4).with_sampling(sampling);
        decoder.submit(request.with_max_new_tokens(64).with_seed(7)).unwrap();
    }
    // Until the kernels have been compiled and all buffers exist.
    for _ in 0..4 {
        decoder.step().unwrap();
    }
    device.sync().unwrap();
    let before = LOG.counts();
    for _ in 0..STEPS {
        decoder.step().unwrap();
        assert_eq!(decoder.running(), ROWS);
    }
    let mut after = LOG.counts();
    device.sync().unwrap();
    let launched = LOG.counts();
    // The last launches are queued until then; the wait is that of the `sync` above.
    (after[0], after[1]) = (launched[0], launched[1]);
    let learned = decoder.sampler().counters().rows_learned;
    assert_eq!(learned > 0, beta > 0.0);
    let mut counts = before.into_iter().zip(after).map(|(a, b)| (b - a) as f64 / STEPS as f64);
    let mut next = || counts.next().unwrap();
    PerStep { launches: next(), uploads: next(), reads: next(), read_bytes: next(), waits: next() }
}

/// The best logits that a step copies per row of its own accord.
const BEST: usize = 64;

#[test]
fn a_step_makes_few_transfers() {
    let device = first_gpu(DeviceType::Wgpu);
    log::set_logger(&LOG).map_err(|error| error.to_string()).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let low_rank = DistillerConfig::LowRank(LowRankConfig::new());
    let swiglu = DistillerConfig::SwiGlu(SwiGluConfig::new());
    // With a distiller, the expected logits and two norms per row are read too.
    let cases = [
        ("plain", None, 116.0, 3.0, 0),
        ("low-rank", Some(low_rank), 225.0, 6.0, BEST + 2),
        ("SwiGLU", Some(swiglu), 244.0, 6.0, BEST + 2),
    ];
    for (name, distiller, launches, reads, expected) in cases {
        // What a step did before it looked for the best logits on the device.
        let whole = count(distiller.clone(), LogitsTransfer::Whole, &device);
        println!("{name}, all logits: {whole:?}");
        let waits = if distiller.is_some() { 2.0 } else { 1.0 };
        assert_eq!(whole.waits, waits, "{name}: {whole:?}");
        assert!(whole.read_bytes >= (4 * ROWS * VOCAB) as f64, "{name}: {whole:?}");

        let best = count(distiller, LogitsTransfer::Automatic, &device);
        println!("{name}, the best logits: {best:?}");
        let bytes = 4 * ROWS * (2 * BEST + 1 + expected); // logits, their tokens, the mass, and what is expected
        assert!(best.launches > 0.0 && best.launches <= launches, "{name}: {best:?}");
        assert!(best.uploads > 0.0 && best.uploads < 20.0, "{name}: {best:?}");
        assert_eq!((best.waits, best.reads), (1.0, reads), "{name}: {best:?}");
        assert_eq!(best.read_bytes, bytes as f64, "{name}: {best:?}");
    }
}
