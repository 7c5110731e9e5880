//! Backups: everything that a store holds at one revision, and files beside it, in one file that shows whether it
//! is whole. Encoding and decoding are pure; [`export`] reads any engine.
//!
//! All numbers are little-endian. The checksum of a record covers everything before it as well, so that no record
//! can be lost, doubled or moved; but not the other checksums, which would cancel what they are of.
//!
//! ```text
//! header   magic 8 · format version u32 · crc32c of the preceding u32
//! record   kind u8 · length u32 · payload · crc32c of all but checksums up to here u32
//! ```

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};

use crate::contract::{KeyValue, ListRequest, Revision, Store, StoreResult};

/// The format that this code writes, and the newest it reads.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"CRCL-BAK";
const HEADER: usize = 16;
const RECORD_HEADER: usize = 5;
const CHECKSUM: usize = 4;
/// A page of keys and values; the largest value alone is far below.
const RECORD_MAX: usize = 256 << 20;
/// Keys of a page.
const PAGE: usize = 500;

/// One part of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A file that belongs to it, by its relative path.
    File {
        /// The path.
        name: String,
        /// The content.
        content: Bytes,
    },
    /// Keys, in order.
    Items(Vec<KeyValue>),
    /// The last record: what was backed up.
    End {
        /// The revision that all keys are of.
        revision: Revision,
        /// How many there are.
        keys: u64,
    },
}

/// Why a backup cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// Something else.
    #[error("this is no backup of a cluster")]
    NoBackup,
    /// Written by a newer version.
    #[error(
        "the backup has format version {0}, this version of Coracle reads up to {VERSION}: use the newer Coracle \
         that wrote it"
    )]
    Newer(u32),
    /// Not as it was written.
    #[error("the backup is damaged before byte {0}: its checksum does not match")]
    Damaged(u64),
    /// The end is missing.
    #[error("the backup is cut short after {0} bytes")]
    CutShort(u64),
    /// There is more than there should be.
    #[error("the backup goes on after its end, at byte {0}")]
    TooLong(u64),
}

/// Writes a backup, piece by piece.
#[derive(Debug, Default)]
pub struct Encoder {
    /// Of everything so far; `None` before the header.
    crc: Option<u32>,
}

impl Encoder {
    /// The bytes of the next record, with the header before the first.
    pub fn encode(&mut self, record: &Record) -> Bytes {
        let mut bytes = Vec::new();
        let mut crc = self.crc.unwrap_or_else(|| {
            bytes.extend_from_slice(&MAGIC);
            bytes.extend_from_slice(&VERSION.to_le_bytes());
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            crc
        });
        let start = bytes.len();
        bytes.extend_from_slice(&[0; RECORD_HEADER]);
        bytes[start] = match record {
            Record::File { name, content } => {
                push(&mut bytes, name.as_bytes());
                push(&mut bytes, content);
                1
            }
            Record::Items(items) => {
                for item in items {
                    push(&mut bytes, &item.key);
                    push(&mut bytes, &item.value);
                    bytes.extend_from_slice(&item.create_revision.0.to_le_bytes());
                    bytes.extend_from_slice(&item.mod_revision.0.to_le_bytes());
                }
                2
            }
            Record::End { revision, keys } => {
                bytes.extend_from_slice(&revision.0.to_le_bytes());
                bytes.extend_from_slice(&keys.to_le_bytes());
                3
            }
        };
        let length = length(bytes.len() - start - RECORD_HEADER);
        bytes[start + 1..start + RECORD_HEADER].copy_from_slice(&length.to_le_bytes());
        crc = crc32c::crc32c_append(crc, &bytes[start..]);
        bytes.extend_from_slice(&crc.to_le_bytes());
        self.crc = Some(crc);
        bytes.into()
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a record holds one page of keys, which is far less than 4 GiB")
}

fn push(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&length(bytes.len()).to_le_bytes());
    to.extend_from_slice(bytes);
}

/// Reads a backup, from pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    crc: Option<u32>,
    /// Bytes taken from the buffer.
    at: u64,
    keys: u64,
    ended: bool,
}

impl Decoder {
    /// Takes the next bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, if all of it is there.
    ///
    /// # Errors
    /// If this is no backup, a newer one, or a damaged one.
    pub fn record(&mut self) -> Result<Option<Record>, BackupError> {
        let crc = match self.crc {
            Some(crc) => crc,
            None if self.buffer.len() < HEADER => {
                let known = self.buffer.len().min(MAGIC.len());
                return if self.buffer[..known] == MAGIC[..known] {
                    Ok(None)
                } else {
                    Err(BackupError::NoBackup)
                };
            }
            None => self.header()?,
        };
        if self.ended {
            return if self.buffer.is_empty() { Ok(None) } else { Err(BackupError::TooLong(self.at)) };
        }
        let Some(header) = self.buffer.get(..RECORD_HEADER) else { return Ok(None) };
        let kind = header[0];
        let length = u32_at(header, 1) as usize;
        // Before room is made for what a damaged length says.
        if length > RECORD_MAX || !(1..=3).contains(&kind) {
            return Err(self.damaged());
        }
        let end = RECORD_HEADER + length;
        if self.buffer.len() < end + CHECKSUM {
            return Ok(None);
        }
        let record = self.buffer.split_to(end + CHECKSUM).freeze();
        self.at += record.len() as u64;
        let found = crc32c::crc32c_append(crc, &record[..end]);
        if found != u32_at(&record, end) {
            return Err(self.damaged());
        }
        self.crc = Some(found);
        let record = decode(kind, record.slice(RECORD_HEADER..end)).ok_or_else(|| self.damaged())?;
        match &record {
            Record::File { .. } => {}
            Record::Items(items) => self.keys += items.len() as u64,
            Record::End { keys, .. } if *keys != self.keys => return Err(self.damaged()),
            Record::End { .. } => self.ended = true,
        }
        Ok(Some(record))
    }

