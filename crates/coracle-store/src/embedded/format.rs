//! The bytes of segments and snapshots: encoding, and the decision what damage is. Pure.
//!
//! A file is a header and frames. All numbers are little-endian.
//!
//! ```text
//! file header   magic 8 · format version u32 · revision u64 · crc32c of the preceding u32
//! frame         0xC0 · payload length u32 · sequence u64 · crc32c of the payload u32 · crc32c of the preceding u32
//!               payload
//!               0xC5
//! ```
//!
//! A segment's frame is one group commit and one write: its sequence is the first revision, its payload one
//! transaction per revision. A frame is flushed before the next is written, so only the last frame of the last
//! segment can be torn. A torn frame misses its end or whole sectors, which read as zeros; first and last byte of a
//! frame are not zero so that this shows. A frame that is complete and wrong was not torn, but damaged since.
//! (A damaged last frame passes for a torn one only if a value in it holds a whole sector of zeros.)

use bytes::Bytes;

use crate::contract::{KeyValue, Op, Revision};

/// The format that this code writes, and the newest it reads.
pub(super) const VERSION: u32 = 1;
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"CRCL-LOG";
pub(super) const SNAPSHOT_MAGIC: [u8; 8] = *b"CRCL-SNP";
pub(super) const FILE_HEADER: usize = 24;

const FRAME_HEADER: usize = 21;
const FRAME_OVERHEAD: usize = FRAME_HEADER + 1;
const FRAME_START: u8 = 0xC0;
const FRAME_END: u8 = 0xC5;
const SECTOR: usize = 512;
/// No frame is longer than this; the writer stays far below.
pub(super) const FRAME_MAX: usize = 256 << 20;

/// Why a file cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Not as it was written.
    At { offset: usize, what: &'static str },
    /// Written by a newer Coracle.
    Newer { version: u32 },
}

fn damage<T>(offset: usize, what: &'static str) -> Result<T, Damage> {
    Err(Damage::At { offset, what })
}

pub(super) fn file_header(magic: [u8; 8], revision: Revision) -> [u8; FILE_HEADER] {
    let mut header = [0; FILE_HEADER];
    header[..8].copy_from_slice(&magic);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&revision.0.to_le_bytes());
    let crc = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The revision that a file header states.
pub(super) fn read_file_header(magic: [u8; 8], bytes: &[u8]) -> Result<Revision, Damage> {
    let Some(header) = bytes.get(..FILE_HEADER) else { return damage(0, "the file header is cut short") };
    if crc32c::crc32c(&header[..20]) != u32_at(header, 20) {
        return damage(0, "the checksum of the file header does not match");
    }
    if header[..8] != magic {
        return damage(0, "the file is of another kind than its name says");
    }
    match u32_at(header, 8) {
        VERSION => Ok(Revision(u64_at(header, 12))),
        version => Err(Damage::Newer { version }),
    }
}

/// A frame under construction; reused from group to group.
#[derive(Default)]
pub(super) struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    pub(super) fn clear(&mut self) {
        // One unusual group does not keep its memory.
        if self.bytes.capacity() > 4 << 20 {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.bytes.resize(FRAME_HEADER, 0);
    }

    pub(super) fn payload_len(&self) -> usize {
        self.bytes.len().saturating_sub(FRAME_HEADER)
    }

    pub(super) fn push_txn(&mut self, ops: &[Op]) {
        self.push_len(ops.len());
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    self.bytes.push(1);
                    self.push_bytes(key);
                    self.push_bytes(value);
                }
                Op::Delete { key } => {
                    self.bytes.push(2);
                    self.push_bytes(key);
                }
            }
        }
    }

    pub(super) fn push_item(&mut self, item: &KeyValue) {
        self.push_bytes(&item.key);
        self.push_bytes(&item.value);
        self.bytes.extend_from_slice(&item.create_revision.0.to_le_bytes());
        self.bytes.extend_from_slice(&item.mod_revision.0.to_le_bytes());
    }

    /// Closes the frame and returns its bytes.
    pub(super) fn finish(&mut self, sequence: u64) -> &[u8] {
        let length = len_u32(self.payload_len());
        let crc = crc32c::crc32c(&self.bytes[FRAME_HEADER..]);
        let header = &mut self.bytes[..FRAME_HEADER];
        header[0] = FRAME_START;
        header[1..5].copy_from_slice(&length.to_le_bytes());
        header[5..13].copy_from_slice(&sequence.to_le_bytes());
        header[13..17].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&header[..17]);
        header[17..].copy_from_slice(&crc.to_le_bytes());
        self.bytes.push(FRAME_END);
        &self.bytes
    }

    fn push_len(&mut self, length: usize) {
        self.bytes.extend_from_slice(&len_u32(length).to_le_bytes());
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        self.push_len(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }
}

fn len_u32(length: usize) -> u32 {
    u32::try_from(length).expect("transactions are limited to far less than 4 GiB")
}

/// A frame header whose own checksum matches.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) length: usize,
    pub(super) sequence: u64,
    crc: u32,
}

impl FrameHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..FRAME_HEADER)?;
        if header[0] != FRAME_START || crc32c::crc32c(&header[..17]) != u32_at(header, 17) {
            return None;
        }
        let length = usize::try_from(u32_at(header, 1)).ok().filter(|&length| length <= FRAME_MAX)?;
        Some(FrameHeader { length, sequence: u64_at(header, 5), crc: u32_at(header, 13) })
    }

    /// The length of the whole frame.
    pub(super) fn frame_len(self) -> usize {
        self.length + FRAME_OVERHEAD
    }

    fn payload(self, frame: &[u8]) -> Option<&[u8]> {
        let payload = frame.get(FRAME_HEADER..FRAME_HEADER + self.length)?;
        let whole = frame.get(FRAME_HEADER + self.length) == Some(&FRAME_END);
        (whole && crc32c::crc32c(payload) == self.crc).then_some(payload)
    }
}

