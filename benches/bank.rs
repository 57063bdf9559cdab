//! The cost of a bank of S slots in a step, for each slot path, and the cost of replacing a slot.
//!
//! Everything goes through `Sampler::step` with 4 rows per slot, at the width of SmolLM2-135M. The head has
//! only 64 tokens, so that the distillers dominate the time; `plain` is the same step without them. Rows
//! whose deep states are not finite are predicted but not learned: `predict` is such a step, and `step`
//! minus `predict` is the cost of the update.

use std::{hint::black_box, time::Duration};

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use esamp::{
    CheckedSampling, CompletionId, DrawKey, HiddenStates, LmHead, Phase, Sampler, SamplerConfig,
    Sampling, StepInput, StepRow, TiedHead,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    optim::TrainingConfig,
    unstable::SlotPath,
};

const D_MODEL: usize = 576;
const VOCAB: usize = 64;
const ROWS: u64 = 4;
/// Number of different hidden states, so that each step has something new to learn.
const STATES: usize = 8;

fn wave(shape: [usize; 2], scale: f32, device: &Device) -> Tensor<2> {
    let numbers: Vec<f32> =
        (0..shape[0] * shape[1]).map(|i| (i as f32 * scale).sin() * 0.5).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

/// A sampler and the inputs of its steps.
struct Batch {
    sampler: Sampler,
    sampling: CheckedSampling,
    head: TiedHead,
    logits: Tensor<2>,
    states: Vec<HiddenStates>,
    not_finite: HiddenStates,
    prompts: Vec<u64>,
    next: usize,
}

impl Batch {
    fn new(
        config: &SamplerConfig,
        beta: f32,
        slots: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let device = Device::flex();
        let head = TiedHead::new(wave([VOCAB, D_MODEL], 0.37, &device));
        let shape = [slots * ROWS as usize, D_MODEL];
        let states = (0..STATES).map(|at| {
            let (shallow, deep) = (0.91 + at as f32, 1.3 + at as f32);
            HiddenStates::new(wave(shape, shallow, &device), wave(shape, deep, &device))
        });
        let nan = Tensor::full(shape, f32::NAN, &device);
        let mut batch = Self {
            sampler: config.init(D_MODEL, &device)?,
            sampling: Sampling::paper().with_beta(beta).checked()?,
            logits: head.logits(wave(shape, 1.3, &device)),
            head,
            states: states.collect::<Result<_, _>>()?,
            not_finite: HiddenStates::new(wave(shape, 0.91, &device), nan)?,
            prompts: (0..slots as u64).collect(),
            next: 0,
        };
        // Two warm-up steps: the second finds the slots and moments already in place.
        let prompts = batch.prompts.clone();
        batch.step(&prompts)?;
        batch.step(&prompts)?;
        Ok(batch)
    }

    /// Predicts and learns one step of these prompts: all of them, or the first few.
    fn step(&mut self, prompts: &[u64]) -> Result<usize, Box<dyn std::error::Error>> {
        self.next += 1;
        let hidden = self.states[self.next % STATES].clone();
        self.step_with(prompts, hidden)
    }

    fn step_with(
        &mut self,
        prompts: &[u64],
        hidden: HiddenStates,
    ) -> Result<usize, Box<dyn std::error::Error>> {
        let ids = prompts
            .iter()
            .flat_map(|&p| (0..ROWS).map(move |i| CompletionId::new(p, p * ROWS + i)));
        let sampling = &self.sampling;
        let rows: Vec<StepRow<'_>> = ids
            .map(|id| {
                StepRow::new(id, DrawKey::new(0, &[], id.index), &[], &[], sampling)
                    .with_phase(Phase::Decode)
            })
            .collect();
        let (mut logits, mut hidden) = (self.logits.clone(), hidden);
        if rows.len() < logits.dims()[0] {
            logits = logits.narrow(0, 0, rows.len());
            hidden = hidden.select(&(0..rows.len()).collect::<Vec<_>>())?;
        }
        let input = StepInput::new(&rows, logits, &self.head).with_hidden(hidden);
        let output = self.sampler.step(input)?;
        Ok(black_box(output).updates)
    }

    /// Ends the oldest prompt and appends a new one after the others, as the decode loop does.
    fn replace(&mut self) -> Result<usize, Box<dyn std::error::Error>> {
        let old = self.prompts.remove(0);
        for i in 0..ROWS {
            self.sampler.release(CompletionId::new(old, old * ROWS + i));
        }
        self.prompts.push(old + self.prompts.len() as u64 + 1);
        let prompts = self.prompts.clone();
        self.step(&prompts)
    }
}

fn bank(criterion: &mut Criterion) {
    let distillers = [
        ("low-rank 64, AdamW", DistillerConfig::LowRank(LowRankConfig::new())),
        ("swiglu, Adam", DistillerConfig::SwiGlu(SwiGluConfig::new())),
    ];
    let paths = [
        ("stacked", SlotPath::Stacked),
        ("apart", SlotPath::Apart),
        ("one by one", SlotPath::OneByOne),
    ];
    for (name, distiller) in distillers {
        for slots in [1, 4, 16] {
            let mut group = criterion.benchmark_group(format!("{name}, {slots} slots"));
            group.sampling_mode(SamplingMode::Flat);
            let config = |slot_path| {
                SamplerConfig::new()
                    .with_distiller(distiller.clone())
                    .with_training(TrainingConfig::new().with_slot_path(slot_path))
            };
            let mut measure = |what: &str, path: &str, beta: f32, slot_path, run: Run| {
                let Ok(mut batch) = Batch::new(&config(slot_path), beta, slots) else {
                    return;
                };
                group.bench_function(BenchmarkId::new(what, path), |bencher| {
                    bencher.iter(|| run(&mut batch).ok());
                });
            };
            measure("plain", "", 0.0, SlotPath::Stacked, |batch| {
                batch.step(&batch.prompts.clone())
            });
            let jobs: [(&str, Run); 5] = [
                ("predict", |batch| {
                    batch.step_with(&batch.prompts.clone(), batch.not_finite.clone())
                }),
                ("step", |batch| batch.step(&batch.prompts.clone())),
                ("step, a slot replaced", Batch::replace),
                ("step, half of the slots at rest", |batch| {
                    let half = batch.prompts.len().div_ceil(2);
                    let prompts: Vec<u64> = batch.prompts.iter().copied().take(half).collect();
                    batch.step(&prompts)
                }),
                ("step, prompts in reverse order", |batch| {
                    batch.step(&batch.prompts.iter().rev().copied().collect::<Vec<_>>())
                }),
            ];
            for (what, run) in &jobs[..if slots == 1 { 3 } else { 5 }] {
                // Measure the paths one right after the other, so that they see the same machine load.
                for (path, slot_path) in paths {
                    measure(what, path, Sampling::DEFAULT_BETA, slot_path, *run);
                }
            }
            group.finish();
        }
    }
}

type Run = fn(&mut Batch) -> Result<usize, Box<dyn std::error::Error>>;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800));
    targets = bank
}
criterion_main!(benches);
