//! Two parents at once.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Both parents' streams are live, at revision 3.
fn both() -> Fixture {
    let mut it = fixture();
    it.begin();
    it.snapshot(at(3), THREE).unwrap();
    it.by(1).begin();
    it.heartbeat(at(3), THREE).unwrap();
    it.by(0).heartbeat(at(3), THREE).unwrap();
    it
}

#[test]
fn a_delta_counts_once_whoever_sends_it_first() {
    let mut it = both();
    assert_eq!(it.by(0).delta(1, 3, 4, &[("a", 4, Some("four"))]), ack(at(4)));
    assert_eq!(it.by(1).delta(1, 3, 4, &[("a", 4, Some("four"))]), Ok(None));
    assert_eq!(it.by(1).delta(1, 4, 6, &[("b", 5, None), ("d", 6, Some("six"))]), ack(at(6)));
    assert_eq!(it.by(0).delta(1, 4, 5, &[("b", 5, None)]), Ok(None));
    assert_eq!(it.by(0).delta(1, 5, 7, &[("d", 6, Some("six")), ("e", 7, Some("seven"))]), ack(at(7)));
    let now: Records<'_> = &[("a", 4, "four"), ("c", 3, "three"), ("d", 6, "six"), ("e", 7, "seven")];
    assert_eq!(it.heartbeat(at(7), now), Ok(None));
    assert_eq!(it.replica.status().divergences, 0);
    let Some(FollowRequest { request: Some(Request::Ack(ack)) }) = it.machine.acknowledgement(1) else { panic!() };
    assert_eq!(ack.position, Some(at(7).into()), "each parent is told of all that is held");
}

#[test]
fn a_snapshot_is_taken_from_one_of_them_and_the_other_is_asked_for_what_comes_after_it() {
    let mut it = fixture();
    assert!(it.by(0).begin().is_some() && it.by(1).begin().is_some(), "nobody knows which one answers");
    it.by(1).receive(start(at(3))).unwrap();
    assert_eq!(it.by(0).receive(start(at(4))), Err(Break::Outrun));
    it.machine.end(0);
    assert_eq!(it.by(0).begin(), None, "it is on its way");
    it.by(1).receive(chunk(THREE)).unwrap();
    it.receive(end(THREE)).unwrap();
    assert_eq!(it.by(0).resume(), Some(at(3)));
}

#[test]
fn a_parent_that_stops_in_the_middle_of_a_snapshot_delays_nothing() {
    let mut it = fixture();
    it.by(1).begin();
    it.receive(start(at(3))).unwrap();
    it.receive(chunk(&THREE[..1])).unwrap();
    assert_eq!(it.after(SECOND).by(0).begin(), None);
    assert!(it.after(SECOND).begin().is_some());
    assert_eq!(it.snapshot(at(3), THREE), ack(at(3)));
    assert!(matches!(it.by(1).receive(chunk(&THREE[1..])), Err(Break::Gap(_))), "it is too late");
    assert_eq!(it.held().len(), 3);
}

#[test]
fn a_parent_that_is_behind_is_waited_for_while_another_is_good() {
    let mut it = both();
    it.by(0).delta(1, 3, 9, &[]).unwrap();
    for _ in 0..9 {
        assert_eq!(it.after(SECOND).by(1).heartbeat(at(3), THREE), Ok(None));
        assert_eq!(it.by(0).heartbeat(at(9), THREE), Ok(None));
    }
    assert_eq!(it.replica.status().parents[1].last_error, None);
    it.after(SECOND).by(1).heartbeat(at(3), THREE).unwrap();
    it.after(SECOND).heartbeat(at(3), THREE).unwrap();
    let shown = it.replica.status().parents[1].clone();
    assert_eq!(shown.position, Some(at(3)));
    assert!(shown.last_error.unwrap().contains("1.3, behind 1.9"), "after a while it shows");
    assert_eq!(it.heartbeat(at(9), THREE), Ok(None));
    assert_eq!(it.replica.status().parents[1].last_error, None);

    it.by(1).begin();
    let behind = Err(Break::Behind { position: at(5), held: at(9) });
    assert_eq!(it.receive(start(at(5))), behind, "what it has is older");
    it.machine.end(0);
    it.begin();
    assert!(matches!(it.receive(start(at(5))), Err(Break::Refused { .. })), "there is no better one");
}

