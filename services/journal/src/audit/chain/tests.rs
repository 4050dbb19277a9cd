use proptest::prelude::*;

use super::*;

fn chain(whats: &[String]) -> Vec<Record> {
    let mut previous = beginning("tcs");
    let mut records = Vec::new();
    for (sequence, what) in (1..).zip(whats) {
        let mut record = Record {
            sequence,
            at_unix_ms: 1_000 + sequence,
            service: "tcs".into(),
            by: "spiffe://demo.example/operator/ann".into(),
            action: "suspend-tenant".into(),
            what: what.clone(),
            outcome: "done".into(),
            of: sequence / 2,
            details: [("revision".to_owned(), what.clone())].into(),
            previous: previous.to_vec().into(),
            hash: Vec::new().into(),
        };
        previous = hash(&record);
        record.hash = previous.to_vec().into();
        records.push(record);
    }
    records
}

fn verify(records: &[Record], known: Vec<Head>) -> Result<Head, Fault> {
    let mut verifier = Verifier::new("tcs", known);
    records.iter().for_each(|record| verifier.push(record));
    verifier.finish()
}

fn head(records: &[Record]) -> Head {
    let last = records.last().expect("there are some");
    Head { sequence: last.sequence, hash: last.hash[..].try_into().expect("a hash") }
}

/// Writes the hashes anew from the record at `from` on, as somebody does who can write the store.
fn rehash(records: &mut [Record], from: usize) {
    for at in from..records.len() {
        if at > 0 {
            records[at].previous = records[at - 1].hash.clone();
        }
        records[at].hash = hash(&records[at]).to_vec().into();
    }
}

/// One change of each field.
fn change(record: &mut Record, field: usize) {
    match field {
        0 => record.sequence += 1,
        1 => record.at_unix_ms ^= 1,
        2 => record.service.push('x'),
        3 => record.by.push('x'),
        4 => record.action.push('x'),
        5 => record.what.push('x'),
        6 => record.outcome = "refused".into(),
        7 => record.of += 1,
        8 => drop(record.details.insert("revision".into(), "other".into())),
        9 => record.details.clear(),
        10 => record.previous = vec![0; 32].into(),
        _ => record.hash = vec![0; 32].into(),
    }
}

proptest! {
    #[test]
    fn a_whole_chain_is_whole_and_says_where_it_ends(whats in proptest::collection::vec(".{0,8}", 1..20)) {
        let records = chain(&whats);
        prop_assert_eq!(verify(&records, vec![head(&records[..1])]), Ok(head(&records)));
    }

    #[test]
    fn any_changed_record_is_named(whats in proptest::collection::vec("[a-z]{3}", 1..20), at: usize, field in 0..12usize) {
        let mut records = chain(&whats);
        let at = at % records.len();
        change(&mut records[at], field);
        prop_assert_eq!(verify(&records, Vec::new()), Err(Fault::Changed(at as u64 + 1)));
    }

    #[test]
    fn any_removed_record_is_named(whats in proptest::collection::vec("[a-z]{3}", 2..20), at: usize) {
        let mut records = chain(&whats);
        let at = at % (records.len() - 1);
        records.remove(at);
        prop_assert_eq!(verify(&records, Vec::new()), Err(Fault::Removed(at as u64 + 1)));
    }

    #[test]
    fn any_two_that_are_swapped_are_named(whats in proptest::collection::vec("[a-z]{3}", 2..20), a: usize, b: usize) {
        let mut records = chain(&whats);
        let (a, b) = (a % records.len(), b % records.len());
        prop_assume!(a != b);
        records.swap(a, b);
        let (expected, found) = (a.min(b) as u64 + 1, a.max(b) as u64 + 1);
        prop_assert_eq!(verify(&records, Vec::new()), Err(Fault::Reordered { expected, found }));
    }

    #[test]
    fn a_change_whose_own_hash_was_made_anew_is_named(whats in proptest::collection::vec("[a-z]{3}", 2..20), at: usize) {
        let mut records = chain(&whats);
        let at = at % (records.len() - 1);
        records[at].what.push('x');
        records[at].hash = hash(&records[at]).to_vec().into();
        prop_assert_eq!(verify(&records, Vec::new()), Err(Fault::Changed(at as u64 + 1)));
    }

    #[test]
    fn a_chain_that_was_made_anew_or_cut_is_found_by_whoever_knows_an_earlier_head(
        whats in proptest::collection::vec("[a-z]{3}", 2..20), at: usize,
    ) {
        let mut records = chain(&whats);
        let known = head(&records);
        let at = at % records.len();
        let cut = verify(&records[..at], vec![known]);
        prop_assert_eq!(cut, Err(Fault::Cut { last: at as u64, known: known.sequence }));
        records[at].what.push('x');
        rehash(&mut records, at);
        prop_assert!(verify(&records, Vec::new()).is_ok(), "which the chain alone does not show");
        prop_assert_eq!(verify(&records, vec![known]), Err(Fault::Rewritten(known.sequence)));
    }
}

#[test]
fn a_chain_of_another_service_and_what_does_not_decode_are_found() {
    let mut records = chain(&["acme".to_owned(), "globex".to_owned()]);
    let mut verifier = Verifier::new("policy", Vec::new());
    records.iter().for_each(|record| verifier.push(record));
    assert_eq!(verifier.finish(), Err(Fault::Changed(1)));
    records[1] = Record::default();
    assert_eq!(verify(&records, Vec::new()), Err(Fault::Changed(2)));
    records[1] = chain(&["acme".to_owned()]).remove(0);
    assert_eq!(verify(&records, Vec::new()), Err(Fault::Reordered { expected: 2, found: 1 }));
    assert_eq!(verify(&[], Vec::new()).map(|head| head.sequence), Ok(0));
}

#[test]
fn neighbouring_parts_do_not_run_into_each_other() {
    let [mut one, mut other] = [chain(&["x".to_owned()]).remove(0), chain(&["x".to_owned()]).remove(0)];
    (one.by, one.action) = ("ab".into(), "c".into());
    (other.by, other.action) = ("a".into(), "bc".into());
    assert_ne!(hash(&one), hash(&other));
}
