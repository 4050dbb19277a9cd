//! Tenants that are gone, damaged or unreadable upstream, and the accidents that are known of systems like this one.

use std::{
    fs,
    time::{Duration, Instant},
};

use integration::{
    calls::channel,
    changes::{self, LOOKUP, held},
    mesh::{Mesh, Plan, SOON, eventually, signal},
    traffic::Traffic,
    under_traffic::{OUTAGE, World, first, nothing_went_wrong, outbounds},
};
use rustix::process::Signal;
use tenon_proto::tcs::v1::{
    GetTenantContextRequest, ListRequest, TenantContext, TenantKey, tenant_contexts_client::TenantContextsClient,
    tenant_key::By, tenants_client::TenantsClient,
};
use tonic::{Code, Status, transport::Channel};

/// Kills a TCS, does something to its folder, and has it started again.
fn tamper(mesh: &Mesh, name: &str, with: impl FnOnce(&std::path::Path)) {
    let pid = mesh.service(name).expect("it runs");
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(pid, Signal::KILL).expect("killed");
    with(&mesh.data_dir().join(name));
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
    eventually(SOON, "it is started again", || Ok(mesh.service(name).is_ok_and(|again| again != pid)))
        .expect("started");
}

/// What `tenon check` finds wrong.
fn complaints(mesh: &Mesh) -> Vec<String> {
    let printed = mesh.tenon(&["check", "-o", "json"]).expect("tenon runs").stdout;
    let report: serde_json::Value = serde_json::from_slice(&printed).expect("JSON");
    let failed = report["checks"].as_array().expect("a list").iter().filter(|check| check["ok"] == false);
    let said = |check: &serde_json::Value, what: &str| check[what].as_str().unwrap_or_default().to_owned();
    failed.map(|one| format!("{} of {}: {}", said(one, "check"), said(one, "subject"), said(one, "detail"))).collect()
}

/// The known accident: a table upstream was empty, and everything below it took it for the truth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_table_upstream_poisons_no_cache() {
    // One more, which holds what it was asked for: some of the tenants, and more than so few that no guard holds them.
    let plan = Plan::demo().expect("a plan").tcs(2).caller_on_demand("wiki", "eu-west");
    let World { mesh, pairs, calls, look_ups, changes } = World::start(plan, &[0]).await;
    let on_demand = mesh.outbound("wiki", "eu-west");
    let asked_for = &pairs[..15];
    held(on_demand, asked_for, (0, 0), SOON).await.expect("it asks for them");
    let more_calls = Traffic::start(on_demand, &pairs[1][0], 20).await.expect("calls");
    // Nobody fills the empty table meanwhile.
    changes.stop().await;
    let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
    tamper(&mesh, "tcs", |folder| fs::remove_file(folder.join("tcs.redb")).expect("removed"));
    tokio::time::sleep(OUTAGE).await;
    let mut client = changes::operator(tcs[0], &operator);
    assert_eq!(numbers(&mut client).await, Vec::<String>::new(), "the leader has nothing");
    // An operator sees who refuses what and why, also of those that are between two streams; the relay says so itself.
    let wrong = complaints(&mesh);
    let refused = wrong.iter().find(|wrong| wrong.starts_with("accepted of tenant at tcs:"));
    let refused = refused.unwrap_or_else(|| panic!("nobody refuses: {wrong:?}"));
    for refusing in ["tenon-tcs", "issues-us-east", "media-us-east", "media-eu-west", "wiki-us-east"] {
        assert!(refused.contains(refusing), "{refusing} says nothing: {refused}");
    }
    assert_eq!(refused.matches("refused as poisoned").count(), 5, "{refused}");
    let alarm =
        |wrong: &String| wrong.starts_with("alarm of tenant at tcs-2:") && wrong.contains("refused as poisoned");
    assert!(wrong.iter().any(alarm), "{wrong:?}");
    let logs = mesh.logs();
    for refusing in ["tcs-2", "issues-us-east", "media-us-east", "media-eu-west", "wiki-us-east"] {
        assert!(logs[&format!("{refusing}.log")].contains("refused as poisoned"), "{refusing} says nothing");
    }
    let (calls, looked) = (calls.stop().await, look_ups.stop().await);
    nothing_went_wrong(&calls, &looked);
    held(on_demand, asked_for, (0, 0), Duration::ZERO).await.expect("what is held on demand is served");
    let more_calls = more_calls.stop().await;
    assert!(more_calls.calls > 20 && more_calls.failed.is_empty(), "{more_calls:?}");
    // Neither is it believed by one that starts now.
    let (pid, _) = mesh.processes("tenon-sidecar --service issues").pop().expect("it runs");
    let issues = mesh.outbound("issues", "us-east");
    signal(pid, Signal::KILL).expect("killed");
    let again = || {
        Ok(mesh.processes("tenon-sidecar --service issues").iter().any(|(other, _)| *other != pid) && answers(issues))
    };
    eventually(SOON, "it is started again", again).expect("started");
    held(issues, &pairs, (0, 0), SOON).await.expect("it starts with what it had");
    // The map comes back: everybody takes it.
    let written = changes::write(&mut client, first(&pairs)).await.expect("written");
    for outbound in outbounds(&mesh).into_iter().chain([on_demand]) {
        held(outbound, &pairs, written, SOON).await.expect("the new map is taken");
    }
}

