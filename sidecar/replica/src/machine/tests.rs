use std::collections::BTreeMap;

use tenon_proto::replication::v1::{Change, Heartbeat, Record, SnapshotChunk, SnapshotEnd, SnapshotStart};

use super::*;
use crate::{
    Decode, Decoded, Replica, digest,
    state::{self, Reader, Recording},
};

/// Decodes everything that does not begin with "bad".
#[derive(Debug)]
struct NotBad;

type Text = Decoded<NotBad>;

impl Decode for NotBad {
    fn decode(_: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        if raw.starts_with(b"bad") { Err("it is bad".to_owned()) } else { Ok(Self) }
    }
}

type Observer = Box<dyn FnMut(Event<'_, Text>)>;

struct Fixture {
    machine: Machine<Text, Observer>,
    /// Who sends what comes next.
    parent: usize,
    now: Now,
    replica: Replica<Text>,
    shared: Arc<Shared<Text>>,
}

fn fixture() -> Fixture {
    fixture_with(Guard::default(), Box::new(|_| {}))
}

fn fixture_with(guard: Guard, observer: Observer) -> Fixture {
    let shared = Arc::new(Shared::new());
    let machine = Machine::new(Arc::clone(&shared), guard, 2, observer);
    let now = Now { elapsed: Duration::from_secs(100), unix_seconds: 1_000_000 };
    Fixture { machine, parent: 0, now, replica: Replica::of(Arc::clone(&shared)), shared }
}

type Records<'a> = &'a [(&'a str, u64, &'a str)];

impl Fixture {
    fn receive(&mut self, response: Response) -> Result<Option<FollowRequest>, Break> {
        self.machine.receive(self.parent, FollowResponse { response: Some(response) }, self.now)
    }

    fn snapshot(&mut self, position: Position, records: Records<'_>) -> Result<Option<FollowRequest>, Break> {
        self.receive(start(position))?;
        for half in records.chunks(2) {
            self.receive(chunk(half))?;
        }
        self.receive(end(records))
    }

    fn delta(
        &mut self,
        epoch: u64,
        from: u64,
        to: u64,
        changes: &[(&str, u64, Option<&str>)],
    ) -> Result<Option<FollowRequest>, Break> {
        let changes = changes
            .iter()
            .map(|(key, revision, value)| Change {
                key: (*key).to_owned(),
                revision: *revision,
                value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
                several: false,
            })
            .collect();
        self.receive(Response::Delta(Delta { epoch, previous_revision: from, revision: to, changes }))
    }

    fn heartbeat(&mut self, head: Position, records: Records<'_>) -> Result<Option<FollowRequest>, Break> {
        self.receive(Response::Heartbeat(Heartbeat {
            head: Some(head.into()),
            digest: of(records).to_vec().into(),
            records: records.len() as u64,
        }))
    }

    fn held(&self) -> BTreeMap<String, String> {
        let entries = self.replica.entries();
        entries
            .into_iter()
            .map(|value| (value.key().to_owned(), String::from_utf8(value.raw().to_vec()).unwrap()))
            .collect()
    }

    fn resume(&mut self) -> Option<Position> {
        self.begin().unwrap().resume.map(Into::into)
    }

    /// What the parent is asked for at the beginning of a stream, if anything.
    fn begin(&mut self) -> Option<Start> {
        let request = self.machine.begin(self.parent, "tenant", "test", self.now)?;
        let Some(Request::Start(start)) = request.request else { panic!("not a start") };
        Some(start)
    }

    fn by(&mut self, parent: usize) -> &mut Self {
        self.parent = parent;
        self
    }

    fn after(&mut self, wait: Duration) -> &mut Self {
        self.now.elapsed += wait;
        self.now.unix_seconds += i64::try_from(wait.as_secs()).unwrap();
        self
    }
}

fn start(position: Position) -> Response {
    Response::SnapshotStart(SnapshotStart {
        position: Some(position.into()),
        view: "all".to_owned(),
        ..SnapshotStart::default()
    })
}

fn chunk(records: Records<'_>) -> Response {
    let records = records.iter().map(|(key, revision, value)| Record {
        key: (*key).to_owned(),
        revision: *revision,
        value: Bytes::copy_from_slice(value.as_bytes()),
    });
    Response::SnapshotChunk(SnapshotChunk { records: records.collect() })
}

fn end(records: Records<'_>) -> Response {
    Response::SnapshotEnd(SnapshotEnd { records: records.len() as u64, digest: of(records).to_vec().into() })
}

fn of(records: Records<'_>) -> [u8; 16] {
    digest(records.iter().map(|(key, revision, value)| (*key, *revision, value.as_bytes())))
}

fn ack(position: Position) -> Result<Option<FollowRequest>, Break> {
    Ok(Some(request(Request::Ack(Ack { position: Some(position.into()) }))))
}

fn at(revision: u64) -> Position {
    Position::new(1, revision)
}

const THREE: Records<'static> = &[("a", 1, "one"), ("b", 2, "two"), ("c", 3, "three")];

#[test]
fn a_snapshot_is_seen_when_it_is_complete_and_not_before() {
    let mut it = fixture();
    assert_eq!(it.resume(), None);
    it.receive(start(at(3))).unwrap();
    it.receive(chunk(THREE)).unwrap();
    assert_eq!((it.replica.position(), it.replica.get("a").is_some()), (None, false));
    assert_eq!(it.receive(end(THREE)), ack(at(3)));
    assert_eq!(it.replica.position(), Some(at(3)));
    assert_eq!(it.replica.get("b").unwrap().revision(), 2);
    assert_eq!(it.resume(), Some(at(3)));
}

#[test]
fn the_view_of_the_snapshot_is_returned_at_the_next_start() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    assert_eq!(it.begin().unwrap().view, "all");
}

