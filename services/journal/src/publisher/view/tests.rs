use super::*;
use crate::{Everything, Record as Stored};

fn view(settings: Settings) -> View {
    let records = vec![Stored { key: "a".to_owned(), revision: 2, value: Bytes::from_static(b"one") }];
    View::new("".into(), Snapshot { position: Position::new(7, 3), records }, &Everything, settings)
}

fn entry(revision: u64, key: &str, value: Option<Vec<u8>>) -> Entry {
    Entry { key: key.to_owned(), revision, value: value.map(Bytes::from), at_unix_ms: 0 }
}

fn decoded(message: &Bytes) -> Response {
    FollowResponse::decode(&message[..]).unwrap().response.unwrap()
}

fn delta(view: &View, cursor: u64) -> tenon_proto::replication::v1::Delta {
    let Next::Delta(delta) = view.next(cursor) else { panic!("no delta after {cursor}") };
    let Response::Delta(message) = decoded(&delta.message) else { panic!("another message") };
    assert_eq!((message.previous_revision, message.revision), (delta.previous, delta.revision));
    message
}

#[test]
fn a_delta_has_the_latest_change_of_each_key_in_order() {
    let view = view(Settings::default());
    let entries = [entry(4, "b", Some(b"1".to_vec())), entry(5, "a", None), entry(6, "b", Some(b"2".to_vec()))];
    view.apply(&entries, &Everything);
    let message = delta(&view, 3);
    assert_eq!((message.epoch, message.revision), (7, 6));
    let changes: Vec<_> =
        message.changes.iter().map(|it| (it.key.as_str(), it.revision, it.value.as_deref())).collect();
    assert_eq!(changes, [("a", 5, None), ("b", 6, Some(b"2".as_slice()))]);
    assert_eq!(delta(&view, 5).changes.len(), 1);
    assert!(matches!(view.next(6), Next::Nothing));
    assert!(matches!(view.next(2), Next::Snapshot), "the ring begins where the view was made");
    assert!(matches!(view.next(7), Next::Snapshot), "ahead of the head");
}

#[test]
fn a_value_of_no_bytes_is_not_a_deletion() {
    let view = view(Settings::default());
    view.apply(&[entry(4, "a", Some(Vec::new()))], &Everything);
    assert_eq!(delta(&view, 3).changes[0].value.as_deref(), Some(b"".as_slice()));
}

#[test]
fn what_does_not_concern_a_view_still_moves_it() {
    let view = view(Settings::default());
    view.apply(&[entry(4, "nobody", None), entry(5, "nobody", None)], &Everything);
    let message = delta(&view, 3);
    assert_eq!((message.revision, message.changes.len()), (5, 0));
}

#[test]
fn a_message_is_bounded_by_changes_and_by_bytes_and_leads_on() {
    let view = view(Settings::default());
    let many: Vec<_> = (4..3004).map(|revision| entry(revision, &format!("k{revision}"), Some(vec![1]))).collect();
    view.apply(&many, &Everything);
    let large: Vec<_> =
        (3004..3012).map(|revision| entry(revision, &format!("k{revision}"), Some(vec![1; 400 << 10]))).collect();
    view.apply(&large, &Everything);
    let (mut cursor, mut messages, mut changes) = (3, 0, 0);
    while !matches!(view.next(cursor), Next::Nothing) {
        let message = delta(&view, cursor);
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
fn followers_at_one_position_share_one_encoded_delta() {
    let view = view(Settings::default());
    view.apply(&[entry(4, "b", Some(b"1".to_vec()))], &Everything);
    let (Next::Delta(one), Next::Delta(other)) = (view.next(3), view.next(3)) else { panic!("no delta") };
    assert_eq!(one.message.as_ptr(), other.message.as_ptr());
}

#[test]
fn who_is_behind_the_ring_gets_a_snapshot_that_followers_share() {
    let view = view(Settings { ring_changes: 2, ..Settings::default() });
    for revision in 4..8 {
        view.apply(&[entry(revision, &format!("k{revision}"), Some(vec![1]))], &Everything);
    }
    assert!(matches!(view.next(4), Next::Snapshot));
    assert_eq!(delta(&view, 5).changes.len(), 2);
    let frozen = view.freeze(7);
    assert!(Arc::ptr_eq(&frozen, &view.freeze(7)));
    view.apply(&[entry(8, "k8", None)], &Everything);
    assert!(!Arc::ptr_eq(&frozen, &view.freeze(8)), "one that began later needs a later one");
    assert_eq!(frozen.position, Position::new(7, 7));
}

#[test]
fn the_digest_of_heartbeat_and_snapshot_is_that_of_the_records() {
    let view = view(Settings::default());
    let entries = [entry(4, "a", Some(b"two".to_vec())), entry(5, "b", Some(b"x".to_vec())), entry(6, "b", None)];
    view.apply(&entries, &Everything);
    let wanted = replica::digest([("a", 4, b"two".as_slice())]);
    let Response::Heartbeat(heartbeat) = decoded(&view.heartbeat()) else { panic!("no heartbeat") };
    assert_eq!(
        (heartbeat.head, heartbeat.records, &heartbeat.digest[..]),
        (Some(Position::new(7, 6).into()), 1, &wanted[..])
    );
    let Response::SnapshotEnd(end) = decoded(&view.freeze(6).end()) else { panic!("no end") };
    assert_eq!((end.records, &end.digest[..]), (1, &wanted[..]));
}
