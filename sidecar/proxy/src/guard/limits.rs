//! The figures. `docs/limits.md` says where each comes from.

use super::budget::Allowance;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The app of this sidecar.
    App,
    /// A sidecar: its connection carries the calls of everybody behind it, whom it has policed.
    Sidecar,
    /// A client outside of the mesh, or an operator.
    Outside,
}

/// What is allowed on one connection.
#[derive(Debug)]
pub struct Limits {
    /// Open streams.
    pub streams: u32,
    /// Bytes of a request's header list, as RFC 9113 §6.5.2 counts them.
    pub header_bytes: u32,
    /// Resets of streams that were hardly opened.
    pub resets: Allowance,
    /// SETTINGS and GOAWAY, by size.
    pub settings: Allowance,
    /// PINGs, and answers to PINGs.
    pub pings: Allowance,
    /// PRIORITY.
    pub priorities: Allowance,
    /// WINDOW_UPDATE.
    pub window_updates: Allowance,
    /// DATA that carries nothing and ends nothing.
    pub empty_data: Allowance,
    /// Frames of types that RFC 9113 does not know.
    pub unknown: Allowance,
    /// Streams that this side had to end because the peer broke the protocol on them.
    pub faults: Allowance,
}

/// Fields of a request's head.
pub const FIELDS: usize = 200;
/// CONTINUATIONs of one header block: 64 KiB are four frames.
pub const CONTINUATIONS: u32 = 5;

const fn allow(burst: u32, per_second: u32, most: u32) -> Allowance {
    Allowance { burst, per_second, most }
}

const APP: Limits = Limits {
    streams: 4_096,
    header_bytes: 64 << 10,
    resets: allow(1_000, 200, 10_000),
    settings: allow(100, 10, 100),
    pings: allow(1_000, 100, 10_000),
    priorities: allow(1_000, 100, 10_000),
    window_updates: allow(10_000, 1_000, 100_000),
    empty_data: allow(100, 10, 100),
    unknown: allow(200, 10, 1_000),
    faults: allow(1_000, 33, 1_000),
};

const OUTSIDE: Limits = Limits {
    streams: 256,
    resets: allow(200, 50, 1_000),
    pings: allow(100, 10, 10_000),
    priorities: allow(200, 10, 1_000),
    window_updates: allow(1_000, 100, 100_000),
    faults: allow(100, 10, 100),
    ..APP
};

/// What a sidecar adds to a head that it took fits in as well.
const SIDECAR: Limits = Limits {
    header_bytes: 80 << 10,
    resets: allow(8_000, 2_000, 100_000),
    faults: allow(10_000, 1_000, 10_000),
    ..APP
};

/// Resets of streams that were hardly opened, of all connections of apps, or of clients outside, that a worker serves:
/// together they stay below what the connections between sidecars are allowed.
pub const ALL_RESETS: Allowance = allow(4_000, 1_000, 4_000);

impl From {
    /// What is allowed to it.
    pub fn limits(self) -> &'static Limits {
        match self {
            Self::App => &APP,
            Self::Sidecar => &SIDECAR,
            Self::Outside => &OUTSIDE,
        }
    }
}
