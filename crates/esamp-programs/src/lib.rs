//! What the programs of this repository share: examples, benches, and `evaluate`.

#![allow(missing_docs, reason = "not published: a field whose name says it needs no line")]

pub mod columns;
pub mod device;
pub mod failure;
pub mod model_source;
pub mod page;
