//! `tenon asap`: tokens by hand, with the code that sidecars mint and verify with. No mesh is needed.

mod keys;
mod mint;

use std::io::{self, Read as _};

use mesh_asap::{Expect, Lookup, MAX_TOKEN_BYTES, VerifyError, env::Environment, precheck, verify};
use mesh_identity::clock;
use serde::Serialize;
use serde_json::{Map, Value};

use self::keys::{Asked, Sources};
use crate::{
    cli::{self, Format},
    failure::{Answer, Failure},
    output::{Output, rfc3339},
};

/// Where the environment and the time come from: the process, or a test.
struct Surroundings {
    /// The variables whose names begin with `ASAP_`.
    variables: Vec<(String, String)>,
    /// Unix seconds.
    now: u64,
}

/// `tenon asap`.
///
/// # Errors
/// Wrong usage, or files that cannot be read. A token that is not valid is an answer.
pub async fn run(command: cli::Asap) -> Result<Answer, Failure> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("ASAP_"))?;
        Some((name, value.into_string().ok()?))
    });
    let surroundings = Surroundings { variables: variables.collect(), now: clock::unix_seconds() };
    let mut out = Output::stdout(Format::Json);
    let answer = match command {
        cli::Asap::Mint(args) => {
            out.line(&mint::mint(&args, &surroundings)?)?;
            Answer::Yes
        }
        cli::Asap::Verify(args) => {
            let sources = Sources::of(&args, &surroundings)?;
            let audience = audience(args.audience.as_deref(), &surroundings)?;
            let verdict = verdict(&token()?, &audience, args.leeway, sources, surroundings.now).await;
            out.json(&verdict)?;
            verdict.valid.into()
        }
        cli::Asap::Inspect(cli::Inspect {}) => {
            let inspected = mesh_asap::inspect(&token()?).map_err(|error| {
                Failure::new(format!("this is not a token: {error}"))
                    .next("give the token alone on standard input, without \"Bearer \" before it")
            })?;
            out.json(&Parts { header: inspected.header, claims: inspected.claims })?;
            Answer::Yes
        }
    };
    out.flush()?;
    Ok(answer)
}

/// What `inspect` prints.
#[derive(Debug, Serialize)]
struct Parts {
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

/// What `verify` prints.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    valid: bool,
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audience: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    /// What each place said that was asked for the key; none when the token fails before that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asked: Vec<Asked>,
}

/// As a sidecar would decide, without a channel to bind the token to.
async fn verdict(token: &str, audience: &str, leeway_seconds: u64, sources: Sources, now: u64) -> Verdict {
    if token.is_empty() {
        let message = Some("there is no token on standard input".to_owned());
        return Verdict { reason: Some("ASAP_MISSING"), message, ..Verdict::default() };
    }
    let refused = |error: &VerifyError, asked| Verdict {
        reason: Some(error.reason()),
        message: Some(error.to_string()),
        asked,
        ..Verdict::default()
    };
    // No key is asked for a token that fails without one.
    let kid = match precheck(token) {
        Ok(checked) => checked.kid,
        Err(error) => return refused(&error, Vec::new()),
    };
    let (lookup, asked) = sources.ask(&kid).await;
    let keys = |_: &str| -> Lookup { lookup.clone() };
    let expect = Expect { leeway_seconds, ..Expect::new(audience, None) };
    match verify(token, &expect, &keys, now) {
        Ok(verified) => Verdict {
            valid: true,
            issuer: Some(verified.issuer),
            subject: Some(verified.subject),
            audience: Some(verified.audience),
            kid: Some(verified.kid),
            expires: Some(rfc3339(verified.expires_at)),
            asked,
            ..Verdict::default()
        },
        Err(error) => refused(&error, asked),
    }
}

/// The token on standard input, without the end of its line.
fn token() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    // What is longer than any token is refused like one that is a little too long.
    let most = u64::try_from(2 * MAX_TOKEN_BYTES).unwrap_or(u64::MAX);
    io::stdin()
        .lock()
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
    // Bytes that are not UTF-8 become such that stand in no token.
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(&text).to_owned())
}

fn audience(flag: Option<&str>, surroundings: &Surroundings) -> Result<String, Failure> {
    let audience = match flag {
        Some(audience) => audience.to_owned(),
        None => surroundings.environment(&["ASAP_AUDIENCE"])?.audience.map(String::from).unwrap_or_default(),
    };
    if audience.is_empty() {
        return Err(Failure::usage("no audience").next("give --audience, or set ASAP_AUDIENCE"));
    }
    Ok(audience)
}

impl Surroundings {
    /// These variables alone: one that a flag replaces, or that a command does not use, cannot be wrong.
    fn environment(&self, names: &[&str]) -> Result<Environment, Failure> {
        let variables = self.variables.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned();
        Environment::parse(variables).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Failure::usage(problems.join("\n")).next("correct the variable, or give the flag")
        })
    }
}
