//! What all requests share.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use esamp::engine::Engine;
use esamp_programs::loaded::Texts;

use tokio::sync::Semaphore;

use crate::{groups::Groups, hosts::Hosts, keys::ApiKeys, metrics::Traffic};

/// The state of the server.
pub struct App {
    pub engine: Engine,
    pub texts: Texts,
    /// The name that clients know the model by.
    pub model: String,
    /// The longest prompt and completion together, in tokens.
    pub context_length: Option<usize>,
    /// Bytes of the model's matrices in memory, if they are known.
    pub weight_bytes: Option<usize>,
    pub limits: Limits,
    pub keys: ApiKeys,
    pub groups: Groups,
    pub hosts: Hosts,
    /// Places for requests for completions that are answered at the same time.
    pub places: Arc<Semaphore>,
    pub logs_prompts: bool,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// Completions are being cancelled because the server ends.
    pub is_stopping: AtomicBool,
    pub traffic: Traffic,
}

/// The limits of a request.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Tokens of a prompt. The model's context may allow fewer.
    pub prompt: usize,
    /// Completions of a request.
    pub completions: usize,
    /// New tokens of a chat that does not say.
    pub default_tokens: usize,
    /// Connections at a time on which completions are answered. [`Limits::SPARE`] more are accepted.
    pub connections: usize,
    /// How long a client may take to send a request, or may not read a response.
    pub client_timeout: Duration,
    /// The exploration strength of a request that does not say.
    pub beta: f32,
    /// The min-p of a request that does not say; 0 is off.
    pub min_p: f32,
    /// Updates on the prompt of a request that does not say.
    pub warm_up_updates: usize,
}

impl Limits {
    /// Connections beyond the limit, so that what needs no model, such as `/health`, is answered while all others are in
    /// use. They are closed after one response.
    pub const SPARE: usize = 64;
}

/// The two kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/completions`
    Completion,
    /// `/v1/chat/completions`
    Chat,
}

impl Kind {
    /// The field that the prompt is in.
    pub fn prompt_field(self) -> &'static str {
        match self {
            Self::Completion => "prompt",
            Self::Chat => "messages",
        }
    }

    pub fn prompt_expected(self) -> &'static str {
        match self {
            Self::Completion => "a string, an array of token ids, or an array of such prompts",
            Self::Chat => "an array of 1 to 4096 messages",
        }
    }
}

/// A random number, from the keys that the standard library draws for its hash maps.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}
