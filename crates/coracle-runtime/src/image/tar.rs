//! A tar reader for hostile archives: bounded headers, exact sizes, nothing written anywhere.
//!
//! The `tar` crate decodes single headers; walking the archive is done here, because the crate reads long names
//! and extended headers of any size into memory.

use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Bytes of extended headers and long names for one entry. Real ones are below 64 KiB.
const EXTENSION_MAX: u64 = 1 << 20;

/// A byte source that can leave out a part.
pub(crate) trait Skip: Read {
    /// Goes on `count` bytes further; an error if there are not so many.
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// A stream, skipped by reading.
pub(crate) struct Stream<R>(pub(crate) R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Skip for Stream<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        if io::copy(&mut (&mut self.0).take(count), &mut io::sink())? == count {
            Ok(())
        } else {
            Err(cut_short())
        }
    }
}

/// A section of a file, read without moving the file's offset.
pub(crate) struct Section<F> {
    file: F,
    at: u64,
    end: u64,
}

impl<F> Section<F> {
    /// The bytes `start..start + length` of `file`.
    pub(crate) fn new(file: F, start: u64, length: u64) -> Self {
        Section { file, at: start, end: start.saturating_add(length) }
    }

    pub(crate) fn position(&self) -> u64 {
        self.at
    }
}

impl<F: std::ops::Deref<Target = std::fs::File>> Read for Section<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let n = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl<F: std::ops::Deref<Target = std::fs::File>> Skip for Section<F> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        match self.at.checked_add(count).filter(|at| *at <= self.end) {
            Some(at) => {
                self.at = at;
                Ok(())
            }
            None => Err(cut_short()),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    Directory,
    Symlink,
    HardLink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// A point in time as archives have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mtime {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// One entry, its data still to be read from the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Mtime,
    pub(crate) size: u64,
    /// Extended attributes, by name.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// Walks an archive. Reading gives the data of the entry that [`TarReader::next_entry`] returned last.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Data of the current entry not yet read.
    data: u64,
    /// Padding after it.
    padding: u64,
    done: bool,
}

impl<R: Skip> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        TarReader { inner, data: 0, padding: 0, done: false }
    }

    pub(crate) fn inner(&self) -> &R {
        &self.inner
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut extended: u64 = 0;
        loop {
            let Some(header) = self.next_header()? else {
                return if extensions.is_empty() { Ok(None) } else { Err(cut_short()) };
            };
            if is_extension(header.entry_type()) {
                // All that is kept for one entry, however many headers it comes in.
                extended = extended.saturating_add(header.entry_size()?);
                if extended > EXTENSION_MAX {
                    return Err(invalid("extended header too large"));
                }
            }
            let size = extensions.size.map_or_else(|| header.entry_size(), Ok)?;
            match header.entry_type() {
                EntryType::XHeader => extensions.read_pax(&self.small_data(header.entry_size()?)?)?,
                EntryType::XGlobalHeader => drop(self.small_data(header.entry_size()?)?),
                EntryType::GNULongName => {
                    extensions.path = Some(c_string(self.small_data(header.entry_size()?)?));
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(c_string(self.small_data(header.entry_size()?)?));
                }
                _ => {
                    let entry = extensions.apply(&header, size)?;
                    self.begin_data(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The next block with a header in it; `None` at the end mark or at a clean end of the stream.
    fn next_header(&mut self) -> io::Result<Option<Header>> {
        if self.done {
            return Ok(None);
        }
        let rest = self.data.checked_add(self.padding).ok_or_else(|| invalid("entry too large"))?;
        self.inner.skip(rest)?;
        (self.data, self.padding) = (0, 0);
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => {
                    self.done = true;
                    return Ok(None);
                }
                Ok(0) => return Err(cut_short()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|b| *b == 0) {
            self.done = true;
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, byte)| if (148..156).contains(&i) { u32::from(b' ') } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(invalid("not a tar header (wrong checksum)"));
        }
        Ok(Some(header))
    }

    fn begin_data(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn small_data(&mut self, size: u64) -> io::Result<Vec<u8>> {
        self.begin_data(size);
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.inner.read(&mut buffer[..wanted])? {
            0 => Err(cut_short()),
            n => {
                self.data -= n as u64;
                Ok(n)
            }
        }
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
    )
}

/// What extended headers say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Mtime>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.size.is_none() && self.xattrs.is_empty()
    }

    /// Reads records of the form `length key=value\n`; values may hold any byte.
    fn read_pax(&mut self, mut data: &[u8]) -> io::Result<()> {
        let malformed = || invalid("malformed extended header");
        while !data.is_empty() {
            let space = data.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
            let length: usize = parse_number(&data[..space]).ok_or_else(malformed)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &data[space + 1..length - 1];
            data = &data[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let key = std::str::from_utf8(&record[..equals]).map_err(|_| malformed())?;
            let value = &record[equals + 1..];
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = Some(parse_number(value).ok_or_else(malformed)?),
                "uid" => self.uid = Some(parse_number(value).ok_or_else(malformed)?),
                "gid" => self.gid = Some(parse_number(value).ok_or_else(malformed)?),
                "mtime" => self.mtime = Some(parse_mtime(value).ok_or_else(malformed)?),
                _ if key.starts_with("GNU.sparse.") => return Err(invalid("sparse files are not supported")),
                _ => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn apply(self, header: &Header, size: u64) -> io::Result<Entry> {
        let path = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            self.link.unwrap_or_else(|| header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default());
        let device = || -> io::Result<(u32, u32)> {
            Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
        };
        let kind = match header.entry_type() {
            // The oldest archives mark a directory by its name alone.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::Regular,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            EntryType::Fifo => Kind::Fifo,
            EntryType::GNUSparse => return Err(invalid("sparse files are not supported")),
            other => {
                return Err(invalid(&format!("entry of unknown type {:?}", char::from(other.as_byte()))));
            }
        };
        let id = |from_pax: Option<u64>, from_header: io::Result<u64>| -> io::Result<u32> {
            let id = from_pax.map_or(from_header, Ok)?;
            u32::try_from(id).map_err(|_| invalid("user or group id out of range"))
        };
        let mtime = match self.mtime {
            Some(mtime) => mtime,
            None => {
                let seconds = or_blank(header.mtime(), &header.as_old().mtime)?;
                Mtime { seconds: i64::try_from(seconds).unwrap_or(0), nanos: 0 }
            }
        };
        Ok(Entry {
            kind,
            mode: or_blank(header.mode(), &header.as_old().mode)? & 0o7777,
            uid: id(self.uid, or_blank(header.uid(), &header.as_old().uid))?,
            gid: id(self.gid, or_blank(header.gid(), &header.as_old().gid))?,
            mtime,
            // Only files have data; other types say a size now and then, and have none.
            size: if kind == Kind::Regular { size } else { 0 },
            xattrs: self.xattrs,
            path,
            link,
        })
    }
}

/// A number of a header; a field that was left blank counts as zero.
fn or_blank<T: Default>(parsed: io::Result<T>, field: &[u8]) -> io::Result<T> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) { Ok(T::default()) } else { parsed }
}

fn parse_number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `seconds[.fraction]`, rounded down to nanoseconds.
fn parse_mtime(text: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) | (true, 0) => Mtime { seconds, nanos },
        (true, _) => Mtime { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos },
    })
}

