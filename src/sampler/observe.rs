//! Reporting of a step: counters and traces for the observer.

use super::{
    Sampler,
    logits::{Logits, RowLogits},
    row::RowState,
};
use crate::telemetry::{Measures, RowTrace, Steering, StepTrace, add};

impl Sampler {
    /// Adds a step to the counters.
    pub(super) fn count(&mut self, rows: &[RowState<'_>]) {
        let counters = &mut self.counters;
        add(&mut counters.steps, 1);
        for row in rows {
            let Some(Ok(choice)) = &row.choice else {
                add(&mut counters.failed, 1);
                continue;
            };
            add(&mut counters.tokens, 1);
            add(&mut counters.candidates, choice.candidates as u64);
            if row.has_distiller() {
                add(&mut counters.eligible, 1);
                counters.loss_sum +=
                    choice.novelty.map_or(0.0, |novelty| novelty.loss(self.d_model));
            }
            match row.steering {
                Steering::Steered => {
                    add(&mut counters.steered, 1);
                    let has_changed = row.unsteered.is_some_and(|token| token != choice.token);
                    add(&mut counters.interventions, u64::from(has_changed));
                    if let Some(novelty) = choice.novelty {
                        counters.novelty_sum += f64::from(novelty.error);
                        counters.relative_novelty_sum += novelty.finite_relative().unwrap_or(0.0);
                    }
                }
                Steering::NotFinite => {
                    add(&mut counters.rows_not_finite, 1);
                    add(&mut counters.predictions_not_finite, u64::from(row.diverged));
                }
                Steering::Untrained => add(&mut counters.rows_untrained, 1),
                Steering::Contrasted => add(&mut counters.contrasted, 1),
                Steering::OtherNotFinite => add(&mut counters.other_not_finite, 1),
                Steering::Off | Steering::FirstToken => {}
            }
        }
    }

    /// Passes the step to the observer, if there is one.
    pub(super) fn observe(&mut self, rows: &[RowState<'_>], logits: &Logits, updates: usize) {
        let Some(observer) = &mut self.observer else {
            return;
        };
        let (step, d_model) = (self.counters.steps.saturating_sub(1), self.d_model);
        let numbered = rows.iter().enumerate();
        let traces: Vec<RowTrace> =
            numbered.filter_map(|(at, row)| trace(row, logits.row(at), step, d_model)).collect();
        add(&mut self.counters.observed, traces.len() as u64);
        self.counters.mass_outside += traces.iter().map(|trace| trace.mass_outside).sum::<f64>();
        for trace in &traces {
            observer.token(trace);
        }
        observer.step(&StepTrace::of(
            &traces,
            self.config.sharing,
            rows.len() - traces.len(),
            updates,
            self.trainer.distillers(),
            self.counters,
        ));
    }
}

/// The trace of a row; `None` if the row was given no token.
fn trace(row: &RowState<'_>, logits: RowLogits<'_>, step: u64, d_model: usize) -> Option<RowTrace> {
    let (Some(Ok(choice)), Some(candidates)) = (&row.choice, &row.candidates) else {
        return None;
    };
    let (input, steering) = (row.input, row.steering);
    // The chosen token is always one of the candidates.
    let measures = Measures::of(candidates, choice.token)?;
    let position = input.context().position;
    // A reweighter that expects nothing changes scores too, but its rows are traced as off: their sharpening is
    // reported only if it is not 0.
    let rescored = matches!(steering, Steering::Steered | Steering::Contrasted);
    let sharpening =
        measures.sharpening.filter(|&s| rescored || steering == Steering::Off && s != 0.0);
    let novelty = choice.novelty;
    Some(RowTrace {
        step,
        completion: input.id,
        position,
        token: choice.token,
        unsteered_token: row.unsteered,
        steering,
        temperature: input.sampling.temperature_at(position),
        candidates: candidates.len(),
        mass_outside: logits.mass_outside(input, candidates)?,
        log_prob: choice.log_prob,
        surprisal: measures.surprisal,
        model_surprisal: choice.reference_log_prob.map(|log_prob| -log_prob),
        reference_entropy: measures.reference_entropy,
        entropy: measures.entropy,
        kl: measures.kl,
        reference_rank: measures.reference_rank,
        rank: measures.rank,
        novelty: novelty.map(|novelty| novelty.error),
        relative_novelty: novelty.and_then(|novelty| novelty.finite_relative()),
        loss: novelty.map(|novelty| novelty.loss(d_model)),
        slope: measures.slope.filter(|_| novelty.is_some() || steering == Steering::Contrasted),
        sharpening,
        sharpening_share: sharpening.and(measures.sharpening_share),
    })
}
