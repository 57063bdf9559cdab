//! What a machine can do at most.

use std::{error::Error, fmt, hint::black_box, time::Instant};

use burn::tensor::{Device, Distribution, Tensor};
use rayon::prelude::*;

use crate::overhead::floor::Cost;

/// The speeds of a large matrix product and of a large sum, with all threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peak {
    /// Multiplications and additions per second.
    flops: f64,
    /// Bytes per second.
    bytes: f64,
}

/// The best of as many runs counts: others may use the machine.
const RUNS: usize = 7;

impl Peak {
    pub(super) fn measure() -> Result<Self, Box<dyn Error>> {
        const SIDE: usize = 1536;
        let device = Device::flex();
        let random = || Tensor::<2>::random([SIDE; 2], Distribution::Default, &device);
        let (a, b) = (random(), random());
        let product = best(|| {
            black_box(a.clone().matmul(b.clone()));
        });
        // Far more than fits into a cache.
        let numbers = vec![1.0f32; 64 << 20];
        let sum = best(|| {
            let sums = numbers.par_chunks(1 << 20).map(|chunk| {
                let mut sums = [0.0f32; 16];
                for chunk in chunk.chunks_exact(16) {
                    sums.iter_mut().zip(chunk).for_each(|(sum, number)| *sum += number);
                }
                sums.iter().sum::<f32>()
            });
            black_box(sums.sum::<f32>());
        });
        let (side, bytes) = (SIDE as f64, 4.0 * numbers.len() as f64);
        Ok(Self { flops: 2.0 * side.powi(3) / product, bytes: bytes / sum })
    }

    /// The least milliseconds that the work takes.
    pub(super) fn least_ms(&self, cost: Cost) -> f64 {
        1e3 * (cost.flops / self.flops).max(cost.bytes / self.bytes)
    }
}

/// The seconds of the fastest run.
fn best(mut work: impl FnMut()) -> f64 {
    let seconds = (0..RUNS).map(|_| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a large product: {:.0} GFLOP/s; a large sum: {:.1} GB/s",
            self.flops / 1e9,
            self.bytes / 1e9
        )
    }
}
