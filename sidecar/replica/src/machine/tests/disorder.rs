//! Messages that are lost, doubled, overtaken and damaged.

use proptest::prelude::*;

use super::*;

/// A history of one epoch: each write's key and value; absent: deleted.
type Writes = Vec<(u8, Option<u8>)>;

fn state(writes: &Writes, revision: usize) -> BTreeMap<String, (u64, String)> {
    let mut map = BTreeMap::new();
    for (at, (key, value)) in (1..).zip(&writes[..revision]) {
        let key = format!("key-{key}");
        match value {
            Some(value) => drop(map.insert(key, (at, format!("value {value}")))),
            None => drop(map.remove(&key)),
        }
    }
    map
}

fn borrowed(state: &BTreeMap<String, (u64, String)>) -> Vec<(&str, u64, &str)> {
    state.iter().map(|(key, (revision, value))| (key.as_str(), *revision, value.as_str())).collect()
}

/// The messages of a stream that leads from `from`, or from nothing, through the positions of `stops`.
fn stream(writes: &Writes, from: Option<usize>, stops: &[usize]) -> Vec<Response> {
    let mut messages = Vec::new();
    let mut cursor = from.unwrap_or_else(|| {
        let first = stops.first().copied().unwrap_or(0);
        let snapshot = state(writes, first);
        messages.push(start(at(first as u64)));
        messages.extend(borrowed(&snapshot).chunks(3).map(chunk));
        messages.push(end(&borrowed(&snapshot)));
        first
    });
    for stop in stops.iter().copied().filter(|stop| *stop > cursor).collect::<Vec<_>>() {
        if stop <= cursor {
            continue;
        }
        let mut latest = BTreeMap::new();
        for (revision, (key, value)) in (1..).zip(writes).skip(cursor).take(stop - cursor) {
            latest.insert(key, (revision, value));
        }
        let changes = latest.into_iter().map(|(key, (revision, value))| Change {
            key: format!("key-{key}"),
            revision,
            value: value.map(|value| format!("value {value}").into()),
            several: false,
        });
        messages.push(Response::Delta(Delta {
            epoch: 1,
            previous_revision: cursor as u64,
            revision: stop as u64,
            changes: changes.collect(),
        }));
        cursor = stop;
        let now = state(writes, cursor);
        messages.push(Response::Heartbeat(Heartbeat {
            head: Some(at(cursor as u64).into()),
            digest: of(&borrowed(&now)).to_vec().into(),
            records: now.len() as u64,
        }));
    }
    messages
}

#[derive(Clone, Debug)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    Overtaken,
    Damaged(prop::sample::Index),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Overtaken),
        1 => any::<prop::sample::Index>().prop_map(Fate::Damaged),
    ]
}

/// A bit of what a checksum would not have noticed: only snapshots are checked as a whole before they are used.
fn damage(response: &mut Response, at: prop::sample::Index) {
    if let Response::SnapshotChunk(chunk) = response
        && let Some(record) = (!chunk.records.is_empty()).then(|| at.get_mut(&mut chunk.records))
    {
        let mut value = record.value.to_vec();
        value.push(7);
        record.value = value.into();
    } else if let Response::SnapshotEnd(end) = response {
        end.records += 1;
    }
}

fn suffer(messages: Vec<Response>, fates: &[Fate]) -> Vec<Response> {
    let mut arriving = Vec::new();
    let mut held_back = None;
    for (index, mut message) in messages.into_iter().enumerate() {
        match &fates[index % fates.len()] {
            Fate::Arrives => {}
            Fate::Lost => continue,
            Fate::Twice => arriving.push(message.clone()),
            Fate::Overtaken if held_back.is_none() => {
                held_back = Some(message);
                continue;
            }
            Fate::Overtaken => {}
            Fate::Damaged(at) => damage(&mut message, *at),
        }
        arriving.push(message);
        arriving.extend(held_back.take());
    }
    arriving
}

/// What readers see is what was true at the position that was announced: nothing is half applied.
fn check(it: &Fixture, writes: &Writes) -> Result<(), TestCaseError> {
    let Some(position) = it.replica.position() else { return Ok(()) };
    let truth = state(writes, usize::try_from(position.revision).unwrap());
    let truth: BTreeMap<_, _> = truth.into_iter().map(|(key, (_, value))| (key, value)).collect();
    prop_assert_eq!(it.held(), truth, "at {}", position);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_messages_of_two_parents_the_map_is_that_of_its_position_and_ends_at_the_head(
        writes in prop::collection::vec((0..12u8, prop::option::weighted(0.7, any::<u8>())), 1..40),
        runs in prop::collection::vec(
            (prop::collection::vec(any::<prop::sample::Index>(), 1..6), prop::collection::vec(fate(), 1..20)),
            1..8
        ),
        order in prop::collection::vec(0..2usize, 1..40),
    ) {
        let mut it = fixture_with(Guard::OFF, Box::new(|_| {}));
        let mut queues = [Vec::new(), Vec::new()];
        let mut runs = runs.into_iter();
        let mut reached = None;
        // Messages of both parents come in any order between each other; a stream that breaks is begun again.
        for parent in order.iter().cycle().take(200).copied() {
            if queues[parent].is_empty() {
                let Some((stops, fates)) = runs.next() else { break };
                it.after(Duration::from_millis(700)).by(parent);
                let Some(begun) = it.begin() else { continue };
                let from = begun.resume.map(|resume| usize::try_from(resume.revision).unwrap());
                let mut stops: Vec<_> = stops.iter().map(|stop| stop.index(writes.len() + 1)).collect();
                stops.sort_unstable();
                queues[parent] = suffer(stream(&writes, from, &stops), &fates);
                queues[parent].reverse();
                continue;
            }
            let message = queues[parent].pop().unwrap();
            if it.by(parent).receive(message).is_err() {
                it.machine.end(parent);
                queues[parent].clear();
            }
            let position = it.replica.position();
            prop_assert!(position >= reached, "from {:?} back to {:?}", reached, position);
            reached = position;
            check(&it, &writes)?;
        }
        // Then all is well.
        for parent in [0, 1] {
            it.machine.end(parent);
        }
        let head = writes.len();
        for parent in [0, 1] {
            it.after(Duration::from_secs(5)).by(parent);
            let begun = it.begin().unwrap();
            let from = begun.resume.map(|resume| usize::try_from(resume.revision).unwrap());
            let mut messages = stream(&writes, from, &[head]);
            let now = state(&writes, head);
            messages.push(Response::Heartbeat(Heartbeat {
                head: Some(at(head as u64).into()),
                digest: of(&borrowed(&now)).to_vec().into(),
                records: now.len() as u64,
            }));
            for message in messages {
                prop_assert!(it.receive(message).is_ok());
            }
            check(&it, &writes)?;
            prop_assert_eq!(it.replica.position(), Some(at(head as u64)));
        }
    }
}
