//! From traffic to a tighter policy: what sidecars recorded is suggested as allowlists, and the suggestion is applied; and
//! a policy that would refuse what is really called is found out before it does.

use std::{fs, path::PathBuf};

use integration::{
    calls,
    mesh::{Mesh, Plan, SOON, eventually, repository},
};
use serde_json::{Value, json};
use tenon_proto::media::v1::{
    DeleteRequest, GetRequest, ListRequest, ListThumbnailsRequest, media_client::MediaClient,
    thumbnails_client::ThumbnailsClient,
};
use tonic::{Status, transport::Channel};

/// What one caller calls of media; a call that media itself answers with an error has passed the policy.
struct Caller {
    media: MediaClient<Channel>,
    thumbnails: ThumbnailsClient<Channel>,
}

impl Caller {
    async fn of(mesh: &Mesh, service: &str) -> Self {
        let channel = calls::channel(mesh.outbound(service, "us-east"), "media.us-east").await.expect("connected");
        Self { media: MediaClient::new(channel.clone()), thumbnails: ThumbnailsClient::new(channel) }
    }

    async fn call(&mut self, method: &str) -> String {
        fn passed<T>(answer: Result<T, Status>) -> String {
            match answer {
                Err(status) => calls::reason(&status).unwrap_or_else(|| "ALLOWED".into()),
                Ok(_) => "ALLOWED".into(),
            }
        }
        let id = || "nothing".to_owned();
        match method {
            "Get" => passed(self.media.get(calls::for_tenant("acme", GetRequest { id: id() })).await),
            "List" => passed(self.media.list(calls::for_tenant("acme", ListRequest {})).await),
            "Delete" => passed(self.media.delete(calls::for_tenant("acme", DeleteRequest { id: id() })).await),
            "Thumbnails" => {
                let request = ListThumbnailsRequest { media_id: id() };
                passed(self.thumbnails.list(calls::for_tenant("acme", request)).await)
            }
            other => panic!("no method {other}"),
        }
    }
}

/// Caller, method, how often; and what comes of it.
const TRAFFIC: &[(&str, &str, u64, &str)] = &[
    ("wiki", "Get", 3, "ALLOWED"),
    ("wiki", "List", 2, "ALLOWED"),
    ("wiki", "Delete", 4, "PATH_NOT_ALLOWED"),
    ("issues", "Get", 1, "ALLOWED"),
    ("issues", "Delete", 1, "ALLOWED"),
];

async fn traffic(mesh: &Mesh) {
    for (caller, method, times, expected) in TRAFFIC {
        let mut client = Caller::of(mesh, caller).await;
        for _ in 0..*times {
            assert_eq!(client.call(method).await, *expected, "{caller} {method}");
        }
    }
}

fn counted(flows: &Value, caller: &str, method: &str, decision: &str) -> u64 {
    let path = format!("/media.v1.Media/{method}");
    let flows = flows["flows"].as_array().expect("a list");
    let same =
        flows.iter().filter(|flow| flow["caller"] == caller && flow["path"] == *path && flow["decision"] == decision);
    same.map(|flow| flow["count"].as_u64().expect("a number")).sum()
}

/// Waits until every call of [`TRAFFIC`] is in the record.
fn recorded(mesh: &Mesh) {
    eventually(SOON, "the calls are in the record", || {
        let flows: Value =
            serde_json::from_str(&mesh.tenon_ok(&["policy", "flows", "--service", "media", "-o", "json"])?)?;
        Ok(TRAFFIC.iter().all(|(caller, method, times, came)| {
            let decision = if *came == "ALLOWED" { "ALLOWED" } else { "REFUSED" };
            counted(&flows, caller, method, decision) == *times
        }))
    })
    .expect("recorded");
}

/// The mesh's folder with other allowlists for media.
fn folder(mesh: &Mesh, name: &str, suggested: &str) -> String {
    let folder: PathBuf = mesh.scratch().join(name);
    fs::create_dir_all(&folder).expect("made");
    for file in ["mesh.yaml", "services.yaml", "local.yaml"] {
        fs::copy(mesh.policy_dir().join(file), folder.join(file)).expect("copied");
    }
    let all = fs::read_to_string(repository().join("mesh-config/demo/allowlists.yaml")).expect("read");
    let issues = all.split("---\n").next().expect("the allowlist of issues");
    assert!(issues.contains("service: issues") && !issues.contains("service: media"));
    fs::write(folder.join("allowlists.yaml"), issues).expect("written");
    fs::write(folder.join("media.yaml"), suggested).expect("written");
    folder.display().to_string()
}

