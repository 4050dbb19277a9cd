use super::*;

const HEAD: Position = Position::new(3, 10);

fn request(at: Option<Position>, writes: Vec<Write>) -> Request {
    let (reply, _) = oneshot::channel();
    Request { at, writes, deadline: Instant::now() + DEADLINE, stage: Arc::default(), reply }
}

fn put(key: &str, expected: Expected) -> Write {
    Write::put(key, "v").expecting(expected)
}

/// The first key of each request that was accepted with its last revision, that was refused, that waits.
fn planned(group: Vec<Request>) -> (Vec<(String, u64)>, Vec<String>, Vec<String>) {
    let revisions = HashMap::from([("old".to_owned(), 7)]);
    let plan = plan(group.into(), HEAD, &revisions);
    let name = |request: &Request| request.writes[0].key.clone();
    (
        plan.accepted.iter().map(|(request, revision)| (name(request), *revision)).collect(),
        plan.refused.iter().map(|(request, error)| format!("{}: {error}", name(request))).collect(),
        plan.deferred.iter().map(name).collect(),
    )
}

#[tokio::test]
async fn writes_that_wait_become_one_commit_with_revisions_in_their_order() {
    let group = vec![
        request(None, vec![put("a", Expected::Any), put("b", Expected::Absent)]),
        request(None, vec![put("old", Expected::Revision(7)), Write::delete("old").expecting(Expected::Revision(13))]),
        request(None, vec![put("c", Expected::Absent)]),
    ];
    let accepted = [("a", 12), ("old", 14), ("c", 15)].map(|(key, revision)| (key.to_owned(), revision));
    assert_eq!(planned(group), (accepted.to_vec(), vec![], vec![]));
}

#[tokio::test]
async fn what_depends_on_a_write_that_is_not_made_yet_waits_and_what_depends_on_the_records_is_refused() {
    let group = vec![
        request(None, vec![put("a", Expected::Absent)]),
        request(None, vec![put("a", Expected::Absent)]),
        request(None, vec![put("old", Expected::Absent)]),
        request(None, vec![put("new", Expected::Revision(3))]),
        request(Some(HEAD), vec![put("x", Expected::Any)]),
    ];
    let (accepted, refused, deferred) = planned(group);
    assert_eq!(accepted, [("a".to_owned(), 11)]);
    assert_eq!(
        refused,
        [
            "old: old is at revision 7, not at Absent: read it again and decide anew",
            "new: new is at no record, not at Revision(3): read it again and decide anew"
        ]
    );
    assert_eq!(deferred, ["a", "x"], "the one by what was written meanwhile, the other since it wants to be the first");
}

#[tokio::test]
async fn what_was_decided_from_another_head_is_refused() {
    let group = vec![
        request(Some(Position::new(3, 9)), vec![put("x", Expected::Any)]),
        request(Some(HEAD), vec![put("y", Expected::Any)]),
    ];
    let (accepted, refused, deferred) = planned(group);
    assert_eq!(accepted, [("y".to_owned(), 11)]);
    assert_eq!(refused, ["x: the journal has come to 3.10: catch up with it and decide anew; nothing has changed"]);
    assert!(deferred.is_empty());
}

#[tokio::test]
async fn a_request_that_was_taken_cannot_be_withdrawn_and_the_other_way_round() {
    let (first, second) = (Stage::default(), Stage::default());
    assert!(first.take() && !first.withdraw());
    assert!(second.withdraw() && !second.take());
}

#[tokio::test]
async fn what_was_sent_and_gets_no_answer_may_have_been_made_until_it_is_known_to_be_void() {
    let stage = Stage::default();
    assert!(stage.take() && !stage.sent());
    stage.send();
    assert!(stage.sent() && !stage.withdraw());
    stage.take_back();
    assert!(!stage.sent() && !stage.withdraw());
}
