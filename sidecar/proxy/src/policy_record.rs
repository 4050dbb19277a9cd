//! The record of a service's policy as its sidecars hold it, with what some of them decide by while it is rolled out in
//! steps.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use mesh_identity::policy_signature::{PublicKey, verify_policy};
use prost::Message as _;
use sidecar_core::policy::Policy;
use tenon_proto::policy::v1::{ExternalClient, ServicePolicy};

use crate::outside;

/// A record of so many bytes is no small part of a message.
const LARGE: usize = 256 << 10;

/// A service's policy, checked to compile: one that does not is refused (NACK) and the last good one stays. Cheap to clone.
/// The policy reads its texts in the bytes that the replica needs anyway, so that they are in memory once.
#[derive(Clone, Debug)]
pub struct PolicyRecord(Arc<Held>);

struct Held {
    key: Box<str>,
    revision: u64,
    raw: Bytes,
    everybody: Usable,
    canary: Option<Canary>,
}

/// What a sidecar decides by.
#[derive(Debug)]
pub struct Usable {
    pub policy: Arc<Policy>,
    /// Callers outside of the mesh that its rules name.
    pub external_clients: Vec<ExternalClient>,
}

/// The policy that is being rolled out. Who is not named never looks into it.
#[derive(Debug)]
struct Canary {
    instances: Vec<String>,
    /// As bytes, which the compiled policy reads its texts in.
    policy: Option<Bytes>,
    /// Made where it is asked for first.
    usable: OnceLock<Result<Usable, String>>,
}

impl PolicyRecord {
    /// What the sidecar of this name decides by.
    pub fn of(&self, instance: &str) -> &Usable {
        // One that cannot be used was not accepted.
        self.canary_of(instance).and_then(|canary| canary.usable().ok()).unwrap_or(&self.0.everybody)
    }

    /// Whether the sidecar of this name can use the record.
    ///
    /// # Errors
    /// One line for the NACK: it is a canary, and the new policy is one that it cannot decide by.
    pub fn accept(&self, instance: &str) -> Result<(), String> {
        match self.canary_of(instance) {
            Some(canary) => canary.usable().map(drop).map_err(|error| format!("the policy of the rollout: {error}")),
            None => Ok(()),
        }
    }

    fn canary_of(&self, instance: &str) -> Option<&Canary> {
        self.0.canary.as_ref().filter(|canary| canary.instances.iter().any(|named| named == instance))
    }
}

/// Whether what the sidecar of this name would decide by is signed with one of `keys`: the record, and where it is a canary
/// the new policy as well. A record under another service's key was signed for nobody. A new policy that allows nothing needs
/// no signature: the service goes, and nobody signs what is not there.
///
/// # Errors
/// One line for the NACK.
pub fn signed(key: &str, raw: &[u8], instance: &str, keys: &[PublicKey]) -> Result<(), String> {
    let mut record = ServicePolicy::decode(raw).map_err(|error| error.to_string())?;
    let canary = record.canary.take().filter(|canary| canary.instances.iter().any(|named| named == instance));
    let new = canary.and_then(|canary| canary.policy);
    let verify = |policy: &ServicePolicy| {
        if policy.service != key {
            return Err(format!("the policy under {key} is one of {}", policy.service));
        }
        verify_policy(keys, policy).map_err(|error| format!("the signature of {key}'s policy: {error}"))
    };
    verify(&record)?;
    match new.as_deref() {
        Some(new) if !allows_nothing(key, new) => verify(new),
        Some(_) | None => Ok(()),
    }
}

/// Whether it lets nobody call, and the service itself originate nothing.
fn allows_nothing(key: &str, policy: &ServicePolicy) -> bool {
    let residency = policy.residency;
    *policy == ServicePolicy { service: key.to_owned(), residency, ..ServicePolicy::default() }
}

impl Canary {
    fn usable(&self) -> Result<&Usable, &str> {
        let usable = self.usable.get_or_init(|| match &self.policy {
            Some(policy) => Usable::of(policy.clone()).map(|(usable, _)| usable),
            None => Err("there is none".to_owned()),
        });
        usable.as_ref().map_err(String::as_str)
    }
}

impl Usable {
    /// Of a record's own bytes; and what else of it stands beside its rules.
    fn of(raw: Bytes) -> Result<(Self, ServicePolicy), String> {
        let (policy, mut rest) = Policy::decode(raw)?;
        rest.external_clients.iter().try_for_each(outside::check)?;
        let external_clients = std::mem::take(&mut rest.external_clients);
        Ok((Self { policy: Arc::new(policy), external_clients }, rest))
    }
}

