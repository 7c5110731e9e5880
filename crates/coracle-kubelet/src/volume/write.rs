//! Files of a volume that change all at once.
//!
//! What is visible (`key`) is a link to `..data/key`, and `..data` is a link to a directory that is never changed
//! once `..data` leads there. A new state is a new directory; one rename of `..data` shows it. Readers see the old
//! state or the new one, and the directory that they have open stays whole.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::owner::{self, open_directory};
use super::payload::{FileContent, Payload};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const PATH_MAX: usize = 4096;

/// How files are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writing {
    pub(super) now: Timestamp,
    /// The group that may read all of it.
    pub(super) group: Option<u32>,
    /// Whether owners of files are changed.
    pub(super) owners: bool,
}

/// Makes `directory` show exactly the files of `payload`. False if it has shown them before.
pub(super) fn write(directory: &Path, payload: &Payload, how: Writing) -> io::Result<bool> {
    payload.keys().try_for_each(|path| check_path(path))?;
    let root = open_directory(rustix::fs::CWD, directory)?;
    let root = root.as_fd();
    let old = current(root)?;
    let same = match &old {
        Some(old) => shows(&open_directory(root, old.as_str())?, payload, how)?,
        None => false,
    };
    let shown: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    if !same {
        let name = make_directory(root, how.now)?;
        let written = fill(root, &name, payload, how).and_then(|()| switch(root, &name));
        if let Err(why) = written {
            let _ = remove_inside(root, &name);
            return Err(why);
        }
    }
    for name in &shown {
        match rustix::fs::symlinkat(format!("{DATA}/{name}"), root, *name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(why) => return Err(why.into()),
        }
    }
    sweep(root, &shown)?;
    Ok(!same)
}

/// A path stays below the volume and away from the names that are used here.
fn check_path(path: &str) -> io::Result<()> {
    let refuse =
        |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path: {why}: {path}")));
    let parts: Vec<_> = Path::new(path).components().collect();
    if path.is_empty() || path.len() > PATH_MAX {
        return refuse("must be 1 to 4096 bytes long");
    }
    if path.starts_with("..") || parts.contains(&Component::ParentDir) {
        return refuse("must not contain or start with '..'");
    }
    if !parts.iter().all(|part| matches!(part, Component::Normal(_))) || path.contains('\0') {
        return refuse("must be relative");
    }
    Ok(())
}

/// The directory that `..data` leads to.
fn current(root: BorrowedFd<'_>) -> io::Result<Option<String>> {
    let target = match rustix::fs::readlinkat(root, DATA, Vec::new()) {
        Ok(target) => target.into_string().unwrap_or_default(),
        Err(Errno::NOENT) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    let ours = target.starts_with("..") && target.len() > 2 && !target.contains('/');
    let exists = || rustix::fs::statat(root, target.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok();
    Ok(Some(target.clone()).filter(|_| ours && exists()))
}

fn make_directory(root: BorrowedFd<'_>, now: Timestamp) -> io::Result<String> {
    let time = now.strftime("%Y_%m_%d_%H_%M_%S").to_string();
    let mut number = now.subsec_nanosecond().unsigned_abs();
    loop {
        let name = format!("..{time}.{number:09}");
        match rustix::fs::mkdirat(root, name.as_str(), Mode::from_bits_retain(0o755)) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => number = number.wrapping_add(1),
            Err(why) => return Err(why.into()),
        }
    }
}

fn fill(root: BorrowedFd<'_>, name: &str, payload: &Payload, how: Writing) -> io::Result<()> {
    let directory = open_directory(root, name)?;
    // The mode that was asked for, whatever the umask.
    rustix::fs::fchmod(&directory, Mode::from_bits_retain(0o755))?;
    for (path, content) in payload {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut within: Option<OwnedFd> = None;
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            let here = within.as_ref().unwrap_or(&directory).as_fd();
            match rustix::fs::mkdirat(here, parent, Mode::from_bits_retain(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(why) => return Err(why.into()),
            }
            let next = open_directory(here, parent)?;
            rustix::fs::fchmod(&next, Mode::from_bits_retain(0o755))?;
            within = Some(next);
        }
        let here = within.as_ref().unwrap_or(&directory).as_fd();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(here, name, flags, Mode::from_bits_retain(0o600))?;
        if let Some(owner) = content.owner.filter(|_| how.owners) {
            rustix::fs::fchown(&file, Some(Uid::from_raw(owner)), None)?;
        }
        rustix::fs::fchmod(&file, Mode::from_bits_retain(content.mode))?;
        File::from(file).write_all(&content.data)?;
    }
    match how.group.filter(|_| how.owners) {
        Some(group) => owner::give_tree(directory.as_fd(), group, owner::READ),
        None => Ok(()),
    }
}

fn switch(root: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(root, NEW_DATA, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(why) => return Err(why.into()),
    }
    rustix::fs::symlinkat(name, root, NEW_DATA)?;
    Ok(rustix::fs::renameat(root, NEW_DATA, root, DATA)?)
}

/// Whether a directory holds exactly these files, as they would be written.
fn shows(directory: &OwnedFd, payload: &Payload, how: Writing) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let same = compare(directory.as_fd(), "", payload, how, &mut found)?;
    Ok(same && found.len() == payload.len())
}

