//! What an operator may do: it stands in the certificate, as its one organizational unit.

use std::{fmt, str::FromStr};

use x509_parser::certificate::X509Certificate;

/// The role of an operator. Each one may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperatorRole {
    /// Reads: policy, tenants, revocations, how the mesh stands. Also whoever's certificate names no role, or one that
    /// this version does not know.
    Viewer,
    /// Changes what the mesh decides from: policy, tenants, revocations.
    Operator,
    /// Also gives others an identity, and takes what guards and keeps the mesh in hand: join tokens, certificates of
    /// services and operators, rotations, guards, backups.
    Admin,
}

impl OperatorRole {
    /// Every role, least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As it stands in the certificate and on the command line: `viewer`, `operator`, `admin`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Of a certificate that was issued to an operator. Two units are as good as none: nothing says which one counts.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut units = certificate.subject().iter_organizational_unit();
        let (Some(unit), None) = (units.next(), units.next()) else { return Self::Viewer };
        unit.as_str().ok().and_then(|unit| unit.parse().ok()).unwrap_or(Self::Viewer)
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no role of an operator, expected viewer, operator or admin")]
pub struct NotARole;

impl FromStr for OperatorRole {
    type Err = NotARole;

    fn from_str(text: &str) -> Result<Self, NotARole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(NotARole)
    }
}
