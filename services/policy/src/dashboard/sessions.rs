//! Who is signed in. Never reads the clock: `now` is an argument, in Unix seconds.
//!
//! Codes and tokens are 32 random bytes, and what is kept of them is their SHA-256: who reads this process's memory image
//! cannot sign in with it, and looking one up tells nothing by its time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::{digest, rand};
use mesh_identity::Peer;
use tonic::Status;

/// How long a code can be used.
const CODE: u64 = 2 * 60;
/// How long a session lasts at most: never longer than the certificate with which it was asked for.
const SESSION: u64 = 8 * 60 * 60;
/// Codes that wait to be used, of everybody and of one operator.
const CODES: usize = 256;
const CODES_OF_ONE: usize = 16;
/// Sessions at once. Beyond, the oldest ends.
const SESSIONS: usize = 256;

type Hash = [u8; 32];

#[derive(Default)]
pub(super) struct Sessions(Mutex<Held>);

#[derive(Default)]
struct Held {
    codes: HashMap<Hash, Session>,
    sessions: HashMap<Hash, Session>,
}

struct Session {
    peer: Arc<Peer>,
    until: u64,
}

impl Sessions {
    /// A code for `peer`, and until when it can be used.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`: too many wait to be used.
    pub fn invite(&self, peer: Peer, now: u64) -> Result<(String, u64), Status> {
        let mut held = self.held();
        held.codes.retain(|_, code| code.until > now);
        let own = held.codes.values().filter(|code| code.peer.id == peer.id).count();
        if held.codes.len() >= CODES || own >= CODES_OF_ONE {
            return Err(Status::resource_exhausted(
                "too many links were made and not opened: open one of them, or try again in two minutes",
            ));
        }
        let (code, until) = (secret()?, now + CODE);
        held.codes.insert(hash(&code), Session { peer: Arc::new(peer), until });
        Ok((code, until))
    }

    /// Makes a code a session: its token. `None`: there is no such code, or no more.
    pub fn redeem(&self, code: &str, now: u64) -> Option<String> {
        let mut held = self.held();
        let Session { peer, until } = held.codes.remove(&hash(code))?;
        if until <= now {
            return None;
        }
        held.sessions.retain(|_, session| session.until > now);
        if held.sessions.len() >= SESSIONS {
            let oldest = held.sessions.iter().min_by_key(|(_, session)| session.until).map(|(hash, _)| *hash);
            oldest.and_then(|oldest| held.sessions.remove(&oldest));
        }
        let token = secret().ok()?;
        let until = peer.not_after.min(now + SESSION);
        held.sessions.insert(hash(&token), Session { peer, until });
        Some(token)
    }

    /// Whose session it is, and until when.
    pub fn find(&self, token: &str, now: u64) -> Option<(Arc<Peer>, u64)> {
        let held = self.held();
        let session = held.sessions.get(&hash(token)).filter(|session| session.until > now)?;
        Some((Arc::clone(&session.peer), session.until))
    }

    pub fn end(&self, token: &str) {
        self.held().sessions.remove(&hash(token));
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn secret() -> Result<String, Status> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| Status::internal("this machine gives no random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn hash(secret: &str) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use mesh_identity::OperatorRole;

    use super::*;

    fn operator(name: &str) -> Peer {
        Peer {
            id: format!("spiffe://test.example/operator/{name}").parse().unwrap(),
            serial: "1".into(),
            not_after: u64::MAX,
            role: Some(OperatorRole::Viewer),
        }
    }

    #[test]
    fn a_code_signs_in_once_and_within_two_minutes() {
        let sessions = Sessions::default();
        let (code, until) = sessions.invite(operator("ann"), 1_000).unwrap();
        assert_eq!(until, 1_120);
        assert!(sessions.find(&code, 1_000).is_none(), "a code is no token");
        let token = sessions.redeem(&code, 1_119).unwrap();
        assert!(sessions.redeem(&code, 1_119).is_none(), "twice");
        assert_eq!(sessions.find(&token, 1_119).unwrap().0.id, operator("ann").id);
        let (late, until) = sessions.invite(operator("ann"), 1_000).unwrap();
        assert!(sessions.redeem(&late, until).is_none());
        assert!(sessions.redeem("", 0).is_none() && sessions.find("", 0).is_none());
    }

    #[test]
    fn a_session_ends_with_its_time_or_when_it_is_ended() {
        let sessions = Sessions::default();
        let sign_in = |now| sessions.redeem(&sessions.invite(operator("ann"), now).unwrap().0, now).unwrap();
        let (one, two) = (sign_in(0), sign_in(0));
        assert!(sessions.find(&one, SESSION - 1).is_some() && sessions.find(&one, SESSION).is_none());
        let short = Peer { not_after: 60, ..operator("ann") };
        let three = sessions.redeem(&sessions.invite(short, 0).unwrap().0, 0).unwrap();
        assert!(sessions.find(&three, 59).is_some() && sessions.find(&three, 60).is_none(), "its certificate is over");
        sessions.end(&two);
        assert!(sessions.find(&two, 1).is_none() && sessions.find(&one, 1).is_some());
    }

    #[test]
    fn neither_codes_nor_sessions_grow_without_bound() {
        let sessions = Sessions::default();
        for _ in 0..CODES_OF_ONE {
            sessions.invite(operator("ann"), 0).unwrap();
        }
        assert!(sessions.invite(operator("ann"), 0).is_err() && sessions.invite(operator("bob"), 0).is_ok());
        assert!(sessions.invite(operator("ann"), CODE).is_ok(), "those of before are over");
        let first = sessions.redeem(&sessions.invite(operator("ann"), CODE).unwrap().0, CODE).unwrap();
        for now in 1..=SESSIONS as u64 {
            let (code, _) = sessions.invite(operator("bob"), CODE + now).unwrap();
            sessions.redeem(&code, CODE + now).unwrap();
        }
        assert!(sessions.find(&first, CODE).is_none(), "the oldest ends");
        assert_eq!(sessions.held().sessions.len(), SESSIONS);
    }
}
