//! The overhead of ESamp: the same decode loop with and without it, interleaved.
//!
//! ```sh
//! cargo bench --bench overhead              # all CPU configurations
//! cargo bench --bench overhead -- --quick   # fewer rounds, the most important configurations
//! cargo bench --bench overhead -- --json    # one object per configuration
//! cargo bench --bench overhead -- --model 0.5b --groups 2x8 --distiller low-rank   # another shape, random weights
//! benches/gpu.sh                            # on a GPU, with --gpu: the reference implementation's workload
//! ```
//!
//! Two decoders on one model alternate over the same prompts, filters, seeds and lengths; only β differs.
//! On a CPU they alternate step by step. On a GPU, or with a background thread, work continues after a step
//! has returned and would be timed as part of the other decoder's step; there they alternate generation by
//! generation, each timed until its last update has finished. A round is one generation, and its ratio is
//! plain time divided by steered time. Medians and quartiles are over rounds. A run whose counters show
//! that it did not learn what it should have is an error.

pub mod args;
pub mod device;
pub mod floor;
pub mod report;
pub mod run;
pub mod state;
pub mod subject;
