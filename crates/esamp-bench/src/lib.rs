//! Benches of `esamp` that are more than one file, so that tests can reach them. The programs themselves are in benches/.

#![allow(missing_docs, reason = "not published: a field whose name says it needs no line")]

pub mod overhead;
