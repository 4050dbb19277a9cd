use super::*;
use crate::{Decoded, Raw};

const AT: Position = Position::new(1, 1);

fn record(key: &str, size: usize) -> Raw {
    Decoded::new(key, 1, vec![0; size].into()).unwrap()
}

fn is_held(writer: &Writer<Raw>, key: &str) -> bool {
    matches!(writer.store().get(key), Answer::Found(_))
}

#[test]
fn what_is_held_keeps_within_its_bytes_and_what_is_read_stays_longest() {
    let capacity = 100_000;
    let mut writer = Writer::new(capacity);
    for number in 0..10_000 {
        writer.put(record(&format!("tenant-{number}"), 200 + number % 300), AT, true);
        assert!(writer.store().bytes.load(Relaxed) <= capacity, "{number}");
        assert!(is_held(&writer, "tenant-0"), "read at every step, so spared at every one: {number}");
    }
    assert!(writer.store().len() > 100, "{}", writer.store().len());
    assert_eq!(writer.evicted as usize + writer.store().len(), 10_000);
    assert_eq!(writer.queue.len(), writer.store().len());
    assert_eq!(writer.values().len(), writer.store().len());
}

#[test]
fn a_flood_of_names_that_nobody_has_pushes_out_no_record() {
    let mut writer = Writer::new(100_000);
    for number in 0..100 {
        writer.put(record(&format!("tenant-{number}"), 100), AT, true);
    }
    for number in 0..100_000 {
        writer.put_absent(Name::Key(format!("nobody-{number}").into()), Position::ZERO);
    }
    assert!((0..100).all(|number| is_held(&writer, &format!("tenant-{number}"))));
    assert!(writer.store().absent() < 100, "{}", writer.store().absent());
    assert!(matches!(writer.store().get("nobody-99999"), Answer::Nobody));
    writer.gap();
    assert_eq!(writer.store().absent(), 0);
    assert!(writer.store().bytes.load(Relaxed) < 60_000);
}

#[test]
fn records_that_come_and_go_leave_nothing_behind() {
    let mut writer = Writer::new(1 << 20);
    for number in 0..20_000 {
        writer.put(record("tenant", 100 + number % 7), AT, true);
        assert!(writer.remove("tenant"));
    }
    assert_eq!((writer.store().len(), writer.store().bytes.load(Relaxed)), (0, 0));
    assert!(writer.queue.len() <= 1025 + 1, "{}", writer.queue.len());
}

#[test]
fn a_record_larger_than_the_cache_is_held_alone() {
    let mut writer = Writer::new(1_000);
    writer.put(record("small", 10), AT, true);
    writer.put(record("large", 10_000), AT, true);
    assert!(is_held(&writer, "large") && !is_held(&writer, "small"));
}
