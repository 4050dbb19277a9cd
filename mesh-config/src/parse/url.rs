//! URLs in policy files: `https` alone, since what is fetched there decides who is trusted.

use http::Uri;

use crate::{
    names::short,
    yaml::{Node, Reader},
};

/// What a base URL looks like, to which key ids are joined (A15).
pub(super) const BASE: &str = "https://HOST/ or a folder below it, ending in \"/\"";
/// What the URL of one document looks like.
pub(super) const DOCUMENT: &str = "https://HOST/PATH";

/// The base of a key repository: no query, since nothing could be joined to it.
pub(super) fn base(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    read(reader, node, BASE, |uri| uri.query().is_none() && uri.path().ends_with('/'))
}

/// The URL of one document; it may have a query.
pub(super) fn document(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    read(reader, node, DOCUMENT, |_| true)
}

/// Whether OpenID Connect discovery can begin here (Discovery 1.0 §4: `https`, no query, no fragment).
pub(super) fn is_issuer(text: &str) -> bool {
    https(text).is_some_and(|uri| uri.query().is_none())
}

fn read(reader: &mut Reader<'_>, node: &Node, what: &str, fits: impl FnOnce(&Uri) -> bool) -> Option<String> {
    let text = reader.form(node, what)?;
    let good = https(text).is_some_and(|uri| fits(&uri));
    if !good {
        reader.problem(node.at, format!("URL {:?} is not well formed, expected {what}", short(text)));
    }
    good.then(|| text.to_owned())
}

/// A whole `https` URL with a host, and without user, password and fragment.
fn https(text: &str) -> Option<Uri> {
    // `http::Uri` drops a fragment, and takes letters of other scripts.
    if text.contains('#') || !text.is_ascii() {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let port = authority.as_str().strip_prefix(authority.host())?;
    let port_fits = match port.strip_prefix(':') {
        Some(_) => authority.port_u16().is_some_and(|port| port > 0),
        None => port.is_empty(),
    };
    // In lower case, as it is compared elsewhere.
    let whole = text.starts_with("https://") && !authority.host().is_empty() && port_fits;
    whole.then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_https_urls_without_user_and_fragment_are_taken() {
        for good in [
            "https://keys.example/",
            "https://keys.example",
            "https://127.0.0.1:8443/keys/",
            "https://[::1]:1/",
            "https://keys.example/a/b?x=1",
        ] {
            assert!(https(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "/",
            "keys.example",
            "keys.example/",
            "http://keys.example/",
            "HTTPS://keys.example/",
            "https:///keys/",
            "https://",
            "https://:443/",
            "https://user@keys.example/",
            "https://user:secret@keys.example/",
            "https://keys.example:0/",
            "https://keys.example:/",
            "https://keys.example:99999/",
            "https://keys.example/#x",
            "https://keys.example/ ",
            " https://keys.example/",
            "https://kéys.example/",
            "file:///etc/passwd",
            "data:application/x-pem-file,",
        ] {
            assert!(https(bad).is_none(), "{bad}");
        }
    }
}
