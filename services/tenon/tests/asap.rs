//! `tenon asap` as a shell sees it: what goes to which stream, exit codes, and that private keys go nowhere.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_asap::{Kid, SigningKey};
use mesh_identity::{
    clock,
    repository::testing::{KeyServer, Reply, WebCa},
};
use serde_json::{Value, json};

const KID: &str = "partner/team/2026";

/// A folder with a key of `partner`, its public half below `keys`.
struct Place {
    dir: tempfile::TempDir,
    key: SigningKey,
    /// Without any variable but these.
    variables: Vec<(&'static str, String)>,
}

impl Place {
    fn new() -> Self {
        let key = SigningKey::generate("partner").unwrap();
        let key = SigningKey::from_pkcs8(KID.parse().unwrap(), &key.pkcs8()).unwrap().with_issuer("partner").unwrap();
        let place = Self { dir: tempfile::tempdir().unwrap(), key, variables: Vec::new() };
        place.write("partner.pem", &place.private());
        place.write(&format!("keys/{KID}"), &place.public());
        place
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn private(&self) -> String {
        pem::encode(&pem::Pem::new("PRIVATE KEY", self.key.pkcs8().as_slice()))
    }

    fn public(&self) -> String {
        pem::encode(&pem::Pem::new("PUBLIC KEY", self.key.public_spki()))
    }

    /// Runs `tenon asap ...` in the folder.
    fn asap(&self, line: &str, input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("ASAP_") || name.starts_with("TENON_")) {
                command.env_remove(name);
            }
        }
        command.arg("asap").args(line.split_whitespace()).current_dir(self.dir.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Who does not read it has closed it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let said = [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
        let secret = STANDARD.encode(self.key.pkcs8().as_slice());
        assert!(!said.contains(&secret[40..80]), "the private key was printed by {line}: {said}");
        output
    }

    /// The token alone.
    fn minted(&self, line: &str) -> String {
        let output = self.asap(line, "");
        assert!(output.status.success(), "{line}: {}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let token = text.strip_suffix('\n').unwrap();
        assert_eq!(token.split('.').count(), 3, "{text}");
        token.to_owned()
    }

    fn inspected(&self, token: &str) -> Value {
        let output = self.asap("inspect", token);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What `verify` prints, with its exit code.
    fn verified(&self, line: &str, token: &str) -> (Value, i32) {
        let output = self.asap(&format!("verify {line}"), token);
        let printed = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{line}: {}", said(&output)));
        (printed, output.status.code().unwrap())
    }

    fn reason(&self, line: &str, token: &str) -> String {
        let (printed, code) = self.verified(line, token);
        assert_eq!((&printed["valid"], code), (&json!(false), 1), "{printed}");
        assert!(printed["message"].is_string(), "{printed}");
        printed["reason"].as_str().unwrap().to_owned()
    }
}

fn said(output: &Output) -> String {
    format!("{:?}: {}", output.status.code(), String::from_utf8_lossy(&output.stderr))
}

const MINT: &str = "mint --issuer partner --audience media --kid partner/team/2026 --key partner.pem";
const VERIFY: &str = "--audience media --keys keys";

#[test]
fn a_token_is_minted_verified_and_inspected() {
    let place = Place::new();
    let token = place.minted(MINT);
    let (printed, code) = place.verified(VERIFY, &token);
    let expires = printed["expires"].as_str().unwrap();
    assert_eq!(code, 0);
    assert_eq!(
        printed,
        json!({
            "valid": true, "reason": null, "issuer": "partner", "subject": "partner", "audience": "media", "kid": KID,
            "expires": expires, "asked": [{"keys": "keys", "answer": "it has the key"}],
        })
    );
    let parts = place.inspected(&format!("{token}\n"));
    assert_eq!(parts["header"], json!({"alg": "ES256", "kid": KID, "typ": "JWT"}));
    assert_eq!((&parts["claims"]["iss"], &parts["claims"]["aud"]), (&json!("partner"), &json!("media")));
    let times = ["iat", "exp"].map(|name| parts["claims"][name].as_u64().unwrap());
    assert_eq!(times[1] - times[0], 300);
    assert_ne!(place.minted(MINT), token, "each has an id of its own");
}

#[test]
fn a17_without_flags_the_variables_count_and_a_flag_wins_over_one() {
    let uri = Place::new();
    let whole = uri.key.to_data_uri().to_string();
    let place = Place { variables: Vec::new(), ..uri }.with("ASAP_PRIVATE_KEY", whole);
    let place = place.with("ASAP_ISSUER", "partner").with("ASAP_AUDIENCE", "media").with("ASAP_KEY_ID", KID);
    let token = place.minted("mint");
    assert_eq!(place.inspected(&token)["claims"]["aud"], "media");
    assert_eq!(place.inspected(&place.minted("mint --audience issues"))["claims"]["aud"], "issues");
    let (printed, code) = place.verified("--keys keys", &token);
    assert_eq!((&printed["valid"], code), (&json!(true), 0), "the audience too is that of the environment: {printed}");
    // Of the id and the issuer, the first is in the URI and the second in the id.
    let key = place.key.to_data_uri().to_string();
    let bare = Place { variables: vec![("ASAP_PRIVATE_KEY", key)], ..place };
    assert_eq!(bare.inspected(&bare.minted("mint --audience media"))["claims"]["iss"], "partner/team");

    let pem = Place::new();
    let private = pem.private();
    let pem = pem.with("ASAP_PRIVATE_KEY", private).with("ASAP_KEY_ID", "partner/other");
    assert_eq!(pem.inspected(&pem.minted("mint --audience media"))["header"]["kid"], "partner/other");
    assert_eq!(pem.inspected(&pem.minted(&format!("mint --audience media --kid {KID}")))["header"]["kid"], KID);
}

#[test]
fn a17_variables_that_say_nothing_useful_are_named_and_the_key_in_them_is_not() {
    let key = || SigningKey::generate("partner").unwrap().to_data_uri().to_string();
    let other = |place: Place| place.with("ASAP_PRIVATE_KEY", key());
    for (place, line, code, says) in [
        (Place::new(), "mint --audience media", 2, "give --key, or set ASAP_PRIVATE_KEY"),
        (Place::new(), "mint", 2, "give --audience, or set ASAP_AUDIENCE"),
        (Place::new(), "mint --audience media --key partner.pem", 2, "give --kid, or set ASAP_KEY_ID"),
        (Place::new().with("ASAP_PRIVATE_KEY", "data:nothing"), "mint --audience media", 1, "ASAP_PRIVATE_KEY"),
        (Place::new().with("ASAP_PRIVATE_KEY", "MIGHAgEAMBMG"), "mint --audience media", 1, "ASAP_KEY_ID is not set"),
        (Place::new().with("ASAP_KEY_ID", "a//b"), "mint --audience media --key partner.pem", 2, "ASAP_KEY_ID: "),
        (other(Place::new()).with("ASAP_KEY_ID", KID), "mint --audience media", 1, "ASAP_KEY_ID is not the key id"),
        (other(Place::new()), "mint --audience media --kid partner/x", 2, "leave out --kid"),
        (Place::new(), "verify --audience media", 2, "give --keys, or set ASAP_PUBLIC_KEY_REPOSITORY_URL"),
        (Place::new(), "verify --keys keys", 2, "give --audience, or set ASAP_AUDIENCE"),
        (
            Place::new().with("ASAP_PUBLIC_KEY_REPOSITORY_URL", "keys.example"),
            "verify --audience media",
            2,
            "ASAP_PUBLIC_KEY_REPOSITORY_URL",
        ),
    ] {
        let output = place.asap(line, "");
        assert_eq!(output.status.code(), Some(code), "{line}: {}", said(&output));
        assert!(said(&output).contains(says), "{line}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{line}");
    }
}

#[test]
fn flags_and_files_that_cannot_be_used_are_told_with_what_to_do() {
    let place = Place::new();
    let private = place.private();
    place.write("pkcs1.pem", &private.replace("PRIVATE KEY", "RSA PRIVATE KEY"));
    place.write("encrypted.pem", &private.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    place.write("public.pem", &place.public());
    place.write("empty.pem", "");
    let mint = |more: &str| format!("mint --audience media --kid {KID} {more}");
    for (line, code, says) in [
        (mint("--key missing.pem"), 1, "cannot read missing.pem"),
        (mint("--key pkcs1.pem"), 1, "openssl pkcs8 -topk8 -nocrypt -in pkcs1.pem"),
        (mint("--key encrypted.pem"), 1, "encrypted.pem is encrypted"),
        (mint("--key public.pem"), 1, "public.pem"),
        (mint("--key empty.pem"), 1, "openssl genpkey"),
        (mint("--key partner.pem --issuer media"), 2, "does not start with media/"),
        (mint("--key partner.pem --algorithm RS256"), 2, "RS256 does not fit this key"),
        (mint("--key partner.pem --algorithm HS256"), 2, "possible values: RS256"),
        (mint("--key partner.pem --lifetime 61m"), 2, "1h at most"),
        (mint("--key partner.pem --kid ../x"), 2, "--kid"),
        ("verify --audience media --keys keys --leeway 31s".into(), 2, "30s at most"),
        ("verify --audience media --keys keys --ca missing.pem".into(), 1, "missing.pem: cannot be read"),
        ("verify --audience media --keys keys --ca empty.pem".into(), 1, "has no certificate"),
        ("verify --audience media --keys http://keys.example/".into(), 2, "must begin with https://"),
        ("nonsense".into(), 2, "nonsense"),
    ] {
        let output = place.asap(&line, "");
        assert_eq!(output.status.code(), Some(code), "{line}: {}", said(&output));
        assert!(said(&output).contains(says), "{line}: {}", said(&output));
    }
    assert_eq!(place.asap("inspect", "no token").status.code(), Some(1));
}

#[test]
fn every_refusal_is_json_with_its_reason() {
    let place = Place::new();
    let token = place.minted(MINT);
    let now = clock::unix_seconds();
    let key = &place.key;
    place.write("keys/partner/bad", "not a key");
    fs::create_dir_all(place.path("empty")).unwrap();
    let with_kid =
        |kid: &str| SigningKey::from_pkcs8(kid.parse::<Kid>().unwrap(), &key.pkcs8()).unwrap().mint("media", now, 300);
    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    let stranger = SigningKey::generate("partner").unwrap();
    let stranger = SigningKey::from_pkcs8(KID.parse().unwrap(), &stranger.pkcs8()).unwrap();
    for (line, token, reason) in [
        (VERIFY, "", "ASAP_MISSING"),
        (VERIFY, "\n", "ASAP_MISSING"),
        (VERIFY, "a.b", "ASAP_MALFORMED"),
        (VERIFY, &format!(" {token}"), "ASAP_MALFORMED"),
        (VERIFY, &"a".repeat(9000), "ASAP_MALFORMED"),
        (VERIFY, &"a".repeat(90_000), "ASAP_MALFORMED"),
        (VERIFY, "eyJhbGciOiJub25lIn0.e30.", "ASAP_ALGORITHM"),
        (VERIFY, &with_kid("partner/none"), "ASAP_KEY_UNKNOWN"),
        (VERIFY, &with_kid("partner/team"), "ASAP_KEY_UNKNOWN"),
        (VERIFY, &with_kid("partner/bad"), "ASAP_KEYS_UNAVAILABLE"),
        ("--audience media --keys empty --keys missing", &token, "ASAP_KEYS_UNAVAILABLE"),
        ("--audience media --keys empty", &token, "ASAP_KEY_UNKNOWN"),
        (VERIFY, &forged, "ASAP_SIGNATURE"),
        (VERIFY, &stranger.mint("media", now, 300), "ASAP_SIGNATURE"),
        (VERIFY, &key.mint("media", now - 311, 300), "ASAP_EXPIRED"),
        (VERIFY, &key.mint("media", now + 60, 300), "ASAP_NOT_YET_VALID"),
        (VERIFY, &key.mint("media", now, 3601), "ASAP_LIFETIME"),
        ("--audience issues --keys keys", &token, "ASAP_AUDIENCE"),
    ] {
        assert_eq!(place.reason(line, token), reason, "{line} {token}");
    }
    // 4 s past its end, to leave a second for the command: within the usual leeway, and not without any.
    let late = key.mint("media", now - 304, 300);
    assert_eq!(place.verified(&format!("{VERIFY} --leeway 30s"), &late).1, 0);
    assert_eq!(place.reason(&format!("{VERIFY} --leeway 0s"), &late), "ASAP_EXPIRED");
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_asked_in_order_and_each_says_what_it_said() {
    let ca = WebCa::new();
    let (first, second) = (KeyServer::start(&ca).await, KeyServer::start(&ca).await);
    let place = Place::new();
    place.write("ca.pem", &ca.pem());
    let token = place.minted(MINT);
    first.tell(KID, Reply::status(503));
    let base = first.url();
    // Typed without the slash.
    let line = format!("--audience media --ca ca.pem --keys {} --keys {}", base.trim_end_matches('/'), second.url());
    let (printed, _) = place.verified(&line, &token);
    assert_eq!(printed["reason"], "ASAP_KEYS_UNAVAILABLE");
    let answers: Vec<_> = printed["asked"].as_array().unwrap().iter().map(|asked| &asked["answer"]).collect();
    assert_eq!(answers, ["it answered 503 Service Unavailable", "it answered 404 Not Found: it has no such key"]);

    second.tell(KID, Reply::key(&place.public()));
    assert_eq!(place.verified(&line, &token).1, 0);
    assert_eq!(second.asked().len(), 2);
    let (printed, code) = place.verified(&format!("{line} --keys keys"), &token);
    assert_eq!((printed["asked"].as_array().unwrap().len(), code), (2, 0), "nobody is asked once the key is there");
    assert_eq!(place.verified(&line, "a.b.c").0["asked"], Value::Null, "nobody is asked for a token that cannot pass");
    assert_eq!(second.asked().len(), 3);

    // Without --ca those that the system trusts count, and this server's authority is not among them.
    let (printed, _) = place.verified(&format!("--audience media --keys {}", second.url()), &token);
    assert_eq!(printed["reason"], "ASAP_KEYS_UNAVAILABLE", "{printed}");

    let bare = Place::new().with("SSL_CERT_FILE", "missing.pem").with("SSL_CERT_DIR", "missing");
    let output = bare.asap(&format!("verify --audience media --keys {}", second.url()), &token);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("name a PEM file of CA certificates with --ca"), "{}", said(&output));

    // As services have it in their environment.
    let place = place.with("ASAP_PUBLIC_KEY_REPOSITORY_URL", first.url());
    let place = place.with("ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL", second.url());
    assert_eq!(place.verified("--audience media --ca ca.pem", &token).1, 0);
}

#[test]
fn a_token_of_an_rsa_key_is_minted_with_the_algorithm_that_was_asked_for() {
    let place = Place::new();
    let rsa = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
    place.write("rsa.pem", &pem::encode(&pem::Pem::new("PRIVATE KEY", rsa.as_ref())));
    let line = |more: &str| format!("mint --audience media --kid partner/rsa --key rsa.pem {more}");
    assert_eq!(place.inspected(&place.minted(&line("")))["header"]["alg"], "RS256");
    assert_eq!(place.inspected(&place.minted(&line("--algorithm PS512")))["header"]["alg"], "PS512");
}
