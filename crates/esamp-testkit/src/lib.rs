//! What tests of several packages share.
//!
//! Nothing here knows a type of `esamp`: its unit tests use this too, and to them the library that this package could depend on
//! would be another one.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod first_gpu;
pub mod golden;
pub mod word_model;
