//! The command line.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Parser, builder::RangedU64ValueParser};
use esamp::Sampling;
use esamp_programs::{learning::Learning, loaded::Place};
use tracing::level_filters::LevelFilter;

use crate::hosts::host_name;

/// Serve a model with OpenAI's protocol, and sample from it with ESamp.
#[derive(Debug, Parser)]
#[command(name = "esamp-serve", version, args_override_self = true)]
pub struct Args {
    /// A .gguf file, a Hugging Face folder or hf:ORG/NAME [default: SmolLM2-135M-Instruct, downloaded once]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<OsString>,
    /// The name that clients know the model by [default: the name of the file or folder]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    #[command(flatten)]
    pub place: Place,
    /// The address to listen on; port 0 is a free one. Other computers reach the server only if this is not 127.0.0.1.
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// A host that requests may name in their Host header, besides localhost and loopback addresses; may be repeated. On
    /// a loopback address other hosts get status 403, so that no web page can reach the server under a name of its own.
    /// On other addresses all hosts are served, unless this flag names some.
    #[arg(long = "allowed-host", value_name = "NAME", value_parser = host_name)]
    pub allowed_hosts: Vec<String>,
    /// A file with the keys that clients may use, one per line. The variable ESAMP_API_KEY has one more. Without any,
    /// everyone is served.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Exploration strength of requests that do not say; 0 is plain sampling.
    #[arg(long, default_value_t = Sampling::DEFAULT_BETA, allow_negative_numbers = true)]
    pub beta: f32,
    /// Seconds that open requests may take to end after SIGTERM or Ctrl-C, before they are cancelled.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub grace: u64,
    /// What is written to the log: off, error, warn, info (a line per request for completions) or debug (also one per
    /// response).
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    pub log: LevelFilter,
    /// Write prompts to the log, at the level info. Otherwise no text of a request is logged, at any level.
    #[arg(long)]
    pub log_prompts: bool,
    #[command(flatten)]
    pub learning: Learning,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[cfg(feature = "llama-cpp")]
    #[command(flatten)]
    pub llama_cpp: crate::llama_cpp::LlamaCppArgs,
}

/// Limits.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Completions that are decoded at the same time.
    #[arg(long, value_name = "ROWS", default_value_t = 32, value_parser = at_least_one())]
    pub max_rows: usize,
    /// Completions of one request (n).
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one())]
    pub max_n: usize,
    /// Requests that wait. Those beyond get status 429.
    #[arg(long, value_name = "REQUESTS", default_value_t = 64, value_parser = at_least_one())]
    pub max_waiting: usize,
    /// Connections at a time on which completions are answered. Requests beyond get status 429; 64 more connections are
    /// accepted, for what needs no model, such as /health.
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 256, value_parser = at_least_one())]
    pub max_connections: usize,
    /// Bytes of a request's body.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = at_least_one())]
    pub max_body: usize,
    /// Tokens of a prompt [default: what the model's context has room for]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one())]
    pub max_prompt: Option<usize>,
    /// New tokens of a chat that names no limit. Memory is set aside for all of them.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = at_least_one())]
    pub default_max_tokens: usize,
    /// Prompt tokens that are read between two decode steps. Fewer disturb running completions less, more are read
    /// faster.
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = at_least_one())]
    pub prefill_budget: usize,
    /// Megabytes of key-value cache, distillers and working memory, counted at the full length of all running
    /// completions. With llama.cpp, which reserves its memory at the start, of distillers and sampling only.
    #[arg(long, value_name = "MB", default_value_t = 4096, value_parser = at_least_one())]
    pub memory: usize,
    /// Groups whose distillers are kept. The least recently used one makes room.
    #[arg(long, value_name = "GROUPS", default_value_t = 64, value_parser = at_least_one())]
    pub max_groups: usize,
    /// Seconds that a client may take to send its headers or its body, or to read half of the 256 tokens of a completion
    /// that the server keeps for it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub client_timeout: u64,
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}
