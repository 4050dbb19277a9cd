//! A journal in replicated streams of a NATS cluster, which any number of processes write.

use std::{path::Path, sync::Arc};

use crate::{Journal, OpenError, Options, Servers};

/// The journals of one NATS cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Nats {}

impl Nats {
    /// Begins to connect. What is held in the folder `local` is served until that succeeds.
    ///
    /// # Errors
    /// [`OpenError`] when the folder cannot be used.
    pub async fn connect(_servers: &Servers, local: &Path, _options: Options) -> Result<Self, OpenError> {
        Err(OpenError::Held(local.to_owned()))
    }

    /// The journal of `kind`; all callers get the same one.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn kind(&self, _kind: &'static str) -> Result<Arc<dyn Journal>, OpenError> {
        Err(OpenError::Held(Default::default()))
    }
}
