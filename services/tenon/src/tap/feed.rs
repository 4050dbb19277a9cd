//! Calls of the whole mesh as the policy services tell them: each knows its own sidecars alone, so all of them are asked.

use std::time::Duration;

use tenon_proto::policy::v1::{
    TapRequest, TapResponse, TapState, TappedCall, policy_client::PolicyClient, tap_response::Response,
};
use tokio::{sync::mpsc, time::sleep};
use tonic::{Code, Status};

use crate::{
    failure::Failure,
    operator::{Mesh, Process, Role, reason},
};

/// The wait before a policy service that went away is asked again; it doubles.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Calls that wait to be heard.
const WAITING: usize = 256;

/// What comes next.
pub enum Heard {
    Call(Box<TappedCall>),
    State {
        /// That tell what they see, all together.
        sidecars: u32,
        /// Calls that nobody told since this was said last.
        left_out: u64,
    },
    /// Of which one is away, in words; it is asked again.
    Away(String),
}

/// What comes of one of the policy services.
enum News {
    Response(usize, Response),
    /// It does not answer, or does no more.
    Away(usize, Process, Status),
}

/// Watches until it is dropped.
pub struct Feed {
    mesh: Mesh,
    news: mpsc::Receiver<News>,
    told: Told,
}

/// Of each policy service.
struct Told {
    /// As it was told last.
    states: Vec<Option<TapState>>,
    /// Whether it has failed to answer.
    away: Vec<bool>,
    /// One of them has answered.
    begun: bool,
}

impl Feed {
    /// Asks every policy service of the mesh.
    pub fn begin(mesh: Mesh, request: &TapRequest) -> Self {
        let (sender, news) = mpsc::channel(WAITING);
        let processes: Vec<_> = mesh.processes().into_iter().filter(|process| process.role == Role::Policy).collect();
        let told = Told { states: vec![None; processes.len()], away: vec![false; processes.len()], begun: false };
        for (index, process) in processes.into_iter().enumerate() {
            let client = PolicyClient::new(mesh.channel_to(&process));
            tokio::spawn(watch(client, request.clone(), index, process, sender.clone()));
        }
        Self { mesh, news, told }
    }

    /// Waits for what comes next. Given up, nothing is lost.
    ///
    /// # Errors
    /// No policy service answers to begin with, or one does not take what was asked for.
    pub async fn next(&mut self) -> Result<Heard, Failure> {
        match self.news.recv().await {
            Some(News::Response(_, Response::Call(call))) => {
                self.told.begun = true;
                Ok(Heard::Call(Box::new(call)))
            }
            Some(News::Response(index, Response::State(state))) => Ok(self.told.state(index, state)),
            Some(News::Away(index, process, status)) => self.gone(index, &process, &status),
            // None only where a mesh has no policy service at all.
            None => Err(Failure::new("no policy service is known, and only they know the sidecars")),
        }
    }

    /// A filter that is not taken is nobody's fault but the operator's; who is away may come back.
    fn gone(&mut self, index: usize, process: &Process, status: &Status) -> Result<Heard, Failure> {
        let refused = matches!(
            status.code(),
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::ResourceExhausted
                | Code::Unimplemented
        );
        if refused || self.told.nobody_answers(index) {
            return Err(self.mesh.failure(Role::Policy, "cannot watch calls", status));
        }
        Ok(Heard::Away(format!("{} is away, trying again: {}", process.title, reason(status))))
    }
}

impl Told {
    fn state(&mut self, index: usize, state: TapState) -> Heard {
        self.begun = true;
        let before = self.states[index].replace(state);
        // One that was away counts from 0 again.
        let left_out = before.map_or(0, |before| before.left_out);
        let left_out = state.left_out.checked_sub(left_out).unwrap_or(state.left_out);
        Heard::State { sidecars: self.states.iter().flatten().map(|state| state.sidecars).sum(), left_out }
    }

    /// Whether none is left to begin with, when this one does not answer.
    fn nobody_answers(&mut self, index: usize) -> bool {
        self.away[index] = true;
        self.states[index] = None;
        !self.begun && self.away.iter().all(|away| *away)
    }
}

/// Watches through one policy service for as long as anybody wants to know.
async fn watch(
    mut client: PolicyClient<tonic::transport::Channel>,
    request: TapRequest,
    index: usize,
    process: Process,
    news: mpsc::Sender<News>,
) {
    let mut wait = SHORTEST_WAIT;
    loop {
        let status = match client.tap(request.clone()).await {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(TapResponse { response: Some(response) })) => {
                            wait = SHORTEST_WAIT;
                            if news.send(News::Response(index, response)).await.is_err() {
                                return;
                            }
                        }
                        // Something newer than this program.
                        Ok(Some(TapResponse { response: None })) => {}
                        Ok(None) => break Status::unavailable("it ended"),
                        Err(status) => break status,
                    }
                }
            }
        };
        if news.send(News::Away(index, process.clone(), status)).await.is_err() {
            return;
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_policy_services_that_fails_twice_is_not_both_of_them() {
        let mut told = Told { states: vec![None; 2], away: vec![false; 2], begun: false };
        assert!(!told.nobody_answers(0) && !told.nobody_answers(0));
        assert!(told.nobody_answers(1));
        told.begun = true;
        assert!(!told.nobody_answers(1), "who was there comes back");
    }

    #[test]
    fn what_is_left_out_is_counted_once_also_of_one_that_begins_anew() {
        let mut told = Told { states: vec![None; 2], away: vec![false; 2], begun: false };
        let mut left_out = |index, left_out| match told.state(index, TapState { sidecars: 2, left_out }) {
            Heard::State { sidecars, left_out } => (sidecars, left_out),
            Heard::Call(_) | Heard::Away(_) => (0, 0),
        };
        assert_eq!([left_out(0, 5), left_out(1, 1), left_out(0, 9), left_out(0, 3)], [(2, 5), (4, 1), (4, 4), (4, 3)]);
    }
}
