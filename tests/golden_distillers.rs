//! Compares both distillers and every optimizer with vectors from an independent PyTorch implementation:
//! tests/golden/README.md.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::{
    module::Param,
    tensor::{Device, Tensor},
};
use esamp::{
    HiddenStates, LmHead,
    distillers::{
        Distiller, LowRankDistiller, LowRankStart, SourceNorm, SwiGluBlock, SwiGluDistiller,
    },
    optim::{Learner, OptimizerConfig, UpdateRule},
};
use esamp_testkit::golden::{Golden, assert_close, devices, values};

/// The paper's distiller as in the vectors: on the raw source, with all projections random at the start.
fn swiglu(golden: &Golden, device: &Device) -> SwiGluDistiller {
    let blocks = (0..2)
        .map(|block| {
            let param =
                |name| Param::from_tensor(golden.tensor(&format!("init.{block}.{name}"), device));
            SwiGluBlock { gate: param("gate"), up: param("up"), down: param("down") }
        })
        .collect();
    SwiGluDistiller { blocks, source_norm: SourceNorm::None }
}

fn low_rank(golden: &Golden, prefix: &str, device: &Device) -> LowRankDistiller {
    let matrix = |name: &str| Param::from_tensor(golden.tensor(&format!("{prefix}{name}"), device));
    let vector = |name: &str| Param::from_tensor(golden.tensor(&format!("{prefix}{name}"), device));
    LowRankDistiller {
        a: matrix("a"),
        g: matrix("g"),
        g_bias: vector("gb"),
        b: matrix("b"),
        norm_weight: vector("w"),
        norm_bias: vector("bb"),
        source_norm: SourceNorm::None,
        start: LowRankStart::Normal,
    }
}

/// Passes one row per step through `learner` and calls `after` after each update.
fn learn<D: Distiller>(
    mut learner: Learner<D>,
    shallow: &Tensor<2>,
    deep: &Tensor<2>,
    mut after: impl FnMut(usize, &Learner<D>),
) -> Trace {
    let [steps, width] = shallow.dims();
    let mut trace = Trace::default();
    for step in 0..steps {
        let row = |states: &Tensor<2>| states.clone().slice([step..step + 1, 0..width]);
        trace.pred.extend(values(learner.distiller().predict(row(shallow))));
        let update = learner.update(&HiddenStates::new(row(shallow), row(deep)).unwrap());
        trace.loss.extend(values(update.loss));
        trace.grad_norm.extend(update.grad_norm.into_iter().flat_map(values));
        after(step + 1, &learner);
    }
    trace
}

#[derive(Default)]
struct Trace {
    pred: Vec<f32>,
    loss: Vec<f32>,
    grad_norm: Vec<f32>,
}

fn named(distiller: &SwiGluDistiller) -> Vec<(String, Vec<f32>)> {
    let mut named = Vec::new();
    for (block, params) in distiller.blocks.iter().enumerate() {
        for (name, param) in [("gate", &params.gate), ("up", &params.up), ("down", &params.down)] {
            named.push((format!("{block}.{name}"), values(param.val())));
        }
    }
    named
}

fn named_low_rank(distiller: &LowRankDistiller) -> Vec<(&'static str, Vec<f32>)> {
    vec![
        ("a", values(distiller.a.val())),
        ("g", values(distiller.g.val())),
        ("gb", values(distiller.g_bias.val())),
        ("b", values(distiller.b.val())),
        ("w", values(distiller.norm_weight.val())),
        ("bb", values(distiller.norm_bias.val())),
    ]
}

fn adamw(learning_rate: f64) -> OptimizerConfig {
    OptimizerConfig::adam_w(learning_rate)
}

/// The paper's distiller at toy size: every parameter after 1, 8 and 32 updates.
#[test]
fn toy_swiglu() {
    let toy = Golden::open("toy.safetensors");
    let golden = Golden::open("toy_swiglu.safetensors");
    for device in devices() {
        let (shallow, deep) = (toy.tensor("h1", &device), toy.tensor("target", &device));
        for (name, optimizer) in [
            ("adam", OptimizerConfig::paper()),
            ("adam_lr1e-2", OptimizerConfig::paper().with_learning_rate(1e-2)),
            ("sgd0.1", OptimizerConfig::paper().with_rule(UpdateRule::Sgd).with_learning_rate(0.1)),
        ] {
            let learner = Learner::new(swiglu(&golden, &device), optimizer).unwrap();
            let trace = learn(learner, &shallow, &deep, |updates, learner| {
                if [1, 8, 32].contains(&updates) {
                    for (param, got) in named(learner.distiller()) {
                        let what = format!("{name}.step{updates}.{param}");
                        assert_close(&what, &got, &golden.values(&what), 5e-5);
                    }
                }
            });
            assert_close(name, &trace.pred, &golden.values(&format!("{name}.pred")), 1e-5);
            assert_close(name, &trace.loss, &golden.values(&format!("{name}.loss")), 1e-4);
            assert_close(
                name,
                &trace.grad_norm,
                &golden.values(&format!("{name}.grad_norm")),
                1e-4,
            );
        }
    }
}

