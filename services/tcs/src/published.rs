//! The tenants as their leader publishes them.

use std::sync::Arc;

use journal::{Batches, Journal, Position, ReadError, Snapshot, Source};

/// The journal of the tenants, with what an operator should see of the guard's journal as well, which nobody follows.
pub(crate) struct Published {
    pub(crate) tenants: Arc<dyn Journal>,
    pub(crate) guard: Arc<dyn Journal>,
}

#[tonic::async_trait]
impl Source for Published {
    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        Source::snapshot(&self.tenants).await
    }

    async fn head(&self) -> Result<Option<Position>, ReadError> {
        Source::head(&self.tenants).await
    }

    fn tail(&self, from: Position) -> Batches {
        Source::tail(&self.tenants, from)
    }

    fn alarms(&self) -> Vec<String> {
        [&self.tenants, &self.guard].into_iter().filter_map(|journal| journal.alarm()).collect()
    }
}

#[cfg(test)]
mod tests {
    use journal::{AppendError, Embedded, History, Record, Tail, Write};

    use super::*;

    /// A journal that an operator must see to.
    struct Alarmed(Arc<dyn Journal>, &'static str);

    #[tonic::async_trait]
    impl Journal for Alarmed {
        async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
            self.0.append(writes).await
        }

        async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
            self.0.append_at(head, writes).await
        }

        async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
            self.0.get(key).await
        }

        async fn snapshot(&self) -> Result<Snapshot, ReadError> {
            Journal::snapshot(&*self.0).await
        }

        async fn head(&self) -> Result<Position, ReadError> {
            Journal::head(&*self.0).await
        }

        async fn count(&self) -> Result<u64, ReadError> {
            self.0.count().await
        }

        async fn history(&self) -> Result<History, ReadError> {
            self.0.history().await
        }

        fn tail(&self, from: Position) -> Tail {
            Journal::tail(&*self.0, from)
        }

        fn alarm(&self) -> Option<String> {
            Some(self.1.to_owned())
        }
    }

    #[tokio::test]
    async fn the_alarms_of_the_guards_journal_are_those_of_the_tenants_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let (tenants, guard) = (store.kind("tenant").unwrap(), store.kind("guard").unwrap());
        tenants.append(vec![Write::put("acme", "v")]).await.unwrap();
        let well = Published { tenants: Arc::clone(&tenants), guard: Arc::clone(&guard) };
        assert_eq!(well.alarms(), Vec::<String>::new());
        let tenants = Arc::new(Alarmed(tenants, "the tenants' stream is gone"));
        let published = Published { tenants, guard: Arc::new(Alarmed(guard, "the guard's stream is gone")) };
        assert_eq!(published.alarms(), ["the tenants' stream is gone", "the guard's stream is gone"]);
        assert_eq!(published.snapshot().await.unwrap().records.len(), 1);
    }
}
