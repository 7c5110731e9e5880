//! The log of a cluster's process in the background: rotated by size, and free of what a power cut leaves in files.
//!
//! The process writes to its standard error, which is this file. Whoever is over the limit with a line gives the file
//! another name and puts a new one in its place, so that also what is written past the log (a panic) goes there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tracing_subscriber::fmt::MakeWriter;

/// Tells the process in the background that its standard error is this file.
pub(crate) const ROTATED: &str = "CORACLE_LOG_FILE";

/// Length at which a log gets another name.
const BYTES: u64 = 10 << 20;
/// Older logs that are kept: `coracle.log.1` is the newest.
const OLDER: u32 = 2;

/// Opens the log for writing at its end, and for reading. Bytes that are zero are taken out first: a power cut leaves
/// them where the length of a file was on the disk before its content.
pub(crate) fn open(path: &Path) -> anyhow::Result<File> {
    let open = || -> io::Result<File> {
        let mut file = File::options().read(true).create(true).append(true).mode(0o600).open(path)?;
        // A longer one is not this program's.
        if file.metadata()?.len() <= 2 * BYTES {
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            if text.contains(&0) {
                text.retain(|byte| *byte != 0);
                file.set_len(0)?;
                file.write_all(&text)?;
            }
        }
        Ok(file)
    };
    open().with_context(|| format!("cannot open {}", path.display()))
}

/// Where this process logs to: its standard error, which is rotated if it is a cluster's log.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Target>>);

struct Target {
    /// The file that standard error is.
    file: Option<PathBuf>,
    length: u64,
    limit: u64,
    write: Box<dyn Write + Send>,
    /// Makes standard error this file.
    redirect: fn(&File) -> io::Result<()>,
}

impl Log {
    /// As the environment says.
    pub(crate) fn of_this_process() -> Self {
        let file = std::env::var_os(ROTATED).map(PathBuf::from);
        let length = file.as_ref().and_then(|file| fs::metadata(file).ok()).map_or(0, |found| found.len());
        let redirect = |file: &File| Ok(rustix::stdio::dup2_stderr(file)?);
        Log::new(Target { file, length, limit: BYTES, write: Box::new(io::stderr()), redirect })
    }

    fn new(target: Target) -> Self {
        Log(Arc::new(Mutex::new(target)))
    }
}

impl Target {
    fn rotate(&self, path: &Path) -> io::Result<()> {
        let named = |number: u32| -> OsString {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            name
        };
        for number in (1..OLDER).rev() {
            match fs::rename(named(number), named(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(path, named(1))?;
        let new = File::options().create(true).append(true).mode(0o600).open(path)?;
        (self.redirect)(&new)
    }
}

impl Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = target.file.clone()
            && target.length > 0
            && target.length + bytes.len() as u64 > target.limit
        {
            // A log that cannot be rotated is better than none.
            let _ = target.rotate(&path);
            target.length = 0;
        }
        // Whole: each event is one line.
        target.write.write_all(bytes)?;
        target.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write.flush()
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Log;

    fn make_writer(&'a self) -> &'a Log {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands for standard error: what is written goes to the file that has the name now.
    struct ByName(PathBuf);

    impl Write for ByName {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            File::options().append(true).open(&self.0)?.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_does_not_grow_without_end() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("coracle.log");
        open(&path).unwrap();
        let log = Log::new(Target {
            file: Some(path.clone()),
            length: 0,
            limit: 100,
            write: Box::new(ByName(path)),
            redirect: |_| Ok(()),
        });
        for number in 0..40 {
            (&log).write_all(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["coracle.log", "coracle.log.1", "coracle.log.2"]);
        let text = ["coracle.log.2", "coracle.log.1", "coracle.log"]
            .map(|name| fs::read_to_string(base.path().join(name)).unwrap())
            .concat();
        let expected: String = (10..40).map(|number| format!("line {number:04}\n")).collect();
        assert_eq!(text, expected, "the newest lines, in order, none cut");
    }

    #[test]
    fn what_a_power_cut_leaves_in_the_log_is_taken_out() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("coracle.log");
        fs::write(&path, b"before\n\0\0\0\0").unwrap();
        open(&path).unwrap().write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }
}
