//! Custom changes to a row of logits.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{RowContext, pool::check_numbers};
use crate::{
    error::{RowError, panic_text},
    id::TokenId,
};

/// Changes a row of logits before a token is chosen. Implemented for closures.
///
/// It runs after [penalties and bias](crate::Penalties), and before the token mask, the temperature, the filters and
/// the reweighter. What it adds to a logit is added to the expected logit of the same token too, as with penalties, so
/// that ESamp preserves it instead of multiplying it. Log-probabilities under the model do not see it.
///
/// ```
/// use esamp::{Sampling, filters::RowContext};
///
/// // Token 7 becomes more likely with every token, and token 3 is never the first.
/// let processor = |row: &RowContext<'_>, logits: &mut [f32]| {
///     logits[7] += 0.1 * row.position as f32;
///     if row.position == 0 {
///         logits[3] = f32::NEG_INFINITY;
///     }
///     Ok(())
/// };
/// let sampling = Sampling::new().with_logits_processor(processor);
/// # let _ = sampling;
/// ```
pub trait LogitsProcessor: Send + Sync {
    /// Changes the logits of the row, one for each token of the vocabulary, in nats. −inf masks a token; a token that
    /// is −inf already stays masked. Called once per row and step. The result must depend only on the arguments, so
    /// that the tokens of a completion do not depend on which others run.
    ///
    /// Cost per row and step, in addition to its own: a copy of the row and a comparison with it.
    ///
    /// # Errors
    ///
    /// An error, for example [`RowError::processor`], fails this row alone. So do a panic and a logit that is NaN or
    /// +inf afterwards, both as [`RowError::Processor`], and a row in which every token is masked, as
    /// [`RowError::AllMasked`].
    fn process(&self, row: &RowContext<'_>, logits: &mut [f32]) -> Result<(), RowError>;
}

impl<F> LogitsProcessor for F
where
    F: Fn(&RowContext<'_>, &mut [f32]) -> Result<(), RowError> + Send + Sync,
{
    fn process(&self, row: &RowContext<'_>, logits: &mut [f32]) -> Result<(), RowError> {
        self(row, logits)
    }
}

impl fmt::Debug for dyn LogitsProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogitsProcessor")
    }
}

/// Runs a processor on `logits`, to which penalties and bias have been added. Returns what they and the processor have
/// added to the model's logits, in ascending token order.
pub(crate) fn process(
    processor: &dyn LogitsProcessor,
    row: &RowContext<'_>,
    model: &[f32],
    logits: &mut [f32],
) -> Result<Vec<(TokenId, f32)>, RowError> {
    // Before the processor, so that it is not blamed for what the model or a bias has done.
    check_numbers(logits)?;
    // The logits are a copy that is dropped after a panic, so nothing that it has left half done is used.
    let processed = catch_unwind(AssertUnwindSafe(|| processor.process(row, logits)));
    processed.unwrap_or_else(|panic| {
        Err(RowError::processor(format!("panic: {}", panic_text(&*panic))))
    })?;
    if let Err(RowError::NotANumber { token, got }) = check_numbers(logits) {
        let message = format!("expected numbers or -inf, got {got} for token {token}");
        return Err(RowError::processor(message));
    }
    let mut deltas = Vec::new();
    for (token, (&model, logit)) in model.iter().zip(logits).enumerate() {
        if model == f32::NEG_INFINITY {
            *logit = model;
        } else if *logit != model {
            deltas.push((token as TokenId, *logit - model));
        }
    }
    Ok(deltas)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{draw::DrawKey, id::CompletionId};

    const MODEL: [f32; 4] = [1.0, 2.0, f32::NEG_INFINITY, 0.0];

    fn run(processor: impl LogitsProcessor) -> Result<Vec<(TokenId, f32)>, RowError> {
        let row = RowContext::new(CompletionId::new(0, 0), 3, DrawKey::new(0, &[], 0).at(3));
        let mut logits = MODEL;
        logits[1] += 0.5; // a bias
        process(&processor, &row, &MODEL, &mut logits)
    }

    #[test]
    fn changes_are_returned_with_those_before_them() {
        assert_eq!(run(|_: &RowContext<'_>, _: &mut [f32]| Ok(())), Ok(vec![(1, 0.5)]));
        let changed = run(|row: &RowContext<'_>, logits: &mut [f32]| {
            assert_eq!((row.position, &*logits), (3, &[1.0, 2.5, f32::NEG_INFINITY, 0.0][..]));
            logits.copy_from_slice(&[f32::NEG_INFINITY, 1.0, 9.0, 0.25]);
            Ok(())
        });
        let expected = vec![(0, f32::NEG_INFINITY), (1, -1.0), (3, 0.25)];
        assert_eq!(changed, Ok(expected), "a masked token stays masked");
    }

    #[test]
    fn errors_name_the_processor() {
        let nan = run(|_: &RowContext<'_>, logits: &mut [f32]| {
            logits[3] = f32::NAN;
            Ok(())
        });
        let nan = nan.unwrap_err().to_string();
        assert_eq!(nan, "logits processor: expected numbers or -inf, got NaN for token 3");
        let infinite = run(|_: &RowContext<'_>, logits: &mut [f32]| {
            logits[0] = f32::INFINITY;
            Ok(())
        });
        let infinite = infinite.unwrap_err().to_string();
        assert_eq!(infinite, "logits processor: expected numbers or -inf, got inf for token 0");
        let own = run(|_: &RowContext<'_>, _: &mut [f32]| Err(RowError::processor("no more")));
        assert_eq!(own.unwrap_err().to_string(), "logits processor: no more");
        let panic =
            run(|_: &RowContext<'_>, _: &mut [f32]| -> Result<(), RowError> { panic!("at {}", 3) });
        assert_eq!(panic.unwrap_err().to_string(), "logits processor: panic: at 3");
    }

    #[test]
    fn logits_of_the_model_are_checked_first() {
        let row = RowContext::new(CompletionId::new(0, 0), 0, DrawKey::new(0, &[], 0).at(0));
        let repair = |_: &RowContext<'_>, logits: &mut [f32]| {
            logits[1] = 0.0;
            Ok(())
        };
        let model = [0.0, f32::NAN];
        let error = process(&repair, &row, &model, &mut model.clone()).unwrap_err();
        assert!(matches!(error, RowError::NotANumber { token: 1, .. }), "{error}");
    }
}
