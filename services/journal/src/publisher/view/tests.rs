use prost::Message as _;
use tenon_proto::replication::v1::{FollowResponse, follow_response::Response};

use super::*;
use crate::{
    Entry, Everything, Record, Snapshot,
    publisher::{
        Settings,
        base::Base,
        message::{DELTA_BYTES, DELTA_CHANGES, FRAME},
    },
};

/// A base and a view of it, fed as a publisher feeds them.
struct Fed {
    base: Base,
    view: View,
    settings: Settings,
}

fn fed(settings: Settings) -> Fed {
    let records = vec![Record { key: "a".to_owned(), revision: 2, value: Bytes::from_static(b"one") }];
    let base = Base::new(Snapshot { position: Position::new(7, 3), records }, &Everything);
    let view = View::new("".into(), base.position(), Arc::clone(base.ring()));
    view.build(&base.freeze(), &Everything);
    Fed { base, view, settings }
}

impl Fed {
    fn make(&mut self, entries: &[Entry]) -> Batch {
        let revision = entries.last().unwrap().revision;
        let changes: Vec<_> =
            entries.iter().filter_map(|entry| self.base.apply(entry.clone(), false, &Everything)).collect();
        let mut ring = self.base.ring().lock().unwrap();
        changes.iter().for_each(|change| ring.push(Arc::clone(change), change.revision));
        ring.trim(self.settings);
        drop(ring);
        self.base.reached(revision);
        Batch { changes: changes.into(), revision, compared: false }
    }

    fn apply(&mut self, entries: &[Entry]) {
        let batch = self.make(entries);
        self.view.apply(&batch, &Everything);
    }

    fn next(&self, cursor: u64) -> Next {
        self.view.next(cursor, &Everything)
    }

    fn delta(&self, cursor: u64) -> tenon_proto::replication::v1::Delta {
        let Next::Delta(delta) = self.next(cursor) else { panic!("no delta after {cursor}") };
        let Response::Delta(message) = decoded(&delta.message) else { panic!("another message") };
        assert_eq!((message.previous_revision, message.revision), (delta.previous, delta.revision));
        message
    }
}

fn entry(revision: u64, key: &str, value: Option<Vec<u8>>) -> Entry {
    Entry { key: key.to_owned(), revision, value: value.map(Bytes::from), at_unix_ms: 0 }
}

fn decoded(message: &Bytes) -> Response {
    let length = u32::from_be_bytes(message[1..FRAME].try_into().unwrap()) as usize;
    assert_eq!((message[0], length), (0, message.len() - FRAME));
    FollowResponse::decode(&message[FRAME..]).unwrap().response.unwrap()
}

#[test]
fn a_delta_has_the_latest_change_of_each_key_in_order() {
    let mut fed = fed(Settings::default());
    fed.apply(&[entry(4, "b", Some(b"1".to_vec())), entry(5, "a", None), entry(6, "b", Some(b"2".to_vec()))]);
    let message = fed.delta(3);
    assert_eq!((message.epoch, message.revision), (7, 6));
    let changes: Vec<_> =
        message.changes.iter().map(|it| (it.key.as_str(), it.revision, it.value.as_deref())).collect();
    assert_eq!(changes, [("a", 5, None), ("b", 6, Some(b"2".as_slice()))]);
    assert_eq!(fed.delta(5).changes.len(), 1);
    assert!(matches!(fed.next(6), Next::Nothing));
    assert!(matches!(fed.next(2), Next::Snapshot), "the ring begins where the base was made");
    assert!(matches!(fed.next(7), Next::Nothing), "who is ahead of the head waits for it");
}

#[test]
fn a_value_of_no_bytes_is_not_a_deletion() {
    let mut fed = fed(Settings::default());
    fed.apply(&[entry(4, "a", Some(Vec::new()))]);
    assert_eq!(fed.delta(3).changes[0].value.as_deref(), Some(b"".as_slice()));
}

