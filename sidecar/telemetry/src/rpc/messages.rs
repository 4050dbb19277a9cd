//! Messages of gRPC in a stream of bytes.

/// Finds the messages in a stream of gRPC: five bytes before each, of which the last four say how long it is.
#[derive(Debug, Default)]
pub struct Messages {
    head: [u8; 5],
    of_head: usize,
    /// Bytes of the message that have not passed.
    left: usize,
}

impl Messages {
    /// Bytes of messages among `data`, which follows what has passed before.
    pub fn pass(&mut self, data: &[u8]) -> u64 {
        // One message in one piece, as those of unary calls mostly are.
        if let (0, 0, Some(([_compressed, length @ ..], message))) =
            (self.left, self.of_head, data.split_first_chunk::<5>())
            && u32::from_be_bytes(*length) as usize == message.len()
        {
            return message.len() as u64;
        }
        self.pass_in_parts(data)
    }

    fn pass_in_parts(&mut self, mut data: &[u8]) -> u64 {
        let mut bytes = 0;
        while !data.is_empty() {
            if self.left == 0 {
                let part = data.len().min(self.head.len() - self.of_head);
                self.head[self.of_head..self.of_head + part].copy_from_slice(&data[..part]);
                self.of_head += part;
                data = &data[part..];
                if self.of_head == self.head.len() {
                    let [_compressed, length @ ..] = self.head;
                    (self.left, self.of_head) = (u32::from_be_bytes(length) as usize, 0);
                }
                continue;
            }
            let part = data.len().min(self.left);
            bytes += part as u64;
            self.left -= part;
            data = &data[part..];
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let stream = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1], b"d"].concat();
        for size in 1..=stream.len() + 1 {
            let mut messages = Messages::default();
            let bytes: u64 = stream.chunks(size).map(|part| messages.pass(part)).sum();
            assert_eq!(bytes, 4, "in parts of {size}");
        }
        // Each in a piece of its own, and the first in two.
        let mut messages = Messages::default();
        let (first, rest) = (&stream[..8], &stream[13..]);
        let pieces = [first, first, rest, &first[..4], &first[4..], first];
        assert_eq!(pieces.map(|piece| messages.pass(piece)), [3, 3, 1, 0, 3, 3]);
    }
}
