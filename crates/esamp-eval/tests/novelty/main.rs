//! The report section "Is it novelty?", on records with known answers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod tokens;
mod windows;

use std::path::Path;

use esamp::{Counters, TokenId, errors::TextError};
use esamp_eval::{
    metrics::{BootstrapConfig, MetricError, partial_spearman, spearman},
    record::{CompletionRecord, FrequencyRanks, ProblemRecord, TokenRecord, Totals},
    report::{
        novelty::{
            Correlation, Known, Level, MAX_GROUPS, Measure, WINDOW, WindowLevel, intervals,
            token_level, window_level,
        },
        novelty_plot::novelty_figure,
    },
};
use esamp_programs::failure::Failure;
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

fn group(problem: usize, seed: u64, completions: &[Vec<TokenId>]) -> ProblemRecord {
    ProblemRecord {
        task: "stories".into(),
        problem,
        arm: "esamp-0.5".into(),
        seed,
        prompt: String::new(),
        prompt_tokens: 1,
        expected: None,
        solutions: None,
        completions: completions.iter().map(|tokens| completion(tokens)).collect(),
        tally: None,
        totals: Totals::default(),
        batch_counters: Counters::default(),
        token_sample: Vec::new(),
    }
}

fn completion(tokens: &[TokenId]) -> CompletionRecord {
    CompletionRecord {
        text: String::new(),
        tokens: tokens.to_vec(),
        finish: "max_new_tokens".into(),
        correct: None,
        answer: None,
        mode: None,
        log_prob_sum: 0.0,
        sampling_log_prob_sum: 0.0,
        mean_entropy: 0.0,
        mean_reference_entropy: 0.0,
        mean_kl: 0.0,
        mean_candidates: 0.0,
        mean_novelty: None,
        mean_relative_novelty: None,
        mean_slope: None,
        mean_sharpening: None,
    }
}

const TOKEN: TokenRecord = TokenRecord {
    completion: 0,
    position: 1,
    token: 0,
    novelty: 1.0,
    relative_novelty: 1.0,
    surprisal: 1.0,
    reference_entropy: 1.0,
};

struct Numbers(ChaCha8Rng);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// A number in `[0, 1)`.
    fn share(&mut self) -> f64 {
        self.below(1 << 53) as f64 / (1u64 << 53) as f64
    }
}

/// Ten problems of 400 independent tokens each, modified by `plant`.
fn tokens(plant: impl Fn(&mut TokenRecord, &mut Numbers)) -> Vec<ProblemRecord> {
    let mut numbers = Numbers::new(11);
    let mut records = Vec::new();
    for problem in 0..10 {
        let mut record = group(problem, 0, &[]);
        for _ in 0..400 {
            let mut token = TokenRecord {
                completion: 0,
                position: 1 + numbers.below(95),
                token: numbers.below(300) as TokenId,
                novelty: 40.0 + numbers.share(),
                relative_novelty: numbers.share(),
                surprisal: 5.0 * numbers.share(),
                reference_entropy: 3.0 * numbers.share(),
            };
            plant(&mut token, &mut numbers);
            record.token_sample.push(token);
        }
        records.push(record);
    }
    records
}

fn all(records: &[ProblemRecord]) -> Vec<&ProblemRecord> {
    records.iter().collect()
}

/// A plain arm in which token `t` occurs `300 − t` times, so that its rank is `t`.
fn plain() -> FrequencyRanks {
    let said: Vec<TokenId> = (0..300).flat_map(|token| vec![token; 300 - token as usize]).collect();
    FrequencyRanks::count(&[group(0, 0, &[said])])
}

fn find(level: &Level, of: Measure, with: Measure) -> &Correlation {
    let mut found = level.correlations.iter().filter(|it| it.of == of && it.with == with);
    let correlation = found.next().unwrap();
    assert!(found.next().is_none(), "{of} with {with}: expected once");
    correlation
}

fn estimate(known: &Known) -> f64 {
    known.as_ref().unwrap().estimate
}

fn text(known: &Known) -> String {
    known.as_ref().unwrap_err().to_string()
}

/// Four standard deviations of the rank correlation of 4,000 independent pairs.
const CHANCE: f64 = 4.0 / 63.0;
