//! Where the time of a step goes.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Seconds that the stages of [`Sampler::step`](crate::Sampler::step) took, over all steps of a sampler.
///
/// They are seconds of the calling thread. On a device that works beside the host, a stage that hands over work and goes on is
/// short, and the one that waits for the result is long: [`read`](Self::read) then holds what was left of the model's
/// forward pass, and [`expect`](Self::expect) the distiller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StageSeconds {
    /// The distillers' prediction of the deep hidden states.
    pub predict: f64,
    /// Bringing the logits to the host.
    pub read: f64,
    /// The tokens of each row that its first filter could keep.
    pub pool: f64,
    /// The filters.
    pub filter: f64,
    /// The expected logits of the candidates, by the head or by another model.
    pub expect: f64,
    /// The fusion of reference and expected logits.
    pub reweight: f64,
    /// The choice of one token of each row.
    pub select: f64,
    /// The update of the distillers.
    pub learn: f64,
    /// Counters, and what an observer is shown.
    pub observe: f64,
}

impl StageSeconds {
    /// Every stage with its name, in the order of the step.
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

    /// Adds the seconds of a step.
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

    /// All stages together.
    pub fn total(&self) -> f64 {
        self.named().iter().map(|&(_, seconds)| seconds).sum()
    }
}

/// Gives the time since the last lap to one stage.
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
