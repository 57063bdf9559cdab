//! One prediction and one update of each distiller at the width of SmolLM2-135M, by number of rows.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use esamp::{
    HiddenStates,
    distillers::{Distiller, LowRankConfig, SwiGluConfig},
    optim::{Learner, OptimizerConfig},
};

const D_MODEL: usize = 576;

fn bench<D: Distiller>(
    criterion: &mut Criterion,
    name: &str,
    distiller: D,
    optimizer: OptimizerConfig,
    device: &Device,
) {
    let mut group = criterion.benchmark_group(name);
    for rows in [1, 4, 16, 64] {
        let random = || Tensor::<2>::random([rows, D_MODEL], Distribution::Default, device);
        let (Ok(hidden), Ok(mut learner)) =
            (HiddenStates::new(random(), random()), Learner::new(distiller.clone(), optimizer))
        else {
            continue;
        };
        group.bench_function(BenchmarkId::new("predict", rows), |bencher| {
            bencher.iter(|| {
                black_box(learner.distiller().predict(hidden.shallow().clone()).into_data())
            });
        });
        group.bench_function(BenchmarkId::new("update", rows), |bencher| {
            bencher.iter(|| black_box(learner.update(&hidden).loss.into_data()));
        });
    }
    group.finish();
}

fn distillers(criterion: &mut Criterion) {
    let device = Device::flex();
    if let Ok(distiller) = SwiGluConfig::new().init(D_MODEL, 0, &device) {
        bench(criterion, "swiglu, Adam", distiller, OptimizerConfig::paper(), &device);
    }
    if let Ok(distiller) = LowRankConfig::new().init(D_MODEL, 0, &device) {
        let optimizer = OptimizerConfig::adam_w(1e-3);
        bench(criterion, "low-rank 64, AdamW", distiller.clone(), optimizer, &device);
        bench(criterion, "low-rank 64, SGD", distiller, OptimizerConfig::sgd(1e-3), &device);
    }
}

criterion_group!(benches, distillers);
criterion_main!(benches);
