//! What ESamp costs: the same decode loop with and without it, side by side.
//!
//! ```sh
//! cargo bench --bench overhead              # all CPU rows
//! cargo bench --bench overhead -- --quick   # fewer rounds, the rows most asked for
//! cargo bench --bench overhead -- --json    # one object per configuration
//! cargo bench --bench overhead -- --model 0.5b --groups 2x8 --distiller low-rank   # another shape, random weights
//! benches/gpu.sh                            # on a GPU: --gpu is the reference's workload
//! ```
//!
//! Two decoders on one model take turns with the same prompts, filters, seeds and lengths; only β differs. On a CPU they
//! take turns step by step. Where work goes on after a step has returned, on a GPU or on a thread in the background, it
//! would be paid for by the other's step: there they take turns generation by generation, each timed until its last update
//! is done. A round is one generation; its ratio is the plain time over the steered one. Medians and quartiles are over
//! rounds. A run whose counters say that it did not learn what it should is refused.

pub mod args;
pub mod device;
pub mod floor;
pub mod report;
pub mod run;
pub mod state;
pub mod subject;
