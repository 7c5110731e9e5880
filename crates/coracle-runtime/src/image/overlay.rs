//! Overlay mounts.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::fs::open_dir;
use super::types::Rootfs;

/// Mounts an overlay of `lower` (topmost first), `upper` and `work` at `target`.
///
/// Layers are named by descriptors of this process, so that a stack of any depth fits the page that the kernel
/// takes as options, and no character in a path can be taken for a separator. The mount is `volatile` where the
/// kernel knows it: nothing in it has to survive a crash of the machine, and unmounting then does not flush the
/// whole file system.
fn mount(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path, flags: MountFlags) -> io::Result<()> {
    let open = |path: &Path| -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    };
    let lower = lower.iter().map(|path| open(path)).collect::<io::Result<Vec<_>>>()?;
    let (upper, work) = (open(upper)?, open(work)?);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=off",
        lower.iter().map(name).collect::<Vec<_>>().join(":"),
        name(&upper),
        name(&work),
    );
    let mount = |options: String| -> io::Result<Result<(), Errno>> {
        let options = CString::new(options)?;
        Ok(rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str()))
    };
    match mount(format!("{options},volatile"))? {
        Ok(()) => Ok(()),
        // Linux before 5.10.
        Err(Errno::INVAL) => Ok(mount(options)??),
        Err(error) => Err(error.into()),
    }
}

/// What the device nodes are that an image brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceNodes {
    /// Names without a device behind them. Whoever wrote the image must not reach the machine's devices.
    Dead,
    /// Devices of this machine.
    Live,
}

impl DeviceNodes {
    fn flags(self) -> MountFlags {
        match self {
            DeviceNodes::Dead => MountFlags::NODEV,
            DeviceNodes::Live => MountFlags::empty(),
        }
    }
}

impl Rootfs {
    /// Mounts the overlay at [`Rootfs::merged`], in the mount namespace of the calling thread.
    pub fn mount(&self, nodes: DeviceNodes) -> io::Result<()> {
        mount(&self.lower, &self.upper, &self.work, &self.merged, nodes.flags())
    }

    /// Lets nobody write to it any more by way of [`Rootfs::merged`].
    pub fn make_readonly(&self, nodes: DeviceNodes) -> io::Result<()> {
        // A remount states all flags anew: one that is not repeated is taken away.
        let flags = MountFlags::BIND | MountFlags::RDONLY | nodes.flags();
        Ok(rustix::mount::mount_remount(&self.merged, flags, "")?)
    }

    /// Mounts the overlay at [`Rootfs::merged`] to be looked at: it cannot be written, and nothing in it be executed.
    pub fn mount_content(&self) -> io::Result<()> {
        self.mount(DeviceNodes::Dead)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
        Ok(rustix::mount::mount_remount(&self.merged, flags | DeviceNodes::Dead.flags(), "")?)
    }

    /// Unmounts what [`Rootfs::mount`] mounted; no error if nothing is mounted.
    pub fn unmount(&self) -> io::Result<()> {
        unmount(&self.merged)
    }
}

/// Unmounts `target`; no error if nothing is mounted there.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the root of an overlay that is attached nowhere: it is gone when the descriptor is, whatever happens
/// to this process. `dir` gets the directories that the mount needs.
pub(crate) fn open_detached(lower: &[PathBuf], upper: &Path, dir: &Path) -> io::Result<OwnedFd> {
    let (work, target) = (dir.join("work"), dir.join("merged"));
    for path in [&work, &target] {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    mount(lower, upper, &work, &target, MountFlags::NODEV)?;
    let root = open_dir(&target);
    unmount(&target)?;
    root
}

/// Whether something is mounted at `path`.
pub(crate) fn is_mounted(path: &Path) -> io::Result<bool> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(false) };
    let parent = open_dir(parent)?;
    let name = CString::new(name.as_bytes())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat2(parent, &name, flags, Mode::empty(), rustix::fs::ResolveFlags::NO_XDEV) {
        Ok(_) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::XDEV) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
