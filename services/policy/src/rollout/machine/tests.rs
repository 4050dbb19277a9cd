use proptest::prelude::*;
use tenon_proto::policy::v1::{PolicyRevision, RolloutPlan};

use super::{super::choice::Sidecar, *};

const HOLD: u32 = 600;
const STAGED: Position = Position::new(1, 7);

/// Everything in `/media.v1.Media/Get` was brought by the change; what begins with `known` passed before.
struct Says {
    known: Vec<&'static str>,
}

impl Judge for Says {
    fn brought(&self, flow: &Flow) -> Option<String> {
        (flow.path == "/media.v1.Media/Get").then(|| "rule read of media".to_owned())
    }

    fn hides(&self, flow: &Flow) -> bool {
        flow.path.is_empty()
    }

    fn passed(&self, flow: &Flow) -> bool {
        self.known.contains(&flow.caller.as_str())
    }
}

struct Fixture {
    machine: Machine,
    now: Duration,
    seen: HashMap<String, Seen>,
    judge: Says,
}

fn record(canaries: usize) -> Record {
    let sidecar = |number| Sidecar { service: "media".to_owned(), instance: format!("media-{number}"), called: true };
    let canaries: Vec<Sidecar> = (1..=canaries).map(sidecar).collect();
    let plan = RolloutPlan { canary_percent: 10.0, hold_seconds: HOLD, services: Vec::new() };
    let revision = Some(PolicyRevision { epoch: STAGED.epoch, revision: STAGED.revision });
    Record { revision, ..Record::new(3, plan, "operator alice".to_owned(), 1_000, 20, &canaries) }
}

fn fixture(canaries: usize) -> Fixture {
    let machine = Machine::new(record(canaries)).unwrap();
    Fixture { machine, now: Duration::from_secs(50), seen: HashMap::new(), judge: Says { known: vec!["issues"] } }
}

fn refused(caller: &str, path: &str, count: u64) -> Flow {
    Flow {
        caller: caller.to_owned(),
        service: "media".to_owned(),
        path: path.to_owned(),
        decision: Decision::Refused.into(),
        reason: "PATH_NOT_ALLOWED".to_owned(),
        count,
    }
}

impl Fixture {
    fn at(&mut self, number: usize, acknowledged: Option<Position>) {
        let seen = Seen { acknowledged, nack: None, reports: true };
        self.seen.insert(format!("media-{number}"), seen);
    }

    fn all_have_it(&mut self) {
        (1..=self.machine.record().canaries.len()).for_each(|number| self.at(number, Some(STAGED)));
    }

    fn look(&mut self) -> Verdict {
        self.machine.look(self.now, &self.seen, &self.judge)
    }

    /// So many seconds, one look each; ends with the first verdict that is one.
    fn pass(&mut self, seconds: u32) -> Verdict {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            let verdict = self.look();
            if verdict != Verdict::GoOn {
                return verdict;
            }
        }
        Verdict::GoOn
    }

    fn report(&mut self, number: usize, flows: &[Flow]) -> Verdict {
        self.machine.reported("media", &format!("media-{number}"), flows, &self.judge)
    }

    fn phase(&self) -> Phase {
        self.machine.record().phase()
    }

    fn held(&self) -> u64 {
        self.machine.record().held_ms / 1000
    }

    /// As a process does that takes it up from the store.
    fn restart(&mut self) {
        self.machine = Machine::new(self.machine.record().clone()).unwrap();
        self.now = Duration::from_secs(1);
        self.seen.clear();
    }
}

fn halted(verdict: Verdict) -> String {
    let Verdict::Halt(reason) = verdict else { panic!("{verdict:?}") };
    reason
}

