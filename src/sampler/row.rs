//! One row of a step, from logits to a token.

use super::{
    Choice, Novelty, Phase, StepRow,
    logits::{RowLogits, RowLogitsMut},
};
use crate::{
    candidates::{Candidates, PartialRow},
    error::RowError,
    id::TokenId,
    novelty::Expects,
    select::{Selected, select},
    telemetry::Steering,
};

/// The state of one row during a step. Every stage reads what the previous stages have stored here.
pub(super) struct RowState<'a> {
    pub(super) input: &'a StepRow<'a>,
    /// Whether the row is steered, and if not, why. Set when the step begins, from the row's reweighter and phase.
    /// Changed later if the distiller has had too few updates, and after that if a value is not finite.
    pub(super) steering: Steering,
    /// The remaining tokens; `None` before the pool is filled and for a row that has failed.
    pub(super) candidates: Option<Candidates>,
    /// The token that the same random number would have chosen without steering.
    pub(super) unsteered: Option<TokenId>,
    /// Distance between the deep state and the predicted one; `None` if nothing was predicted or a value is not
    /// finite.
    pub(super) novelty: Option<Novelty>,
    /// Whether the prediction is not finite although the deep state is.
    pub(super) diverged: bool,
    /// The chosen token, or the error of the row, which does not affect other rows; `None` until the row is selected
    /// or fails.
    pub(super) choice: Option<Result<Choice, RowError>>,
}

impl<'a> RowState<'a> {
    pub(super) fn new(input: &'a StepRow<'a>) -> Self {
        let steering = match (input.sampling.reweighter().expects(), input.phase) {
            (Expects::OtherModel, _) => Steering::Contrasted,
            (Expects::Distiller, Phase::Decode) => Steering::Steered,
            (Expects::Distiller, Phase::FirstToken) => Steering::FirstToken,
            (Expects::Nothing, _) => Steering::Off,
        };
        Self {
            input,
            steering,
            candidates: None,
            unsteered: None,
            novelty: None,
            diverged: false,
            choice: None,
        }
    }

    /// Whether a distiller predicts the row's deep state and learns from it.
    pub(super) fn has_distiller(&self) -> bool {
        matches!(self.steering, Steering::Steered | Steering::Untrained | Steering::NotFinite)
    }

    /// Fills the pool: the tokens that the row's first filter could keep. `logits` are unchanged on return. Returns
    /// false if what is known of the row's logits does not suffice.
    pub(super) fn pool(&mut self, logits: RowLogitsMut<'_>) -> bool {
        let (context, sampling, allowed) =
            (self.input.context(), self.input.sampling, self.input.allowed);
        let pooled = match logits {
            RowLogitsMut::Whole(logits) => sampling.pool(&context, logits, allowed).map(Some),
            RowLogitsMut::Best(row) if self.has_log_probs(row) => {
                sampling.pool_partial(&context, row, allowed)
            }
            RowLogitsMut::Best(_) | RowLogitsMut::Unknown => Ok(None),
        };
        match pooled {
            Ok(None) => return false,
            Ok(candidates) => self.candidates = candidates,
            Err(error) => self.choice = Some(Err(error)),
        }
        true
    }

    /// Whether the log-probabilities that the row asks for can be computed from its best logits.
    fn has_log_probs(&self, logits: &PartialRow) -> bool {
        let top = self.input.top_log_probs;
        !self.input.wants_reference_log_prob || logits.log_sum_and_best(top).is_some()
    }

    pub(super) fn filter(&mut self) {
        if let Some(candidates) = &mut self.candidates {
            self.input.sampling.filter(&self.input.context(), candidates);
        }
    }

    /// Sets the expected logit of every candidate, from its index and token, divided by the same divisor as its
    /// score. Returns whether all of them are finite.
    pub(super) fn set_expected(&mut self, logit: impl Fn(usize, TokenId) -> f32) -> bool {
        // Both logits are divided by the same number. If only the reference were, the meaning of β would depend on the
        // temperature.
        let divisor = self.input.divisor();
        match &mut self.candidates {
            Some(candidates) => candidates.set_expected(|at, token| logit(at, token) / divisor),
            None => false,
        }
    }

    /// Sets the new score of every candidate, if the row's reweighter has what it needs.
    pub(super) fn reweight(&mut self) {
        let Some(candidates) = &mut self.candidates else {
            return;
        };
        let reweighted = match self.steering {
            Steering::Steered => {
                // Before the scores change: this is the choice without steering.
                self.unsteered = would_choose(self.input, candidates);
                true
            }
            Steering::Contrasted => true,
            // A reweighter that expects nothing needs no input, but as with steering, the first token is not
            // reweighted.
            Steering::Off => self.input.phase == Phase::Decode,
            _ => false,
        };
        if reweighted {
            self.input.sampling.reweighter().reweight(&self.input.context(), candidates);
        }
    }

    /// Chooses the row's token.
    pub(super) fn select(&mut self, logits: RowLogits<'_>) {
        let Some(candidates) = &self.candidates else {
            return;
        };
        self.choice = Some(choose(self.input, candidates, self.novelty, logits));
    }
}

/// Chooses one of the candidates.
fn choose(
    row: &StepRow<'_>,
    candidates: &Candidates,
    novelty: Option<Novelty>,
    logits: RowLogits<'_>,
) -> Result<Choice, RowError> {
    // A filter or a reweighter may have refused the row. An invalid score was not stored, so the scores do not show
    // it.
    if let Some(refused) = candidates.refused() {
        return Err(refused);
    }
    let Selected { token, log_prob, code } = select(candidates, row.chooser()?)?;
    let log_probs = if row.wants_reference_log_prob {
        logits.log_probs(token, row.top_log_probs)?
    } else {
        None
    };
    let (reference_log_prob, top_log_probs) = log_probs.unzip();
    Ok(Choice {
        token,
        log_prob,
        reference_log_prob,
        top_log_probs: top_log_probs.unwrap_or_default(),
        candidates: candidates.len(),
        novelty,
        // A row that does not use its code keeps it.
        code: code.or(row.code),
    })
}

/// The token that the row's random number, code or custom rule chooses from the candidates with their current scores.
/// `None` if the row lacks its code or the rule fails, which [`choose`] reports.
///
/// Cost: one exponential per candidate.
fn would_choose(row: &StepRow<'_>, candidates: &Candidates) -> Option<TokenId> {
    let selected = row.chooser().and_then(|chooser| select(candidates, chooser));
    selected.ok().map(|selected| selected.token)
}
