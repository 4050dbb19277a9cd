//! Starting from a file that several threads read.

use proptest::prelude::*;

use super::*;
use crate::{Raw, Table, machine::records::Records as Taken, state};

/// Enough for several pieces of a file.
fn many() -> Vec<(String, u64, String)> {
    (1..=9_000).map(|number| (format!("tenant-{number}"), number, format!("value {number}"))).collect()
}

fn borrowed(records: &[(String, u64, String)]) -> Vec<(&str, u64, &str)> {
    records.iter().map(|(key, revision, value)| (key.as_str(), *revision, value.as_str())).collect()
}

#[test]
fn a_flipped_byte_anywhere_in_a_file_of_many_pieces_leaves_nothing_held() {
    let records = many();
    let mut it = fixture();
    it.snapshot(at(9_000), &borrowed(&records)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = state::path(dir.path(), "tenant");
    Recording::write(&path, "tenant", &it.shared.saved().unwrap()).unwrap();
    let file = std::fs::read(&path).unwrap();

    let mut whole = fixture();
    assert!(whole.machine.start_from(Reader::open(&path, "tenant").unwrap()).unwrap().is_some());
    assert_eq!(whole.held(), it.held());
    assert_eq!(whole.heartbeat(at(9_000), &borrowed(&records)), Ok(None));

    for at in (40..file.len()).step_by(file.len() / 50).chain([file.len() - 1]) {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let mut other = fixture();
        let restored = Reader::open(&path, "tenant").and_then(|file| other.machine.start_from(file));
        assert!(restored.is_err(), "{at}");
        assert!(other.replica.position().is_none());
    }
}

#[test]
fn a_record_that_decodes_by_now_takes_the_place_of_the_one_that_was_served_instead() {
    let mut it = fixture();
    let records = many();
    it.snapshot(at(9_000), &borrowed(&records)).unwrap();
    it.delta(1, 9_000, 9_001, &[("tenant-7", 9_001, Some("bad")), ("new", 9_001, Some("bad too"))]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = state::path(dir.path(), "tenant");
    Recording::write(&path, "tenant", &it.shared.saved().unwrap()).unwrap();

    // Another version of the program: it takes everything.
    let shared = Arc::new(Shared::<Raw>::new());
    let mut machine = Machine::new(Arc::clone(&shared), Guard::default(), 1, |_: Event<'_, Raw>| {});
    assert!(machine.start_from(Reader::open(&path, "tenant").unwrap()).unwrap().is_some());
    let table = shared.table.load_full().unwrap();
    assert_eq!(table.len(), 9_001);
    assert_eq!(table.get("tenant-7").unwrap().raw(), b"bad");
    assert_eq!(table.get("new").unwrap().raw(), b"bad too");
    assert_eq!(table.get("tenant-8").unwrap().raw(), b"value 8");
    assert!(shared.saved().is_some(), "the digest is that of the table");
}

proptest! {
    #[test]
    fn of_a_key_that_comes_often_the_last_counts_and_the_last_good_one_is_served(
        came in prop::collection::vec((0..6u8, any::<bool>(), any::<bool>()), 0..40)
    ) {
        let accept: super::super::Accept<Text> = Arc::new(|_| Ok(()));
        let (mut all, mut good, mut pieces) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut piece = Taken::<Text>::new(ahash::RandomState::with_seed(1));
        for (revision, (key, bad, ends)) in (1..).zip(came) {
            let (key, value) = (format!("k{key}"), format!("{} {revision}", if bad { "bad" } else { "good" }));
            piece.take(&accept, key.clone(), revision, value.clone().into(), None);
            all.insert(key.clone(), (revision, value));
            if !bad {
                good.insert(key, revision);
            }
            if ends {
                pieces.push(std::mem::replace(&mut piece, Taken::new(ahash::RandomState::with_seed(1))));
            }
        }
        pieces.push(piece);
        let (table, digest, refused): (Table<Text>, _, _) = Taken::finish(pieces, 2);
        let sent: Vec<_> = all.iter().map(|(key, (revision, value))| (key.as_str(), *revision, value.as_str())).collect();
        prop_assert_eq!((digest.fold(), digest.records()), (of(&sent), sent.len() as u64));
        let held: BTreeMap<_, _> = table.iter().map(|value| (value.key().to_owned(), value.revision())).collect();
        prop_assert_eq!((table.len(), held), (good.len(), good));
        let not_good = all.values().filter(|(_, value)| value.starts_with("bad")).count();
        prop_assert_eq!(refused.len(), not_good);
    }
}
