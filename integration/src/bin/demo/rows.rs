//! What the demo tries, and the table of what came.

use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use integration::calls::{channel, for_tenant, outcome, with_headers};
use tenon_proto::{
    issues::v1::{
        AttachHeader, AttachRequest, CreateRequest, TransitionRequest, attach_request, issues_client::IssuesClient,
    },
    media::v1::{
        DeleteRequest, DownloadRequest, GetRequest, ListRequest, UploadHeader, UploadRequest,
        media_client::MediaClient, upload_request,
    },
};
use tonic::{Status, transport::Channel};

use crate::sample::{ISSUES, Sample, WIKI};

/// Changes reach the sidecars by replication: a row that follows one is tried again for this long.
const SETTLE: Duration = Duration::from_secs(5);
const FILE_BYTES: usize = 1 << 20;

struct Row {
    tried: &'static str,
    expected: &'static str,
    came: String,
    message: String,
    took: Duration,
}

struct Demo {
    mesh: Sample,
    rows: Vec<Row>,
    /// `issues` calls `media`, each instance as it sees fit.
    issues_media: MediaClient<Channel>,
    /// The same with the region us-east pinned.
    issues_media_us: MediaClient<Channel>,
    wiki_media: MediaClient<Channel>,
    wiki_issues: IssuesClient<Channel>,
    wiki_nowhere: MediaClient<Channel>,
}

