//! Join tokens: each attests one service, once.
//!
//! Of a token only the SHA-256 is kept. Never reads the clock.

use std::sync::Arc;

use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use journal::{AppendError, Expected, Journal, ReadError, Write};
use mesh_config::names::ServiceName;
use prost::Message;
use zeroize::Zeroizing;

/// Kind of the journal that keeps them. Never replicated.
pub(crate) const KIND: &str = "join_token";

/// Life of a token whose maker names none, in seconds.
pub(crate) const DEFAULT_TTL: u32 = 600;
/// The longest life of a token, in seconds.
pub(crate) const MAX_TTL: u32 = 86_400;
/// 256 bits.
const TOKEN_BYTES: usize = 32;
/// For this long after its use a token is good for whoever used it, in seconds. No longer: with a stolen key it would be
/// worth another certificate after the first was revoked.
const AGAIN: u64 = 300;
/// Longer texts are no tokens; they are not even hashed.
const MAX_TEXT_BYTES: usize = 256;

/// The record behind a token. Its key is the SHA-256 of the token in hexadecimal.
#[derive(Clone, PartialEq, Eq, Message)]
struct Record {
    /// Whom it attests.
    #[prost(string, tag = "1")]
    service: String,
    #[prost(uint64, tag = "2")]
    expires_unix_seconds: u64,
    /// 0: not used yet. A used one is kept until it expires, so that a second use is told from a mistyped token.
    #[prost(uint64, tag = "3")]
    used_unix_seconds: u64,
    /// Whom it attested: the SHA-256 of the public key that the certificate was for.
    #[prost(bytes = "vec", tag = "4")]
    used_by: Vec<u8>,
}

/// The SHA-256 of the public key that a certificate is asked for. The request is signed by it, so nobody else can show it.
pub(crate) type Holder = [u8; 32];

/// The tokens that were made and have not expired.
#[derive(Clone)]
pub(crate) struct JoinTokens {
    journal: Arc<dyn Journal>,
}

/// A token that was good when it was looked at. Only [`JoinTokens::consume`] decides.
pub(crate) struct Presented {
    /// Whom it attests.
    pub service: ServiceName,
    key: String,
    revision: u64,
    record: Record,
}

/// A token that nobody else can use any more.
pub(crate) struct Consumed {
    key: String,
    revision: u64,
    /// As it was before.
    record: Record,
}

/// Why a token attests nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the join token is not known: make one with `tenon identity join-token`")]
    Unknown,
    #[error("the join token has expired: make another with `tenon identity join-token`")]
    Expired,
    #[error(
        "the join token was used already, and each is good for once: make another with `tenon identity join-token`"
    )]
    Used,
    #[error("the store of join tokens cannot be read")]
    Read(#[from] ReadError),
    #[error("the store of join tokens cannot be written")]
    Write(#[from] AppendError),
}

impl JoinTokens {
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal }
    }

    /// A new token for `service`. Records of expired ones go with the same write.
    pub(crate) async fn create(
        &self,
        service: &ServiceName,
        ttl: u32,
        now: u64,
    ) -> Result<(Zeroizing<String>, u64), TokenError> {
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        rand::fill(&mut *bytes).expect("the operating system gives randomness");
        let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
        let expires_unix_seconds = now + u64::from(ttl);
        let record =
            Record { service: service.to_string(), expires_unix_seconds, used_unix_seconds: 0, used_by: Vec::new() };

        let mut writes = self.expired(now).await?;
        writes.push(Write::put(key_of(&token), record.encode_to_vec()).expecting(Expected::Absent));
        self.journal.append(writes).await?;
        Ok((token, expires_unix_seconds))
    }

    /// Looks a token up and changes nothing.
    pub(crate) async fn look_up(&self, token: &str, now: u64) -> Result<Presented, TokenError> {
        let found = self.find(token, now).await?;
        if found.record.used_unix_seconds != 0 { Err(TokenError::Used) } else { Ok(found) }
    }

    /// The same for a token that was used: it is still good for whoever used it, since the answer may have been lost with
    /// the process that was to send it.
    pub(crate) async fn look_up_again(&self, token: &str, by: &Holder, now: u64) -> Result<Presented, TokenError> {
        let found = self.find(token, now).await?;
        let in_time = now < found.record.used_unix_seconds + AGAIN;
        if found.record.used_by == by && in_time { Ok(found) } else { Err(TokenError::Used) }
    }

    async fn find(&self, token: &str, now: u64) -> Result<Presented, TokenError> {
        if token.is_empty() || token.len() > MAX_TEXT_BYTES {
            return Err(TokenError::Unknown);
        }
        let key = key_of(token);
        let found = self.journal.get(&key).await?.ok_or(TokenError::Unknown)?;
        let record = Record::decode(found.value).map_err(|_| TokenError::Unknown)?;
        let service = ServiceName::try_from(record.service.as_str()).map_err(|_| TokenError::Unknown)?;
        // That it was used is told even then: a used token is no mistyped one.
        if now >= record.expires_unix_seconds {
            return Err(if record.used_unix_seconds == 0 { TokenError::Expired } else { TokenError::Used });
        }
        Ok(Presented { service, key, revision: found.revision, record })
    }

    /// Makes the token this attempt's own: of any number of attempts at once exactly one succeeds.
    pub(crate) async fn consume(&self, token: Presented, by: &Holder, now: u64) -> Result<Consumed, TokenError> {
        let Presented { key, revision, record, .. } = token;
        let first_use = if record.used_unix_seconds == 0 { now.max(1) } else { record.used_unix_seconds };
        let used = Record { used_unix_seconds: first_use, used_by: by.to_vec(), ..record.clone() };
        let write = Write::put(key.clone(), used.encode_to_vec()).expecting(Expected::Revision(revision));
        match self.journal.append(vec![write]).await {
            Ok(position) => Ok(Consumed { key, revision: position.revision, record }),
            Err(AppendError::Conflict { .. }) => Err(TokenError::Used),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a token back when the attempt that consumed it came to nothing.
    pub(crate) async fn release(&self, token: Consumed) -> Result<(), TokenError> {
        let Consumed { key, revision, record } = token;
        let write = Write::put(key, record.encode_to_vec()).expecting(Expected::Revision(revision));
        self.journal.append(vec![write]).await?;
        Ok(())
    }

    async fn expired(&self, now: u64) -> Result<Vec<Write>, TokenError> {
        let records = self.journal.snapshot().await?.records;
        let expired = records
            .into_iter()
            .filter(|found| !Record::decode(found.value.clone()).is_ok_and(|record| now < record.expires_unix_seconds));
        Ok(expired.map(|found| Write::delete(found.key)).collect())
    }
}

fn key_of(token: &str) -> String {
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
