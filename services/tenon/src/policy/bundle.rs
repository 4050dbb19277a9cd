//! `tenon policy bundle`: a policy folder in one file, with a signature of each service's record.
//!
//! A bundle is an encoded `tenon.policy.v1.ApplyRequest` that has `files`, in the byte order of their paths, and
//! `signatures`, one for each service in the byte order of their names, and nothing else. So the same folder, key and
//! serial give the same bytes, and `protoc --decode=tenon.policy.v1.ApplyRequest` shows what is in it.

use std::{fs, io::Read as _, path::Path};

use mesh_config::{Mesh, SourceFile, compile};
use mesh_identity::policy_signature::{PublicKey, SignatureError, public_key, sign, signed_part, verify};
use prost::Message as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use tenon_proto::{
    kind,
    policy::v1::{ApplyRequest, PolicyFile, RecordSignature},
};

use super::{LARGEST_POLICY, load, problems_of, words::hex};
use crate::{
    cli::{BundleCommand, PolicyBundle, VerifyBundle},
    failure::{Answer, Failure},
    output::{Output, rfc3339},
};

/// Runs the command. Verifying answers with exit code 1 when the bundle is not what the key's owner signed.
///
/// # Errors
/// Files that cannot be read or written, keys that are none, problems of the policy.
pub fn run(args: PolicyBundle) -> Result<Answer, Failure> {
    if let Some(BundleCommand::Verify(args)) = &args.command {
        return verified(args);
    }
    let (Some(folder), Some(sign), Some(out)) = (&args.folder, &args.sign, &args.out) else {
        // clap wants them all.
        return Err(Failure::usage("give a folder, a key and where to write the bundle"));
    };
    make(&args, folder, sign, out)
}

fn make(args: &PolicyBundle, folder: &Path, sign_with: &Path, to: &Path) -> Result<Answer, Failure> {
    let mesh = load(folder)?;
    let files = mesh_config::read_folder(folder).map_err(|problems| problems_of(folder, &problems))?;
    let key = PrivatePkcs8KeyDer::from_pem_file(sign_with).map_err(|error| {
        Failure::new(format!("cannot read the private key {}: {error}", sign_with.display())).next(MAKE_A_KEY)
    })?;
    let unusable =
        |error: SignatureError| Failure::new(format!("{} cannot sign: {error}", sign_with.display())).next(MAKE_A_KEY);
    let public = public_key(key.secret_pkcs8_der()).map_err(unusable)?;
    let serial = args.serial.unwrap_or_else(mesh_identity::clock::unix_seconds);
    let bytes = bundle(files, &mesh, key.secret_pkcs8_der(), serial).map_err(unusable)?;
    write(to, &bytes)?;
    let (services, key_id) = (mesh.services().len(), hex(public.id()));
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "bundle": to, "bytes": bytes.len(), "services": services, "serial": serial, "keyId": key_id,
        }))?;
    } else {
        let shown = to.display();
        out.line(&format!("{shown}: {services} services signed with key {key_id}, serial {serial}"))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

const MAKE_A_KEY: &str = "expected Ed25519 in PKCS #8 PEM: openssl genpkey -algorithm ed25519 -out policy.key";

fn bundle(files: Vec<SourceFile>, mesh: &Mesh, key: &[u8], serial: u64) -> Result<Vec<u8>, SignatureError> {
    let records = compile(mesh).allowlists;
    let signed = records.iter().map(|(name, record)| sign(key, kind::ALLOWLIST, name, serial, &signed_part(record)));
    let signatures = signed.collect::<Result<_, _>>()?;
    let mut files: Vec<_> = files.into_iter().map(|file| PolicyFile { path: file.path, text: file.text }).collect();
    files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(ApplyRequest { files, signatures, ..ApplyRequest::default() }.encode_to_vec())
}

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        use std::io::Write as _;
        use std::os::unix::fs::PermissionsExt as _;
        let mut file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o644)).tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    };
    write().map(drop).map_err(|error| {
        Failure::new(format!("cannot write {}: {error}", path.display()))
            .next("make the folder writable and free some space, or name another file with --out")
    })
}

/// Reads a bundle for `tenon policy apply`. Who signed it is judged by the policy service and by the sidecars.
///
/// # Errors
/// The file is none, or its policy has problems.
pub(super) fn open(file: &Path) -> Result<(Vec<PolicyFile>, Vec<RecordSignature>, Mesh), Failure> {
    let shown = file.display();
    let next = "make one with `tenon policy bundle -f DIR --sign KEY.pem --out FILE`";
    let unreadable = |error| Failure::new(format!("cannot read {shown}: {error}")).next(next);
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(unreadable)?;
    opened.take(LARGEST_POLICY as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let bundle = ApplyRequest::decode(bytes.as_slice()).ok().filter(|bundle| {
        // What a bundle does not say must not be said by it.
        let bare = bundle.expected.is_none() && bundle.plan.is_none() && bundle.note.is_empty();
        let canonical = bundle.files.is_sorted_by(|one, other| one.path < other.path);
        bare && canonical && !bundle.files.is_empty() && bundle.encode_to_vec() == bytes
    });
    let Some(ApplyRequest { files, signatures, .. }) = bundle else {
        return Err(Failure::new(format!("{shown} is no bundle, or is damaged")).next(next));
    };
    let sources: Vec<_> =
        files.iter().map(|file| SourceFile { path: file.path.clone(), text: file.text.clone() }).collect();
    let mesh = mesh_config::parse(&sources).map_err(|problems| {
        Failure::new(format!("the policy in {shown} cannot be used\n{}", problems.below(file)))
            .next("correct the folder that it was made from, and make it anew")
    })?;
    Ok((files, signatures, mesh))
}

fn verified(args: &VerifyBundle) -> Result<Answer, Failure> {
    let next = "expected PEM: openssl pkey -in policy.key -pubout -out policy.pub";
    let shown = args.key.display();
    let text = fs::read(&args.key).map_err(|error| Failure::new(format!("cannot read {shown}: {error}")).next(next))?;
    let keys = PublicKey::all_from_pem(&text).map_err(|error| Failure::new(format!("{shown}: {error}")).next(next))?;
    let (files, signatures, mesh) = open(&args.file)?;
    let (problems, serial) = (wrong(&mesh, &signatures, &keys), signatures.first().map(|signature| signature.serial));
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "valid": problems.is_empty(),
            "problems": problems,
            "serial": serial,
            "keyId": signatures.first().map(|signature| hex(&signature.key_id)),
            "services": mesh.services().len(),
            "files": files.iter().map(|file| &file.path).collect::<Vec<_>>(),
        }))?;
    } else if problems.is_empty() {
        let (services, signed) = (mesh.services().len(), rfc3339(serial.unwrap_or_default()));
        out.line(&format!(
            "{}: mesh {}, {services} services, signed {signed} with this key",
            args.file.display(),
            mesh.name()
        ))?;
    }
    out.flush()?;
    if problems.is_empty() {
        return Ok(Answer::Yes);
    }
    if out.is_json() {
        return Ok(Answer::No);
    }
    Err(Failure::new(format!(
        "{} is not what the owner of the key signed\n{}",
        args.file.display(),
        problems.join("\n")
    ))
    .next("get the bundle from its source again, or name the key that it was signed with"))
}

