//! The facts: read from the kernel, or found by trying where nothing else tells. Nothing stays changed.

use std::fs;
use std::path::Path;

use coracle_net::probe::Probe;
use coracle_runtime::MachineCgroups;
use rustix::fs::{Access, StatVfsMountFlags};

use crate::cluster::Cluster;

/// How often what is being loaded is looked at, 20 ms apart.
const LOOKS: usize = 250;

/// What is known of the machine, and of the cluster's place on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The kernel's release, as `uname -r` prints it.
    pub(crate) kernel: String,
    /// Effective capabilities of this process, by bit.
    pub(crate) capabilities: u64,
    /// Kinds of namespaces that the kernel has not, or of which there may be none.
    pub(crate) namespaces_missing: Vec<&'static str>,
    pub(crate) overlayfs: bool,
    pub(crate) seccomp: bool,
    pub(crate) pidfd: bool,
    /// What of a Pod network works; an error without the rights to try.
    pub(crate) network: Result<Probe, String>,
    pub(crate) cgroups: Option<MachineCgroups>,
    pub(crate) ip_forward: IpForward,
    pub(crate) inotify: Inotify,
    /// The limit of open files that applies.
    pub(crate) open_files: u64,
    pub(crate) data: DataDirectory,
    pub(crate) proc: ProcMount,
    /// Whether `/sys` can be written.
    pub(crate) sys_writable: bool,
    /// Ports of this cluster that somebody else has, and what they are for.
    pub(crate) ports_taken: Vec<(u16, &'static str)>,
}

/// The switch that lets packets of Pods leave the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IpForward {
    On,
    /// Off; a cluster can turn it on.
    Off,
    /// Off, and not to be changed from here.
    OffForGood,
}

/// Limits of the kernel's file watches for each user; `None` if the kernel has none to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inotify {
    pub(crate) instances: Option<u64>,
    pub(crate) watches: Option<u64>,
}

/// The file system that the cluster's data is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataDirectory {
    /// The directory, or the nearest one above it that exists.
    pub(crate) path: String,
    pub(crate) kind: FileSystem,
    pub(crate) read_only: bool,
    pub(crate) free_bytes: u64,
    /// `None` where files are not counted.
    pub(crate) free_files: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Layers of another one: it cannot hold layers itself.
    Overlay,
    /// On another machine: it has no locks, attributes or flushes to rely on.
    Network,
    /// Gone with the next boot.
    Memory,
    Other,
}

/// How `/proc` is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcMount {
    Whole,
    ReadOnly,
    /// Without other users' processes, or without anything but processes.
    Restricted,
}

impl Facts {
    /// Probes the machine. Takes some milliseconds.
    pub(crate) fn probe(cluster: &Cluster) -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Ok(Facts {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            capabilities: capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
            namespaces_missing: namespaces_missing(),
            overlayfs: settled(overlayfs, |works| !works),
            seccomp: text("/proc/sys/kernel/seccomp/actions_avail")
                .is_some_and(|actions| actions.split_whitespace().any(|action| action == "errno")),
            pidfd: rustix::process::pidfd_open(
                rustix::process::getpid(),
                rustix::process::PidfdFlags::empty(),
            )
            .is_ok(),
            network: network(),
            cgroups: MachineCgroups::inspect().unwrap_or_default(),
            ip_forward: ip_forward(),
            inotify: Inotify {
                instances: number("/proc/sys/fs/inotify/max_user_instances"),
                watches: number("/proc/sys/fs/inotify/max_user_watches"),
            },
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .maximum
                .unwrap_or(u64::MAX),
            data: data_directory(&cluster.data)?,
            proc: proc_mount(&mounts),
            sys_writable: !rustix::fs::statvfs("/sys")
                .is_ok_and(|sys| sys.f_flag.contains(StatVfsMountFlags::RDONLY)),
            ports_taken: ports_taken(cluster)?,
        })
    }
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(path: &str) -> Option<u64> {
    text(path)?.trim().parse().ok()
}

fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default()
}

