//! Fuzzing of everything in esamp that reads what others have written: model files, tokenizers, templates, snapshots,
//! traces, settings, and the numbers of a step.
//!
//! It runs on stable Rust. libFuzzer and its relatives need a nightly compiler for their coverage counters; here the
//! *outcome* of an input takes their place: which error it leads to, without its numbers. An input with an outcome
//! that was not seen before is kept and mutated further, so that a campaign works its way from the magic number of a
//! format to its last check.
//!
//! ```sh
//! cargo test --release -p esamp-fuzz                                       # a second per target, as in CI
//! cargo run --release -p esamp-fuzz -- --seconds 3600                      # an hour per target
//! cargo run --release -p esamp-fuzz -- --target gguf --executions 1000000
//! cargo run --release -p esamp-fuzz -- --target gguf --input FILE          # one input again
//! ```
//!
//! A panic, an input that takes seconds, and a broken promise of the target are faults. The input of a fault is in the
//! folder `fuzz/found` afterwards, also if it has ended the process. Limit the memory from outside, for example with
//! `ulimit -v 8000000`, so that an absurd allocation ends the process and not the machine. Add an input to
//! `fuzz/corpus` when its fault is mended.

#![allow(missing_docs, reason = "not published: fields with telling names need no docs")]

pub mod campaign;
pub mod mutate;
pub mod targets;
