//! What was refused while no rollout was known. A canary has the new policy some moments before who looks after rollouts
//! knows of it, and what it refuses then is told once.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tenon_proto::policy::v1::{Flow, flow::Decision};

use crate::fleet::Report;

/// For how long it is kept: longer than it takes to learn of a rollout.
const KEPT: Duration = Duration::from_secs(5);
/// How much is kept; whatever the mesh refuses.
const MOST: usize = 1000;

/// The refused calls of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// With when they came, oldest first.
    refused: VecDeque<(Duration, Refused)>,
    /// When something came last that is not kept.
    lost: Option<Duration>,
}

/// Calls of one kind, as a sidecar told of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refused {
    pub service: Arc<str>,
    pub instance: Arc<str>,
    pub flow: Flow,
}

impl Early {
    pub fn keep(&mut self, now: Duration, report: &Report) {
        self.forget(now);
        for flow in report.flows.iter().filter(|flow| flow.decision() == Decision::Refused) {
            if self.refused.len() >= MOST {
                return self.lose(now);
            }
            let (service, instance) = (Arc::clone(&report.service), Arc::clone(&report.instance));
            self.refused.push_back((now, Refused { service, instance, flow: flow.clone() }));
        }
    }

    /// Reports did not come here.
    pub fn lose(&mut self, now: Duration) {
        self.lost = Some(now);
    }

    /// What was refused in the last seconds, and whether that is all. It is forgotten with that.
    pub fn take(&mut self, now: Duration) -> (Vec<Refused>, bool) {
        self.forget(now);
        (self.refused.drain(..).map(|(_, refused)| refused).collect(), self.lost.take().is_none())
    }

    fn forget(&mut self, now: Duration) {
        let old = |at: Duration| now.saturating_sub(at) > KEPT;
        while self.refused.front().is_some_and(|(at, _)| old(*at)) {
            self.refused.pop_front();
        }
        self.lost = self.lost.filter(|at| !old(*at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(paths: usize) -> Report {
        let flow =
            |number| Flow { path: format!("/a.B/{number}"), decision: Decision::Refused.into(), ..Flow::default() };
        let allowed = Flow { decision: Decision::Allowed.into(), ..Flow::default() };
        let flows = (0..paths).map(flow).chain([allowed]).collect();
        Report { instance: "media-1".into(), service: "media".into(), flows }
    }

    #[test]
    fn what_was_refused_in_the_last_seconds_is_kept_as_far_as_there_is_room_and_given_once() {
        let at = Duration::from_secs;
        let mut early = Early::default();
        early.keep(at(10), &report(2));
        early.keep(at(14), &report(1));
        let (refused, all) = early.take(at(16));
        assert_eq!((refused.len(), &*refused[0].instance, all), (1, "media-1", true));
        assert_eq!(early.take(at(16)), (Vec::new(), true));
        early.keep(at(20), &report(MOST + 1));
        assert_eq!(early.refused.len(), MOST);
        let (refused, all) = early.take(at(21));
        assert_eq!((refused.len(), all), (MOST, false));
        early.lose(at(30));
        assert_eq!(early.take(at(36)), (Vec::new(), true), "it was too long ago to be of this rollout");
    }
}