#[test]
fn a_rollout_that_goes_well_waits_for_all_then_for_the_hold_then_for_the_last_reports() {
    let mut it = fixture(2);
    it.at(1, Some(STAGED));
    it.at(2, Some(Position::new(1, 6)));
    assert_eq!(it.pass(59), Verdict::GoOn);
    assert_eq!((it.phase(), it.held()), (Phase::Acknowledgements, 0));
    assert!(it.machine.record().canaries[0].acknowledged && !it.machine.record().canaries[1].acknowledged);
    it.at(2, Some(Position::new(1, 9)));
    it.look();
    assert_eq!((it.phase(), it.held()), (Phase::Hold, 0));
    assert_eq!(it.report(1, &[]), Verdict::GoOn);
    assert_eq!(it.pass(HOLD - 1), Verdict::GoOn);
    assert_eq!((it.phase(), it.held()), (Phase::Hold, u64::from(HOLD) - 1));
    assert_eq!(it.pass(1), Verdict::GoOn);
    assert_eq!(it.phase(), Phase::Reports);
    assert_eq!((it.report(1, &[]), it.pass(2)), (Verdict::GoOn, Verdict::GoOn), "the other one has not reported");
    it.report(2, &[refused("issues", "/elsewhere", 3)]);
    assert_eq!(it.pass(1), Verdict::Promote);
}

#[test]
fn a_canary_without_calls_is_not_waited_for_longer_than_it_takes_to_be_sure() {
    let mut it = fixture(1);
    it.all_have_it();
    assert_eq!(it.pass(HOLD + 1), Verdict::GoOn);
    assert_eq!(it.phase(), Phase::Reports);
    assert_eq!(it.pass(14), Verdict::GoOn);
    assert_eq!(it.pass(1), Verdict::Promote);
}

#[test]
fn without_a_hold_all_else_is_waited_for() {
    let mut record = record(1);
    record.plan = Some(RolloutPlan { hold_seconds: 0, ..record.plan.unwrap() });
    let mut it = Fixture { machine: Machine::new(record).unwrap(), ..fixture(1) };
    it.all_have_it();
    assert_eq!(it.look(), Verdict::GoOn);
    assert_eq!(it.phase(), Phase::Reports);
    it.report(1, &[]);
    assert_eq!(it.look(), Verdict::Promote);
}

#[test]
fn a_canary_that_refuses_the_policy_halts_it_with_its_words() {
    for phase in [Phase::Acknowledgements, Phase::Hold, Phase::Reports] {
        let mut it = fixture(2);
        it.all_have_it();
        it.machine.record.phase = phase.into();
        let earlier = Some((Position::new(1, 6), "1.6: an older one".to_owned()));
        it.seen.get_mut("media-2").unwrap().nack = earlier;
        assert_eq!(it.look(), Verdict::GoOn, "it refused something else");
        it.seen.get_mut("media-2").unwrap().nack = Some((STAGED, "1.7: record media: not a path".to_owned()));
        assert_eq!(halted(it.look()), "refused by media-2: 1.7: record media: not a path");
        assert_eq!(it.machine.record().status().canaries[1].nack, "1.7: record media: not a path");
    }
}

#[test]
fn who_does_not_acknowledge_in_time_halts_it_whether_connected_or_not() {
    let mut it = fixture(6);
    it.all_have_it();
    it.at(2, Some(Position::new(1, 6)));
    for gone in 3..=6 {
        it.seen.remove(&format!("media-{gone}"));
    }
    assert_eq!(it.pass(60), Verdict::GoOn);
    let reason = "not acknowledged within 60 s by media-2; media-3; media-4; and 2 more";
    assert_eq!(halted(it.pass(1)), reason);
}

#[test]
fn a_short_reconnect_stops_the_hold_and_a_long_one_halts_it() {
    let mut it = fixture(2);
    it.all_have_it();
    it.pass(100);
    let held = it.held();
    let back = it.seen.remove("media-1").unwrap();
    assert_eq!(it.pass(59), Verdict::GoOn);
    assert_eq!(it.held(), held, "nobody knows how it does meanwhile");
    it.seen.insert("media-1".to_owned(), back);
    it.pass(10);
    assert_eq!(it.held(), held + 10);
    // It came back without what it had, and does not take it again.
    it.at(1, Some(Position::new(1, 6)));
    assert_eq!(it.pass(59), Verdict::GoOn);
    assert_eq!(halted(it.pass(1)), "without word for 60 s from media-1");
}

