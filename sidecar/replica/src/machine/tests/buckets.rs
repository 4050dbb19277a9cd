//! Snapshots of the buckets that differ.

use super::*;
use crate::Digest;

fn digest_of(records: Records<'_>) -> Digest {
    let mut digest = Digest::new();
    records.iter().for_each(|(key, revision, value)| digest.add(key, *revision, value.as_bytes()));
    digest
}

/// What a parent that holds `records` sends to who said that it holds `held`.
fn differing(position: Position, records: Records<'_>, held: &Start) -> Vec<Response> {
    let digest = digest_of(records);
    let buckets = digest.differing(&held.bucket_digests).unwrap();
    let listed = |key: &str| buckets.contains(&u32::try_from(Digest::bucket_of(key)).unwrap());
    let wanted: Vec<_> = records.iter().filter(|(key, ..)| listed(key)).copied().collect();
    let start = SnapshotStart { position: Some(position.into()), view: "all".to_owned(), partial: true, buckets };
    let mut messages = vec![Response::SnapshotStart(start)];
    messages.extend((!wanted.is_empty()).then(|| chunk(&wanted)));
    messages.push(end(records));
    messages
}

fn send(it: &mut Fixture, messages: Vec<Response>) -> Result<Option<FollowRequest>, Break> {
    messages.into_iter().try_fold(None, |_, message| it.receive(message))
}

fn hundred() -> Vec<(String, u64, String)> {
    (1..=100).map(|number| (format!("tenant-{number}"), number, format!("value {number}"))).collect()
}

fn borrowed(records: &[(String, u64, String)]) -> Vec<(&str, u64, &str)> {
    records.iter().map(|(key, revision, value)| (key.as_str(), *revision, value.as_str())).collect()
}

fn holding(records: Records<'_>) -> Fixture {
    let mut it = fixture();
    it.begin();
    it.snapshot(at(100), records).unwrap();
    it
}

#[test]
fn a_bucket_that_differs_is_found_by_the_first_heartbeat_and_fetched_alone() {
    let mut records = hundred();
    let mut it = holding(&borrowed(&records));
    records[6].2 = "another".to_owned();
    let theirs = borrowed(&records);
    assert_eq!(it.heartbeat(at(100), &theirs), Err(Break::Diverged(at(100))));
    let begun = it.begin().unwrap();
    assert_eq!(begun.resume, None);
    let messages = differing(at(100), &theirs, &begun);
    let Response::SnapshotStart(start) = &messages[0] else { panic!() };
    assert_eq!(start.buckets.len(), 1);
    assert_eq!(send(&mut it, messages), ack(at(100)));
    assert_eq!(it.heartbeat(at(100), &theirs), Ok(None));
    assert_eq!(it.held()["tenant-7"], "another");
    let status = it.replica.status();
    let counts = (status.divergences, status.repaired_buckets, status.partial_snapshots, status.snapshots);
    assert_eq!(counts, (1, 1, 1, 1));
}

#[test]
fn a_new_epoch_sends_only_what_differs_and_is_there_when_all_of_it_is() {
    let mut records = hundred();
    let mut it = holding(&borrowed(&records));
    let untouched = it.replica.get("tenant-1").unwrap();
    records[10].1 = 300;
    records.retain(|(key, ..)| key != "tenant-50");
    records.push(("new".to_owned(), 301, "n".to_owned()));
    let theirs = borrowed(&records);
    let begun = it.begin().unwrap();
    assert_eq!(begun.resume, Some(at(100).into()));
    let restored = Position::new(2, 90);
    let mut messages = differing(restored, &theirs, &begun);
    let last = messages.pop().unwrap();
    assert_eq!(send(&mut it, messages), Ok(None));
    assert_eq!((it.held().len(), it.replica.position()), (100, Some(at(100))), "nothing shows before it is checked");
    assert_eq!(it.receive(last), ack(restored));
    assert_eq!(it.heartbeat(restored, &theirs), Ok(None));
    assert_eq!((it.replica.get("tenant-50").is_none(), it.replica.get("new").is_some()), (true, true));
    assert_eq!(it.replica.get("tenant-1").unwrap().raw().as_ptr(), untouched.raw().as_ptr());
    assert_eq!(it.replica.status().repaired_buckets, 0, "nothing was wrong");
}

#[test]
fn where_nothing_differs_nothing_is_sent() {
    let records = hundred();
    let theirs = borrowed(&records);
    let mut it = holding(&theirs);
    let begun = it.begin().unwrap();
    let messages = differing(Position::new(2, 4), &theirs, &begun);
    assert_eq!(messages.len(), 2);
    assert_eq!(send(&mut it, messages), ack(Position::new(2, 4)));
    assert_eq!(it.held().len(), 100);
}

