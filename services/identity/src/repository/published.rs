//! What the repository says, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::HeaderValue;
use journal::{Entry, Journal, ReadError, TailError};
use mesh_asap::Kid;
use mesh_config::names::ServiceName;
use mesh_identity::TrustBundle;
use prost::Message as _;
use serde_json::json;
use tenon_proto::identity::v1::{self as proto, Key, KeyUse};
use tokio_util::sync::CancellationToken;

use super::jwk;
use crate::revocations::Revocations;

/// The media type of keys (A15), and of PEM in general.
pub(super) const PEM: &str = "application/x-pem-file";
/// SPIFFE Trust Domain and Bundle §5.2.1.
const JSON: &str = "application/json";
/// RFC 7517 §8.5.
const JWK_SET: &str = "application/jwk-set+json";
/// How often other SPIFFE systems should look, in seconds.
const REFRESH_HINT: u64 = 300;
/// Between two attempts to read the journal.
const PAUSE: Duration = Duration::from_secs(1);

/// One document, ready to send.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub body: Bytes,
    /// Strong: it is of the bytes.
    pub etag: HeaderValue,
    pub media_type: &'static str,
}

/// Everything that is served. Read without a lock.
pub(super) struct Published {
    /// ASAP keys by kid.
    keys: papaya::HashMap<String, Document, ahash::RandomState>,
    /// Keys of transaction tokens as JWKs, by kid.
    transaction: Mutex<BTreeMap<String, serde_json::Value>>,
    jwks: ArcSwapOption<Document>,
    bundle: ArcSwapOption<Document>,
    spiffe_bundle: ArcSwapOption<Document>,
    /// Asked at each look-up, so that a revoked key is gone before its record is.
    revocations: Arc<Revocations>,
    /// Whether the store was lost and services are registering their keys anew.
    recovering: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What stands at a path.
pub(super) enum Found {
    Document(Document),
    /// Nothing, or nothing for everybody.
    Nothing,
    /// Nobody knows yet: "not found" would be believed.
    NotYet,
}

/// What the journal tells.
pub(super) enum News {
    /// All records, as after a start.
    All(Vec<Entry>),
    Some(Vec<Entry>),
}

impl Document {
    fn new(body: impl Into<Bytes>, media_type: &'static str) -> Arc<Self> {
        let body = body.into();
        let hash = digest::digest(&digest::SHA256, &body);
        let hex: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let etag = HeaderValue::try_from(format!("\"{hex}\"")).expect("hexadecimal in quotes");
        Arc::new(Self { body, etag, media_type })
    }
}

impl Published {
    pub(super) fn new(revocations: Arc<Revocations>, recovering: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let published = Self {
            keys: papaya::HashMap::default(),
            transaction: Mutex::default(),
            jwks: ArcSwapOption::empty(),
            bundle: ArcSwapOption::empty(),
            spiffe_bundle: ArcSwapOption::empty(),
            revocations,
            recovering: Box::new(recovering),
        };
        published.write_jwks(&BTreeMap::new());
        published
    }

    /// What stands at an absolute path.
    pub(super) fn get(&self, path: &str) -> Found {
        let document = match path {
            "/trust-bundle.pem" => &self.bundle,
            "/.well-known/spiffe-bundle.json" => &self.spiffe_bundle,
            "/.well-known/jwks.json" => &self.jwks,
            _ => return self.key(path.strip_prefix('/').unwrap_or_default()),
        };
        document.load().as_deref().cloned().map_or(Found::NotYet, Found::Document)
    }

    fn key(&self, kid: &str) -> Found {
        // Byte for byte: nothing is decoded, so "%2F" and ".." name no key (A4, A15).
        let Ok(kid) = kid.parse::<Kid>() else { return Found::Nothing };
        let Some(found) = self.keys.pin().get(kid.as_str()).cloned() else {
            return if (self.recovering)() { Found::NotYet } else { Found::Nothing };
        };
        // What stands before the first slash: a service's key ids may have more of them.
        let issuer = kid.segments().next().and_then(|issuer| ServiceName::try_from(issuer).ok());
        let revoked =
            self.revocations.names_kid(&kid) || issuer.is_some_and(|issuer| self.revocations.names_service(&issuer));
        if revoked { Found::Nothing } else { Found::Document(found) }
    }

