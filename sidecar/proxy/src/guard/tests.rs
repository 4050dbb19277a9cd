use std::net::IpAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::advance,
};

use super::{shared::Handshake, *};
use crate::metrics::{Closed, Direction};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const CANCEL: u32 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn headers(stream: u32) -> Vec<u8> {
    frame(frames::HEADERS, END_HEADERS, stream, b"head")
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(frames::RST_STREAM, 0, stream, &code.to_be_bytes())
}

fn ping() -> Vec<u8> {
    frame(frames::PING, 0, 0, &[7; 8])
}

fn window_update(stream: u32) -> Vec<u8> {
    frame(frames::WINDOW_UPDATE, 0, stream, &1_000u32.to_be_bytes())
}

fn guarding() -> Arc<Guarding> {
    Guarding::new(Arc::new(Closed::default()))
}

/// A guard whose peer has sent its preface.
fn guard_of(from: From, guarding: &Arc<Guarding>) -> Guard<()> {
    let mut guard = Guard::new((), from, guarding, &Arc::new(Pulse::default()));
    guard.take_in(PREFACE).expect("a preface is no violation");
    guard
}

fn guard(from: From) -> Guard<()> {
    guard_of(from, &guarding())
}

/// How many of these the peer may send at once, and what then ends the connection.
fn flood(guard: &mut Guard<()>, mut bytes: impl FnMut(u32) -> Vec<u8>) -> (u32, Why) {
    for number in 0..10_000_000 {
        if let Err(Violation(why)) = guard.take_in(&bytes(number)) {
            return (number, why);
        }
    }
    panic!("nothing ends it");
}

#[tokio::test(start_paused = true)]
async fn each_flood_is_ended_after_as_many_as_the_limits_say() {
    let opened_and_reset = |n: u32| [headers(2 * n + 1), reset(2 * n + 1, CANCEL)].concat();
    type Flood<'f> = (Why, [u32; 3], &'f dyn Fn(u32) -> Vec<u8>);
    let floods: [Flood<'_>; 9] = [
        // All connections of apps together have 4,000.
        (Why::Resets, [1_000, 8_000, 200], &opened_and_reset),
        (Why::Settings, [100, 100, 100], &|_| frame(frames::SETTINGS, 0, 0, &[])),
        (Why::Settings, [33, 33, 33], &|_| frame(frames::SETTINGS, 0, 0, &[0; 6 * 64])),
        (Why::Pings, [1_000, 1_000, 100], &|_| ping()),
        (Why::Priorities, [1_000, 1_000, 200], &|n| frame(frames::PRIORITY, 0, n, &[0; 5])),
        (Why::WindowUpdates, [10_000, 10_000, 1_000], &|_| window_update(0)),
        (Why::EmptyData, [100, 100, 100], &|_| frame(frames::DATA, 0, 1, &[])),
        (Why::EmptyData, [100, 100, 100], &|_| frame(frames::DATA, PADDED, 1, &[9; 10])),
        (Why::Unknown, [200, 200, 200], &|_| frame(77, 3, 1, b"what is this")),
    ];
    for (why, most, bytes) in floods {
        for (from, most) in [From::App, From::Sidecar, From::Outside].into_iter().zip(most) {
            assert_eq!(flood(&mut guard(from), bytes), (most, why), "{from:?}");
        }
    }
}

#[test]
fn a_header_block_has_six_frames_at_most() {
    let mut guard = guard(From::Sidecar);
    guard.take_in(&frame(frames::HEADERS, 0, 1, b"begins")).expect("one");
    let (more, why) = flood(&mut guard, |_| frame(frames::CONTINUATION, 0, 1, b"goes on"));
    assert_eq!((more, why), (5, Why::Continuations));
}

#[tokio::test(start_paused = true)]
async fn resets_of_streams_that_are_long_gone_are_counted() {
    let mut guard = guard(From::App);
    guard.take_in(&headers(1)).expect("one call");
    advance(Duration::from_secs(1)).await;
    // The first is that of a call like others; and a second has gone by.
    let (more, why) = flood(&mut guard, |_| reset(1, CANCEL));
    assert_eq!((more, why), (1_201, Why::Resets));
}