#[test]
fn what_does_not_concern_a_view_still_moves_it() {
    let mut fed = fed(Settings::default());
    fed.apply(&[entry(4, "nobody", None), entry(5, "nobody", None)]);
    let message = fed.delta(3);
    assert_eq!((message.revision, message.changes.len()), (5, 0));
    fed.view.apply(&Batch { changes: Arc::new([]), revision: 9, compared: false }, &Everything);
    assert_eq!((fed.delta(5).revision, fed.delta(4).changes.len()), (9, 0));
}

#[test]
fn a_message_is_bounded_by_changes_and_by_bytes_and_leads_on() {
    let mut fed = fed(Settings::default());
    let many: Vec<_> = (4..3004).map(|revision| entry(revision, &format!("k{revision}"), Some(vec![1]))).collect();
    fed.apply(&many);
    let large: Vec<_> =
        (3004..3012).map(|revision| entry(revision, &format!("k{revision}"), Some(vec![1; 400 << 10]))).collect();
    fed.apply(&large);
    let (mut cursor, mut messages, mut changes) = (3, 0, 0);
    while !matches!(fed.next(cursor), Next::Nothing) {
        let message = fed.delta(cursor);
        assert_eq!(message.previous_revision, cursor);
        assert!(message.changes.len() <= DELTA_CHANGES);
        assert!(
            message.changes.iter().filter_map(|it| it.value.as_ref()).map(Bytes::len).sum::<usize>() <= DELTA_BYTES
        );
        (cursor, messages, changes) = (message.revision, messages + 1, changes + message.changes.len());
    }
    assert_eq!((cursor, changes), (3011, 3008));
    assert!(messages >= 6, "{messages}");
}

#[test]
fn what_was_coalesced_is_told_as_a_whole() {
    let fed = fed(Settings::default());
    let change = |revision: u64| {
        Arc::new(Change {
            key: format!("k{revision}").into(),
            revision,
            before: Before::Absent,
            new: Some(Bytes::from_static(b"x")),
            several: false,
        })
    };
    let mut ring = fed.base.ring().lock().unwrap();
    // As a relay has it: what k4 to k2999 were in between is not known here.
    (4..3000).for_each(|revision| ring.push(change(revision), 5000));
    ring.push(change(5001), 5001);
    let stretch = ring.after(3, 5001).unwrap();
    assert_eq!((stretch.changes.len(), stretch.revision), (2996, 5000));
    let stretch = ring.after(2000, 5001).unwrap();
    assert_eq!((stretch.changes.len(), stretch.revision), (1000, 5001));
}

#[test]
fn a_relay_passes_on_that_a_record_it_never_saw_has_gone() {
    let mut fed = fed(Settings::default());
    let gone = fed.base.apply(entry(6, "b", None), true, &Everything).unwrap();
    let batch = Batch { changes: Arc::new([gone]), revision: 6, compared: false };
    fed.base.reached(6);
    fed.view.apply(&batch, &Everything);
    let told: Vec<_> = fed.delta(3).changes.into_iter().map(|it| (it.key, it.revision, it.value)).collect();
    assert_eq!(told, [("b".to_owned(), 6, None)]);
    assert!(fed.base.apply(entry(7, "b", None), false, &Everything).is_none(), "the leader sees every change");
}

#[test]
fn no_delta_leads_to_what_was_found_by_comparing() {
    let mut fed = fed(Settings::default());
    let changed = fed.base.apply(entry(9, "a", Some(b"two".to_vec())), false, &Everything).unwrap();
    *fed.base.ring().lock().unwrap() = Ring::new(9);
    fed.base.reached(9);
    fed.view.apply(&Batch { changes: Arc::new([changed]), revision: 9, compared: true }, &Everything);
    assert!(matches!(fed.next(3), Next::Snapshot), "what came and went since is not known here");
    fed.apply(&[entry(10, "a", Some(b"three".to_vec()))]);
    assert_eq!(fed.delta(9).changes.len(), 1);
}

