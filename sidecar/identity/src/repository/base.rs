//! Base URLs of key repositories, and what a key's URL is made of (A15).

use std::fmt;
use std::str::FromStr;

use http::Uri;
use mesh_asap::Kid;

/// `https://host[:port]/path/`: a key id joined to it comes out byte for byte, since neither has anything that a URL
/// could read otherwise (A4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// Ends in a slash.
    text: Box<str>,
    host: Origin,
}

/// What a redirect must stay on: host in lower case, and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    host: Box<str>,
    port: u16,
}

/// Why a text is no base URL of a key repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a key repository's base URL: {problem}")]
pub struct BaseError {
    url: String,
    problem: &'static str,
}

impl Base {
    pub(super) fn of(&self, kid: &Kid) -> Result<Uri, http::uri::InvalidUri> {
        format!("{}{kid}", self.text).parse()
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.host
    }
}

impl Origin {
    /// Of an absolute `https` URL without user information.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if uri.scheme_str() != Some("https") || authority.host().is_empty() {
            return None;
        }
        Some(Self { host: authority.host().to_ascii_lowercase().into(), port: uri.port_u16().unwrap_or(443) })
    }
}

impl FromStr for Base {
    type Err = BaseError;

    fn from_str(text: &str) -> Result<Self, BaseError> {
        let error = |problem| BaseError { url: text.to_owned(), problem };
        if text.contains(['?', '#']) {
            return Err(error("it must have neither a query nor a fragment"));
        }
        let uri: Uri = text.parse().map_err(|_| error("it is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(error("it must begin with https://"));
        }
        let host = Origin::of(&uri).ok_or_else(|| error("it must have a host and no user name or password"))?;
        let slash = if text.ends_with('/') { "" } else { "/" };
        Ok(Self { text: format!("{text}{slash}").into(), host })
    }
}

impl fmt::Display for Base {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> Result<Base, BaseError> {
        text.parse()
    }

    #[test]
    fn a_key_id_is_joined_byte_for_byte() {
        let kid: Kid = "a+b/c.d/E_f-0".parse().unwrap();
        for (text, expected) in [
            ("https://keys.example/", "https://keys.example/a+b/c.d/E_f-0"),
            ("https://keys.example", "https://keys.example/a+b/c.d/E_f-0"),
            ("https://keys.example:8443/x/y/", "https://keys.example:8443/x/y/a+b/c.d/E_f-0"),
            ("https://[::1]:1/x", "https://[::1]:1/x/a+b/c.d/E_f-0"),
        ] {
            assert_eq!(base(text).unwrap().of(&kid).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_base_url_is_refused_with_the_reason() {
        for (text, problem) in [
            ("http://keys.example/", "it must begin with https://"),
            ("keys.example", "it must begin with https://"),
            ("/keys", "it must begin with https://"),
            ("https://keys.example/?x=", "it must have neither a query nor a fragment"),
            ("https://keys.example/#x", "it must have neither a query nor a fragment"),
            ("https://me:secret@keys.example/", "it must have a host and no user name or password"),
            ("https://keys example/", "it is not a URL"),
            ("https://", "it is not a URL"),
            ("", "it is not a URL"),
        ] {
            assert_eq!(base(text).unwrap_err().problem, problem, "{text}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(origin("https://Keys.Example/a"), origin("https://keys.example:443/b"));
        assert_ne!(origin("https://keys.example/"), origin("https://keys.example:444/"));
        assert_ne!(origin("https://keys.example/"), origin("https://other.example/"));
        assert_eq!(origin("http://keys.example/"), None);
        assert_eq!(origin("/only/a/path"), None);
    }
}
