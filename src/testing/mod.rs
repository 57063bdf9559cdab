//! Test models that need no downloaded weights: for this crate's tests, and for tests of your own distillers, filters
//! and decode loops.

mod cache;
mod scripted;
mod tiny;

pub use cache::TokenCache;
pub use scripted::ScriptedLm;
pub use tiny::TinyLm;
