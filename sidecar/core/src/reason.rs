//! Every reason for which Tenon itself ends a call: the table of DESIGN §3, both directions.

use std::{fmt, time::Duration};

/// Why Tenon refused a call. What a program matches: the `reason` of `google.rpc.ErrorInfo` and the first word of
/// `grpc-message`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No ASAP token.
    AsapMissing,
    /// The token is not a JWS that ASAP allows, or there are several.
    AsapMalformed,
    /// An algorithm that is not accepted, or not the key's.
    AsapAlgorithm,
    /// Nobody in the mesh published this `kid`, or it was revoked.
    AsapKeyUnknown,
    /// An outside key repository cannot be reached.
    AsapKeysUnavailable,
    /// The signature is not of this key.
    AsapSignature,
    /// Past `exp`.
    AsapExpired,
    /// Before `nbf` or `iat`.
    AsapNotYetValid,
    /// It lives longer than ASAP allows.
    AsapLifetime,
    /// Minted for another service.
    AsapAudience,
    /// The issuer is not the mTLS peer, or not the key's owner.
    AsapIssuer,
    /// `sub` differs from `iss`, and nothing grants that.
    AsapSubject,
    /// The caller or the callee is cut off.
    Quarantined,
    /// No rule allows this caller this path.
    PathNotAllowed,
    /// No policy has ever arrived.
    PolicyUnavailable,
    /// The rule wants a transaction token and there is none.
    TxnMissing,
    /// The transaction token does not verify.
    TxnInvalid,
    /// The transaction token is past its time.
    TxnExpired,
    /// The transaction token is of another tenant.
    TxnTenantMismatch,
    /// The replica has not reached the revision that the caller saw.
    TenantStale,
    /// The rule wants a tenant and none is named.
    TenantRequired,
    /// Nobody knows this tenant: destroyed, never made, or not even a tenant id.
    TenantUnknown,
    /// The tenant is suspended.
    TenantSuspended,
    /// The tenant does not have this product, or its licence ran out.
    ProductNotLicensed,
    /// The product is suspended for this tenant.
    ProductSuspended,
    /// The tenant's home is another region than this instance's.
    TenantWrongRegion,
    /// The rule is for other tenants: `tenants` in the policy file.
    TenantNotAllowed,
    /// The first complete snapshot of tenants has not arrived.
    TcsUnavailable,
    /// The rule's rate for one tenant is used up.
    TenantRateLimited,
    /// This sidecar has no room for more calls of this tenant.
    Overloaded,
    /// The app called a service that nobody defines.
    ServiceUnknown,
    /// The destination has no instance (there).
    NoEndpoint,
    /// No instance could be connected to.
    UpstreamConnect,
    /// The call's time is over.
    Deadline,
    /// The app named the tenant twice, or by id and by host.
    TenantAmbiguous,
    /// The app may call only for tenants that it is serving right now.
    TenantNotInFlight,
}

/// The gRPC status codes that refusals use, with their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// DEADLINE_EXCEEDED.
    DeadlineExceeded = 4,
    /// NOT_FOUND.
    NotFound = 5,
    /// PERMISSION_DENIED.
    PermissionDenied = 7,
    /// RESOURCE_EXHAUSTED.
    ResourceExhausted = 8,
    /// UNAVAILABLE.
    Unavailable = 14,
    /// UNAUTHENTICATED.
    Unauthenticated = 16,
}

impl Code {
    /// The number that stands in `grpc-status`.
    pub const fn as_i32(self) -> i32 {
        self as i32
    }

    /// The status of a request that is not gRPC (DESIGN §3).
    pub const fn http_status(self) -> u16 {
        match self {
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::ResourceExhausted => 429,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
        }
    }
}

/// One line of the table.
struct Row {
    name: &'static str,
    code: Code,
    phase: &'static str,
    retry_after: Option<Duration>,
}

const fn row(name: &'static str, code: Code, phase: &'static str) -> Row {
    Row { name, code, phase, retry_after: None }
}

impl Row {
    const fn retry(self, milliseconds: u64) -> Row {
        Row { retry_after: Some(Duration::from_millis(milliseconds)), ..self }
    }
}

