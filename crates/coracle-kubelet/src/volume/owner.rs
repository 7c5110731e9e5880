//! The group of a Pod's volumes (`fsGroup`): it owns what is in them, and may read or write it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags};

/// May do what its owner may in a volume that is written to.
pub(super) const WRITE: u32 = 0o660;
/// May read a volume that is not.
pub(super) const READ: u32 = 0o440;
const EXECUTE: u32 = 0o110;
const SET_GROUP: u32 = 0o2000;

/// Opens a directory that is not a link.
pub(super) fn open_directory(at: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

/// Gives a directory to the group.
pub(super) fn give_directory(directory: BorrowedFd<'_>, group: u32, access: u32) -> io::Result<()> {
    rustix::fs::fchown(directory, None, Some(Gid::from_raw(group)))?;
    let mode = rustix::fs::fstat(directory)?.st_mode & 0o7777;
    let mode = mode | access | EXECUTE | SET_GROUP;
    Ok(rustix::fs::fchmod(directory, Mode::from_bits_retain(mode))?)
}

/// Gives a directory and all that is in it to the group. Links are given themselves, never what they lead to.
pub(super) fn give_tree(directory: BorrowedFd<'_>, group: u32, access: u32) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => give_tree(open_directory(directory, name)?.as_fd(), group, access)?,
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                rustix::fs::fchown(&file, None, Some(Gid::from_raw(group)))?;
                rustix::fs::fchmod(&file, Mode::from_bits_retain((stat.st_mode & 0o7777) | access))?;
            }
            _ => {
                let group = Some(Gid::from_raw(group));
                rustix::fs::chownat(directory, name, None, group, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    give_directory(directory, group, access)
}