fn c_string(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|b| *b == 0) {
        data.truncate(end);
    }
    data
}

pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

pub(crate) fn cut_short() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the archive is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(archive: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
        let mut reader = TarReader::new(Stream(archive));
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data)?;
            found.push((String::from_utf8(entry.path).unwrap(), data));
        }
        Ok(found)
    }

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in [("short", &b"one"[..]), (&"long/".repeat(60), b""), ("last", &[7; 1000])] {
            let mut header = Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn names_of_any_length_and_data_come_out() {
        let found = entries(&archive()).unwrap();
        assert_eq!(found[0], ("short".into(), b"one".to_vec()));
        assert_eq!(found[1].0.len(), 300);
        assert_eq!(found[2], ("last".into(), vec![7; 1000]));
    }

    #[test]
    fn an_archive_cut_anywhere_is_an_error_or_ends_between_entries() {
        let whole = archive();
        let complete = entries(&whole).unwrap();
        for length in 0..whole.len() {
            match entries(&whole[..length]) {
                Ok(found) => assert!(complete.starts_with(&found), "{length}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{length}: {error}"),
            }
        }
    }

    #[test]
    fn a_damaged_header_is_an_error() {
        let mut damaged = archive();
        damaged[3] ^= 1;
        assert!(entries(&damaged).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn extended_headers_keep_binary_values_and_override_the_header() {
        let mut extensions = Extensions::default();
        extensions
            .read_pax(b"30 mtime=1350244992.023960108\n12 path=a=b\n27 SCHILY.xattr.user.x=\n\x00\xff\n13 uid=77777\n")
            .unwrap();
        assert_eq!(extensions.mtime, Some(Mtime { seconds: 1_350_244_992, nanos: 23_960_108 }));
        assert_eq!(extensions.path.as_deref(), Some(&b"a=b"[..]));
        assert_eq!(extensions.xattrs, [("user.x".to_owned(), b"\n\x00\xff".to_vec())]);
        for bad in [&b"9999 path=x\n"[..], b"x path=y\n", b"3 a\n", b"8 path=x", b"0 \n", b"6 path\n"] {
            assert!(Extensions::default().read_pax(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_extended_header_of_great_size_is_refused_before_it_is_read() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = entries(header.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }
}
