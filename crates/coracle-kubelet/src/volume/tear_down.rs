//! The end of volumes: unmounted, then removed, with nothing of the machine touched on the way.
//!
//! A Pod has written what is removed here. Links are removed and not followed, a mount that is still there is never
//! walked into, and directories in directories without end neither use up the stack nor descriptors.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::kernel::VolumeHost;
use super::{NOTES, SUB_PATHS, VOLUMES};

/// Directories in each other that are looked into before the rest is taken out and removed by itself.
const DEPTH: usize = 64;

/// Removes everything of a Pod's volumes. `directory` is the Pod's. What is not there is no failure.
pub(crate) fn remove_volumes(directory: &Path, host: &VolumeHost) -> io::Result<()> {
    // What containers had of volumes goes before the volumes.
    for name in [SUB_PATHS, VOLUMES, NOTES] {
        let part = directory.join(name);
        if part.symlink_metadata().is_ok() {
            host.unmount_below(&part)?;
            remove_tree(&part)?;
        }
    }
    Ok(())
}

/// Removes a directory that nothing may be mounted in any more. What is not there is no failure.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => remove_at(parent.as_fd(), Path::new(name)),
        Err(Errno::NOENT) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

/// Removes one entry of a directory with everything in it.
pub(super) fn remove_at(parent: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let name = CString::new(name.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let Some(top) = open_or_unlink(parent, &name)? else { return Ok(()) };
    let mut moved = 0u64;
    // What was too deep has come to the top, where the next round finds it.
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    drop(top);
    absent(rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR))
}

fn absent(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

/// Removes what is no directory; a directory is opened.
fn open_or_unlink(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let stat = match rustix::fs::statx(parent, name, flags, StatxFlags::TYPE) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        let message = format!("something is still mounted at {}", name.to_string_lossy());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
    }
    if FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::Directory {
        return super::owner::open_directory(parent, name).map(Some);
    }
    absent(rustix::fs::unlinkat(parent, name, AtFlags::empty()))?;
    Ok(None)
}

fn empty(directory: BorrowedFd<'_>, top: BorrowedFd<'_>, depth: usize, moved: &mut u64) -> io::Result<()> {
    // Collected first: what is removed or added while a directory is read may be read or not.
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        let Some(inner) = open_or_unlink(directory, &name)? else { continue };
        if depth >= DEPTH {
            drop(inner);
            loop {
                *moved += 1;
                let aside = format!("..removed.{moved}");
                match rustix::fs::renameat_with(
                    directory,
                    &name,
                    top,
                    aside,
                    rustix::fs::RenameFlags::NOREPLACE,
                ) {
                    Ok(()) => break,
                    Err(Errno::EXIST) => {}
                    Err(why) => return Err(why.into()),
                }
            }
            continue;
        }
        empty(inner.as_fd(), top, depth + 1, moved)?;
        drop(inner);
        absent(rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_removed_and_what_they_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (outside, volume) = (root.path().join("outside"), root.path().join("pod/volumes/kind/v"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        fs::create_dir_all(&volume).unwrap();
        symlink(&outside, volume.join("directory")).unwrap();
        symlink(outside.join("kept"), volume.join("file")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        let pipe = CString::new(volume.join("pipe").as_os_str().as_bytes()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_bits_retain(0o600), 0)
            .unwrap();
        remove_volumes(&root.path().join("pod"), &VolumeHost::Below(root.path().into())).unwrap();
        assert!(!root.path().join("pod/volumes").exists());
        assert!(outside.join("kept").exists());
        remove_volumes(&root.path().join("pod"), &VolumeHost::Below(root.path().into())).unwrap();
    }

    #[test]
    fn directories_without_end_are_removed_all_the_same() {
        // In memory, where thousands of directories take no time.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir(root.path().join("v")).unwrap();
        let mut here = super::super::owner::open_directory(rustix::fs::CWD, root.path().join("v")).unwrap();
        for depth in 0..3000 {
            rustix::fs::mkdirat(&here, "d", Mode::from_bits_retain(0o700)).unwrap();
            if depth % 100 == 0 {
                rustix::fs::symlinkat("d", &here, "l").unwrap();
                rustix::fs::mkdirat(&here, "..removed.1", Mode::from_bits_retain(0o700)).unwrap();
            }
            here = super::super::owner::open_directory(here.as_fd(), "d").unwrap();
        }
        drop(here);
        remove_tree(&root.path().join("v")).unwrap();
        assert!(!root.path().join("v").exists());
    }
}
