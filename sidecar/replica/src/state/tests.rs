use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;
use crate::Raw;

fn saved(records: &[(String, u64, Vec<u8>)]) -> Saved<Raw> {
    let held =
        records.iter().map(|(key, revision, value)| Raw::new(key, *revision, Bytes::copy_from_slice(value)).unwrap());
    let refused = vec![(Arc::from("refused"), 9, Bytes::from_static(b"!"))];
    Saved { position: Position::new(3, 9), view: "v".into(), rules: rules(), held: held.collect(), refused }
}

fn rules() -> GuardRules {
    GuardRules { largest_shrink_percent: 7, canaries: vec!["canary".to_owned()], r#override: None }
}

fn bytes(records: &[(String, u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out, "tenant", &saved(records)).unwrap();
    out
}

fn records() -> impl Strategy<Value = Vec<(String, u64, Vec<u8>)>> {
    prop::collection::vec(("[a-z]{0,9}", any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12)
}

proptest! {
    #[test]
    fn what_is_written_is_read(records in records()) {
        let state = decode(bytes(&records).into(), "tenant").unwrap();
        prop_assert_eq!((state.position, state.view.as_str()), (Position::new(3, 9), "v"));
        prop_assert_eq!(state.rules, rules());
        let mut read: Vec<_> = state.records.into_iter().map(|it| (it.key, it.revision, it.value.to_vec())).collect();
        prop_assert_eq!(read.pop(), Some(("refused".to_owned(), 9, b"!".to_vec())));
        prop_assert_eq!(read, records);
    }

    #[test]
    fn any_flipped_bit_is_found(records in records(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = bytes(&records);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(matches!(decode(bytes.into(), "tenant"), Err(LoadError::Checksum)));
    }

    #[test]
    fn any_lost_end_is_found(records in records(), at in any::<prop::sample::Index>()) {
        let mut bytes = bytes(&records);
        bytes.truncate(at.index(bytes.len()));
        prop_assert!(matches!(decode(bytes.into(), "tenant"), Err(LoadError::Checksum)));
    }

    #[test]
    fn nonsense_with_a_good_checksum_does_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        if magic {
            bytes.splice(0..0, *MAGIC);
        }
        let checksum = xxh3_128(&bytes);
        bytes.extend(checksum.to_le_bytes());
        prop_assert!(decode(bytes.into(), "tenant").is_err());
    }
}

#[test]
fn every_single_flipped_byte_of_a_file_is_found() {
    let good = bytes(&[("acme".to_owned(), 1, b"active".to_vec())]);
    assert!(decode(good.clone().into(), "tenant").is_ok());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        assert!(decode(bad.into(), "tenant").is_err(), "byte {at}");
    }
}

#[test]
fn the_state_of_another_kind_is_not_taken() {
    assert!(matches!(decode(bytes(&[]).into(), "key"), Err(LoadError::Foreign)));
}

#[test]
fn a_file_is_private_whole_and_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir.path().join("below"), "tenant");
    assert!(load(&path, "tenant").unwrap().is_none());
    for _ in 0..2 {
        save(&path, "tenant", &saved(&[])).unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    assert!(load(&path, "tenant").unwrap().is_some());
}

#[test]
fn what_a_crash_left_beside_the_file_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path(), "tenant");
    fs::write(path.with_extension("state.new"), b"half").unwrap();
    save(&path, "tenant", &saved(&[])).unwrap();
    assert!(load(&path, "tenant").unwrap().is_some());
}
