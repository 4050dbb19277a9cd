//! Whether the map equals the parents'.

use std::time::Duration;

use tenon_proto::replication::v1::{FollowRequest, Heartbeat};

use super::{Break, Machine, Phase, stream::Stream};
use crate::{Event, Position, Value, guard::Now};

/// For this long after a parent's digest agreed, another parent that differs is the odd one out.
const AGREEMENT: Duration = Duration::from_millis(2500);
/// A parent that is behind for this long is shown as such.
const LAG: Duration = Duration::from_secs(10);

impl<V: Value, O: FnMut(Event<'_, V>)> Machine<V, O> {
    pub(super) fn heartbeat(
        &mut self,
        parent: usize,
        heartbeat: Heartbeat,
        now: Now,
    ) -> Result<Option<FollowRequest>, Break> {
        if let Some(incoming) = self.incoming.as_mut().filter(|incoming| incoming.parent == parent) {
            incoming.heard = now.elapsed;
        }
        let Some(head) = heartbeat.head.map(Position::from) else { return Ok(None) };
        let ledger = self.shared.ledger();
        let stream = &mut self.streams[parent];
        stream.resumed();
        let (Some(held), Phase::Live) = (ledger.position, stream.phase) else { return Ok(None) };
        stream.shows(&ledger.view)?;
        drop(ledger);
        self.note_lag(parent, head, held, now);
        let stream = &mut self.streams[parent];
        if head > held {
            let elsewhere = self.incoming.as_ref().is_some_and(|incoming| incoming.elsewhere);
            if std::mem::replace(&mut stream.ahead, true) && !elsewhere {
                return Err(Break::Gap(format!("the parent is at {head}, nothing came after {held}")));
            }
            stream.told = Some(heartbeat);
            return Ok(None);
        }
        self.compare(parent, head, &heartbeat, now)?;
        Ok(None)
    }

    /// Compares with the heartbeat of `parent` that was ahead, now that its position is reached.
    pub(super) fn compare_told(&mut self, parent: usize, now: Now) -> Result<(), Break> {
        let held = self.shared.ledger().position;
        let reached = |told: &mut Heartbeat| told.head.map(Position::from) <= held;
        let Some(told) = self.streams[parent].told.take_if(reached) else { return Ok(()) };
        let head = told.head.map_or(Position::ZERO, Position::from);
        self.compare(parent, head, &told, now)
    }

    fn compare(&mut self, parent: usize, head: Position, told: &Heartbeat, now: Now) -> Result<(), Break> {
        let Some(agrees) = self.agrees(head, told) else { return Ok(()) };
        if agrees {
            self.agreed(parent, head, now);
            return Ok(());
        }
        if self.repair_is_under_way(now) {
            return Ok(()); // It is known, and being mended.
        }
        self.shared.health().status.divergences += 1;
        let agreed_lately = |stream: &Stream| {
            stream.phase == Phase::Live && stream.agreed.is_some_and(|at| now.elapsed.saturating_sub(at) < AGREEMENT)
        };
        if self.streams.iter().enumerate().any(|(other, stream)| other != parent && agreed_lately(stream)) {
            return Err(Break::Odd(head));
        }
        self.streams[parent].repair = true;
        Err(Break::Diverged(head))
    }

    fn agrees(&self, head: Position, told: &Heartbeat) -> Option<bool> {
        let ledger = self.shared.ledger();
        if ledger.position != Some(head) {
            return self.history.agrees(head, told);
        }
        Some(told.records == ledger.digest.records() && told.digest[..] == ledger.digest.fold()[..])
    }

    /// All is well with `parent`, and proved.
    fn agreed(&mut self, parent: usize, head: Position, now: Now) {
        let stream = &mut self.streams[parent];
        stream.agreed = Some(now.elapsed);
        let alarmed = stream.alarm.take().is_some();
        let ledger = self.shared.ledger();
        let whole = ledger.position == Some(head) && ledger.refused.is_empty();
        drop(ledger);
        let mut health = self.shared.health();
        if alarmed {
            health.status.alarms = self.streams.iter().filter_map(|stream| stream.alarm.clone()).collect();
        }
        if whole {
            health.status.last_error = None;
        }
    }

    /// Shows where `parent` is, and for how long it has not come to where the map was.
    fn note_lag(&mut self, parent: usize, head: Position, held: Position, now: Now) {
        let lag = &mut self.streams[parent].lag;
        let caught_up = lag.is_none_or(|(mark, _)| head >= mark);
        let since = lag.filter(|_| !caught_up).map_or(now.elapsed, |(_, since)| since);
        if caught_up {
            *lag = Some((held, now.elapsed));
        }
        let mut health = self.shared.health();
        let status = &mut health.status.parents[parent];
        status.position = Some(head);
        let lasting = now.elapsed.saturating_sub(since);
        if !caught_up && lasting >= LAG {
            status.last_error =
                Some(format!("it is at {head}, behind {held}, which is held, for {} s", lasting.as_secs()));
        } else if caught_up && head <= held {
            status.last_error = None;
        }
    }
}
