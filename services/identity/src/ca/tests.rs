use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::SanType;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificates::{ISSUING_LIFETIME, ROOT_LIFETIME};
use super::*;
use crate::CsrError;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

fn domain() -> TrustDomain {
    "demo.example".parse().unwrap()
}

fn create(dir: &Path) -> Ca {
    Ca::create(dir, &domain(), None, NOW).unwrap()
}

fn media() -> SpiffeId {
    "spiffe://demo.example/svc/media".parse().unwrap()
}

fn request() -> Csr {
    let key = KeyPair::generate().unwrap();
    Csr::parse(CertificateParams::default().serialize_request(&key).unwrap().der()).unwrap()
}

#[test]
fn a_root_is_a_ca_of_its_trust_domain_for_ten_years_and_only_its_owner_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(&dir.path().join("new/ca"));
    let bundle = ca.bundle();
    let (_, root) = X509Certificate::from_der(&bundle.roots()[0]).unwrap();
    assert!(root.is_ca());
    assert!(root.verify_signature(None).is_ok());
    assert_eq!(root.key_usage().unwrap().unwrap().value.flags, 1 << 5, "keyCertSign alone");
    let names = &root.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://demo.example")]);
    let life = root.validity().not_after.timestamp() - root.validity().not_before.timestamp();
    assert_eq!(life, 3653 * 86_400 + 300);
    for file in fs::read_dir(dir.path().join("new/ca")).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.path().display());
    }
    let files = ["ca.json", "issuing-1.key", "issuing-1.pem", "lock", "root.key", "root.pem"];
    assert_eq!(names_in(&dir.path().join("new/ca")), files, "nothing else is left behind");
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_issuing_ca_is_signed_by_the_root_for_thirty_days_and_signs_no_further_ca() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let chain = ca.issue(&request(), &media(), SVID_LIFETIME, NOW).unwrap().chain;
    let bundle = ca.bundle();
    let (_, root) = X509Certificate::from_der(&bundle.roots()[0]).unwrap();
    let (_, issuing) = X509Certificate::from_der(&chain[1]).unwrap();
    assert!(issuing.verify_signature(Some(root.public_key())).is_ok());
    let constraints = issuing.basic_constraints().unwrap().unwrap().value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    assert_eq!(issuing.key_usage().unwrap().unwrap().value.flags, 1 << 5, "keyCertSign alone");
    assert!(issuing.extended_key_usage().unwrap().is_none());
    // X509-SVID §4: the ID of a signing certificate has no path.
    let names = &issuing.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://demo.example")]);
    assert_eq!(issuing.validity().not_after.timestamp(), i64::try_from(NOW + 30 * 86_400).unwrap());
    assert_eq!(bundle.rotation().issuing_authority, Some(certificates::sha256(&chain[1])));
    assert_eq!(bundle.rotation().sequence, 1);
}

#[test]
fn an_svid_has_one_uri_name_both_usages_an_hour_and_a_serial_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let issued = ca.issue(&request(), &media(), SVID_LIFETIME, NOW).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let (_, issuing) = X509Certificate::from_der(&issued.chain[1]).unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert!(leaf.verify_signature(Some(issuing.public_key())).is_ok());
    assert!(!leaf.is_ca());
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    let (uri, dns) = ("spiffe://demo.example/svc/media", "media.svc.demo.example");
    assert_eq!(names[..], [GeneralName::URI(uri), GeneralName::DNSName(dns)]);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && usage.other.is_empty());
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature alone");
    assert_eq!(leaf.validity().not_before.timestamp(), i64::try_from(NOW - 300).unwrap());
    assert_eq!(leaf.validity().not_after.timestamp(), i64::try_from(NOW + HOUR).unwrap());
    assert!(
        leaf.extensions().iter().any(|e| matches!(e.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(_)))
    );
    assert_eq!(issued.not_after, NOW + HOUR);
    assert!(leaf.raw_serial().len() > 12, "a serial of 128 random bits");
    assert!(leaf.raw_serial_as_string().replace(':', "").trim_start_matches("00").ends_with(&issued.serial));

    let again = ca.issue(&request(), &media(), SVID_LIFETIME, NOW).unwrap();
    assert_ne!(again.serial, issued.serial);
}