impl Reason {
    /// Every reason once, in the order in which a call meets them.
    pub const ALL: &[Reason] = &[
        Reason::AsapMissing,
        Reason::AsapMalformed,
        Reason::AsapAlgorithm,
        Reason::AsapKeyUnknown,
        Reason::AsapKeysUnavailable,
        Reason::AsapSignature,
        Reason::AsapExpired,
        Reason::AsapNotYetValid,
        Reason::AsapLifetime,
        Reason::AsapAudience,
        Reason::AsapIssuer,
        Reason::AsapSubject,
        Reason::Quarantined,
        Reason::PathNotAllowed,
        Reason::PolicyUnavailable,
        Reason::TxnMissing,
        Reason::TxnInvalid,
        Reason::TxnExpired,
        Reason::TxnTenantMismatch,
        Reason::TenantStale,
        Reason::TenantRequired,
        Reason::TenantUnknown,
        Reason::TenantSuspended,
        Reason::ProductNotLicensed,
        Reason::ProductSuspended,
        Reason::TenantWrongRegion,
        Reason::TenantNotAllowed,
        Reason::TcsUnavailable,
        Reason::TenantRateLimited,
        Reason::Overloaded,
        Reason::ServiceUnknown,
        Reason::NoEndpoint,
        Reason::UpstreamConnect,
        Reason::Deadline,
        Reason::TenantAmbiguous,
        Reason::TenantNotInFlight,
    ];

    /// The table. One line a reason; a reason without a line does not compile.
    const fn row(self) -> Row {
        use Code::{DeadlineExceeded, NotFound, PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable};
        match self {
            Reason::AsapMissing => row("ASAP_MISSING", Unauthenticated, "asap"),
            Reason::AsapMalformed => row("ASAP_MALFORMED", Unauthenticated, "asap"),
            Reason::AsapAlgorithm => row("ASAP_ALGORITHM", Unauthenticated, "asap"),
            Reason::AsapKeyUnknown => row("ASAP_KEY_UNKNOWN", Unauthenticated, "asap"),
            Reason::AsapKeysUnavailable => row("ASAP_KEYS_UNAVAILABLE", Unavailable, "asap").retry(1_000),
            Reason::AsapSignature => row("ASAP_SIGNATURE", Unauthenticated, "asap"),
            Reason::AsapExpired => row("ASAP_EXPIRED", Unauthenticated, "asap"),
            Reason::AsapNotYetValid => row("ASAP_NOT_YET_VALID", Unauthenticated, "asap"),
            Reason::AsapLifetime => row("ASAP_LIFETIME", Unauthenticated, "asap"),
            Reason::AsapAudience => row("ASAP_AUDIENCE", Unauthenticated, "asap"),
            Reason::AsapIssuer => row("ASAP_ISSUER", Unauthenticated, "asap"),
            Reason::AsapSubject => row("ASAP_SUBJECT", Unauthenticated, "asap"),
            Reason::Quarantined => row("QUARANTINED", PermissionDenied, "quarantine"),
            Reason::PathNotAllowed => row("PATH_NOT_ALLOWED", PermissionDenied, "allowlist"),
            Reason::PolicyUnavailable => row("POLICY_UNAVAILABLE", Unavailable, "allowlist").retry(1_000),
            Reason::TxnMissing => row("TXN_MISSING", Unauthenticated, "transaction"),
            Reason::TxnInvalid => row("TXN_INVALID", Unauthenticated, "transaction"),
            Reason::TxnExpired => row("TXN_EXPIRED", Unauthenticated, "transaction"),
            Reason::TxnTenantMismatch => row("TXN_TENANT_MISMATCH", PermissionDenied, "transaction"),
            Reason::TenantStale => row("TENANT_STALE", Unavailable, "freshness").retry(250),
            Reason::TenantRequired => row("TENANT_REQUIRED", PermissionDenied, "tenant"),
            Reason::TenantUnknown => row("TENANT_UNKNOWN", PermissionDenied, "tenant"),
            Reason::TenantSuspended => row("TENANT_SUSPENDED", PermissionDenied, "tenant"),
            Reason::ProductNotLicensed => row("PRODUCT_NOT_LICENSED", PermissionDenied, "tenant"),
            Reason::ProductSuspended => row("PRODUCT_SUSPENDED", PermissionDenied, "tenant"),
            Reason::TenantWrongRegion => row("TENANT_WRONG_REGION", PermissionDenied, "tenant"),
            Reason::TenantNotAllowed => row("TENANT_NOT_ALLOWED", PermissionDenied, "tenant"),
            Reason::TcsUnavailable => row("TCS_UNAVAILABLE", Unavailable, "tenant").retry(1_000),
            Reason::TenantRateLimited => row("TENANT_RATE_LIMITED", ResourceExhausted, "limits").retry(1_000),
            Reason::Overloaded => row("OVERLOADED", ResourceExhausted, "limits").retry(100),
            Reason::ServiceUnknown => row("SERVICE_UNKNOWN", NotFound, "destination"),
            Reason::NoEndpoint => row("NO_ENDPOINT", Unavailable, "endpoint").retry(1_000),
            Reason::UpstreamConnect => row("UPSTREAM_CONNECT", Unavailable, "connect").retry(1_000),
            Reason::Deadline => row("DEADLINE", DeadlineExceeded, "deadline"),
            Reason::TenantAmbiguous => row("TENANT_AMBIGUOUS", PermissionDenied, "tenant"),
            Reason::TenantNotInFlight => row("TENANT_NOT_IN_FLIGHT", PermissionDenied, "originates"),
        }
    }

