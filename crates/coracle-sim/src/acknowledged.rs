//! What clients were told is done.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

/// A write that a client was told is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) revision: u64,
}

/// Writes that were acknowledged since they were last taken. Clones are the same list.
#[derive(Clone, Default)]
pub(crate) struct Acknowledged(Arc<Mutex<Vec<Write>>>);

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(default, borrow)]
    kind: Cow<'a, str>,
    #[serde(default, borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata<'a> {
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
}

impl Acknowledged {
    /// Takes note of the answer to a write, if it is an object with a revision.
    pub(crate) fn take_note(&self, answer: &[u8]) {
        let Ok(Head { kind, metadata }) = serde_json::from_slice(answer) else { return };
        let Metadata { namespace, name, resource_version } = metadata;
        if let Ok(revision) = resource_version.parse() {
            let (kind, namespace, name) = (kind.into_owned(), namespace.into_owned(), name.into_owned());
            self.list().push(Write { kind, namespace, name, revision });
        }
    }

    pub(crate) fn take(&self) -> Vec<Write> {
        std::mem::take(&mut self.list())
    }

    fn list(&self) -> MutexGuard<'_, Vec<Write>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
