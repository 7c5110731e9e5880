//! The index in memory: every key with its versions, and the history of events since the last compaction. Pure.
//!
//! Forgetting has two steps. [`Index::forget_before`] moves the oldest revision that can be read, at once;
//! [`Index::trim`] then frees what nobody can read any more, in small pieces, and never beyond a pinned revision
//! that a snapshot is being taken of.

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;

use bytes::Bytes;

use crate::contract::{
    Event, EventKind, KeyValue, ListPage, ListRequest, Revision, StoreError, StoreResult, prefix_end,
};

#[derive(Debug, Clone)]
struct Version {
    mod_revision: Revision,
    create_revision: Revision,
    /// `None`: removed at `mod_revision`.
    value: Option<Bytes>,
}

#[derive(Debug)]
struct Entry {
    latest: Version,
    /// Older versions, oldest first. Empty for most keys, and then without an allocation.
    older: Vec<Version>,
}

impl Entry {
    fn at(&self, revision: Revision) -> Option<&Version> {
        if self.latest.mod_revision <= revision {
            return Some(&self.latest);
        }
        self.older.iter().rev().find(|version| version.mod_revision <= revision)
    }
}

fn key_value(key: &Bytes, version: &Version) -> Option<KeyValue> {
    Some(KeyValue {
        key: key.clone(),
        value: version.value.clone()?,
        create_revision: version.create_revision,
        mod_revision: version.mod_revision,
    })
}

#[derive(Debug)]
struct Commit {
    events: Vec<Event>,
    /// What keeping this commit costs, about.
    cost: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<Bytes, Entry>,
    /// The commits after `trimmed`, without gaps.
    history: VecDeque<Commit>,
    revision: Revision,
    /// The oldest revision that can be read.
    oldest: Revision,
    /// History up to here is freed. Never more than `oldest`.
    trimmed: Revision,
    pin: Option<Revision>,
    /// Cost of the commits after `oldest`.
    history_cost: u64,
    /// Keys that exist now.
    keys: usize,
    /// Bytes that existed at `trimmed`: what a snapshot has to hold.
    bytes_trimmed: u64,
}

fn size(key: &Bytes, value: &Bytes) -> u64 {
    (key.len() + value.len()) as u64 + 24
}

impl Index {
    /// The index as of a snapshot at `revision`. Items come by [`Index::restore`].
    pub(super) fn at_snapshot(revision: Revision) -> Self {
        Index { revision, oldest: revision, trimmed: revision, ..Index::default() }
    }

    /// Adds an item of the snapshot.
    pub(super) fn restore(&mut self, item: KeyValue) {
        self.bytes_trimmed += size(&item.key, &item.value);
        self.keys += 1;
        let latest = Version {
            mod_revision: item.mod_revision,
            create_revision: item.create_revision,
            value: Some(item.value),
        };
        self.entries.insert(item.key, Entry { latest, older: Vec::new() });
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn oldest(&self) -> Revision {
        self.oldest
    }

    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    /// About what a snapshot at the oldest revision takes.
    pub(super) fn snapshot_bytes(&self) -> u64 {
        self.bytes_trimmed
    }

    pub(super) fn history_cost(&self) -> u64 {
        self.history_cost
    }

    pub(super) fn get(&self, key: &Bytes) -> Option<KeyValue> {
        let (key, entry) = self.entries.get_key_value(key)?;
        key_value(key, &entry.latest)
    }

    /// Checks that a revision can be read.
    pub(super) fn check_readable(&self, requested: Revision) -> StoreResult<()> {
        if requested > self.revision {
            return Err(StoreError::Future { requested, current: self.revision });
        }
        if requested < self.oldest {
            return Err(StoreError::Compacted { requested, oldest: self.oldest });
        }
        Ok(())
    }

    /// Appends to `items` what exists under `prefix` after `after` as of `revision`: looks at no more than `budget`
    /// keys and stops at `limit` items. Returns where to go on, if there is more to look at.
    pub(super) fn range(
        &self,
        prefix: &Bytes,
        after: Option<&Bytes>,
        revision: Revision,
        limit: usize,
        budget: usize,
        items: &mut Vec<KeyValue>,
    ) -> Option<Bytes> {
        let mut last = None;
        for (seen, (key, entry)) in self.keys_of(prefix, after).enumerate() {
            if seen == budget || items.len() == limit {
                return last;
            }
            items.extend(entry.at(revision).and_then(|version| key_value(key, version)));
            last = Some(key.clone());
        }
        None
    }

    /// How many keys of `prefix` after `after` exist as of `revision`.
    pub(super) fn count(&self, prefix: &Bytes, after: &Bytes, revision: Revision) -> usize {
        self.keys_of(prefix, Some(after))
            .filter(|(_, entry)| entry.at(revision).is_some_and(|version| version.value.is_some()))
            .count()
    }

    /// The entries of `prefix` after `after`. The end is looked up once, so that passing over an entry touches
    /// neither key nor value: counting 100,000 stays cheap.
    fn keys_of(&self, prefix: &Bytes, after: Option<&Bytes>) -> btree_map::Range<'_, Bytes, Entry> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let end = prefix_end(prefix);
        let end = match (&end, after) {
            (Some(end), Some(after)) if after >= end => return btree_map::Range::default(),
            (Some(end), _) => Bound::Excluded(end),
            (None, _) => Bound::Unbounded,
        };
        self.entries.range::<Bytes, _>((start, end))
    }

