//! Controls in a step and in the decode loop: the scores each of them gives, and what it leaves unchanged.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod expected_states;
mod scores;
mod world;
