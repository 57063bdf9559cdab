//! Where a decode step's time goes on a device: every operation of a forward pass alone, at the shapes of a model.
//!
//! ```sh
//! cargo bench --bench forward -- --model 135m --dtype f32 --rows 16
//! benches/gpu.sh run forward          # on a machine with a GPU, after `benches/gpu.sh`
//! ```
//!
//! Each line is one operation: microseconds until its calls have returned (`host`), microseconds until the device has
//! finished (`total`), both per call over `--calls` calls after a warm-up, and how often a decode step calls it. The
//! last lines time the whole forward pass of a few blocks, and reading logits and candidates.

use std::{
    io::{self, Write},
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, activation::softmax};
use clap::Parser;
use esamp::{
    CausalLm, NoTap,
    llama::{Llama, LlamaConfig},
};
use esamp_bench::overhead::{
    device::DeviceName,
    subject::{DTypeName, ModelName},
};

/// Time every operation of a forward pass.
#[derive(Debug, Parser)]
struct Args {
    /// The model whose shape is used; `smollm2` has the shape `135m`.
    #[arg(long, value_enum, default_value = "135m")]
    model: ModelName,
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DTypeName,
    #[arg(long, value_enum, default_value = "flex")]
    device: DeviceName,
    /// Rows of the batch.
    #[arg(long, default_value_t = 16)]
    rows: usize,
    /// Columns in the key-value cache.
    #[arg(long, default_value_t = 160)]
    columns: usize,
    /// Calls per operation.
    #[arg(long, default_value_t = 20)]
    calls: usize,
    /// Blocks of the model whose whole forward pass is timed.
    #[arg(long, default_value_t = 4)]
    blocks: usize,
    /// Run only operations whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Passed by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Timer {
    device: Device,
    calls: usize,
    only: String,
}

impl Timer {
    /// Prints the time per call of `work`, which a decode step calls `times` times.
    fn time<T>(&self, name: &str, times: usize, mut work: impl FnMut() -> T) -> Result<()> {
        if !name.contains(&self.only) {
            return Ok(());
        }
        let sync = || self.device.sync().map_err(|error| anyhow!("{error:?}"));
        let began = Instant::now();
        work();
        sync()?;
        let first = began.elapsed();
        for _ in 0..2 {
            work();
        }
        sync()?;
        let began = Instant::now();
        let mut last = None;
        for _ in 0..self.calls {
            last = Some(work());
        }
        let host = began.elapsed();
        drop(last);
        sync()?;
        let micros = |seconds: f64| seconds * 1e6 / self.calls as f64;
        writeln!(
            io::stdout(),
            "{name:42} host {:10.1} total {:10.1} us, {times:3} a step, first {:8.1} ms",
            micros(host.as_secs_f64()),
            micros(began.elapsed().as_secs_f64()),
            first.as_secs_f64() * 1e3,
        )?;
        Ok(())
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = args.device.open()?;
    let shape = args.model.shape().or(ModelName::Small.shape()).context("a shape")?;
    writeln!(
        io::stdout(),
        "{:?} {} {} rows {} columns {}",
        args.model,
        args.dtype.name(),
        args.device.name(),
        args.rows,
        args.columns
    )?;
    let timer = Timer { device: device.clone(), calls: args.calls, only: args.only.clone() };
    products(&args, &shape, &timer)?;
    attention(&args, &shape, &timer)?;
    elementwise(&args, &shape, &timer)?;
    logits(&args, &shape, &timer)?;
    forward(&args, shape, &timer)
}

fn random<const D: usize>(shape: [usize; D], dtype: DType, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), (device, dtype))
}

fn products(args: &Args, shape: &LlamaConfig, timer: &Timer) -> Result<()> {
    let (rows, dtype) = (args.rows, args.dtype.dtype());
    let heads = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    let layers = shape.n_layers;
    for (name, input, output, times) in [
        ("qkv", shape.d_model, heads, layers),
        ("output", shape.n_heads * shape.head_dim, shape.d_model, layers),
        ("gate_up", shape.d_model, 2 * shape.d_hidden, layers),
        ("down", shape.d_hidden, shape.d_model, layers),
        ("head", shape.d_model, shape.vocab_size, 1),
    ] {
        let x = random([rows, input], dtype, &timer.device);
        let w = random([output, input], dtype, &timer.device);
        timer.time(&format!("{name} x·Wᵀ [{input} -> {output}]"), times, || {
            x.clone().matmul(w.clone().transpose())
        })?;
        timer.time(&format!("{name} (W·xᵀ)ᵀ"), times, || {
            w.clone().matmul(x.clone().transpose()).transpose()
        })?;
        let t = w.transpose() + 0.0; // a copy in [in, out]
        timer.time(&format!("{name} x·V, V [in, out]"), times, || x.clone().matmul(t.clone()))?;
    }
    Ok(())
}

