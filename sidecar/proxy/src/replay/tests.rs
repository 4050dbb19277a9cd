use std::{collections::VecDeque, convert::Infallible};

use futures_util::task::noop_waker;
use http_body::Frame;

use super::*;

/// A request of which so much has come.
struct Coming(VecDeque<Option<Frame<Bytes>>>);

impl Body for Coming {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.pop_front() {
            Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(None) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn data(text: &'static str) -> Option<Frame<Bytes>> {
    Some(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn upload(frames: impl IntoIterator<Item = Option<Frame<Bytes>>>, room: usize) -> Upload<Coming> {
    Upload::new(Coming(frames.into_iter().collect()), room)
}

/// What is sent from `cursor` on until nothing more comes.
fn sent(upload: &mut Upload<Coming>, cursor: &mut Cursor) -> String {
    let mut sent = String::new();
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    loop {
        match upload.poll_next(&mut cx, cursor) {
            Poll::Ready(Piece::Data(data)) => sent += std::str::from_utf8(&data).unwrap(),
            Poll::Ready(Piece::End) => return sent + ".",
            Poll::Ready(Piece::Trailers(trailers)) => return format!("{sent}+{}", trailers.len()),
            Poll::Ready(Piece::Broken(reason)) => return format!("{sent}!{reason}"),
            Poll::Pending => return sent,
        }
    }
}

#[test]
fn another_stream_is_sent_the_same_and_then_what_comes() {
    let mut upload = upload([data("a"), data("b"), None, data("c"), None], 10);
    assert_eq!(sent(&mut upload, &mut Cursor::default()), "ab");
    assert!(upload.is_kept() && !upload.is_complete());
    assert_eq!(sent(&mut upload, &mut Cursor::default()), "abc");
    assert_eq!(sent(&mut upload, &mut Cursor::default()), "abc.");
    assert!(upload.is_complete());
    let mut cursor = Cursor::default();
    assert_eq!(sent(&mut upload, &mut cursor), "abc.");
    assert!(upload.ends_at(&cursor) && !upload.ends_at(&Cursor::default()));
}

#[test]
fn trailers_are_kept_and_nothing_in_them_speaks_for_the_mesh() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-mesh-unsent", http::HeaderValue::from_static("1"));
    trailers.insert("digest", http::HeaderValue::from_static("1"));
    let mut upload = upload([data("a"), Some(Frame::trailers(trailers))], 10);
    assert_eq!(sent(&mut upload, &mut Cursor::default()), "a+1");
    assert_eq!(sent(&mut upload, &mut Cursor::default()), "a+1");
    assert!(upload.is_complete());
}

#[test]
fn what_is_longer_than_there_is_room_for_is_sent_once() {
    let mut upload = upload([data("1234"), data("56"), data("7"), data("8")], 6);
    let mut cursor = Cursor::default();
    assert_eq!(sent(&mut upload, &mut cursor), "12345678.");
    assert!(!upload.is_kept() && !upload.is_complete());
    assert_eq!(upload.kept.len(), 0);
}

#[test]
fn chunks_are_counted_too_and_small_ones_do_not_keep_the_buffer_they_came_in() {
    let mut many = upload((0..CHUNKS).map(|_| data("1")), 1 << 20);
    sent(&mut many, &mut Cursor::default());
    assert!(many.is_complete());
    let mut too_many = upload((0..=CHUNKS).map(|_| data("1")), 1 << 20);
    sent(&mut too_many, &mut Cursor::default());
    assert!(!too_many.is_kept());

    let read = Bytes::from(vec![b'1'; 10_000]);
    let mut upload = upload([Some(Frame::data(read.slice(0..5))), Some(Frame::data(read.slice(5..10)))], 1 << 20);
    sent(&mut upload, &mut Cursor::default());
    assert_eq!(upload.kept.get(0).map(|kept| kept.as_ptr()), Some(read.as_ptr()));
    assert_ne!(upload.kept.get(1).map(|kept| kept.as_ptr()), Some(read[5..].as_ptr()));
}

#[test]
fn a_committed_request_is_sent_to_its_end_and_then_forgotten() {
    let mut upload = upload([data("a"), data("b"), None, data("c")], 10);
    let mut cursor = Cursor::default();
    assert_eq!(sent(&mut upload, &mut cursor), "ab");
    let mut behind = Cursor::default();
    upload.commit();
    assert_eq!(sent(&mut upload, &mut behind), "abc.");
    assert_eq!(upload.kept.len(), 0);
}

#[test]
fn a_request_without_a_body_is_all_head() {
    assert!(upload([], 10).is_empty());
    assert!(upload([], 10).is_complete());
    assert!(!upload([data("a")], 10).is_empty());
}
