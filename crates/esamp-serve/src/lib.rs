//! A server with OpenAI's protocol for a model that decodes with esamp. README.md describes it.

#![allow(missing_docs, reason = "not published: fields with telling names need no docs")]

mod answer;
pub mod app;
pub mod args;
mod body;
mod connection;
pub mod error;
mod fields;
mod generate;
pub mod groups;
pub mod hosts;
pub mod keys;
#[cfg(feature = "llama-cpp")]
mod llama_cpp;
pub mod metrics;
mod page;
mod params;
mod penalties;
mod prompt;
mod reply;
mod routes;
pub mod serve;
pub mod start;
mod tokens;
