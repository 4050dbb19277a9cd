//! `tenon asap`: flags and help texts.

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use jiff::SignedDuration;
use mesh_asap::{Algorithm, DEFAULT_LIFETIME_SECONDS, Kid, MAX_LEEWAY_SECONDS, MAX_LIFETIME_SECONDS};

#[derive(Debug, Subcommand)]
pub enum Asap {
    Mint(Mint),
    Verify(Verify),
    Inspect(Inspect),
}

/// Make a token and print it alone.
///
/// What no flag says is taken from the variables that ASAP libraries share: ASAP_ISSUER, ASAP_AUDIENCE, ASAP_KEY_ID and
/// ASAP_PRIVATE_KEY, which is a data URI with the key's id in it, or PEM. No mesh is needed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon asap mint --issuer partner --audience media --kid partner/2026-05 --key partner.pem\n  ASAP_PRIVATE_KEY=\"$(cat key.uri)\" tenon asap mint --audience media\n  curl -H \"authorization: Bearer $(tenon asap mint --audience media)\" https://media.example/\n\nA key of your own: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out partner.pem\nIts public half, as a key repository serves it:\n  openssl pkey -in partner.pem -pubout -out keys/partner/2026-05"
)]
pub struct Mint {
    /// Who the token is from (`iss`), a service that owns the key [default: ASAP_ISSUER, else what stands before the last
    /// slash of the key's id].
    #[arg(long, value_name = "ISSUER")]
    pub issuer: Option<String>,
    /// Whom the token is for (`aud`) [default: ASAP_AUDIENCE].
    #[arg(long, value_name = "AUDIENCE")]
    pub audience: Option<String>,
    /// Id of the key, which starts with the issuer and a slash [default: ASAP_KEY_ID].
    #[arg(long, value_name = "KID")]
    pub kid: Option<Kid>,
    /// File of the private key: PKCS#8 PEM, RSA or P-256, P-384, P-521 [default: ASAP_PRIVATE_KEY].
    #[arg(long, value_name = "PEM")]
    pub key: Option<PathBuf>,
    /// How long the token is valid, at most 1h.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = lifetime)]
    pub lifetime: u64,
    /// What to sign with, for RSA keys; each curve has one algorithm [default: RS256].
    #[arg(long, value_name = "ALG", value_parser = algorithms())]
    pub algorithm: Option<String>,
}

/// Check a token that comes on standard input.
///
/// Prints JSON: `valid`, `reason` (null, or the one that a sidecar would refuse with), what the token says when it is
/// valid, and what each place said that was asked for its key. Exits 0 when the token is valid, 1 when it is not.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon asap mint | tenon asap verify --audience media --keys keys\n  tenon asap verify --audience media --keys https://keys.example/ \\\n      --keys https://fallback.example/ < token\n  tenon asap verify --audience media --keys https://127.0.0.1:15011/ --ca bundle.pem < token\n\nA folder holds the public key DIR/<kid>, as a key repository serves it."
)]
pub struct Verify {
    /// Whom the token must be for [default: ASAP_AUDIENCE].
    #[arg(long, value_name = "AUDIENCE")]
    pub audience: Option<String>,
    /// Where public keys are: a folder, or the base URL of a key repository (https). Several are asked in this order
    /// [default: ASAP_PUBLIC_KEY_REPOSITORY_URL, then ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL].
    #[arg(long, value_name = "DIR_OR_URL")]
    pub keys: Vec<String>,
    /// Certificates (PEM) that the repositories' certificates chain to [default: those that the system trusts].
    #[arg(long, value_name = "PEM")]
    pub ca: Option<PathBuf>,
    /// How far clocks may be apart, at most 30s.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = leeway)]
    pub leeway: u64,
}

/// Show what stands in a token that comes on standard input, as JSON. Nothing is verified.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon asap mint | tenon asap inspect")]
pub struct Inspect {}

fn algorithms() -> PossibleValuesParser {
    PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name))
}

fn lifetime(text: &str) -> Result<u64, String> {
    match seconds(text)? {
        0 => Err("a token must be valid for a second at least".into()),
        seconds if seconds > MAX_LIFETIME_SECONDS => Err("a token is valid for 1h at most".into()),
        seconds => Ok(seconds),
    }
}

fn leeway(text: &str) -> Result<u64, String> {
    match seconds(text)? {
        seconds if seconds > MAX_LEEWAY_SECONDS => Err(format!("a leeway is {MAX_LEEWAY_SECONDS}s at most")),
        seconds => Ok(seconds),
    }
}

/// Whole seconds of `5s`, `2m30s`.
fn seconds(text: &str) -> Result<u64, String> {
    let duration: SignedDuration =
        text.parse().map_err(|_| "not a duration with its unit, like 5s or 2m".to_owned())?;
    match u64::try_from(duration.as_secs()) {
        Ok(seconds) if duration.subsec_nanos() == 0 => Ok(seconds),
        _ => Err("expected whole seconds, not negative".into()),
    }
}

const _: () = assert!(DEFAULT_LIFETIME_SECONDS == 300, "the default of --lifetime is that of the mesh");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_a_limit() {
        assert_eq!((lifetime("1h"), lifetime("2m30s"), leeway("0s")), (Ok(3600), Ok(150), Ok(0)));
        assert_eq!((leeway("30s"), leeway("5 seconds")), (Ok(30), Ok(5)));
        for wrong in ["31s", "5", "", "-1s", "1500ms", "soon"] {
            assert!(leeway(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0s", "3601s", "1d"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