/// The paper's distiller on SmolLM2's own hidden states, 32 greedy steps.
#[test]
fn swiglu_on_smollm2() {
    let base = Golden::open("base.safetensors");
    let golden = Golden::open("swiglu.safetensors");
    let device = Device::flex();
    let (shallow, deep) = (base.tensor("h1", &device), base.tensor("hN", &device));
    let learner = Learner::new(swiglu(&golden, &device), OptimizerConfig::paper()).unwrap();
    let trace = learn(learner, &shallow, &deep, |updates, learner| {
        if ![1, 8, 32].contains(&updates) {
            return;
        }
        for (param, got) in named(learner.distiller()) {
            let what = format!("adam.step{updates}.{param}");
            let norm = got.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
            assert_close(&what, &[norm], &golden.values(&format!("{what}.norm")), 5e-5);
            if updates == 32 {
                let rows = golden.values(&format!("{what}.first4rows"));
                assert_close(&what, &got[..rows.len()], &rows, 5e-5);
            }
        }
    });
    assert_close("pred", &trace.pred, &golden.values("adam.pred"), 1e-5);
    assert_close("loss", &trace.loss, &golden.values("adam.loss"), 1e-4);
    assert_close("grad_norm", &trace.grad_norm, &golden.values("adam.grad_norm"), 1e-4);

    let fused = fuse(&base, &trace.pred, &device);
    assert_close("fused", &fused, &golden.values("adam.fused"), 1e-5);
}

/// The low-rank distiller at toy size.
#[test]
fn toy_low_rank() {
    let toy = Golden::open("toy.safetensors");
    for device in devices() {
        let (shallow, deep) = (toy.tensor("h1", &device), toy.tensor("target", &device));
        for (name, optimizer) in [
            ("adamw0.001", adamw(1e-3)),
            ("adamw0.01", adamw(1e-2)),
            ("sgd0.1", OptimizerConfig::sgd(0.1)),
        ] {
            let distiller = low_rank(&toy, "lowrank.init.", &device);
            let learner = Learner::new(distiller, optimizer).unwrap();
            let trace = learn(learner, &shallow, &deep, |updates, learner| {
                if [1, 8, 32].contains(&updates) {
                    for (param, got) in named_low_rank(learner.distiller()) {
                        let what = format!("lowrank.{name}.step{updates}.{param}");
                        assert_close(&what, &got, &toy.values(&what), 5e-5);
                    }
                }
            });
            assert_close(name, &trace.pred, &toy.values(&format!("lowrank.{name}.pred")), 1e-5);
            assert_close(name, &trace.loss, &toy.values(&format!("lowrank.{name}.loss")), 1e-4);
        }
    }
}

/// The low-rank distiller on SmolLM2's own hidden states, AdamW and SGD.
#[test]
fn low_rank_on_smollm2() {
    let base = Golden::open("base.safetensors");
    let init = Golden::open("lowrank.init.safetensors");
    let device = Device::flex();
    let (shallow, deep) = (base.tensor("h1", &device), base.tensor("hN", &device));
    for (file, optimizer) in [
        ("lowrank.adamw.post.safetensors", adamw(1e-3)),
        ("lowrank.sgd.post.safetensors", OptimizerConfig::sgd(0.1)),
    ] {
        let golden = Golden::open(file);
        let learner = Learner::new(low_rank(&init, "", &device), optimizer).unwrap();
        let trace = learn(learner, &shallow, &deep, |updates, learner| {
            for (param, got) in named_low_rank(learner.distiller()) {
                let what = format!("step{updates}.{param}");
                if golden.has(&what) {
                    assert_close(&what, &got, &golden.values(&what), 5e-5);
                }
            }
        });
        assert_close(file, &trace.pred, &golden.values("pred_hidden"), 1e-5);
        assert_close(file, &trace.loss, &golden.values("loss"), 1e-4);
        let fused = fuse(&base, &trace.pred, &device);
        assert_close(file, &fused, &golden.values("fused_logits_top64"), 1e-5);
    }
}

/// `1.25·ref − 0.25·dist` over the 64 best tokens of each step of `base`, through the crate's own head.
fn fuse(base: &Golden, pred: &[f32], device: &Device) -> Vec<f32> {
    let row_ids = base.ints("lm_head_row_ids");
    let ids = base.ints("ref_ids_top64");
    let places: Vec<i32> =
        ids.iter().map(|id| row_ids.iter().position(|row| row == id).unwrap() as i32).collect();
    let steps = pred.len() / 576;
    let head = esamp::TiedHead::new(base.tensor("lm_head_rows", device));
    let pred = Tensor::<1>::from_data(pred, device).reshape([steps, 576]);
    let places = Tensor::<1, burn::tensor::Int>::from_data(places.as_slice(), device);
    let dist = values(head.logits_at(pred, places.reshape([steps, 64])));
    let reference = base.values("ref_logits_top64");
    reference.iter().zip(dist).map(|(r, d)| 1.25 * r - 0.25 * d).collect()
}