#[test]
fn the_old_map_stays_while_a_new_one_arrives_and_when_that_breaks_off() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    it.receive(start(at(9))).unwrap();
    it.receive(chunk(&[("z", 9, "other")])).unwrap();
    assert_eq!(it.held().len(), 3);
    assert_eq!(it.resume(), Some(at(3)), "a new stream resumes from the old map");
    assert!(
        matches!(it.receive(end(&[("z", 9, "other")])), Err(Break::Gap(_))),
        "the rest of the broken snapshot means nothing"
    );
    assert_eq!(it.held().len(), 3);
}

#[test]
fn a_snapshot_that_lost_or_changed_a_record_is_refused() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    for wrong in [
        &THREE[1..],
        &[("a", 1, "one"), ("b", 2, "TWO"), ("c", 3, "three")],
        &[("a", 1, "one"), ("b", 4, "two"), ("c", 3, "three")],
    ] {
        it.receive(start(at(5))).unwrap();
        it.receive(chunk(wrong)).unwrap();
        assert!(matches!(it.receive(end(THREE)), Err(Break::Refused { .. })), "{wrong:?}");
        assert_eq!(it.replica.position(), Some(at(3)));
    }
}

#[test]
fn a_chunk_that_comes_twice_does_no_harm() {
    let mut it = fixture();
    it.receive(start(at(3))).unwrap();
    it.receive(chunk(THREE)).unwrap();
    it.receive(chunk(THREE)).unwrap();
    assert_eq!(it.receive(end(THREE)), ack(at(3)));
}

#[test]
fn deltas_apply_in_order_and_duplicates_are_dropped() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    assert_eq!(it.delta(1, 3, 6, &[("a", 5, None), ("d", 6, Some("four"))]), ack(at(6)));
    assert_eq!(it.delta(1, 3, 6, &[("a", 5, None), ("d", 6, Some("four"))]), Ok(None));
    assert_eq!(it.delta(1, 6, 7, &[]), ack(at(7)));
    let expected = [("b", "two"), ("c", "three"), ("d", "four")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(it.held(), expected.into());
    assert_eq!(it.heartbeat(at(7), &[("b", 2, "two"), ("c", 3, "three"), ("d", 6, "four")]), Ok(None));
}

#[test]
fn a_delta_that_overlaps_adds_only_what_is_new() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    it.delta(1, 3, 5, &[("a", 5, Some("newer"))]).unwrap();
    assert_eq!(it.delta(1, 2, 6, &[("a", 5, Some("newer")), ("b", 6, None)]), ack(at(6)));
    assert_eq!(it.held().len(), 2);
}

#[test]
fn a_gap_or_another_epoch_ends_the_stream_and_changes_nothing() {
    let mut it = fixture();
    assert!(matches!(it.delta(1, 0, 1, &[("a", 1, Some("x"))]), Err(Break::Gap(_))), "nothing is held yet");
    it.snapshot(at(3), THREE).unwrap();
    assert!(matches!(it.delta(1, 4, 5, &[("a", 5, None)]), Err(Break::Gap(_))));
    assert!(matches!(it.delta(2, 3, 5, &[("a", 5, None)]), Err(Break::Gap(_))));
    assert!(matches!(it.delta(1, 3, 5, &[("a", 6, None)]), Err(Break::Refused { .. })), "a revision beyond the delta");
    assert!(matches!(it.delta(1, 3, 5, &[("a", 3, None)]), Err(Break::Refused { .. })), "a revision before the delta");
    assert_eq!((it.held().len(), it.resume()), (3, Some(at(3))));
}

