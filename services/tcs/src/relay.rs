//! What a relay knows of the tenants: what it follows, and the latest changes of it for those who watch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use journal::{Entry, Position, ReadError, Tail, TailError};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use replica::{Event, Raw, Replica, Value};
use tenon_proto::tcs::v1::TenantContext;
use tokio::sync::watch;

use crate::store::StoreError;

/// Changes that a watch can be resumed from.
const KEPT: usize = 10_000;
/// `TenantContext.hosts`: the number of the field.
const HOSTS_FIELD: u32 = 4;

/// A tenant as it was followed, found by its hosts too. They are read from its bytes each time, and take no memory.
///
/// Any bytes will do: what does not decode is passed on as it came, and is for the last follower to refuse.
#[derive(Clone, Debug)]
pub(crate) struct Followed(Raw);

impl Value for Followed {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        Raw::decode(key, revision, raw).map(Self)
    }

    fn key(&self) -> &str {
        self.0.key()
    }

    fn revision(&self) -> u64 {
        self.0.revision()
    }

    fn raw(&self) -> &[u8] {
        self.0.raw()
    }

    fn aliases(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.0.raw();
        std::iter::from_fn(move || next_host(&mut rest))
    }
}

impl Followed {
    /// For those who read here.
    ///
    /// # Errors
    /// It does not decode.
    pub(crate) fn tenant(&self) -> Result<TenantContext, StoreError> {
        let damaged = |source| StoreError::Damaged { id: self.key().to_owned(), source };
        let tenant = TenantContext::decode(self.raw()).map_err(damaged)?;
        Ok(TenantContext { revision: self.revision(), ..tenant })
    }
}

/// The next host in what is left of an encoded tenant.
fn next_host<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    while !rest.is_empty() {
        let (field, wire_type) = decode_key(rest).ok()?;
        if (field, wire_type) == (HOSTS_FIELD, WireType::LengthDelimited) {
            let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
            let (host, after) = rest.split_at_checked(length)?;
            *rest = after;
            return std::str::from_utf8(host).ok();
        }
        skip_field(wire_type, field, rest, DecodeContext::default()).ok()?;
    }
    None
}

/// The latest changes. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Changes {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    /// Changes up to this revision are not kept.
    floor: u64,
    /// Counts the times that the map was replaced.
    replaced: u64,
    changes: VecDeque<(u64, Box<str>, Option<Followed>)>,
}

impl Changes {
    /// To be told everything that is observed of what is followed.
    pub(crate) fn observe(&self, event: &Event<'_, Followed>) {
        match event {
            Event::Replaced(_, position) => self.begin(*position),
            // Nobody was told of it.
            Event::Changed { old: None, new: None, .. } | Event::Compared => {}
            Event::Changed { key, revision, new, .. } => {
                let mut kept = self.lock();
                // The repair of a record from before what is kept.
                if *revision <= kept.floor {
                    return;
                }
                // Within one delta they come in any order; a repair has an old revision, which nobody is told of again.
                let place = kept.changes.partition_point(|(known, ..)| known <= revision);
                kept.changes.insert(place, (*revision, (*key).into(), new.cloned()));
                if kept.changes.len() > KEPT {
                    let gone = kept.changes.pop_front();
                    kept.floor = gone.map_or(kept.floor, |(revision, ..)| revision);
                }
            }
        }
    }

    /// What comes after `position` is kept from now on.
    fn begin(&self, position: Position) {
        let mut kept = self.lock();
        *kept = Kept { floor: position.revision, replaced: kept.replaced + 1, ..Kept::default() };
    }

