//! What the programs share that put the engine or the server under load.

use std::{
    fs,
    io::{self, Write},
    panic::resume_unwind,
    thread,
};

use anyhow::{Context, Result};

/// How much load.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// Clients that stream at the same time.
    #[arg(long, default_value_t = 64)]
    pub clients: u64,
    /// Seconds under load; 0 leaves this part out.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Clients that leave; 0 leaves this part out.
    #[arg(long, default_value_t = 1000)]
    pub leaving: u64,
    /// Passed by cargo bench.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Prints a line.
pub fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("standard output")
}

/// Runs clients at the same time, each on a thread of its own, and returns the first error. A panic of one is a panic
/// here.
pub fn all<T: Send>(clients: u64, client: impl Fn(u64) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let client = &client;
        let threads: Vec<_> =
            (0..clients).map(|number| scope.spawn(move || client(number))).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|result| result.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// The resident memory of a process, or of this one, in MB; NaN where the system does not tell.
pub fn resident(process: Option<u32>) -> f64 {
    let process = process.map_or("self".to_owned(), |id| id.to_string());
    let statm = fs::read_to_string(format!("/proc/{process}/statm"));
    let pages = statm.ok().and_then(|statm| statm.split(' ').nth(1)?.parse::<f64>().ok());
    pages.map_or(f64::NAN, |pages| pages * 4096.0 / 1e6)
}

/// The number that a `part` of the others are below, 0.5 for the median; NaN of none.
pub fn quantile(numbers: &mut [f64], part: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let at = (numbers.len().saturating_sub(1) as f64 * part) as usize;
    numbers.get(at).copied().unwrap_or(f64::NAN)
}
