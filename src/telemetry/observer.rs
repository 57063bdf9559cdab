//! Observers of a sampler.

use std::sync::{Arc, Mutex, PoisonError};

use super::{RowTrace, StepTrace};

/// Observes a sampler: one call per token and one per step.
///
/// An observer does not change the result: with and without one, the same seeds give the same tokens and the same
/// updates. Traces are computed only if an observer is attached, so a run without one pays nothing. With one, each
/// token costs a pass over its logits with one exponential each, and several passes over its candidates. On one CPU
/// core and a vocabulary of 50,000 this takes about 0.1 ms, plus 4 ms if no filter has reduced the candidates.
///
/// Observers run on the thread of the step, after learning, so they should return quickly. A closure is an observer
/// of tokens. `Arc<Mutex<O>>` is an observer for every observer `O`, so that the caller can keep a handle.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use burn::tensor::Device;
/// use esamp::{SamplerConfig, telemetry::{Observer, RowTrace, StepTrace}};
///
/// /// Counts how often the new distribution was sharper than the reference distribution.
/// #[derive(Default)]
/// struct Sharper {
///     tokens: usize,
///     sharper: usize,
/// }
///
/// impl Observer for Sharper {
///     fn token(&mut self, trace: &RowTrace) {
///         self.tokens += 1;
///         self.sharper += usize::from(trace.entropy < trace.reference_entropy);
///     }
///
///     fn step(&mut self, trace: &StepTrace) {
///         println!("loss {:?}, {} of {} sharper", trace.loss, self.sharper, self.tokens);
///     }
/// }
///
/// let sharper = Arc::new(Mutex::new(Sharper::default()));
/// let mut sampler = SamplerConfig::new().init(576, &Device::flex())?;
/// sampler.set_observer(sharper.clone());
/// # Ok::<(), esamp::errors::ConfigError>(())
/// ```
pub trait Observer: Send {
    /// Called for each chosen token, in the order of the step's rows. Failed rows are skipped.
    fn token(&mut self, trace: &RowTrace);

    /// Called at the end of a step, after all of its tokens.
    fn step(&mut self, trace: &StepTrace) {
        let _ = trace;
    }
}

impl<F: FnMut(&RowTrace) + Send> Observer for F {
    fn token(&mut self, trace: &RowTrace) {
        self(trace);
    }
}

/// Forwards to the inner observer. A poisoned lock is ignored: a panic elsewhere does not stop the observer.
impl<O: Observer> Observer for Arc<Mutex<O>> {
    fn token(&mut self, trace: &RowTrace) {
        self.lock().unwrap_or_else(PoisonError::into_inner).token(trace);
    }

    fn step(&mut self, trace: &StepTrace) {
        self.lock().unwrap_or_else(PoisonError::into_inner).step(trace);
    }
}

impl std::fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}