    /// As [`journal::Journal::tail`], of what `replica` follows; it goes as far back as changes are kept.
    pub(crate) fn tail(&self, replica: &Replica<Followed>, from: Position) -> Tail {
        let state = Tailing { changes: self.clone(), positions: replica.subscribe(), at: from, replaced: None };
        Box::pin(stream::try_unfold(state, |mut state| async move {
            let entries = state.next().await?;
            Ok(Some((entries, state)))
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Tailing {
    changes: Changes,
    positions: watch::Receiver<Option<Position>>,
    at: Position,
    /// The count of replacements when it began.
    replaced: Option<u64>,
}

impl Tailing {
    async fn next(&mut self) -> Result<Vec<Entry>, TailError> {
        loop {
            let now = *self.positions.borrow_and_update();
            if let Some(now) = now {
                let entries = self.upto(now)?;
                if !entries.is_empty() {
                    return Ok(entries);
                }
            }
            if self.positions.changed().await.is_err() {
                return Err(ReadError("the relay follows nobody any more".into()).into());
            }
        }
    }

    fn upto(&mut self, now: Position) -> Result<Vec<Entry>, TailError> {
        let kept = self.changes.lock();
        let replaced = *self.replaced.get_or_insert(kept.replaced);
        if now.epoch != self.at.epoch || kept.replaced != replaced || self.at.revision < kept.floor {
            return Err(TailError::Compacted);
        }
        let begin = kept.changes.partition_point(|(revision, ..)| *revision <= self.at.revision);
        let new = kept.changes.range(begin..).take_while(|(revision, ..)| *revision <= now.revision);
        let entries = new.map(|(revision, key, value)| Entry {
            key: key.to_string(),
            revision: *revision,
            value: value.as_ref().map(|value| Bytes::copy_from_slice(value.raw())),
            at_unix_ms: 0,
        });
        let entries = entries.collect();
        self.at = Position::new(now.epoch, now.revision.max(self.at.revision));
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repair_of_an_old_record_does_not_make_a_watch_reach_further_back() {
        let changes = Changes::default();
        changes.begin(Position::new(1, 1000));
        let record = Followed::decode("acme", 50, Bytes::new()).unwrap();
        changes.observe(&Event::Changed { key: "acme", revision: 50, old: None, new: Some(&record), several: false });
        changes.observe(&Event::Changed {
            key: "globex",
            revision: 1001,
            old: Some(&record),
            new: None,
            several: false,
        });
        let tailing = |from| {
            let (_, positions) = watch::channel(None);
            Tailing { changes: changes.clone(), positions, at: Position::new(1, from), replaced: None }
        };
        let now = Position::new(1, 1001);
        assert!(matches!(tailing(60).upto(now), Err(TailError::Compacted)), "61 to 1000 are not known here");
        let told = tailing(1000).upto(now).unwrap();
        assert_eq!(told.iter().map(|it| (it.key.as_str(), it.revision)).collect::<Vec<_>>(), [("globex", 1001)]);
    }

    #[test]
    fn a_followed_tenant_is_found_by_each_of_its_hosts() {
        let hosts = ["a.example", "b.example"].map(str::to_owned);
        let tenant = TenantContext {
            tenant_id: "acme".to_owned(),
            hosts: hosts.to_vec(),
            region: "us-east".to_owned(),
            products: [("media".to_owned(), tenon_proto::tcs::v1::Product::default())].into(),
            ..TenantContext::default()
        };
        let followed = Followed::decode("acme", 7, tenant.encode_to_vec().into()).unwrap();
        assert_eq!(followed.aliases().collect::<Vec<_>>(), hosts);
        assert_eq!(followed.tenant().unwrap(), TenantContext { revision: 7, ..tenant });
    }

    #[test]
    fn what_does_not_decode_is_held_as_it_came_and_read_by_nobody() {
        let damaged = [0x22, 0x09, b'a', b'.', b'e', b'x', b'a', b'm', b'p', b'l', b'e', 0x0a];
        let followed = Followed::decode("acme", 7, damaged.to_vec().into()).unwrap();
        assert_eq!((followed.key(), followed.revision(), followed.raw()), ("acme", 7, &damaged[..]));
        assert_eq!(followed.aliases().collect::<Vec<_>>(), ["a.example"], "as far as it can be read");
        assert!(matches!(followed.tenant(), Err(StoreError::Damaged { id, .. }) if id == "acme"));
    }
}