#[test]
fn an_operator_gets_a_key_and_an_svid_that_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let svid = ca.issue_operator("ada", mesh_identity::OperatorRole::Admin, Duration::from_secs(86_400), NOW).unwrap();
    assert_eq!(svid.id().to_string(), "spiffe://demo.example/operator/ada");
    assert_eq!(svid.not_after(), NOW + 86_400);
    assert!(Svid::from_pem(&svid.chain_pem(), &svid.key_pem()).is_ok());
    assert!(matches!(
        ca.issue_operator("Ada Lovelace", mesh_identity::OperatorRole::Admin, SVID_LIFETIME, NOW),
        Err(CaError::Issue(IssueError::OperatorName(_)))
    ));
}

#[test]
fn a_ca_signs_only_for_its_trust_domain_and_never_beyond_its_own_end() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let foreign: SpiffeId = "spiffe://other.example/svc/media".parse().unwrap();
    assert!(matches!(ca.issue(&request(), &foreign, SVID_LIFETIME, NOW), Err(IssueError::Foreign(_))));

    let end = NOW + ISSUING_LIFETIME.as_secs();
    assert_eq!(ca.issue(&request(), &media(), SVID_LIFETIME, end - 60).unwrap().not_after, end);
    assert!(matches!(ca.issue(&request(), &media(), SVID_LIFETIME, end + 1), Err(IssueError::Ended)));
    // Neither does an issuing CA outlive its root.
    let end = NOW + ROOT_LIFETIME.as_secs();
    let ca = Ca::open(dir.path(), &domain(), None, end - 60).unwrap();
    assert_eq!(ca.issue(&request(), &media(), SVID_LIFETIME, end - 60).unwrap().not_after, end);
}

#[test]
fn a_request_that_names_another_service_is_not_signed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://demo.example/svc/issues".try_into().unwrap())];
    let csr = Csr::parse(params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der()).unwrap();
    assert!(matches!(ca.issue(&csr, &media(), SVID_LIFETIME, NOW), Err(IssueError::Csr(CsrError::Name { .. }))));
}

#[test]
fn a_ca_opens_again_as_the_same_one_and_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!Ca::exists(dir.path()));
    let ca = create(dir.path());
    assert!(Ca::exists(dir.path()));
    assert_eq!(Ca::open(dir.path(), &domain(), None, NOW).unwrap().bundle(), ca.bundle());
    assert!(matches!(Ca::create(dir.path(), &domain(), None, NOW), Err(CaError::Exists(_))));
    fs::remove_file(dir.path().join("root.pem")).unwrap();
    assert!(matches!(Ca::create(dir.path(), &domain(), None, NOW), Err(CaError::Exists(_))));
}

#[test]
fn an_encrypted_key_opens_with_its_passphrase_alone() {
    let dir = tempfile::tempdir().unwrap();
    let passphrase = Passphrase::new("correct horse".to_owned());
    Ca::create(dir.path(), &domain(), passphrase.as_ref(), NOW).unwrap();
    let key = fs::read_to_string(dir.path().join("root.key")).unwrap();
    assert!(key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{key}");

    let open = |passphrase: Option<&Passphrase>| Ca::open(dir.path(), &domain(), passphrase, NOW);
    assert!(open(passphrase.as_ref()).is_ok());
    let other = Passphrase::new("correct house".to_owned());
    assert!(matches!(open(other.as_ref()), Err(CaError::Passphrase(_))));
    let error = open(None).unwrap_err();
    assert!(error.to_string().ends_with("root.key is encrypted: set TENON_CA_PASSPHRASE"), "{error}");
}

#[test]
fn a_ca_of_another_mesh_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path());
    let error = Ca::open(dir.path(), &"other.example".parse().unwrap(), None, NOW).unwrap_err();
    assert!(error.to_string().contains("the root of trust domain demo.example, not of other.example"), "{error}");
}

#[test]
fn a_key_that_is_not_the_certificates_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    create(one.path());
    create(two.path());
    fs::copy(one.path().join("root.key"), two.path().join("root.key")).unwrap();
    assert!(matches!(Ca::open(two.path(), &domain(), None, NOW), Err(CaError::KeyOfAnother(_))));
}

#[test]
fn a_root_outside_of_its_time_is_refused_and_the_clock_is_named() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path());
    let open = |now| Ca::open(dir.path(), &domain(), None, now).unwrap_err();
    assert!(matches!(open(NOW + ROOT_LIFETIME.as_secs() + 1), CaError::Expired { .. }));
    let error = open(NOW - 301);
    assert!(matches!(error, CaError::NotYetValid { .. }));
    assert!(error.to_string().contains("the clock is wrong"), "{error}");
}