/// Bug: a client whose calls had deadlines of 20 ms lost its connection when the callee hung.
#[tokio::test(start_paused = true)]
async fn calls_that_end_at_deadlines_of_20_ms_are_no_rapid_resets() {
    for from in [From::App, From::Outside, From::Sidecar] {
        let mut guard = guard(from);
        for turn in 0..1_000_u32 {
            // 1,500 calls a second, each given up 20 ms after it was made.
            let open: Vec<u8> = (0..3).flat_map(|n| headers(2 * (3 * turn + n) + 1)).collect();
            guard.take_in(&open).expect("calls");
            advance(Duration::from_millis(2)).await;
            if let Some(due) = turn.checked_sub(9) {
                let given_up: Vec<u8> = (0..3).flat_map(|n| reset(2 * (3 * due + n) + 1, CANCEL)).collect();
                guard.take_in(&given_up).unwrap_or_else(|why| panic!("{from:?}, turn {turn}: {why:?}"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn once_the_budget_of_all_is_used_up_each_connection_has_half_a_burst() {
    let (guarding, mut resets) = (guarding(), 0);
    for _ in 0..50 {
        let mut guard = guard_of(From::App, &guarding);
        resets += rapid_resets(&mut guard);
    }
    // Four use all that there is; those after them get half of a burst each.
    assert_eq!(resets, 4 * 1_000 + 46 * 500);
}

fn rapid_resets(guard: &mut Guard<()>) -> u32 {
    flood(guard, |n| [headers(2 * n + 1), reset(2 * n + 1, CANCEL)].concat()).0
}

/// Bug: what some connections had used up, the next one that reset a call paid for with its own end.
#[tokio::test(start_paused = true)]
async fn who_resets_little_does_not_pay_for_those_who_used_up_the_budget_of_all() {
    for from in [From::App, From::Outside] {
        let guarding = guarding();
        let mut early = guard_of(from, &guarding);
        let rapid = |n: u32| [headers(2 * n + 1), reset(2 * n + 1, CANCEL)].concat();
        let most = from.limits().resets.burst;
        for n in 0..most / 2 + 1 {
            early.take_in(&rapid(n)).expect("within its own");
        }
        // Time has given it all of that back when the others come.
        advance(Duration::from_secs(10)).await;
        while guarding.reset(from) {}
        let mut busy = guard_of(from, &guarding);
        for n in 0..most / 2 {
            early.take_in(&rapid(most + n)).expect("long ago it used half, and now no more than that");
            busy.take_in(&rapid(n)).expect("no more than half");
        }
        assert!(busy.pulse.is_wary(), "its calls are looked at twice");
        let Err(Violation(why)) = busy.take_in(&rapid(most)) else { panic!("{from:?}: it goes on and on") };
        assert_eq!(why, Why::Resets);
    }
}

#[test]
fn whoever_breaks_the_protocol_on_stream_after_stream_is_ended() {
    let mut guard = guard(From::Outside);
    let mut broken = 0;
    while guard.take_in(&headers(2 * broken + 1)).is_ok() {
        guard.sent(&reset(2 * broken + 1, PROTOCOL_ERROR));
        broken += 1;
    }
    assert_eq!(broken, 101);
}

#[test]
fn whoever_reads_no_answers_may_not_go_on_asking() {
    let mut guard = guard(From::Outside);
    guard.wrote(&Poll::<()>::Pending);
    assert_eq!(flood(&mut guard, |n| headers(2 * n + 1)), (512, Why::Unheard));
}

/// What gRPC's libraries do on a good day, and on a bad one.
#[tokio::test(start_paused = true)]
async fn what_clients_of_grpc_do_is_no_violation() {
    for from in [From::App, From::Sidecar, From::Outside] {
        let mut guard = guard(from);
        let take = |guard: &mut Guard<()>, bytes: &[u8], what: &str| {
            assert!(guard.take_in(bytes).is_ok(), "{from:?}: {what}");
        };
        let mut stream = 1;
        // grpc-go and grpc-java measure the bandwidth: a PING for each round of data, on loopback thousands a second;
        // Python's h2 gives back the window for every frame, of the stream and of the connection.
        for _ in 0..100_000 {
            take(&mut guard, &headers(stream), "a call");
            guard.sent(&frame(frames::HEADERS, END_HEADERS, stream, b"head"));
            guard.sent(&frame(frames::DATA, 0, stream, &[0; 100]));
            take(&mut guard, &[ping(), window_update(0), window_update(stream)].concat(), "its data");
            guard.sent(&frame(frames::HEADERS, END_HEADERS | END_STREAM, stream, b"tail"));
            // And resets what it half closed never, when the answer is there already.
            take(&mut guard, &reset(stream, CANCEL), "the end of a call");
            stream += 2;
        }
        // An hour of keepalive, each 10 s.
        for _ in 0..360 {
            take(&mut guard, &ping(), "keepalive");
            advance(Duration::from_secs(10)).await;
        }
        // The callee hangs: 2,000 calls a second are cancelled when their 100 ms are over.
        let mut cancelled = stream;
        for turn in 0..5_000 {
            let opened: Vec<u8> = (0..20).flat_map(|n| headers(stream + 2 * n)).collect();
            take(&mut guard, &opened, "calls");
            stream += 40;
            if turn >= 10 {
                let resets: Vec<u8> = (0..20).flat_map(|n| reset(cancelled + 2 * n, CANCEL)).collect();
                take(&mut guard, &resets, "cancelled calls");
                cancelled += 40;
            }
            advance(Duration::from_millis(10)).await;
        }
    }
}

/// As much of a large message as its window lets through comes in one frame, and is read in small pieces.
#[test]
fn large_frames_explain_many_window_updates() {
    let mut guard = guard(From::Outside);
    for _ in 0..1_000 {
        guard.sent(&frame(frames::DATA, 0, 1, &vec![0; 1 << 20]));
        let updates: Vec<u8> = (0..1_000).flat_map(|_| window_update(1)).collect();
        assert!(guard.take_in(&updates).is_ok());
    }
}

fn connected(from: From) -> (Guard<DuplexStream>, DuplexStream, Arc<Pulse>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let pulse = Arc::new(Pulse::default());
    (Guard::new(near, from, &guarding(), &pulse), far, pulse)
}

#[tokio::test]
async fn the_peer_is_told_why_before_the_connection_ends() {
    let (mut guard, mut far, pulse) = connected(From::App);
    far.write_all(&[PREFACE, &headers(1)].concat()).await.expect("written");
    let mut buffer = vec![0; 1 << 20];
    assert!(guard.read(&mut buffer).await.expect("read") > 0);
    far.write_all(&vec![frame(frames::SETTINGS, 0, 0, &[]); 200].concat()).await.expect("written");
    let ended = tokio::spawn(async move { guard.read(&mut vec![0; 1 << 20]).await });
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.expect("read");
    assert_eq!(heard, goaway(1, Why::Settings));
    drop(far);
    let error = ended.await.expect("no panic").expect_err("the connection has ended");
    assert_eq!(error.to_string(), "closed by this side: too many SETTINGS or GOAWAY");
    assert_eq!(pulse.why(), Some(Why::Settings));
}

/// Looks until something is to be done; how long that took.
async fn watched(watch: &mut Watch, pulse: &Pulse) -> (Act, Duration) {
    let began = Instant::now();
    loop {
        advance(TICK).await;
        if let Some(act) = watch.look(pulse) {
            return (act, began.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_does_not_move_is_ended() {
    let cases: [(&[u8], Why, u64); 4] = [
        (b"", Why::Preface, 10),
        (&PREFACE[..20], Why::Preface, 10),
        (&[PREFACE, &[0, 0, 3, frames::HEADERS, 0, 0, 0, 0, 1, 1, 2, 3]].concat(), Why::SlowHead, 10),
        (&[PREFACE, &[0, 0, 9, frames::DATA, 0, 0, 0, 0, 1, 1, 2, 3]].concat(), Why::SlowFrame, 30),
    ];
    for (sent, why, seconds) in cases {
        let (mut guard, pulse) = (Guard::new((), From::App, &guarding(), &Arc::default()), Arc::new(Pulse::default()));
        guard.pulse = Arc::clone(&pulse);
        let mut watch = Watch::new(false);
        guard.take_in(sent).expect("no violation");
        let (act, took) = watched(&mut watch, &pulse).await;
        assert_eq!(act, Act::Close(why));
        assert!((seconds..=seconds + 4).contains(&took.as_secs()), "{why:?} after {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_is_ended_and_a_slow_one_is_not() {
    let mut guard = guard(From::App);
    let pulse = Arc::clone(&guard.pulse);
    let mut watch = Watch::new(false);
    for _ in 0..30 {
        guard.wrote(&Poll::<()>::Pending);
        for _ in 0..12 {
            advance(TICK).await;
            assert_eq!(watch.look(&pulse), None);
        }
        guard.wrote(&Poll::Ready(()));
    }
    guard.wrote(&Poll::<()>::Pending);
    let (act, took) = watched(&mut watch, &pulse).await;
    assert_eq!(act, Act::Close(Why::Unread));
    assert!(took.as_secs() <= 34, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_and_an_old_one_are_asked_to_go_once() {
    let mut guard = guard(From::App);
    let pulse = Arc::clone(&guard.pulse);
    let mut watch = Watch::new(false);
    // Signs of life are no work.
    for _ in 0..100 {
        advance(TICK).await;
        assert_eq!(watch.look(&pulse), None);
        guard.take_in(&headers(2 * guard.counts.frames + 1)).expect("a call");
    }
    let (act, took) = watched(&mut watch, &pulse).await;
    assert_eq!((act, took.as_secs() / 10), (Act::Finish(Why::Idle), 90));
    for _ in 0..10_000 {
        assert_eq!(watch.look(&pulse), None);
    }
    let mut watch = Watch::new(true);
    let began = Instant::now();
    let act = loop {
        advance(TICK).await;
        guard.take_in(&headers(2 * guard.counts.frames + 1)).expect("a call");
        if let Some(act) = watch.look(&pulse) {
            break act;
        }
    };
    assert_eq!(act, Act::Finish(Why::Age));
    assert!((54 * 60..=66 * 60).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_oldest_handshake_makes_room_and_a_connection_too_many_gets_no_place() {
    let guarding = guarding();
    let begin = || guarding.handshake(address("192.0.2.1"));
    let mut handshakes: Vec<_> = (0..256).map(|_| begin()).collect();
    let newest = begin();
    handshakes[0].pushed_out().await;
    handshakes.drain(..10);
    let _more: Vec<_> = (0..9).map(|_| begin()).collect();
    assert!(handshakes.iter().chain([&newest]).all(goes_on));
    let places: Vec<_> = (0..8_192).map_while(|_| guarding.place(Direction::Inbound)).collect();
    assert_eq!(places.len(), 8_192);
    assert!(guarding.place(Direction::Inbound).is_none());
    assert!(guarding.place(Direction::Outbound).is_some());
    drop(places);
    assert!(guarding.place(Direction::Inbound).is_some());
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("an address"))
}

fn goes_on(handshake: &Handshake) -> bool {
    futures_util::FutureExt::now_or_never(handshake.pushed_out()).is_none()
}

/// Bug: a crowd from one address pushed out everybody else who was slower than it was.
#[tokio::test]
async fn a_crowd_from_one_address_pushes_out_nobody_but_itself() {
    // The last one has as many addresses as it likes, but one network.
    let crowds: [fn(u32) -> Option<IpAddr>; 3] = [
        |_| address("192.0.2.1"),
        |n| address(if n % 2 == 0 { "192.0.2.1" } else { "::ffff:192.0.2.1" }),
        |n| address(&format!("2001:db8::{n:x}")),
    ];
    for crowd in crowds {
        let guarding = guarding();
        let far: Vec<_> =
            ["192.0.2.2", "192.0.2.3", "2001:db8:1::1"].map(|text| guarding.handshake(address(text))).into();
        let crowd: Vec<_> = (0..1_000).map(|n| guarding.handshake(crowd(n))).collect();
        assert!(far.iter().all(goes_on));
        assert!(!crowd[..747].iter().any(goes_on), "the oldest of them went");
        assert!(crowd[747..].iter().all(goes_on));
    }
}

#[tokio::test]
async fn among_as_many_from_each_address_the_oldest_handshake_makes_room() {
    let guarding = guarding();
    let begin = |n: u32| guarding.handshake(address(&format!("198.18.{}.{}", n / 256, n % 256)));
    let handshakes: Vec<_> = (0..300).map(begin).collect();
    assert!(!handshakes[..44].iter().any(goes_on));
    assert!(handshakes[44..].iter().all(goes_on));
    drop(handshakes);
    assert_eq!(guarding.shaking_hands(), 0, "nothing is left of what has ended");
}
