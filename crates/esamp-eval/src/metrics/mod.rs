//! Metrics of completions: correctness, diversity and probability, and whether differences are significant.
//!
//! Pure functions over slices in `f64`, without tensors or devices. Random numbers are used only by
//! functions that take a seed.
//!
//! | question | functions |
//! |---|---|
//! | is one of them right? | [`pass_at_k`], [`maj_at_k`] |
//! | do they differ in meaning? (embeddings) | [`vendi_from_embeddings`], [`mean_pairwise_cosine`], [`cosine`] |
//! | do they differ in meaning? (any similarity) | [`vendi_from_kernel`] |
//! | do they differ in words? (tokens) | [`distinct_n`], [`expectation_adjusted_distinct`], [`self_bleu`] |
//! | how probable, how certain, how far apart? | [`perplexity`], [`entropy`], [`kl_divergence`] |
//! | is a difference more than chance? | [`paired_interval`], [`mean_interval`], [`bootstrap_interval`], [`mcnemar`] |
//! | are two variables related? | [`pearson`], [`spearman`], [`partial_spearman`] |
//!
//! Each takes the completions of one problem, or one value per problem. To compare two sampling methods on
//! the same problems:
//!
//! ```
//! use esamp_eval::metrics::{BootstrapConfig, paired_interval, pass_at_k};
//!
//! // Number of right completions among 16, for each of six problems.
//! let plain = [0, 2, 1, 0, 7, 3];
//! let explored = [1, 2, 3, 0, 6, 5];
//! let pass = |correct: [usize; 6]| correct.map(|c| pass_at_k(16, c, 4));
//! let plain = pass(plain).into_iter().collect::<Result<Vec<_>, _>>()?;
//! let explored = pass(explored).into_iter().collect::<Result<Vec<_>, _>>()?;
//!
//! let gain = paired_interval(&explored, &plain, &BootstrapConfig::default())?;
//! assert!(gain.low < gain.estimate && gain.estimate < gain.high);
//! # Ok::<(), esamp_eval::metrics::MetricError>(())
//! ```
//!
//! Inputs outside a function's domain are a [`MetricError`]; no function falls back to another value.

#![warn(missing_docs)]

mod bootstrap;
mod correlation;
mod distinct;
mod distribution;
mod eigen;
mod error;
mod mcnemar;
mod normal;
mod pass;
mod self_bleu;
mod similarity;
mod vendi;

pub use bootstrap::{
    BootstrapConfig, BootstrapMethod, Interval, bootstrap_interval, mean_interval, paired_interval,
};
pub use correlation::{partial_spearman, pearson, spearman};
pub use distinct::{distinct_n, expectation_adjusted_distinct};
pub use distribution::{entropy, kl_divergence, perplexity};
pub use error::MetricError;
pub use mcnemar::{McNemar, mcnemar};
pub use pass::{maj_at_k, pass_at_k};
pub use self_bleu::{Smoothing, self_bleu};
pub(crate) use similarity::dot;
pub use similarity::{cosine, mean_pairwise_cosine};
pub use vendi::{vendi_from_embeddings, vendi_from_kernel};