#[test]
fn followers_at_one_position_share_one_encoded_delta() {
    let mut fed = fed(Settings::default());
    fed.apply(&[entry(4, "b", Some(b"1".to_vec()))]);
    fed.apply(&[entry(5, "c", Some(b"1".to_vec()))]);
    for cursor in [3, 4] {
        let (Next::Delta(one), Next::Delta(other)) = (fed.next(cursor), fed.next(cursor)) else { panic!("no delta") };
        assert_eq!(one.message.as_ptr(), other.message.as_ptr());
    }
}

#[test]
fn who_is_behind_the_ring_gets_a_snapshot_that_followers_share() {
    let mut fed = fed(Settings { ring_changes: 2, ..Settings::default() });
    for revision in 4..8 {
        fed.apply(&[entry(revision, &format!("k{revision}"), Some(vec![1]))]);
    }
    assert!(matches!(fed.next(4), Next::Snapshot));
    assert_eq!(fed.delta(5).changes.len(), 2);
    let frozen = fed.view.freeze(fed.base.freeze()).unwrap();
    assert!(Arc::ptr_eq(&frozen, &fed.view.frozen(7).unwrap()));
    fed.apply(&[entry(8, "k8", None)]);
    assert!(fed.view.frozen(8).is_none(), "one that began later needs a later one");
    assert_eq!(frozen.position(), Position::new(7, 7));
}

#[test]
fn the_digest_is_that_of_the_records_and_says_which_buckets_differ() {
    let mut fed = fed(Settings::default());
    let mut mine = replica::Digest::new();
    mine.add("a", 2, b"one");
    assert_eq!(fed.view.now(&mine.to_wire()).unwrap().differing, Some(Vec::new()));
    fed.apply(&[entry(4, "a", Some(b"two".to_vec())), entry(5, "b", Some(b"x".to_vec())), entry(6, "b", None)]);
    let wanted = replica::digest([("a", 4, b"two".as_slice())]);
    let Response::Heartbeat(heartbeat) = decoded(&fed.view.heartbeat()) else { panic!("no heartbeat") };
    assert_eq!(
        (heartbeat.head, heartbeat.records, &heartbeat.digest[..]),
        (Some(Position::new(7, 6).into()), 1, &wanted[..])
    );
    let now = fed.view.now(&mine.to_wire()).unwrap();
    assert_eq!((now.position, now.records, now.digest), (Position::new(7, 6), 1, wanted));
    assert_eq!(now.differing, Some(vec![u32::try_from(replica::Digest::bucket_of("a")).unwrap()]));
    assert_eq!(fed.view.now(b"").unwrap().differing, None);
}

#[test]
fn what_changes_while_a_view_is_made_is_in_it() {
    let mut fed = fed(Settings::default());
    let fresh = View::new("".into(), fed.base.position(), Arc::clone(fed.base.ring()));
    let frozen = fed.base.freeze();
    let batch = fed.make(&[entry(4, "b", Some(b"2".to_vec())), entry(5, "a", None)]);
    fed.view.apply(&batch, &Everything);
    fresh.apply(&batch, &Everything);
    fresh.build(&frozen, &Everything);
    assert_eq!(fresh.heartbeat(), fed.view.heartbeat());
    assert_eq!(fresh.revision(), 5);
}

#[test]
fn what_came_and_went_is_told_as_gone_since_another_parent_may_have_shown_it() {
    let mut fed = fed(Settings::default());
    fed.apply(&[entry(4, "b", Some(b"1".to_vec()))]);
    fed.apply(&[entry(5, "b", None)]);
    let changes = fed.delta(3).changes;
    assert_eq!(changes.iter().map(|it| (it.key.as_str(), it.value.is_some())).collect::<Vec<_>>(), [("b", false)]);
}