    /// A whole list at once.
    pub(super) fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        let revision = request.at.unwrap_or(self.revision);
        self.check_readable(revision)?;
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        let mut items = Vec::new();
        let rest =
            self.range(&request.prefix, request.after.as_ref(), revision, limit, usize::MAX, &mut items);
        let remaining = rest.map_or(0, |last| self.count(&request.prefix, &last, revision));
        Ok(ListPage { items, revision, remaining })
    }

    /// All events after `after` that `wanted` asks for.
    pub(super) fn events_after(&self, after: Revision, wanted: impl Fn(&Bytes) -> bool) -> Vec<Event> {
        let skip = usize::try_from(after.0.saturating_sub(self.trimmed.0)).unwrap_or(usize::MAX);
        self.history
            .iter()
            .skip(skip)
            .flat_map(|commit| &commit.events)
            .filter(|event| wanted(&event.key))
            .cloned()
            .collect()
    }

    /// Applies the next commit.
    pub(super) fn apply(&mut self, events: Vec<Event>) {
        self.revision = Revision(self.revision.0 + 1);
        let mut cost = 64;
        for event in &events {
            let create_revision = match &event.previous {
                Some(previous) => previous.create_revision,
                None => event.revision,
            };
            let version =
                Version { mod_revision: event.revision, create_revision, value: event.value.clone() };
            let (_, removed) = sizes(event);
            match event.kind {
                EventKind::Put if event.previous.is_none() => self.keys += 1,
                EventKind::Put => {}
                EventKind::Delete => self.keys -= 1,
            }
            cost += 256 + removed;
            match self.entries.entry(event.key.clone()) {
                btree_map::Entry::Occupied(entry) => {
                    let entry = entry.into_mut();
                    entry.older.push(std::mem::replace(&mut entry.latest, version));
                }
                btree_map::Entry::Vacant(entry) => {
                    entry.insert(Entry { latest: version, older: Vec::new() });
                }
            }
        }
        self.history_cost += cost;
        self.history.push_back(Commit { events, cost });
    }

    /// Makes `revision` the oldest that can be read; see [`Index::trim`] for the memory.
    pub(super) fn forget_before(&mut self, revision: Revision) {
        let to = revision.min(self.revision);
        while self.oldest < to {
            self.drop_oldest();
        }
    }

    /// Forgets from the oldest on until history costs no more than `limit`.
    pub(super) fn forget_above_cost(&mut self, limit: u64) {
        while self.history_cost > limit && self.oldest < self.revision {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let at = usize::try_from(self.oldest.0 - self.trimmed.0).unwrap_or(usize::MAX);
        if let Some(commit) = self.history.get(at) {
            self.history_cost -= commit.cost;
        }
        self.oldest = Revision(self.oldest.0 + 1);
    }

    /// Keeps the history after `revision` until [`Index::unpin`], whatever is forgotten meanwhile.
    pub(super) fn pin(&mut self, revision: Revision) {
        self.pin = Some(revision);
    }

    pub(super) fn unpin(&mut self) {
        self.pin = None;
    }

    /// Frees up to `commits` commits of history that cannot be read any more; whether there is more to free.
    pub(super) fn trim(&mut self, commits: usize) -> bool {
        let goal = self.pin.map_or(self.oldest, |pin| pin.min(self.oldest));
        for _ in 0..commits {
            if self.trimmed >= goal {
                return false;
            }
            let Some(commit) = self.history.pop_front() else { return false };
            self.trimmed = Revision(self.trimmed.0 + 1);
            for event in &commit.events {
                let (added, removed) = sizes(event);
                self.bytes_trimmed = self.bytes_trimmed + added - removed;
                self.trim_key(&event.key);
            }
        }
        self.trimmed < goal
    }

    /// Drops the versions of a key that were already replaced at `trimmed`.
    fn trim_key(&mut self, key: &Bytes) {
        let trimmed = self.trimmed;
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.latest.mod_revision <= trimmed {
            if entry.latest.value.is_none() {
                self.entries.remove(key);
            } else {
                entry.older = Vec::new();
            }
            return;
        }
        let keep_from = entry.older.iter().rposition(|version| version.mod_revision <= trimmed);
        if let Some(i) = keep_from {
            // A removal needs no version of its own: before the next version there is nothing.
            let first = if entry.older[i].value.is_none() { i + 1 } else { i };
            entry.older.drain(..first);
        }
    }
}

/// What an event adds to the content and what it takes away.
fn sizes(event: &Event) -> (u64, u64) {
    (
        event.value.as_ref().map_or(0, |value| size(&event.key, value)),
        event.previous.as_ref().map_or(0, |previous| size(&previous.key, &previous.value)),
    )
}