#[test]
fn a_refusal_of_what_passed_before_halts_it_with_caller_path_count_and_rule() {
    for phase in [Phase::Acknowledgements, Phase::Hold, Phase::Reports] {
        let mut it = fixture(2);
        it.all_have_it();
        it.machine.record.phase = phase.into();
        let flows = [refused("issues", "/media.v1.Media/Get", 12), refused("issues", "/elsewhere", 1)];
        let reason = "media-2 refused what passed before: issues → media /media.v1.Media/Get: 12 calls, \
                      PATH_NOT_ALLOWED (rule read of media)";
        assert_eq!(halted(it.report(2, &flows)), reason);
        assert_eq!(it.machine.record().status().refused, flows[..1]);
    }
}

#[test]
fn only_canaries_are_judged_and_only_by_what_they_refused() {
    let mut it = fixture(2);
    let get = refused("issues", "/media.v1.Media/Get", 1);
    assert_eq!(it.report(3, std::slice::from_ref(&get)), Verdict::GoOn, "no canary");
    for decision in [Decision::Allowed, Decision::Audited, Decision::Unspecified] {
        let flow = Flow { decision: decision.into(), ..get.clone() };
        assert_eq!(it.report(1, &[flow]), Verdict::GoOn, "{decision:?}");
    }
    assert_ne!(it.report(1, &[get]), Verdict::GoOn);
}

#[test]
fn a_refusal_counts_as_soon_as_it_is_known_that_such_calls_pass_elsewhere() {
    let mut it = fixture(1);
    it.all_have_it();
    assert_eq!(it.report(1, &[refused("wiki", "/media.v1.Media/Get", 2)]), Verdict::GoOn);
    assert_eq!(it.pass(5), Verdict::GoOn);
    it.judge.known.push("wiki");
    let reason = halted(it.pass(1));
    assert!(reason.contains("wiki → media /media.v1.Media/Get: 2 calls"), "{reason}");
}

#[test]
fn what_scanners_are_refused_takes_bounded_memory() {
    let mut it = fixture(1);
    it.all_have_it();
    for number in 0..2_000_u64 {
        it.report(1, &[refused(&format!("scanner-{number}"), "/media.v1.Media/Get", 1)]);
    }
    assert_eq!(it.machine.suspects.len(), MOST_SUSPECTS);
    let many: Vec<Flow> = (0..500)
        .map(|number| Flow { reason: number.to_string(), ..refused("issues", "/media.v1.Media/Get", 1) })
        .collect();
    let reason = halted(it.report(1, &many));
    assert!(reason.ends_with("; and 497 more"), "{reason}");
    assert_eq!(it.machine.record().refused.len(), 100);
}

#[test]
fn lost_reports_begin_the_hold_anew() {
    let mut it = fixture(1);
    it.all_have_it();
    it.pass(HOLD + 1);
    assert_eq!(it.phase(), Phase::Reports);
    it.machine.missed_reports();
    assert_eq!((it.phase(), it.held()), (Phase::Hold, 0));
    assert_eq!(it.pass(HOLD - 1), Verdict::GoOn);
    assert_eq!(it.phase(), Phase::Hold);
}

#[test]
fn a_canary_that_reports_nowhere_is_no_witness() {
    let mut it = fixture(1);
    it.all_have_it();
    it.seen.get_mut("media-1").unwrap().reports = false;
    assert_eq!(it.pass(HOLD + 1), Verdict::GoOn);
    assert_eq!(it.pass(59), Verdict::GoOn);
    assert_eq!(halted(it.pass(1)), "nobody knows what was refused by media-1, which reports no calls");
}

#[test]
fn a_restarted_process_goes_on_where_the_last_one_was_and_not_before_it_sees_the_canaries() {
    let mut it = fixture(2);
    it.all_have_it();
    it.pass(101);
    let held = it.held();
    it.restart();
    assert_eq!(it.pass(30), Verdict::GoOn);
    assert_eq!((it.phase(), it.held()), (Phase::Hold, held));
    it.all_have_it();
    assert_eq!(it.pass(HOLD - 100), Verdict::GoOn);
    assert_eq!(it.phase(), Phase::Reports);
    it.restart();
    it.all_have_it();
    assert_eq!(it.pass(14), Verdict::GoOn);
    assert_eq!((it.report(1, &[]), it.report(2, &[])), (Verdict::GoOn, Verdict::GoOn));
    assert_eq!(it.pass(1), Verdict::Promote);

    let mut gone = fixture(1);
    gone.all_have_it();
    gone.look();
    gone.restart();
    assert_eq!(gone.pass(60), Verdict::GoOn);
    assert_eq!(halted(gone.pass(1)), "without word for 60 s from media-1");
}

