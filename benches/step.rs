//! `Sampler::step` at the shape of SmolLM2-135M, without the model: the time added to a decode step, by
//! number of rows.
//!
//! Compares plain sampling with ESamp and the low-rank distiller, both after min-p 0.05. For the plain step
//! it also reports the pool alone: the pass over all 49,152 logits of each row.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use esamp::{
    HiddenStates, Sampler, SamplerConfig, Sampling, StepInput, StepRow, TiedHead,
    distillers::{DistillerConfig, LowRankConfig},
};
use esamp_bench::rows;

const D_MODEL: usize = 576;
const VOCAB: usize = 49_152;
/// Number of different hidden states, so that each step has something new to learn.
const STATES: usize = 8;

/// The inputs of a step.
struct Batch {
    logits: Vec<f32>,
    states: Vec<HiddenStates>,
    device: Device,
}

impl Batch {
    fn new(count: usize, device: &Device) -> Result<Self, esamp::errors::HiddenError> {
        let shape = [count, D_MODEL];
        let states = (0..STATES).map(|at| {
            let (shallow, deep) = (0.91 + at as f32, 1.3 + at as f32);
            HiddenStates::new(rows::wave(shape, shallow, device), rows::wave(shape, deep, device))
        });
        Ok(Self {
            logits: rows::logits(count, VOCAB),
            states: states.collect::<Result<_, _>>()?,
            device: device.clone(),
        })
    }

    /// Runs `count` steps, as criterion asks, and returns their total time.
    fn steps(
        &self,
        sampler: &mut Sampler,
        rows: &[StepRow<'_>],
        head: &TiedHead,
        count: u64,
    ) -> Duration {
        let mut time = Duration::ZERO;
        for at in 0..count as usize {
            // New tensors for each step, made outside the timed part: after a forward pass the sampler also
            // holds the only reference to freshly written logits.
            let logits = TensorData::new(self.logits.clone(), [rows.len(), VOCAB]);
            let logits = Tensor::<2>::from_data(logits, &self.device);
            let hidden = self.states[at % STATES].clone();
            let input = StepInput::new(rows, logits, head).with_hidden(hidden);
            let started = Instant::now();
            let output = sampler.step(input);
            time += started.elapsed();
            assert!(output.is_ok(), "{:?}", output.err());
            black_box(output.map(|output| output.choices.len()).ok());
        }
        time
    }
}

fn step(criterion: &mut Criterion) {
    let device = Device::flex();
    let head = TiedHead::new(rows::wave([VOCAB, D_MODEL], 0.37, &device));
    let low_rank = DistillerConfig::LowRank(LowRankConfig::new());
    let config = SamplerConfig::new().with_distiller(low_rank);
    let mut group = criterion.benchmark_group("step, min-p 0.05");
    for count in [1, 16, 64] {
        let Ok(batch) = Batch::new(count, &device) else { return };
        for (name, beta) in [("plain", 0.0), ("ESamp, low-rank 64", 0.25)] {
            let sampling = Sampling::default().with_beta(beta).with_min_p(0.05).checked();
            let (Ok(sampling), Ok(mut sampler)) = (sampling, config.init(D_MODEL, &device)) else {
                return;
            };
            let rows = rows::rows(count, &sampling);
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter_custom(|steps| batch.steps(&mut sampler, &rows, &head, steps));
            });
            if beta == 0.0 {
                // Of the same steps, only the stage that gathers the tokens the filter could keep.
                group.bench_function(BenchmarkId::new("the pool alone", count), |bencher| {
                    bencher.iter_custom(|steps| {
                        let before = sampler.stage_seconds().pool;
                        batch.steps(&mut sampler, &rows, &head, steps);
                        Duration::from_secs_f64(sampler.stage_seconds().pool - before)
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
