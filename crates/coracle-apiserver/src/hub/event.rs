//! One change of one object, and what is derived from it once for all its watchers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use coracle_store::{EventKind, Revision};

use crate::object;

/// What a watcher sees of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchKind {
    /// The object is new to this watcher.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or no longer selected.
    Deleted,
}

impl WatchKind {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WatchKind::Added => "ADDED",
            WatchKind::Modified => "MODIFIED",
            WatchKind::Deleted => "DELETED",
        }
    }
}

/// The object before a change, or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before.
    Old,
    /// After.
    New,
}

/// What selectors look at.
#[derive(Debug, Default)]
pub struct Attributes {
    /// The labels.
    pub labels: Vec<(String, String)>,
    /// The fields that can be selected.
    pub fields: Vec<(&'static str, String)>,
}

impl Attributes {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }

    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }

    fn size(&self) -> usize {
        let labels: usize = self.labels.iter().map(|(name, value)| 48 + name.len() + value.len()).sum();
        labels + self.fields.iter().map(|(_, value)| 40 + value.len()).sum::<usize>()
    }
}

/// The line of a watch that shows `stored`; `None` if it is not in the stored form.
pub(crate) fn line(kind: WatchKind, stored: &[u8], revision: Revision) -> Option<Bytes> {
    let mut out = Vec::with_capacity(stored.len() + 96);
    out.extend_from_slice(br#"{"type":""#);
    out.extend_from_slice(kind.as_str().as_bytes());
    out.extend_from_slice(br#"","object":"#);
    object::write_object(&mut out, stored, revision).ok()?;
    out.extend_from_slice(b"}\n");
    Some(out.into())
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// When it happened.
    pub revision: Revision,
    /// The storage key.
    pub key: Bytes,
    /// Stored bytes after the change; `None` for a removal.
    pub new: Option<Bytes>,
    /// Stored bytes before the change.
    pub old: Option<Bytes>,
    /// The values of the indexed field before and after.
    index: OnceLock<[Option<Box<str>>; 2]>,
    derived: Mutex<Derived>,
    /// Bounds what is derived; `None` for an event that only one watcher sees, for which nothing is kept.
    kept: Option<Arc<Kept>>,
}

#[derive(Debug, Default)]
struct Derived {
    lines: [Option<Bytes>; 3],
    attributes: [Option<Arc<Attributes>>; 2],
}

impl Event {
    pub(super) fn new(event: coracle_store::Event, kept: Option<Arc<Kept>>) -> Self {
        Event {
            revision: event.revision,
            key: event.key,
            new: match event.kind {
                EventKind::Put => event.value,
                EventKind::Delete => None,
            },
            old: event.previous.map(|previous| previous.value),
            index: OnceLock::new(),
            derived: Mutex::default(),
            kept,
        }
    }

    /// The stored bytes that `kind` shows: what was there before for a deletion, what is there now otherwise.
    #[must_use]
    pub fn shown(&self, kind: WatchKind) -> Option<&Bytes> {
        match kind {
            WatchKind::Added | WatchKind::Modified => self.new.as_ref(),
            WatchKind::Deleted => self.old.as_ref(),
        }
    }

    /// The stored bytes of a side.
    #[must_use]
    pub fn side(&self, side: Side) -> Option<&Bytes> {
        match side {
            Side::Old => self.old.as_ref(),
            Side::New => self.new.as_ref(),
        }
    }

    /// The line of a watch in which this event is of `kind`, shared by those who ask at about the same time.
    pub(crate) fn line(self: &Arc<Self>, kind: WatchKind) -> Option<Bytes> {
        if let Some(line) = &self.derived().lines[kind as usize] {
            return Some(line.clone());
        }
        let made = line(kind, self.shown(kind)?, self.revision)?;
        if let Some(kept) = &self.kept {
            self.derived().lines[kind as usize] = Some(made.clone());
            kept.note(self, made.len());
        }
        Some(made)
    }

    /// What selectors look at on one side, made by `make` unless somebody has just asked; `None` if there is no
    /// object on that side, or it cannot be read.
    pub(crate) fn attributes(
        self: &Arc<Self>,
        side: Side,
        make: impl FnOnce(&[u8]) -> Option<Attributes>,
    ) -> Option<Arc<Attributes>> {
        if let Some(attributes) = &self.derived().attributes[side as usize] {
            return Some(Arc::clone(attributes));
        }
        let made = Arc::new(make(self.side(side)?)?);
        if let Some(kept) = &self.kept {
            self.derived().attributes[side as usize] = Some(Arc::clone(&made));
            kept.note(self, made.size());
        }
        Some(made)
    }

    /// The values of `field`, a path to a text, before and after; `None` where there is no object.
    pub(super) fn indexed(&self, field: &str) -> [Option<&str>; 2] {
        let values = self.index.get_or_init(|| {
            [&self.old, &self.new].map(|stored| {
                stored.as_ref().map(|stored| object::text_at(stored, field).unwrap_or_default().into())
            })
        });
        [values[0].as_deref(), values[1].as_deref()]
    }

    /// What keeping the event costs, without what is derived from it.
    pub(super) fn size(&self) -> usize {
        size_of::<Event>()
            + self.key.len()
            + self.new.as_ref().map_or(0, Bytes::len)
            + self.old.as_ref().map_or(0, Bytes::len)
    }

    fn derived(&self) -> MutexGuard<'_, Derived> {
        // Each use is one assignment.
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bounds the bytes of all that is derived from events: what was made first goes first.
///
/// Nearly all watchers ask for an event right after it happened; who asks later has it made again.
#[derive(Debug)]
pub(super) struct Kept {
    most: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    made: VecDeque<(Weak<Event>, usize)>,
    bytes: usize,
}

impl Kept {
    pub(super) fn new(most: usize) -> Self {
        Kept { most, queue: Mutex::default() }
    }

    fn note(&self, event: &Arc<Event>, bytes: usize) {
        let mut gone = Vec::new();
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            // The entry itself is not free.
            let bytes = bytes + size_of::<(Weak<Event>, usize)>();
            queue.bytes += bytes;
            queue.made.push_back((Arc::downgrade(event), bytes));
            while queue.bytes > self.most
                && let Some((event, bytes)) = queue.made.pop_front()
            {
                queue.bytes -= bytes;
                gone.push(event);
            }
        }
        // Whatever an event holds is noted at or after the entry that goes: nothing stays unnoted.
        for event in gone.iter().filter_map(Weak::upgrade) {
            *event.derived() = Derived::default();
        }
    }

    /// The bytes held, for measuring.
    pub(super) fn bytes(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kept: &Arc<Kept>, revision: u64) -> Arc<Event> {
        let stored = format!(r#"{{"apiVersion":"v1","kind":"X","metadata":{{"name":"{revision:0100}"}}}}"#);
        let event = coracle_store::Event {
            kind: EventKind::Put,
            revision: Revision(revision),
            key: Bytes::from_static(b"/registry/x/a"),
            value: Some(stored.into()),
            previous: None,
        };
        Arc::new(Event::new(event, Some(Arc::clone(kept))))
    }

    #[test]
    fn what_is_derived_is_shared_and_bounded() {
        let kept = Arc::new(Kept::new(2000));
        let events: Vec<_> = (1..=50).map(|revision| event(&kept, revision)).collect();
        for event in &events {
            let first = event.line(WatchKind::Added).unwrap();
            let second = event.line(WatchKind::Added).unwrap();
            assert_eq!(first.as_ptr(), second.as_ptr(), "one line for all");
            assert!(event.line(WatchKind::Deleted).is_none(), "nothing was there before");
        }
        assert!(kept.bytes() <= 2000);
        let held = |event: &&Arc<Event>| event.derived().lines[0].is_some();
        let held: Vec<u64> = events.iter().filter(held).map(|event| event.revision.0).collect();
        assert!(!held.is_empty() && held.len() < 12, "{held:?}");
        assert_eq!(held.last(), Some(&50), "the newest stay");
        assert!(events[0].line(WatchKind::Added).is_some(), "what went is made again");
        assert!(kept.bytes() <= 2000);
    }

    #[test]
    fn attributes_are_made_once_for_each_side() {
        let kept = Arc::new(Kept::new(2000));
        let event = event(&kept, 1);
        let mut made = 0;
        for _ in 0..3 {
            let attributes = event.attributes(Side::New, |_| {
                made += 1;
                Some(Attributes { labels: vec![("a".into(), "b".into())], fields: Vec::new() })
            });
            assert_eq!(attributes.unwrap().label("a"), Some("b"));
        }
        assert_eq!(made, 1);
        assert!(event.attributes(Side::Old, |_| Some(Attributes::default())).is_none());
    }
}
