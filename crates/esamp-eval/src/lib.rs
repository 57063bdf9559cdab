//! Evidence that anyone can rerun: tasks, each under several ways to sample, with several seeds.
//!
//! The program is `evaluate`; what it writes is described in [`record`], where the splits come from in [`tasks`], the arms in
//! [`arms`], their controls in [`controls`], and what the numbers of a [`report`] are in [`metrics`].

#![allow(missing_docs, reason = "not published: a field whose name says it needs no line")]

pub mod args;
pub mod arms;
pub mod controls;
pub mod entropy;
pub mod meter;
pub mod metrics;
pub mod plan;
pub mod progress;
pub mod provenance;
pub mod record;
pub mod report;
pub mod run;
pub mod sentence_embedding;
pub mod store;
pub mod tasks;
pub mod work;