/// One line for each signature that does not fit.
fn wrong(mesh: &Mesh, signatures: &[RecordSignature], keys: &[PublicKey]) -> Vec<String> {
    let records = compile(mesh).allowlists;
    if records.len() != signatures.len() {
        return vec![format!("{} signatures for {} services, expected one for each", signatures.len(), records.len())];
    }
    let mut problems: Vec<_> = records
        .iter()
        .zip(signatures)
        .filter_map(|((name, record), signature)| {
            let checked = verify(keys, kind::ALLOWLIST, name, &signed_part(record), signature);
            checked.err().map(|error| format!("the signature of service {name}: {error}"))
        })
        .collect();
    if signatures.iter().any(|signature| signature.serial != signatures[0].serial) {
        problems.push("signatures of several serials, expected one".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::Ed25519KeyPair;

    use super::*;

    const POLICY: &str = "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {name: demo}\n\
        spec: {trustDomain: demo.example, regions: [us-east]}\n---\n\
        apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: media}\nspec: {}\n---\n\
        apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: wiki}\nspec: {}\n";

    fn key() -> (Vec<u8>, PublicKey) {
        let key = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref().to_vec();
        let public = public_key(&key).unwrap();
        (key, public)
    }

    fn files(text: &str) -> Vec<SourceFile> {
        let tests = "# nothing yet\n";
        [("b.yaml", tests), ("a.yaml", text)]
            .map(|(path, text)| SourceFile { path: path.into(), text: text.into() })
            .into()
    }

    fn made(text: &str, key: &[u8], serial: u64) -> Vec<u8> {
        let files = files(text);
        let mesh = mesh_config::parse(&files).unwrap();
        bundle(files, &mesh, key, serial).unwrap()
    }

    fn open_bytes(bytes: &[u8]) -> Result<(Vec<PolicyFile>, Vec<RecordSignature>, Mesh), Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        open(file.path())
    }

    #[test]
    fn the_same_folder_key_and_serial_give_the_same_bytes() {
        let (key, _) = key();
        assert_eq!(made(POLICY, &key, 7), made(POLICY, &key, 7));
        assert_ne!(made(POLICY, &key, 7), made(POLICY, &key, 8));
    }

    #[test]
    fn a_bundle_fits_its_key_and_no_other_and_no_changed_file() {
        let (key, public) = key();
        let bytes = made(POLICY, &key, 7);
        let (_, signatures, mesh) = open_bytes(&bytes).unwrap();
        let keys = [public];
        assert_eq!(wrong(&mesh, &signatures, &keys), [""; 0]);
        let other = [self::key().1];
        assert_eq!(wrong(&mesh, &signatures, &other).len(), 2);
        assert_eq!(wrong(&mesh, &signatures[1..], &keys), ["1 signatures for 2 services, expected one for each"]);
        let mixed = [made(POLICY, &key, 8), bytes].map(|bytes| open_bytes(&bytes).unwrap().1.remove(0));
        let mixed = [mixed[0].clone(), open_bytes(&made(POLICY, &key, 7)).unwrap().1.remove(1)];
        assert_eq!(wrong(&mesh, &mixed, &keys), ["signatures of several serials, expected one"]);

        let changed = mesh_config::parse(&files(
            &POLICY.replace("{name: media}\nspec: {}", "{name: media}\nspec: {originates: false}"),
        ));
        assert_eq!(wrong(&changed.unwrap(), &signatures, &keys).len(), 1, "one of both services is another");
    }

    #[test]
    fn what_is_no_bundle_is_not_taken_for_one() {
        let (key, _) = key();
        let good = made(POLICY, &key, 7);
        let with_note =
            ApplyRequest { note: "x".into(), ..ApplyRequest::decode(good.as_slice()).unwrap() }.encode_to_vec();
        for bytes in
            [b"".as_slice(), b"nonsense", &good[..good.len() - 1], &[good.as_slice(), &[0x78, 1]].concat(), &with_note]
        {
            let failure = open_bytes(bytes).unwrap_err().to_string();
            assert!(failure.contains("is no bundle, or is damaged"), "{failure}");
        }
    }
}
