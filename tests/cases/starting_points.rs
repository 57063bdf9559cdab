//! Where a distiller starts: the loss before the first update is what theory says.

use crate::{
    device,
    golden::{tolerance, values},
};
use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    HiddenStates,
    distillers::{
        Distiller, LowRankConfig, LowRankDistiller, LowRankStart, OutputStart, SourceNorm,
        SwiGluConfig,
    },
    errors::ConfigError,
    optim::{Learner, OptimizerConfig},
};

pub(super) type Matrix = Vec<Vec<f64>>;

/// Numbers without a pattern that a bug could fit into.
pub(super) fn wave(rows: usize, columns: usize, phase: f64) -> Matrix {
    let at = |i: usize, j: usize| {
        let t = (i * columns + j) as f64;
        1.3 * (t * 1.7 + phase).sin() + 0.4 * (t * 0.31 * (1.0 + phase)).cos()
    };
    (0..rows).map(|i| (0..columns).map(|j| at(i, j)).collect()).collect()
}

pub(super) fn tensor(matrix: &Matrix, device: &Device) -> Tensor<2> {
    let numbers: Vec<f32> = matrix.iter().flatten().map(|&v| v as f32).collect();
    Tensor::from_data(TensorData::new(numbers, [matrix.len(), matrix[0].len()]), device)
}

pub(super) fn matrix(tensor: Tensor<2>) -> Matrix {
    let width = tensor.dims()[1];
    let numbers = values(tensor);
    numbers.chunks(width).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn transpose(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|c| a.iter().map(|row| row[c]).collect()).collect()
}

pub(super) fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let b = transpose(b);
    a.iter().map(|row| b.iter().map(|column| dot(row, column)).collect()).collect()
}

pub(super) fn zip(a: &Matrix, b: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
    let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect();
    a.iter().zip(b).map(row).collect()
}

fn scaled(a: &Matrix, factor: f64) -> Matrix {
    a.iter().map(|row| row.iter().map(|v| v * factor).collect()).collect()
}

pub(super) fn mean_square(a: &Matrix) -> f64 {
    a.iter().map(|row| dot(row, row)).sum::<f64>() / (a.len() * a[0].len()) as f64
}

pub(super) fn mse(a: &Matrix, b: &Matrix) -> f64 {
    mean_square(&zip(a, b, |a, b| a - b))
}

pub(super) fn layer_norm(a: &Matrix) -> Matrix {
    let norm = |row: &Vec<f64>| {
        let width = row.len() as f64;
        let mean = row.iter().sum::<f64>() / width;
        let centred: Vec<f64> = row.iter().map(|v| v - mean).collect();
        let scale = (dot(&centred, &centred) / width + 1e-5).sqrt();
        centred.iter().map(|v| v / scale).collect()
    };
    a.iter().map(norm).collect()
}

/// `count` orthonormal vectors: rows of a product of reflections.
pub(super) fn orthonormal(count: usize, size: usize, phase: f64) -> Matrix {
    let mut rows: Matrix =
        (0..size).map(|i| (0..size).map(|j| f64::from(i == j)).collect()).collect();
    for v in wave(3, size, phase) {
        let scale = 2.0 / dot(&v, &v);
        for row in &mut rows {
            let share = scale * dot(row, &v);
            for (r, v) in row.iter_mut().zip(&v) {
                *r -= share * v;
            }
        }
    }
    rows.truncate(count);
    rows
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(super) fn assert_near(what: &str, got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance, "{what}: expected {expected}, got {got}");
}

