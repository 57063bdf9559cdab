//! Test models that need no downloaded weights, for this crate's tests and for tests of your own distillers, filters
//! and decode loops; and [`check_model`], for tests of your own model.

mod cache;
mod check;
mod fault;
mod scripted;
mod tiny;

pub use cache::TokenCache;
pub use check::{check_model, check_model_within};
pub use fault::ModelFault;
pub use scripted::ScriptedLm;
pub use tiny::TinyLm;