#[test]
fn missing_and_damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Ca::open(dir.path(), &domain(), None, NOW).unwrap_err();
    assert!(matches!(open(), CaError::Missing(_)));
    create(dir.path());
    let (root, key) = (dir.path().join("root.pem"), dir.path().join("root.key"));
    let whole = fs::read_to_string(&key).unwrap();
    for damaged in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        fs::write(&key, damaged).unwrap();
        assert!(matches!(open(), CaError::Content { path, .. } if path == key));
    }
    fs::write(&key, whole).unwrap();
    fs::write(&root, "nonsense").unwrap();
    assert!(matches!(open(), CaError::Content { path, .. } if path == root));
    fs::remove_file(&root).unwrap();
    assert!(matches!(open(), CaError::Half { missing, .. } if missing == root));
}

#[test]
fn a_leaf_in_the_place_of_the_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let leaf = ca.issue_operator("ada", mesh_identity::OperatorRole::Admin, SVID_LIFETIME, NOW).unwrap();
    fs::write(dir.path().join("root.pem"), leaf.chain_pem()).unwrap();
    let error = Ca::open(dir.path(), &domain(), None, NOW).unwrap_err();
    assert!(error.to_string().ends_with("not the certificate of a CA"), "{error}");
}

#[test]
fn a_creation_that_was_killed_is_finished_or_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    // Killed before the key had its name: there is no CA.
    fs::write(dir.path().join("root.pem.new"), "half").unwrap();
    fs::write(dir.path().join("root.key.new"), "half").unwrap();
    assert!(!Ca::exists(dir.path()));
    let ca = create(dir.path());
    // Killed between the two renames: it is whole.
    fs::rename(dir.path().join("root.pem"), dir.path().join("root.pem.new")).unwrap();
    assert!(Ca::exists(dir.path()));
    assert_eq!(Ca::open(dir.path(), &domain(), None, NOW).unwrap().bundle(), ca.bundle());
    assert!(dir.path().join("root.pem").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Ca::create(&file.join("ca"), &domain(), None, NOW).unwrap_err();
    assert!(error.to_string().contains("cannot create"), "{error}");
    assert!(error.to_string().contains("file/ca"), "{error}");
}

/// The roots of `ca` that lie below the signature of its present leaf: exactly one.
fn signing_root(ca: &Ca, now: u64) -> usize {
    let chain = ca.issue(&request(), &media(), SVID_LIFETIME, now).unwrap().chain;
    let (_, issuing) = X509Certificate::from_der(&chain[1]).unwrap();
    let bundle = ca.bundle();
    let signs = |root: &CertificateDer<'_>| {
        let (_, root) = X509Certificate::from_der(root).unwrap();
        issuing.verify_signature(Some(root.public_key())).is_ok()
    };
    let found: Vec<_> = bundle.roots().iter().enumerate().filter(|(_, root)| signs(root)).map(|(at, _)| at).collect();
    assert_eq!(found.len(), 1);
    found[0]
}

#[test]
fn a_folder_of_before_there_were_issuing_cas_gets_one_and_keeps_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let pin = create(dir.path()).bundle().pin();
    for file in ["ca.json", "issuing-1.pem", "issuing-1.key", "lock"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    let ca = Ca::open(dir.path(), &domain(), None, NOW).unwrap();
    assert_eq!((ca.bundle().pin(), ca.bundle().rotation().sequence, signing_root(&ca, NOW)), (pin, 1, 0));
}

