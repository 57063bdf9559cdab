//! Does novelty foresee what has not been said yet?
//!
//! A completion is cut into windows of [`WINDOW`] tokens. By the time at which a window begins, at place `t`, every other
//! completion of its group (same problem, same seed) has said its tokens before `t`, or has ended: they run in step, and it is
//! from these very tokens that the distiller they share has learned. How far the window's text is from the nearest of these
//! texts is its *semantic distance*: 1 − the largest cosine of their embeddings. The nearest, because what one completion has
//! said already is not new, however far the others are; novelty search (Lehman and Stanley, *Abandoning Objectives*, 2011)
//! measures distance to nearest neighbours for the same reason. 1 − the mean cosine is the second measure.
//!
//! What others have said grows with `t`, and a long text is nearer to or farther from a short one for that reason alone:
//! position is among what the partial correlations hold fixed.
//!
//! Two ways to give a window its novelty:
//!
//! - *during*: the mean over its own sampled tokens. A token's `‖e‖` is known before the token is chosen, but its deep state
//!   has seen the window's tokens before it, so a strange beginning may raise both.
//! - *before*: the mean over the sampled tokens of the [`WINDOW`] places in front of it, surprisal and the others as well.
//!   All of it is known before a token of the window is written: no look ahead.

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

/// Tokens of a window: a dozen words, about the least that an embedding of sentences says something about.
pub const WINDOW: usize = 16;

/// How many groups the report looks at: 30 problems of one seed.
pub const MAX_GROUPS: usize = 30;

/// From texts to points, in their order: of any length but 0, all of the same width.
pub type Embed<'e> = dyn FnMut(&[String]) -> Result<Vec<Vec<f64>>, Failure> + 'e;

/// What was found over windows.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowLevel {
    /// Groups that were looked at: the first ones by seed, then by problem.
    pub groups: usize,
    /// Groups that there are.
    pub all_groups: usize,
    /// Texts that were embedded.
    pub texts: usize,
    /// Windows with a distance.
    pub windows: usize,
    /// Windows without: their own tokens have no text, or no other completion had said anything.
    pub left_out: usize,
    /// With the means of the windows' own tokens; of those that have a sampled one.
    pub during: Level,
    /// With the means of the tokens in front of them; of those that have a sampled one there.
    pub before: Level,
}

/// Windows that cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// Too few windows, or embeddings that have no cosine.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// Tokens that have no text.
    #[error("text of a window: {0}")]
    Text(#[from] TextError),
    /// Texts that have no embedding.
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

/// Novelty of windows of text, and their semantic distance to what the group has said before them.
///
/// Novelty and relative novelty with both distances, surprisal, entropy, frequency rank and position held fixed; and, to
/// compare with, each of these four with the distance to the nearest, the other three held fixed. All are means over sampled
/// tokens, see the head of the module's file.
///
/// Only whole windows count, from place [`WINDOW`] on: nothing has been said before the first. At most `max_groups` groups
/// ([`MAX_GROUPS`]) are looked at, seed by seed, because each has some 160 texts to embed at 16 completions of 96 tokens: with
/// all-MiniLM-L6-v2 on two cores some 3 s. Equal texts are embedded once.
///
/// # Errors
///
/// [`WindowError::Text`] and [`WindowError::Embedding`] as they come; [`WindowError::Metric`] below 10 windows or 2 problems,
/// and for embeddings of the wrong number or of length 0.
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
            // Two completions that have said the same count twice in the mean.
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

/// Texts to embed, each once.
struct Texts<'t> {
    detokenizer: &'t dyn Detokenize,
    all: Vec<String>,
    places: HashMap<String, usize>,
}

impl Texts<'_> {
    /// Where the text of some tokens is; `None` where there is nothing to read in it.
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

/// Windows with the means of some tokens.
#[derive(Default)]
struct Rows {
    problems: Vec<usize>,
    /// One for each of [`MEASURED`], and the two distances.
    columns: [Vec<f64>; MEASURED.len() + 2],
}

impl Rows {
    /// Adds a window with the means over the sampled tokens of the [`WINDOW`] places from `first` on, if there are any.
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
        self.columns.iter_mut().zip(row).for_each(|(column, number)| column.push(number));
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
