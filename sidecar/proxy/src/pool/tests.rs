use mesh_identity::{testing::Ca, tls::Clients};
use tokio::{net::TcpListener, sync::Notify};

use super::*;

/// Bug: a handshake belonged to the call that had begun it, and ended with it: calls whose time was shorter than a handshake
/// never got a connection, however many there were.
#[tokio::test]
async fn a_handshake_goes_on_when_the_call_that_began_it_is_over() {
    let ca = Ca::new("mesh.test");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Sidecar(listener.local_addr().unwrap(), "media".parse().unwrap());
    let config = tls::server_config(&ca.identity("media"), Clients::Required);
    let shake = Arc::new(Notify::new());
    let (accepted, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let shaken = Arc::clone(&shake);
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            accepted.send(()).unwrap();
            shaken.notified().await;
            let Ok((stream, _)) = tls::accept(&config, stream).await else { continue };
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while connection.accept().await.is_some() {}
        }
    });
    let pool = Pool::new(ca.identity("web"));
    let mut first = pool.connect(&target);
    tokio::select! {
        _ = &mut first => panic!("there was no handshake"),
        _ = begun.recv() => {}
    }
    // Its time is over.
    drop(first);
    shake.notify_one();
    let second = timeout(Duration::from_secs(10), pool.connect(&target)).await.expect("connected").unwrap();
    assert!(begun.try_recv().is_err(), "one connection is enough");
    drop(second);
    assert!(pool.open(&target, Instant::now()).is_some());
    server.abort();
}
