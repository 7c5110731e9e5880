//! What happened, in lines for people and as a hash for comparing runs.

use std::fmt::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;

/// Hears what happens, as it is seen.
pub type Listen = Box<dyn FnMut(&Told<'_>) + Send>;

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub enum Told<'a> {
    /// Something that is no change of an object.
    Line {
        /// Virtual time since the start.
        at: Duration,
        /// The line of the trace.
        line: &'a str,
    },
    /// A change of an object.
    Change {
        /// Virtual time since the start.
        at: Duration,
        /// Its key in the store.
        key: &'a str,
        /// What it is now; `None` if it is gone.
        value: Option<&'a Bytes>,
        /// What there is to tell of it, in the words of the trace; changes of Leases go untold, for one.
        text: Option<&'a str>,
        /// The line of the trace that says so.
        line: Option<&'a str>,
    },
}

/// The trace of a run.
///
/// The hash covers every line and every revision of the store with its bytes, so that two runs with the same hash did
/// the same. It is the same on every machine and for every kind of build.
pub struct Trace {
    lines: Vec<String>,
    hash: u64,
    count: u64,
    /// Whether lines are kept; the hash does not depend on it.
    keep: bool,
    listen: Option<Listen>,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace")
            .field("hash", &self.hash())
            .field("events", &self.count)
            .finish_non_exhaustive()
    }
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Trace { lines: Vec::new(), hash: 0xcbf2_9ce4_8422_2325, count: 0, keep, listen: None }
    }

    /// Lets somebody hear of everything from now on. The observer is locked while they hear.
    pub(crate) fn listen(&mut self, listen: Listen) {
        self.listen = Some(listen);
    }

    /// Takes bytes into the hash: FNV-1a over words, which needs nothing that could differ between machines.
    pub(crate) fn absorb(&mut self, bytes: &[u8]) {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            self.hash = (self.hash ^ word).wrapping_mul(PRIME).rotate_left(23);
        }
        for byte in words.remainder() {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
        self.count += 1;
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, at: Duration, text: &str) {
        let line = self.add(at, text);
        if let (Some(listen), Some(line)) = (&mut self.listen, &line) {
            listen(&Told::Line { at, line });
        }
        self.keep(line);
    }

    /// Adds what there is to tell of a change of an object.
    pub(crate) fn change(
        &mut self,
        at: Duration,
        revision: u64,
        key: &str,
        value: Option<&Bytes>,
        text: Option<&str>,
    ) {
        let line = text.and_then(|text| self.add(at, &format!("#{revision} {text}")));
        if let Some(listen) = &mut self.listen {
            listen(&Told::Change { at, key, value, text, line: line.as_deref() });
        }
        self.keep(line);
    }

    /// Takes a line into the hash. Returns the whole of it, if anybody wants it.
    fn add(&mut self, at: Duration, text: &str) -> Option<String> {
        let stamp = stamp(at);
        self.absorb(stamp.as_bytes());
        self.absorb(text.as_bytes());
        (self.keep || self.listen.is_some()).then(|| format!("{stamp} {text}"))
    }

    fn keep(&mut self, line: Option<String>) {
        if self.keep {
            self.lines.extend(line);
        }
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The lines with this text in them, in order.
    #[must_use]
    pub fn about(&self, text: &str) -> Vec<&str> {
        self.lines.iter().filter(|line| line.contains(text)).map(String::as_str).collect()
    }

    /// What tells this run from any other, as hexadecimal digits.
    #[must_use]
    pub fn hash(&self) -> String {
        format!("{:016x}", self.hash)
    }

    /// How many things were taken into the hash: a measure of how much happened.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.count
    }
}

/// `+HH:MM:SS.mmm`, with days in front when there are any.
#[must_use]
pub fn stamp(at: Duration) -> String {
    let (seconds, millis) = (at.as_secs(), at.subsec_millis());
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let mut text = String::from("+");
    if days > 0 {
        let _ = write!(text, "{days}d");
    }
    let _ = write!(text, "{hours:02}:{:02}:{:02}.{millis:03}", seconds / 60 % 60, seconds % 60);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_for_people() {
        assert_eq!(stamp(Duration::from_millis(70_001)), "+00:01:10.001");
        assert_eq!(stamp(Duration::from_secs(90_061)), "+1d01:01:01.000");
    }

    #[test]
    fn the_hash_tells_traces_apart_and_stays() {
        let hash = |lines: &[&str]| {
            let mut trace = Trace::new(false);
            lines.iter().for_each(|line| trace.line(Duration::ZERO, line));
            trace.hash()
        };
        assert_eq!(hash(&["pod a", "pod b"]), hash(&["pod a", "pod b"]));
        assert_ne!(hash(&["pod a", "pod b"]), hash(&["pod b", "pod a"]));
    }
}