fn json_of(output: &std::process::Output) -> (i32, Value) {
    let text = String::from_utf8_lossy(&output.stdout);
    let json =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("an exit code"), json)
}

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let active = json!({"state": "ACTIVE"});
    let products = json!({"wiki": active, "media": active, "issues": active});
    let acme = json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": products});
    mesh.import(&[acme]).expect("imported");
    mesh
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_called_is_suggested_and_passes_and_what_was_not_is_refused() {
    let mesh = tokio::task::spawn_blocking(mesh).await.expect("a mesh");
    assert_eq!(Caller::of(&mesh, "issues").await.call("Thumbnails").await, "ALLOWED", "by the policy of the demo");
    // Among the flows, but the suggestion is made from a record without it.
    traffic(&mesh).await;
    recorded(&mesh);

    let flows: Value =
        serde_json::from_str(&mesh.tenon_ok(&["policy", "flows", "-o", "json"]).expect("flows")).expect("JSON");
    let mut without = flows.clone();
    without["flows"].as_array_mut().expect("a list").retain(|flow| flow["path"] != "/media.v1.Thumbnails/List");
    let record = mesh.scratch().join("flows.json").display().to_string();
    fs::write(&record, without.to_string()).expect("written");

    let suggested = mesh.scratch().join("suggested.yaml").display().to_string();
    let args = ["policy", "suggest", "--service", "media", "--flows", &record, "--out", &suggested];
    mesh.tenon_ok(&args).expect("suggested");
    let suggested = fs::read_to_string(suggested).expect("written");
    let tight = folder(&mesh, "tight", &suggested);

    let diff = mesh.tenon(&["policy", "diff", "-f", &tight, "--flows", &record, "-o", "json"]).expect("runs");
    let (code, diff) = json_of(&diff);
    assert_eq!((code, &diff["newlyRefused"], &diff["mayBeRefused"]), (0, &json!([]), &json!([])), "{suggested}");
    assert_eq!(diff["touched"], json!([{"service": "media", "sidecars": 2}]));
    let (code, diff) = json_of(&mesh.tenon(&["policy", "diff", "-f", &tight, "-o", "json"]).expect("runs"));
    let refused = &diff["newlyRefused"];
    assert_eq!((code, refused.as_array().map(Vec::len)), (1, Some(1)), "{diff}");
    assert_eq!((&refused[0]["caller"], &refused[0]["path"]), (&"issues".into(), &"/media.v1.Thumbnails/List".into()));

    let (code, applied) = json_of(&mesh.tenon(&["policy", "apply", "-f", &tight, "-o", "json"]).expect("runs"));
    let everybody = json!({"acknowledged": 4, "total": 4, "refused": [], "late": []});
    assert_eq!((code, &applied["sidecars"]), (0, &everybody));
    traffic(&mesh).await;
    assert_eq!(Caller::of(&mesh, "issues").await.call("Thumbnails").await, "PATH_NOT_ALLOWED");
    assert_eq!(Caller::of(&mesh, "issues").await.call("List").await, "PATH_NOT_ALLOWED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_removes_a_path_that_is_called_is_found_out_and_can_be_rolled_back() {
    let mesh = tokio::task::spawn_blocking(mesh).await.expect("a mesh");
    traffic(&mesh).await;
    recorded(&mesh);
    let all = fs::read_to_string(repository().join("mesh-config/demo/allowlists.yaml")).expect("read");
    let media = all.split("---\n").nth(1).expect("the allowlist of media");
    let fewer = media.replace("        - /media.v1.Media/List\n", "");
    assert_ne!(fewer, media);
    let fewer = folder(&mesh, "fewer", &fewer);
    let (code, diff) = json_of(&mesh.tenon(&["policy", "diff", "-f", &fewer, "-o", "json"]).expect("runs"));
    let refused = diff["newlyRefused"].as_array().expect("a list");
    assert_eq!((code, refused.len()), (1, 1), "{diff}");
    assert_eq!((&refused[0]["caller"], &refused[0]["path"]), (&"wiki".into(), &"/media.v1.Media/List".into()));
    assert_eq!((&refused[0]["reason"], &refused[0]["passed"]), (&"PATH_NOT_ALLOWED".into(), &2.into()));

    let before: Value =
        serde_json::from_str(&mesh.tenon_ok(&["policy", "status", "-o", "json"]).expect("runs")).expect("JSON");
    let mut wiki = Caller::of(&mesh, "wiki").await;
    mesh.tenon_ok(&["policy", "apply", "-f", &fewer, "-m", "a mistake"]).expect("applied");
    assert_eq!(wiki.call("List").await, "PATH_NOT_ALLOWED");
    let history: Value =
        serde_json::from_str(&mesh.tenon_ok(&["policy", "history", "-o", "json"]).expect("runs")).expect("JSON");
    assert_eq!((&history[0]["note"], &history[0]["action"]), (&"a mistake".into(), &"APPLIED".into()));
    let revision = before["revision"].as_u64().expect("a number").to_string();
    mesh.tenon_ok(&["policy", "rollback", &revision]).expect("rolled back");
    assert_eq!(wiki.call("List").await, "ALLOWED");

    // Whoever made files for what was in force before is told what happened meanwhile.
    let overtaken = mesh.tenon(&["policy", "apply", "-f", &fewer, "--expect", &revision, "-o", "json"]).expect("runs");
    let (code, conflict) = json_of(&overtaken);
    let since: Vec<_> =
        conflict["conflict"]["since"].as_array().expect("a list").iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!((code, since), (1, vec!["ROLLED_BACK".into(), "APPLIED".into()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_followed_to_its_end_and_a_refused_call_is_explained_by_its_request_id() {
    let mesh = tokio::task::spawn_blocking(mesh).await.expect("a mesh");
    let all = fs::read_to_string(repository().join("mesh-config/demo/allowlists.yaml")).expect("read");
    let media = all.split("---\n").nth(1).expect("the allowlist of media");
    let fewer = folder(&mesh, "fewer", &media.replace("        - /media.v1.Media/List\n", ""));
    let staged = ["--canary", "50%", "--hold", "2s", "--services", "media", "-o", "json"];
    let (code, begun) =
        json_of(&mesh.tenon(&[&["policy", "apply", "-f", &fewer][..], &staged].concat()).expect("runs"));
    assert_eq!((code, &begun["rollout"]["state"]), (0, &"COMPLETED".into()), "{begun}");
    assert_eq!(begun["rollout"]["canaries"].as_array().map(Vec::len), Some(1), "{begun}");
    assert_eq!(begun["sidecars"]["acknowledged"], 4, "{begun}");
    let (code, shown) = json_of(&mesh.tenon(&["policy", "rollout", "-o", "json"]).expect("runs"));
    assert_eq!((code, &shown), (0, &begun["rollout"]));
    let (code, status) = json_of(&mesh.tenon(&["policy", "status", "-o", "json"]).expect("runs"));
    let states = status["sidecars"].as_array().expect("a list").iter().map(|sidecar| sidecar["state"].clone());
    assert_eq!((code, states.collect::<Vec<_>>()), (0, vec![Value::from("ok"); 4]), "{status}");

    let mut wiki = Caller::of(&mesh, "wiki").await;
    let refused = wiki.media.list(calls::for_tenant("acme", ListRequest {})).await.expect_err("refused");
    let id = calls::metadata(&refused, "request_id").expect("a request id");
    let (code, explained) = json_of(&mesh.tenon(&["explain", &id, "-o", "json"]).expect("runs"));
    assert_eq!(
        (code, &explained["requestId"], &explained["reason"]),
        (0, &id.as_str().into(), &"PATH_NOT_ALLOWED".into())
    );
    let change = explained["proposal"][0]["message"].as_str().expect("a proposal");
    assert!(change.starts_with("add ") && change.contains("of allowlist media (media.yaml:"), "{explained}");
    let unknown = mesh.tenon(&["explain", "no-such-request"]).expect("runs");
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("no sidecar remembers request no-such-request: 4 were asked"), "{said}");
}
