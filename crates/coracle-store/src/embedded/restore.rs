//! A store that starts with the content of another one.

use std::io;
use std::path::Path;

use super::format::{FILE_HEADER, FrameBuffer, SNAPSHOT_MAGIC, file_header};
use super::snapshot::LAST_FRAME;
use super::snapshot_name;
use super::writer::create_segment;
use crate::contract::{KeyValue, Revision};
use crate::files::{Directory, Disk, File};

const FRAME_BYTES: usize = 256 << 10;
/// The first opening makes its own.
const SEGMENT_BYTES: u64 = 4096;

/// The files of a new store, under way. They are a store when [`NewStore::finish`] has returned.
pub struct NewStore {
    disk: Disk,
    revision: Revision,
    file: Box<dyn File>,
    frame: FrameBuffer,
    frames: u64,
    end: u64,
}

impl NewStore {
    /// Starts a store in the directory `path`, which must be empty or absent, whose history begins at `revision`:
    /// nothing before it can be read or watched.
    ///
    /// # Errors
    /// If files cannot be written, or there are some.
    pub fn create(path: &Path, revision: Revision) -> io::Result<Self> {
        let disk = Disk::open(path)?;
        if !disk.list()?.is_empty() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there are files already"));
        }
        let file = disk.create(&temporary(revision))?;
        file.write_at(0, &file_header(SNAPSHOT_MAGIC, revision))?;
        let mut frame = FrameBuffer::default();
        frame.clear();
        Ok(NewStore { disk, revision, file, frame, frames: 0, end: FILE_HEADER as u64 })
    }

    /// Adds a key as it was, revisions included, which must not be after the store's.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push(&mut self, item: &KeyValue) -> io::Result<()> {
        self.frame.push_item(item);
        if self.frame.payload_len() >= FRAME_BYTES { self.write_frame(self.frames) } else { Ok(()) }
    }

    fn write_frame(&mut self, sequence: u64) -> io::Result<()> {
        let bytes = self.frame.finish(sequence);
        self.file.write_at(self.end, bytes)?;
        self.end += bytes.len() as u64;
        self.frames += 1;
        self.frame.clear();
        Ok(())
    }

    /// Makes it a store, durably.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        if self.frame.payload_len() > 0 {
            self.write_frame(self.frames)?;
        }
        self.write_frame(LAST_FRAME)?;
        self.file.sync()?;
        create_segment(&self.disk, Revision(self.revision.0 + 1), SEGMENT_BYTES).map_err(io::Error::other)?;
        self.disk.rename(&temporary(self.revision), &snapshot_name(self.revision))?;
        self.disk.sync()
    }
}

impl std::fmt::Debug for NewStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewStore").field("revision", &self.revision).finish_non_exhaustive()
    }
}

fn temporary(revision: Revision) -> String {
    format!("{}.tmp", snapshot_name(revision))
}