fn attention(args: &Args, shape: &LlamaConfig, timer: &Timer) -> Result<()> {
    let (rows, dtype, columns) = (args.rows, args.dtype.dtype(), args.columns);
    let (kv, width, times) = (shape.n_kv_heads, shape.head_dim, shape.n_layers);
    let group = shape.n_heads / kv;
    let capacity = columns.next_power_of_two();
    let random = |shape| random::<4>(shape, dtype, &timer.device);
    let mut cache = Some(random([rows, kv, capacity, width]));
    let new = random([rows, kv, 1, width]);
    timer.time("cache slice_assign", 2 * times, || {
        if let Some(kept) = cache.take() {
            let ranges = [0..rows, 0..kv, columns - 1..columns, 0..width];
            cache = Some(kept.slice_assign(ranges, new.clone()));
        }
    })?;
    let kept = random([rows, kv, capacity, width]);
    let seen = kept.slice([0..rows, 0..kv, 0..columns, 0..width]);
    let queries = random([rows, kv, group, width]);
    timer.time("scores q·kᵀ, k a view", times, || {
        queries.clone().matmul(seen.clone().swap_dims(2, 3))
    })?;
    let whole = random([rows, kv, columns, width]);
    timer.time("scores q·kᵀ, k contiguous", times, || {
        queries.clone().matmul(whole.clone().swap_dims(2, 3))
    })?;
    let scores = random([rows, kv, group, columns]);
    timer.time("softmax", times, || softmax(scores.clone(), 3))?;
    timer.time("scores·v, v a view", times, || scores.clone().matmul(seen.clone()))?;
    timer.time("scores·v, v contiguous", times, || scores.clone().matmul(whole.clone()))
}

fn elementwise(args: &Args, shape: &LlamaConfig, timer: &Timer) -> Result<()> {
    let (rows, dtype, times) = (args.rows, args.dtype.dtype(), shape.n_layers);
    let x = random([rows, 1, shape.d_model], dtype, &timer.device);
    let weight = random([shape.d_model], dtype, &timer.device);
    timer.time("residual x + y", 2 * times, || x.clone() + x.clone())?;
    timer.time("rms norm", 2 * times + 1, || {
        let x = x.clone().cast(DType::F32);
        let mean_square = x.clone().square().mean_dim(2);
        let normed = x / mean_square.add_scalar(1e-6).sqrt();
        normed.cast(dtype) * weight.clone().unsqueeze()
    })?;
    let both = random([rows, 2 * shape.d_hidden], dtype, &timer.device);
    timer.time("silu gate", times, || {
        let half = shape.d_hidden;
        burn::tensor::activation::silu(both.clone().narrow(1, 0, half))
            * both.clone().narrow(1, half, half)
    })?;
    let heads = shape.n_heads + shape.n_kv_heads;
    let qk = random([rows, 1, heads, shape.head_dim], dtype, &timer.device);
    let angle = random([rows, 1, 1, shape.head_dim], dtype, &timer.device);
    timer.time("rotate", times, || {
        let half = shape.head_dim / 2;
        let first = qk.clone().narrow(3, 0, half);
        let second = qk.clone().narrow(3, half, half);
        let turned = Tensor::cat(vec![second.neg(), first], 3);
        qk.clone() * angle.clone() + turned * angle.clone()
    })
}

fn logits(args: &Args, shape: &LlamaConfig, timer: &Timer) -> Result<()> {
    let (rows, dtype, vocab) = (args.rows, args.dtype.dtype(), shape.vocab_size);
    let logits = random([rows, vocab], dtype, &timer.device);
    let wide = logits.clone().cast(DType::F32);
    timer
        .time("logits: cast to f32 and read", 1, || logits.clone().cast(DType::F32).into_data())?;
    timer.time("logits: read as they are", 1, || logits.clone().into_data())?;
    timer.time("logits: max_dim", 1, || wide.clone().max_dim(1))?;
    timer.time("logits: log-sum-exp", 1, || {
        let max = wide.clone().max_dim(1);
        (wide.clone() - max.clone()).exp().sum_dim(1).log() + max
    })?;
    timer.time("logits: read one number a row", 1, || wide.clone().max_dim(1).into_data())?;
    for width in [32, 64, 128] {
        if vocab % width != 0 {
            continue;
        }
        timer.time(&format!("logits: maxima of groups of {width}"), 1, || {
            wide.clone().reshape([rows, vocab / width, width]).max_dim(2)
        })?;
    }
    let picked = Tensor::<2, Int>::zeros([rows, 64], &timer.device);
    timer.time("logits: gather 64 a row", 1, || wide.clone().gather(1, picked.clone()))?;
    for k in [16, 64, 256] {
        timer.time(&format!("logits: top {k} with indices"), 1, || {
            wide.clone().topk_with_indices(k, 1)
        })?;
    }
    let fewer = random([rows, vocab.div_ceil(64)], DType::F32, &timer.device);
    for k in [16, 64, 256] {
        timer.time(&format!("maxima: top {k} with indices"), 1, || {
            fewer.clone().topk_with_indices(k, 1)
        })?;
    }
    Ok(())
}

fn forward(args: &Args, shape: LlamaConfig, timer: &Timer) -> Result<()> {
    let shape = shape.with_n_layers(args.blocks);
    let device = &timer.device;
    let model = Llama::random_on_device(shape, 4.0, 0, args.dtype.dtype(), device)?;
    let prompt = Tensor::<2, Int>::ones([args.rows, args.columns], device);
    let mut cache = model.new_cache();
    model.forward(prompt, &mut cache, &mut NoTap)?;
    let token = Tensor::<2, Int>::ones([args.rows, 1], device);
    let name = format!("forward, {} blocks and the head", args.blocks);
    timer.time(&name, 1, || model.forward(token.clone(), &mut cache, &mut NoTap))
}
