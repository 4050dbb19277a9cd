//! Why a connection was closed.

use std::{fmt, io};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident $label:literal $text:literal,)+) => {
        /// Why this sidecar closed a connection that its peer would have kept.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Why {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Why {
            /// All, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The label's value.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            fn text(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

reasons! {
    /// Rapid reset.
    Resets "resets" "too many streams are opened and reset at once",
    /// SETTINGS.
    Settings "settings" "too many SETTINGS or GOAWAY",
    /// PING.
    Pings "pings" "too many PINGs",
    /// PRIORITY.
    Priorities "priorities" "too many PRIORITY frames",
    /// WINDOW_UPDATE.
    WindowUpdates "window_updates" "more WINDOW_UPDATEs than the data sent to it explains",
    /// Empty DATA.
    EmptyData "empty_data" "too many empty DATA frames",
    /// Types nobody knows.
    Unknown "unknown_frames" "too many frames of unknown types",
    /// CONTINUATION.
    Continuations "continuations" "a header block of too many CONTINUATIONs",
    /// Broken streams.
    Faults "faults" "too many streams on which it broke the protocol",
    /// It asks and does not listen.
    Unheard "unheard" "it goes on asking and does not read the answers",
    /// No preface.
    Preface "slow_preface" "its connection preface never came",
    /// A header block that does not end.
    SlowHead "slow_head" "a header block took too long",
    /// A frame that does not end.
    SlowFrame "slow_frame" "a frame took too long",
    /// It does not read.
    Unread "unread" "it does not read what it is sent",
    /// The TLS handshake failed.
    Handshake "handshake" "the TLS handshake failed",
    /// The TLS handshake took too long.
    SlowHandshake "slow_handshake" "the TLS handshake took too long",
    /// Too many handshakes.
    Crowded "crowded" "too many newer connections are shaking hands, or open",
    /// Nothing to do.
    Idle "idle" "it was idle",
    /// Old enough.
    Age "age" "it was old",
    /// Not of a user that `--app-uid` names.
    User "user" "its user is not one that --app-uid names",
}

impl Why {
    /// Of its number; none for what is no number of one.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether the peer did something that an operator should know of.
    pub fn is_abuse(self) -> bool {
        !matches!(self, Self::Idle | Self::Age | Self::Handshake)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The peer sent more than it may.
#[derive(Debug, thiserror::Error)]
#[error("closed by this side: {0}")]
pub struct Violation(pub Why);

impl std::convert::From<Violation> for io::Error {
    fn from(violation: Violation) -> Self {
        Self::other(violation)
    }
}