impl replica::Value for PolicyRecord {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        // A large one is most of the message that it came in, whose buffer lives as long as the stream: one copy is enough. What
        // is small would keep a buffer that is larger than it.
        let raw = if raw.len() >= LARGE { raw } else { Bytes::copy_from_slice(&raw) };
        let (everybody, rest) = Usable::of(raw.clone())?;
        let canary = rest.canary.map(|canary| Canary {
            instances: canary.instances,
            policy: canary.policy.map(|policy| policy.encode_to_vec().into()),
            usable: OnceLock::new(),
        });
        Ok(Self(Arc::new(Held { key: key.into(), revision, raw, everybody, canary })))
    }

    fn key(&self) -> &str {
        &self.0.key
    }

    fn revision(&self) -> u64 {
        self.0.revision
    }

    fn raw(&self) -> &[u8] {
        &self.0.raw
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("key", &self.key).field("revision", &self.revision).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::policy_signature::{public_key, sign, signed_part};
    use replica::Value as _;
    use sidecar_core::{Peer, policy::Match};
    use tenon_proto::policy::v1::{Canary, Proof, Residency, Rule, TenantRequirement};

    use super::*;

    fn allowing(path: &str) -> ServicePolicy {
        let rule = Rule {
            allowlist: "media".to_owned(),
            name: "read".to_owned(),
            callers: vec!["issues".to_owned()],
            paths: vec![path.to_owned()],
            tenant: TenantRequirement::None.into(),
            proof: Proof::None.into(),
            ..Rule::default()
        };
        let residency = Residency::Any.into();
        ServicePolicy { service: "media".to_owned(), residency, rules: vec![rule], ..ServicePolicy::default() }
    }

    fn rolled_out(new: Option<ServicePolicy>) -> PolicyRecord {
        let instances = vec!["media-1".to_owned(), "media-2".to_owned()];
        let canary = Some(Box::new(Canary { policy: new.map(Box::new), instances }));
        let record = ServicePolicy { canary, ..allowing("/media.v1.Media/Get") };
        PolicyRecord::decode("media", 1, record.encode_to_vec().into()).unwrap()
    }

    fn allows(usable: &Usable, path: &str) -> bool {
        matches!(usable.policy.authorize(Peer::Service("issues"), path), Match::Rule(..))
    }

    #[test]
    fn only_the_canaries_that_are_named_decide_by_the_new_policy() {
        let record = rolled_out(Some(allowing("/media.v1.Media/Put")));
        for (instance, new) in [("media-1", true), ("media-2", true), ("media-3", false), ("media", false), ("", false)]
        {
            assert_eq!(record.accept(instance), Ok(()));
            let usable = record.of(instance);
            assert_eq!(allows(usable, "/media.v1.Media/Put"), new, "{instance}");
            assert_eq!(allows(usable, "/media.v1.Media/Get"), !new, "{instance}");
        }
    }

    #[test]
    fn a_new_policy_that_cannot_be_used_is_refused_by_those_who_are_named_and_ignored_by_all_others() {
        let no_issuer = ExternalClient { name: "partner".to_owned(), ..ExternalClient::default() };
        let with_client = ServicePolicy { external_clients: vec![no_issuer], ..allowing("/media.v1.Media/Get") };
        for (new, error) in [
            (Some(allowing("not a path")), "path \"not a path\""),
            (Some(with_client), "outside client partner names no issuer"),
            (None, "there is none"),
        ] {
            let record = rolled_out(new);
            let refused = record.accept("media-2").unwrap_err();
            assert!(refused.starts_with("the policy of the rollout: ") && refused.contains(error), "{refused}");
            assert_eq!(record.accept("media-3"), Ok(()));
            assert!(allows(record.of("media-3"), "/media.v1.Media/Get"));
            assert!(
                allows(record.of("media-2"), "/media.v1.Media/Get"),
                "and if it were asked all the same: the old one"
            );
        }
    }

    #[test]
    fn a_record_that_nobody_can_use_is_refused_by_all() {
        let record = ServicePolicy { canary: None, ..allowing("not a path") };
        PolicyRecord::decode("media", 1, record.encode_to_vec().into()).unwrap_err();
    }

    #[test]
    fn where_signatures_are_wanted_both_what_is_in_force_and_what_is_rolled_out_must_have_one() {
        let pair = || {
            let pair = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
            let private = pair.to_pkcs8v1().unwrap().as_ref().to_vec();
            let public = public_key(&private).unwrap();
            (private, public)
        };
        let ((ours, public), (theirs, _)) = (pair(), pair());
        let by = |key: &[u8], policy: ServicePolicy| {
            let signature = sign(key, tenon_proto::kind::ALLOWLIST, "media", 1, &signed_part(&policy)).unwrap();
            ServicePolicy { signature: Some(signature), ..policy }
        };
        let (get, put) = (allowing("/media.v1.Media/Get"), allowing("/media.v1.Media/Put"));
        let rolled_out = |new: ServicePolicy| {
            let canary = Canary { policy: Some(Box::new(new)), instances: vec!["media-1".to_owned()] };
            ServicePolicy { canary: Some(Box::new(canary)), ..by(&ours, get.clone()) }
        };
        let changed = ServicePolicy { originates: true, ..by(&ours, get.clone()) };
        let nothing = ServicePolicy { rules: Vec::new(), ..get.clone() };
        for (record, key, instance, good) in [
            (by(&ours, get.clone()), "media", "media-1", true),
            (get.clone(), "media", "media-1", false),
            (by(&theirs, get.clone()), "media", "media-1", false),
            (changed, "media", "media-1", false),
            (by(&ours, get.clone()), "wiki", "media-1", false),
            (rolled_out(by(&ours, put.clone())), "media", "media-1", true),
            (rolled_out(put.clone()), "media", "media-1", false),
            (rolled_out(put.clone()), "media", "media-2", true),
            // A service that goes.
            (rolled_out(nothing.clone()), "media", "media-1", true),
            (rolled_out(ServicePolicy { originates: true, ..nothing.clone() }), "media", "media-1", false),
            (
                rolled_out(ServicePolicy { audit_allowlist: "media".to_owned(), ..nothing.clone() }),
                "media",
                "media-1",
                false,
            ),
            (rolled_out(ServicePolicy { service: "wiki".to_owned(), ..nothing.clone() }), "media", "media-1", false),
            (nothing, "media", "media-1", false),
        ] {
            let raw = record.encode_to_vec();
            let outcome = signed(key, &raw, instance, std::slice::from_ref(&public));
            assert_eq!(outcome.is_ok(), good, "{key} {instance}: {outcome:?}");
        }
    }
}
