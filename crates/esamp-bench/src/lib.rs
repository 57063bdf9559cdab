//! The code of multi-file benches, in a library so that tests can call it. The programs themselves are in
//! benches/.

#![allow(missing_docs, reason = "not published: fields with telling names need no docs")]

pub mod load;
pub mod overhead;
pub mod rows;
pub mod scale;
