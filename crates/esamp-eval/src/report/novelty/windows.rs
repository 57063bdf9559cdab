//! Does novelty predict content that has not been said yet?
//!
//! A completion is cut into windows of [`WINDOW`] tokens. When a window begins at position `t`, every other
//! completion of its group (same problem, same seed) has written its tokens before `t` or has ended,
//! because they run in step; the distiller they share has learned from exactly these tokens. The *semantic
//! distance* of the window is its distance from the nearest of these texts: 1 − the largest cosine of their
//! embeddings. The nearest one counts because what a single completion has already said is not new, however
//! far the others are; novelty search (Lehman and Stanley, *Abandoning Objectives*, 2011) uses nearest
//! neighbours for the same reason. 1 − the mean cosine is a second measure.
//!
//! The texts of the others grow with `t`, and length alone changes the similarity between texts, so
//! position is one of the measures held fixed.
//!
//! The novelty of a window is taken in two ways:
//!
//! - *during*: the mean over its own sampled tokens. A token's `‖e‖` is known before the token is chosen,
//!   but its deep state has seen the earlier tokens of the window, so an unusual beginning may raise both
//!   sides.
//! - *before*: the mean over the sampled tokens of the [`WINDOW`] positions before it, for surprisal and
//!   the other measures too. All of it is known before the window is written, so nothing looks ahead.

use std::collections::HashMap;

use esamp::{Detokenize, TokenId, errors::TextError};
use esamp_programs::failure::Failure;

use super::{
    CONTROLS, Level, MEASURED, Measure, number_of, others,
    ranks::{Question, Table},
};
use crate::{
    metrics::{BootstrapConfig, MetricError, cosine},
    record::{CompletionRecord, FrequencyRanks, ProblemRecord},
};

/// Tokens per window: about a dozen words, close to the minimum for a meaningful sentence embedding.
pub const WINDOW: usize = 16;

/// Maximum number of groups in a report: 30 problems of one seed.
pub const MAX_GROUPS: usize = 30;

/// Embeds texts, in order: vectors of equal width and any non-zero length.
pub type Embed<'e> = dyn FnMut(&[String]) -> Result<Vec<Vec<f64>>, Failure> + 'e;

/// The results over windows.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowLevel {
    /// Groups that were analysed: the first ones by seed, then by problem.
    pub groups: usize,
    /// All groups.
    pub all_groups: usize,
    /// Texts that were embedded.
    pub texts: usize,
    /// Windows with a distance.
    pub windows: usize,
    /// Windows without a distance: their tokens have no text, or no other completion has said anything.
    pub left_out: usize,
    /// With the means of the windows' own tokens, for windows with a sampled token.
    pub during: Level,
    /// With the means of the tokens before the windows, for windows with a sampled token there.
    pub before: Level,
}

/// Windows could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// Too few windows, or embeddings without a cosine.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// The detokenizer failed.
    #[error("text of a window: {0}")]
    Text(#[from] TextError),
    /// The embedder failed.
    #[error("{0}")]
    Embedding(Failure),
}

impl From<WindowError> for Failure {
    fn from(error: WindowError) -> Self {
        match error {
            WindowError::Embedding(failure) => failure,
            other => Self::runtime(other, "run more problems or longer completions"),
        }
    }
}

/// One window.
#[derive(Clone, Debug, PartialEq)]
struct Window {
    completion: usize,
    start: usize,
    distance: f64,
    mean_distance: f64,
}

/// Correlates the novelty of windows with their semantic distance from what the group has said before them.
///
/// Correlates novelty and relative novelty with both distances, holding surprisal, entropy, frequency rank
/// and position fixed. For comparison it correlates each of these four with the distance to the nearest
/// text, holding the other three fixed. All values are means over sampled tokens; see the module
/// documentation.
///
/// Only complete windows from position [`WINDOW`] on count, because nothing was said before the first. At
/// most `max_groups` groups ([`MAX_GROUPS`]) are analysed, seed by seed: each needs about 160 embeddings
/// with 16 completions of 96 tokens, which take all-MiniLM-L6-v2 about 3 s on two cores. Equal texts are
/// embedded once.
///
/// # Errors
///
/// [`WindowError::Text`] and [`WindowError::Embedding`] as they occur; [`WindowError::Metric`] for fewer
/// than 10 windows or 2 problems, and for embeddings that are missing or have length 0.
pub fn window_level(
    records: &[&ProblemRecord],
    ranks: &FrequencyRanks,
    detokenizer: &dyn Detokenize,
    embed: &mut Embed<'_>,
    max_groups: usize,
    config: &BootstrapConfig,
) -> Result<WindowLevel, WindowError> {
    let mut groups = records.to_vec();
    groups.sort_by_key(|record| (record.seed, record.problem));
    groups.truncate(max_groups);
    let (mut during, mut before) = (Rows::default(), Rows::default());
    let (mut texts, mut windows, mut left_out) = (0, 0, 0);
    for &group in &groups {
        let found = measure(group, detokenizer, embed)?;
        texts += found.texts;
        windows += found.windows.len();
        left_out += found.left_out;
        for window in &found.windows {
            during.push(group, ranks, window, window.start);
            before.push(group, ranks, window, window.start - WINDOW);
        }
    }
    Ok(WindowLevel {
        groups: groups.len(),
        all_groups: records.len(),
        texts,
        windows,
        left_out,
        during: during.level(config)?,
        before: before.level(config)?,
    })
}

