use super::*;

#[tokio::test]
async fn a_socket_is_bound_in_the_place_of_a_dead_processs_and_of_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("app.sock");
    fs::write(&path, "").expect("written");
    let refused = AppSocket::bind(&path).await.expect_err("it is a file");
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists, "{refused}");
    fs::remove_file(&path).expect("removed");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "nobody removes the file of a process that died");
    let bound = AppSocket::bind(&path).await.expect("bound");
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o660);
    let refused = AppSocket::bind(&path).await.expect_err("somebody listens");
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{refused}");
    drop(bound);
    assert!(!path.exists(), "the file goes with the socket");
    assert!(AppSocket::bind(&dir.path().join("no/folder")).await.is_err());
}

#[tokio::test]
async fn the_file_of_a_socket_that_was_handed_over_stays_until_its_new_owner_is_gone() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("app.sock");
    let former = AppSocket::bind(&path).await.expect("bound");
    let mut adopted = AppSocket::adopt(&path, former.share().expect("shared")).expect("adopted");
    // A connection that the first process has not accepted is the second one's.
    let _waiting = UnixStream::connect(&path).await.expect("connected");
    former.file.keep();
    drop(former.listener);
    adopted.listener.accept().await.expect("accepted");
    adopted.file.own();
    assert!(path.exists(), "somebody listens");
    drop(adopted);
    assert!(!path.exists(), "nobody listens any more");
}

#[tokio::test]
async fn a_socket_that_is_bound_beside_another_is_found_when_its_file_is_placed() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("app.sock");
    let first = AppSocket::bind(&path).await.expect("bound");
    let mut second = AppSocket::beside(&path).expect("bound");
    let _to_the_first = UnixStream::connect(&path).await.expect("connected");
    second.file.place(&path).expect("placed");
    let _to_the_second = UnixStream::connect(&path).await.expect("connected");
    first.listener.accept().await.expect("accepted");
    second.listener.accept().await.expect("accepted");
    drop(first);
    assert!(path.exists(), "the file is the second one's");
    drop(second);
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0);
}
