//! What can be revoked.

use std::fmt;

use mesh_asap::{Kid, KidError};
use mesh_config::names::{NameError, ServiceName, control_plane};
use tenon_proto::identity::v1::revocation::What;
use tenon_proto::identity::v1::{LiftRevocationRequest, RevokeRequest, lift_revocation_request, revoke_request};

use crate::transaction::TRANSACTION_KID;

/// RFC 5280 §4.1.2.2: a serial has at most 20 bytes.
const MAX_SERIAL_DIGITS: usize = 40;
/// A reason is for people.
const MAX_REASON_BYTES: usize = 1024;

/// What is revoked, by a name that cannot be wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Selector {
    Service(ServiceName),
    /// By the name in the SPIFFE id, which has the grammar of a service's.
    Operator(String),
    Kid(Kid),
    /// Lower hexadecimal without leading zero bytes, as [`mesh_identity::Peer::serial`] has it.
    Serial(String),
}

/// Why something cannot be revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectorError {
    #[error("neither a service nor an operator nor a kid nor a serial is named")]
    Nothing,
    #[error(transparent)]
    Service(#[from] NameError),
    #[error("not an operator's name: {0}")]
    Operator(#[source] NameError),
    #[error("the kid breaks its grammar: {0}")]
    Kid(#[source] KidError),
    #[error(
        "not a serial: expected 1 to {MAX_SERIAL_DIGITS} hexadecimal digits, with or without colons, as \
         `openssl x509 -serial` prints them"
    )]
    Serial,
    #[error(
        "{0} belongs to the control plane, without which no revocation reaches anybody: stop that process, or replace \
         what it holds with `tenon identity rotate`"
    )]
    ControlPlane(String),
    #[error("a reason has at most {MAX_REASON_BYTES} bytes")]
    Reason,
}

impl Selector {
    /// What an operator may revoke, and why. Of the control plane that is a key of transaction tokens: no process gets in
    /// by it, and another one is always prepared.
    ///
    /// # Errors
    /// It breaks its grammar, or belongs to the control plane.
    pub(crate) fn to_revoke(request: &RevokeRequest) -> Result<Self, SelectorError> {
        if request.reason.len() > MAX_REASON_BYTES {
            return Err(SelectorError::Reason);
        }
        let selector = Self::of(request.what.clone().map(|what| match what {
            revoke_request::What::Service(service) => What::Service(service),
            revoke_request::What::Operator(name) => What::Operator(name),
            revoke_request::What::Kid(kid) => What::Kid(kid),
            revoke_request::What::Serial(serial) => What::Serial(serial),
        }))?;
        match &selector {
            Self::Kid(kid) if kid.as_str().starts_with(TRANSACTION_KID) => Ok(selector),
            Self::Service(_) | Self::Kid(_) if selector.name().starts_with(control_plane::PREFIX) => {
                Err(SelectorError::ControlPlane(selector.name().to_owned()))
            }
            Self::Service(_) | Self::Operator(_) | Self::Kid(_) | Self::Serial(_) => Ok(selector),
        }
    }

    /// Whose revocation is to be lifted.
    ///
    /// # Errors
    /// It breaks its grammar.
    pub(crate) fn to_lift(request: &LiftRevocationRequest) -> Result<Self, SelectorError> {
        Self::of(request.what.clone().map(|what| match what {
            lift_revocation_request::What::Service(service) => What::Service(service),
            lift_revocation_request::What::Operator(name) => What::Operator(name),
            lift_revocation_request::What::Kid(kid) => What::Kid(kid),
            lift_revocation_request::What::Serial(serial) => What::Serial(serial),
        }))
    }

    pub(super) fn of(what: Option<What>) -> Result<Self, SelectorError> {
        Ok(match what.ok_or(SelectorError::Nothing)? {
            What::Service(service) => Self::Service(ServiceName::try_from(service.as_str())?),
            What::Operator(name) => {
                let name = ServiceName::try_from(name.as_str()).map_err(SelectorError::Operator)?;
                Self::Operator(name.to_string())
            }
            What::Kid(kid) => Self::Kid(kid.parse().map_err(SelectorError::Kid)?),
            What::Serial(serial) => Self::Serial(normal_serial(&serial).ok_or(SelectorError::Serial)?),
        })
    }

    pub(super) fn to_proto(&self) -> What {
        match self {
            Self::Service(service) => What::Service(service.to_string()),
            Self::Operator(name) => What::Operator(name.clone()),
            Self::Kid(kid) => What::Kid(kid.to_string()),
            Self::Serial(serial) => What::Serial(serial.clone()),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Service(service) => service.as_str(),
            Self::Kid(kid) => kid.as_str(),
            Self::Operator(text) | Self::Serial(text) => text,
        }
    }
}

/// The record's key: "service/NAME", "operator/NAME", "kid/KID" or "serial/HEX".
impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Service(_) => "service",
            Self::Operator(_) => "operator",
            Self::Kid(_) => "kid",
            Self::Serial(_) => "serial",
        };
        write!(out, "{kind}/{}", self.name())
    }
}

/// Whole bytes in lower hexadecimal, without leading zero bytes, from what tools print: "serial=0AB1", "0a:b1", "0xab1".
fn normal_serial(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("serial=").unwrap_or(text);
    let text = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    let significant = digits.trim_start_matches('0');
    let hexadecimal = significant.bytes().all(|byte| byte.is_ascii_hexdigit());
    if significant.is_empty() || significant.len() > MAX_SERIAL_DIGITS || !hexadecimal {
        return None;
    }
    Some(if significant.len() % 2 == 1 { format!("0{significant}") } else { significant.to_owned() })
}
