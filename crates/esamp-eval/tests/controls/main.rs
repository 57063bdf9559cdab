//! Controls in a step and in the decode loop: what each makes of the two numbers, and what it leaves alone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod expected_states;
mod scores;
mod world;
