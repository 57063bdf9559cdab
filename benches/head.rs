//! A step without a filter, from logits and from the head's input: two projections against one.
//!
//! The head has SmolLM2-135M's shape, 576 × 49,152. Both ways include the projection of the reference, so that they do the
//! same job.

use std::hint::black_box;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use esamp::{
    DrawKey, HiddenStates, LmHead, Phase, RowId, SamplerConfig, SamplingConfig, StepInput, StepRow,
    TiedHead,
};

const D_MODEL: usize = 576;
const VOCAB: usize = 49_152;

fn wave(shape: [usize; 2], scale: f32, device: &Device) -> Tensor<2> {
    let numbers: Vec<f32> =
        (0..shape[0] * shape[1]).map(|i| (i as f32 * scale).sin() * 0.5).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

fn head(criterion: &mut Criterion) {
    let device = Device::flex();
    let head = TiedHead::new(wave([VOCAB, D_MODEL], 0.37, &device));
    let Ok(sampling) = SamplingConfig::default().init() else { return };
    for count in [1, 16] {
        let rows: Vec<StepRow<'_>> = (0..count as u64)
            .map(|row| StepRow {
                id: RowId::new(0, row),
                phase: Phase::Decode,
                draw: DrawKey::new(0, &[], row),
                code: None,
                prompt: &[],
                generated: &[],
                sampling: &sampling,
                allowed: None,
                wants_reference_log_prob: false,
            })
            .collect();
        let shallow = wave([count, D_MODEL], 0.91, &device);
        let deep = wave([count, D_MODEL], 1.3, &device);
        let Ok(hidden) = HiddenStates::new(shallow, deep.clone()) else { return };
        let mut group = criterion.benchmark_group(format!("step of {count} rows, no filter"));
        for way in ["from logits", "from the head's input"] {
            let Ok(mut sampler) = SamplerConfig::new().init(D_MODEL, &device) else { return };
            group.bench_function(way, |bencher| {
                bencher.iter_batched(
                    || hidden.clone(),
                    |hidden| {
                        let input = match way {
                            "from logits" => {
                                StepInput::new(&rows, head.logits(deep.clone()), &head)
                            }
                            _ => StepInput::from_head_input(&rows, deep.clone(), &head),
                        };
                        let output = sampler.step(input.with_hidden(hidden));
                        black_box(output.map(|output| output.updates).ok())
                    },
                    BatchSize::LargeInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, head);
criterion_main!(benches);