fn answers(address: std::net::SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

/// The known accident: whoever did not know a tenant asked one region, waited until that timed out, and then the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_are_asked_at_once_not_one_after_another() {
    let plan = Plan::new().expect("a plan").tcs(2).caller_on_demand("wiki", "us-east");
    let service = "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: wiki}\nspec: {product: wiki}\n";
    let mesh = plan.file("services.yaml", service).start().expect("the mesh starts");
    let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
    let pairs = changes::pairs(60);
    let written = changes::write(&mut changes::operator(tcs[0], &operator), first(&pairs)).await.expect("imported");
    let outbound = mesh.outbound("wiki", "us-east");
    held(outbound, &pairs[..1], written, SOON).await.expect("reached");
    let mut client = TenantContextsClient::new(channel(outbound, LOOKUP).await.expect("the sidecar answers"));
    let mut not_held = pairs[1..].concat().into_iter();
    for stopped in ["tcs", "tcs-2"] {
        let pid = mesh.service(stopped).expect("it runs");
        signal(pid, Signal::STOP).expect("stopped");
        let mut slowest = Duration::ZERO;
        for (id, found) in not_held.by_ref().take(50).map(|id| (id, true)).chain([(format!("nobody-{stopped}"), false)])
        {
            let key = Some(TenantKey { by: Some(By::TenantId(id.clone())) });
            let began = Instant::now();
            let answer = client.get(GetTenantContextRequest { key, at_least: None }).await;
            slowest = slowest.max(began.elapsed());
            match answer {
                Ok(_) => assert!(found, "{id} was found"),
                Err(status) => assert!(!found && status.code() == Code::NotFound, "{id}: {status}"),
            }
        }
        signal(pid, Signal::CONT).expect("it goes on");
        assert!(slowest < Duration::from_millis(500), "{slowest:?} for one look-up while {stopped} was silent");
    }
    // What it holds outlives both; what it does not hold it does not make up.
    let both = ["tcs", "tcs-2"].map(|name| mesh.service(name).expect("it runs"));
    both.iter().for_each(|pid| signal(*pid, Signal::STOP).expect("stopped"));
    held(outbound, &pairs[..20], (0, 0), SOON).await.expect("held");
    let key = not_held.next().map(|id| TenantKey { by: Some(By::TenantId(id)) });
    let answer = client.get(GetTenantContextRequest { key, at_least: None }).await;
    // So that they end when the mesh does.
    both.iter().for_each(|pid| signal(*pid, Signal::CONT).expect("it goes on"));
    assert_eq!(answer.expect_err("nobody was there to ask").code(), Code::Unavailable);
}

/// The store of the leader is cut short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_store_is_not_served_and_everybody_goes_on_with_what_they_have() {
    let world = World::start(Plan::demo().expect("a plan").tcs(2), &[0]).await;
    let mut kept = Vec::new();
    tamper(&world.mesh, "tcs", |folder| {
        let file = folder.join("tcs.redb");
        kept = fs::read(&file).expect("read");
        // The end of the file is room that is not used yet.
        fs::write(&file, &kept[..16 * 1024]).expect("cut");
    });
    tokio::time::sleep(OUTAGE).await;
    let log = world.mesh.logs().remove("tcs.log").unwrap_or_default();
    assert!(log.contains("tcs.redb"), "it says what is wrong with which file: {log}");
    tamper_down(&world.mesh, |folder| fs::write(folder.join("tcs.redb"), &kept).expect("put back"));
    world.until_all_goes_on("with the store put back").await;
    world.judge().await;
}