#[test]
fn a_root_is_prepared_activated_and_retired_and_each_step_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let old = ca.bundle().roots()[0].clone();
    assert!(matches!(ca.activate_root(NOW), Err(RotateError::OutOfTurn(_))));
    assert!(matches!(ca.retire_root(NOW), Err(RotateError::OutOfTurn(_))));
    assert!(matches!(ca.abandon_root(NOW), Err(RotateError::OutOfTurn(_))));
    assert_eq!((ca.phase(), ca.bundle().rotation().sequence), (Phase::None, 1), "what is refused changes nothing");

    let again = || Ca::open(dir.path(), &domain(), None, NOW).unwrap();
    ca.prepare_root(NOW).unwrap();
    for ca in [&ca, &again()] {
        let bundle = ca.bundle();
        assert_eq!((ca.phase(), bundle.roots().len(), bundle.rotation().sequence), (Phase::Prepared, 2, 2));
        assert_eq!((&bundle.roots()[0], signing_root(ca, NOW)), (&old, 0));
        assert!(matches!(ca.prepare_root(NOW), Err(RotateError::OutOfTurn(_))));
    }
    let authority = ca.bundle().rotation().issuing_authority.unwrap();
    assert!(ca.is_of_active_root(&authority));
    ca.activate_root(NOW).unwrap();
    for ca in [&ca, &again()] {
        assert_eq!((ca.phase(), signing_root(ca, NOW), ca.bundle().rotation().sequence), (Phase::Activated, 1, 3));
        assert!(!ca.is_of_active_root(&authority));
        assert!(ca.is_of_active_root(&ca.bundle().rotation().issuing_authority.unwrap()));
    }
    assert!(matches!(ca.abandon_root(NOW), Err(RotateError::OutOfTurn(_))));
    ca.retire_root(NOW).unwrap();
    for ca in [&ca, &again()] {
        let bundle = ca.bundle();
        assert_eq!((ca.phase(), bundle.roots().len(), signing_root(ca, NOW)), (Phase::None, 1, 0));
        assert_ne!(bundle.roots()[0], old);
    }
    let files = ["ca.json", "issuing-3.key", "issuing-3.pem", "lock", "root-2.key", "root-2.pem"];
    assert_eq!(names_in(dir.path()), files, "keys that do not count are gone");
    assert!(Ca::exists(dir.path()));
    assert!(matches!(Ca::create(dir.path(), &domain(), None, NOW), Err(CaError::Exists(_))));
}

#[test]
fn a_prepared_root_that_is_abandoned_leaves_everything_as_it_was_but_the_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let (before, files) = (ca.bundle(), names_in(dir.path()));
    ca.prepare_root(NOW).unwrap();
    ca.abandon_root(NOW).unwrap();
    assert_eq!((ca.bundle().roots(), ca.bundle().rotation().sequence), (before.roots(), 3));
    assert_eq!(names_in(dir.path()), files);
}

#[test]
fn the_issuing_ca_is_due_at_half_of_its_life_and_replaced_when_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let half = NOW + ISSUING_LIFETIME.as_secs() / 2;
    assert!(!ca.issuing_is_due(half - 1) && ca.issuing_is_due(half));
    let first = ca.bundle().rotation().issuing_authority;
    ca.renew_issuing(half).unwrap();
    assert!(!ca.issuing_is_due(half));
    assert_ne!(ca.bundle().rotation().issuing_authority, first);
    // Both are below the root that signs: who has an SVID of the first one need not hurry.
    assert!(ca.is_of_active_root(&first.unwrap()));

    let end = half + ISSUING_LIFETIME.as_secs();
    assert!(ca.issue(&request(), &media(), SVID_LIFETIME, end + 1).is_err());
    let later = Ca::open(dir.path(), &domain(), None, end + 1).unwrap();
    assert!(later.issue(&request(), &media(), SVID_LIFETIME, end + 1).is_ok());
    assert!(ca.reload().unwrap());
    assert!(ca.issue(&request(), &media(), SVID_LIFETIME, end + 1).is_ok());
}

#[test]
fn what_one_process_changes_another_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (create(dir.path()), Ca::open(dir.path(), &domain(), None, NOW).unwrap());
    assert!(!two.reload().unwrap());
    one.prepare_root(NOW).unwrap();
    assert_eq!(two.phase(), Phase::None);
    assert!(two.reload().unwrap());
    assert_eq!(two.bundle(), one.bundle());
    // A step goes on from what is on the disk, not from what this process last saw.
    one.activate_root(NOW).unwrap();
    two.retire_root(NOW).unwrap();
    assert!(one.reload().unwrap());
    assert_eq!((one.phase(), one.bundle()), (Phase::None, two.bundle()));
}

#[test]
fn an_issuing_ca_that_is_lost_or_damaged_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let pin = ca.bundle().pin();
    for sequence in 1..3 {
        let key = dir.path().join(format!("issuing-{sequence}.key"));
        if sequence == 1 {
            fs::remove_file(key).unwrap()
        } else {
            fs::write(key, "damaged").unwrap()
        }
        let ca = Ca::open(dir.path(), &domain(), None, NOW).unwrap();
        assert_eq!((ca.bundle().pin(), ca.bundle().rotation().sequence), (pin.clone(), sequence + 1));
        signing_root(&ca, NOW);
    }
}

