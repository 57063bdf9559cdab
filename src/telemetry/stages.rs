//! Time per stage of a step.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Seconds spent in the stages of [`Sampler::step`](crate::Sampler::step), over all steps of a sampler.
///
/// Times are measured on the calling thread. On a device that works asynchronously, a stage that only submits work is
/// short and the stage that waits for the result is long: [`read`](Self::read) then includes the rest of the model's
/// forward pass, and [`expect`](Self::expect) that of the distiller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StageSeconds {
    /// Predicting the deep hidden states with the distillers.
    pub predict: f64,
    /// Copying the logits to the host.
    pub read: f64,
    /// Collecting the tokens of each row that its first filter could keep.
    pub pool: f64,
    /// Running the filters.
    pub filter: f64,
    /// Computing the expected logits of the candidates, from the LM head or another model.
    pub expect: f64,
    /// Fusing the reference and expected logits.
    pub reweight: f64,
    /// Choosing one token for each row.
    pub select: f64,
    /// Updating the distillers.
    pub learn: f64,
    /// Updating the counters and computing traces for the observer.
    pub observe: f64,
}

impl StageSeconds {
    /// Name and seconds of every stage, in the order of the step.
    pub fn named(&self) -> [(&'static str, f64); 9] {
        [
            ("predict", self.predict),
            ("read", self.read),
            ("pool", self.pool),
            ("filter", self.filter),
            ("expect", self.expect),
            ("reweight", self.reweight),
            ("select", self.select),
            ("learn", self.learn),
            ("observe", self.observe),
        ]
    }

    /// Adds the times of one step.
    pub(crate) fn add(&mut self, step: &Self) {
        self.predict += step.predict;
        self.read += step.read;
        self.pool += step.pool;
        self.filter += step.filter;
        self.expect += step.expect;
        self.reweight += step.reweight;
        self.select += step.select;
        self.learn += step.learn;
        self.observe += step.observe;
    }

    /// Total over all stages, in seconds.
    pub fn total(&self) -> f64 {
        self.named().iter().map(|&(_, seconds)| seconds).sum()
    }
}

/// Measures laps: adds the time since the previous lap to one stage.
pub(crate) struct StageClock(Instant);

impl StageClock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn lap(&mut self, stage: &mut f64) {
        let now = Instant::now();
        *stage += (now - self.0).as_secs_f64();
        self.0 = now;
    }
}
