//! What a step says about itself: the reasons, and what an observer is shown.

use std::borrow::Cow;

use super::{Choice, Phase, StepRow, race::Logits, race::would_choose};
use crate::{
    candidates::{Candidates, mass_outside},
    error::RowError,
    id::TokenId,
    novelty::Expects,
    telemetry::{Measures, RowTrace, Steering},
};

/// The token that each row would be given if it were not steered; `None` for rows that are not `ready` to be. To be asked
/// before the scores are reweighted.
///
/// Cost: for each steered row, one exponential per candidate.
pub(super) fn unsteered(
    rows: &[StepRow<'_>],
    races: &[Result<Candidates, RowError>],
    ready: &[usize],
) -> Vec<Option<TokenId>> {
    let mut tokens = vec![None; rows.len()];
    for &at in ready {
        if let Ok(race) = &races[at] {
            tokens[at] = would_choose(&rows[at], race);
        }
    }
    tokens
}

/// What the step knows of a row besides its choice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowState {
    /// Its distiller was not ready to steer it.
    pub(super) warming: bool,
    /// Its candidates had the logits of another model.
    pub(super) contrasted: bool,
}

/// Whether a row that was given a token was steered, and if not, why not.
pub(super) fn steering(row: &StepRow<'_>, choice: &Choice, state: RowState) -> Steering {
    match (row.sampling.reweighter().expects(), row.phase) {
        (Expects::OtherModel, _) if state.contrasted => Steering::Contrasted,
        (Expects::OtherModel, _) => Steering::OtherNotFinite,
        (Expects::Distiller, Phase::FirstToken) => Steering::FirstToken,
        (Expects::Distiller, Phase::Decode) if choice.novelty.is_none() => Steering::NotFinite,
        (Expects::Distiller, Phase::Decode) if state.warming => Steering::Warming,
        (Expects::Distiller, Phase::Decode) => Steering::Steered,
        (_, _) => Steering::Off,
    }
}

/// A step whose tokens are chosen and learned from.
pub(super) struct Chosen<'a> {
    pub(super) step: u64,
    pub(super) d_model: usize,
    pub(super) rows: &'a [StepRow<'a>],
    pub(super) races: &'a [Result<Candidates, RowError>],
    pub(super) logits: &'a Logits,
    pub(super) choices: &'a [Result<Choice, RowError>],
    pub(super) unsteered: &'a [Option<TokenId>],
    pub(super) states: &'a [RowState],
}

impl Chosen<'_> {
    /// The traces of the rows that were given a token.
    pub(super) fn traces(&self) -> Vec<RowTrace> {
        (0..self.rows.len()).filter_map(|at| self.trace(at)).collect()
    }

    fn trace(&self, at: usize) -> Option<RowTrace> {
        let row = &self.rows[at];
        let (Ok(choice), Ok(race)) = (&self.choices[at], &self.races[at]) else {
            return None;
        };
        // A token is always one of its candidates.
        let measures = Measures::of(race, choice.token)?;
        let position = row.context().position;
        let divisor = row.sampling.divisor_at(position);
        let steering = steering(row, choice, self.states[at]);
        // A reweighter that expects nothing changes scores too, and is traced as off.
        let rescored = matches!(steering, Steering::Steered | Steering::Contrasted);
        let sharpening =
            measures.sharpening.filter(|&s| rescored || steering == Steering::Off && s != 0.0);
        let novelty = choice.novelty;
        let relative = novelty
            .filter(|novelty| novelty.deep > 0.0)
            .map(|novelty| f64::from(novelty.error) / f64::from(novelty.deep));
        Some(RowTrace {
            step: self.step,
            row: row.id,
            position,
            token: choice.token,
            unsteered_token: self.unsteered.get(at).copied().flatten(),
            steering,
            temperature: row.sampling.temperature_at(position),
            candidates: race.len(),
            mass_outside: mass_outside(
                &adjusted(self.logits.row(at), race, divisor),
                divisor,
                row.allowed,
                race,
            )
            .ok()?,
            log_prob: choice.log_prob,
            surprisal: measures.surprisal,
            model_surprisal: choice.reference_log_prob.map(|log_prob| -log_prob),
            reference_entropy: measures.reference_entropy,
            entropy: measures.entropy,
            kl: measures.kl,
            reference_rank: measures.reference_rank,
            rank: measures.rank,
            novelty: novelty.map(|novelty| novelty.error),
            relative_novelty: relative,
            loss: novelty.map(|novelty| novelty.loss(self.d_model)),
            slope: measures.slope.filter(|_| novelty.is_some() || steering == Steering::Contrasted),
            sharpening,
            sharpening_share: sharpening.and(measures.sharpening_share),
        })
    }
}

/// The logits of a row as its race saw them: with penalties and bias, which are undone once the pool is filled.
fn adjusted<'a>(logits: &'a [f32], race: &Candidates, divisor: f32) -> Cow<'a, [f32]> {
    let mut logits = Cow::Borrowed(logits);
    for &(token, delta) in race.adjustments() {
        logits.to_mut()[token as usize] += delta * divisor;
    }
    logits
}