/// Runs the whole demo. Success only when every row came as expected.
pub async fn run() -> anyhow::Result<ExitCode> {
    println!("Starting the sample mesh: identity, policy, TCS, four sidecars, three apps, 1,000 tenants ...");
    let began = Instant::now();
    let mesh = Sample::start_fresh()?;
    println!("Ready after {:.1} s.\n", began.elapsed().as_secs_f64());
    let mut demo = Demo {
        mesh,
        rows: Vec::new(),
        issues_media: MediaClient::new(channel(ISSUES, "media").await?),
        issues_media_us: MediaClient::new(channel(ISSUES, "media.us-east").await?),
        wiki_media: MediaClient::new(channel(WIKI, "media").await?),
        wiki_issues: IssuesClient::new(channel(WIKI, "issues").await?),
        wiki_nowhere: MediaClient::new(channel(WIKI, "billing").await?),
    };
    demo.allowed().await?;
    demo.refused().await;
    demo.changes().await?;
    demo.without_control_plane().await?;
    let Demo { mesh, rows, .. } = demo;
    print(&rows);
    drop(mesh);
    let wrong = rows.iter().filter(|row| row.came != row.expected).count();
    if wrong == 0 {
        println!("All {} rows came as expected. The mesh is stopped.", rows.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("{wrong} of {} rows came otherwise than expected. Logs: target/demo/data/*.log", rows.len());
    Ok(ExitCode::FAILURE)
}

impl Demo {
    /// Waits until the tenants have arrived, then the calls that must pass.
    async fn allowed(&mut self) -> anyhow::Result<()> {
        let mut client = self.issues_media.clone();
        let end = Instant::now() + SETTLE;
        while outcome(&client.list(for_tenant("rheinwerk", ListRequest {})).await) != "ALLOWED" && Instant::now() < end
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let bytes: Vec<u8> = (0..FILE_BYTES).map(|index| u8::try_from(index % 251).unwrap_or(0)).collect();
        let began = Instant::now();
        let uploaded = client.upload(for_tenant("acme", tokio_stream::iter(upload(&bytes)))).await;
        self.row("issues uploads 1 MiB to media (client streaming)", "ALLOWED", began, &uploaded);
        let id = uploaded.map(|item| item.into_inner().id).unwrap_or_default();

        let began = Instant::now();
        let downloaded = download(&mut client, &id).await.and_then(|back| {
            if back == bytes { Ok(()) } else { Err(Status::data_loss("what came back is not what was sent")) }
        });
        self.row("issues downloads it again (server streaming)", "ALLOWED", began, &downloaded);

        let mut wiki = self.wiki_media.clone();
        let began = Instant::now();
        let got = wiki.get(for_tenant("acme", GetRequest { id: id.clone() })).await;
        self.row("wiki looks at it (unary)", "ALLOWED", began, &got);
        let began = Instant::now();
        let got = wiki.get(for_tenant("globex", GetRequest { id })).await;
        self.row("wiki asks for it in the name of another tenant", "NotFound", began, &got);

        let mut issues = self.wiki_issues.clone();
        let began = Instant::now();
        let create = CreateRequest { project: "OPS".into(), summary: "Disk full".into(), ..CreateRequest::default() };
        let created = issues.create(for_tenant("acme", create)).await;
        self.row("wiki opens a work item in issues", "ALLOWED", began, &created);
        let key = created.map(|issue| issue.into_inner().key).unwrap_or_default();
        let began = Instant::now();
        let attached = issues.attach(for_tenant("acme", tokio_stream::iter(attach(&key)))).await;
        self.row("wiki attaches a file: issues passes it to media", "ALLOWED", began, &attached);

        let began = Instant::now();
        let by_host = wiki.list(with_headers(&[("x-tenant-host", "acme.example.com")], ListRequest {})).await;
        self.row("wiki names the tenant by its host name", "ALLOWED", began, &by_host);
        let began = Instant::now();
        let home = wiki.list(for_tenant("rheinwerk", ListRequest {})).await;
        self.row("wiki calls for a tenant of eu-west: routed to its home", "ALLOWED", began, &home);
        Ok(())
    }

    /// The calls that must be refused, each for its own reason.
    async fn refused(&mut self) {
        let mut wiki = self.wiki_media.clone();
        let began = Instant::now();
        let answer = wiki.delete(for_tenant("acme", DeleteRequest { id: "any".into() })).await;
        self.row("wiki deletes a file", "PATH_NOT_ALLOWED", began, &answer);
        let began = Instant::now();
        let transition = TransitionRequest { key: "OPS-1".into(), state: "done".into() };
        let answer = self.wiki_issues.clone().transition(for_tenant("acme", transition)).await;
        self.row("wiki closes a work item", "PATH_NOT_ALLOWED", began, &answer);
        let began = Instant::now();
        let answer = wiki.list(ListRequest {}).await;
        self.row("a call that names no tenant", "TENANT_REQUIRED", began, &answer);
        let named: [(&str, &str, &str); 3] = [
            ("a tenant that does not exist", "no-such-tenant", "TENANT_UNKNOWN"),
            ("a suspended tenant", "asleep", "TENANT_SUSPENDED"),
            ("a tenant without a licence for media", "wiki-only", "PRODUCT_NOT_LICENSED"),
        ];
        for (tried, tenant, expected) in named {
            let began = Instant::now();
            let answer = wiki.list(for_tenant(tenant, ListRequest {})).await;
            self.row(tried, expected, began, &answer);
        }
        let began = Instant::now();
        let answer = self.issues_media_us.clone().list(for_tenant("rheinwerk", ListRequest {})).await;
        self.row("a tenant of eu-west, sent to us-east", "TENANT_WRONG_REGION", began, &answer);
        let began = Instant::now();
        let both = [("x-tenant-id", "acme"), ("x-tenant-host", "globex.example.com")];
        let answer = wiki.list(with_headers(&both, ListRequest {})).await;
        self.row("a call that names two tenants", "TENANT_AMBIGUOUS", began, &answer);
        let began = Instant::now();
        let answer = self.wiki_nowhere.clone().list(for_tenant("acme", ListRequest {})).await;
        self.row("a service that nobody defines", "SERVICE_UNKNOWN", began, &answer);
    }

    /// Changes while the mesh runs.
    async fn changes(&mut self) -> anyhow::Result<()> {
        self.mesh.tenon(&["tenants", "unsuspend", "asleep"])?;
        self.settled("the suspended tenant is let back in", "asleep", "ALLOWED").await;
        self.mesh.tenon(&["tenants", "suspend", "asleep"])?;
        self.settled("and suspended again", "asleep", "TENANT_SUSPENDED").await;
        let file = self.mesh.policy().join("allowlists.yaml");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        fs::write(&file, text.replace("        - /media.v1.Media/List\n", ""))?;
        self.settled("the policy file changes: wiki loses List", "acme", "PATH_NOT_ALLOWED").await;
        fs::write(&file, text)?;
        self.settled("the policy file changes back", "acme", "ALLOWED").await;
        Ok(())
    }

    async fn without_control_plane(&mut self) -> anyhow::Result<()> {
        self.mesh.kill_control_plane()?;
        let mut wiki = self.wiki_media.clone();
        let began = Instant::now();
        let answer = wiki.list(for_tenant("acme", ListRequest {})).await;
        self.row("the whole control plane is killed: a call", "ALLOWED", began, &answer);
        let began = Instant::now();
        let answer = wiki.list(for_tenant("asleep", ListRequest {})).await;
        self.row("the whole control plane is killed: a refusal", "TENANT_SUSPENDED", began, &answer);
        Ok(())
    }

    /// wiki lists a tenant's files until the expected comes; the latency is that of the last call.
    async fn settled(&mut self, tried: &'static str, tenant: &str, expected: &'static str) {
        let mut wiki = self.wiki_media.clone();
        let end = Instant::now() + SETTLE;
        loop {
            let began = Instant::now();
            let answer = wiki.list(for_tenant(tenant, ListRequest {})).await;
            if outcome(&answer) == expected || Instant::now() > end {
                return self.row(tried, expected, began, &answer);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn row<T>(&mut self, tried: &'static str, expected: &'static str, began: Instant, answer: &Result<T, Status>) {
        let took = began.elapsed();
        let came = match answer {
            Err(status) if integration::calls::reason(status).is_none() => format!("{:?}", status.code()),
            Ok(_) | Err(_) => outcome(answer),
        };
        let message = match answer {
            Ok(_) => String::new(),
            Err(status) => {
                let message = status.message().split(" (request").next().unwrap_or_default();
                message.strip_prefix(&format!("{came}: ")).unwrap_or(message).to_owned()
            }
        };
        self.rows.push(Row { tried, expected, came, message, took });
    }
}

fn upload(bytes: &[u8]) -> Vec<UploadRequest> {
    let header = UploadHeader { name: "report.bin".into(), content_type: "application/octet-stream".into() };
    let data = bytes.chunks(64 << 10).map(|chunk| upload_request::Part::Data(chunk.to_vec().into()));
    let parts = std::iter::once(upload_request::Part::Header(header)).chain(data);
    parts.map(|part| UploadRequest { part: Some(part) }).collect()
}

fn attach(key: &str) -> Vec<AttachRequest> {
    let header = AttachHeader { key: key.into(), name: "df.txt".into(), content_type: "text/plain".into() };
    let parts = [attach_request::Part::Header(header), attach_request::Part::Data("/dev/sda1 100 %\n".into())];
    parts.into_iter().map(|part| AttachRequest { part: Some(part) }).collect()
}

async fn download(client: &mut MediaClient<Channel>, id: &str) -> Result<Vec<u8>, Status> {
    let mut parts = client.download(for_tenant("acme", DownloadRequest { id: id.into() })).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await? {
        bytes.extend_from_slice(&part.data);
    }
    Ok(bytes)
}

fn print(rows: &[Row]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["", "what was tried", "expected", "came", "ms", "reason given"]);
    for row in rows {
        let right = row.came == row.expected;
        let mark = if right { Cell::new("ok").fg(Color::Green) } else { Cell::new("WRONG").fg(Color::Red) };
        let milliseconds = format!("{:.1}", row.took.as_secs_f64() * 1e3);
        table.add_row([
            mark,
            Cell::new(row.tried),
            Cell::new(row.expected),
            Cell::new(&row.came),
            Cell::new(milliseconds).set_alignment(comfy_table::CellAlignment::Right),
            Cell::new(&row.message),
        ]);
    }
    println!("{table}");
}
