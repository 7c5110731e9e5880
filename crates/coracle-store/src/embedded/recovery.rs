//! Opening: the newest snapshot, then the log; what is damaged is refused, what was torn is cut and reported.

use std::io;

use super::format::{self, Damage, FILE_HEADER, FRAME_HEADER_LEN, SNAPSHOT_MAGIC};
use super::index::Index;
use super::snapshot::{Existing, LAST_FRAME};
use super::writer::{Sealed, Segment, create_segment};
use super::{Options, segment_name, snapshot_name};
use crate::contract::{Event, EventKind, Op, Revision};
use crate::files::{Directory, File, read_all};

/// Why a store cannot be opened. Nothing has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store {path} is in use by another process: stop that one first")]
    Locked {
        /// The directory.
        path: String,
    },
    /// Written by a newer version.
    #[error(
        "{file} has format version {found}, this version of Coracle reads up to {supported}: \
         start the newer Coracle that wrote it"
    )]
    Newer {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// Something that was durable is not as it was written.
    #[error(
        "{file} is damaged at byte {offset}: {what}; nothing has been changed: restore the store from a backup"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot {doing} {file}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        file: String,
        /// What came of it.
        #[source]
        source: io::Error,
    },
    /// No first segment could be made, or no thread.
    #[error("{0}")]
    Start(String),
}

/// What an opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest: Revision,
    /// How many keys exist.
    pub keys: usize,
    /// The snapshot that was read.
    pub snapshot: Option<Revision>,
    /// How many segments of the log were read.
    pub segments: usize,
    /// What was cut off the end of the log: a write that power or process did not survive, and nobody had an answer to.
    pub cut: Option<Cut>,
}

/// The rest of an interrupted write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: String,
    /// Where the cut is.
    pub offset: u64,
    /// How many bytes were cut off.
    pub bytes: u64,
}

/// Everything that a writer starts with.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) active: Segment,
    pub(super) sealed: Vec<Sealed>,
    pub(super) snapshot: Option<Existing>,
    pub(super) report: Recovery,
}

struct Files {
    /// Revisions in the names, ascending.
    snapshots: Vec<Revision>,
    segments: Vec<Revision>,
    temporary: Vec<String>,
}

pub(super) fn recover(files: &dyn Directory, options: &Options) -> Result<Recovered, OpenError> {
    let found = sort_names(files.list().map_err(|error| io_error(files, "list", "", error))?);
    let (mut index, snapshot) = match found.snapshots.last() {
        Some(&revision) => {
            let (index, existing) = load_snapshot(files, revision)?;
            (index, Some(existing))
        }
        None => (Index::default(), None),
    };
    let start = index.revision();
    // A segment before one that starts at or before the snapshot's end holds nothing new.
    let needless = found.segments.iter().skip(1).take_while(|first| first.0 <= start.0 + 1).count();
    let (obsolete, segments) = found.segments.split_at(needless);
    let first = segments.first().copied();
    if first.is_none_or(|first| first.0 > start.0 + 1) && (first.is_some() || snapshot.is_some()) {
        let missing = format!("the segment of the log with revision {} is missing", start.0 + 1);
        let name = first.map_or_else(|| snapshot_name(start), segment_name);
        return Err(OpenError::Damaged { file: files.describe(&name), offset: 0, what: missing });
    }
    let mut replayed = Vec::new();
    let mut buffer = Vec::new();
    let mut cut = None;
    for (i, &first) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        let (segment, torn) = replay(files, first, last, options, &mut index, &mut buffer)?;
        cut = cut.or(torn);
        replayed.push(segment);
        if let Some(following) = segments.get(i + 1)
            && following.0 != index.revision().0 + 1
        {
            let what = format!(
                "it starts at revision {following}, after {} in the segment before",
                index.revision()
            );
            let file = files.describe(&segment_name(*following));
            return Err(OpenError::Damaged { file, offset: 0, what });
        }
    }
    // Everything has been read and is good: from here on files are changed.
    let (active, sealed) = start_writing(files, replayed, &index, options)?;
    let old_snapshots = found.snapshots.iter().rev().skip(1).map(|&revision| snapshot_name(revision));
    let obsolete_segments = obsolete.iter().map(|&first| segment_name(first));
    for name in found.temporary.into_iter().chain(old_snapshots).chain(obsolete_segments) {
        // `start_writing` may have used the name of a temporary file.
        match files.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(files, "remove", &name, error));
            }
            _ => {}
        }
    }
    let report = Recovery {
        revision: index.revision(),
        oldest: index.oldest(),
        keys: index.keys(),
        snapshot: snapshot.as_ref().map(|snapshot| snapshot.revision),
        segments: segments.len(),
        cut,
    };
    Ok(Recovered { index, active, sealed, snapshot, report })
}

fn sort_names(names: Vec<String>) -> Files {
    let mut files = Files { snapshots: Vec::new(), segments: Vec::new(), temporary: Vec::new() };
    for name in names {
        let (stem, kind) = name.split_once('.').unwrap_or((&name, ""));
        let Ok(revision) = stem.parse().map(Revision) else { continue };
        match kind {
            "log" => files.segments.push(revision),
            "snapshot" => files.snapshots.push(revision),
            "log.tmp" | "snapshot.tmp" => files.temporary.push(name),
            _ => tracing::debug!(name, "not a file of the store"),
        }
    }
    files.snapshots.sort_unstable();
    files.segments.sort_unstable();
    files
}

