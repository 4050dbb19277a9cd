use mesh_identity::{Rotation, testing::Ca};

use super::*;
use crate::{Position, Table};

fn bundle(ca: &Ca, sequence: u64) -> Decoded<BundleRecord> {
    let bundle = ca.bundle().with_rotation(Rotation { sequence, ..Rotation::default() });
    let raw = Bytes::from(bundle.to_proto().encode_to_vec());
    Decoded::new("demo.example", 1, raw).unwrap()
}

fn revocation(key: &str, what: proto::revocation::What) -> Decoded<RevocationRecord> {
    let record = proto::Revocation { what: Some(what), ..Default::default() };
    Decoded::new(key, 1, record.encode_to_vec().into()).unwrap()
}

fn table<V: Value>(records: impl IntoIterator<Item = V>) -> Table<V> {
    let table = Table::new();
    for record in records {
        table.insert(record);
    }
    table
}

#[test]
fn a_stored_bundle_is_taken_unless_it_is_older_than_the_one_joined_with() {
    let ca = Ca::new("demo.example");
    let identity = ca.identity("media");
    identity.set_bundle(bundle(&ca, 5).bundle.clone()).unwrap();
    let stored = Arc::new(AtomicBool::new(true));
    let mut take = take_bundles(Arc::clone(&identity), Roots::Replicated, Arc::clone(&stored));
    let sequence = || identity.bundle().rotation().sequence;

    take(Event::Replaced(&table([bundle(&ca, 4)]), Position::ZERO));
    assert_eq!(sequence(), 5, "an older one is left alone");
    take(Event::Replaced(&table([bundle(&ca, 6)]), Position::ZERO));
    assert_eq!(sequence(), 6);

    stored.store(false, Relaxed);
    take(Event::Replaced(&table([bundle(&ca, 3)]), Position::ZERO));
    assert_eq!(sequence(), 3, "what the identity service says now counts, whatever number it has");
}

#[test]
fn a_bundle_that_is_gone_or_of_another_trust_domain_changes_nothing() {
    let ca = Ca::new("demo.example");
    let identity = ca.identity("media");
    let before = identity.bundle();
    let mut take = take_bundles(Arc::clone(&identity), Roots::Replicated, Arc::default());
    let other = bundle(&ca, 9);
    take(Event::Changed { key: "demo.example", revision: 2, old: None, new: None, several: false });
    take(Event::Changed { key: "other.example", revision: 2, old: None, new: Some(&other), several: false });
    take(Event::Replaced(&table([]), Position::ZERO));
    assert_eq!(identity.bundle(), before);
    let raw = Bytes::from(ca.bundle().to_proto().encode_to_vec());
    assert!(BundleRecord::decode("other.example", 1, raw).is_err());
    assert!(BundleRecord::decode("demo.example", 1, Bytes::from_static(b"\xff")).is_err());
}

#[test]
fn where_roots_come_from_elsewhere_only_rotations_are_taken() {
    let (agent, mesh) = (Ca::new("demo.example"), Ca::new("demo.example"));
    let identity = agent.identity("media");
    let mut take = take_bundles(Arc::clone(&identity), Roots::Elsewhere, Arc::default());
    let rotation = Rotation { sequence: 7, issuing_authority: Some([7; 32]), rekey_created_before: 1_800_000_000 };
    let raw = Bytes::from(mesh.bundle().with_rotation(rotation).to_proto().encode_to_vec());
    take(Event::Replaced(&table([Decoded::new("demo.example", 1, raw).unwrap()]), Position::ZERO));
    let bundle = identity.bundle();
    assert_eq!(bundle.roots(), agent.bundle().roots());
    assert_eq!(bundle.rotation().rekey_created_before, 1_800_000_000);
    assert_eq!(bundle.rotation().issuing_authority, None, "no authority of the mesh signs for this process");
}

#[test]
fn revocations_come_one_by_one_and_are_lifted_again() {
    use proto::revocation::What::{Kid, Operator, Serial, Service};
    let identity = Ca::new("demo.example").identity("media");
    let mut changes = identity.changes();
    let mut take = take_revocations(Arc::clone(&identity));
    take(Event::Replaced(&table([revocation("service/wiki", Service("wiki".into()))]), Position::ZERO));
    assert!(identity.revoked().services.contains("wiki"));
    assert!(changes.has_changed().unwrap());

    let (kid, serial) =
        (revocation("kid/wiki/1", Kid("wiki/1".into())), revocation("serial/ab12", Serial("ab12".into())));
    take(Event::Changed { key: "kid/wiki/1", revision: 2, old: None, new: Some(&kid), several: false });
    take(Event::Changed { key: "serial/ab12", revision: 2, old: None, new: Some(&serial), several: false });
    let revoked = identity.revoked();
    assert!(revoked.operators.is_empty());
    assert!(revoked.kids.contains("wiki/1") && revoked.serials.contains("ab12") && revoked.services.contains("wiki"));

    let operator = revocation("operator/ada", Operator("ada".into()));
    take(Event::Changed { key: "operator/ada", revision: 2, old: None, new: Some(&operator), several: false });
    assert!(identity.revoked().operators.contains("ada") && !identity.revoked().services.contains("ada"));
    take(Event::Changed { key: "operator/ada", revision: 2, old: None, new: None, several: false });
    assert!(identity.revoked().operators.is_empty());

    take(Event::Changed { key: "service/wiki", revision: 2, old: None, new: None, several: false });
    assert!(identity.revoked().services.is_empty());
    changes.mark_unchanged();
    take(Event::Changed { key: "service/nobody", revision: 2, old: None, new: None, several: false });
    assert!(!changes.has_changed().unwrap(), "what changes nothing wakes nobody");
    take(Event::Replaced(&table([]), Position::ZERO));
    assert_eq!(*identity.revoked(), Revoked::default());
}

#[test]
fn a_revocation_of_something_unknown_is_refused_and_not_overlooked() {
    let raw = Bytes::from(proto::Revocation::default().encode_to_vec());
    assert!(RevocationRecord::decode("planet/mars", 1, raw).is_err());
}
