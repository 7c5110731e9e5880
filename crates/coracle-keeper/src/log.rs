//! Container logs in the format of CRI: `TIME STREAM TAG TEXT`, where the tag is `F` for a full line and `P` for
//! a part of one.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use coracle_keeper::{LogLimit, UnixNanos};
use rustix::fs::OFlags;

use crate::rotate;

/// Longest text on one log line, as upstream's runtimes have it.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;

/// A log file. A log that cannot be written loses lines but never stops its container.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    limit: Option<LogLimit>,
    /// How long the file is.
    length: u64,
    /// The last write failed, which has been said.
    failing: bool,
    /// The file ends in the middle of a line that could not be written to its end.
    torn: bool,
}

impl LogFile {
    pub(crate) fn open(path: &Path, limit: Option<LogLimit>) -> io::Result<Self> {
        let (file, length, regular) = open(path)?;
        let limit = limit.filter(|_| regular);
        Ok(LogFile { path: path.to_owned(), file, limit, length, failing: false, torn: false })
    }

    /// Opens the file anew by its path. The old one stays if that fails.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.length, _) = open(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// Writes whole lines, each in one log.
    fn write(&mut self, mut bytes: &[u8], now: UnixNanos) {
        while let Some(limit) = self.limit
            && self.length + bytes.len() as u64 > limit.bytes
        {
            let room = usize::try_from(limit.bytes.saturating_sub(self.length)).unwrap_or(usize::MAX);
            let end = |lines: &[u8]| lines.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
            let fits = match end(&bytes[..room.min(bytes.len())]) {
                // One that is longer than a log has one for itself.
                0 if self.length == 0 => {
                    bytes.iter().position(|&b| b == b'\n').map_or(bytes.len(), |end| end + 1)
                }
                fits => fits,
            };
            self.write_or_say(&bytes[..fits]);
            bytes = &bytes[fits..];
            if bytes.is_empty() {
                return;
            }
            let rotated = rotate::rotate(&self.path, limit.files, now).and_then(|()| self.reopen());
            if let Err(error) = rotated {
                // Not at each line from now on: after as many bytes again.
                self.length = 0;
                self.say("rotate", &error);
                self.failing = true;
            }
        }
        self.write_or_say(bytes);
    }

    fn write_or_say(&mut self, bytes: &[u8]) {
        match self.write_to_file(bytes) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.say("write", &error);
                self.failing = true;
            }
        }
    }

    /// Once for a streak of failures: the words go to memory, and a container may write without end.
    fn say(&self, what: &str, error: &io::Error) {
        if !self.failing {
            eprintln!("coracle-keeper: cannot {what} {}: {error}", self.path.display());
        }
    }

    fn write_to_file(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.torn = false;
            self.length += 1;
        }
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.torn = bytes[count - 1] != b'\n';
                    self.length += count as u64;
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The file, its length, and whether it is a regular one. The last component is never followed if it is a link: a Pod may be able to write in its log directory.
fn open(path: &Path) -> io::Result<(File, u64, bool)> {
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata.len(), metadata.is_file()))
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
            log.write(&out, now);
        }
    }

    /// Writes what is left at the end of the stream.
    pub(crate) fn finish(&mut self, stream: &str, now: UnixNanos, log: &mut LogFile) {
        if !self.partial.is_empty() {
            let mut out = Vec::new();
            self.line(&mut out, &[], stream, b'P', now);
            log.write(&out, now);
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
    let (year, month, day, hour, minute, second) = calendar(at);
    let nanos = at.rem_euclid(1_000_000_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month, day, hour, minute and second in UTC.
pub(crate) fn calendar(at: UnixNanos) -> (i64, i64, i64, i64, i64, i64) {
    let seconds = at.div_euclid(1_000_000_000);
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
    (year, month, day, second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let path = std::env::temp_dir().join(format!("coracle-log-{}-{:p}", std::process::id(), chunks));
        let mut log = LogFile::open(&path, None).unwrap();
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

    #[test]
    fn what_cannot_be_written_is_said_once_and_tears_no_later_line() {
        let path = std::env::temp_dir().join(format!("coracle-log-torn-{}", std::process::id()));
        let mut log = LogFile::open(&path, None).unwrap();
        // A pipe takes a part of what does not fit, as a disk that fills up does.
        let flags = rustix::pipe::PipeFlags::NONBLOCK | rustix::pipe::PipeFlags::CLOEXEC;
        let (read, write) = rustix::pipe::pipe_with(flags).unwrap();
        let mut read = File::from(read);
        log.file = File::from(write);
        let drain = |read: &mut File| {
            let mut all = Vec::new();
            let _ = io::Read::read_to_end(read, &mut all);
            all
        };
        log.write(&[vec![b'x'; 1 << 20], b"\n".to_vec()].concat(), 0);
        assert!(log.failing && log.torn);
        log.write(b"lost\n", 0);
        assert!(log.failing && log.torn);
        drain(&mut read);
        log.write(b"next\n", 0);
        assert!(!log.failing);
        assert_eq!(drain(&mut read), b"\nnext\n");
        log.write(b"last\n", 0);
        assert_eq!(drain(&mut read), b"last\n");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_log_that_is_full_is_rotated_between_lines() {
        let dir = std::env::temp_dir().join(format!("coracle-log-rotation-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        std::fs::write(&path, "what an earlier keeper wrote\n").unwrap();
        let mut log = LogFile::open(&path, Some(LogLimit { bytes: 40, files: 3 })).unwrap();
        let mut cutter = LineCutter::default();
        // All in the same second: the names go on counting.
        for line in ["one", "two", "three", "four"] {
            cutter.feed(format!("{line}\n").as_bytes(), "stdout", 951_827_696_000_000_007, &mut log);
        }
        let mut names: Vec<_> =
            std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.20000229-123458", "0.log.20000229-123459"]);
        let many: String = (0..5).map(|i| format!("{i}\n")).collect();
        cutter.feed(many.as_bytes(), "stdout", 951_827_700_000_000_007, &mut log);
        for (name, line) in [("0.log", "4"), ("0.log.20000229-123504", "3"), ("0.log.20000229-123503", "2")] {
            let text = std::fs::read_to_string(dir.join(name)).unwrap();
            assert_eq!(
                text.lines().map(|l| l.rsplit(' ').next().unwrap()).collect::<Vec<_>>(),
                [line],
                "{name}"
            );
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
