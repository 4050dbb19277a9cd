//! A policy that some instances have already.

use tenon_proto::policy::v1::{
    HistoryEntry, RolloutPlan, RolloutStatus, ServicePolicy, history_entry::Action, rollout_status::State as Stands,
};

use super::*;
use crate::rollout::Record as Kept;

struct Staged {
    engine: Engine,
    journals: Journals,
    before: Position,
    number: u64,
    _dir: tempfile::TempDir,
}

fn author(note: &str) -> Author {
    Author::operator("spiffe://test.example/operator/ann", note.to_owned(), None)
}

fn kept(number: u64) -> Vec<u8> {
    Kept::new(number, RolloutPlan::default(), "operator ann".to_owned(), 0, 3, &[]).encode_to_vec()
}

async fn plan(engine: &Engine, services: &[(&str, &[&str])]) -> Planned {
    engine.plan(files(services), Vec::new()).await.unwrap()
}

async fn stage(engine: &Engine, services: &[(&str, &[&str])], canaries: &[(&str, &str)]) -> u64 {
    let planned = plan(engine, services).await;
    let canaries: Vec<_> = canaries.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    engine.stage(&planned, &canaries, &author("try it"), &kept).await.unwrap();
    engine.staged().await.unwrap().unwrap().number
}

/// media and wiki have `read`; media-1 tries `write`.
async fn staged() -> Staged {
    let dir = tempfile::tempdir().unwrap();
    let journals = journals(&Embedded::open(&dir.path().join("store.redb")).unwrap());
    let engine = open(&journals).await;
    let old = files(&[("media", &["read"]), ("wiki", &["read"]), ("gone", &["read"])]);
    let before = engine.apply(old, Vec::new(), ann(), String::new(), None).await.unwrap().position;
    let new: &[(&str, &[&str])] = &[("media", &["write"]), ("wiki", &["read"]), ("fresh", &["read"])];
    let number = stage(&engine, new, &[("media", "media-1"), ("gone", "gone-1")]).await;
    Staged { engine, journals, before, number, _dir: dir }
}

impl Staged {
    async fn record(&self, service: &str) -> Option<ServicePolicy> {
        self.engine.staged_records(&[service]).await.unwrap().pop()
    }

    /// Rules of everybody, and rules and instances of the canaries.
    async fn of(&self, service: &str) -> (Vec<String>, Option<(Vec<String>, Vec<String>)>) {
        let names = |policy: &ServicePolicy| policy.rules.iter().map(|rule| rule.name.clone()).collect();
        let record = self.record(service).await.unwrap();
        let canary = record.canary.as_ref().map(|it| (names(it.policy.as_ref().unwrap()), it.instances.clone()));
        (names(&record), canary)
    }

    async fn status(&self) -> RolloutStatus {
        Kept::decode(self.engine.rollout().await.unwrap().unwrap().value).unwrap().status()
    }

