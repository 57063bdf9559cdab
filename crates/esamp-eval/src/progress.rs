//! The progress bar.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::{plan::Unit, record::Header, store::Store};

/// A progress bar on standard error, in tokens; hidden if standard error is no terminal.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for the remaining work of a file.
    pub fn new(header: &Header, store: &Store) -> Self {
        let tokens =
            |units: &[Unit]| units.iter().map(|unit| unit.most_tokens(header)).sum::<u64>();
        let (done, left) = store.split();
        let bar = ProgressBar::new(tokens(done) + tokens(left)).with_position(tokens(done));
        let style = ProgressStyle::with_template(
            "{bar:30} {percent:>3} %  {elapsed} gone, {eta} to go  {wide_msg}",
        );
        // Cannot fail: the template is a constant.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        // Work of earlier runs must not count towards this run's speed.
        bar.reset_eta();
        Self { bar }
    }

    /// Advances the bar by a finished unit.
    pub fn done(&self, header: &Header, unit: &Unit) {
        let (task, arm) = (&header.tasks[unit.task].name, &header.arms[unit.arm].name);
        self.bar
            .set_message(format!("{task} {} under {arm}, seed {}", unit.problems.start, unit.seed));
        self.bar.inc(unit.most_tokens(header));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