    /// Checks that nothing is missing, after the last byte.
    ///
    /// # Errors
    /// If the last record has not come.
    pub fn finish(&self) -> Result<(), BackupError> {
        if self.ended { Ok(()) } else { Err(BackupError::CutShort(self.at + self.buffer.len() as u64)) }
    }

    fn header(&mut self) -> Result<u32, BackupError> {
        if self.buffer[..8] != MAGIC {
            return Err(BackupError::NoBackup);
        }
        let header = self.buffer.split_to(HEADER);
        self.at += HEADER as u64;
        if crc32c::crc32c(&header[..12]) != u32_at(&header, 12) {
            return Err(self.damaged());
        }
        match u32_at(&header, 8) {
            VERSION => Ok(*self.crc.insert(u32_at(&header, 12))),
            version => Err(BackupError::Newer(version)),
        }
    }

    fn damaged(&self) -> BackupError {
        BackupError::Damaged(self.at + self.buffer.len() as u64)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn decode(kind: u8, mut payload: Bytes) -> Option<Record> {
    match kind {
        1 => {
            let name = String::from_utf8(bytes(&mut payload)?.to_vec()).ok()?;
            let content = bytes(&mut payload)?;
            payload.is_empty().then_some(Record::File { name, content })
        }
        2 => {
            let mut items = Vec::new();
            while !payload.is_empty() {
                items.push(KeyValue {
                    key: bytes(&mut payload)?,
                    value: bytes(&mut payload)?,
                    create_revision: Revision(payload.try_get_u64_le().ok()?),
                    mod_revision: Revision(payload.try_get_u64_le().ok()?),
                });
            }
            Some(Record::Items(items))
        }
        3 => {
            let revision = Revision(payload.try_get_u64_le().ok()?);
            let keys = payload.try_get_u64_le().ok()?;
            payload.is_empty().then_some(Record::End { revision, keys })
        }
        _ => None,
    }
}

fn bytes(payload: &mut Bytes) -> Option<Bytes> {
    let length = payload.try_get_u32_le().ok()? as usize;
    (length <= payload.len()).then(|| payload.split_to(length))
}

/// Everything that the store holds now, at one revision: pages of keys, then the end. Writers go on meanwhile.
pub fn export(store: Arc<dyn Store>) -> BoxStream<'static, StoreResult<Record>> {
    let first = ListRequest { limit: PAGE, ..ListRequest::default() };
    stream::try_unfold((store, Some(Next::Page(first)), 0), |(store, next, keys)| async move {
        let request = match next {
            None => return Ok(None),
            Some(Next::End(revision)) => {
                return Ok(Some((Record::End { revision, keys }, (store, None, keys))));
            }
            Some(Next::Page(request)) => request,
        };
        let page = store.list(&request).await?;
        let next = match page.items.last() {
            Some(last) if page.remaining > 0 => {
                let (after, at) = (Some(last.key.clone()), Some(page.revision));
                Next::Page(ListRequest { after, at, ..request })
            }
            _ => Next::End(page.revision),
        };
        let keys = keys + page.items.len() as u64;
        Ok(Some((Record::Items(page.items), (store, Some(next), keys))))
    })
    .boxed()
}

enum Next {
    Page(ListRequest),
    End(Revision),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn records() -> Vec<Record> {
        let item = |key: &'static str, value: &'static str| KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: Revision(1),
            mod_revision: Revision(7),
        };
        vec![
            Record::File { name: "pki/ca.key".to_owned(), content: Bytes::from_static(b"secret") },
            Record::Items(vec![item("/a", "1"), item("/b", "")]),
            Record::Items(Vec::new()),
            Record::End { revision: Revision(9), keys: 2 },
        ]
    }

    fn encoded() -> Vec<u8> {
        let mut encoder = Encoder::default();
        records().iter().flat_map(|record| encoder.encode(record)).collect()
    }

    fn decoded(bytes: &[u8], piece: usize) -> Result<Vec<Record>, BackupError> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(record) = decoder.record()? {
                found.push(record);
            }
        }
        decoder.finish().map(|()| found)
    }

    #[test]
    fn what_was_written_is_read_in_pieces_of_any_size() {
        for piece in [1, 7, 1000] {
            assert_eq!(decoded(&encoded(), piece), Ok(records()), "{piece}");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_found() {
        let bytes = encoded();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                decoded(&bad, 1000).unwrap_err();
            }
            let cut = decoded(&bytes[..at], 1000);
            assert_eq!(cut, Err(BackupError::CutShort(at as u64)));
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert_eq!(decoded(&longer, 1000), Err(BackupError::TooLong(bytes.len() as u64)));
    }

    #[test]
    fn something_else_and_something_newer_are_told_apart() {
        assert_eq!(decoded(b"PK\x03\x04", 1000), Err(BackupError::NoBackup));
        let mut newer = encoded();
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer[..12]);
        newer[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decoded(&newer, 1000), Err(BackupError::Newer(2)));
    }

    #[test]
    fn records_cannot_change_places() {
        let mut encoder = Encoder::default();
        let pieces: Vec<Bytes> = records().iter().map(|record| encoder.encode(record)).collect();
        for swapped in [[0, 2, 1, 3], [0, 1, 1, 3]] {
            let bytes: Vec<u8> = swapped.iter().flat_map(|i| pieces[*i].clone()).collect();
            assert!(matches!(decoded(&bytes, 1000), Err(BackupError::Damaged(_))));
        }
    }
}