#[test]
fn a_root_that_ca_json_does_not_mean_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    create(one.path());
    create(two.path());
    for file in ["root.pem", "root.key"] {
        fs::copy(one.path().join(file), two.path().join(file)).unwrap();
    }
    let error = Ca::open(two.path(), &domain(), None, NOW).unwrap_err();
    assert!(error.to_string().contains("not the certificate that ca.json names"), "{error}");
    fs::write(two.path().join("ca.json"), "{}").unwrap();
    let error = Ca::open(two.path(), &domain(), None, NOW).unwrap_err();
    assert!(error.to_string().contains("ca.json: damaged"), "{error}");
}

#[test]
fn a_step_that_was_killed_before_it_counted_leaves_nothing_that_counts() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let before = fs::read(dir.path().join("ca.json")).unwrap();
    ca.prepare_root(NOW).unwrap();
    // Killed after the key was written and before ca.json was.
    fs::write(dir.path().join("ca.json"), before).unwrap();
    let ca = Ca::open(dir.path(), &domain(), None, NOW).unwrap();
    assert_eq!((ca.phase(), ca.bundle().roots().len()), (Phase::None, 1));
    // The same step again writes over what was left.
    ca.prepare_root(NOW).unwrap();
    assert_eq!(Ca::open(dir.path(), &domain(), None, NOW).unwrap().bundle(), ca.bundle());
    // Killed after ca.json was written and before what it does not name was swept up.
    fs::write(dir.path().join("issuing-99.key"), "left").unwrap();
    fs::write(dir.path().join("root-98.pem.new"), "left").unwrap();
    fs::write(dir.path().join("notes.pem"), "mine").unwrap();
    ca.abandon_root(NOW).unwrap();
    let files = ["ca.json", "issuing-1.key", "issuing-1.pem", "lock", "notes.pem", "root.key", "root.pem"];
    assert_eq!(names_in(dir.path()), files, "what is not ours stays");
}

#[test]
fn a_disk_without_room_for_a_key_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let (before, files) = (ca.bundle(), names_in(dir.path()));
    // A folder stands where a file is to be written: the write fails, whoever runs this.
    for (blocked, step) in [
        ("root-2.key.new", Ca::prepare_root as fn(&Ca, u64) -> Result<(), RotateError>),
        ("issuing-2.key.new", Ca::renew_issuing),
        ("ca.json.new", Ca::renew_issuing),
        ("ca.json.new", Ca::rekey),
    ] {
        fs::create_dir_all(dir.path().join(blocked).join("full")).unwrap();
        let error = step(&ca, NOW).unwrap_err();
        assert!(matches!(&error, RotateError::Ca(CaError::File { action: "write", .. })), "{error}");
        fs::remove_dir_all(dir.path().join(blocked)).unwrap();
        assert_eq!((ca.bundle(), names_in(dir.path())), (before.clone(), files.clone()), "{blocked}");
        assert_eq!(Ca::open(dir.path(), &domain(), None, NOW).unwrap().bundle(), before);
    }
    ca.prepare_root(NOW).unwrap();
}

#[test]
fn every_key_of_the_hierarchy_is_encrypted_under_the_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let passphrase = Passphrase::new("correct horse".to_owned());
    let ca = Ca::create(dir.path(), &domain(), passphrase.as_ref(), NOW).unwrap();
    ca.prepare_root(NOW).unwrap();
    ca.activate_root(NOW).unwrap();
    let keys: Vec<_> = names_in(dir.path()).into_iter().filter(|name| name.ends_with(".key")).collect();
    assert_eq!(keys, ["issuing-3.key", "root-2.key", "root.key"]);
    for key in keys {
        let text = fs::read_to_string(dir.path().join(&key)).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{key}");
    }
    assert!(matches!(Ca::open(dir.path(), &domain(), None, NOW), Err(CaError::Encrypted(_))));
    assert_eq!(Ca::open(dir.path(), &domain(), passphrase.as_ref(), NOW).unwrap().bundle(), ca.bundle());
}

#[test]
fn a_server_certificate_has_the_names_and_is_no_svid() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = ca.issue_server(&names, Duration::from_secs(86_400), NOW).unwrap();
    let (_, leaf) = X509Certificate::from_der(&server.chain[0]).unwrap();
    let found = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(found[..], [GeneralName::DNSName("localhost"), GeneralName::IPAddress(&[127, 0, 0, 1])]);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    assert_eq!((server.chain.len(), server.not_after), (2, NOW + 86_400));
    assert!(Svid::from_der(server.chain, server.key_pkcs8).is_err());
}
