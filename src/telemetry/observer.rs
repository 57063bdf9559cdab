//! Who watches a sampler.

use std::sync::{Arc, Mutex, PoisonError};

use super::{RowTrace, StepTrace};

/// Watches a sampler: one call per token, one per step.
///
/// An observer changes nothing: with and without one, the same seeds give the same tokens and the same updates. What it
/// is shown is computed for it; a run without one pays nothing. With one, a token costs a pass over its logits with an
/// exponential each, and some passes over its candidates: about 0.1 ms on one CPU core for a vocabulary of 50,000, and
/// 4 ms more where no filter has narrowed it down.
///
/// It is called on the thread of the step, after learning, so it should be quick. Closures are observers of tokens;
/// `Arc<Mutex<O>>` is one for every observer `O`, so that a handle stays outside.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use burn::tensor::Device;
/// use esamp::{SamplerConfig, telemetry::{Observer, RowTrace, StepTrace}};
///
/// /// How often the new distribution was sharper than the reference one.
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
/// sampler.set_observer(Box::new(sharper.clone()));
/// # Ok::<(), esamp::errors::ConfigError>(())
/// ```
pub trait Observer: Send {
    /// A token was chosen. Tokens come in the order of the step's rows; rows that failed have none.
    fn token(&mut self, trace: &RowTrace);

    /// A step is over, and all of its tokens have been shown.
    fn step(&mut self, trace: &StepTrace) {
        let _ = trace;
    }
}

impl<F: FnMut(&RowTrace) + Send> Observer for F {
    fn token(&mut self, trace: &RowTrace) {
        self(trace);
    }
}

/// The observer inside, as it is also after a panic of somebody who held the lock.
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
