//! Draws answers of a network without the decode loop, to see during training how many are right.

use std::collections::HashSet;

use burn::tensor::{Int, Tensor, TensorData, activation::softmax};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use serde::Serialize;

use super::{Network, Vocabulary, World, answer_in};

/// What a number of answers amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drawn {
    /// Answers.
    pub answers: usize,
    /// Right ones.
    pub right: usize,
    /// Different right ones.
    pub different: usize,
}

/// Draws answers at temperature 1, each to a prompt with a hash of its own. `network` is one without gradients.
pub fn drawn(network: &Network, world: &dyn World, answers: usize, seed: u64) -> Drawn {
    let vocabulary = Vocabulary::of(world);
    let device = network.embedding.val().device();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows: Vec<Vec<usize>> =
        (0..answers).map(|_| vocabulary.prompt(world, &mut rng)).collect();
    let prompt = rows.first().map_or(0, Vec::len);
    // The opening, the answer, and its end.
    for length in prompt..prompt + world.longest() + 2 {
        let ids: Vec<i32> = rows.iter().flatten().map(|&token| token as i32).collect();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [answers, length]), &device);
        let shares = softmax(network.forward(tokens, length - 1), 2);
        let shares = shares.into_data().try_into_vec::<f32>().unwrap_or_default();
        for (row, shares) in rows.iter_mut().zip(shares.chunks(vocabulary.size())) {
            row.push(chosen(shares, rng.random()));
        }
    }
    let answer = |row: &Vec<usize>| {
        let said = row[prompt..].split(|&token| token == Vocabulary::END).next();
        answer_in(world, &vocabulary.decode(said.unwrap_or_default()))
    };
    let right: Vec<String> = rows.iter().filter_map(answer).collect();
    let count = right.len();
    let different = right.into_iter().collect::<HashSet<_>>().len();
    Drawn { answers, right: count, different }
}

/// The token at which the sum of the shares passes `drawn`.
fn chosen(shares: &[f32], drawn: f64) -> usize {
    let mut sum = 0.0;
    let passed = shares.iter().position(|&share| {
        sum += f64::from(share);
        sum > drawn
    });
    // The shares of `f32` may sum to slightly less than 1.
    passed.unwrap_or(Vocabulary::END)
}