    /// Of the kind "key".
    pub(super) fn apply_keys(&self, news: News) {
        let mut transaction = self.transaction.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = match news {
            News::Some(entries) => entries,
            News::All(entries) => {
                let there: std::collections::HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
                self.keys.pin().retain(|kid, _| there.contains(kid.as_str()));
                transaction.retain(|kid, _| there.contains(kid.as_str()));
                entries
            }
        };
        for entry in entries {
            match entry.value.and_then(readable_key) {
                Some(key) if key.r#use() == KeyUse::Transaction => {
                    self.keys.pin().remove(&entry.key);
                    if let Some(jwk) = jwk::of_transaction_key(&key) {
                        transaction.insert(entry.key, jwk);
                    }
                }
                Some(key) => {
                    transaction.remove(&entry.key);
                    let text = pem::encode(&pem::Pem::new("PUBLIC KEY", key.spki.to_vec()));
                    self.keys.pin().insert(entry.key, Document::clone(&Document::new(text, PEM)));
                }
                None => {
                    self.keys.pin().remove(&entry.key);
                    transaction.remove(&entry.key);
                }
            }
        }
        self.write_jwks(&transaction);
    }

    /// Of the kind "trust_bundle": there is one record.
    pub(super) fn apply_bundle(&self, news: News) {
        let (News::All(entries) | News::Some(entries)) = news;
        for value in entries.into_iter().filter_map(|entry| entry.value) {
            let bundle = proto::TrustBundle::decode(value).ok();
            let Some(bundle) = bundle.and_then(|bundle| TrustBundle::from_proto(&bundle).ok()) else {
                tracing::error!("the trust bundle in the store does not decode: the last one is served");
                continue;
            };
            self.bundle.store(Some(Document::new(bundle.to_pem(), PEM)));
            self.spiffe_bundle.store(Some(Document::new(spiffe_bundle(&bundle).to_string(), JSON)));
        }
    }

    fn write_jwks(&self, keys: &BTreeMap<String, serde_json::Value>) {
        let keys: Vec<_> = keys.values().collect();
        self.jwks.store(Some(Document::new(json!({"keys": keys}).to_string(), JWK_SET)));
    }
}

fn readable_key(value: Bytes) -> Option<Key> {
    let key = Key::decode(value);
    if key.is_err() {
        tracing::error!("a key in the store does not decode: it is not served");
    }
    key.ok()
}

/// SPIFFE Trust Domain and Bundle §4: a JWK Set of the roots.
fn spiffe_bundle(bundle: &TrustBundle) -> serde_json::Value {
    let keys: Vec<_> = bundle.roots().iter().filter_map(|root| jwk::of_root(root)).collect();
    json!({
        "keys": keys,
        "spiffe_sequence": bundle.rotation().sequence,
        "spiffe_refresh_hint": REFRESH_HINT,
    })
}

