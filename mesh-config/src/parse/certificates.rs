//! CA certificates that stand in policy files as PEM text, since `policy apply` ships texts and no other files.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::yaml::{Node, Reader};

/// What stands before each block of PEM (RFC 7468).
const BEGIN: &str = "-----BEGIN ";

/// One or more CA certificates as DER. Their times are not looked at: a file does not go bad by waiting.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<Vec<u8>>> {
    let text = reader.text(node, CERTIFICATES)?;
    let certificates = certificates(text);
    if let Err(wrong) = &certificates {
        reader.problem(node.at, format!("{wrong}, expected {CERTIFICATES}"));
    }
    certificates.ok()
}

pub(super) const CERTIFICATES: &str = "one or more CA certificates as PEM text";

fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let blocks = pem::parse_many(text).map_err(|_| "text that is not PEM".to_owned())?;
    // The parser passes over what it cannot make a block of, as the text between blocks.
    if blocks.len() != text.matches(BEGIN).count() || blocks.is_empty() {
        return Err("text that is not PEM".to_owned());
    }
    let mut certificates: Vec<Vec<u8>> = Vec::with_capacity(blocks.len());
    for (block, number) in blocks.into_iter().zip(1..) {
        // What it is of is said, never what is in it: it may be a private key.
        if block.tag() != "CERTIFICATE" {
            return Err(format!("PEM block {number} is no certificate but a {:?}", crate::names::short(block.tag())));
        }
        match X509Certificate::from_der(block.contents()) {
            Ok(([], certificate)) if certificate.is_ca() => {}
            Ok(([], _)) => return Err(format!("PEM block {number} is the certificate of no CA")),
            Ok(_) | Err(_) => return Err(format!("PEM block {number} is not an X.509 certificate")),
        }
        if certificates.iter().any(|other| other == block.contents()) {
            return Err(format!("PEM block {number} stands there before"));
        }
        certificates.push(block.into_contents());
    }
    Ok(certificates)
}
