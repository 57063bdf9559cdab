//! What one rendering may cost.

use std::cell::Cell;

use super::fault::Fault;

/// What is left for one rendering. Every step of the program and every byte and list entry that it makes is paid for
/// before it is made, so this bounds the time and the memory of a rendering at once.
pub(super) struct Budget {
    left: Cell<usize>,
    limit: usize,
}

/// Cost of evaluating one node of the syntax tree.
const STEP: usize = 16;

/// Cost of one entry of a list or dictionary: its size in memory.
const ENTRY: usize = 32;

impl Budget {
    /// The budget of a conversation of `bytes` bytes. A byte of text costs 1. Templates of published models spend a
    /// few thousand, and some ten for every byte of the conversation, which they copy from variable to variable.
    pub(super) fn of(bytes: usize) -> Self {
        let limit = bytes.saturating_mul(256).saturating_add(32 << 20);
        Self { left: Cell::new(limit), limit }
    }

    pub(super) fn step(&self) -> Result<(), Fault> {
        self.spend(STEP)
    }

    pub(super) fn bytes(&self, bytes: usize) -> Result<(), Fault> {
        self.spend(bytes)
    }

    pub(super) fn entries(&self, entries: usize) -> Result<(), Fault> {
        self.spend(entries.saturating_mul(ENTRY))
    }

    fn spend(&self, cost: usize) -> Result<(), Fault> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            // What is left stays, so that an error message can still be made.
            None => Err(Fault::expected(
                format!("a template that needs at most {} bytes of text and work", self.limit),
                "one that needs more",
            )),
        }
    }
}
