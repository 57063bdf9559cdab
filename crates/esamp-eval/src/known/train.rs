//! Training of a network on a world.

use burn::{
    module::Module,
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Int, Tensor, TensorData, activation::log_softmax},
};
use serde::Serialize;

use super::{Batch, Network, Peakedness, Sampler, World};

/// How a network is trained.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TrainSettings {
    pub steps: usize,
    /// Sequences per step.
    pub rows: usize,
    /// The highest learning rate: reached linearly, then lowered along half a cosine to a tenth.
    pub rate: f64,
    /// Seed of the batches.
    pub seed: u64,
}

/// Steps until the learning rate is at its highest.
const WARM_UP: usize = 100;

/// Trains a network with AdamW on the answers; what is before them is not learned. Calls `after` with each step's number
/// and loss, the mean surprisal of a token in nats, and the network so far.
pub fn train(
    world: &dyn World,
    peakedness: Peakedness,
    network: Network,
    settings: TrainSettings,
    mut after: impl FnMut(usize, f32, &Network),
) -> Network {
    let device = network.embedding.val().device();
    let mut sampler = Sampler::new(world, peakedness, settings.seed);
    let mut network = network.train();
    let adam = AdamWConfig::new().with_beta_2(0.98).with_weight_decay(0.01);
    let mut optimizer = adam.init();
    for step in 0..settings.steps {
        let batch = sampler.batch(settings.rows);
        let loss = loss(&network, &batch, &device);
        let shown = loss.clone().inner().into_scalar::<f32>();
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(rate(step, settings), network, gradients);
        after(step, shown, &network);
    }
    network.valid()
}

fn rate(step: usize, settings: TrainSettings) -> f64 {
    let warm = (step + 1) as f64 / WARM_UP as f64;
    let done = step as f64 / settings.steps as f64;
    let cosine = 0.55 + 0.45 * (std::f64::consts::PI * done).cos();
    settings.rate * warm.min(1.0) * cosine
}

/// The mean surprisal of the tokens to learn, `[1]`.
fn loss(network: &Network, batch: &Batch, device: &Device) -> Tensor<1> {
    let (rows, length) = (batch.tokens.len(), batch.tokens[0].len());
    // All prompts of a world are equally long, give or take none.
    let from = batch.learned.iter().map(|learned| learned.start).min().unwrap_or(1) - 1;
    let width = length - from - 1;
    let ids = |columns: std::ops::Range<usize>| {
        let ids = batch.tokens.iter().flat_map(|row| row[columns.clone()].iter());
        ids.map(|&token| token as i32).collect::<Vec<i32>>()
    };
    let inputs = TensorData::new(ids(0..length - 1), [rows, length - 1]);
    let targets = TensorData::new(ids(from + 1..length), [rows, width, 1]);
    let counts = batch.learned.iter().flat_map(|learned| {
        (from + 1..length).map(|place| if learned.contains(&place) { 1.0f32 } else { 0.0 })
    });
    let counts: Vec<f32> = counts.collect();
    let total: f32 = counts.iter().sum();
    let counts = Tensor::<3>::from_data(TensorData::new(counts, [rows, width, 1]), device);
    let logits = network.forward(Tensor::<2, Int>::from_data(inputs, device), from);
    let targets = Tensor::<3, Int>::from_data(targets, device);
    let chosen = log_softmax(logits, 2).gather(2, targets);
    (chosen * counts).sum().neg().div_scalar(total)
}
