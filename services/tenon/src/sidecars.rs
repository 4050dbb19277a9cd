//! `tenon sidecars`: what stands in `mesh.json`, and whether each of them serves.

use futures_util::future::join_all;
use serde::Serialize;

use crate::{
    cli::Sidecars,
    data::Data,
    failure::{Answer, Failure},
    mesh_file::{MeshFile, Sidecar},
    output::Output,
    probe,
};

/// One sidecar with what it answered.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    sidecar: Sidecar,
    ready: bool,
    /// Why not; empty when it is.
    problem: String,
}

/// Runs the command. Sidecars that do not serve are an answer, not a failure: `tenon check` judges.
///
/// # Errors
/// No mesh in the data folder.
pub async fn run(args: Sidecars) -> Result<Answer, Failure> {
    let file = MeshFile::read(&Data::new(&args.mesh.data))?;
    let shown = join_all(file.sidecars.into_iter().map(|sidecar| async {
        let problem = ready(&sidecar).await.err();
        Shown { sidecar, ready: problem.is_none(), problem: problem.unwrap_or_default() }
    }))
    .await;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&shown)?;
    } else {
        let header = ["name", "service", "region", "zone", "outbound", "inbound", "admin", "app", "status"];
        let rows: Vec<_> = shown.iter().map(row).collect();
        out.table(&header, &rows)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// Whether a sidecar serves, and if not, why.
pub async fn ready(sidecar: &Sidecar) -> Result<(), String> {
    let answer = probe::get(sidecar.admin, "/ready").await?;
    if answer.status == 200 {
        return Ok(());
    }
    let why = answer.body.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(format!("not ready: {}", if why.is_empty() { answer.status.to_string() } else { why }))
}

fn row(shown: &Shown) -> Vec<String> {
    let sidecar = &shown.sidecar;
    vec![
        sidecar.name.clone(),
        sidecar.service.clone(),
        sidecar.region.clone(),
        sidecar.zone.clone().unwrap_or_else(|| "-".into()),
        sidecar.outbound.clone(),
        sidecar.inbound.to_string(),
        sidecar.admin.to_string(),
        sidecar.app.map_or_else(|| "-".into(), |app| app.to_string()),
        if shown.ready { "ready".into() } else { shown.problem.clone() },
    ]
}
