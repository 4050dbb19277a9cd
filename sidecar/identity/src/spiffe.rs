//! SPIFFE ids as this mesh writes them: `spiffe://<trust domain>/svc/<service>` and `.../operator/<name>`.

use std::fmt;
use std::str::FromStr;

use mesh_config::names::{ServiceName, TrustDomain};

/// Longer ids are refused before they are looked at (SPIFFE-ID §2.3).
const MAX_BYTES: usize = 2048;

/// Who a certificate speaks for, within one trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// A service of the mesh.
    Service(ServiceName),
    /// A person who runs the mesh. The name has the grammar of a service name.
    Operator(String),
}

/// A SPIFFE id of exactly the two forms that this mesh issues; anything else does not parse.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    workload: Workload,
}

/// Why a text is not a SPIFFE id of this mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than 2048 bytes.
    #[error("the SPIFFE id is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// It does not begin with `spiffe://`, in lower case.
    #[error("the SPIFFE id does not begin with spiffe://")]
    Scheme,
    /// The trust domain breaks its grammar.
    #[error("the trust domain of the SPIFFE id is not a valid name")]
    TrustDomain,
    /// The path is neither `/svc/<service>` nor `/operator/<name>`.
    #[error("the path of the SPIFFE id is neither /svc/<service> nor /operator/<name>")]
    Path,
}

impl SpiffeId {
    /// The id of a service.
    pub fn service(trust_domain: TrustDomain, service: ServiceName) -> Self {
        Self { trust_domain, workload: Workload::Service(service) }
    }

    /// The id of an operator; fails when `name` breaks the grammar of names.
    pub fn operator(trust_domain: TrustDomain, name: &str) -> Result<Self, SpiffeIdError> {
        Ok(Self { trust_domain, workload: Workload::Operator(operator_name(name)?) })
    }

    /// The trust domain, as it stands between `spiffe://` and the path.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Who this is.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The service's name, unless this is an operator.
    pub fn service_name(&self) -> Option<&ServiceName> {
        match &self.workload {
            Workload::Service(name) => Some(name),
            Workload::Operator(_) => None,
        }
    }

    /// The operator's name, unless this is a service.
    pub fn operator_name(&self) -> Option<&str> {
        match &self.workload {
            Workload::Service(_) => None,
            Workload::Operator(name) => Some(name),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or(SpiffeIdError::Path)?;
        let trust_domain = TrustDomain::try_from(domain).map_err(|_| SpiffeIdError::TrustDomain)?;
        let workload = match path.split_once('/') {
            Some(("svc", name)) => Workload::Service(ServiceName::try_from(name).map_err(|_| SpiffeIdError::Path)?),
            Some(("operator", name)) => Workload::Operator(operator_name(name)?),
            _ => return Err(SpiffeIdError::Path),
        };
        Ok(Self { trust_domain, workload })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.workload {
            Workload::Service(name) => write!(out, "spiffe://{}/svc/{name}", self.trust_domain),
            Workload::Operator(name) => write!(out, "spiffe://{}/operator/{name}", self.trust_domain),
        }
    }
}

fn operator_name(name: &str) -> Result<String, SpiffeIdError> {
    ServiceName::try_from(name).map(|name| name.as_str().to_owned()).map_err(|_| SpiffeIdError::Path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_come_out_as_they_went_in() {
        for text in ["spiffe://demo.example/svc/media", "spiffe://demo.example/operator/ada"] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let long = format!("spiffe://demo.example/svc/{}", "a".repeat(3000));
        for (text, why) in [
            ("", SpiffeIdError::Scheme),
            ("https://demo.example/svc/media", SpiffeIdError::Scheme),
            ("SPIFFE://demo.example/svc/media", SpiffeIdError::Scheme),
            ("spiffe://demo.example", SpiffeIdError::Path),
            ("spiffe:///svc/media", SpiffeIdError::TrustDomain),
            ("spiffe://Demo.example/svc/media", SpiffeIdError::TrustDomain),
            ("spiffe://demo.example:443/svc/media", SpiffeIdError::TrustDomain),
            ("spiffe://user@demo.example/svc/media", SpiffeIdError::TrustDomain),
            ("spiffe://demo.example/", SpiffeIdError::Path),
            ("spiffe://demo.example/media", SpiffeIdError::Path),
            ("spiffe://demo.example/svc/", SpiffeIdError::Path),
            ("spiffe://demo.example//svc/media", SpiffeIdError::Path),
            ("spiffe://demo.example/svc//media", SpiffeIdError::Path),
            ("spiffe://demo.example/svc/media/", SpiffeIdError::Path),
            ("spiffe://demo.example/svc/../media", SpiffeIdError::Path),
            ("spiffe://demo.example/svc/Media", SpiffeIdError::Path),
            ("spiffe://demo.example/svc/media?x=1", SpiffeIdError::Path),
            ("spiffe://demo.example/svc/media#x", SpiffeIdError::Path),
            ("spiffe://demo.example/svc/med%69a", SpiffeIdError::Path),
            ("spiffe://demo.example/operator/", SpiffeIdError::Path),
            (long.as_str(), SpiffeIdError::TooLong),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(why), "{text}");
        }
    }
}