#[test]
fn a_record_that_does_not_decode_is_refused_alone_and_the_old_one_stays() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    let answer = it.delta(1, 3, 5, &[("a", 4, Some("bad")), ("b", 5, Some("good"))]).unwrap().unwrap();
    assert_eq!(answer, nack(at(5), "record a at revision 4: it is bad".to_owned()));
    assert_eq!((it.held()["a"].as_str(), it.held()["b"].as_str()), ("one", "good"));
    assert_eq!(it.replica.status().refused_records, 1);
    let parent: Records<'_> = &[("a", 4, "bad"), ("b", 5, "good"), ("c", 3, "three")];
    assert_eq!(it.heartbeat(at(5), parent), Ok(None), "the digest is of what the parent sent");

    let again = it.delta(1, 5, 6, &[]).unwrap().unwrap();
    assert!(matches!(again.request, Some(Request::Nack(_))), "as long as it is refused, nothing later is acknowledged");
    assert_eq!(it.delta(1, 6, 7, &[("a", 7, Some("mended"))]), ack(at(7)));
    assert_eq!(it.held()["a"], "mended");
    assert_eq!(it.heartbeat(at(7), &[("a", 7, "mended"), ("b", 5, "good"), ("c", 3, "three")]), Ok(None));
    assert_eq!(it.replica.status().last_error, None);
}

#[test]
fn a_snapshot_keeps_the_old_value_of_a_record_that_does_not_decode() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    let newer: Records<'_> = &[("a", 8, "bad"), ("n", 9, "bad"), ("b", 2, "two")];
    let answer = it.snapshot(Position::new(2, 9), newer).unwrap().unwrap();
    assert!(matches!(answer.request, Some(Request::Nack(_))));
    assert_eq!(it.held(), [("a", "one"), ("b", "two")].map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert_eq!(it.heartbeat(Position::new(2, 9), newer), Ok(None));
    it.delta(2, 9, 11, &[("a", 10, None), ("n", 11, None)]).unwrap();
    assert_eq!(it.heartbeat(Position::new(2, 11), &[("b", 2, "two")]), Ok(None));
}

#[test]
fn a_record_that_this_follower_does_not_accept_is_refused_as_one_that_does_not_decode() {
    let shared = Arc::new(Shared::new());
    let accept = |it: &Text| if it.raw().starts_with(b"not here") { Err("not here".to_owned()) } else { Ok(()) };
    let observer: Observer = Box::new(|_| {});
    let machine = Machine::new(Arc::clone(&shared), Guard::default(), 1, observer).accepting(Arc::new(accept));
    let now = Now { elapsed: Duration::from_secs(100), unix_seconds: 1_000_000 };
    let mut it = Fixture { machine, parent: 0, now, replica: Replica::of(Arc::clone(&shared)), shared };
    let answer = it.snapshot(at(3), &[("a", 1, "one"), ("b", 3, "not here")]).unwrap().unwrap();
    assert_eq!(answer, nack(at(3), "record b at revision 3: not here".to_owned()));
    let answer = it.delta(1, 3, 4, &[("a", 4, Some("not here either"))]).unwrap().unwrap();
    assert_eq!(answer, nack(at(4), "record a at revision 4: not here".to_owned()));
    assert_eq!(it.held(), [("a".to_owned(), "one".to_owned())].into());

    let dir = tempfile::tempdir().unwrap();
    let path = state::path(dir.path(), "tenant");
    Recording::write(&path, "tenant", &it.shared.saved().unwrap()).unwrap();
    let mut again = fixture();
    again.machine = again.machine.accepting(Arc::new(accept));
    assert!(again.machine.start_from(Reader::open(&path, "tenant").unwrap()).unwrap().is_some());
    assert_eq!(again.held().get("b"), None, "nor from the state file");
    assert_eq!(it.delta(1, 4, 6, &[("a", 5, Some("two")), ("b", 6, Some("here"))]), ack(at(6)));
}

#[test]
fn a_wrong_digest_at_the_same_position_asks_for_a_snapshot() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    let other: Records<'_> = &[("a", 1, "one"), ("b", 2, "two"), ("c", 3, "THREE")];
    assert_eq!(it.heartbeat(at(3), other), Err(Break::Diverged(at(3))));
    assert_eq!(it.resume(), None);
    assert_eq!(it.held().len(), 3, "what is held stays in use");
    assert_eq!(it.heartbeat(at(3), other), Ok(None), "it knows already");
    assert_eq!(it.snapshot(at(3), other), ack(at(3)));
    assert_eq!(it.held()["c"], "THREE");
    assert_eq!((it.resume(), it.replica.status().divergences), (Some(at(3)), 1));
}

#[test]
fn two_heartbeats_ahead_with_nothing_between_mean_that_deltas_were_lost() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    assert_eq!(it.heartbeat(at(9), THREE), Ok(None));
    it.delta(1, 3, 4, &[]).unwrap();
    assert_eq!(it.heartbeat(at(9), THREE), Ok(None));
    assert!(matches!(it.heartbeat(at(9), THREE), Err(Break::Gap(_))));
}

