//! What is true, and what each view shows of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use bytes::Bytes;
use journal::{Position, Snapshot, ViewName, Views, Write};
use mesh_identity::Peer;
use tonic::Status;

/// Everything; only some keys; only a part of each value, and nothing of short ones.
pub const VIEWS: [&str; 3] = ["all", "some", "part"];

pub fn project(view: &str, key: &str, value: &Bytes) -> Option<Bytes> {
    match view {
        "all" => Some(value.clone()),
        "some" => key.ends_with(['0', '3', '6', '9']).then(|| value.clone()),
        "part" => (value.len() > 9).then(|| value.slice(..value.len() / 2)),
        other => panic!("there is no view {other}"),
    }
}

/// Which views each service has had, the present one last.
#[derive(Debug, Default)]
pub struct Projections(Mutex<HashMap<String, Vec<&'static str>>>);

impl Projections {
    pub fn assign(&self, service: &str, view: &'static str) {
        let mut views = self.0.lock().unwrap();
        let views = views.entry(service.to_owned()).or_default();
        views.retain(|had| *had != view);
        views.push(view);
    }

    pub fn of(&self, service: &str) -> &'static str {
        self.0.lock().unwrap()[service].last().unwrap()
    }

    /// All it ever had: until it has heard of a change, it shows an earlier one.
    pub fn ever(&self, service: &str) -> Vec<&'static str> {
        self.0.lock().unwrap()[service].clone()
    }
}

impl Views for Projections {
    fn view(&self, peer: &Peer) -> Result<ViewName, Status> {
        let service = peer.id.service_name().ok_or_else(|| Status::permission_denied("services only"))?;
        Ok(self.of(service.as_str()).into())
    }

    fn project(&self, view: &ViewName, key: &str, value: &Bytes) -> Option<Bytes> {
        project(view, key, value)
    }
}

/// All versions of a key in the order of their revisions; an absent value is a deletion.
type Versions = Vec<(u64, Option<Bytes>)>;

/// All that was ever written, per epoch.
#[derive(Debug, Default)]
pub struct Model {
    epoch: u64,
    written: HashMap<u64, BTreeMap<String, Versions>>,
}

impl Model {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn written(&mut self, writes: &[Write], last: Position) {
        assert_eq!(last.epoch, self.epoch);
        let first = last.revision + 1 - writes.len() as u64;
        let epoch = self.written.entry(self.epoch).or_default();
        for (revision, write) in (first..).zip(writes) {
            epoch.entry(write.key.clone()).or_default().push((revision, write.value.clone()));
        }
    }

    /// The store was opened, and this is in it: exactly what was written of its epoch.
    pub fn reopened(&mut self, snapshot: &Snapshot) {
        self.epoch = snapshot.position.epoch;
        let found: BTreeMap<_, _> = snapshot
            .records
            .iter()
            .map(|record| (record.key.clone(), (record.revision, record.value.clone())))
            .collect();
        assert_eq!(found, self.view("all"), "the journal differs from the model");
    }

    pub fn keys_of(&self, epoch: u64) -> impl Iterator<Item = &String> {
        self.written.get(&epoch).into_iter().flat_map(BTreeMap::keys)
    }

    /// What a view shows now.
    pub fn view(&self, view: &str) -> BTreeMap<String, (u64, Bytes)> {
        let Some(written) = self.written.get(&self.epoch) else { return BTreeMap::new() };
        let last = written.iter().filter_map(|(key, versions)| {
            let (revision, value) = versions.last()?;
            Some((key.clone(), (*revision, project(view, key, value.as_ref()?)?)))
        });
        last.collect()
    }

    /// A reader at `position` sees the version of that position or a later one, whole.
    pub fn check_not_older(&self, views: &[&str], position: Position, key: &str, seen: Option<(u64, &[u8])>) {
        let versions = &self.written[&position.epoch][key];
        let current = versions.partition_point(|(revision, _)| *revision <= position.revision);
        // The version of the position, if there was one, and all later ones.
        let allowed = &versions[current.saturating_sub(1)..];
        let good = views.iter().any(|view| {
            let shown = |value: &Option<Bytes>| value.as_ref().and_then(|value| project(view, key, value));
            match seen {
                None => current == 0 || allowed.iter().any(|(_, value)| shown(value).is_none()),
                Some((revision, raw)) => {
                    allowed.iter().any(|(allowed, value)| *allowed == revision && shown(value).as_deref() == Some(raw))
                }
            }
        });
        assert!(good, "{key} at {position} as {views:?}: {seen:?} seen, {allowed:?} allowed");
    }
}
