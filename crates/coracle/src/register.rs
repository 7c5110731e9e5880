//! Where the clusters of this machine are, whatever their data directories: whoever chooses links, ports and ranges
//! holds this file and goes around what the others have chosen, whether they run yet or not.
//!
//! It holds the clusters' directories, not what they have chosen: that is in each one's settings, and one whose
//! settings are gone has nothing. A reboot takes the file away; each cluster is in it again from its next start on.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use crate::files::lock_file;

/// The one that all clusters of a machine share.
const OF_MACHINE: &str = "/run/coracle.clusters";

/// Between two directories, as no path has it.
const END: u8 = 0;

/// The file's place.
#[derive(Debug, Clone)]
pub(crate) struct Register {
    path: PathBuf,
}

/// The file while nobody else may read or change it.
#[derive(Debug)]
pub(crate) struct Held {
    path: PathBuf,
    file: Flock<File>,
    directories: Vec<PathBuf>,
}

impl Register {
    /// This machine's.
    pub(crate) fn of_machine() -> Self {
        Register { path: OF_MACHINE.into() }
    }

    #[cfg(test)]
    pub(crate) fn at(path: PathBuf) -> Self {
        Register { path }
    }

    /// The clusters' data directories, as they are between two changes.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let read = || {
            let mut file = Flock::lock(File::open(&self.path).ok()?, FlockArg::LockShared).ok()?;
            let mut content = Vec::new();
            file.read_to_end(&mut content).ok()?;
            Some(directories(&content))
        };
        read().unwrap_or_default()
    }

    /// Waits until nobody else has it. Where it cannot be kept, the clusters that share `instead` know each other.
    pub(crate) fn hold(&self, instead: &Path) -> anyhow::Result<Held> {
        Held::take(&self.path).or_else(|error| {
            crate::output::note(format_args!(
                "warning: {error:#}: clusters with another --data-dir are seen only while they run"
            ));
            Held::take(instead)
        })
    }
}

fn directories(content: &[u8]) -> Vec<PathBuf> {
    let paths = content.split(|byte| *byte == END).filter(|text| text.starts_with(b"/"));
    paths.map(|text| OsStr::from_bytes(text).into()).collect()
}

impl Held {
    fn take(path: &Path) -> anyhow::Result<Self> {
        let mut file = lock_file(path)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Held { path: path.to_owned(), file, directories: directories(&content) })
    }

    /// The clusters' data directories.
    pub(crate) fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Adds a cluster's data directory.
    pub(crate) fn add(&mut self, directory: &Path) -> anyhow::Result<()> {
        if self.directories.iter().any(|known| known == directory) {
            return Ok(());
        }
        self.directories.push(directory.to_owned());
        self.write()
    }

    /// Leaves only those that `stays` says, and the file only for those.
    pub(crate) fn retain(&mut self, stays: impl FnMut(&PathBuf) -> bool) -> anyhow::Result<()> {
        self.directories.retain(stays);
        if self.directories.is_empty() {
            return fs::remove_file(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display()));
        }
        self.write()
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let mut content = Vec::new();
        for directory in &self.directories {
            content.extend_from_slice(directory.as_os_str().as_bytes());
            content.push(END);
        }
        // In place: the lock is on this very file.
        let mut write = || -> std::io::Result<()> {
            self.file.rewind()?;
            self.file.write_all(&content)?;
            self.file.set_len(content.len() as u64)
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_there_until_they_are_taken_away_and_the_file_with_the_last() {
        let place = tempfile::tempdir().unwrap();
        let register = Register::at(place.path().join("clusters"));
        let hold = || register.hold(&place.path().join("instead")).unwrap();
        let odd = Path::new(OsStr::from_bytes(b"/a b\n\xff"));
        hold().add(odd).unwrap();
        hold().add(Path::new("/c")).unwrap();
        hold().add(odd).unwrap();
        assert_eq!(hold().directories(), [odd, Path::new("/c")]);
        hold().retain(|directory| directory == odd).unwrap();
        assert_eq!(register.directories(), [odd]);
        hold().retain(|_| false).unwrap();
        assert!(!register.path.exists() && register.directories().is_empty());
    }

    #[test]
    fn where_it_cannot_be_kept_another_place_does() {
        let place = tempfile::tempdir().unwrap();
        // Not even root makes a file below a file.
        let register = Register::at(Path::new("/proc/version/clusters").into());
        let instead = place.path().join("instead");
        register.hold(&instead).unwrap().add(Path::new("/a")).unwrap();
        assert_eq!(register.hold(&instead).unwrap().directories(), [Path::new("/a")]);
    }
}