fn compare(
    directory: BorrowedFd<'_>,
    prefix: &str,
    payload: &Payload,
    how: Writing,
    found: &mut BTreeSet<String>,
) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        let path = format!("{prefix}{name}");
        let stat = rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        let same = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = open_directory(directory, entry.file_name())?;
                compare(inner.as_fd(), &format!("{path}/"), payload, how, found)?
            }
            FileType::RegularFile => match payload.get(&path) {
                Some(content) => holds(directory, &name, &stat, content, how)?,
                None => false,
            },
            _ => false,
        };
        if !same {
            return Ok(false);
        }
        if payload.contains_key(&path) {
            found.insert(path);
        }
    }
    Ok(true)
}

fn holds(
    directory: BorrowedFd<'_>,
    name: &str,
    stat: &rustix::fs::Stat,
    content: &FileContent,
    how: Writing,
) -> io::Result<bool> {
    let group = how.group.filter(|_| how.owners);
    let mode = content.mode | group.map_or(0, |_| owner::READ);
    let owned = group.is_none_or(|group| Gid::from_raw(stat.st_gid) == Gid::from_raw(group))
        && content.owner.filter(|_| how.owners).is_none_or(|owner| stat.st_uid == owner);
    if stat.st_mode & 0o777 != mode
        || !owned
        || u64::try_from(stat.st_size).ok() != u64::try_from(content.data.len()).ok()
    {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut held = Vec::with_capacity(content.data.len());
    File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?).read_to_end(&mut held)?;
    Ok(held == content.data)
}

/// Removes links to what is not shown any more, and states that nothing leads to.
fn sweep(root: BorrowedFd<'_>, shown: &BTreeSet<&str>) -> io::Result<()> {
    let kept = current(root)?;
    let mut gone = Vec::new();
    for entry in Dir::read_from(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if matches!(name.as_str(), "." | ".." | DATA)
            || Some(&name) == kept.as_ref()
            || shown.contains(name.as_str())
        {
            continue;
        }
        if name.starts_with("..") {
            gone.push(name);
        } else if let Ok(target) = rustix::fs::readlinkat(root, entry.file_name(), Vec::new()) {
            // Directories for what is mounted inside of this volume stay.
            gone.extend(target.to_bytes().starts_with(b"..data/").then_some(name));
        }
    }
    gone.iter().try_for_each(|name| remove_inside(root, name))
}

fn remove_inside(root: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    coracle_tree::remove_at(root, &CString::new(name)?)
}
