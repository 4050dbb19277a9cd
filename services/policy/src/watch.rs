//! Watches the policy folder by looking at it: that works on every file system, through atomic renames and through the
//! symbolic links of a ConfigMap mount, where notifications lose track.

use std::{path::PathBuf, sync::Arc, time::Duration};

use mesh_config::{Fingerprint, Problems, SourceFile, fingerprint, read_folder};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::{ApplyError, Digest, Engine, Origin, chain, digest_of};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);
/// Every so many looks the files are read although they look the same: a file system's clock may tick slowly.
const READ_ANYWAY: u32 = 10;
/// Every so many looks it is made sure that the records are what the files in force say, whoever wrote either.
const RETRY: u32 = 5;

/// Takes what changes in a folder.
pub(crate) struct Watcher {
    engine: Arc<Engine>,
    folder: Option<PathBuf>,
    /// What the last look found.
    looked: Option<Fingerprint>,
    /// The look whose content was read and dealt with.
    settled: Option<Fingerprint>,
    /// The content that was dealt with last: so nothing is warned of twice.
    dealt: Option<Result<Digest, Problems>>,
    /// Looks since the content was last read.
    since: u32,
    /// Another policy service's folder, which was said to differ from this one.
    other: Option<Digest>,
}

impl Watcher {
    /// Without a folder it only completes what the store could not take at once.
    pub fn new(engine: Arc<Engine>, folder: Option<PathBuf>) -> Self {
        Self { engine, folder, looked: None, settled: None, dealt: None, since: 0, other: None }
    }

    /// Takes the folder as it is at the start, without waiting for it to hold still: a later change is seen by [`run`].
    ///
    /// [`run`]: Watcher::run
    pub async fn first_look(&mut self) {
        self.looked = self.fingerprint().await;
        self.look().await;
    }

    /// Looks until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for look in (1..=RETRY).cycle() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if look == RETRY {
                self.engine.settle().await;
            }
            self.look().await;
            self.compare();
        }
    }

    /// Says it when another policy service has taken another content of its folder since. The last change wins; which that is
    /// should not depend on who restarts.
    fn compare(&mut self) {
        let Some(Ok(mine)) = &self.dealt else { return };
        let in_force = self.engine.in_force();
        let other = in_force.folder.filter(|other| other != mine && in_force.origin.starts_with("folder "));
        if other.is_some() && other != self.other {
            let folder = self.folder.clone().unwrap_or_default();
            tracing::warn!(
                folder = %folder.display(), in_force = in_force.origin,
                "another policy service has taken another content of its policy folder: the last change wins, make them the same"
            );
        }
        self.other = other;
    }

    /// One look. A change is taken when the look before saw it already, so no half-written file is read.
    async fn look(&mut self) {
        let Some(now) = self.fingerprint().await else { return };
        let still = self.looked.as_ref() == Some(&now);
        let known = self.settled.as_ref() == Some(&now);
        self.since += 1;
        self.looked = Some(now);
        if !still || (known && self.since < READ_ANYWAY) {
            return;
        }
        let content = self.read().await;
        if self.fingerprint().await != self.looked {
            // It changed while it was read: the next looks will see it hold still.
            return;
        }
        match content {
            Ok((files, digest)) => self.take(files, digest).await,
            Err(problems) => self.refuse(problems),
        }
        self.settled.clone_from(&self.looked);
        self.since = 0;
    }

    /// Deals with files that could be read.
    async fn take(&mut self, files: Vec<SourceFile>, digest: Digest) {
        if self.dealt == Some(Ok(digest)) {
            return;
        }
        let dir = self.folder.clone().unwrap_or_default();
        // What was taken once is not taken again: it would undo what an operator has applied since.
        if self.engine.in_force().folder != Some(digest) {
            let origin = Origin::Folder { dir: dir.display().to_string(), digest };
            match self.engine.apply(files, Vec::new(), origin, String::new(), None).await {
                Ok(_) => {}
                Err(ApplyError::Problems(problems)) => return self.refuse(problems.below(&dir)),
                // Not dealt with: the next reading tries again.
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the policy folder could not be taken: trying again");
                    return;
                }
            }
        }
        self.engine.set_folder_problems(Vec::new());
        self.dealt = Some(Ok(digest));
    }

    fn refuse(&mut self, problems: Problems) {
        if self.dealt.as_ref() == Some(&Err(problems.clone())) {
            return;
        }
        let folder = self.folder.clone().unwrap_or_default();
        tracing::warn!(
            folder = %folder.display(), count = problems.0.len(), %problems,
            "the policy folder has problems: the last good policy stays in force"
        );
        self.engine.set_folder_problems(problems.0.clone());
        self.dealt = Some(Err(problems));
    }

    async fn fingerprint(&self) -> Option<Fingerprint> {
        let folder = self.folder.clone()?;
        tokio::task::spawn_blocking(move || fingerprint(&folder)).await.ok()
    }

    async fn read(&self) -> Result<(Vec<SourceFile>, Digest), Problems> {
        let folder = self.folder.clone().unwrap_or_default();
        let read = move || read_folder(&folder).map(|files| (digest_of(&files), files));
        match tokio::task::spawn_blocking(read).await {
            Ok(read) => read.map(|(digest, files)| (files, digest)),
            // The runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests;
