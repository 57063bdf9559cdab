//! From a row of 49,152 logits to a token, without a distiller: the cost of the pool and the filters.

use std::hint::black_box;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use esamp::{SamplerConfig, Sampling, StepInput, TiedHead, TokenId, TokenMask};
use esamp_bench::rows;

const VOCAB: usize = 49_152;
const ROWS: usize = 16;

fn filters(criterion: &mut Criterion) {
    let device = Device::flex();
    let plain = Sampling::paper().with_beta(0.0);
    let configs = [
        ("none", plain.clone()),
        ("min-p 0.05", plain.clone().with_min_p(0.05)),
        ("top-k 50", plain.clone().with_top_k(50)),
        ("top-p 0.95", plain.clone().with_top_p(0.95)),
        ("top-n-sigma 1", plain.clone().with_top_n_sigma(1.0)),
        ("epsilon 6e-4", plain.clone().with_epsilon_cutoff(6e-4)),
        ("eta 6e-4", plain.clone().with_eta_cutoff(6e-4)),
        ("typical 0.95", plain.clone().with_typical(0.95)),
        ("min-p 0.05, xtc 0.1", plain.clone().with_min_p(0.05).with_xtc(0.1, 0.5)),
        ("min-p 0.05, logit bias", plain.clone().with_min_p(0.05).with_logit_bias(7, 1.0)),
    ];
    // A grammar's masks: a few tokens, all but a few, and words with some tokens each.
    let every = |step: usize| TokenMask::allowing(VOCAB, (0..VOCAB as TokenId).step_by(step));
    let mut most = TokenMask::all(VOCAB);
    (0..VOCAB as TokenId).step_by(1000).for_each(|token| most.set(token, false));
    let masks = [("few", every(1000)), ("most", most), ("every third", every(3))];
    let masked = masks.iter().map(|(name, mask)| {
        (format!("min-p 0.05, {name} allowed"), plain.clone().with_min_p(0.05), Some(mask))
    });
    let configs = configs.map(|(name, config)| (name.to_owned(), config, None));
    let head = TiedHead::new(Tensor::zeros([VOCAB, 1], &device));
    let logits = rows::logits(ROWS, VOCAB);
    let mut group = criterion.benchmark_group("step of 16 rows, plain");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, config, mask) in configs.into_iter().chain(masked) {
        let Ok(sampling) = config.checked() else { continue };
        let Ok(mut sampler) = SamplerConfig::new().init(1, &device) else { continue };
        let rows = rows::rows(ROWS, &sampling).into_iter().map(|row| row.with_allowed(mask));
        let rows: Vec<_> = rows.collect();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || Tensor::from_data(TensorData::new(logits.clone(), [ROWS, VOCAB]), &device),
                |logits| {
                    let input = StepInput::new(&rows, logits, &head);
                    black_box(sampler.step(input).map(|output| output.choices.len()).ok())
                },
                criterion::BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, filters);
criterion_main!(benches);