/// As [`tamper`], of a TCS that may be down just now.
fn tamper_down(mesh: &Mesh, with: impl FnOnce(&std::path::Path)) {
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    if let Ok(pid) = mesh.service("tcs") {
        let _gone = signal(pid, Signal::KILL);
    }
    with(&mesh.data_dir().join("tcs"));
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_and_a_replica_with_a_flipped_byte_in_their_state_fetch_it_afresh() {
    let world = World::start(Plan::demo().expect("a plan").tcs(2), &[0]).await;
    let flip = |file: std::path::PathBuf| {
        let mut bytes = fs::read(&file).expect("a state file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).expect("written");
    };
    tamper(&world.mesh, "tcs-2", |folder| flip(folder.join("tenant.state")));
    world.until_all_goes_on("after the replica's state was damaged").await;
    let folder = world.mesh.data_dir().join("sidecars/issues-us-east");
    let (pid, _) = world.mesh.processes("tenon-sidecar --service issues").pop().expect("it runs");
    let World { mesh, pairs, calls, look_ups, changes } = world;
    let (calls, looked) = (calls.stop().await, look_ups.stop().await);
    nothing_went_wrong(&calls, &looked);
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(pid, Signal::KILL).expect("killed");
    flip(folder.join("tenant.state"));
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
    let issues = mesh.outbound("issues", "us-east");
    let again = || {
        Ok(mesh.processes("tenon-sidecar --service issues").iter().any(|(other, _)| *other != pid) && answers(issues))
    };
    eventually(SOON, "it is started again", again).expect("started");
    let written = changes.stop().await;
    written.check("issues", &held(issues, &pairs, written.last(), SOON).await.expect("reached")).expect("all is there");
}

/// The process that writes is killed while an import of many tenants arrives, or is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_killed_in_the_middle_is_whole_or_not_there() {
    const TENANTS: u64 = 4_000;
    let plan = Plan::new().expect("a plan").tcs(2).caller("wiki", "us-east");
    let service = "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: wiki}\nspec: {product: wiki}\n";
    let mesh = plan.file("services.yaml", service).start().expect("the mesh starts");
    let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
    let ids: Vec<String> = (0..TENANTS).map(|number| format!("tenant-{number:05}")).collect();
    let (mut whole, mut none) = (0, 0);
    // At once, at moments of which some are in the middle, however fast the machine is, and after the acknowledgement.
    let waits = [0, 30, 100, 300].map(Duration::from_millis).map(Some).into_iter().chain([None]);
    for (number, wait) in (1..).zip(waits) {
        let mut client = changes::operator(tcs[0], &operator);
        let tenants: Vec<_> = ids.iter().map(|id| changes::tenant(id, number)).collect();
        let mut writing = tokio::spawn(async move { changes::write(&mut client, tenants).await });
        let ended = tokio::time::timeout(wait.unwrap_or(SOON), &mut writing).await;
        tamper(&mesh, "tcs", |_| {});
        let outcome = match ended {
            Ok(ended) => ended,
            Err(_) => writing.await,
        };
        let acknowledged = outcome.expect("no panic").is_ok();
        let mut numbers = numbers(&mut changes::operator(tcs[0], &operator)).await;
        numbers.sort_unstable();
        numbers.dedup();
        assert!(numbers.len() <= 1, "half of an import: {numbers:?}");
        let made = numbers == [number.to_string()];
        assert!(made || !acknowledged, "an acknowledged import is gone");
        *(if made { &mut whole } else { &mut none }) += 1;
    }
    assert!(whole > 0 && none > 0, "{whole} were whole and {none} not there");
}

/// The numbers of all tenants, from a leader that may just be starting. A replica may not have heard of the last ones yet.
async fn numbers(client: &mut TenantsClient<Channel>) -> Vec<String> {
    let end = Instant::now() + SOON;
    loop {
        match list(client).await {
            Ok(tenants) => {
                return tenants.into_iter().map(|mut t| t.settings.remove("number").unwrap_or_default()).collect();
            }
            Err(status) => assert!(Instant::now() < end, "the leader does not come back: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn list(client: &mut TenantsClient<Channel>) -> Result<Vec<TenantContext>, Status> {
    let (mut stream, mut all) = (client.list(ListRequest::default()).await?.into_inner(), Vec::new());
    while let Some(tenant) = stream.message().await? {
        all.push(tenant);
    }
    Ok(all)
}
