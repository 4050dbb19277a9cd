//! What runs, and what it runs on: versions, and room on the disk.

use std::{collections::BTreeMap, path::Path};

use futures_util::future::join_all;

use super::{Finding, catalogue};
use crate::{operator::Mesh, probe};

/// Of the file system of the data folder, what must be left: bytes, and a share of the whole.
const LEAST: u64 = 1 << 30;
const LEAST_SHARE: u64 = 20;

/// Whether every process that says so runs the same version as this command.
pub async fn versions(mesh: &Mesh) -> Finding {
    let sidecars = join_all(mesh.file().sidecars.iter().map(|sidecar| async {
        let answer = probe::get(sidecar.admin, "/config").await.ok()?;
        let config: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        Some((sidecar.name.clone(), config["version"].as_str()?.to_owned()))
    }));
    let plane = join_all(mesh.file().control_plane.metrics.iter().map(|(name, address)| async {
        let answer = probe::get(*address, "/metrics").await.ok()?;
        Some((name.clone(), build(&answer.body)?.to_owned()))
    }));
    let (sidecars, plane) = tokio::join!(sidecars, plane);
    judge(env!("CARGO_PKG_VERSION"), plane.into_iter().chain(sidecars).flatten().collect())
}

/// The version of `tenon_build_info{version="0.1.0"} 1`.
fn build(metrics: &str) -> Option<&str> {
    let line = metrics.lines().find(|line| line.starts_with("tenon_build_info{"))?;
    line.split_once("version=\"")?.1.split('"').next()
}

fn judge(own: &str, said: BTreeMap<String, String>) -> Finding {
    let subject = "mesh";
    let others: Vec<_> = said
        .iter()
        .filter(|(_, version)| *version != own)
        .map(|(name, version)| format!("{name} is {version}"))
        .collect();
    if others.is_empty() {
        return Finding::ok(
            catalogue::VERSION,
            subject,
            format!("this command and {} processes are {own}", said.len()),
        );
    }
    Finding::bad(
        catalogue::VERSION,
        subject,
        format!("this command is {own}, but {}", others.join(", ")),
        "end the upgrade: the control plane first, then the sidecars; or use the command of their version",
    )
}

/// Whether the processes on this machine can write.
pub fn disk(data: &Path) -> Finding {
    let shown = data.display().to_string();
    match rustix::fs::statvfs(data) {
        Ok(found) => {
            room(shown, found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize))
        }
        Err(error) => Finding::bad(
            catalogue::DISK,
            shown,
            format!("cannot tell how much is left: {error}"),
            "run as the user who started the mesh",
        ),
    }
}

fn room(folder: String, left: u64, whole: u64) -> Finding {
    let told = format!("{} MiB left of {} MiB", left >> 20, whole >> 20);
    // A small file system may be small on purpose.
    if left >= LEAST || left >= whole / LEAST_SHARE && whole <= LEAST {
        return Finding::ok(catalogue::DISK, folder, told);
    }
    let next =
        "make room: `du -xh -d2` below it says what is large; logs and backups can go elsewhere, the stores cannot";
    Finding::bad(catalogue::DISK, folder, told, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_another_version_are_named() {
        let said = |version: &str| {
            BTreeMap::from([("tcs".to_owned(), "0.1.0".to_owned()), ("media".to_owned(), version.to_owned())])
        };
        assert!(judge("0.1.0", said("0.1.0")).ok);
        let found = judge("0.1.0", said("0.0.9"));
        assert_eq!((found.ok, found.detail.as_str()), (false, "this command is 0.1.0, but media is 0.0.9"));
        assert_eq!(build("x 1\ntenon_build_info{version=\"1.2.3\"} 1\n"), Some("1.2.3"));
        assert_eq!(build("nothing"), None);
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_told() {
        let ok = |left: u64, whole: u64| room("data".into(), left, whole).ok;
        assert!(ok(LEAST, 100 * LEAST) && !ok(LEAST - 1, 100 * LEAST));
        assert!(ok(100 << 20, LEAST), "a small one may be small on purpose");
        assert!(!ok(20 << 20, LEAST));
    }
}
