//! A container's root file system: mounted, and made safe for what comes after.
//!
//! What an image holds is hostile. Everything here works through descriptors and follows symbolic links by
//! itself, inside the root only, so that no path of an image can lead to a file of the host. The OCI library is
//! handed mount points that are real directories and files, at paths without links.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use coracle_cri::ContainerUser;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

const LINKS_MAX: usize = 40;
const ACCOUNT_FILE_BYTES_MAX: usize = 1 << 20;

/// Whether something is mounted exactly here.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    use rustix::fs::{StatxAttributes, StatxFlags};
    match rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Unmounts whatever is mounted here, layer by layer; succeeds if nothing is.
pub(crate) fn unmount_all(path: &Path) -> io::Result<()> {
    while is_mount_point(path)? {
        unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// What a mount point is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// The root of a container's file system, while nothing runs in it yet.
pub(crate) struct Root {
    fd: OwnedFd,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Root { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Makes `/name` a real directory, replacing whatever else the image has there.
    pub(crate) fn force_directory(&self, name: &str) -> io::Result<()> {
        for _ in 0..2 {
            match rustix::fs::mkdirat(&self.fd, name, Mode::from_bits_retain(0o755)) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                return Ok(());
            }
            rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?;
        }
        Err(io::Error::other(format!("/{name} of the image cannot be made a directory")))
    }

    /// Makes sure that `path` is there, as a directory or a file, and returns where it really is: the same place
    /// without symbolic links. Links are followed as the container would, from its own root.
    pub(crate) fn make(&self, path: &Path, kind: Kind) -> io::Result<PathBuf> {
        // The way from the root: each step a name and what it is.
        let mut way: Vec<(OsString, OwnedFd)> = Vec::new();
        let mut todo: VecDeque<OsString> = names(path);
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                way.pop();
                continue;
            }
            let here = way.last().map_or(self.fd.as_fd(), |(_, fd)| fd.as_fd());
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let last = todo.is_empty();
            let found = match rustix::fs::openat(here, name.as_os_str(), flags, Mode::empty()) {
                Err(Errno::NOENT) if last && kind == Kind::File => {
                    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::openat(here, name.as_os_str(), create, Mode::from_bits_retain(0o644))?;
                    rustix::fs::openat(here, name.as_os_str(), flags, Mode::empty())?
                }
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(here, name.as_os_str(), Mode::from_bits_retain(0o755))?;
                    rustix::fs::openat(here, name.as_os_str(), flags, Mode::empty())?
                }
                other => other?,
            };
            match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                    let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
                    if target.is_absolute() {
                        way.clear();
                    }
                    for name in names(&target).into_iter().rev() {
                        todo.push_front(name);
                    }
                }
                FileType::Directory if last && kind == Kind::File => {
                    return Err(io::Error::other(format!("{} of the image is a directory", path.display())));
                }
                FileType::Directory => way.push((name, found)),
                _ if last && kind == Kind::File => way.push((name, found)),
                _ => {
                    return Err(io::Error::other(format!(
                        "{} of the image is not a directory",
                        path.display()
                    )));
                }
            }
        }
        let mut real = PathBuf::from("/");
        real.extend(way.iter().map(|(name, _)| name));
        Ok(real)
    }

    /// Where a path really is below the root. Links are followed as the container would; nothing is made.
    pub(crate) fn find(&self, path: &Path) -> io::Result<PathBuf> {
        let wanted: PathBuf = std::iter::once(OsString::from(".")).chain(names(path)).collect();
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::openat2(&self.fd, &wanted, flags, Mode::empty(), resolve)?;
        let place = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        place(&found)?.strip_prefix(place(&self.fd)?).map(Path::to_owned).map_err(io::Error::other)
    }

    /// The text of a regular file of the image; empty if there is none.
    fn read(&self, path: &str) -> io::Result<String> {
        // Not blocking, so that a pipe in its place does not hold us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&file)?;
        let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || size > ACCOUNT_FILE_BYTES_MAX {
            return Err(io::Error::other(format!("/{path} of the image is not a small regular file")));
        }
        let mut bytes = vec![0u8; size];
        let mut filled = 0;
        while filled < size {
            match rustix::io::read(&file, &mut bytes[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Looks the user up in the image's own files.
    pub(crate) fn resolve_user(&self, wanted: &WantedUser) -> io::Result<ContainerUser> {
        let needs_files = wanted.user.as_ref().is_some_and(|u| !u.is_empty()) || wanted.uid.is_some();
        if !needs_files {
            return resolve_user(wanted, "", "");
        }
        resolve_user(wanted, &self.read("etc/passwd")?, &self.read("etc/group")?)
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Who a container is to run as, by whoever has a say.
#[derive(Debug, Clone, Default)]
pub(crate) struct WantedUser {
    /// `runAsUser`, stronger than the image.
    pub(crate) uid: Option<i64>,
    /// `runAsGroup`.
    pub(crate) gid: Option<i64>,
    /// `USER` of the image: `user[:group]`, names or numbers.
    pub(crate) user: Option<String>,
    /// Groups to add.
    pub(crate) supplemental_groups: Vec<i64>,
    /// The files of the image add none.
    pub(crate) strict_groups: bool,
}

/// The rules of upstream's runtimes: a numeric user need not be in the files and then has group 0; a named one
/// must be; groups that list the user by name are added.
fn resolve_user(wanted: &WantedUser, passwd: &str, group: &str) -> io::Result<ContainerUser> {
    let image_user = wanted.user.as_deref().unwrap_or_default();
    let (user, image_group) = match (wanted.uid, image_user.split_once(':')) {
        (Some(uid), _) => (uid.to_string(), None),
        (None, Some((user, group))) => (user.to_owned(), Some(group).filter(|g| !g.is_empty())),
        (None, None) => (image_user.to_owned(), None),
    };
    let user = if user.is_empty() { "0".to_owned() } else { user };
    let entries: Vec<Vec<&str>> = passwd.lines().map(|line| line.split(':').collect()).collect();
    let by_name = entries.iter().find(|fields| fields.len() >= 4 && fields[0] == user);
    let by_id = || entries.iter().find(|fields| fields.len() >= 4 && fields[2] == user);
    let number: Option<i64> = user.parse().ok().filter(|uid| (0..=i64::from(u32::MAX)).contains(uid));
    let entry = match number {
        Some(_) => by_id(),
        None => by_name,
    };
    let uid = match (number, entry) {
        (Some(uid), _) => uid,
        (None, Some(fields)) => fields[2].parse().map_err(io::Error::other)?,
        (None, None) => {
            return Err(io::Error::other(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    let gid = match (wanted.gid, image_group) {
        (Some(gid), _) => gid,
        (None, Some(group)) => match groups.iter().find(|f| f.len() >= 3 && (f[0] == group || f[2] == group))
        {
            Some(fields) => fields[2].parse().map_err(io::Error::other)?,
            None => group.parse().map_err(|_| {
                io::Error::other(format!("unable to find group {group}: no matching entries in group file"))
            })?,
        },
        (None, None) => entry.map_or(Ok(0), |fields| fields[3].parse()).map_err(io::Error::other)?,
    };
    let mut supplemental_groups = vec![gid];
    if let Some(name) = entry.map(|fields| fields[0]).filter(|_| !wanted.strict_groups) {
        let member = |fields: &&Vec<&str>| fields.len() >= 4 && fields[3].split(',').any(|m| m == name);
        supplemental_groups.extend(groups.iter().filter(member).filter_map(|f| f[2].parse::<i64>().ok()));
    }
    supplemental_groups.extend(&wanted.supplemental_groups);
    supplemental_groups.sort_unstable();
    supplemental_groups.dedup();
    Ok(ContainerUser { uid, gid, supplemental_groups })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlog:x:200:mail,web\n";

    fn user(uid: Option<i64>, image: &str) -> Result<(i64, i64, Vec<i64>), String> {
        let wanted = WantedUser { uid, user: Some(image.into()), ..Default::default() };
        resolve_user(&wanted, PASSWD, GROUP)
            .map(|u| (u.uid, u.gid, u.supplemental_groups))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn users_are_found_as_upstream_finds_them() {
        assert_eq!(user(None, ""), Ok((0, 0, vec![0])));
        assert_eq!(user(None, "web"), Ok((101, 102, vec![102, 200])));
        assert_eq!(user(None, "web:log"), Ok((101, 200, vec![200])));
        assert_eq!(user(None, "101"), Ok((101, 102, vec![102, 200])));
        assert_eq!(user(None, "5000"), Ok((5000, 0, vec![0])));
        assert_eq!(user(Some(5000), "web"), Ok((5000, 0, vec![0])));
        assert_eq!(user(None, "5:6"), Ok((5, 6, vec![6])));
        assert_eq!(
            user(None, "nobody").unwrap_err(),
            "unable to find user nobody: no matching entries in passwd file"
        );
    }

    #[test]
    fn the_image_adds_no_groups_where_only_those_that_are_asked_for_count() {
        let wanted = |strict_groups| WantedUser {
            uid: Some(101),
            supplemental_groups: vec![4000],
            strict_groups,
            ..Default::default()
        };
        let groups = |wanted| resolve_user(&wanted, PASSWD, GROUP).unwrap().supplemental_groups;
        assert_eq!(groups(wanted(false)), [102, 200, 4000]);
        assert_eq!(groups(wanted(true)), [102, 4000]);
    }

    #[test]
    fn mount_points_never_leave_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("run")).unwrap();
        std::fs::create_dir(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink(outside.path(), root.path().join("escape")).unwrap();
        symlink("../../../../../../etc", root.path().join("up")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        let safe = Root::open(root.path()).unwrap();
        assert_eq!(
            safe.make("/var/run/secrets/x".as_ref(), Kind::Directory).unwrap(),
            Path::new("/run/secrets/x")
        );
        assert_eq!(safe.make("/up/hosts".as_ref(), Kind::File).unwrap(), Path::new("/etc/hosts"));
        assert!(root.path().join("etc/hosts").is_file());
        let made = safe.make("/escape/data".as_ref(), Kind::Directory).unwrap();
        assert_eq!(
            made,
            outside.path().join("data"),
            "a link to an absolute path starts at the container's root"
        );
        assert!(root.path().join(made.strip_prefix("/").unwrap()).is_dir());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(safe.make("/loop/x".as_ref(), Kind::Directory).is_err());
        assert!(safe.make("/run".as_ref(), Kind::File).is_err());
    }

    #[test]
    fn a_part_of_an_image_is_found_inside_of_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("data/deep")).unwrap();
        std::fs::write(root.path().join("data/file"), "").unwrap();
        symlink("/data", root.path().join("link")).unwrap();
        symlink("../../../../etc", root.path().join("up")).unwrap();
        let safe = Root::open(root.path()).unwrap();
        let found = |path: &str| safe.find(path.as_ref()).map_err(|why| why.kind());
        for (path, place) in [
            ("", ""),
            ("/", ""),
            ("data/deep", "data/deep"),
            ("/link/file", "data/file"),
            ("../data", "data"),
        ] {
            assert_eq!(found(path), Ok(place.into()), "{path}");
        }
        assert_eq!(found("up"), Err(io::ErrorKind::NotFound), "the machine's /etc is not the image's");
        assert_eq!(found("nothing"), Err(io::ErrorKind::NotFound));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 3, "nothing is made");
    }

    #[test]
    fn a_link_in_place_of_dev_is_replaced() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("proc"), "").unwrap();
        let safe = Root::open(root.path()).unwrap();
        for name in ["dev", "proc", "sys"] {
            safe.force_directory(name).unwrap();
            assert!(root.path().join(name).symlink_metadata().unwrap().is_dir(), "{name}");
        }
        assert!(outside.path().is_dir());
    }
}