#[test]
fn a_process_that_was_stopped_for_long_counts_little_of_it() {
    let mut it = fixture(1);
    it.all_have_it();
    it.pass(10);
    let held = it.held();
    it.now += Duration::from_secs(100_000);
    assert_eq!(it.look(), Verdict::GoOn);
    assert_eq!((it.phase(), it.held()), (Phase::Hold, held + 5));
    it.now -= Duration::from_secs(50_000);
    assert_eq!(it.look(), Verdict::GoOn, "a clock that steps back is one that stands");
    assert_eq!(it.held(), held + 5);
}

#[test]
fn another_policy_service_may_be_the_one_that_sees_a_canary() {
    let mut it = fixture(2);
    it.at(1, Some(STAGED));
    let tell = |it: &mut Fixture, says: &dyn Fn(&mut Canary)| {
        let mut kept = it.machine.record().clone();
        says(&mut kept.canaries[1]);
        it.machine.learn(&kept, true);
    };
    tell(&mut it, &|canary| canary.acknowledged = true);
    it.pass(1);
    assert_eq!(it.phase(), Phase::Hold);
    for _ in 0..HOLD / 10 + 1 {
        tell(&mut it, &|canary| (canary.follows, canary.reports) = (canary.follows + 1, canary.reports + 1));
        assert_eq!(it.pass(10), Verdict::GoOn);
    }
    assert_eq!(it.phase(), Phase::Reports);
    it.report(1, &[]);
    tell(&mut it, &|canary| (canary.reported, canary.follows) = (true, canary.follows + 1));
    assert_eq!(it.pass(1), Verdict::Promote);

    tell(&mut it, &|canary| canary.nack = "1.7: no".to_owned());
    assert_eq!(halted(it.pass(1)), "refused by media-2: 1.7: no");
}

#[test]
fn another_policy_service_that_falls_silent_is_believed_no_longer() {
    let mut it = fixture(1);
    let mut kept = it.machine.record().clone();
    (kept.canaries[0].acknowledged, kept.canaries[0].follows) = (true, 1);
    it.machine.learn(&kept, true);
    assert_eq!(it.pass(60 + 14), Verdict::GoOn);
    assert!(it.held() <= 15, "{}", it.held());
    assert_eq!(halted(it.pass(1)), "without word for 60 s from media-1");
}

#[test]
fn a_halt_that_the_store_did_not_take_is_not_forgotten() {
    let mut it = fixture(1);
    it.all_have_it();
    it.pass(10);
    let why = halted(it.report(1, &[refused("issues", "/media.v1.Media/Get", 3)]));
    assert_eq!(halted(it.look()), why, "the next look");
    assert_eq!(halted(it.machine.watch(&it.judge)), why);
    assert_eq!(halted(it.report(1, &[])), why);
    it.restart();
    it.all_have_it();
    assert_eq!(halted(it.pass(HOLD + 60)), why, "another process takes it up");
    let mut other = fixture(1);
    other.machine.learn(it.machine.record(), true);
    other.all_have_it();
    assert_eq!((halted(other.look()), other.machine.record().refused.len()), (why, 1), "and who is told");

    let mut silent = fixture(1);
    silent.all_have_it();
    silent.pass(10);
    silent.seen.clear();
    let why = halted(silent.pass(61));
    silent.all_have_it();
    assert_eq!(halted(silent.look()), why, "it came back while the store failed");
}

/// Named after a scanner whose paths hid what the canary refused to everybody else.
#[test]
fn as_long_as_refused_paths_are_too_many_to_be_told_apart_the_hold_begins_anew() {
    let mut it = fixture(2);
    it.all_have_it();
    it.pass(HOLD - 1);
    assert_eq!(it.report(3, &[refused("issues", "", 9)]), Verdict::GoOn);
    assert_eq!(it.held(), u64::from(HOLD) - 2, "of one that is no canary");
    for _ in 0..3 {
        assert_eq!(it.report(1, &[refused("issues", "", 9)]), Verdict::GoOn);
        assert_eq!((it.phase(), it.held()), (Phase::Hold, 0));
        assert_eq!(it.pass(HOLD + 5), Verdict::GoOn);
        assert_eq!(it.phase(), Phase::Reports);
    }
    it.report(1, &[]);
    it.report(2, &[]);
    assert_eq!(it.pass(1), Verdict::Promote, "it is over");
}

