//! The rule that watches over the API are gapless: a witness watches as any client does, and is held against the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Broken;

const RULE: &str = "watch streams are gapless";

/// What witnesses have heard since the observer looked last. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<(&'static str, News)>>>);

/// What a witness hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// A list of everything, as of this revision: the names and revisions of the objects.
    Listed(u64, BTreeMap<String, u64>),
    /// An object was added or changed.
    Changed(String, u64),
    /// An object is gone.
    Gone(String, u64),
    /// Everything up to this revision has been sent.
    Bookmark(u64),
    /// The watch has begun.
    Connected,
    /// The watch has ended.
    Lost,
}

impl Heard {
    pub(crate) fn push(&self, prefix: &'static str, news: News) {
        self.lock().push((prefix, news));
    }

    pub(crate) fn take(&self) -> Vec<(&'static str, News)> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, News)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What happened to the objects of one prefix, and how far its witness has come.
#[derive(Debug, Default)]
struct Stream {
    /// Changes that the witness has not heard of: revision, name, whether there is an object now.
    expected: VecDeque<(u64, String, bool)>,
    now: BTreeMap<String, u64>,
    witness_at: Option<u64>,
    connected: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Streams(BTreeMap<&'static str, Stream>);

impl Streams {
    /// Watches a prefix from now on.
    pub(crate) fn add(&mut self, prefix: &'static str) {
        self.0.insert(prefix, Stream::default());
    }

    pub(crate) fn changed(&mut self, revision: u64, key: &str, exists: bool) {
        for (prefix, stream) in &mut self.0 {
            let Some(name) = key.strip_prefix(prefix) else { continue };
            if exists {
                stream.now.insert(name.to_owned(), revision);
            } else {
                stream.now.remove(name);
            }
            stream.expected.push_back((revision, name.to_owned(), exists));
        }
    }

    pub(crate) fn heard(&mut self, prefix: &str, news: News) -> Broken {
        let stream = self.0.get_mut(prefix)?;
        match news {
            News::Connected => stream.connected = true,
            News::Lost => stream.connected = false,
            News::Listed(at, objects) => {
                if stream.witness_at.is_some_and(|before| at < before) {
                    return Some((RULE, format!("{prefix}: a list at {at} after {:?}", stream.witness_at)));
                }
                stream.witness_at = Some(at);
                let mut then = stream.now.clone();
                while stream.expected.front().is_some_and(|(revision, ..)| *revision <= at) {
                    stream.expected.pop_front();
                }
                // What changed since the list was made has been heard of by the store only.
                for (_, name, _) in &stream.expected {
                    then.remove(name);
                }
                let wrong = then.iter().find(|(name, revision)| objects.get(*name) != Some(*revision));
                if let Some((name, revision)) = wrong {
                    let there = objects.get(name);
                    return Some((
                        RULE,
                        format!("{prefix}{name} is at {revision}, and a list at {at} says {there:?}"),
                    ));
                }
            }
            News::Bookmark(at) => {
                if let Some((revision, name, _)) = stream.expected.front()
                    && *revision <= at
                {
                    return Some((
                        RULE,
                        format!("{prefix}: a bookmark at {at}, and {name} at {revision} was not sent"),
                    ));
                }
                stream.witness_at = stream.witness_at.max(Some(at));
            }
            News::Changed(name, at) => return stream.next(prefix, name, at, true),
            News::Gone(name, at) => return stream.next(prefix, name, at, false),
        }
        None
    }

    /// Whoever is connected has heard everything at a quiet point.
    pub(crate) fn quiet(&self) -> Broken {
        let behind = self.0.iter().find(|(_, stream)| stream.connected && !stream.expected.is_empty());
        behind.map(|(prefix, stream)| (RULE, format!("{prefix}: {:?} was not sent", stream.expected.front())))
    }
}

impl Stream {
    fn next(&mut self, prefix: &str, name: String, at: u64, exists: bool) -> Broken {
        let got = (at, name, exists);
        let expected = self.expected.pop_front();
        if expected.as_ref() != Some(&got) {
            return Some((RULE, format!("{prefix}: expected {expected:?}, was sent {got:?}")));
        }
        self.witness_at = Some(at);
        None
    }
}