/// What a segment holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Where the last frame ends.
    pub(super) end: usize,
    /// Where the last frame starts, if there is one.
    pub(super) last_frame: Option<usize>,
    /// Bytes of a torn frame (or of debris in unused space) after `end`.
    pub(super) torn: usize,
    /// The revision after the last.
    pub(super) next: Revision,
}

/// Goes through the transactions of a segment in order. `last`: no segment follows, so its end may be torn.
pub(super) fn scan_segment(
    bytes: &[u8],
    last: bool,
    mut each: impl FnMut(Revision, Vec<Op>),
) -> Result<Scanned, Damage> {
    let mut next = read_file_header(SEGMENT_MAGIC, bytes)?;
    let mut offset = FILE_HEADER;
    let mut last_frame = None;
    while offset < bytes.len() {
        let rest = &bytes[offset..];
        let header = FrameHeader::read(rest);
        let Some((header, payload)) = header.and_then(|h| Some((h, h.payload(rest)?))) else {
            let torn = bytes.iter().rposition(|&b| b != 0).map_or(0, |i| (i + 1).saturating_sub(offset));
            if !last {
                return damage(offset, "a record does not match its checksum");
            }
            if torn > 0 {
                check_torn(&rest[..torn], offset, next)?;
            }
            return Ok(Scanned { end: offset, last_frame, torn, next });
        };
        if header.sequence != next.0 {
            return damage(
                offset,
                "a record is missing or doubled: its revision does not follow the one before",
            );
        }
        let mut reader = Reader { bytes: payload, at: 0 };
        while !reader.is_empty() {
            let Some(ops) = reader.txn() else { return damage(offset, "a record cannot be decoded") };
            each(next, ops);
            next = Revision(next.0 + 1);
        }
        last_frame = Some(offset);
        offset += header.frame_len();
    }
    Ok(Scanned { end: offset, last_frame, torn: 0, next })
}

/// Whether what follows the last good frame can be a torn write. `rest` starts at `offset` and ends with a byte that
/// is not zero.
fn check_torn(rest: &[u8], offset: usize, next: Revision) -> Result<(), Damage> {
    let sector_missing = |from: usize, to: usize| {
        // Whole sectors of the file that lie within `from..to` of `rest` (the last may be cut by the end).
        let first = (offset + from).div_ceil(SECTOR) * SECTOR - offset;
        (first..to).step_by(SECTOR).any(|s| rest[s..rest.len().min(s + SECTOR)].iter().all(|&b| b == 0))
    };
    let torn = match FrameHeader::read(rest) {
        Some(header) if header.sequence != next.0 => false,
        Some(header) if rest.len() < header.frame_len() => true,
        Some(header) => rest.len() == header.frame_len() && sector_missing(0, rest.len()),
        // The header itself is torn. A good record later on would have been written after this one was flushed.
        None => {
            (rest.len() <= FRAME_HEADER || rest[0] == 0 || sector_missing(1, FRAME_HEADER))
                && !(1..rest.len())
                    .any(|i| FrameHeader::read(&rest[i..]).is_some_and(|later| later.sequence > next.0))
        }
    };
    if torn { Ok(()) } else { damage(offset, "a record does not match its checksum") }
}

/// Reads one frame of a snapshot. Snapshots are never torn: they get their name when they are complete.
pub(super) fn snapshot_frame_header(bytes: &[u8], offset: usize) -> Result<FrameHeader, Damage> {
    FrameHeader::read(bytes)
        .map_or_else(|| damage(offset, "the checksum of a record's header does not match"), Ok)
}

pub(super) const FRAME_HEADER_LEN: usize = FRAME_HEADER;

/// Decodes the items of a snapshot's frame.
pub(super) fn snapshot_items(
    header: FrameHeader,
    frame: &[u8],
    offset: usize,
    mut each: impl FnMut(KeyValue),
) -> Result<(), Damage> {
    let Some(payload) = header.payload(frame) else {
        return damage(offset, "a record does not match its checksum");
    };
    let mut reader = Reader { bytes: payload, at: 0 };
    while !reader.is_empty() {
        let Some(item) = reader.item() else { return damage(offset, "a record cannot be decoded") };
        each(item);
    }
    Ok(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn len(&mut self) -> Option<usize> {
        usize::try_from(u32_at(self.take(4)?, 0)).ok()
    }

    fn revision(&mut self) -> Option<Revision> {
        Some(Revision(u64_at(self.take(8)?, 0)))
    }

    /// A copy, so that a small value does not keep a whole segment in memory.
    fn bytes(&mut self) -> Option<Bytes> {
        let length = self.len()?;
        self.take(length).map(Bytes::copy_from_slice)
    }

    fn txn(&mut self) -> Option<Vec<Op>> {
        let count = self.len()?;
        let mut ops = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            ops.push(match self.take(1)? {
                [1] => Op::Put { key: self.bytes()?, value: self.bytes()? },
                [2] => Op::Delete { key: self.bytes()? },
                _ => return None,
            });
        }
        Some(ops)
    }

    fn item(&mut self) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.bytes()?,
            value: self.bytes()?,
            create_revision: self.revision()?,
            mod_revision: self.revision()?,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