/// Named after a word about an earlier phase that another policy service brought up again.
#[test]
fn what_was_reported_before_the_hold_began_anew_is_forgotten_by_all() {
    let (mut owner, mut other) = (fixture(1), fixture(1));
    owner.all_have_it();
    owner.pass(HOLD + 1);
    other.machine.learn(owner.machine.record(), false);
    other.report(1, &[]);
    assert!(other.machine.record().canaries[0].reported);
    owner.machine.learn(other.machine.record(), true);
    assert!(owner.machine.record().canaries[0].reported);

    owner.machine.missed_reports();
    assert!(!owner.machine.record().canaries[0].reported);
    owner.machine.learn(other.machine.record(), true);
    assert!(!owner.machine.record().canaries[0].reported, "it was told of before");
    other.machine.learn(owner.machine.record(), false);
    assert!(!other.machine.record().canaries[0].reported);
    owner.pass(HOLD + 1);
    assert_eq!(owner.phase(), Phase::Reports);
    owner.machine.learn(other.machine.record(), true);
    assert_eq!(owner.pass(1), Verdict::GoOn, "nothing was reported since");
}

#[test]
fn nothing_is_decided_before_the_records_are_written() {
    assert!(Machine::new(Record { revision: None, ..record(1) }).is_none());
}

/// What may happen between two looks.
#[derive(Clone, Debug)]
enum Event {
    Pass(u16),
    Step(u32),
    Acknowledge(usize),
    Leave(usize),
    Report(usize),
    RefuseOrdinarily(usize),
    Miss,
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let who = 1..=3_usize;
    prop_oneof![
        8 => (1..200_u16).prop_map(Event::Pass),
        1 => any::<u32>().prop_map(Event::Step),
        6 => who.clone().prop_map(Event::Acknowledge),
        1 => who.clone().prop_map(Event::Leave),
        4 => who.clone().prop_map(Event::Report),
        2 => who.prop_map(Event::RefuseOrdinarily),
        1 => Just(Event::Miss),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    /// Whatever happens: never promoted before every canary was seen well for as long as the plan says, in real seconds;
    /// and always over some time.
    #[test]
    fn never_too_early_and_never_for_ever(events in prop::collection::vec(event(), 1..60)) {
        let mut it = fixture(3);
        let mut well = 0_u64;
        let mut verdict = Verdict::GoOn;
        for event in events {
            match event {
                Event::Pass(seconds) => {
                    for _ in 0..seconds {
                        if (1..=3).all(|number| it.seen.contains_key(&format!("media-{number}"))) {
                            well += 1;
                        }
                        verdict = it.pass(1);
                        if verdict != Verdict::GoOn { break }
                    }
                }
                Event::Step(seconds) => {
                    let steps_back = seconds % 2 == 0;
                    let by = Duration::from_secs(seconds.into());
                    it.now = if steps_back { it.now.saturating_sub(by) } else { it.now + by };
                    // A look after a long time counts five seconds at most.
                    well += 5;
                    verdict = it.look();
                }
                Event::Acknowledge(number) => it.at(number, Some(STAGED)),
                Event::Leave(number) => drop(it.seen.remove(&format!("media-{number}"))),
                Event::Report(number) => verdict = it.report(number, &[]),
                Event::RefuseOrdinarily(number) => {
                    verdict = it.report(number, &[refused("issues", "/elsewhere", 1)]);
                }
                Event::Miss => {
                    it.machine.missed_reports();
                    well = 0;
                }
                Event::Restart => it.restart(),
            }
            prop_assert!(it.held() <= well, "{} s are held, {well} s were well", it.held());
            if verdict != Verdict::GoOn { break }
        }
        if verdict == Verdict::Promote {
            prop_assert!(well >= u64::from(HOLD));
            prop_assert!(it.machine.record().canaries.iter().all(|canary| canary.acknowledged));
        }
        if verdict == Verdict::GoOn {
            verdict = it.pass(HOLD + 200);
            prop_assert_ne!(verdict, Verdict::GoOn);
        }
    }
}
