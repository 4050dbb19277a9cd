//! What the last run left.

use ahash::RandomState;
use tenon_proto::replication::v1::{GuardRules, follow_response::Response};

use super::{
    Machine,
    incoming::Complete,
    ledger::{Accept, apply},
    records::Records,
};
use crate::{
    Event, Position, Value, parallel,
    state::{LoadError, Reader, Recording},
};

/// Pieces of a file for each thread: none waits long for the slowest.
const PIECES: usize = 4;

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
        let mut rules = GuardRules::default();
        let mut complete = snapshot(file, &mut rules, &self.accept)?;
        while let Some(recorded) = file.next()? {
            match recorded {
                Response::Delta(delta) => {
                    let held = complete.position.revision;
                    for change in delta.changes.into_iter().filter(|change| change.revision > held) {
                        let Complete { table, digest, refused, .. } = &mut complete;
                        apply(&self.accept, table, digest, refused, change);
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

fn snapshot<V: Value>(file: &mut Reader, rules: &mut GuardRules, accept: &Accept<V>) -> Result<Complete<V>, LoadError> {
    let mut chunks = file.chunks()?;
    let end = loop {
        match file.next()? {
            Some(Response::GuardRules(told)) => *rules = told,
            Some(Response::SnapshotEnd(end)) => break end,
            Some(
                Response::SnapshotStart(_) | Response::SnapshotChunk(_) | Response::Delta(_) | Response::Heartbeat(_),
            )
            | None => return Err(LoadError::Damaged),
        }
        chunks.extend(file.chunks()?);
    };
    let (threads, hasher) = (parallel::threads(), RandomState::new());
    let each = chunks.len().div_ceil(threads * PIECES).max(1);
    let pieces = parallel::each(threads, chunks.chunks(each).collect(), |chunks| {
        let mut records = Records::new(hasher.clone());
        for chunk in chunks {
            let taken = file.chunk(chunk)?.records;
            taken.into_iter().for_each(|it| records.take(accept, it.key, it.revision, it.value, None));
        }
        Ok(records)
    });
    let pieces = pieces.into_iter().collect::<Result<_, LoadError>>()?;
    let (table, digest, refused) = Records::finish(pieces, threads);
    let (position, view) = (file.position, file.view.as_str().into());
    let complete = Complete { position, view, partial: None, elsewhere: false, table, digest, refused };
    complete.check(&end, None).map_err(|_| LoadError::Damaged)?;
    Ok(complete)
}