#[test]
fn a_heartbeat_without_a_head_is_only_a_sign_of_life() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    for _ in 0..3 {
        assert_eq!(it.receive(Response::Heartbeat(Heartbeat::default())), Ok(None));
    }
}

#[test]
fn history_never_goes_back() {
    let mut it = fixture();
    it.snapshot(Position::new(2, 3), THREE).unwrap();
    for older in [Position::new(2, 2), Position::new(1, 99)] {
        assert!(matches!(it.snapshot(older, THREE), Err(Break::Refused { .. })), "{older}");
    }
    assert_eq!(it.snapshot(Position::new(3, 0), THREE), ack(Position::new(3, 0)));
}

#[test]
fn an_empty_table_upstream_empties_no_cache() {
    let mut it = fixture();
    let keys: Vec<_> = (0..40).map(|number| format!("tenant-{number}")).collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), 1, "v")).collect();
    it.snapshot(at(40), &records).unwrap();
    assert!(matches!(it.snapshot(Position::new(2, 0), &[]), Err(Break::Refused { .. })));
    assert!(matches!(it.snapshot(at(41), &records[..19]), Err(Break::Refused { .. })));
    assert_eq!((it.held().len(), it.replica.position()), (40, Some(at(40))));
    assert_eq!(it.snapshot(at(41), &records[..20]), ack(at(41)));
}

#[test]
fn a_snapshot_shares_what_has_not_changed() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    let before = it.replica.get("a").unwrap();
    it.snapshot(at(5), &[("a", 1, "one"), ("b", 5, "two")]).unwrap();
    assert!(std::ptr::eq(before.raw(), it.replica.get("a").unwrap().raw()));
    assert_eq!(it.replica.get("b").unwrap().revision(), 5);
}

#[test]
fn a_position_is_announced_after_the_observer_knows() {
    let shared = Arc::new(Shared::<Text>::new());
    let replica = Replica::of(Arc::clone(&shared));
    let seen = Replica::clone(&replica);
    let observer: Observer = Box::new(move |event| match event {
        Event::Replaced(all, position) => {
            assert_eq!((seen.position(), all.len(), seen.get("a").is_some()), (None, 3, true));
            assert_eq!(position, at(3));
        }
        Event::Compared => panic!("a delta"),
        Event::Changed { key, revision, old, new, .. } => {
            assert_eq!((seen.position(), key, revision), (Some(at(3)), "a", 4));
            assert_eq!((old.unwrap().revision(), new.unwrap().revision()), (1, 4));
            assert_eq!(seen.get("a").unwrap().revision(), 4, "the change can be read already");
        }
    });
    let machine = Machine::new(Arc::clone(&shared), Guard::default(), 1, observer);
    let mut it = Fixture { machine, parent: 0, now: Now::default(), replica, shared };
    it.snapshot(at(3), THREE).unwrap();
    it.delta(1, 3, 4, &[("a", 4, Some("other"))]).unwrap();
    assert_eq!(it.replica.position(), Some(at(4)));
}

#[test]
fn a_replaced_table_is_dropped_only_when_no_reader_holds_it() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    let reader = it.shared.table.load_full();
    it.snapshot(at(4), THREE).unwrap();
    assert!(it.machine.drain_retired().is_empty());
    drop(reader);
    assert_eq!(it.machine.drain_retired().len(), 1);
}

#[test]
fn what_is_saved_restores_to_the_same_map_and_digest() {
    let mut it = fixture();
    it.snapshot(at(3), THREE).unwrap();
    it.delta(1, 3, 4, &[("a", 4, Some("bad"))]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = crate::state::path(dir.path(), "tenant");
    Recording::write(&path, "tenant", &it.shared.saved().unwrap()).unwrap();

    let mut other = fixture();
    assert!(other.machine.start_from(Reader::open(&path, "tenant").unwrap()).unwrap().is_some());
    assert_eq!(other.held(), it.held());
    assert_eq!(other.held()["a"], "one", "what does not decode stands beside what is served instead");
    assert_eq!(other.resume(), Some(at(4)));
    assert_eq!(other.heartbeat(at(4), &[("a", 4, "bad"), ("b", 2, "two"), ("c", 3, "three")]), Ok(None));
}

mod buckets;
mod disorder;
mod guards;
mod memory;
mod parents;
mod restart;

#[tokio::test]
async fn a_first_map_that_comes_before_the_writer_begins_is_on_disk_after_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = crate::state::path(dir.path(), "tenant");
    let mut fixture = fixture();
    let stop = tokio_util::sync::CancellationToken::new();
    let writing = crate::persist::run(Arc::clone(&fixture.shared), "tenant", path.clone(), None, stop.clone());
    fixture.snapshot(Position::new(1, 1), &[("acme", 1, "x")]).unwrap();
    stop.cancel();
    writing.await;
    assert!(path.exists());
}
