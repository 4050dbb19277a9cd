//! The demo's mesh under traffic: calls from service to service, look-ups by apps, and changes of tenants, while something
//! fails.
//!
//! The functions panic: they are the body of tests.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tenon_proto::tcs::v1::TenantContext;

use crate::{
    changes::{self, Changes, LookUps, Looked, Written, held},
    mesh::{Mesh, Plan, SOON, signal},
    traffic::{Report, Traffic},
};

/// Calls from `wiki` to `media`.
pub const CALLS_PER_SECOND: u32 = 200;
const LOOK_UPS_PER_SECOND: u32 = 200;
const CHANGES_PER_SECOND: u32 = 10;
/// How long something is gone: longer than a follower takes to call its parent dead.
pub const OUTAGE: Duration = Duration::from_secs(4);
/// Of tenants; more than so few that a guard lets all of them go.
const PAIRS: usize = 20;
/// The sidecars of the demo's mesh.
pub const SIDECARS: [(&str, &str); 4] =
    [("issues", "us-east"), ("media", "us-east"), ("media", "eu-west"), ("wiki", "us-east")];

/// The mesh, and what is going on in it.
pub struct World {
    pub mesh: Mesh,
    pub pairs: Vec<[String; 2]>,
    pub calls: Traffic,
    pub look_ups: LookUps,
    pub changes: Changes,
}

impl World {
    /// Starts it, with tenants that every sidecar knows. `writers`: at which TCS they are changed.
    pub async fn start(plan: Plan, writers: &[usize]) -> Self {
        let mesh = plan.start().expect("the mesh starts");
        let pairs = changes::pairs(PAIRS);
        let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
        let mut client = changes::operator(tcs[0], &operator);
        let written = changes::write(&mut client, first(&pairs)).await.expect("imported");
        for outbound in outbounds(&mesh) {
            held(outbound, &pairs, written, SOON).await.expect("every sidecar has them");
        }
        let clients = writers.iter().map(|&number| changes::operator(tcs[number], &operator)).collect();
        let changes = Changes::start(clients, &pairs, CHANGES_PER_SECOND);
        let look_ups = LookUps::start(&outbounds(&mesh), &pairs, LOOK_UPS_PER_SECOND, &changes.watch()).await;
        // Of a tenant that is changed: each call says of which revision its caller knew, and the callee must have it.
        let calls = Traffic::start(mesh.outbound("wiki", "us-east"), &pairs[0][0], CALLS_PER_SECOND).await;
        let world = Self { mesh, pairs, calls: calls.expect("calls"), look_ups: look_ups.expect("look-ups"), changes };
        world.until_all_goes_on("at the beginning").await;
        world
    }

    /// Waits until writes are acknowledged and arrive everywhere.
    pub async fn until_all_goes_on(&self, when: &str) {
        let (end, before) = (Instant::now() + SOON, self.changes.made());
        while self.changes.made() < before + 3 {
            assert!(Instant::now() < end, "no write is acknowledged {when}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let reached = self.changes.last();
        for outbound in outbounds(&self.mesh) {
            held(outbound, &self.pairs, reached, SOON).await.unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    }

    /// Sends a signal to these services of the control plane, watches the mesh without them, and heals them. `tenon up` starts
    /// killed ones again only then. Says how many writes were acknowledged meanwhile.
    pub async fn without(&self, services: &[&str], how: Signal) -> u64 {
        let pids: Vec<_> = services.iter().map(|name| self.mesh.service(name).expect("it runs")).collect();
        signal(self.mesh.pid(), Signal::STOP).expect("nobody starts them again");
        let (calls, made) = (self.calls.calls(), self.changes.made());
        for pid in &pids {
            signal(*pid, how).expect("signalled");
        }
        tokio::time::sleep(OUTAGE).await;
        // Fewer prove nothing; a slow machine takes longer for them.
        let (enough, end) = (calls + u64::from(CALLS_PER_SECOND) * OUTAGE.as_secs() / 2, Instant::now() + SOON);
        while self.calls.calls() < enough {
            assert!(Instant::now() < end, "{} calls without {services:?}", self.calls.calls() - calls);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let made = self.changes.made() - made;
        if how == Signal::STOP {
            pids.iter().for_each(|pid| signal(*pid, Signal::CONT).expect("it goes on"));
        }
        signal(self.mesh.pid(), Signal::CONT).expect("it goes on");
        self.until_all_goes_on(&format!("after {services:?} came back")).await;
        made
    }

    /// Ends the traffic and judges what came of it: no call failed, no look-up went wrong, and every sidecar has every
    /// acknowledged write.
    pub async fn judge(self) -> Judged {
        let calls = self.calls.stop().await;
        let looked = self.look_ups.stop().await;
        let written = self.changes.stop().await;
        nothing_went_wrong(&calls, &looked);
        for (outbound, (service, region)) in outbounds(&self.mesh).into_iter().zip(SIDECARS) {
            let held = held(outbound, &self.pairs, written.last(), SOON).await.expect("reached");
            written.check(&format!("{service} in {region}"), &held).expect("every acknowledged write is there");
        }
        Judged { mesh: self.mesh, pairs: self.pairs, calls, looked, written }
    }
}

/// What came of it.
pub struct Judged {
    pub mesh: Mesh,
    pub pairs: Vec<[String; 2]>,
    pub calls: Report,
    pub looked: Looked,
    pub written: Written,
}

/// No call failed, and no look-up went wrong.
pub fn nothing_went_wrong(calls: &Report, looked: &Looked) {
    // What came first tells more than the rest.
    let first = |all: &[String]| all.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    assert!(calls.failed.is_empty(), "{} of {} calls: {}", calls.failed.len(), calls.calls, first(&calls.failed));
    assert!(looked.wrong.is_empty(), "{} of {} look-ups: {}", looked.wrong.len(), looked.made, first(&looked.wrong));
}

/// Tenants with number 0.
#[must_use]
pub fn first(pairs: &[[String; 2]]) -> Vec<TenantContext> {
    pairs.concat().iter().map(|id| changes::tenant(id, 0)).collect()
}

/// Outbound listeners of all sidecars, in the order of [`SIDECARS`].
#[must_use]
pub fn outbounds(mesh: &Mesh) -> Vec<SocketAddr> {
    SIDECARS.iter().map(|(service, region)| mesh.outbound(service, region)).collect()
}
