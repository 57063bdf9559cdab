//! A step without a filter, from logits and from the head's input: two projections against one.
//!
//! The head has SmolLM2-135M's shape, 576 × 49,152. Both ways include the projection of the reference, so that they do the
//! same job.

use std::hint::black_box;

use burn::tensor::Device;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use esamp::{HiddenStates, LmHead, SamplerConfig, SamplingConfig, StepInput, TiedHead};

mod rows;

const D_MODEL: usize = 576;
const VOCAB: usize = 49_152;

fn head(criterion: &mut Criterion) {
    let device = Device::flex();
    let head = TiedHead::new(rows::wave([VOCAB, D_MODEL], 0.37, &device));
    let Ok(sampling) = SamplingConfig::default().init() else { return };
    for count in [1, 16] {
        let rows = rows::rows(count, &sampling);
        let shallow = rows::wave([count, D_MODEL], 0.91, &device);
        let deep = rows::wave([count, D_MODEL], 1.3, &device);
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
