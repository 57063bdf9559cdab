//! Files of groups, for callers of an engine.

use std::{
    path::PathBuf,
    sync::mpsc::{SyncSender, sync_channel},
};

use super::{Engine, inbox::Command};
use crate::{
    causal_lm::CausalLm,
    decode::{Decoder, GroupError},
    id::GroupId,
    snapshot::SnapshotPrecision,
};

/// A file of a group that the thread writes or reads.
#[derive(Debug)]
pub(super) struct GroupFile {
    group: GroupId,
    path: PathBuf,
    /// `None` reads the file.
    precision: Option<SnapshotPrecision>,
    answer: SyncSender<Result<(), GroupError>>,
}

impl GroupFile {
    /// The group that is to be read.
    pub(super) fn loaded(&self) -> Option<GroupId> {
        self.precision.is_none().then_some(self.group)
    }

    pub(super) fn carry_out<M: CausalLm>(self, decoder: &mut Decoder<M>) {
        let done = match self.precision {
            Some(precision) => decoder.save_group(self.group, &self.path, precision),
            None => decoder.load_group(self.group, &self.path),
        };
        // The caller waits for it, unless its thread has panicked.
        let _ = self.answer.send(done);
    }
}

impl Engine {
    /// Writes what the distiller of a group has learned to a file, between two steps: see [`Decoder::save_group`].
    /// Blocks until the file is written. The engine serves no one meanwhile.
    ///
    /// # Errors
    ///
    /// Those of [`Decoder::save_group`], and [`GroupError::Ended`] when the engine has ended: its groups end with it,
    /// so save them before [`drain`](Self::drain) or [`stop`](Self::stop).
    pub fn save_group(
        &self,
        group: GroupId,
        path: impl Into<PathBuf>,
        precision: SnapshotPrecision,
    ) -> Result<(), GroupError> {
        self.group_file(group, path.into(), Some(precision))
    }

    /// Reads a group from a file, between two steps: see [`Decoder::load_group`]. Blocks until it is read. The engine
    /// serves no one meanwhile.
    ///
    /// # Errors
    ///
    /// Those of [`Decoder::load_group`], and [`GroupError::Ended`] when the engine has ended.
    pub fn load_group(&self, group: GroupId, path: impl Into<PathBuf>) -> Result<(), GroupError> {
        self.group_file(group, path.into(), None)
    }

    fn group_file(
        &self,
        group: GroupId,
        path: PathBuf,
        precision: Option<SnapshotPrecision>,
    ) -> Result<(), GroupError> {
        let (answer, answered) = sync_channel(1);
        let file = GroupFile { group, path, precision, answer };
        self.shared.inbox.send(Command::GroupFile(file));
        // Without an answer, the thread has dropped the command or never got it.
        answered.recv().unwrap_or(Err(GroupError::Ended))
    }
}
