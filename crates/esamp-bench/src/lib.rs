//! The code of multi-file benches, in a library so that tests can call it. The programs themselves are in
//! benches/.

#![allow(missing_docs, reason = "not published: fields with telling names need no docs")]

use std::{error::Error, io::Write, process::ExitCode};

pub mod load;
pub mod overhead;
pub mod protocol;
pub mod rows;
pub mod scale;

/// Ends a bench: prints its error, if it has one.
pub fn exit_code(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed too, the exit code still reports the failure.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