#[test]
fn a_parent_of_an_older_epoch_is_waited_for_and_says_nothing_of_the_newer_one() {
    let mut it = both();
    let newer = Position::new(2, 2);
    it.machine.end(0);
    it.by(0).begin();
    assert_eq!(it.snapshot(newer, &THREE[..2]), ack(newer));
    assert_eq!(it.by(1).delta(1, 3, 4, &[("a", 4, None)]), Ok(None));
    assert_eq!(it.heartbeat(at(4), &THREE[1..]), Ok(None));
    assert_eq!((it.held().len(), it.replica.position()), (2, Some(newer)));
    it.machine.end(1);
    assert_eq!(it.resume(), Some(newer));
    assert_eq!(it.delta(2, 2, 3, &[("a", 3, None)]), ack(Position::new(2, 3)));
}

#[test]
fn deltas_of_one_parent_are_put_on_top_of_the_older_snapshot_of_the_other() {
    let mut it = both();
    let other: Records<'_> = &[("a", 1, "ONE"), ("b", 2, "two"), ("c", 3, "three")];
    it.machine.end(1);
    it.after(SECOND * 3);
    assert_eq!(it.by(0).heartbeat(at(3), other), Err(Break::Diverged(at(3))));
    it.by(1).begin();
    it.heartbeat(at(3), THREE).unwrap();
    assert_eq!(it.by(0).resume(), None);
    it.by(1).delta(1, 3, 4, &[("d", 4, Some("four"))]).unwrap();
    it.by(0).receive(start(at(3))).unwrap();
    it.by(1).delta(1, 4, 5, &[("b", 5, None)]).unwrap();
    it.by(0).receive(chunk(other)).unwrap();
    assert_eq!(it.receive(end(other)), ack(at(5)), "the map never goes back");
    let now: Records<'_> = &[("a", 1, "ONE"), ("c", 3, "three"), ("d", 4, "four")];
    assert_eq!(it.heartbeat(at(5), now), Ok(None));
    assert_eq!((it.replica.get("d").is_some(), it.replica.get("b").is_some()), (true, false));
}

#[test]
fn the_parent_that_differs_from_the_other_two_is_left() {
    let mut it = both();
    let other: Records<'_> = &[("a", 1, "ONE"), ("b", 2, "two"), ("c", 3, "three")];
    assert_eq!(it.by(1).heartbeat(at(3), other), Err(Break::Odd(at(3))));
    it.machine.end(1);
    assert_eq!(it.by(1).resume(), Some(at(3)));
    assert_eq!(it.by(0).heartbeat(at(3), other), Err(Break::Diverged(at(3))), "both differ: it is this side");
}

#[test]
fn a_heartbeat_of_the_slower_parent_is_compared_with_what_was_held_then() {
    let mut it = both();
    it.by(0).delta(1, 3, 4, &[("a", 4, None)]).unwrap();
    it.delta(1, 4, 5, &[("b", 5, None)]).unwrap();
    assert_eq!(it.by(1).heartbeat(at(4), &THREE[1..]), Ok(None));
    assert_eq!(it.replica.status().divergences, 0);
    assert_eq!(it.after(SECOND * 3).heartbeat(at(4), THREE), Err(Break::Diverged(at(4))));
}

#[test]
fn another_view_of_one_parent_is_not_taken_while_the_other_shows_the_one_that_is_held() {
    let named = |view: &str| {
        Response::SnapshotStart(SnapshotStart {
            position: Some(at(3).into()),
            view: view.to_owned(),
            ..SnapshotStart::default()
        })
    };
    let mut it = fixture();
    it.begin();
    it.snapshot(at(3), THREE).unwrap();
    it.by(1).begin();
    assert!(matches!(it.receive(named("other")), Err(Break::OtherView { .. })), "it may know something older");

    it.machine.end(1);
    it.begin();
    it.heartbeat(at(3), THREE).unwrap();
    it.machine.end(1);
    it.begin();
    it.receive(named("other")).unwrap();
    it.receive(chunk(&THREE[1..])).unwrap();
    assert_eq!(it.receive(end(&THREE[1..])), ack(at(3)), "it showed the same before: it knows something newer");
    assert!(matches!(it.by(0).delta(1, 3, 4, &[("a", 4, Some("x"))]), Err(Break::OtherView { .. })));
    assert_eq!(it.held().len(), 2);
}
