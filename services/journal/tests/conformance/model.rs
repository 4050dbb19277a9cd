//! Random operations, and a map that they are compared with.

use std::{collections::BTreeMap, time::Duration};

use journal::{AppendError, Expected, Journal, Position, Write};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};

/// A write of a batch, whose condition is told from what the model holds then.
#[derive(Clone, Debug)]
pub struct Operation {
    key: u8,
    value: Option<u8>,
    condition: Condition,
}

#[derive(Clone, Copy, Debug)]
enum Condition {
    None,
    /// What is there.
    Met,
    Absent,
    /// Another revision.
    Stale,
}

/// Sequences of batches, other ones each time; a failure prints them.
pub fn cases(number: usize, batches: usize) -> Vec<Vec<Vec<Operation>>> {
    let condition = prop_oneof![
        4 => Just(Condition::None),
        3 => Just(Condition::Met),
        1 => Just(Condition::Absent),
        1 => Just(Condition::Stale),
    ];
    let operation = (0..6_u8, proptest::option::weighted(0.7, any::<u8>()), condition)
        .prop_map(|(key, value, condition)| Operation { key, value, condition });
    let sequence = proptest::collection::vec(proptest::collection::vec(operation, 1..6), batches);
    let mut runner = TestRunner::new(Config::default());
    (0..number).map(|_| sequence.new_tree(&mut runner).unwrap().current()).collect()
}

/// Makes the batches, which nobody else does meanwhile, and compares what is held after each.
pub async fn check(journal: &dyn Journal, batches: Vec<Vec<Operation>>) {
    let start = journal.snapshot().await.unwrap();
    let mut position = start.position;
    let mut model: BTreeMap<String, (u64, Vec<u8>)> =
        start.records.into_iter().map(|record| (record.key, (record.revision, record.value.to_vec()))).collect();
    for batch in &batches {
        let (writes, next) = writes(batch, &model, position);
        loop {
            let result = journal.append_at(position, writes.clone()).await;
            match (&result, &next) {
                (Ok(at), Some(next)) => {
                    assert_eq!(at.revision, position.revision + writes.len() as u64, "{batch:?}");
                    model.clone_from(next);
                    position = *at;
                    break;
                }
                // Made the time before, which nobody confirmed.
                (Err(AppendError::Moved { actual }), Some(next)) => {
                    assert_eq!(actual.revision, position.revision + writes.len() as u64, "{batch:?}");
                    model.clone_from(next);
                    position = *actual;
                    break;
                }
                (Err(AppendError::Conflict { .. }), None) => break,
                (Err(AppendError::Failed(_) | AppendError::Unconfirmed(_)), _) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                _ => panic!("{result:?} for {batch:?} at {position} on {model:?}"),
            }
        }
        let held = journal.snapshot().await.unwrap();
        assert_eq!(held.position, position);
        let records: Vec<_> =
            held.records.into_iter().map(|record| (record.key, (record.revision, record.value.to_vec()))).collect();
        assert_eq!(records, model.clone().into_iter().collect::<Vec<_>>(), "after {batch:?}");
        assert_eq!(journal.count().await.unwrap(), model.len() as u64);
    }
    for (key, (revision, value)) in &model {
        let record = journal.get(key).await.unwrap().unwrap();
        assert_eq!((record.revision, &record.value[..]), (*revision, &value[..]));
    }
}

type Records = BTreeMap<String, (u64, Vec<u8>)>;

/// The writes, and what is held after them; nothing if a condition is not met.
fn writes(batch: &[Operation], before: &Records, position: Position) -> (Vec<Write>, Option<Records>) {
    let mut model = before.clone();
    let mut met = true;
    let mut writes = Vec::new();
    for (revision, Operation { key, value, condition }) in (position.revision + 1..).zip(batch) {
        let key = format!("key{key}");
        let held = model.get(&key).map(|(revision, _)| *revision);
        let expected = match condition {
            Condition::None => Expected::Any,
            Condition::Met => held.map_or(Expected::Absent, Expected::Revision),
            Condition::Absent => Expected::Absent,
            Condition::Stale => Expected::Revision(position.revision + 1000),
        };
        met &= match expected {
            Expected::Any => true,
            Expected::Absent => held.is_none(),
            Expected::Revision(expected) => held == Some(expected),
        };
        writes.push(Write { key: key.clone(), value: value.map(|value| vec![value].into()), expected });
        match value {
            Some(value) => drop(model.insert(key, (revision, vec![*value]))),
            None => drop(model.remove(&key)),
        }
    }
    (writes, met.then_some(model))
}
