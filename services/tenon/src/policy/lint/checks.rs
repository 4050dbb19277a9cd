//! Every check by its id, name and severity. `docs/policy-checks.md` has a section on each.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Often intended: worth a look.
    Note,
    /// Most likely a mistake, or something that must not stay as it is.
    Warning,
    /// Denied by whoever ran the check.
    Error,
}

impl Severity {
    /// As it is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something that is looked for. Ids and names never change their meaning and are never used again.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `TP001`
    pub id: &'static str,
    /// `rule-never-matches`
    pub name: &'static str,
    /// Unless it is denied.
    pub severity: Severity,
    /// What it finds, in a few words.
    pub finds: &'static str,
}

macro_rules! checks {
    ($($constant:ident = $id:literal $name:literal $severity:ident $finds:literal;)*) => {
        $(pub const $constant: Check = Check { id: $id, name: $name, severity: Severity::$severity, finds: $finds };)*
        /// All of them, by id.
        pub static CHECKS: &[Check] = &[$($constant),*];
    };
}

checks! {
    RULE_NEVER_MATCHES = "TP001" "rule-never-matches" Warning "a rule that decides nothing: earlier rules take all of its calls";
    RULE_PARTLY_SHADOWED = "TP002" "rule-partly-shadowed" Note "a rule of which earlier rules take some callers and paths";
    DUPLICATE_RULE = "TP003" "duplicate-rule" Warning "a rule with the callers and paths of an earlier one";
    REDUNDANT_ENTRY = "TP004" "redundant-entry" Warning "a caller beside \"*\", or a path beside its own wildcard";
    CLIENT_WITHOUT_RULE = "TP005" "client-without-rule" Warning "an ExternalClient that no rule names";
    CALLER_WITHOUT_INSTANCE = "TP006" "caller-without-instance" Warning "a caller that runs nowhere";
    SERVICE_WITHOUT_CALLERS = "TP007" "service-without-callers" Warning "a service that no rule lets anybody call";
    SERVICE_CALLS_ITSELF = "TP008" "service-calls-itself" Warning "a rule that lets a service call itself";
    WILDCARD_PATH_TOO_WIDE = "TP009" "wildcard-path-too-wide" Warning "a wildcard path of which some methods alone are used (--flows)";
    ANY_CALLER_TOO_WIDE = "TP010" "any-caller-too-wide" Warning "callers \"*\" of which some alone call (--flows)";
    AUDIT_MODE = "TP011" "audit-mode" Warning "an allowlist that refuses nothing";
    QUARANTINE = "TP012" "quarantine" Warning "a service that is cut off";
    UNKNOWN_METHOD = "TP013" "unknown-method" Warning "a path whose method does not exist (--descriptors, --reflect)";
    UNKNOWN_GRPC_SERVICE = "TP014" "unknown-grpc-service" Warning "a path whose gRPC service does not exist (--descriptors, --reflect)";
    METHOD_NOBODY_MAY_CALL = "TP015" "method-nobody-may-call" Warning "a method that no rule allows to anybody (--descriptors, --reflect)";
    REFLECTION_UNANSWERED = "TP016" "reflection-unanswered" Warning "a server that does not tell its methods (--reflect)";
    TENANTS_NEVER_MET = "TP017" "tenants-never-met" Warning "tenant conditions that no known tenant can meet";
    NO_POLICY_TESTS = "TP018" "no-policy-tests" Warning "a folder without a PolicyTest";
    UNTESTED_SERVICE = "TP019" "untested-service" Warning "a service whose rules no PolicyTest calls";
    ROUTE_NEVER_DECIDES = "TP020" "route-never-decides" Warning "a path of a Route that decides nothing: an earlier one takes all of its calls";
    ROUTE_FOR_NOBODY = "TP021" "route-for-nobody" Warning "a path of a Route that no rule lets anybody call";
    RETRY_IN_VAIN = "TP022" "retry-in-vain" Warning "a retry of a failure that comes again";
    RETRY_MAY_REPEAT = "TP023" "retry-may-repeat" Warning "a retry of what may be done already, and is not named idempotent";
    ATTEMPT_TOO_LATE = "TP024" "attempt-too-late" Warning "an attempt that comes after the end of the call";
    HEALTH_CHECK_REFUSED = "TP025" "health-check-refused" Warning "a health check that callers may not make";
}

impl Check {
    /// The check of this id or name.
    pub fn find(id_or_name: &str) -> Option<&'static Check> {
        CHECKS.iter().find(|check| check.id.eq_ignore_ascii_case(id_or_name) || check.name == id_or_name)
    }
}
