//! Blocks of ports that no other test of this machine's user has.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// Below the range from which the kernel takes ports for outgoing connections.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 300;
const SIZE: u16 = 40;

/// Forty ports, or more where a mesh needs them, ours until dropped: others that use this module keep away by locks on files.
#[derive(Debug)]
pub struct Ports {
    next: u16,
    end: u16,
    /// Of each block of forty.
    locks: Vec<File>,
    folder: PathBuf,
}

impl Ports {
    /// Takes the first free block.
    ///
    /// # Errors
    /// All blocks are taken, or the lock files cannot be written.
    pub fn take(target: &Path) -> anyhow::Result<Self> {
        let folder: PathBuf = target.join("test-ports");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut ports = Self { next: 0, end: 0, locks: Vec::new(), folder };
        ports.take_block()?;
        Ok(ports)
    }

    fn take_block(&mut self) -> anyhow::Result<()> {
        // Begin somewhere else each time, so that a port that closes is not taken again at once.
        let begin = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        for offset in 0..BLOCKS {
            let block = (begin + offset) % BLOCKS;
            let lock = File::create(self.folder.join(block.to_string()))?;
            if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let first = FIRST + block * SIZE;
            if (first..first + SIZE).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
                (self.next, self.end) = (first, first + SIZE);
                self.locks.push(lock);
                return Ok(());
            }
        }
        bail!("no {SIZE} free ports in a row between {FIRST} and {}", FIRST + BLOCKS * SIZE)
    }

    /// One more of them.
    ///
    /// # Panics
    /// When all of this machine are given out.
    pub fn give(&mut self) -> u16 {
        if self.next == self.end {
            self.take_block().expect("another block of ports");
        }
        self.next += 1;
        self.next - 1
    }
}
