//! Keys of backups.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

use crate::{
    cli::BackupKey,
    failure::{Answer, Failure},
    output::Output,
};

/// AES-256.
pub(super) const LENGTH: usize = 32;

/// A key that backups are encrypted with.
pub(super) struct Key(Zeroizing<[u8; LENGTH]>);

impl Key {
    pub(super) fn new(bytes: [u8; LENGTH]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads a key: 32 bytes, or 64 hexadecimal digits with or without an end of the line.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let mut content = Zeroizing::new(Vec::new());
        // No more than what tells that it is no key.
        let read = fs::File::open(path).and_then(|file| file.take(128).read_to_end(&mut content));
        read.map_err(|error| {
            Failure::new(format!("cannot read the key {}: {error}", path.display()))
                .next("name the file of the key with --key-file; `tenon tcs backup-key --out FILE` makes one")
        })?;
        Self::parse(&content).ok_or_else(|| {
            Failure::new(format!("{} is no key: it has neither 32 bytes nor 64 hexadecimal digits", path.display()))
                .next("name the file of the key with --key-file; `tenon tcs backup-key --out FILE` makes one")
        })
    }

    fn parse(content: &[u8]) -> Option<Self> {
        if let Ok(bytes) = <[u8; LENGTH]>::try_from(content) {
            return Some(Self::new(bytes));
        }
        let digits = content.trim_ascii();
        if digits.len() != 2 * LENGTH {
            return None;
        }
        let mut key = Zeroizing::new([0; LENGTH]);
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
        }
        Some(Self(key))
    }

    pub(super) fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// Tells keys apart without giving them away.
    pub(super) fn id(&self) -> [u8; 8] {
        let mut hashed = digest::Context::new(&digest::SHA256);
        hashed.update(b"tenon backup key");
        hashed.update(self.bytes());
        let hash = hashed.finish();
        *hash.as_ref().first_chunk().expect("a SHA-256 has 32 bytes")
    }
}

/// Makes a key.
///
/// # Errors
/// The file exists, or cannot be written.
pub fn make(args: &BackupKey) -> Result<Answer, Failure> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    rand::fill(&mut *bytes).map_err(|_| Failure::new("the operating system gives no randomness").next("try again"))?;
    let digits = Zeroizing::new(hex(&*bytes) + "\n");
    write_new(&args.out, digits.as_bytes()).map_err(|error| {
        let failure = Failure::new(format!("cannot write {}: {error}", args.out.display()));
        failure.next(if error.kind() == ErrorKind::AlreadyExists {
            "name another file: the key in it may be needed for a backup"
        } else {
            "name a file in a folder that you may write to"
        })
    })?;
    let mut out = Output::stdout(args.output.output);
    let id = hex(&Key(bytes).id());
    if out.is_json() {
        out.json(&serde_json::json!({ "file": args.out, "id": id }))?;
    } else {
        out.line(&format!("key {id} written to {}: keep a copy where the backups are not", args.out.display()))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a key would be found by somebody.
        let _ = fs::remove_file(path);
    }
    written
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_or_64_digits() {
        let bytes = [0xab; LENGTH];
        for content in [&bytes[..], hex(&bytes).as_bytes(), (hex(&bytes).to_uppercase() + "\r\n").as_bytes()] {
            assert_eq!(Key::parse(content).unwrap().bytes(), &bytes);
        }
        for content in [&bytes[..31], &[b'x'; 64], b"", &[b'a'; 65]] {
            assert!(Key::parse(content).is_none(), "{content:?}");
        }
    }

    #[test]
    fn a_key_that_was_made_is_read_again_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("key");
        let args = BackupKey { out: out.clone(), output: crate::cli::OutputArgs { output: crate::cli::Format::Table } };
        make(&args).unwrap();
        let id = Key::read(&out).unwrap().id();
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = make(&args).unwrap_err().to_string();
        assert!(refused.contains("name another file"), "{refused}");
        assert_eq!(Key::read(&out).unwrap().id(), id);
    }

    #[test]
    fn what_is_no_key_is_refused_with_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("short"), "abc").unwrap();
        for name in ["short", "missing"] {
            let refused = Key::read(&dir.path().join(name)).err().unwrap().to_string();
            assert!(refused.contains("tenon tcs backup-key"), "{refused}");
        }
    }
}
