//! Where this instance takes calls, as the policy service is told it.

use tenon_proto::policy::v1::report_request::Register;

use super::*;

impl Session {
    async fn register(&mut self) -> Register {
        let Request::Register(register) = self.next().await else { panic!("expected Register") };
        register
    }

    async fn registered(&self, sequence: u64, problem: &str) {
        let registered = Registered { sequence, problem: problem.to_owned(), ..Registered::default() };
        self.answer(Response::Registered(registered)).await;
    }
}

impl Bench {
    fn takes_calls(&self, takes: bool) {
        self.registration.set(takes.then(|| "10.0.0.7:15006".parse().unwrap()));
    }

    /// Until it is so.
    async fn is_registered(&self, registered: bool) {
        let until = async {
            while self.counters.is_registered() != registered {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(1), until).await.expect("it is told");
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_told_as_soon_as_calls_are_taken_and_again_on_each_stream() {
    let bench = bench();
    let mut session = bench.session().await;
    sleep(EVERY).await;
    assert!(session.requests.try_recv().is_err(), "nothing to tell");
    let began = Instant::now();
    bench.takes_calls(true);
    let register = session.register().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    let (address, region) = ("10.0.0.7:15006".to_owned(), "us-east".to_owned());
    assert_eq!(register, Register { sequence: 1, address, region, zone: String::new() });
    bench.is_registered(false).await;
    session.registered(1, "").await;
    bench.is_registered(true).await;
    drop(session);
    let mut session = bench.session().await;
    bench.is_registered(false).await;
    assert_eq!(session.register().await, register);
    session.registered(1, "").await;
    bench.is_registered(true).await;

    bench.takes_calls(false);
    let register = session.register().await;
    assert_eq!((register.sequence, register.address.as_str()), (2, ""));
    session.registered(2, "").await;
    bench.is_registered(false).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_told_again_after_a_while() {
    let bench = bench();
    let mut session = bench.session().await;
    bench.takes_calls(true);
    assert_eq!(session.register().await.sequence, 1);
    let began = Instant::now();
    session.registered(1, "region us-east is none of the mesh").await;
    assert_eq!(session.register().await.sequence, 2);
    assert_eq!((began.elapsed().as_secs(), bench.counters.is_registered()), (5, false));
    session.registered(2, "").await;
    bench.is_registered(true).await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_has_left_when_it_is_answered() {
    let bench = bench();
    let mut session = bench.session().await;
    bench.takes_calls(true);
    session.register().await;
    session.registered(1, "").await;
    let leaving = bench.registration.leave(Duration::from_secs(10));
    let answering = async {
        let register = session.register().await;
        assert_eq!(register.address, "");
        sleep(Duration::from_millis(50)).await;
        session.registered(register.sequence, "").await;
    };
    let began = Instant::now();
    let (left, ()) = tokio::join!(leaving, answering);
    assert!(left && began.elapsed() < Duration::from_millis(60), "{:?}", began.elapsed());
    bench.takes_calls(true);
    sleep(EVERY).await;
    assert!(session.requests.try_recv().is_err(), "it does not come back");
}

/// The last answer may be one to what was told before.
#[tokio::test(start_paused = true)]
async fn who_leaves_while_the_policy_service_is_away_leaves_with_the_next_stream() {
    let bench = bench();
    let mut session = bench.session().await;
    bench.takes_calls(true);
    session.register().await;
    session.registered(1, "").await;
    bench.is_registered(true).await;
    bench.away.store(true, Relaxed);
    drop(session);
    bench.is_registered(false).await;
    assert!(bench.registration.leave(Duration::from_secs(1)).await, "it was on the list");
    bench.away.store(false, Relaxed);
    let register = bench.session().await.register().await;
    assert_eq!((register.sequence, register.address.as_str()), (2, ""));
}
