//! What two streams and an answer say in an order that no clock would give them.

use super::{
    super::machine::{Question, Wanted},
    *,
};
use crate::guard::Now;

struct It(Machine<Site>);

fn at(revision: u64) -> Position {
    Position::new(1, revision)
}

fn change(key: &str, revision: u64, value: Option<&str>) -> Change {
    let value = value.map(|names| Bytes::copy_from_slice(names.as_bytes()));
    Change { key: key.to_owned(), revision, value, several: false }
}

fn answer(position: Position, view: &str, records: &[(&str, u64, &str)]) -> FetchResponse {
    let record = |(key, revision, names): &(&str, u64, &str)| Record {
        key: (*key).to_owned(),
        revision: *revision,
        value: Bytes::copy_from_slice(names.as_bytes()),
    };
    let records = records.iter().map(record).collect();
    FetchResponse { position: Some(position.into()), view: view.to_owned(), records, ..FetchResponse::default() }
}

impl It {
    fn new() -> Self {
        Self(Machine::new("tenant", 2, LARGE))
    }

    fn receive(&mut self, parent: usize, response: Response) -> bool {
        self.0.receive(parent, FollowResponse { response: Some(response) }, Now::default()).is_ok()
    }

    /// A stream begins at `position` with `view`. Whether it is followed.
    fn begins(&mut self, parent: usize, position: Position, view: &str) -> bool {
        self.0.begin(parent, "test");
        let start =
            SnapshotStart { position: Some(position.into()), view: view.to_owned(), ..SnapshotStart::default() };
        self.receive(parent, Response::SnapshotStart(start));
        self.receive(parent, Response::SnapshotEnd(SnapshotEnd::default()))
    }

    fn delta(&mut self, parent: usize, previous_revision: u64, changes: Vec<Change>) -> bool {
        let revision = changes.last().map_or(previous_revision + 1, |change| change.revision);
        self.receive(parent, Response::Delta(Delta { epoch: 1, previous_revision, revision, changes }))
    }

    fn ask(&mut self, name: &str, refresh: bool) -> (Question, Wanted) {
        self.0.ask(vec![key(name)], refresh, Now::default())
    }

    fn answered(&mut self, question: &Question, answer: FetchResponse) -> Result<Vec<Answer<Site>>, String> {
        self.0.answered(question, answer, Now::default())
    }

    /// Has it hold a record as of `position`.
    fn holds(&mut self, name: &str, position: Position, view: &str, names: &str) {
        let (question, _) = self.ask(name, false);
        self.answered(&question, answer(position, view, &[(name, position.revision, names)])).unwrap();
    }

    fn says(&self, name: &str) -> (String, Option<Position>) {
        let answer = self.0.store().get(name);
        let as_of = if let Answer::Found(cached) = &answer { cached.as_of } else { None };
        (said(&answer).to_owned(), as_of)
    }
}

#[test]
fn no_answer_is_believed_that_is_older_than_what_any_stream_has_told() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.begins(1, at(12), "media");
    // Nobody holds it or asks for it: what the stream that is ahead tells is not remembered.
    assert!(it.delta(1, 12, vec![change("acme", 13, None)]));
    assert_eq!(it.0.reached(), Some(at(10)), "the other one brings what lies between");
    let (_, wanted) = it.ask("acme", false);
    assert!(wanted.check(&answer(at(11), "media", &[("acme", 5, "active")])).is_err(), "it was deleted since");
    assert!(wanted.check(&answer(at(13), "media", &[])).is_ok());
}

#[test]
fn what_changed_last_counts_in_whatever_order_it_was_told() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.begins(1, at(12), "media");
    let (question, _) = it.ask("acme", false);
    it.delta(1, 12, vec![change("acme", 13, None)]);
    it.delta(0, 10, vec![change("acme", 12, Some("active"))]);
    let told = it.answered(&question, answer(at(12), "media", &[("acme", 12, "active")])).unwrap();
    assert_eq!(told.iter().map(said).collect::<Vec<_>>(), ["(nobody)"]);
}

