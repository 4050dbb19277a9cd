//! What can go wrong with storage, and what callers are told of it.

use std::{io, path::PathBuf, sync::Arc};

use tonic::Status;

/// Why the data folder cannot be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be made or written.
    #[error(
        "the data folder {folder} cannot be written: make it writable for this user, or choose another with --data"
    )]
    NotWritable {
        /// As it was given.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process works on it.
    #[error(
        "the data folder {folder} is used by another process, whose id stands in its file `lock`: stop that process, or \
         choose another folder with --data"
    )]
    InUse {
        /// As it was given.
        folder: PathBuf,
    },
}

/// Why rows or files could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk, a quota or a file-size limit is exhausted.
    #[error("no space is left where this tenant's data is kept; nothing was changed")]
    Full(#[source] redb::Error),
    /// The database failed a moment ago and is opened again as soon as the last call that uses it has ended.
    #[error("this tenant's storage is opened again after a failure; try again")]
    Reopening,
    /// A row holds something that this version cannot read.
    #[error("a row of table {table} cannot be read")]
    Row {
        /// Which table.
        table: &'static str,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The work was ended with the process, or panicked.
    #[error("the work on this tenant's storage was interrupted")]
    Interrupted,
    /// Any other failure of the disk or the database.
    #[error("this tenant's storage failed")]
    Failed(#[source] redb::Error),
}

impl StoreError {
    pub(super) fn of(error: impl Into<redb::Error>) -> Self {
        let error = error.into();
        if let redb::Error::Io(io) = &error
            && matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            )
        {
            return Self::Full(error);
        }
        if matches!(error, redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo | redb::Error::DatabaseClosed) {
            return Self::Reopening;
        }
        Self::Failed(error)
    }

    /// After such a failure redb wants to be opened again.
    pub(super) fn is_of_disk(&self) -> bool {
        match self {
            Self::Full(_) | Self::Reopening | Self::Failed(_) => true,
            Self::Row { .. } | Self::Interrupted => false,
        }
    }
}

impl From<StoreError> for Status {
    /// The causes (paths, system errors) go into the log and not to the caller.
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        let mut status = match &error {
            StoreError::Full(_) => Self::resource_exhausted(message),
            StoreError::Reopening => Self::unavailable(message),
            StoreError::Row { .. } => Self::data_loss(message),
            StoreError::Interrupted | StoreError::Failed(_) => Self::internal(message),
        };
        status.set_source(Arc::new(error));
        status
    }
}
