//! What volumes need of the kernel: mounts and owners.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// On what machine volumes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeHost {
    /// This one.
    Machine,
    /// A simulated one. Nothing is mounted, nothing changes its owner, and the machine's files are those below this
    /// directory.
    Below(PathBuf),
}

impl VolumeHost {
    /// Where a path of the machine is.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        match self {
            VolumeHost::Machine => PathBuf::from(path),
            VolumeHost::Below(root) => {
                let names = Path::new(path).components().filter_map(|component| match component {
                    std::path::Component::Normal(name) => Some(name),
                    _ => None,
                });
                root.join(names.collect::<PathBuf>())
            }
        }
    }

    /// Whether owners of files are changed.
    pub(super) fn has_owners(&self) -> bool {
        *self == VolumeHost::Machine
    }

    /// Mounts memory of at most so many bytes.
    pub(super) fn mount_memory(&self, at: &Path, bytes: u64) -> io::Result<()> {
        if *self != VolumeHost::Machine || is_mount_point(at)? {
            return Ok(());
        }
        let mount = |options: &str| {
            let options = CString::new(options).map_err(io::Error::other)?;
            let flags = MountFlags::empty();
            rustix::mount::mount("tmpfs", at, "tmpfs", flags, options.as_c_str()).map_err(io::Error::from)
        };
        let options = format!("mode=0777,size={}", bytes.max(4096));
        // What is meant to be in memory only is not written to the disk by way of the swap. Older kernels cannot say so.
        mount(&format!("{options},noswap")).or_else(|_| mount(&options))
    }

    /// Mounts what an open file or directory is at `at`, whatever its name has come to mean.
    pub(super) fn bind(&self, what: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
        let source = format!("/proc/self/fd/{}", what.as_raw_fd());
        Ok(rustix::mount::mount_bind(source, at)?)
    }

    /// Unmounts everything that is mounted below a directory, or on it.
    pub(super) fn unmount_below(&self, directory: &Path) -> io::Result<()> {
        if *self != VolumeHost::Machine {
            return Ok(());
        }
        let directory = match directory.canonicalize() {
            Ok(directory) => directory,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(why) => return Err(why),
        };
        let points = mount_points(&fs::read("/proc/self/mountinfo")?);
        // Those that were mounted later may lie in those that were mounted earlier.
        for point in points.into_iter().rev().filter(|point| point.starts_with(&directory)) {
            match rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // It has gone together with another one.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(why) => return Err(why.into()),
            }
        }
        Ok(())
    }
}

/// Whether something is mounted exactly here.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

/// Mount points in the order in which they were mounted.
fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescape(point)))).collect()
}

/// The kernel writes blanks, line ends and backslashes of paths as octal numbers.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read() {
        let text = b"1 0 0:1 / /a\\040b rw - tmpfs x rw\n2 0 0:1 / /c\\134d rw - tmpfs x rw\n";
        assert_eq!(mount_points(text), [PathBuf::from("/a b"), PathBuf::from("/c\\d")]);
    }

    #[test]
    fn a_simulated_machine_never_leads_to_this_one() {
        let below = VolumeHost::Below("/sim".into());
        assert_eq!(below.path("/etc/../../passwd"), Path::new("/sim/etc/passwd"));
        assert_eq!(VolumeHost::Machine.path("/etc/passwd"), Path::new("/etc/passwd"));
    }
}
