//! What the streams of one mesh and kind are called.
//!
//! Several meshes share a cluster, so each name has the trust domain in it, in a form that names of streams and tokens of
//! subjects may have: without dots.

use mesh_config::names::TrustDomain;
use xxhash_rust::xxh3::xxh3_128;

/// A server takes 255 bytes for the name of a stream, which is that of a folder on its disk as well.
const LONGEST: usize = 128;

/// A mesh, as streams, subjects and folders name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mesh {
    trust_domain: String,
    safe: String,
}

/// The streams of one kind, their subjects, and whose they are.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) mesh: Mesh,
    pub(super) stream: String,
    pub(super) checkpoint_stream: String,
    pub(super) commits: String,
    pub(super) parts: String,
    pub(super) committed: String,
    pub(super) manifests: String,
    pub(super) chunks: String,
}

impl Mesh {
    /// Trust domains have no `=`, so no two of them get one name. Where one is too long, its hash stands in for its end, and
    /// what the log says of itself keeps two apart even if those were alike.
    pub(super) fn of(trust_domain: &TrustDomain) -> Self {
        let trust_domain = trust_domain.as_str().to_owned();
        let mut safe = trust_domain.replace('.', "=");
        if safe.len() > LONGEST {
            let hash = xxh3_128(safe.as_bytes());
            safe.truncate(LONGEST - 33);
            safe = format!("{safe}={hash:032x}");
        }
        Self { trust_domain, safe }
    }

    /// As the log says it.
    pub(super) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// As names have it: `a-z`, `0-9`, `-`, `_` and `=`.
    pub(super) fn safe(&self) -> &str {
        &self.safe
    }
}

impl Names {
    /// Of a kind, which begins with a letter: the first capital after the mesh is where it stands in the name of a stream.
    pub(super) fn of(mesh: &Mesh, kind: &str) -> Self {
        let subject = |part: &str| format!("tenon.{}.{kind}.{part}", mesh.safe);
        let stream = format!("TENON_{}_{}", mesh.safe, kind.to_ascii_uppercase());
        Self {
            mesh: mesh.clone(),
            checkpoint_stream: format!("{stream}_CHECKPOINTS"),
            stream,
            commits: subject("log"),
            parts: subject("part"),
            committed: subject("committed"),
            manifests: subject("checkpoint"),
            chunks: subject("chunk"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn names(trust_domain: &str, kind: &str) -> Names {
        Names::of(&Mesh::of(&TrustDomain::try_from(trust_domain).unwrap()), kind)
    }

    #[test]
    fn names_have_the_mesh_in_them_without_its_dots() {
        let names = names("eu.acme.example", "tenant_guard");
        assert_eq!(names.stream, "TENON_eu=acme=example_TENANT_GUARD");
        assert_eq!(names.checkpoint_stream, "TENON_eu=acme=example_TENANT_GUARD_CHECKPOINTS");
        assert_eq!(names.commits, "tenon.eu=acme=example.tenant_guard.log");
        assert_eq!(names.mesh.trust_domain(), "eu.acme.example");
    }

    #[test]
    fn no_two_meshes_share_a_name_and_every_name_is_taken_by_a_server() {
        let long = |last: &str| format!("{}{last}", "a.".repeat(127));
        let domains: Vec<String> = ["a.b", "a-b", "a_b", "a..b", "ab", "a.b.", "tenant", "a_tenant", ".", ".."]
            .map(str::to_owned)
            .into_iter()
            .chain([long("a"), long("b"), "a.".repeat(64), "a.".repeat(60)])
            .collect();
        let kinds = ["tenant", "tenant_guard", "route", "a_tenant"];
        let mut seen = HashSet::new();
        for domain in &domains {
            for kind in kinds {
                let Names { mesh, stream, checkpoint_stream, commits, parts, committed, manifests, chunks } =
                    names(domain, kind);
                for stream in [stream, checkpoint_stream] {
                    assert!(stream.len() < 200 && !stream.contains(['.', '/', '\\', '*', '>', ' ']), "{stream}");
                    assert!(seen.insert(stream.clone()), "{stream} twice");
                }
                for subject in [commits, parts, committed, manifests, chunks] {
                    assert_eq!(subject.split('.').count(), 4, "{subject}");
                    assert!(subject.split('.').all(|token| !token.is_empty()), "{subject}");
                    assert!(seen.insert(subject.clone()), "{subject} twice");
                }
                assert!(mesh.safe().len() <= LONGEST);
            }
        }
    }
}
