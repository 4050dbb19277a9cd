use super::*;

const ADDRESS: &str = "10.0.0.7:15006";

fn address() -> Option<SocketAddr> {
    Some(ADDRESS.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn who_was_never_registered_leaves_at_once() {
    let registration = Registration::new();
    let began = Instant::now();
    assert!(!registration.leave(Duration::from_secs(5)).await);
    assert_eq!(began.elapsed(), Duration::ZERO);
    registration.set(address());
    assert_eq!(registration.wanted().borrow().sequence, 0, "it does not come back");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_waits_until_it_is_answered_or_for_as_long_as_it_may() {
    for answers in [true, false] {
        let registration = Registration::new();
        registration.set(address());
        registration.answered(1);
        let began = Instant::now();
        let (left, ()) = tokio::join!(registration.leave(Duration::from_secs(5)), async {
            let mut wanted = registration.wanted();
            let told = wanted.wait_for(|wanted| wanted.address.is_none()).await.unwrap().sequence;
            assert_eq!(told, 2);
            registration.answered(1);
            sleep(Duration::from_millis(300)).await;
            if answers {
                registration.answered(told);
            }
        });
        assert!(left);
        let waited = if answers { Duration::from_millis(300) } else { Duration::from_secs(5) };
        assert_eq!(began.elapsed(), waited);
    }
}

#[test]
fn only_what_is_new_is_told() {
    let registration = Registration::new();
    let told = || registration.wanted().borrow().sequence;
    registration.set(None);
    assert_eq!(told(), 0);
    for (address, sequence) in [(address(), 1), (address(), 1), (None, 2), (None, 2), (address(), 3)] {
        registration.set(address);
        assert_eq!(told(), sequence);
    }
    registration.again();
    assert_eq!(told(), 4);
}

#[tokio::test]
async fn an_app_accepts_or_it_does_not() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = LocalAddress::Tcp(listener.local_addr().unwrap());
    assert!(accepts(&app).await);
    drop(listener);
    assert!(!accepts(&app).await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app");
    let app = LocalAddress::Unix(path.as_path().into());
    assert!(!accepts(&app).await);
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    assert!(accepts(&app).await);
}

#[test]
fn the_address_towards_the_policy_service_is_one_of_this_host() {
    assert_eq!(towards("127.0.0.1:15030".parse().unwrap()), Some("127.0.0.1".parse().unwrap()));
}
