//! Is it novelty? What the distiller's prediction error correlates with.
//!
//! Novelty is `‖e‖`, the distance between a token's deep state and the expected one. Whether it measures
//! *semantic* novelty is open; it could as well reflect how hard a choice was, how rare or improbable the
//! token, or how late its position. Two analyses of the single tokens that a run has kept
//! ([`ProblemRecord::token_sample`]):
//!
//! - [`token_level`]: rank correlations of novelty with surprisal, entropy, rarity and position, over
//!   tokens.
//! - [`window_level`]: rank correlations with the semantic distance of 16 tokens from what the other
//!   completions of the prompt said before them, beyond what those four explain.
//!
//! Each correlation is given three times: plain, with the other measures held fixed, and with these and the
//! problem held fixed. The last one tells whether novelty distinguishes tokens of the same prompt; the
//! others also reflect differences between prompts.
//!
//! Intervals are over problems, resampled with replacement, because tokens of one problem are not
//! independent. All tokens are used: in a resample, tokens are weighted by how often their problem was
//! drawn, and one sort gives the ranks of weighted tokens for all resamples (`ranks`). Use the records of
//! one arm and one task; tasks differ in every measure at once.
//!
//! Correlation is not causation: something outside these measures may drive both sides.

mod deciles;
mod ranks;
mod windows;

use std::fmt;

use crate::{
    metrics::{BootstrapConfig, Interval, MetricError},
    record::{FrequencyRanks, ProblemRecord, TokenRecord},
};

use deciles::PARTS;
use ranks::{Question, Table};

pub use deciles::{Deciles, Summary};
pub use windows::{Embed, MAX_GROUPS, WINDOW, WindowError, WindowLevel, window_level};

/// A quantity that a token or a window has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// `‖deep − expected deep‖`.
    Novelty,
    /// The same relative to `‖deep‖`.
    RelativeNovelty,
    /// −log-probability of the token in the model's distribution: how improbable it was.
    Surprisal,
    /// Entropy of the reference distribution: how hard the choice was.
    Entropy,
    /// Rarity: rank of the token among those a plain arm has generated; 0 is the most frequent.
    FrequencyRank,
    /// A second measure of rarity: in a byte-pair vocabulary, ids follow the order in which tokens were
    /// learned.
    TokenId,
    /// Position in the completion, from 0.
    Position,
    /// 1 − the largest cosine between a window and what another completion said before it: the distance to
    /// the *nearest* one.
    Distance,
    /// 1 − the mean of these cosines.
    MeanDistance,
}

impl Measure {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Novelty => "novelty",
            Self::RelativeNovelty => "relative novelty",
            Self::Surprisal => "surprisal",
            Self::Entropy => "reference entropy",
            Self::FrequencyRank => "frequency rank",
            Self::TokenId => "token id",
            Self::Position => "position",
            Self::Distance => "semantic distance",
            Self::MeanDistance => "mean semantic distance",
        }
    }

    /// The unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Novelty => "units of the hidden state",
            Self::RelativeNovelty => "multiples of ‖deep‖",
            Self::Surprisal | Self::Entropy => "nats",
            Self::FrequencyRank => "rank, 0 is the most frequent",
            Self::TokenId => "id",
            Self::Position => "tokens from the beginning",
            Self::Distance => "1 − largest cosine",
            Self::MeanDistance => "1 − mean cosine",
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An estimate with its interval, or why it is undefined, for example for a constant measure.
pub type Known = Result<Interval, MetricError>;

/// The correlation of two measures.
#[derive(Clone, Debug, PartialEq)]
pub struct Correlation {
    /// The first measure.
    pub of: Measure,
    /// The second measure.
    pub with: Measure,
    /// The measures that the partial correlations hold fixed.
    pub given: Vec<Measure>,
    /// Spearman's rank correlation. As for the other two, the interval is an error if a resample of the
    /// problems has no value: then there are too few problems.
    pub spearman: Known,
    /// The partial correlation: of the residuals of the ranks after a linear fit to the ranks of `given`
    /// ([`partial_spearman`](crate::metrics::partial_spearman)).
    pub partial: Known,
    /// The partial correlation with the problem held fixed too: the fit has a constant per problem.
    pub within: Known,
}