    async fn actions(&self) -> Vec<(Action, String)> {
        let entries = self.engine.history(10).await.unwrap();
        entries.iter().map(|entry| (entry.action(), entry.note.clone())).collect()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn a_plan_tells_whose_policy_changes() {
    let it = staged().await;
    let plan = plan(&it.engine, &[("media", &["write"]), ("wiki", &["read"]), ("fresh", &["read"])]).await;
    assert_eq!(plan.defined(), ["fresh", "gone", "media", "wiki"]);
    assert_eq!(plan.touched(), ["gone", "media"], "compared with what is in force, not with what is staged");
}

#[tokio::test]
async fn only_the_canaries_have_what_is_staged_and_nothing_else_of_it_is_there() {
    let it = staged().await;
    let both = Some((texts(&["write"]), texts(&["media-1"])));
    assert_eq!(it.of("media").await, (texts(&["read"]), both));
    assert_eq!(it.of("gone").await, (texts(&["read"]), Some((Vec::new(), texts(&["gone-1"])))), "allows nothing");
    assert_eq!(it.of("wiki").await, (texts(&["read"]), None));
    assert_eq!(it.record("fresh").await, None);
    let routes = records_of::<proto::Route>(&*it.journals.routes).await.unwrap().1;
    let routes: Vec<_> = routes.into_iter().map(|route| route.service).collect();
    assert_eq!(routes, ["gone", "media", "wiki"], "routes come with completion");
    let now = it.engine.staged().await.unwrap().unwrap();
    assert!(now.number == it.number && now.position > Some(it.before));
    let HistoryEntry { action, note, changes, .. } = it.engine.history(1).await.unwrap().remove(0);
    assert_eq!((action, note.as_str()), (Action::RolloutStarted.into(), "try it"));
    assert!(changes.iter().any(|line| line.contains("media")), "{changes:?}");
}

#[tokio::test]
async fn a_restarted_service_keeps_what_is_staged() {
    let it = staged().await;
    let at = head(&it.engine).await;
    let again = open(&it.journals).await;
    assert_eq!(head(&again).await, at);
    assert_eq!(again.staged().await.unwrap().unwrap().number, it.number);
    assert!(it.record("media").await.unwrap().canary.is_some());
    again.promote(it.number, &Author::rollout(String::new()), Vec::new()).await.unwrap();
    assert_eq!(rules(&again).await, ["fresh/read", "media/write", "wiki/read"]);
}

#[tokio::test]
async fn promoted_it_is_everybodys_with_routes_and_origin() {
    let it = staged().await;
    let over = Kept::decode(&*kept(it.number)).unwrap().over(Stands::Completed, String::new());
    let by = Author::rollout(String::new());
    it.engine.promote(it.number, &by, over.encode_to_vec()).await.unwrap();
    assert_eq!(it.of("media").await, (texts(&["write"]), None));
    assert_eq!((it.of("fresh").await, it.record("gone").await), ((texts(&["read"]), None), None));
    assert_eq!(it.engine.in_force().origin, "applied by spiffe://test.example/operator/ann");
    let actions: Vec<Action> = it.actions().await.into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, [Action::RolloutCompleted, Action::RolloutStarted, Action::Applied]);
    assert_eq!(it.status().await.state(), Stands::Completed);
    assert!(it.engine.staged().await.unwrap().is_none());
    let again = it.engine.promote(it.number, &by, Vec::new()).await;
    assert!(matches!(again, Err(ApplyError::NoRollout)), "{again:?}");
}

#[tokio::test]
async fn halted_it_is_nobodys() {
    let it = staged().await;
    let over = Kept::decode(&*kept(it.number)).unwrap().over(Stands::Halted, "why".to_owned());
    let wrong = it.engine.unstage(it.number + 1, Action::RolloutHalted, &author(""), Vec::new()).await;
    assert!(matches!(wrong, Err(ApplyError::NoRollout)), "another rollout: {wrong:?}");
    let by = Author::rollout("why".to_owned());
    it.engine.unstage(it.number, Action::RolloutHalted, &by, over.encode_to_vec()).await.unwrap();
    for service in ["media", "wiki", "gone"] {
        assert_eq!(it.of(service).await, (texts(&["read"]), None));
    }
    assert!(head(&it.engine).await > it.before, "the revision goes on");
    assert_eq!(it.actions().await[0], (Action::RolloutHalted, "why".to_owned()));
    assert_eq!((it.status().await.state(), it.status().await.reason.as_str()), (Stands::Halted, "why"));
}

#[tokio::test]
async fn another_policy_a_rollback_and_another_rollout_end_it() {
    for how in ["apply", "the same again", "rollback", "rollout"] {
        let it = staged().await;
        match how {
            "apply" => {
                let files = files(&[("media", &["erase"])]);
                it.engine.apply(files, Vec::new(), ann(), String::new(), None).await.map(drop).unwrap();
            }
            "the same again" => {
                let files = files(&[("media", &["read"]), ("wiki", &["read"]), ("gone", &["read"])]);
                it.engine.apply(files, Vec::new(), ann(), String::new(), None).await.map(drop).unwrap();
            }
            "rollback" => it.engine.rollback(it.before, &author("")).await.map(drop).unwrap(),
            _ => drop(stage(&it.engine, &[("media", &["erase"])], &[("media", "media-2")]).await),
        }
        let ended = (Action::RolloutEnded, "another policy was applied".to_owned());
        assert!(it.actions().await.contains(&ended), "{how}: {:?}", it.actions().await);
        let status = it.status().await;
        if how == "rollout" {
            assert_eq!(status.state(), Stands::Running);
            assert_eq!(it.of("media").await.1, Some((texts(&["erase"]), texts(&["media-2"]))));
        } else {
            assert_eq!(
                (status.state(), &*status.reason),
                (Stands::Ended, "another policy was applied, by operator ann")
            );
            assert_eq!(it.of("media").await.1, None);
        }
        let late = it.engine.promote(it.number, &Author::rollout(String::new()), Vec::new()).await;
        assert!(matches!(late, Err(ApplyError::NoRollout)), "{how}: {late:?}");
    }
}

#[tokio::test]
async fn what_is_kept_of_a_rollout_is_compared_and_set() {
    let it = staged().await;
    let kept = it.engine.rollout().await.unwrap().unwrap();
    let next = it.engine.keep_rollout(kept.revision, b"one".to_vec()).await.unwrap();
    let late = it.engine.keep_rollout(kept.revision, b"another".to_vec()).await;
    assert!(matches!(late, Err(StoreError::Append(AppendError::Conflict { .. }))));
    assert_eq!(
        it.engine.rollout().await.unwrap().unwrap(),
        Record { key: "rollout".into(), revision: next, value: b"one".to_vec().into() }
    );
}

/// As after a downgrade: the files that are in force are none to this version.
async fn another_version(it: &Staged) -> Engine {
    let state = stored::load(&*it.journals.sources).await.unwrap().state;
    let text = "apiVersion: tenon.dev/v9\nkind: Later\n".to_owned();
    let files = vec![proto::PolicyFile { path: "mesh.yaml".to_owned(), text }];
    let later = proto::ApplyRequest { files, ..proto::ApplyRequest::default() };
    let write = Write::put(stored::files_key(&state.files), later.encode_to_vec());
    it.journals.sources.append(vec![write]).await.unwrap();
    open(&it.journals).await
}

/// Named after a halt that was told of everywhere, and left the canaries with what it halted.
#[tokio::test]
async fn canaries_are_taken_back_also_where_the_files_in_force_cannot_be_read() {
    let mut it = staged().await;
    it.engine = another_version(&it).await;
    // A field that this version does not know.
    let mut media = it.journals.allowlists.get("media").await.unwrap().unwrap().value.to_vec();
    media.extend([0xfa, 0x3f, 1, 7]);
    it.journals.allowlists.append(vec![Write::put("media", media)]).await.unwrap();
    let staged_at = head(&it.engine).await;
    let by = Author::rollout("why".to_owned());
    it.engine.unstage(it.number, Action::RolloutHalted, &by, kept(it.number)).await.unwrap();
    for service in ["media", "wiki", "gone"] {
        assert_eq!(it.of(service).await, (texts(&["read"]), None), "{service}");
    }
    let media = it.journals.allowlists.get("media").await.unwrap().unwrap().value;
    assert!(media.ends_with(&[0xfa, 0x3f, 1, 7]), "nothing else of the record is lost");
    let entry = it.engine.history(1).await.unwrap().remove(0);
    assert_eq!(entry.action(), Action::RolloutHalted);
    assert!(entry.revision.as_ref().map(stored::to_position) > Some(staged_at), "{entry:?}");
    let now = head(&it.engine).await;
    it.engine.settle().await;
    open(&it.journals).await.settle().await;
    assert_eq!(head(&it.engine).await, now, "once");
}

/// Named after a plan for one in a hundred that reached everybody at once.
#[tokio::test]
async fn where_the_files_in_force_cannot_be_read_nothing_is_planned() {
    let it = staged().await;
    let engine = another_version(&it).await;
    let planned = engine.plan(files(&[("media", &["write"])]), Vec::new()).await.map(|planned| planned.position);
    assert!(matches!(planned, Err(ApplyError::NotComparable)), "{planned:?}");
}

/// Named after canaries of services whose rules had not changed.
#[tokio::test]
async fn a_comment_touches_nobody() {
    let it = staged().await;
    let mut commented = files(&[("media", &["read"]), ("wiki", &["write"]), ("gone", &["read"])]);
    commented[0].text.insert_str(0, "# A comment.\n");
    let planned = it.engine.plan(commented, Vec::new()).await.unwrap();
    assert_eq!(planned.touched(), ["wiki"]);
}
