//! Why a program ends early, and what the user can do about it.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use esamp::{
    Counters,
    errors::{ConfigError, LoadError, TrainError},
};

use crate::{columns::printable, model_source::FetchError};

/// Why a program ends early.
#[derive(Debug)]
pub enum End {
    Failed(Failure),
    /// The reader of standard output has closed it, as `| head` does.
    ReaderGone,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<FetchError> for End {
    fn from(error: FetchError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<io::Error> for End {
    /// An error of standard output.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(Failure::runtime(error, "check where standard output goes")),
        }
    }
}

/// Prints the failure, if any, and returns the exit code.
pub fn exit_code(result: Result<(), End>) -> ExitCode {
    match result {
        Ok(()) | Err(End::ReaderGone) => ExitCode::SUCCESS,
        Err(End::Failed(failure)) => {
            // If standard error is closed too, the exit code still reports the failure.
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// Prints a note to standard error, with control characters escaped. A closed standard error is no failure.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "note: {}", printable(text));
}

const REPORT: &str = "report this with the command line that led to it";

/// An error message and the next step for the user.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    error: String,
    next_step: String,
}

impl Failure {
    const RUNTIME: u8 = 1;
    const USAGE: u8 = 2;

    /// An error at run time.
    pub fn runtime(error: impl std::error::Error, next_step: &str) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors repeat their cause in their own message.
            if !message.ends_with(&text) {
                message.push_str(&format!(": {text}"));
            }
            source = cause.source();
        }
        Self::new(message, next_step)
    }

    /// Learning that failed or made no difference, after a run with these counters.
    pub fn learning(error: TrainError, counters: &Counters) -> Self {
        let next_step = match error {
            TrainError::Worker { .. } => REPORT,
            _ if counters.rows_not_finite > counters.predictions_not_finite => {
                "check the model: its hidden states are not finite"
            }
            _ if counters.rows_not_finite > 0 => {
                "lower the learning rate: what the distiller predicts is not finite"
            }
            TrainError::NothingLearned { .. } => {
                "check the settings of the distiller: none of its parameters was updated"
            }
            _ => REPORT,
        };
        Self::runtime(error, next_step)
    }

    /// A model file that cannot be loaded.
    pub fn loading(error: LoadError) -> Self {
        let next_step = error.next_step().to_owned();
        Self::runtime(error, &next_step)
    }

    /// Flags that are invalid, alone or together.
    pub fn usage(error: String, next_step: &str) -> Self {
        Self { code: Self::USAGE, error, next_step: next_step.to_owned() }
    }

    /// An error at run time that is already text.
    pub fn new(error: String, next_step: &str) -> Self {
        Self { code: Self::RUNTIME, error, next_step: next_step.to_owned() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some errors quote files and other programs.
        write!(f, "error: {}\nnext step: {}", printable(&self.error), self.next_step)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string(), "choose a value in the range; --help lists the settings")
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let code = match error {
            FetchError::Unknown(_) => Self::USAGE,
            _ => Self::RUNTIME,
        };
        Self { code, next_step: error.next_step().to_owned(), error: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Model {
        #[error("forward")]
        Quiet(#[source] io::Error),
        #[error("forward: {0}")]
        Loud(#[source] io::Error),
    }

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Step(#[from] Model);

    #[test]
    fn the_next_step_after_learning_failed_depends_on_why() {
        let worker = || TrainError::Worker { got: "a panic".to_owned() };
        let nothing = || TrainError::NothingLearned { eligible: 8, skipped: 8 };
        for (error, not_finite, predictions, step) in [
            (worker(), 0, 0, REPORT),
            (worker(), 8, 0, REPORT),
            (
                nothing(),
                0,
                0,
                "check the settings of the distiller: none of its parameters was updated",
            ),
            (nothing(), 8, 0, "check the model: its hidden states are not finite"),
            (nothing(), 8, 8, "lower the learning rate: what the distiller predicts is not finite"),
        ] {
            let mut counters = Counters::default();
            (counters.rows_not_finite, counters.predictions_not_finite) = (not_finite, predictions);
            let said = Failure::learning(error, &counters).to_string();
            assert!(said.ends_with(&format!("\nnext step: {step}")), "{said}");
        }
    }

    #[test]
    fn every_cause_is_said_once() {
        let cause = || io::Error::other("the weights have melted");
        for model in [Model::Quiet(cause()), Model::Loud(cause())] {
            let said = Failure::runtime(Step(model), "cool them").to_string();
            assert_eq!(said, "error: forward: the weights have melted\nnext step: cool them");
        }
    }
}