/// The windows of a group.
struct Found {
    windows: Vec<Window>,
    texts: usize,
    left_out: usize,
}

fn measure(
    group: &ProblemRecord,
    detokenizer: &dyn Detokenize,
    embed: &mut Embed<'_>,
) -> Result<Found, WindowError> {
    let mut texts = Texts { detokenizer, all: Vec::new(), places: HashMap::new() };
    let said: Vec<&[TokenId]> = group.completions.iter().map(CompletionRecord::said).collect();
    let (mut pending, mut left_out) = (Vec::new(), 0);
    for (completion, own) in said.iter().enumerate() {
        for start in (WINDOW..).step_by(WINDOW).take_while(|start| start + WINDOW <= own.len()) {
            let window = texts.place(&own[start..start + WINDOW])?;
            // Two completions with the same earlier text count twice in the mean.
            let mut others = Vec::new();
            for (other, tokens) in said.iter().enumerate() {
                if other != completion {
                    others.extend(texts.place(&tokens[..tokens.len().min(start)])?);
                }
            }
            match window {
                Some(window) if !others.is_empty() => {
                    pending.push((completion, start, window, others));
                }
                _ => left_out += 1,
            }
        }
    }
    if pending.is_empty() {
        return Ok(Found { windows: Vec::new(), texts: 0, left_out });
    }
    let embeddings = embed(&texts.all).map_err(WindowError::Embedding)?;
    if embeddings.len() != texts.all.len() {
        let (expected, got) = (texts.all.len(), embeddings.len());
        return Err(MetricError::Length { what: "embeddings".to_owned(), expected, got }.into());
    }
    let mut windows = Vec::with_capacity(pending.len());
    for (completion, start, window, others) in pending {
        let to = |&other: &usize| cosine(&embeddings[window], &embeddings[other]);
        let cosines = others.iter().map(to).collect::<Result<Vec<f64>, _>>()?;
        let nearest = cosines.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let (distance, mean_distance) = (1.0 - nearest, 1.0 - mean);
        windows.push(Window { completion, start, distance, mean_distance });
    }
    Ok(Found { windows, texts: texts.all.len(), left_out })
}

/// The texts to embed, without repetitions.
struct Texts<'t> {
    detokenizer: &'t dyn Detokenize,
    all: Vec<String>,
    places: HashMap<String, usize>,
}

impl Texts<'_> {
    /// The index of the text of some tokens; `None` if it is empty or blank.
    fn place(&mut self, tokens: &[TokenId]) -> Result<Option<usize>, TextError> {
        let text = self.detokenizer.decode(tokens)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let new = self.all.len();
        let place = *self.places.entry(text.clone()).or_insert(new);
        if place == new {
            self.all.push(text);
        }
        Ok(Some(place))
    }
}

/// Windows with the means of their tokens.
#[derive(Default)]
struct Rows {
    problems: Vec<usize>,
    /// One column for each of [`MEASURED`], and for the two distances.
    columns: [Vec<f64>; MEASURED.len() + 2],
}

impl Rows {
    /// Adds a window with the means over the sampled tokens in the [`WINDOW`] positions from `first` on, if
    /// there are any.
    fn push(
        &mut self,
        group: &ProblemRecord,
        ranks: &FrequencyRanks,
        window: &Window,
        first: usize,
    ) {
        let places = first as u64..(first + WINDOW) as u64;
        let there = group.token_sample.iter().filter(|token| {
            token.completion == window.completion && places.contains(&token.position)
        });
        let tokens: Vec<_> = there.collect();
        if tokens.is_empty() {
            return;
        }
        let mean = |measure| {
            let sum: f64 = tokens.iter().map(|token| number_of(token, measure, ranks)).sum();
            sum / tokens.len() as f64
        };
        let row = MEASURED.into_iter().map(mean).chain([window.distance, window.mean_distance]);
        for (column, number) in self.columns.iter_mut().zip(row) {
            column.push(number);
        }
        self.problems.push(group.problem);
    }

    fn level(self, config: &BootstrapConfig) -> Result<Level, MetricError> {
        let measures = MEASURED.into_iter().chain([Measure::Distance, Measure::MeanDistance]);
        let table = Table::new(&self.problems, measures.zip(self.columns).collect())?;
        let mut questions = Vec::new();
        for of in [Measure::Novelty, Measure::RelativeNovelty] {
            for with in [Measure::Distance, Measure::MeanDistance] {
                questions.push(Question { of, with, given: CONTROLS.to_vec() });
            }
        }
        for of in CONTROLS {
            questions.push(Question { of, with: Measure::Distance, given: others(of) });
        }
        let shown = [&CONTROLS[..], &[Measure::Distance, Measure::MeanDistance]].concat();
        Level::of("windows", &table, &questions, &shown, config)
    }
}
