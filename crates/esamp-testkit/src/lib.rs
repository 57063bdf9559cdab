//! Code shared by the tests of several packages.
//!
//! Nothing here uses a type of `esamp`. Its unit tests use this crate, and an `esamp` that this crate
//! depended on would be a different crate to them, with incompatible types.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod bounded;
pub mod first_gpu;
pub mod gguf;
pub mod golden;
pub mod word_model;
