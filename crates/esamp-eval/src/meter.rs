//! An observer that sums up traces row by row.

use std::collections::HashMap;

use esamp::{
    CompletionId,
    telemetry::{Observer, RowTrace, Steering},
};

use crate::record::{TokenRecord, Totals};

/// Sums up the traces of each row.
#[derive(Debug, Default)]
pub struct Meter {
    rows: HashMap<CompletionId, RowMeter>,
    keeps_tokens: bool,
}

/// Sums over the tokens of one row.
#[derive(Clone, Debug, Default)]
pub struct RowMeter {
    pub tokens: u64,
    pub steered: u64,
    pub interventions: u64,
    pub not_finite: u64,
    pub candidates: u64,
    pub log_prob: f64,
    pub sampling_log_prob: f64,
    pub entropy: f64,
    pub reference_entropy: f64,
    pub kl: f64,
    pub novelty: Mean,
    pub relative_novelty: Mean,
    pub slope: Mean,
    pub sharpening: Mean,
    /// The steered tokens, if they are kept. The index of the completion is filled in later.
    pub kept: Vec<TokenRecord>,
}

/// The mean of the values that are present.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: f64,
    count: u64,
}

impl Meter {
    /// A meter; keeps the steered tokens if `keeps_tokens`.
    pub fn new(keeps_tokens: bool) -> Self {
        Self { rows: HashMap::new(), keeps_tokens }
    }

    /// Takes the sums of a row.
    pub fn take(&mut self, row: CompletionId) -> Option<RowMeter> {
        self.rows.remove(&row)
    }
}

impl Mean {
    fn add(&mut self, number: Option<f64>) {
        if let Some(number) = number {
            self.sum += number;
            self.count += 1;
        }
    }

    /// Adds the values of another mean.
    pub fn merge(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    /// The mean, or `None` without values.
    pub fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

impl Totals {
    /// Adds the sums of a row.
    pub fn add(&mut self, row: &RowMeter) {
        self.tokens += row.tokens;
        self.steered += row.steered;
        self.interventions += row.interventions;
        self.not_finite += row.not_finite;
        self.candidates += row.candidates;
    }
}

impl Observer for Meter {
    fn token(&mut self, trace: &RowTrace) {
        let row = self.rows.entry(trace.completion).or_default();
        let steered = trace.steering == Steering::Steered;
        let novelty = trace.novelty.map(f64::from);
        row.tokens += 1;
        row.steered += u64::from(steered);
        let changed = trace.unsteered_token.is_some_and(|token| token != trace.token);
        row.interventions += u64::from(steered && changed);
        row.not_finite += u64::from(trace.steering == Steering::NotFinite);
        row.candidates += trace.candidates as u64;
        row.log_prob -= trace.model_surprisal.map_or(f64::NAN, f64::from);
        row.sampling_log_prob += f64::from(trace.log_prob);
        row.entropy += trace.entropy;
        row.reference_entropy += trace.reference_entropy;
        row.kl += trace.kl;
        row.novelty.add(novelty);
        row.relative_novelty.add(trace.relative_novelty);
        row.slope.add(trace.slope);
        row.sharpening.add(trace.sharpening);
        if let (true, true, Some(novelty), Some(relative), Some(surprisal)) =
            (self.keeps_tokens, steered, novelty, trace.relative_novelty, trace.model_surprisal)
        {
            row.kept.push(TokenRecord {
                completion: 0,
                position: trace.position,
                token: trace.token,
                novelty,
                relative_novelty: relative,
                surprisal: f64::from(surprisal),
                reference_entropy: trace.reference_entropy,
            });
        }
    }
}