#[test]
fn a_partial_snapshot_that_does_not_fit_is_refused_and_everything_is_asked_for() {
    let records = hundred();
    let theirs = borrowed(&records);
    let mut it = holding(&theirs);
    let begun = it.begin().unwrap();
    let mut messages = differing(Position::new(2, 4), &theirs[1..], &begun);
    *messages.last_mut().unwrap() = end(&theirs[2..]);
    assert!(matches!(send(&mut it, messages), Err(Break::Refused { .. })));
    assert_eq!((it.held().len(), it.replica.position()), (100, Some(at(100))));
    let again = it.begin().unwrap();
    assert!(again.bucket_digests.is_empty(), "its account of what is held may be wrong");
    assert_eq!(it.snapshot(Position::new(2, 4), &theirs[1..]), ack(Position::new(2, 4)));
    assert!(!it.begin().unwrap().bucket_digests.is_empty());
}

#[test]
fn a_partial_snapshot_with_records_of_other_buckets_is_refused() {
    let records = hundred();
    let theirs = borrowed(&records);
    let mut it = holding(&theirs);
    let begun = it.begin().unwrap();
    let mut messages = differing(Position::new(2, 4), &theirs[1..], &begun);
    messages[1] = chunk(&theirs);
    assert!(matches!(send(&mut it, messages), Err(Break::Refused { .. })));
    assert_eq!(it.held().len(), 100);
    let start = SnapshotStart { partial: true, buckets: vec![256], ..SnapshotStart::default() };
    assert!(matches!(it.receive(Response::SnapshotStart(start)), Err(Break::Refused { .. })));
}

#[test]
fn deltas_of_the_other_parent_that_came_meanwhile_are_kept() {
    let mut records = hundred();
    let mut it = holding(&borrowed(&records));
    records[6].2 = "another".to_owned();
    let theirs = borrowed(&records);
    it.heartbeat(at(100), &theirs).unwrap_err();
    it.by(1).begin();
    let begun = it.by(0).begin().unwrap();
    let messages = differing(at(100), &theirs, &begun);
    it.by(1).delta(1, 100, 102, &[("tenant-7", 101, Some("later")), ("tenant-8", 102, None)]).unwrap();
    assert_eq!(send(it.by(0), messages), ack(at(102)));
    assert_eq!((it.held()["tenant-7"].as_str(), it.held().len()), ("later", 99));
    records[6] = ("tenant-7".to_owned(), 101, "later".to_owned());
    records.remove(7);
    assert_eq!(it.heartbeat(at(102), &borrowed(&records)), Ok(None));
}

#[test]
fn a_record_that_does_not_decode_keeps_the_old_one_and_the_rest_is_taken() {
    let mut records = hundred();
    let mut it = holding(&borrowed(&records));
    records[6] = ("tenant-7".to_owned(), 200, "bad".to_owned());
    records[7] = ("tenant-8".to_owned(), 201, "good".to_owned());
    let theirs = borrowed(&records);
    let begun = it.begin().unwrap();
    let messages = differing(Position::new(2, 1), &theirs, &begun);
    let answer = send(&mut it, messages).unwrap().unwrap();
    assert!(matches!(answer.request, Some(Request::Nack(_))));
    assert_eq!((it.held()["tenant-7"].as_str(), it.held()["tenant-8"].as_str()), ("value 7", "good"));
    assert_eq!(it.heartbeat(Position::new(2, 1), &theirs), Ok(None), "the digest is of what the parent sent");
}

/// The same bucket at both ends, and another in between: a record that came after what was held and went before what was
/// offered, of which the other parent has told the first half only.
#[test]
fn a_delta_that_comes_while_buckets_are_received_is_not_left_in_those_that_did_not_differ() {
    let records = hundred();
    let mut it = holding(&borrowed(&records));
    it.by(1).begin();
    it.heartbeat(at(100), &borrowed(&records)).unwrap();
    let mut later = records.clone();
    later[3].1 = 140;
    let theirs = borrowed(&later);
    let begun = it.by(0).begin().unwrap();
    let mut messages = differing(at(150), &theirs, &begun);
    let last = messages.pop().unwrap();
    send(&mut it, messages).unwrap();
    it.by(1).delta(1, 100, 120, &[("brief", 110, Some("it goes at 130"))]).unwrap();
    assert_eq!(it.by(0).receive(last), Err(Break::Outrun));
    assert_eq!(it.replica.position(), Some(at(120)), "nothing of it was taken");
    let begun = it.by(0).begin().unwrap();
    let messages = differing(at(150), &theirs, &begun);
    assert_eq!(send(&mut it, messages), ack(at(150)));
    assert!(it.replica.get("brief").is_none());
}