fn load_snapshot(files: &dyn Directory, revision: Revision) -> Result<(Index, Existing), OpenError> {
    let name = snapshot_name(revision);
    let damaged = |damage| damage_error(files, &name, damage);
    let failed = |error| io_error(files, "read", &name, error);
    let file = files.open(&name).map_err(failed)?;
    let length = file.len().map_err(failed)?;
    let mut buffer = vec![0; FILE_HEADER];
    let read = file.read_at(0, &mut buffer).map_err(failed)?;
    check_name(format::read_file_header(SNAPSHOT_MAGIC, &buffer[..read]).map_err(damaged)?, revision)
        .map_err(damaged)?;
    let mut index = Index::at_snapshot(revision);
    let mut offset = FILE_HEADER as u64;
    let mut sequence = 0;
    loop {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        buffer.resize(FRAME_HEADER_LEN, 0);
        let read = file.read_at(offset, &mut buffer).map_err(failed)?;
        let header = format::snapshot_frame_header(&buffer[..read], at).map_err(damaged)?;
        let is_last = header.sequence == LAST_FRAME;
        if header.sequence != sequence && !is_last {
            return Err(damaged(Damage::At { offset: at, what: "a record is missing or doubled" }));
        }
        buffer.resize(header.frame_len(), 0);
        let read = file.read_at(offset, &mut buffer).map_err(failed)?;
        format::snapshot_items(header, &buffer[..read], at, |item| index.restore(item)).map_err(damaged)?;
        offset += header.frame_len() as u64;
        sequence += 1;
        if is_last {
            break;
        }
    }
    if offset != length {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        return Err(damaged(Damage::At { offset: at, what: "there is something after the last record" }));
    }
    Ok((index, Existing { name, revision, bytes: length }))
}

fn check_name(stated: Revision, named: Revision) -> Result<(), Damage> {
    if stated == named {
        return Ok(());
    }
    Err(Damage::At { offset: 0, what: "the file header states another revision than the file's name" })
}

/// A segment that has been read.
struct Replayed {
    sealed: Sealed,
    file: Box<dyn File>,
    /// Where the last frame of the log is, and its bytes.
    last_frame: Option<(u64, Vec<u8>)>,
}

fn replay(
    files: &dyn Directory,
    first: Revision,
    last: bool,
    options: &Options,
    index: &mut Index,
    bytes: &mut Vec<u8>,
) -> Result<(Replayed, Option<Cut>), OpenError> {
    let name = segment_name(first);
    let damaged = |damage| damage_error(files, &name, damage);
    let failed = |error| io_error(files, "read", &name, error);
    let file = files.open(&name).map_err(failed)?;
    read_all(&*file, bytes).map_err(failed)?;
    let stated = format::read_file_header(format::SEGMENT_MAGIC, bytes).map_err(damaged)?;
    check_name(stated, first).map_err(damaged)?;
    let limits = &options.retention;
    let scanned = format::scan_segment(bytes, last, |revision, ops| {
        if revision <= index.revision() {
            return;
        }
        let events = ops.into_iter().filter_map(|op| event(index, op, revision)).collect();
        index.apply(events);
        index.forget_before(Revision(revision.0.saturating_sub(limits.revisions)));
        index.forget_above_cost(limits.bytes);
        index.trim(2);
    })
    .map_err(damaged)?;
    if scanned.next.0 != index.revision().0 + 1 {
        let what = "the log ends before the snapshot that was made of it";
        return Err(damaged(Damage::At { offset: scanned.end, what }));
    }
    let end = scanned.end as u64;
    let cut = (scanned.torn > 0).then(|| Cut {
        file: files.describe(&name),
        offset: end,
        bytes: scanned.torn as u64,
    });
    let last_frame =
        scanned.last_frame.filter(|_| last).map(|at| (at as u64, bytes[at..scanned.end].to_vec()));
    let sealed = Sealed { name, last: Revision(scanned.next.0 - 1), bytes: end };
    Ok((Replayed { sealed, file, last_frame }, cut))
}

fn event(index: &Index, op: Op, revision: Revision) -> Option<Event> {
    Some(match op {
        Op::Put { key, value } => {
            let previous = index.get(&key);
            Event { kind: EventKind::Put, revision, key, value: Some(value), previous }
        }
        Op::Delete { key } => {
            let previous = Some(index.get(&key)?);
            Event { kind: EventKind::Delete, revision, key, value: None, previous }
        }
    })
}

/// Makes what was read durable and starts a new segment after it.
fn start_writing(
    files: &dyn Directory,
    mut replayed: Vec<Replayed>,
    index: &Index,
    options: &Options,
) -> Result<(Segment, Vec<Sealed>), OpenError> {
    match replayed.last() {
        Some(Replayed { sealed, file, last_frame: Some((at, frame)) }) => {
            // The writer may have died between write and flush, or in a flush that failed: the frame is in memory,
            // where it was read from, and maybe nowhere else. Writing it again makes the flush cover it.
            file.write_at(*at, frame)
                .and_then(|()| file.set_len(sealed.bytes))
                .and_then(|()| file.sync())
                .map_err(|error| io_error(files, "flush", &sealed.name, error))?;
        }
        // An empty segment is made anew under its name.
        Some(_) => drop(replayed.pop()),
        None => {}
    }
    let next = Revision(index.revision().0 + 1);
    let active = create_segment(files, next, options.segment_bytes).map_err(OpenError::Start)?;
    Ok((active, replayed.into_iter().map(|segment| segment.sealed).collect()))
}

fn damage_error(files: &dyn Directory, name: &str, damage: Damage) -> OpenError {
    let file = files.describe(name);
    match damage {
        Damage::At { offset, what } => {
            OpenError::Damaged { file, offset: offset as u64, what: what.to_owned() }
        }
        Damage::Newer { version } => OpenError::Newer { file, found: version, supported: format::VERSION },
    }
}

fn io_error(files: &dyn Directory, doing: &'static str, name: &str, source: io::Error) -> OpenError {
    OpenError::Io { doing, file: files.describe(name), source }
}