pub(super) fn assert_all_near(what: &str, got: &Matrix, expected: &Matrix, tolerance: f64) {
    let worst = zip(got, expected, |g, e| (g - e).abs()).into_iter().flatten().fold(0.0, f64::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

/// The loss that the first update sees.
fn start_loss<D: Distiller>(distiller: D, shallow: &Matrix, deep: &Matrix, device: &Device) -> f64 {
    let hidden = HiddenStates::new(tensor(shallow, device), tensor(deep, device)).unwrap();
    let mut learner = Learner::new(distiller, OptimizerConfig::sgd(1e-3)).unwrap();
    f64::from(learner.update(&hidden).loss.into_scalar::<f32>())
}

#[test]
fn blocks_that_start_at_zero_start_from_the_normed_source() {
    let device = device();
    let (shallow, deep) = (scaled(&wave(5, 48, 0.2), 7.0), wave(5, 48, 1.1));
    let rms: Matrix = shallow
        .iter()
        .map(|row| {
            let scale = (dot(row, row) / row.len() as f64 + 1e-5).sqrt();
            row.iter().map(|v| v / scale).collect()
        })
        .collect();
    for (source_norm, source) in [(SourceNorm::Rms, &rms), (SourceNorm::None, &shallow)] {
        let config = SwiGluConfig::new().with_source_norm(source_norm);
        let distiller = config.init(48, 3, &device).unwrap();
        let expected = mse(source, &deep);
        let got = start_loss(distiller, &shallow, &deep, &device);
        assert_near("zero", got, expected, 1e-6 * expected);
    }
}

/// `E[silu(g)²]` for a normal `g`, by the trapezoid rule.
fn mean_square_gate(variance: f64) -> f64 {
    const STEPS: i32 = 4000;
    let step = 10.0 / f64::from(STEPS);
    let density = |z: f64| (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let at = |i: i32| {
        let z = f64::from(i) * step;
        silu(z * variance.sqrt()).powi(2) * density(z) * step
    };
    (-STEPS..=STEPS).map(at).sum()
}

/// With weights uniform in ±1/√fan-in, gate and up of an input of mean square `m` have variance `m/3` each, so
/// `silu(gate)·up` has the mean square `E[silu(g)²]·m/3`, and the last projection takes a third of that.
#[test]
fn blocks_that_start_at_random_add_the_variance_of_their_weights() {
    const SEEDS: u64 = 200;
    let device = device();
    let config = SwiGluConfig::new().with_blocks(1).with_d_hidden(64);
    let config = config.with_source_norm(SourceNorm::None).with_output_start(OutputStart::FanIn);
    for m in [1.0, 6.0] {
        let shallow = wave(1, 96, 0.4);
        let shallow = scaled(&shallow, (m / mean_square(&shallow)).sqrt());
        let deep = wave(1, 96, 2.3);
        let expected = m / 9.0 * mean_square_gate(m / 3.0);
        let mut added = Vec::new();
        let mut losses = Vec::new();
        for seed in 0..SEEDS {
            let distiller = config.init(96, seed, &device).unwrap();
            let got = matrix(distiller.predict(tensor(&shallow, &device)));
            added.push(mse(&got, &shallow));
            losses.push(mse(&got, &deep));
        }
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
        let error = |all: &[f64]| {
            let square = all.iter().map(|v| (v - mean(all)).powi(2)).sum::<f64>();
            (square / (all.len() * (all.len() - 1)) as f64).sqrt()
        };
        assert!(error(&added) < 0.05 * expected, "{} {expected}", error(&added));
        assert_near("added variance", mean(&added), expected, 4.0 * error(&added));
        // The noise has mean 0 and does not know the deep state: the start loss is larger by just its variance.
        let loss = mse(&shallow, &deep) + expected;
        assert_near("start loss", mean(&losses), loss, 4.0 * error(&losses));
    }
    // The sizes that `SwiGluConfig` names.
    assert_near("behind a norm", mean_square_gate(1.0 / 3.0) / 9.0, 0.0115, 0.0005);
    let large = 1e4;
    assert_near(
        "large",
        mean_square_gate(large / 3.0) * large / 9.0 / (large * large / 54.0),
        1.0,
        1e-2,
    );
}

/// What the distiller adds to its source, before the layer norm.
pub(super) fn correction(distiller: &LowRankDistiller, source: &Matrix) -> Matrix {
    let low = product(source, &matrix(distiller.a.val()));
    let gate = product(source, &matrix(distiller.g.val()));
    let bias: Vec<f64> = values(distiller.g_bias.val()).into_iter().map(f64::from).collect();
    let open: Matrix =
        gate.iter().map(|row| row.iter().zip(&bias).map(|(g, b)| silu(g + b)).collect()).collect();
    product(&zip(&low, &open, |l, g| l * g), &matrix(distiller.b.val()))
}

#[test]
fn a_normal_low_rank_start_is_nearly_the_layer_norm_of_the_source() {
    let device = device();
    let (d, rank) = (96, 24);
    let (shallow, deep) = (wave(6, d, 0.2), wave(6, d, 1.9));
    let mut relative = 0.0;
    for seed in 0..20 {
        let distiller = LowRankConfig::new().with_rank(rank).init(d, seed, &device).unwrap();
        let added = correction(&distiller, &shallow);
        relative += (mean_square(&added) / mean_square(&shallow)).sqrt() / 20.0;
        // Two directions differ by at most twice the relative distance of the vectors, and the layer norm sees what is
        // left of them without their mean.
        let bound = shallow.iter().zip(&added).map(|(x, added)| {
            let length = |v: &[f64]| {
                let mean = v.iter().sum::<f64>() / v.len() as f64;
                v.iter().map(|v| (v - mean).powi(2)).sum::<f64>().sqrt()
            };
            (2.0 * length(added) / length(x)).powi(2)
        });
        let bound = (bound.sum::<f64>() / shallow.len() as f64).sqrt();
        let plain = mse(&layer_norm(&shallow), &deep).sqrt();
        let got = start_loss(distiller, &shallow, &deep, &device).sqrt();
        assert_near("start loss", got, plain, bound + tolerance(&device, 1e-4));
        assert!(bound < 0.1, "the bound says something: {bound}");
    }
    let expected = 0.0004 * silu(1.0) * ((d * rank) as f64).sqrt();
    assert_near("relative size", relative, expected, 0.1 * expected);
}

/// The map `down·½(up + gate)` with known singular values and vectors, in weights as checkpoints keep them.
struct Ffn {
    values: Vec<f64>,
    /// Directions in the hidden state that come in, and those that come out.
    input: Matrix,
    output: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

const D: usize = 24;
const D_HIDDEN: usize = 30;

impl Ffn {
    fn new() -> Self {
        let values: Vec<f64> = (0..D).map(|i| 2.0 * 0.75f64.powi(i as i32)).collect();
        let (input, output) = (orthonormal(D, D, 0.7), orthonormal(D, D, 1.8));
        // ½(up + gate) has the input directions as its rows, and 6 rows of zeros below them.
        let gate = wave(D_HIDDEN, D, 0.1);
        let directions = |i: usize, j: usize| input.get(i).map_or(0.0, |row| row[j]);
        let up = |i: usize, j: usize| 2.0 * directions(i, j) - gate[i][j];
        let up = (0..D_HIDDEN).map(|i| (0..D).map(|j| up(i, j)).collect()).collect();
        let down = |i: usize, j: usize| if j < D { values[j] * output[j][i] } else { 5.0 };
        let down = (0..D).map(|i| (0..D_HIDDEN).map(|j| down(i, j)).collect()).collect();
        Self { values, input, output, gate, up, down }
    }

    fn init(
        &self,
        config: &LowRankConfig,
        device: &Device,
    ) -> Result<LowRankDistiller, ConfigError> {
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(|m| tensor(m, device));
        config.init_from_ffn(gate, up, down, 1, device)
    }

    /// `x + Σ value·(x·input)·output` over the `rank` largest.
    fn source_and_map(&self, x: &Matrix, rank: usize) -> Matrix {
        let mut y = x.clone();
        for (x, y) in x.iter().zip(&mut y) {
            for i in 0..rank {
                let share = self.values[i] * dot(x, &self.input[i]);
                for (y, o) in y.iter_mut().zip(&self.output[i]) {
                    *y += share * o;
                }
            }
        }
        y
    }
}

#[test]
fn a_start_from_a_feed_forward_map_is_its_best_approximation() {
    let device = device();
    let ffn = Ffn::new();
    let (shallow, deep) = (wave(6, D, 0.2), wave(6, D, 1.9));
    for rank in [1, 4, 12] {
        let distiller = ffn.init(&LowRankConfig::new().with_rank(rank), &device).unwrap();
        let expected = layer_norm(&ffn.source_and_map(&shallow, rank));
        let got = matrix(distiller.predict(tensor(&shallow, &device)));
        assert_all_near("prediction", &got, &expected, tolerance(&device, 1e-4));
        let loss = start_loss(distiller, &shallow, &deep, &device);
        let expected = mse(&expected, &deep);
        assert_near("start loss", loss, expected, tolerance(&device, 1e-4) * expected);
    }
    // Behind a norm of the source, x is the normed state.
    let config = LowRankConfig::new().with_rank(4).with_source_norm(SourceNorm::Rms);
    let normed: Matrix = shallow
        .iter()
        .map(|row| scaled(&vec![row.clone()], (D as f64 / dot(row, row)).sqrt()).remove(0))
        .collect();
    let got = ffn.init(&config, &device).unwrap().predict(tensor(&shallow, &device));
    let expected = layer_norm(&ffn.source_and_map(&normed, 4));
    assert_all_near("normed source", &matrix(got), &expected, tolerance(&device, 1e-4));
}

#[test]
fn columns_beyond_the_rank_of_the_map_add_nothing_and_can_learn() {
    let device = device();
    let ffn = Ffn::new();
    let shallow = wave(6, D, 0.2);
    let distiller = ffn.init(&LowRankConfig::new().with_rank(D + 6), &device).unwrap();
    let expected = layer_norm(&ffn.source_and_map(&shallow, D));
    assert_all_near(
        "prediction",
        &matrix(distiller.predict(tensor(&shallow, &device))),
        &expected,
        tolerance(&device, 1e-4),
    );
    let hidden = HiddenStates::new(tensor(&shallow, &device), tensor(&wave(6, D, 1.9), &device));
    let spare = |distiller: &LowRankDistiller| matrix(distiller.b.val()).split_off(D);
    assert_eq!(mean_square(&spare(&distiller)), 0.0);
    let mut learner = Learner::new(distiller, OptimizerConfig::sgd(0.1)).unwrap();
    learner.update(&hidden.unwrap());
    let moved = spare(learner.distiller());
    assert!(moved.iter().all(|row| dot(row, row) > 0.0), "{moved:?}");
}

#[test]
fn weights_that_do_not_fit_together_are_refused() {
    let device = device();
    let ffn = Ffn::new();
    let config = LowRankConfig::new().with_rank(4);
    let wording = |config: &LowRankConfig, gate: &Matrix, up: &Matrix, down: &Matrix| {
        let [gate, up, down] = [gate, up, down].map(|m| tensor(m, &device));
        config.init_from_ffn(gate, up, down, 0, &device).unwrap_err().to_string()
    };
    assert_eq!(
        wording(&config, &ffn.down, &ffn.up, &ffn.down),
        "gate: expected shape [30, 24], got [24, 30]"
    );
    assert_eq!(
        wording(&config, &ffn.gate, &ffn.up, &ffn.up),
        "down: expected shape [24, 30], got [30, 24]"
    );
    let mut broken = ffn.gate.clone();
    broken[3][4] = f64::INFINITY;
    assert_eq!(
        wording(&config, &broken, &ffn.up, &ffn.down),
        "weights of the feed-forward map: expected finite numbers, got one that is not"
    );
    let ridge = config.clone().with_start(LowRankStart::Ridge { rows: 4, lambda: 1e-2 });
    assert_eq!(
        wording(&ridge, &ffn.gate, &ffn.up, &ffn.down),
        "start: expected normal, because init_from_ffn sets the start, got Ridge { rows: 4, lambda: 0.01 }"
    );
    let empty = |shape: [usize; 2]| Tensor::<2>::zeros(shape, &device);
    let refused = config.init_from_ffn(empty([0, 5]), empty([0, 5]), empty([5, 0]), 0, &device);
    assert_eq!(refused.unwrap_err().to_string(), "d_hidden: expected at least 1, got 0");
    let none = config.with_rank(0);
    assert_eq!(wording(&none, &ffn.gate, &ffn.up, &ffn.down), "rank: expected at least 1, got 0");
}
