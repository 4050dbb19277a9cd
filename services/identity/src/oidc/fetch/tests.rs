use mesh_identity::repository::testing::{KeyServer, Reply, WebCa};

use super::*;

#[test]
fn the_age_that_a_document_may_have_is_read_from_cache_control() {
    for (values, expected) in [
        (&[][..], None),
        (&["max-age=60"], Some(60)),
        (&["public, Max-Age=3600, must-revalidate"], Some(3600)),
        (&["public", "max-age=\"7\""], Some(7)),
        (&["max-age=60, no-store"], Some(0)),
        (&["no-cache"], Some(0)),
        (&["max-age=soon"], None),
        (&["max-age"], None),
    ] {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CACHE_CONTROL, value.parse().unwrap());
        }
        assert_eq!(max_age(&headers), expected.map(Duration::from_secs), "{values:?}");
    }
}

#[tokio::test]
async fn nothing_but_https_is_fetched() {
    let https = Https::new(vec![]);
    for url in ["http://127.0.0.1:1/", "file:///etc/passwd", "127.0.0.1", ""] {
        assert_eq!(https.get(url).await.unwrap_err(), FetchError::Url(url.to_owned()));
    }
}

fn trusting(ca: &WebCa) -> Https {
    Https::new(vec![Bytes::copy_from_slice(&ca.root())])
}

fn json(body: &str) -> Reply {
    let headers = [("content-type", "application/json"), ("cache-control", "max-age=60")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Reply::Answer { status: 200, headers, body: body.into() }
}

#[tokio::test]
async fn a_document_is_fetched_below_the_configured_authority_alone() {
    let ca = WebCa::new();
    let server = KeyServer::start(&ca).await;
    server.tell("keys", json("{}"));
    let url = format!("{}keys", server.url());
    let document = trusting(&ca).get(&url).await.unwrap();
    assert_eq!(document, Document { body: "{}".into(), max_age: Some(Duration::from_secs(60)) });
    assert!(server.accepted()[0].contains("application/json"));

    let error = trusting(&WebCa::new()).get(&url).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Unreachable { why, .. } if why.contains("invalid peer certificate")),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_that_is_not_the_document_is_an_error_and_no_redirect_is_followed() {
    let ca = WebCa::new();
    let (server, https) = (KeyServer::start(&ca).await, trusting(&ca));
    let url = |path: &str| format!("{}{path}", server.url());
    server.tell("there", Reply::status(302).with("location", &url("keys")));
    server.tell("keys", json("{}"));
    server.tell("broken", Reply::status(500));
    server.tell("closed", Reply::Close);
    server.tell("large", json(&"x".repeat(MAX_BODY_BYTES + 1)));
    server.tell("largest", json(&"x".repeat(MAX_BODY_BYTES)));
    let status = |path: &str, status| Err(FetchError::Status { url: url(path), status });
    assert_eq!(https.get(&url("there")).await, status("there", 302));
    assert_eq!(https.get(&url("missing")).await, status("missing", 404));
    assert_eq!(https.get(&url("broken")).await, status("broken", 500));
    assert!(matches!(https.get(&url("closed")).await, Err(FetchError::Unreachable { .. })));
    assert_eq!(https.get(&url("large")).await, Err(FetchError::Body { url: url("large") }));
    assert!(https.get(&url("largest")).await.is_ok());
    assert_eq!(server.asked().iter().filter(|path| *path == "keys").count(), 0);
}

#[tokio::test]
async fn an_issuer_that_says_nothing_is_given_up() {
    let ca = WebCa::new();
    let server = KeyServer::start(&ca).await;
    server.tell("keys", Reply::Silence);
    let url = format!("{}keys", server.url());
    let https = trusting(&ca);
    // The handshake takes real time; what is waited for then passes at once.
    let fetching = https.get(&url);
    tokio::pin!(fetching);
    tokio::select! {
        answer = &mut fetching => panic!("{answer:?}"),
        () = server.asked_times(1) => {}
    }
    tokio::time::pause();
    assert_eq!(fetching.await, Err(FetchError::Slow { url: url.clone() }));
}
