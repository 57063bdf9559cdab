//! What a run's records say.

#[allow(dead_code, unused_imports, reason = "the report uses it")]
mod novelty;
#[allow(dead_code, reason = "the report uses it")]
mod novelty_plot;
