use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Request};
use serde_json::{Value, json};

use super::*;
use crate::{call::Facts, metrics::Direction, said::Said};

/// What was written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of so many calls that ended so.
fn lines(logged: Logged, calls: usize, outcome: Outcome, status: &str) -> Vec<Value> {
    let written = Written::default();
    let Some(log) = AccessLog::over(logged, written.clone()) else { return Vec::new() };
    let request = Request::post("http://media/media.v1.Media/Get?secret=1")
        .header("content-type", "application/grpc")
        .header("authorization", "Bearer secret")
        .body(())
        .unwrap();
    let said = Said::of(request.headers());
    let facts = Facts::of(&request, &said, ("media".into(), "wiki".into()), HeaderValue::from_static("r-1"));
    for _ in 0..calls {
        let (direction, took) = (Direction::Inbound, Duration::from_millis(2));
        log.ended(&End { direction, facts: &facts, tenant: "acme", outcome, status: Some(status), took }, None);
    }
    assert_eq!(log.lost(), 0);
    // Writes what waits.
    drop(log);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_has_all_fields_of_the_schema_and_no_secret() {
    let mut finished = lines(Logged::On, 1, Outcome::Finished, "5").pop().unwrap();
    assert!(finished["unixMs"].take().as_u64() > Some(1_700_000_000_000));
    let expected = json!({
        "schema": 1, "unixMs": null, "direction": "inbound", "caller": "wiki", "service": "media", "method": "POST",
        "path": "/media.v1.Media/Get", "tenant": "acme", "requestId": "r-1", "outcome": "finished", "grpcStatus": 5,
        "reason": null, "microseconds": 2_000, "traceId": null,
    });
    assert_eq!(finished, expected);
    let fields = expected.as_object().unwrap().keys();
    let documented = include_str!("../../../../docs/access-log.md");
    let rows: String = documented.lines().filter(|line| line.starts_with("| `")).collect();
    for field in fields {
        assert!(rows.contains(&format!("`{field}`")), "docs/access-log.md lacks {field}");
    }
    let refused = lines(Logged::On, 1, Outcome::Refused, "PATH_NOT_ALLOWED").pop().unwrap();
    assert_eq!((&refused["reason"], &refused["grpcStatus"]), (&json!("PATH_NOT_ALLOWED"), &Value::Null));
}

#[test]
fn a_share_of_calls_is_logged_or_none() {
    assert_eq!(lines(Logged::Off, 10, Outcome::Finished, "0").len(), 0);
    assert_eq!(lines(Logged::On, 100, Outcome::Finished, "0").len(), 100);
    let share = lines(Logged::Share(0.25), 4_000, Outcome::Finished, "0").len();
    // Fifteen standard deviations of it.
    assert!((600..1_400).contains(&share), "{share}");
}

#[test]
fn what_is_logged_is_on_off_or_a_percentage() {
    for (text, logged) in [
        ("on", Logged::On),
        ("true", Logged::On),
        ("off", Logged::Off),
        ("false", Logged::Off),
        ("100%", Logged::On),
        ("0%", Logged::Off),
        ("0.5%", Logged::Share(0.005)),
    ] {
        assert_eq!(text.parse(), Ok(logged));
    }
    for wrong in ["", "1", "101%", "-1%", "NaN%", "yes", "%"] {
        assert!(wrong.parse::<Logged>().unwrap_err().contains("expected on, off, or a share"), "{wrong}");
    }
}
