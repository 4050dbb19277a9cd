//! Changes of the hierarchy: the steps of rotations.
//!
//! Each is durable when it returns, and none is half done: new files are written first, then `ca.json`, which makes
//! them count, then the CA in memory follows, then the files that do not count any more go.

use std::sync::Arc;

use super::certificates::ISSUING_LIFETIME;
use super::folder::Draft;
use super::state::{Phase, State};
use super::{Ca, RotateError};

impl Ca {
    /// Makes a new root that is trusted beside the present one and signs nothing yet.
    ///
    /// # Errors
    /// When the root is being rotated already, or the files cannot be written.
    pub fn prepare_root(&self, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| match draft.state.phase() {
            Phase::None => Ok(draft.add_root()?),
            Phase::Prepared => Err(RotateError::OutOfTurn("a new root is prepared already: activate or abandon it")),
            Phase::Activated => Err(RotateError::OutOfTurn("the last rotation is not over: retire the old root first")),
        })
    }

    /// The prepared root signs a new issuing CA, and that one signs from now on.
    ///
    /// # Errors
    /// When no root is prepared, or the files cannot be written.
    pub fn activate_root(&self, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| match (draft.state.phase(), draft.state.roots.last().cloned()) {
            (Phase::Prepared, Some(new)) => {
                draft.state.active = new.name;
                Ok(draft.add_issuing()?)
            }
            (Phase::Activated, _) => Err(RotateError::OutOfTurn("the new root is active already: retire the old one")),
            (_, _) => Err(RotateError::OutOfTurn("no new root is prepared: prepare one first")),
        })
    }

    /// The old root is trusted no longer, and its key is deleted.
    ///
    /// # Errors
    /// When the new root is not active, or the files cannot be written.
    pub fn retire_root(&self, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| match draft.state.phase() {
            Phase::Activated => {
                draft.state.roots.remove(0);
                Ok(())
            }
            Phase::Prepared => Err(RotateError::OutOfTurn("the new root is not active yet: activate it first")),
            Phase::None => Err(RotateError::OutOfTurn("there is one root alone: prepare a new one first")),
        })
    }

    /// The prepared root is trusted no longer, and its key is deleted.
    ///
    /// # Errors
    /// When no root is prepared, or the files cannot be written.
    pub fn abandon_root(&self, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| match draft.state.phase() {
            Phase::Prepared => {
                draft.state.roots.pop();
                Ok(())
            }
            Phase::Activated => Err(RotateError::OutOfTurn("the new root is active already: retire the old one")),
            Phase::None => Err(RotateError::OutOfTurn("no new root is prepared")),
        })
    }

    /// The active root signs a new issuing CA, and that one signs from now on.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn renew_issuing(&self, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| Ok(draft.add_issuing()?))
    }

    /// Whether half of the life of the issuing CA is over.
    pub fn issuing_is_due(&self, now: u64) -> bool {
        now >= self.current.load().state.signing().made + ISSUING_LIFETIME.as_secs() / 2
    }

    /// Every service is to replace an ASAP key that was created before `now`.
    ///
    /// # Errors
    /// When `ca.json` cannot be written.
    pub fn rekey(&self, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| {
            draft.state.rekey_created_before = now.max(draft.state.rekey_created_before);
            Ok(())
        })
    }

    /// Makes the bundle's sequence more than `past`, which somebody may have seen already: the CA was put back from an
    /// old copy.
    pub(crate) fn pass(&self, past: u64, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| {
            draft.state.sequence = draft.state.sequence.max(past + 1);
            Ok(())
        })
    }

    /// Notes how it stands with the store that belongs to the CA. Not a change of the bundle.
    pub(crate) fn note_store(&self, mark: String, recovering: bool, now: u64) -> Result<(), RotateError> {
        self.change(now, |draft| {
            (draft.state.store_mark, draft.state.recovering) = (Some(mark), recovering);
            draft.state.sequence -= 1;
            Ok(())
        })
    }

    /// Draws up the next hierarchy from what is on the disk, makes it count, and takes it over.
    fn change(
        &self,
        now: u64,
        step: impl FnOnce(&mut Draft<'_>) -> Result<(), RotateError>,
    ) -> Result<(), RotateError> {
        let _alone = self.changing.try_lock().map_err(|_| RotateError::Busy)?;
        let (folder, files) = (&self.folder, &self.folder.files);
        let _locked = files.lock()?;
        let mut state = folder.state()?.unwrap_or_else(|| self.current.load().state.clone());
        state.sequence += 1;
        state.forget_ended(now);
        let mut draft = folder.draft(state, now);
        let current = match step(&mut draft).and_then(|()| Ok(folder.load_state(draft.state.clone())?)) {
            Ok(current) => current,
            Err(error) => {
                draft.discard();
                return Err(error);
            }
        };
        if let Err(error) = files.write_state(&current.state) {
            // Written after all, when only the last fsync failed: then it counts, and its files must stay.
            let counts = |state: Option<State>| state.as_ref() == Some(&current.state);
            if !folder.state().is_ok_and(counts) {
                draft.discard();
                return Err(error.into());
            }
        }
        files.sweep(&current.state);
        self.current.store(Arc::new(current));
        Ok(())
    }
}
