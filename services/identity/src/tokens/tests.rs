use journal::Embedded;

use super::*;

const NOW: u64 = 1_800_000_000;

struct Store {
    tokens: JoinTokens,
    journal: Arc<dyn Journal>,
    _dir: tempfile::TempDir,
}

fn store() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&dir.path().join("store.redb")).unwrap().kind(KIND).unwrap();
    Store { tokens: JoinTokens::new(Arc::clone(&journal)), journal, _dir: dir }
}

fn media() -> ServiceName {
    "media".parse().unwrap()
}

const HOLDER: Holder = [7; 32];

#[tokio::test]
async fn a_token_attests_its_service_once() {
    let store = store();
    let (token, expires) = store.tokens.create(&media(), 600, NOW).await.unwrap();
    assert_eq!(expires, NOW + 600);
    let presented = store.tokens.look_up(&token, NOW + 599).await.unwrap();
    assert_eq!(presented.service, "media");
    store.tokens.consume(presented, &HOLDER, NOW + 599).await.unwrap();
    assert!(matches!(store.tokens.look_up(&token, NOW + 599).await, Err(TokenError::Used)));
}

#[tokio::test]
async fn of_two_attempts_that_both_saw_a_good_token_one_wins() {
    let store = store();
    let (token, _) = store.tokens.create(&media(), 600, NOW).await.unwrap();
    let one = store.tokens.look_up(&token, NOW).await.unwrap();
    let two = store.tokens.look_up(&token, NOW).await.unwrap();
    store.tokens.consume(two, &HOLDER, NOW).await.unwrap();
    assert!(matches!(store.tokens.consume(one, &HOLDER, NOW).await, Err(TokenError::Used)));
}

#[tokio::test]
async fn a_token_ends_with_its_last_second() {
    let store = store();
    let (token, _) = store.tokens.create(&media(), 600, NOW).await.unwrap();
    assert!(store.tokens.look_up(&token, NOW + 599).await.is_ok());
    assert!(matches!(store.tokens.look_up(&token, NOW + 600).await, Err(TokenError::Expired)));
}

#[tokio::test]
async fn a_token_that_is_given_back_is_good_again() {
    let store = store();
    let (token, _) = store.tokens.create(&media(), 600, NOW).await.unwrap();
    let presented = store.tokens.look_up(&token, NOW).await.unwrap();
    let consumed = store.tokens.consume(presented, &HOLDER, NOW).await.unwrap();
    store.tokens.release(consumed).await.unwrap();
    assert!(store.tokens.look_up(&token, NOW).await.is_ok());
}

#[tokio::test]
async fn the_store_never_holds_a_token_itself() {
    let store = store();
    let (token, _) = store.tokens.create(&media(), 600, NOW).await.unwrap();
    let records = store.journal.snapshot().await.unwrap().records;
    assert_eq!(records.len(), 1);
    let raw = URL_SAFE_NO_PAD.decode(token.as_bytes()).unwrap();
    for record in records {
        assert!(!record.key.contains(token.as_str()));
        let value: &[u8] = &record.value;
        assert!(!value.windows(token.len()).any(|bytes| bytes == token.as_bytes()));
        assert!(!value.windows(raw.len()).any(|bytes| bytes == raw));
    }
}

#[tokio::test]
async fn texts_that_never_were_tokens_are_unknown() {
    let store = store();
    store.tokens.create(&media(), 600, NOW).await.unwrap();
    for text in ["", "nonsense", "a".repeat(10_000).as_str()] {
        assert!(matches!(store.tokens.look_up(text, NOW).await, Err(TokenError::Unknown)));
    }
}

#[tokio::test]
async fn expired_records_go_when_the_next_token_is_made() {
    let store = store();
    store.tokens.create(&media(), 600, NOW).await.unwrap();
    store.tokens.create(&media(), 6000, NOW).await.unwrap();
    store.tokens.create(&media(), 600, NOW + 600).await.unwrap();
    assert_eq!(store.journal.snapshot().await.unwrap().records.len(), 2);
}

#[tokio::test]
async fn a_used_token_is_good_for_its_user_alone_and_for_five_minutes() {
    let store = store();
    let (token, _) = store.tokens.create(&media(), 600, NOW).await.unwrap();
    assert!(store.tokens.look_up_again(&token, &HOLDER, NOW).await.is_err(), "nobody has used it");
    let presented = store.tokens.look_up(&token, NOW).await.unwrap();
    store.tokens.consume(presented, &HOLDER, NOW).await.unwrap();
    for _ in 0..2 {
        let again = store.tokens.look_up_again(&token, &HOLDER, NOW + 299).await.unwrap();
        store.tokens.consume(again, &HOLDER, NOW + 299).await.unwrap();
    }
    assert!(matches!(store.tokens.look_up_again(&token, &[8; 32], NOW).await, Err(TokenError::Used)));
    assert!(matches!(store.tokens.look_up_again(&token, &HOLDER, NOW + 300).await, Err(TokenError::Used)));
    assert!(matches!(store.tokens.look_up(&token, NOW).await, Err(TokenError::Used)));
}
