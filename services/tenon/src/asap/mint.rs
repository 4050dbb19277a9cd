//! `tenon asap mint`.

use std::{fs, path::Path};

use mesh_asap::{Algorithm, KeyError, Kid, SigningKey};

use super::{Surroundings, audience};
use crate::{cli, failure::Failure};

/// The token. The private key stands in no message.
pub(super) fn mint(args: &cli::Mint, surroundings: &Surroundings) -> Result<String, Failure> {
    let audience = audience(args.audience.as_deref(), surroundings)?;
    let mut key = match &args.key {
        Some(file) => of_file(file, args.kid.clone(), surroundings)?,
        None => of_environment(args.kid.as_ref(), surroundings)?,
    };
    let issuer = match &args.issuer {
        Some(issuer) => Some(issuer.as_str().into()),
        None => surroundings.environment(&["ASAP_ISSUER"])?.issuer,
    };
    if let Some(issuer) = issuer {
        let kid = key.kid().clone();
        key = key.with_issuer(&issuer).map_err(|_| {
            Failure::usage(format!("the key id {kid} does not start with {issuer}/: the key is somebody else's"))
                .next("give the issuer that owns the key, or the key of this issuer")
        })?;
    }
    if let Some(algorithm) = args.algorithm.as_deref().and_then(Algorithm::from_name) {
        let usual = key.algorithm().name();
        key = key.with_algorithm(algorithm).map_err(|_| {
            Failure::usage(format!("{} does not fit this key", algorithm.name()))
                .next(format!("leave out --algorithm: the key signs {usual}"))
        })?;
    }
    Ok(key.mint(&audience, surroundings.now, args.lifetime))
}

fn of_file(file: &Path, kid: Option<Kid>, surroundings: &Surroundings) -> Result<SigningKey, Failure> {
    let name = file.display().to_string();
    let text =
        zeroize::Zeroizing::new(fs::read_to_string(file).map_err(|error| {
            Failure::new(format!("cannot read {name}: {error}")).next("name a PEM file with --key")
        })?);
    if text.starts_with("data:") {
        let key = SigningKey::from_data_uri(text.trim_end()).map_err(|error| unusable(&name, &error))?;
        return same_kid(key, kid.as_ref());
    }
    let kid = match kid {
        Some(kid) => kid,
        None => surroundings
            .environment(&["ASAP_KEY_ID"])?
            .key_id
            .ok_or_else(|| Failure::usage("no key id").next("give --kid, or set ASAP_KEY_ID"))?,
    };
    for (tag, form) in [
        ("BEGIN RSA PRIVATE KEY", "PKCS#1"),
        ("BEGIN EC PRIVATE KEY", "SEC 1"),
        ("BEGIN EC PARAMETERS", "SEC 1"),
        ("BEGIN ENCRYPTED PRIVATE KEY", "encrypted"),
    ] {
        if text.contains(tag) {
            return Err(Failure::new(format!("{name} is {form}, and PKCS#8 without a passphrase is wanted"))
                .next(format!("openssl pkcs8 -topk8 -nocrypt -in {name} -out key.pem")));
        }
    }
    SigningKey::from_pkcs8_pem(kid, &text).map_err(|error| unusable(&name, &error))
}

fn of_environment(kid: Option<&Kid>, surroundings: &Surroundings) -> Result<SigningKey, Failure> {
    let names: &[_] = if kid.is_some() { &["ASAP_PRIVATE_KEY"] } else { &["ASAP_PRIVATE_KEY", "ASAP_KEY_ID"] };
    let mut environment = surroundings.environment(names)?;
    let in_uri = environment.private_key.as_ref().is_some_and(|key| key.starts_with("data:"));
    if !in_uri && let Some(kid) = kid {
        environment.key_id = Some(kid.clone());
    }
    let key = environment.signing_key().map_err(|error| Failure::new(error.to_string()).next(HOW))?;
    let key = key.ok_or_else(|| Failure::usage("no private key").next("give --key, or set ASAP_PRIVATE_KEY"))?;
    same_kid(key, kid)
}

const HOW: &str = "give a data URI data:application/pkcs8;kid=<kid>;base64,<PKCS#8>, or PEM and its id";

fn same_kid(key: SigningKey, kid: Option<&Kid>) -> Result<SigningKey, Failure> {
    match kid {
        Some(kid) if kid != key.kid() => {
            Err(Failure::usage(format!("--kid is {kid}, and the data URI is of the key {}", key.kid()))
                .next("leave out --kid"))
        }
        _ => Ok(key),
    }
}

fn unusable(name: &str, error: &KeyError) -> Failure {
    if matches!(error, KeyError::Issuer) {
        return Failure::usage(error.to_string())
            .next("give a --kid like partner/2026-05, where partner is the issuer");
    }
    Failure::new(format!("{name}: {error}"))
        .next("make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256")
}