/// Takes what the journal holds, then returns what follows it until `shutdown`. A journal that cannot be read any more
/// leaves the memory as it is.
///
/// # Errors
/// The journal cannot be read now.
pub(super) async fn follow(
    journal: Arc<dyn Journal>,
    published: Arc<Published>,
    apply: fn(&Published, News),
    shutdown: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static, ReadError> {
    let mut from = take_all(&*journal, &published, apply).await?;
    Ok(async move {
        let following = async {
            loop {
                let mut tail = journal.tail(from);
                while let Some(entries) = tail.next().await {
                    match entries {
                        Ok(entries) => {
                            from.revision = entries.last().map_or(from.revision, |entry| entry.revision);
                            apply(&published, News::Some(entries));
                        }
                        Err(TailError::Compacted) => break,
                        Err(TailError::Read(error)) => {
                            tracing::error!(%error, "the key repository cannot follow the store");
                            break;
                        }
                    }
                }
                loop {
                    tokio::time::sleep(PAUSE).await;
                    if let Ok(position) = take_all(&*journal, &published, apply).await {
                        from = position;
                        break;
                    }
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = shutdown.cancelled() => {}
        }
    })
}

async fn take_all(
    journal: &dyn Journal,
    published: &Published,
    apply: fn(&Published, News),
) -> Result<journal::Position, ReadError> {
    let snapshot = journal.snapshot().await?;
    let entries = snapshot.records.into_iter().map(|record| Entry {
        key: record.key,
        revision: record.revision,
        value: Some(record.value),
        at_unix_ms: 0,
    });
    apply(published, News::All(entries.collect()));
    Ok(snapshot.position)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use journal::{Embedded, Write};
    use mesh_asap::SigningKey;

    use super::*;

    fn record(key: &SigningKey, used: KeyUse) -> Bytes {
        let issuer = key.issuer().to_owned();
        let spki = key.public_spki().into();
        let record = Key { kid: key.kid().to_string(), issuer, spki, r#use: used.into(), ..Key::default() };
        record.encode_to_vec().into()
    }

    struct Fixture {
        published: Arc<Published>,
        keys: Arc<dyn Journal>,
        recovering: Arc<AtomicBool>,
        _dir: tempfile::TempDir,
    }

    async fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let revocations = Arc::new(Revocations::open(store.kind("revocation").unwrap(), |_| {}).await.unwrap());
        let recovering = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&recovering);
        let published = Arc::new(Published::new(revocations, move || flag.load(Ordering::SeqCst)));
        Fixture { published, keys: store.kind("key").unwrap(), recovering, _dir: dir }
    }

    #[tokio::test]
    async fn what_the_journal_holds_is_served_before_anything_else_and_what_it_deletes_is_not() {
        let Fixture { published, keys, _dir, .. } = fixture().await;
        let (asap, transaction) =
            (SigningKey::generate("media").unwrap(), SigningKey::generate("tenon-identity").unwrap());
        keys.append(vec![
            Write::put(asap.kid().as_str(), record(&asap, KeyUse::Unspecified)),
            Write::put(transaction.kid().as_str(), record(&transaction, KeyUse::Transaction)),
            Write::put("media/damaged", vec![0xff]),
        ])
        .await
        .unwrap();
        let stop = CancellationToken::new();
        let following =
            follow(Arc::clone(&keys), Arc::clone(&published), Published::apply_keys, stop.clone()).await.unwrap();
        assert!(matches!(published.get(&format!("/{}", asap.kid())), Found::Document(_)));
        assert!(matches!(published.get(&format!("/{}", transaction.kid())), Found::Nothing));
        assert!(matches!(published.get("/media/damaged"), Found::Nothing));
        let Found::Document(jwks) = published.get("/.well-known/jwks.json") else { panic!("a key set") };
        let jwks: serde_json::Value = serde_json::from_slice(&jwks.body).unwrap();
        assert_eq!(jwks["keys"][0]["kid"], transaction.kid().as_str());

        let following = tokio::spawn(following);
        keys.append(vec![Write::delete(asap.kid().as_str()), Write::delete(transaction.kid().as_str())]).await.unwrap();
        let gone = async {
            while matches!(published.get(&format!("/{}", asap.kid())), Found::Document(_)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        let Found::Document(jwks) = published.get("/.well-known/jwks.json") else { panic!("a key set") };
        assert_eq!(&jwks.body[..], br#"{"keys":[]}"#);
        stop.cancel();
        following.await.unwrap();
    }

    #[tokio::test]
    async fn every_key_of_a_revoked_service_is_gone_before_its_record_is_however_many_slashes_its_id_has() {
        let Fixture { published, _dir, .. } = fixture().await;
        let key = SigningKey::generate("media").unwrap();
        let entry = |kid: &str| {
            let value = Some(record(&key, KeyUse::Unspecified));
            Entry { key: kid.to_owned(), revision: 1, value, at_unix_ms: 0 }
        };
        published.apply_keys(News::All(["media/1", "media/a/b", "issues/1"].map(entry).into()));
        let media = crate::revocations::Selector::Service("media".parse().unwrap());
        published.revocations.revoke(&media, "ann", "", 1).await.unwrap();
        assert!(matches!(published.get("/media/1"), Found::Nothing));
        assert!(matches!(published.get("/media/a/b"), Found::Nothing));
        assert!(matches!(published.get("/issues/1"), Found::Document(_)));
    }

    #[tokio::test]
    async fn nothing_is_said_not_to_exist_while_keys_come_back_or_before_there_is_a_bundle() {
        let Fixture { published, recovering, _dir, .. } = fixture().await;
        assert!(matches!(published.get("/trust-bundle.pem"), Found::NotYet));
        recovering.store(true, Ordering::SeqCst);
        assert!(matches!(published.get("/media/1"), Found::NotYet));
        assert!(matches!(published.get("/media//1"), Found::Nothing), "no kid, whatever comes back");
        recovering.store(false, Ordering::SeqCst);
        assert!(matches!(published.get("/media/1"), Found::Nothing));
    }
}