    /// The name on the wire: `TENANT_SUSPENDED`.
    pub const fn as_str(self) -> &'static str {
        self.row().name
    }

    /// The gRPC status.
    pub const fn code(self) -> Code {
        self.row().code
    }

    /// The HTTP status of a request that is not gRPC.
    pub const fn http_status(self) -> u16 {
        self.code().http_status()
    }

    /// Which step of the call refused: a metric label and the heading in `docs/life-of-a-call.md`.
    pub const fn phase(self) -> &'static str {
        self.row().phase
    }

    /// When another attempt may succeed, for `google.rpc.RetryInfo`; `None` where repeating the call changes nothing.
    pub const fn retry_after(self) -> Option<Duration> {
        self.row().retry_after
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is no reason's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a reason such as TENANT_SUSPENDED")]
pub struct ReasonError;

impl std::str::FromStr for Reason {
    type Err = ReasonError;

    /// Reads the name on the wire, as `expect` of a `PolicyTest` has it.
    fn from_str(text: &str) -> Result<Self, ReasonError> {
        Reason::ALL.iter().copied().find(|reason| reason.as_str() == text).ok_or(ReasonError)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_stands_once_in_all_and_has_a_name_of_its_own() {
        // Discriminants count up from 0, so ALL in order of declaration leaves none out but at the end.
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason}");
        }
        assert_eq!(Reason::ALL.len(), Reason::TenantNotInFlight as usize + 1, "TenantNotInFlight is declared last");
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn policy_tests_may_expect_exactly_these_reasons() {
        let names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(mesh_config::REASONS, names);
    }

    #[test]
    fn the_name_is_the_variant_in_upper_case() {
        for reason in Reason::ALL {
            let mut upper = String::new();
            for (index, letter) in format!("{reason:?}").char_indices() {
                if index > 0 && letter.is_ascii_uppercase() {
                    upper.push('_');
                }
                upper.push(letter.to_ascii_uppercase());
            }
            assert_eq!(reason.as_str(), upper);
            assert_eq!(upper.parse(), Ok(*reason));
        }
        assert!("ALLOWED".parse::<Reason>().is_err());
    }

    #[test]
    fn codes_follow_the_table_of_the_design() {
        let table = [
            (16, 401, "ASAP_MISSING ASAP_MALFORMED ASAP_ALGORITHM ASAP_KEY_UNKNOWN ASAP_SIGNATURE ASAP_EXPIRED"),
            (16, 401, "ASAP_NOT_YET_VALID ASAP_LIFETIME ASAP_AUDIENCE ASAP_ISSUER ASAP_SUBJECT"),
            (16, 401, "TXN_MISSING TXN_INVALID TXN_EXPIRED"),
            (7, 403, "QUARANTINED PATH_NOT_ALLOWED TXN_TENANT_MISMATCH TENANT_REQUIRED TENANT_UNKNOWN"),
            (7, 403, "TENANT_SUSPENDED PRODUCT_NOT_LICENSED PRODUCT_SUSPENDED TENANT_WRONG_REGION TENANT_NOT_ALLOWED"),
            (7, 403, "TENANT_AMBIGUOUS TENANT_NOT_IN_FLIGHT"),
            (5, 404, "SERVICE_UNKNOWN"),
            (8, 429, "TENANT_RATE_LIMITED OVERLOADED"),
            (14, 503, "ASAP_KEYS_UNAVAILABLE POLICY_UNAVAILABLE TENANT_STALE TCS_UNAVAILABLE"),
            (14, 503, "NO_ENDPOINT UPSTREAM_CONNECT"),
            (4, 504, "DEADLINE"),
        ];
        let mut seen = 0;
        for (code, http, names) in table {
            for name in names.split(' ') {
                let reason: Reason = name.parse().unwrap();
                assert_eq!((reason.code().as_i32(), reason.http_status()), (code, http), "{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, Reason::ALL.len());
    }

    #[test]
    fn a_retry_is_hinted_exactly_where_waiting_can_help() {
        for reason in Reason::ALL {
            let can_help = matches!(reason.code(), Code::Unavailable | Code::ResourceExhausted);
            assert_eq!(reason.retry_after().is_some(), can_help, "{reason}");
        }
    }
}