#[test]
fn an_answer_from_before_a_gap_is_looked_at_again() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    let (question, _) = it.ask("acme", false);
    it.0.end(0);
    it.begins(0, at(50), "media");
    it.0.next_outdated(10);
    it.answered(&question, answer(at(11), "media", &[("acme", 5, "active")])).unwrap();
    assert_eq!(it.says("acme"), ("active".to_owned(), Some(at(11))));
    assert!(it.0.saved().is_none(), "after a restart nobody would know that it may be outdated");
    assert_eq!(it.0.next_outdated(10), [key("acme")]);
}

#[test]
fn nothing_is_kept_for_a_restart_while_some_of_it_is_being_looked_at_again() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.holds("acme", at(10), "media", "active");
    assert!(it.0.saved().is_some());
    it.0.end(0);
    it.begins(0, at(50), "media");
    assert_eq!(it.0.next_outdated(10), [key("acme")]);
    let (question, _) = it.ask("acme", true);
    assert!(it.0.saved().is_none(), "it may be outdated, and the answer is not there yet");
    it.answered(&question, answer(at(50), "media", &[("acme", 30, "suspended")])).unwrap();
    assert!(it.0.saved().is_some());
}

#[test]
fn nothing_of_one_view_is_served_in_another() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.holds("acme", at(10), "media", "media's part");
    let (question, _) = it.ask("globex", false);
    it.0.end(0);
    // Nothing has changed but the product of the service.
    assert!(it.begins(0, at(10), "issues"));
    assert_eq!(it.says("acme").0, "(not held)");
    assert!(it.answered(&question, answer(at(10), "media", &[("globex", 9, "media's part")])).is_err());
    assert_eq!(it.says("globex").0, "(not held)");
}

#[test]
fn two_parents_that_show_different_views_are_not_mixed() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.holds("acme", at(10), "media", "media's part");
    // The second knows of the change of the policy already, and the first not yet.
    assert!(!it.begins(1, at(10), "issues"));
    assert_eq!(it.says("acme").0, "media's part");
    it.0.end(1);
    it.0.end(0);
    assert!(it.begins(1, at(10), "issues"));
    assert_eq!(it.says("acme").0, "(not held)");
    // The first was asked to go on with the view that was held before.
    assert!(!it.begins(0, at(10), "media"));
}

#[test]
fn a_parent_that_showed_the_view_that_is_held_knows_of_a_newer_one() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.begins(1, at(10), "media");
    it.holds("acme", at(10), "media", "media's part");
    it.0.end(0);
    assert!(it.begins(0, at(10), "issues"));
    assert_eq!(it.says("acme").0, "(not held)");
    let question = it.ask("acme", false).0;
    it.answered(&question, answer(at(10), "issues", &[("acme", 9, "issues' part")])).unwrap();
    assert!(!it.delta(1, 10, vec![change("acme", 11, Some("media's part"))]), "of the view that was left");
    assert_eq!(it.says("acme").0, "issues' part");
    it.0.end(1);
    assert!(!it.begins(1, at(10), "media"), "it has not heard yet");
    it.0.end(1);
    assert!(it.begins(1, at(10), "issues"));
}

#[test]
fn a_stream_that_resumes_with_a_view_that_was_left_is_asked_anew() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.0.end(0);
    it.0.begin(0, "test");
    it.begins(1, at(10), "issues");
    assert!(!it.delta(0, 10, vec![change("acme", 11, Some("media's part"))]));
}

#[test]
fn a_tenant_that_was_held_and_is_deleted_is_known_to_be_gone() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.holds("acme", at(10), "media", "acme.example");
    it.delta(0, 10, vec![change("acme", 11, None)]);
    assert_eq!(it.says("acme").0, "(nobody)");
    it.delta(0, 11, vec![change("acme", 12, Some("acme.example"))]);
    assert_eq!(it.says("acme").0, "acme.example");
}