/// The results over tokens or over windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Number of items.
    pub n: usize,
    /// Number of problems they belong to, which is what the intervals resample.
    pub problems: usize,
    /// The correlations.
    pub correlations: Vec<Correlation>,
    /// The other measures in deciles of relative novelty.
    pub deciles: Deciles,
}

impl Level {
    /// `what` names the items in messages: tokens or windows.
    fn of(
        what: &str,
        table: &Table,
        questions: &[Question],
        shown: &[Measure],
        config: &BootstrapConfig,
    ) -> Result<Self, MetricError> {
        if table.len() < PARTS {
            let (what, got) = (what.to_owned(), table.len());
            return Err(MetricError::TooFew { what, expected: PARTS, got });
        }
        Ok(Self {
            n: table.len(),
            problems: table.problems(),
            correlations: table.correlations(questions, config)?,
            deciles: Deciles::of(table, Measure::RelativeNovelty, shown)?,
        })
    }
}

/// Bootstrap settings of the report: 95 %, 500 resamples. The ends vary by about 10 % of the half-width,
/// which affects the second digit.
pub fn intervals() -> BootstrapConfig {
    BootstrapConfig::default().with_resamples(500)
}

/// Other explanations of novelty, which are held fixed in turn.
const CONTROLS: [Measure; 4] =
    [Measure::Surprisal, Measure::Entropy, Measure::FrequencyRank, Measure::Position];

/// Correlates novelty and relative novelty of single tokens with surprisal, entropy, rarity and position.
///
/// Partial correlations hold the other three fixed. For the token's id as the second measure of rarity, the
/// frequency rank is not held fixed. Novelty is known before the token is chosen; surprisal, rank and id
/// only with it.
///
/// `ranks` are those of a plain arm. Cost: a sort per measure and about `50·n` operations per resample:
/// about a second for 46,000 tokens, which is 90 full records.
///
/// # Errors
///
/// [`MetricError::TooFew`] for fewer than 10 tokens or 2 problems, [`MetricError::NotFinite`], and invalid
/// settings, including [`BootstrapMethod::Bca`](crate::metrics::BootstrapMethod::Bca). What is undefined
/// for one pair is reported in its [`Correlation`].
pub fn token_level(
    records: &[&ProblemRecord],
    ranks: &FrequencyRanks,
    config: &BootstrapConfig,
) -> Result<Level, MetricError> {
    let tokens = || records.iter().flat_map(|record| &record.token_sample);
    let of = |record: &&ProblemRecord| vec![record.problem; record.token_sample.len()];
    let problems: Vec<usize> = records.iter().flat_map(of).collect();
    let measured = MEASURED.map(|measure| {
        (measure, tokens().map(|token| number_of(token, measure, ranks)).collect::<Vec<f64>>())
    });
    let ids = (Measure::TokenId, tokens().map(|token| f64::from(token.token)).collect());
    let table = Table::new(&problems, measured.into_iter().chain([ids]).collect())?;
    let mut questions = Vec::new();
    for of in [Measure::Novelty, Measure::RelativeNovelty] {
        for with in CONTROLS {
            questions.push(Question { of, with, given: others(with) });
        }
        let given = others(Measure::FrequencyRank);
        questions.push(Question { of, with: Measure::TokenId, given });
    }
    let shown = [&CONTROLS[..], &[Measure::TokenId]].concat();
    Level::of("tokens", &table, &questions, &shown, config)
}

/// The measures that both single tokens and windows have.
const MEASURED: [Measure; 6] = [
    Measure::Novelty,
    Measure::RelativeNovelty,
    Measure::Surprisal,
    Measure::Entropy,
    Measure::FrequencyRank,
    Measure::Position,
];

fn others(than: Measure) -> Vec<Measure> {
    CONTROLS.into_iter().filter(|&control| control != than).collect()
}

/// A token's value of one of [`MEASURED`]; its id for measures that only windows have.
fn number_of(token: &TokenRecord, measure: Measure, ranks: &FrequencyRanks) -> f64 {
    match measure {
        Measure::Novelty => token.novelty,
        Measure::RelativeNovelty => token.relative_novelty,
        Measure::Surprisal => token.surprisal,
        Measure::Entropy => token.reference_entropy,
        Measure::FrequencyRank => ranks.of(token.token),
        Measure::Position => token.position as f64,
        Measure::TokenId | Measure::Distance | Measure::MeanDistance => f64::from(token.token),
    }
}
