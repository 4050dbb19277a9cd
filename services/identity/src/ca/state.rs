//! What is written down of the hierarchy: which roots are trusted, and who signs.

use serde::{Deserialize, Serialize};

/// `ca.json`. It counts; files that it does not name do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    /// Moves by one with each change of the trust bundle.
    pub sequence: u64,
    /// The trusted ones in the order of the bundle: one, or two while the root is being rotated, the older first.
    pub roots: Vec<Root>,
    /// Name of the root below which issuing CAs are made.
    pub active: String,
    /// The issuing CAs that have not ended. The last one signs.
    pub issuing: Vec<Issuing>,
    /// ASAP keys that were created before this are to be replaced; Unix seconds.
    #[serde(default)]
    pub rekey_created_before: u64,
    /// What the store that belongs to this CA is marked with, since an identity service served with both. A store without
    /// the mark is a new one; one with another mark was put back from a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_mark: Option<String>,
    /// Whether the store was lost and is being filled again.
    #[serde(default)]
    pub recovering: bool,
}

/// A root in `NAME.pem` and `NAME.key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Root {
    pub name: String,
    /// Of the certificate; lower hexadecimal.
    pub sha256: String,
}

/// An issuing CA in `NAME.pem` and `NAME.key`; of one that signs no more, the files are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Issuing {
    pub name: String,
    /// Of the certificate; lower hexadecimal.
    pub sha256: String,
    /// Name of the root that signed it.
    pub root: String,
    /// Unix seconds.
    pub made: u64,
    /// Its last second, Unix time.
    pub not_after: u64,
}

/// How far the rotation of the root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is one root.
    None,
    /// A new root is trusted beside the one that signs.
    Prepared,
    /// The new root signs, the old one is still trusted.
    Activated,
}

impl Phase {
    /// As answers name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Prepared => "prepared",
            Self::Activated => "activated",
        }
    }
}

impl State {
    /// Whether it can be that of a CA.
    pub(super) fn is_whole(&self) -> bool {
        (1..=2).contains(&self.roots.len())
            && self.roots.iter().any(|root| root.name == self.active)
            && self.issuing.last().is_some_and(|issuing| issuing.root == self.active)
    }

    pub(super) fn phase(&self) -> Phase {
        match (&self.roots[..], &self.active) {
            ([old, _], active) if old.name == *active => Phase::Prepared,
            ([_, _], _) => Phase::Activated,
            _ => Phase::None,
        }
    }

    /// Who signs.
    pub(super) fn signing(&self) -> &Issuing {
        self.issuing.last().expect("a state has an issuing CA")
    }

    /// Forgets issuing CAs that ended before `now`, but never the one that signs.
    pub(super) fn forget_ended(&mut self, now: u64) {
        let signing = self.signing().name.clone();
        self.issuing.retain(|issuing| now <= issuing.not_after || issuing.name == signing);
    }

    /// Whether the files of this name count.
    pub(super) fn names(&self, name: &str) -> bool {
        self.roots.iter().any(|root| root.name == name) || self.signing().name == name
    }
}