#[test]
fn a_tenant_that_nobody_had_is_held_once_there_is_one_by_whichever_name_it_was_asked_for() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    for name in [key("acme"), alias("globex.example")] {
        let (question, _) = it.0.ask(vec![name], false, Now::default());
        it.answered(&question, answer(at(10), "media", &[])).unwrap();
    }
    let changes = [("acme", "a.example"), ("globex", "globex.example"), ("other", "other.example")];
    let changes = (11..).zip(changes).map(|(revision, (key, names))| change(key, revision, Some(names)));
    it.delta(0, 10, changes.collect());
    assert_eq!(it.says("acme").0, "a.example");
    assert_eq!(it.says("globex").0, "globex.example");
    assert_eq!(it.says("other").0, "(not held)", "nobody asked for it");
}

#[test]
fn a_tenant_that_is_created_while_it_is_asked_for_is_held() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    let (question, _) = it.ask("acme", false);
    it.delta(0, 10, vec![change("acme", 11, Some("a.example")), change("other", 12, Some("o.example"))]);
    let told = it.answered(&question, answer(at(10), "media", &[])).unwrap();
    assert_eq!(told.iter().map(said).collect::<Vec<_>>(), ["a.example"]);
    assert_eq!(it.says("acme"), ("a.example".to_owned(), None));
    assert_eq!(it.says("other").0, "(not held)");
}

#[test]
fn a_parent_that_lags_behind_brings_no_deleted_tenant_back() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.begins(1, at(14), "media");
    // As of 14, when it had come and gone already.
    let (question, _) = it.ask("acme", false);
    it.answered(&question, answer(at(14), "media", &[])).unwrap();
    assert_eq!(it.says("acme").0, "(nobody)");
    it.delta(0, 10, vec![change("acme", 12, Some("a.example"))]);
    assert_eq!(it.says("acme").0, "(not held)");
}

#[test]
fn a_deletion_that_another_parent_left_out_is_taken_from_the_one_that_tells_it() {
    let mut it = It::new();
    it.begins(0, at(10), "media");
    it.begins(1, at(10), "media");
    it.delta(0, 10, vec![change("other", 11, Some("x"))]);
    it.holds("acme", at(11), "media", "active");
    // A relay that took 11 to 13 at once: it came and went within that.
    it.delta(1, 10, vec![change("third", 13, Some("x"))]);
    assert_eq!(it.says("acme").0, "active");
    it.delta(0, 11, vec![change("acme", 12, None), change("third", 13, Some("x"))]);
    assert_eq!(it.says("acme").0, "(not held)");
}

#[test]
fn what_had_to_go_for_want_of_room_is_not_taken_for_poison() {
    let mut it = It(Machine::new("tenant", 1, 40_000));
    it.begins(0, at(10), "media");
    for number in 0..60 {
        it.holds(&format!("small{number}"), at(10), "media", "x");
    }
    it.delta(0, 10, vec![change("small0", 11, None)]);
    let large = "x".repeat(3_000);
    for number in 0..40 {
        it.holds(&format!("large{number}"), at(11), "media", &large);
    }
    assert!(it.0.store().len() < 15);
    assert!(it.delta(0, 11, vec![change("large39", 12, None)]), "{:?}", it.0.guard_refusals);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_names_while_all_parents_are_silent_takes_neither_memory_nor_time() {
    let mesh = Mesh::new(2);
    mesh.parents.iter().for_each(|parent| parent.silent.store(true, Relaxed));
    let run = mesh.start(LARGE, None);
    run.reaches(at(10)).await;
    let began = tokio::time::Instant::now();
    let floods =
        (0..100).map(|flood| run.cache.resolve((0..1000).map(|name| key(&format!("{flood}-{name}"))).collect()));
    for answers in futures_util::future::join_all(floods).await {
        assert!(answers.iter().all(|answer| *answer == Answer::NotHeld));
    }
    assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
    mesh.write(&[("acme", Some("acme.example"))]);
    mesh.parents.iter().for_each(|parent| parent.silent.store(false, Relaxed));
    // What nobody waits for any more is not asked for.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(said(&run.resolve(key("acme")).await), "acme.example");
    assert!(mesh.questions(0) < 30, "{}", mesh.questions(0));
    run.stop().await;
}
