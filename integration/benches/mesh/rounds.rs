//! What is done in each round, with each subject in turn.

use std::{path::Path, time::Duration};

use crate::{
    app::message,
    h2load::{Load, cpu},
    measured::{Figures, Measured},
    own_client::Calls,
    subject::{self, Subject, Subjects},
};

const ROUNDS: usize = 3;
/// How long one figure is measured in each round, about.
const LONG: Duration = Duration::from_millis(1_500);
/// Times need more calls than costs do.
const LONGER: Duration = Duration::from_millis(2_500);

/// What is sent and answered.
#[derive(Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    bytes: usize,
    /// Of each answer.
    messages: usize,
}

pub const SMALL: Shape = Shape { name: "unary, 100 B", bytes: 100, messages: 1 };
pub const LARGE: Shape = Shape { name: "unary, 10 KB", bytes: 10_240, messages: 1 };
pub const STREAM: Shape = Shape { name: "stream of 100 × 100 B", bytes: 100, messages: 100 };
/// One call after the other, and 64 at once: connections and streams on each.
pub const ALONE: (&str, usize, usize) = ("1 at once", 1, 1);
pub const CROWD: (&str, usize, usize) = ("64 at once", 4, 16);
pub const CONNECTING: &str = "unary, 100 B, one new connection a call";
pub const HALF_LOAD: &str = "at half of Envoy's load";

/// Runs everything.
///
/// # Errors
/// A process cannot be started, or a call failed.
pub fn measure() -> anyhow::Result<Measured> {
    let scratch = tempfile::tempdir()?;
    let subjects = subject::start(scratch.path())?;
    let mut measured = Measured::default();
    // What was allocated to start is given back meanwhile: jemalloc takes ten seconds.
    std::thread::park_timeout(Duration::from_secs(12));
    measured.residents("idle", &subjects.all)?;
    for _ in 0..ROUNDS {
        one(&subjects, scratch.path(), &mut measured)?;
    }
    measured.residents("after load", &subjects.all)?;
    many_streams(&subjects, scratch.path())?;
    Ok(measured)
}

fn one(subjects: &Subjects, scratch: &Path, measured: &mut Measured) -> anyhow::Result<()> {
    for shape in [SMALL, LARGE, STREAM] {
        for (name, connections, streams) in [ALONE, CROWD] {
            let name = format!("{}, {name}", shape.name);
            for subject in &subjects.all {
                let load = Load { connections, streams, ..load(subject, shape, scratch)? };
                let warm = load.run(connections * streams * 20)?;
                let calls = (warm.per_second() * LONG.as_secs_f64()) as usize;
                let before = cpu_of(subject)?;
                let ran = load.run(calls.max(100))?;
                let cpu_us = per_call(cpu_of(subject)? - before, ran.calls as u64);
                let figures = Figures { cpu_us, per_second: ran.per_second(), ..Figures::default() };
                measured.add(&name, subject.name, figures);
            }
        }
    }
    for subject in &subjects.all {
        let calls = Calls::of(subject, message(SMALL.bytes), SMALL.messages)?;
        let before = cpu_of(subject)?;
        let timed = calls.connecting(LONG)?;
        let cpu_us = per_call(cpu_of(subject)? - before, timed.times.len());
        measured.add(CONNECTING, subject.name, Figures::timed(cpu_us, &timed));
    }
    for shape in [SMALL, LARGE, STREAM] {
        let crowd = format!("{}, {}", shape.name, CROWD.0);
        let capacity = |subject| measured.last(&crowd, subject).per_second;
        // The same calls for all: half of what the better Envoy pair can.
        let rate = capacity(subject::ENVOY_LIST).max(capacity(subject::ENVOY_TREE)) / 2.0;
        for subject in &subjects.all {
            let calls = Calls::of(subject, message(shape.bytes), shape.messages)?;
            let before = cpu_of(subject)?;
            let timed = calls.at_rate(rate, LONGER)?;
            let cpu_us = per_call(cpu_of(subject)? - before, timed.times.len());
            measured.add(&format!("{}, {HALF_LOAD}", shape.name), subject.name, Figures::timed(cpu_us, &timed));
        }
    }
    Ok(())
}

/// 64 connections with 64 streams each: every call is answered. Those who refuse one fail the benchmark.
fn many_streams(subjects: &Subjects, scratch: &Path) -> anyhow::Result<()> {
    for subject in subjects.all.iter().filter(|subject| subject.name == subject::OURS) {
        let load = Load { connections: 64, streams: 64, ..load(subject, SMALL, scratch)? };
        let ran = load.run(64 * 64 * 10)?;
        println!("{}: {} calls on 64 connections with 64 streams each, no error", subject.name, ran.calls);
    }
    Ok(())
}

fn load(subject: &Subject, shape: Shape, scratch: &Path) -> anyhow::Result<Load> {
    let mut load = Load::new(subject.address, shape.bytes, shape.messages, scratch)?;
    load.path.clone_from(&subject.path);
    load.headers.extend(subject.headers.iter().cloned());
    Ok(load)
}

/// Of the two proxies together.
fn cpu_of(subject: &Subject) -> anyhow::Result<Duration> {
    subject.pids.iter().map(|pid| cpu(*pid)).sum()
}

fn per_call(cpu: Duration, calls: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / calls as f64
}
