//! A reproducible evaluation: tasks run under several sampling methods with several seeds.
//!
//! The program is `evaluate`. [`record`] documents its output, [`tasks`] the splits, [`arms`] the sampling
//! methods, [`controls`] those of them that rule out other explanations, and [`metrics`] the figures of a [`report`].

#![allow(missing_docs, reason = "not published: fields with telling names need no docs")]

pub mod args;
pub mod arms;
pub mod controls;
pub mod counter;
pub mod decode;
pub mod entropy;
pub mod hash;
pub mod known;
pub mod merge;
pub mod meter;
pub mod metrics;
pub mod plan;
pub mod progress;
pub mod provenance;
pub mod record;
pub mod report;
pub mod round2;
pub mod run;
pub mod sentence_embedding;
pub mod shard;
pub mod store;
pub mod tally;
pub mod tasks;
pub mod token_texts;
pub mod waves;
pub mod work;
