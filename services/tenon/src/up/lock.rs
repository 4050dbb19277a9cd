//! One `tenon up` a data folder.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
};

use crate::{data::Data, failure::Failure};

/// The data folder, ours until this is dropped. The kernel gives it back too when the process is killed.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// The one before us was killed: what it started may still be about to end.
    pub unclean: bool,
}

impl Lock {
    /// Makes the folder, readable for its owner alone, and takes it.
    ///
    /// # Errors
    /// Another `tenon up` has it, or it is not writable.
    pub fn take(data: &Data) -> Result<Self, Failure> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

        let dir = data.dir();
        let unusable = |error: std::io::Error| {
            Failure::new(format!("the data folder {} cannot be written to: {error}", dir.display()))
                .next("make it writable for this user, or name another one with --data")
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(data.lock())
            .map_err(unusable)?;
        let mut before = String::new();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // Whoever holds it has written its process id.
                let _ = file.read_to_string(&mut before);
                return Err(Failure::new(format!(
                    "another `tenon up` (process {}) runs on the data folder {}",
                    before.trim(),
                    dir.display()
                ))
                .next("end it first, or name another folder with --data"));
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        file.read_to_string(&mut before).map_err(unusable)?;
        let unclean = !before.trim().is_empty();
        file.set_len(0).and_then(|()| file.rewind()).map_err(unusable)?;
        write!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { file, unclean })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Empty: everything that was started has ended.
        let _ = self.file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_them_on_one_folder_refuse_clearly() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        let held = Lock::take(&data).unwrap();
        let refused = Lock::take(&data).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        assert!(!Lock::take(&data).unwrap().unclean);
    }

    #[test]
    fn what_a_killed_one_left_is_noticed_and_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        fs::write(data.lock(), "4711").unwrap();
        assert!(Lock::take(&data).unwrap().unclean);
    }

    #[test]
    fn a_folder_that_cannot_be_made_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = Lock::take(&Data::new(&file.join("data"))).unwrap_err().to_string();
        assert!(refused.contains("cannot be written to") && refused.contains("--data"), "{refused}");
    }
}
