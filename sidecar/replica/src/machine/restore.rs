//! What the last run left.

use tenon_proto::replication::v1::{GuardRules, follow_response::Response};

use super::{Machine, incoming::Incoming, ledger::apply};
use crate::{
    Event, Position, Value,
    state::{LoadError, Reader, Recording},
};

impl<V: Value, O: FnMut(Event<'_, V>)> Machine<V, O> {
    /// Starts from a state file, if there is one, before any stream. After an error nothing is held. Returns the file where
    /// more can be appended to it.
    pub(crate) fn start_from(&mut self, file: Option<Reader>) -> Result<Option<Recording>, LoadError> {
        let Some(mut file) = file else { return Ok(None) };
        self.restore(&mut file)?;
        let recording = file.appending();
        if recording.is_some() {
            self.shared.unsaved().begin();
        }
        Ok(recording)
    }

    fn restore(&mut self, file: &mut Reader) -> Result<(), LoadError> {
        let mut incoming = Incoming::new(0, file.position, file.view.as_str().into());
        let mut rules = GuardRules::default();
        let end = loop {
            match file.next()? {
                Some(Response::SnapshotChunk(chunk)) => {
                    chunk.records.into_iter().for_each(|it| incoming.take(it.key, it.revision, it.value, None));
                }
                Some(Response::GuardRules(told)) => rules = told,
                Some(Response::SnapshotEnd(end)) => break end,
                Some(Response::SnapshotStart(_) | Response::Delta(_) | Response::Heartbeat(_)) | None => {
                    return Err(LoadError::Damaged);
                }
            }
        };
        incoming.check(&end, None).map_err(|_| LoadError::Damaged)?;
        let mut complete = incoming.finish();
        while let Some(recorded) = file.next()? {
            match recorded {
                Response::Delta(delta) => {
                    let held = complete.position.revision;
                    for change in delta.changes.into_iter().filter(|change| change.revision > held) {
                        apply(&complete.table, &mut complete.digest, &mut complete.refused, change);
                    }
                    complete.position = Position::new(delta.epoch, delta.revision);
                }
                Response::GuardRules(told) => rules = told,
                Response::SnapshotStart(_)
                | Response::SnapshotChunk(_)
                | Response::SnapshotEnd(_)
                | Response::Heartbeat(_) => return Err(LoadError::Damaged),
            }
        }
        self.guarding.restore(rules.clone());
        self.shared.told(&rules);
        self.shared.ledger().rules = rules;
        self.install(complete);
        Ok(())
    }
}
