//! Code shared by the programs of this repository: examples, benches and `evaluate`.

#![allow(missing_docs, reason = "not published: fields with telling names need no docs")]

/// What a program prints to a terminal with.
pub use console;

pub mod columns;
pub mod device;
pub mod failure;
pub mod files;
pub mod generate;
pub mod learning;
pub mod loaded;
pub mod model_source;
pub mod page;
pub mod weights;
