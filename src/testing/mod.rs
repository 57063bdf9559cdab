//! Models without weights to download: for this crate's tests, and for those of your own distillers, filters and loops.

mod cache;
mod scripted;
mod tiny;

pub use cache::TokenCache;
pub use scripted::ScriptedLm;
pub use tiny::TinyLm;
