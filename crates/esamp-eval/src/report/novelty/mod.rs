//! Is it novelty? What the distiller's prediction error goes along with.
//!
//! Novelty is `‖e‖`, the distance of a token's deep state from the expected one. That it measures *semantic* novelty is a
//! claim; it could as well stand for how hard a choice was, how rare a token is, how late it comes, or how improbable it
//! was. Two looks at the single tokens that a run has kept ([`ProblemRecord::token_sample`]):
//!
//! - [`token_level`]: rank correlations of novelty with surprisal, entropy, rarity and position, over tokens.
//! - [`window_level`]: rank correlations with the semantic distance of 16 tokens from what the other completions of the
//!   prompt have said before them, beyond what those four explain.
//!
//! Each correlation comes three times: as it is, with the other measures held fixed, and with these and the problem held
//! fixed. The last asks whether novelty tells the tokens of one prompt apart; the others also count that prompts differ.
//!
//! Intervals are over problems, drawn with replacement: tokens of one problem are not independent. No token is left out:
//! in a resample the tokens of a problem weigh as often as it was drawn, and ranks of weighted tokens come from one sort for
//! all resamples (`ranks`). Take the records of one arm and one task; mixed tasks differ in everything at once.
//!
//! A correlation is no cause: whatever moves with novelty and is not among the measures may stand behind it.

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

/// Something that a token or a window has a number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// `‖deep − expected deep‖`.
    Novelty,
    /// The same as a multiple of `‖deep‖`.
    RelativeNovelty,
    /// −log-probability of the token in the model's distribution: how improbable it was.
    Surprisal,
    /// Entropy of the reference distribution: how hard the choice was.
    Entropy,
    /// Rarity: rank of the token among those that a plain arm has generated, 0 for the most frequent one.
    FrequencyRank,
    /// A second measure of rarity: in a byte-pair vocabulary, ids follow the order in which tokens were learned.
    TokenId,
    /// Place in the completion, from 0.
    Position,
    /// 1 − the largest cosine between a window and what another completion has said before it: how far the *nearest* one
    /// is.
    Distance,
    /// 1 − the mean of these cosines.
    MeanDistance,
}

impl Measure {
    /// Its name in tables.
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

    /// What it is counted in.
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

/// A number with its interval, or why there is none: a measure that does not vary goes along with nothing.
pub type Known = Result<Interval, MetricError>;

/// How two measures go together.
#[derive(Clone, Debug, PartialEq)]
pub struct Correlation {
    /// The one.
    pub of: Measure,
    /// The other.
    pub with: Measure,
    /// What the partial correlations hold fixed.
    pub given: Vec<Measure>,
    /// Spearman's rank correlation. As with the other two, its interval is refused where a resample of the problems has no
    /// number: then there are too few problems for one.
    pub spearman: Known,
    /// The partial one: what is left of the ranks after the best linear fit to the ranks of `given`
    /// ([`partial_spearman`](crate::metrics::partial_spearman)).
    pub partial: Known,
    /// The partial one with the problem held fixed too: the fit has a constant for each problem.
    pub within: Known,
}

/// What was found over tokens, or over windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// How many there are.
    pub n: usize,
    /// How many problems they belong to: what the intervals draw.
    pub problems: usize,
    /// The correlations.
    pub correlations: Vec<Correlation>,
    /// The other measures in deciles of relative novelty.
    pub deciles: Deciles,
}

impl Level {
    /// `what` the items are: tokens, windows.
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

/// Settings of the intervals that the report shows: 95 %, 500 resamples. Their ends are off by some 10 % of the half-width,
/// which changes the second digit.
pub fn intervals() -> BootstrapConfig {
    BootstrapConfig::default().with_resamples(500)
}

/// What may explain novelty away, and is held fixed in turn.
const CONTROLS: [Measure; 4] =
    [Measure::Surprisal, Measure::Entropy, Measure::FrequencyRank, Measure::Position];

/// Novelty and relative novelty of single tokens, with surprisal, entropy, rarity and position.
///
/// Partial correlations hold the other three fixed. The token's id takes the place of its frequency rank, as the other
/// measure of rarity: the two are never held fixed for each other. Novelty is known before the token is chosen; its
/// surprisal, rank and id only with it.
///
/// `ranks` are those of a plain arm. Cost: a sort of each measure, and some `50·n` operations a resample: about a second for
/// 46,000 tokens, which is 90 full records.
///
/// # Errors
///
/// [`MetricError::TooFew`] below 10 tokens or 2 problems, [`MetricError::NotFinite`], and settings that cannot work
/// ([`BootstrapMethod::Bca`](crate::metrics::BootstrapMethod::Bca) is one). What is undefined for one pair is in its
/// [`Correlation`].
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

/// The measures that single tokens and windows share.
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

/// A token's number of one of [`MEASURED`]; its id for a measure that only windows have.
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
