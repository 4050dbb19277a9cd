use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use x509_parser::extensions::ParsedExtension;

use super::*;

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
    let (_, root) = X509Certificate::from_der(&ca.bundle().roots()[0]).unwrap();
    assert!(root.is_ca());
    assert!(root.verify_signature(None).is_ok());
    assert_eq!(root.key_usage().unwrap().unwrap().value.flags, 1 << 5, "keyCertSign alone");
    let names = &root.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://demo.example")]);
    let life = root.validity().not_after.timestamp() - root.validity().not_before.timestamp();
    assert_eq!(life, 3653 * 86_400 + 300);
    for file in ["root.pem", "root.key"] {
        let mode = fs::metadata(dir.path().join("new/ca").join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(fs::read_dir(dir.path().join("new/ca")).unwrap().count(), 2, "nothing else is left behind");
}

#[test]
fn an_svid_has_one_uri_name_both_usages_an_hour_and_a_serial_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let issued = ca.issue(&request(), &media(), SVID_LIFETIME, NOW).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let (_, root) = X509Certificate::from_der(&ca.bundle().roots()[0]).unwrap();
    assert!(leaf.verify_signature(Some(root.public_key())).is_ok());
    assert!(!leaf.is_ca());
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://demo.example/svc/media")]);
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
    let svid = ca.issue_operator("ada", Duration::from_secs(86_400), NOW).unwrap();
    assert_eq!(svid.id().to_string(), "spiffe://demo.example/operator/ada");
    assert_eq!(svid.not_after(), NOW + 86_400);
    assert!(Svid::from_pem(&svid.chain_pem(), &svid.key_pem()).is_ok());
    assert!(matches!(
        ca.issue_operator("Ada Lovelace", SVID_LIFETIME, NOW),
        Err(CaError::Issue(IssueError::OperatorName(_)))
    ));
}

#[test]
fn a_ca_signs_only_for_its_trust_domain_and_never_beyond_its_own_end() {
    let dir = tempfile::tempdir().unwrap();
    let ca = create(dir.path());
    let foreign: SpiffeId = "spiffe://other.example/svc/media".parse().unwrap();
    assert!(matches!(ca.issue(&request(), &foreign, SVID_LIFETIME, NOW), Err(IssueError::Foreign(_))));

    let end = NOW + ROOT_LIFETIME.as_secs();
    assert_eq!(ca.issue(&request(), &media(), SVID_LIFETIME, end - 60).unwrap().not_after, end);
    assert!(matches!(ca.issue(&request(), &media(), SVID_LIFETIME, end + 1), Err(IssueError::RootEnded)));
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
    let leaf = ca.issue_operator("ada", SVID_LIFETIME, NOW).unwrap();
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