fn namespaces_missing() -> Vec<&'static str> {
    [("mnt", "mnt"), ("pid", "pid"), ("net", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")]
        .into_iter()
        .filter(|(kind, limit)| {
            !Path::new("/proc/self/ns").join(kind).exists()
                || number(&format!("/proc/sys/user/max_{limit}_namespaces")) == Some(0)
        })
        .map(|(kind, _)| kind)
        .collect()
}

/// Looks again at what seems to be lacking while the kernel loads modules. Not every `modprobe` waits for a module that
/// somebody else is loading, as at the first start after a boot: then this does.
fn settled<T>(look: impl Fn() -> T, lacks: impl Fn(&T) -> bool) -> T {
    let loading = || {
        let modules = text("/proc/modules").unwrap_or_default();
        modules.lines().any(|line| line.contains(" Loading "))
    };
    for _ in 0..LOOKS {
        let found = look();
        if !lacks(&found) {
            return found;
        }
        if !loading() {
            break;
        }
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
    // Also when all is loaded by now.
    look()
}

fn network() -> Result<Probe, String> {
    settled(coracle_net::probe::probe, |found| match found {
        Ok(probe) => [&probe.bridge, &probe.veth, &probe.vxlan].iter().any(|works| works.is_err()),
        Err(_) => false,
    })
}

/// Asking for a file system context loads the module if there is one. Without the right to ask, the list tells.
fn overlayfs() -> bool {
    match rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => true,
        Err(rustix::io::Errno::NODEV) => false,
        Err(_) => text("/proc/filesystems")
            .is_some_and(|list| list.lines().any(|line| line.split_whitespace().last() == Some("overlay"))),
    }
}

fn ip_forward() -> IpForward {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    let writable = || fs::File::options().write(true).open(SWITCH).is_ok();
    match number(SWITCH) {
        Some(1) => IpForward::On,
        _ if writable() => IpForward::Off,
        _ => IpForward::OffForGood,
    }
}

fn data_directory(wanted: &Path) -> anyhow::Result<DataDirectory> {
    let wanted = std::path::absolute(wanted)?;
    let path = wanted.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let space = rustix::fs::statvfs(path)?;
    let kind = match rustix::fs::statfs(path)?.f_type {
        0x794c_7630 => FileSystem::Overlay,
        0x6969 | 0xff53_4d42 | 0xfe53_4d42 | 0x517b | 0x0102_1997 => FileSystem::Network,
        0x0102_1994 | 0x8584_58f6 => FileSystem::Memory,
        _ => FileSystem::Other,
    };
    Ok(DataDirectory {
        path: path.display().to_string(),
        kind,
        read_only: space.f_flag.contains(StatVfsMountFlags::RDONLY)
            || rustix::fs::access(path, Access::WRITE_OK) == Err(rustix::io::Errno::ROFS),
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        free_files: (space.f_files > 0).then_some(space.f_favail),
    })
}

/// The last mount on `/proc` is the one that shows.
fn proc_mount(mounts: &str) -> ProcMount {
    let of_proc = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        (left.next() == Some("/proc")).then(|| (left.next().unwrap_or_default().to_owned(), right.to_owned()))
    };
    let Some((options, superblock)) = mounts.lines().filter_map(of_proc).next_back() else {
        return ProcMount::Whole;
    };
    let has = |text: &str, wanted: &dyn Fn(&str) -> bool| text.split([',', ' ']).any(wanted);
    if has(&options, &|option| option == "ro") || has(&superblock, &|option| option == "ro") {
        return ProcMount::ReadOnly;
    }
    let restricted = |option: &str| {
        option == "subset=pid"
            || option.strip_prefix("hidepid=").is_some_and(|value| !["0", "off"].contains(&value))
    };
    if has(&superblock, &restricted) { ProcMount::Restricted } else { ProcMount::Whole }
}

/// Ports are chosen at the first start, around those in use; from then on they must be free.
fn ports_taken(cluster: &Cluster) -> anyhow::Result<Vec<(u16, &'static str)>> {
    let Some(settings) = cluster.settings()? else { return Ok(Vec::new()) };
    let mut ports = vec![(settings.kubelet_port, "the node agent")];
    if settings.joined.is_none() {
        ports.insert(0, (settings.api_port, "the API server"));
    }
    // Read off, not tried: a try would be in the way of a start beside this one.
    let tables: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(text).collect();
    ports.retain(|(port, _)| tables.iter().any(|table| listens(table, *port)));
    // Asked last: whoever runs or starts the cluster has had the lock since before the ports.
    if !ports.is_empty() && cluster.holder()?.is_some() {
        ports.clear();
    }
    Ok(ports)
}

/// Whether the kernel's table of connections has somebody who listens on `port`.
fn listens(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|address| address.rsplit(':').next());
        let state = fields.nth(1);
        state == Some("0A") && local.and_then(|port| u16::from_str_radix(port, 16).ok()) == Some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_proc_is_read_as_the_kernel_writes_it() {
        let with = |options: &str, superblock: &str| {
            proc_mount(&format!(
                "27 1 254:0 / / rw - ext4 /dev/vda rw\n22 27 0:21 / /proc {options} - proc proc {superblock}\n"
            ))
        };
        assert_eq!(with("rw,relatime", "rw"), ProcMount::Whole);
        assert_eq!(with("rw,relatime", "rw,hidepid=0"), ProcMount::Whole);
        assert_eq!(with("ro,relatime", "rw"), ProcMount::ReadOnly);
        assert_eq!(with("rw", "rw,hidepid=invisible"), ProcMount::Restricted);
        assert_eq!(with("rw", "rw,hidepid=2"), ProcMount::Restricted);
        assert_eq!(with("rw", "rw,subset=pid"), ProcMount::Restricted);
        assert_eq!(proc_mount(""), ProcMount::Whole);
    }

    #[test]
    fn somebody_who_listens_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue\n   0: 00000000:192B 00000000:0000 0A 00000000\n   \
                     1: 0100007F:280A 0100007F:C350 01 00000000\n";
        assert!(listens(table, 6443));
        assert!(!listens(table, 10250), "a connection is no listener");
        let table6 =
            "sl\n 0: 00000000000000000000000000000000:192B 00000000000000000000000000000000:0000 0A 0\n";
        assert!(listens(table6, 6443) && !listens("", 6443));
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert_eq!(
            capabilities("Name:\tx\nCapPrm:\t00ff\nCapEff:\t000001fffeffffff\n"),
            0x0000_01ff_feff_ffff
        );
        assert_eq!(capabilities(""), 0);
    }

    #[test]
    fn the_place_of_data_that_is_not_there_yet_is_its_nearest_parent() {
        let base = tempfile::tempdir().unwrap();
        let found = data_directory(&base.path().join("a/b/c")).unwrap();
        assert_eq!(found.path, base.path().display().to_string());
        assert!(found.free_bytes > 0 && !found.read_only, "{found:?}");
    }
}
