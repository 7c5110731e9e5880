//! Parts of volumes (`subPath`), for containers whose Pod may change the volume meanwhile.
//!
//! What lies at the path is found by the kernel, below the volume and never outside of it, and opened once. What is
//! mounted is that open file, so that nobody can put something else in its place between the look and the mount.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::kernel::VolumeHost;

/// Why a part of a volume cannot be mounted. What is on the node is not told to the user.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubPathError {
    /// It was not there and could not be made.
    #[error("failed to create subPath directory")]
    Make(#[source] io::Error),
    /// It leads out of the volume, or cannot be mounted.
    #[error("failed to prepare subPath")]
    Prepare(#[source] io::Error),
}

/// A part of a volume and where it is to be mounted on the node.
#[derive(Debug)]
pub(super) struct SubPath {
    pub(super) volume: PathBuf,
    pub(super) path: String,
    /// What the container finds mounted: a place of its own for each mount of each container.
    pub(super) target: PathBuf,
}

impl SubPath {
    /// Has the part at its target. A directory that is missing is made, with the mode of the volume.
    pub(super) fn mount(&self, host: &VolumeHost) -> Result<PathBuf, SubPathError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let volume = rustix::fs::open(&self.volume, flags, Mode::empty());
        let volume = volume.map_err(|why| SubPathError::Prepare(why.into()))?;
        let found = match open_below(&volume, &self.path) {
            Err(Errno::NOENT) => {
                make_below(&volume, &self.path).map_err(SubPathError::Make)?;
                open_below(&volume, &self.path)
            }
            other => other,
        };
        let found = found.map_err(|why| SubPathError::Prepare(why.into()))?;
        if *host != VolumeHost::Machine {
            return Ok(self.volume.join(&self.path));
        }
        self.bind(&found, host).map_err(SubPathError::Prepare)?;
        Ok(self.target.clone())
    }

    fn bind(&self, found: &OwnedFd, host: &VolumeHost) -> io::Result<()> {
        // What an earlier instance of the container had.
        host.unmount_below(&self.target)?;
        if let Some(parent) = self.target.parent() {
            fs::create_dir_all(parent)?;
            fs::set_permissions(parent, fs::Permissions::from_mode(0o750))?;
        }
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode) == FileType::Directory;
        match fs::symlink_metadata(&self.target) {
            Ok(there) if there.is_dir() && !is_directory => fs::remove_dir(&self.target)?,
            Ok(there) if !there.is_dir() && is_directory => fs::remove_file(&self.target)?,
            _ => {}
        }
        if is_directory {
            fs::create_dir_all(&self.target)?;
        } else {
            fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.target)?;
        }
        host.bind(found.as_fd(), &self.target)
    }
}

fn open_below(volume: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    retrying(|| rustix::fs::openat2(volume, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve))
}

/// The kernel gives up when something is renamed meanwhile; who does that all the time gets nothing.
fn retrying(mut open: impl FnMut() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    for _ in 0..32 {
        match open() {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Makes the directories of a path that are missing, with the mode and group of the volume. What is there and leads out of the volume is
/// no place to make one.
fn make_below(volume: &OwnedFd, path: &str) -> io::Result<()> {
    let like = rustix::fs::fstat(volume)?;
    let mode = Mode::from_bits_retain(like.st_mode & 0o7777);
    let mut here = String::new();
    let mut parent = volume.try_clone()?;
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        if !here.is_empty() {
            here.push('/');
        }
        here.push_str(name);
        let next = match open_below(volume, &here) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&parent, name, mode) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(why) => return Err(why.into()),
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
                // The mode that was asked for, whatever the umask.
                rustix::fs::fchmod(&made, mode)?;
                open_below(volume, &here)?
            }
            Err(why) => return Err(why.into()),
        };
        parent = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn part(root: &Path, path: &str) -> Result<PathBuf, SubPathError> {
        let volume = root.join("volume");
        SubPath { volume, path: path.to_owned(), target: root.join("target") }
            .mount(&VolumeHost::Below("/nowhere".into()))
    }

    #[test]
    fn a_part_is_found_or_made_below_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o770)).unwrap();
        fs::write(volume.join("file"), "").unwrap();
        symlink("file", volume.join("link")).unwrap();
        assert_eq!(part(root.path(), "file").unwrap(), volume.join("file"));
        assert_eq!(part(root.path(), "link").unwrap(), volume.join("link"), "a link that stays inside");
        assert_eq!(part(root.path(), "a/b").unwrap(), volume.join("a/b"));
        let mode = |path: &str| fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("a"), mode("a/b")), (0o770, 0o770), "made like the volume");
    }

    #[test]
    fn no_link_leads_out_of_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        let outside = root.path().join("outside");
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "").unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("../outside", volume.join("relative")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        symlink("loop", volume.join("loop")).unwrap();
        fs::create_dir(volume.join("deep")).unwrap();
        symlink("../../outside", volume.join("deep/up")).unwrap();
        for path in [
            "absolute",
            "absolute/secret",
            "absolute/new",
            "relative",
            "relative/secret",
            "relative/new/deeper",
            "deep/up",
            "deep/up/new",
            "magic",
            "magic/etc",
            "loop",
            "loop/x",
            "../outside",
            "deep/../../outside",
        ] {
            assert!(part(root.path(), path).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was made outside");
    }
}
