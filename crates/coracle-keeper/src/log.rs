//! Container logs in the format of CRI: `TIME STREAM TAG TEXT`, where the tag is `F` for a full line and `P` for
//! a part of one.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use coracle_keeper::UnixNanos;
use rustix::fs::OFlags;

/// Longest text on one log line, as upstream's runtimes have it.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;

/// A log file. A log that cannot be written loses lines but never stops its container.
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(LogFile { path: path.to_owned(), file: Some(open(path)?) })
    }

    /// Opens the file anew by its path. The old one stays if that fails.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = Some(open(&self.path)?);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(bytes)
        {
            eprintln!("coracle-keeper: cannot write {}: {error}", self.path.display());
        }
    }
}

/// The last component is never followed if it is a link: a Pod may be able to write in its log directory.
fn open(path: &Path) -> io::Result<File> {
    File::options()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
}

/// Cuts one stream into lines.
#[derive(Default)]
pub(crate) struct LineCutter {
    partial: Vec<u8>,
}

impl LineCutter {
    /// Takes what was read and writes every line that is complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], stream: &str, now: UnixNanos, log: &mut LogFile) {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.partial.len();
            match bytes.iter().take(room + 1).position(|&b| b == b'\n') {
                Some(end) => {
                    self.line(&mut out, &bytes[..end], stream, b'F', now);
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() > room => {
                    self.line(&mut out, &bytes[..room], stream, b'P', now);
                    bytes = &bytes[room..];
                }
                None => {
                    self.partial.extend_from_slice(bytes);
                    break;
                }
            }
        }
        if !out.is_empty() {
            log.write(&out);
        }
    }

    /// Writes what is left at the end of the stream.
    pub(crate) fn finish(&mut self, stream: &str, now: UnixNanos, log: &mut LogFile) {
        if !self.partial.is_empty() {
            let mut out = Vec::new();
            self.line(&mut out, &[], stream, b'P', now);
            log.write(&out);
        }
    }

    fn line(&mut self, out: &mut Vec<u8>, rest: &[u8], stream: &str, tag: u8, now: UnixNanos) {
        out.extend_from_slice(rfc3339(now).as_bytes());
        out.push(b' ');
        out.extend_from_slice(stream.as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(&self.partial);
        out.extend_from_slice(rest);
        out.push(b'\n');
        // Freed rather than kept: most streams have no partial line most of the time.
        self.partial = Vec::new();
    }
}

/// RFC 3339 with all nine digits, in UTC.
pub(crate) fn rfc3339(at: UnixNanos) -> String {
    let seconds = at.div_euclid(1_000_000_000);
    let nanos = at.rem_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the proleptic Gregorian calendar, counting years from March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let path = std::env::temp_dir().join(format!("coracle-log-{}-{:p}", std::process::id(), chunks));
        let mut log = LogFile::open(&path).unwrap();
        let mut cutter = LineCutter::default();
        for chunk in chunks {
            cutter.feed(chunk, "stdout", 0, &mut log);
        }
        cutter.finish("stdout", 0, &mut log);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        text.lines()
            .map(|l| l.strip_prefix("1970-01-01T00:00:00.000000000Z stdout ").unwrap().to_owned())
            .collect()
    }

    #[test]
    fn lines_are_full_and_the_rest_is_partial() {
        assert_eq!(cut(&[b"one\ntw", b"o\n\nthree"]), ["F one", "F two", "F ", "P three"]);
        assert!(cut(&[]).is_empty());
    }

    #[test]
    fn a_long_line_is_cut_at_sixteen_kibibytes() {
        let long = vec![b'x'; LINE_BYTES_MAX + 3];
        let lines = cut(&[&long, b"\n"]);
        assert_eq!(
            lines.iter().map(|l| (&l[..1], l.len() - 2)).collect::<Vec<_>>(),
            [("P", LINE_BYTES_MAX), ("F", 3)]
        );
        let exact = [vec![b'x'; LINE_BYTES_MAX], b"\n".to_vec()].concat();
        assert_eq!(cut(&[&exact]).len(), 1, "a line of exactly the limit is one full line");
    }

    #[test]
    fn times_are_rfc3339_with_nanoseconds() {
        assert_eq!(rfc3339(951_827_696_000_000_007), "2000-02-29T12:34:56.000000007Z");
        assert_eq!(rfc3339(1_798_761_599_999_999_999), "2026-12-31T23:59:59.999999999Z");
    }
}
