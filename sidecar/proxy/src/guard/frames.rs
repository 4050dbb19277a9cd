//! Walking the frames of one direction of an HTTP/2 connection (RFC 9113 §4.1) as their bytes pass by: thirteen bytes of
//! state, no copy of what they carry.

/// Before its first frame a client sends this many bytes (RFC 9113 §3.4).
const PREFACE: u32 = 24;
const HEADER: usize = 9;
/// Of an RST_STREAM its error code is looked at too.
const RESET: usize = 13;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// What stands before the payload of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of payload.
    pub length: u32,
    /// Its type.
    pub kind: u8,
    flags: u8,
    /// Its stream; zero for the connection's own.
    pub stream: u32,
    /// The error code of an RST_STREAM.
    pub code: Option<u32>,
}

impl Frame {
    /// The last of its stream in this direction.
    pub fn ends_stream(self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// A header block goes on behind it.
    pub fn leaves_block_open(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION | PUSH_PROMISE) && self.flags & END_HEADERS == 0
    }

    /// Whether its payload may be nothing but padding.
    pub fn is_padded(self) -> bool {
        self.flags & PADDED != 0
    }
}

/// What the last byte that was seen left unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    Nothing,
    Preface,
    /// A header block: HEADERS without END_HEADERS, and its CONTINUATIONs.
    Block,
    Frame,
}

/// One direction of one connection.
#[derive(Debug)]
pub struct Walker {
    head: [u8; RESET],
    /// Bytes of `head` that are there.
    have: usize,
    /// Bytes of payload, or of the preface, that are still to come.
    left: u32,
    preface: bool,
    block: bool,
}

impl Walker {
    /// Of what a client sends.
    pub fn client() -> Self {
        Self { head: [0; RESET], have: 0, left: PREFACE, preface: true, block: false }
    }

    /// Of what a server sends.
    pub fn server() -> Self {
        Self { preface: false, left: 0, ..Self::client() }
    }

    /// Goes on with the next bytes and shows each frame as soon as its header is complete; ends at the first error.
    pub fn walk<E>(&mut self, mut bytes: &[u8], mut see: impl FnMut(Frame) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = bytes.len().min(self.left as usize);
                // Not more than `left`, which is one.
                self.left -= u32::try_from(passed).unwrap_or(self.left);
                bytes = &bytes[passed..];
                self.preface &= self.left > 0;
                continue;
            }
            let need = if self.have >= HEADER || (self.have == 0 && is_reset(bytes)) { RESET } else { HEADER };
            let taken = bytes.len().min(need - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < need || (need == HEADER && is_reset(&self.head)) {
                continue;
            }
            let frame = parse(&self.head, need);
            self.left = if need == RESET { 0 } else { frame.length };
            self.have = 0;
            self.block = frame.leaves_block_open();
            see(frame)?;
        }
        Ok(())
    }

    /// What has begun and not ended.
    pub fn unfinished(&self) -> Unfinished {
        match (self.preface, self.block) {
            (true, _) => Unfinished::Preface,
            (false, true) => Unfinished::Block,
            (false, false) if self.have > 0 || self.left > 0 => Unfinished::Frame,
            (false, false) => Unfinished::Nothing,
        }
    }

    /// Whether another frame may begin here.
    pub fn between_frames(&self) -> bool {
        self.have == 0 && self.left == 0 && !self.block
    }
}

/// Whether an RST_STREAM of the only length that it may have begins here.
fn is_reset(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, 4, RST_STREAM, ..])
}

fn parse(head: &[u8; RESET], have: usize) -> Frame {
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Frame {
        length: number(0) >> 8,
        kind: head[3],
        flags: head[4],
        stream: number(5) & (u32::MAX >> 1),
        code: (have == RESET).then(|| number(HEADER)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(frame: Frame) -> Vec<u8> {
        let mut bytes = frame.length.to_be_bytes()[1..].to_vec();
        bytes.extend([frame.kind, frame.flags]);
        bytes.extend(frame.stream.to_be_bytes());
        match frame.code {
            Some(code) => bytes.extend(code.to_be_bytes()),
            None => bytes.resize(bytes.len() + frame.length as usize, 3),
        }
        bytes
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let any_frame = (0u32..70, 0u8..12, any::<u8>(), 0u32..1 << 31, any::<u32>()).prop_map(
            |(length, kind, flags, stream, code)| {
                let reset = kind == RST_STREAM && length % 2 == 0;
                let length = if reset { 4 } else { length };
                let code = (kind == RST_STREAM && length == 4).then_some(code);
                Frame { length, kind, flags, stream, code }
            },
        );
        proptest::collection::vec(any_frame, 0..20)
    }

    proptest! {
        #[test]
        fn every_frame_is_seen_once_wherever_reads_cut_the_bytes(
            frames in frames(),
            cuts in proptest::collection::vec(1usize..40, 1..40),
        ) {
            let mut all = vec![b'P'; PREFACE as usize];
            frames.iter().for_each(|frame| all.extend(bytes(*frame)));
            let (mut walker, mut seen, mut at) = (Walker::client(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == all.len() {
                    break;
                }
                let end = all.len().min(at + cut);
                walker.walk(&all[at..end], |frame| { seen.push(frame); Ok::<_, ()>(()) }).expect("no error");
                at = end;
            }
            prop_assert_eq!(&seen, &frames);
            let open = frames.last().is_some_and(|frame| frame.leaves_block_open());
            prop_assert_eq!(walker.unfinished(), if open { Unfinished::Block } else { Unfinished::Nothing });
        }
    }

    #[test]
    fn what_is_unfinished_is_named() {
        let mut walker = Walker::client();
        let mut walk = |bytes: &[u8]| {
            walker.walk(bytes, |_| Ok::<_, ()>(())).expect("no error");
            walker.unfinished()
        };
        assert_eq!(walk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n"), Unfinished::Preface);
        assert_eq!(walk(b"\r\n"), Unfinished::Nothing);
        assert_eq!(walk(&[0, 0, 2, DATA, 0, 0, 0]), Unfinished::Frame);
        assert_eq!(walk(&[0, 1, 9]), Unfinished::Frame);
        assert_eq!(walk(&[9]), Unfinished::Nothing);
        assert_eq!(walk(&[0, 0, 1, HEADERS, 0, 0, 0, 0, 3, 9]), Unfinished::Block);
        assert_eq!(walk(&[0, 0, 0, CONTINUATION, END_HEADERS, 0, 0, 0, 3]), Unfinished::Nothing);
    }
}
