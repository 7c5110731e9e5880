//! The verdicts: what the facts mean for a cluster, and what to change. Pure.

use std::fmt;

use coracle_runtime::CgroupVersion;
use serde::Serialize;

use super::facts::{DataDirectory, Facts, FileSystem, IpForward, ProcMount};

/// How well the machine does in one respect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// A cluster runs, but not everything works as it should.
    Degraded,
    /// A cluster cannot run.
    Missing,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Ok => "ok",
            Verdict::Degraded => "degraded",
            Verdict::Missing => "missing",
        })
    }
}

/// One respect in which machines differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) subject: &'static str,
    pub(crate) verdict: Verdict,
    /// What there is.
    pub(crate) found: String,
    /// The package or the setting to change; empty if nothing needs to be.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) change: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.found)?;
        if self.change.is_empty() { Ok(()) } else { write!(f, ": {}", self.change) }
    }
}

/// Before it, a process cannot close all files of its parent at once.
const OLDEST_KERNEL: (u32, u32) = (5, 9);
/// From it on, the kernel ends all processes of a group at once.
const GOOD_KERNEL: (u32, u32) = (5, 14);

/// Without these no container can be made, and none cleaned up.
const NEEDED: &[(&str, u32)] = &[
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_ADMIN", 21),
];

/// Without these something does not work; what that is.
const WANTED: &[(&str, u32, &str)] = &[
    ("CAP_FSETID", 4, "programs of images lose their set-id bits"),
    ("CAP_NET_BIND_SERVICE", 10, "containers cannot use ports below 1024"),
    ("CAP_NET_RAW", 13, "`ping` does not work in containers"),
    ("CAP_SYS_PTRACE", 19, "containers of other users cannot be looked into"),
    (
        "CAP_SYS_RESOURCE",
        24,
        "limits of processes cannot be raised, nor protection from the kernel's memory killer",
    ),
    ("CAP_MKNOD", 27, "images with device files cannot be unpacked"),
    ("CAP_AUDIT_WRITE", 29, "login programs do not work in containers"),
    ("CAP_SETFCAP", 31, "programs of images lose their capabilities"),
];

const NEEDED_CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

/// What a programme in each Pod that a node takes may want, and some for everybody else. Coracle takes one.
const INOTIFY_INSTANCES: u64 = 256;
const INOTIFY_WATCHES: u64 = 4096;

const LEAST_OPEN_FILES: u64 = 512;
const GOOD_OPEN_FILES: u64 = 4096;

const MEGABYTE: u64 = 1 << 20;
const LEAST_SPACE: u64 = 64 * MEGABYTE;
const GOOD_SPACE: u64 = 2048 * MEGABYTE;
const LEAST_FILES: u64 = 1_000;
const GOOD_FILES: u64 = 50_000;

/// What the facts mean, in the order in which to mend things.
pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    vec![
        kernel(&facts.kernel),
        capabilities(facts.capabilities),
        namespaces(&facts.namespaces_missing),
        support("overlayfs", facts.overlayfs, "CONFIG_OVERLAY_FS"),
        support("seccomp", facts.seccomp, "CONFIG_SECCOMP_FILTER"),
        support("pidfd", facts.pidfd, "CONFIG_PIDFD, which kernels from 5.3 have"),
        cgroups(facts),
    ]
    .into_iter()
    .chain(network(facts))
    .chain([
        ip_forward(facts.ip_forward),
        inotify(facts),
        open_files(facts.open_files),
        data(&facts.data),
        proc(facts.proc),
        sys(facts.sys_writable),
        ports(&facts.ports_taken),
    ])
    .collect()
}

fn ok(subject: &'static str, found: impl Into<String>) -> Finding {
    Finding { subject, verdict: Verdict::Ok, found: found.into(), change: String::new() }
}

fn degraded(subject: &'static str, found: impl Into<String>, change: impl Into<String>) -> Finding {
    Finding { subject, verdict: Verdict::Degraded, found: found.into(), change: change.into() }
}

fn missing(subject: &'static str, found: impl Into<String>, change: impl Into<String>) -> Finding {
    Finding { subject, verdict: Verdict::Missing, found: found.into(), change: change.into() }
}

fn kernel(release: &str) -> Finding {
    const CHANGE: &str = "install a newer kernel (package linux-image-amd64 of Debian 12 or newer)";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return degraded("kernel", format!("{release}, which is no known version"), CHANGE);
    };
    match (major, minor) {
        version if version < OLDEST_KERNEL => {
            missing("kernel", format!("{release} is older than 5.9"), CHANGE)
        }
        version if version < GOOD_KERNEL => {
            degraded("kernel", format!("{release} ends the processes of a Pod one by one"), CHANGE)
        }
        _ => ok("kernel", release),
    }
}

fn capabilities(held: u64) -> Finding {
    const SUBJECT: &str = "capabilities";
    let lacks = |bit: u32| held >> bit & 1 == 0;
    if held == 0 {
        return missing(SUBJECT, "none: a cluster needs root", "run it with sudo");
    }
    let needed: Vec<&str> = NEEDED.iter().filter(|(_, bit)| lacks(*bit)).map(|(name, _)| *name).collect();
    if !needed.is_empty() {
        return missing(
            SUBJECT,
            format!("without {}", needed.join(", ")),
            "give them to whatever starts this (`CapabilityBoundingSet=` of the service, `--privileged` of the \
             container)",
        );
    }
    let wanted: Vec<_> = WANTED.iter().filter(|(_, bit, _)| lacks(*bit)).collect();
    if wanted.is_empty() {
        return ok(SUBJECT, "all that are needed");
    }
    let found: Vec<String> =
        wanted.iter().map(|(name, _, effect)| format!("without {name}, {effect}")).collect();
    let names: Vec<&str> = wanted.iter().map(|(name, ..)| *name).collect();
    degraded(SUBJECT, found.join("; "), format!("give {} to whatever starts this", names.join(", ")))
}

fn namespaces(lacks: &[&str]) -> Finding {
    const SUBJECT: &str = "namespaces";
    if lacks.is_empty() {
        return ok(SUBJECT, "mnt, pid, net, ipc, uts, cgroup");
    }
    let limits: Vec<String> = lacks.iter().map(|kind| format!("user.max_{kind}_namespaces")).collect();
    missing(
        SUBJECT,
        format!("none of kind {}", lacks.join(", ")),
        format!("raise {} with sysctl, or use a kernel that has them", limits.join(", ")),
    )
}

fn support(subject: &'static str, there: bool, option: &str) -> Finding {
    if there {
        ok(subject, "works")
    } else {
        missing(subject, "the kernel has none", format!("use a kernel with {option}, as Debian's have it"))
    }
}

fn cgroups(facts: &Facts) -> Finding {
    const SUBJECT: &str = "cgroups";
    const MOUNT: &str =
        "mount them: `mount -t cgroup2 none /sys/fs/cgroup`, or start the machine with systemd";
    let Some(cgroups) = &facts.cgroups else { return missing(SUBJECT, "none are mounted", MOUNT) };
    let version = match cgroups.version {
        CgroupVersion::V1 => "v1",
        CgroupVersion::Hybrid => "v1, and an empty v2 (hybrid)",
        CgroupVersion::V2 => "v2",
    };
    let lacks: Vec<&str> =
        NEEDED_CONTROLLERS.iter().copied().filter(|name| !cgroups.controllers.contains(*name)).collect();
    if !lacks.is_empty() {
        return missing(
            SUBJECT,
            format!("{version}, without {}", lacks.join(", ")),
            format!(
                "enable them: no `cgroup_disable=` on the kernel's command line, `cgroup_enable={}` where the \
                 kernel asks for it",
                lacks.join(" cgroup_enable=")
            ),
        );
    }
    if !cgroups.read_only.is_empty() {
        let paths: Vec<String> = cgroups.read_only.iter().map(|path| path.display().to_string()).collect();
        return missing(
            SUBJECT,
            format!("{} cannot be written", paths.join(", ")),
            "mount with `rw`; as root, outside of a container",
        );
    }
    let found =
        format!("{version}, with {}", cgroups.controllers.iter().cloned().collect::<Vec<_>>().join(", "));
    if cgroups.version == CgroupVersion::V1 {
        return degraded(
            SUBJECT,
            format!("{found}: processes of a Pod are ended one by one"),
            "start the machine with `systemd.unified_cgroup_hierarchy=1`",
        );
    }
    ok(SUBJECT, found)
}

fn network(facts: &Facts) -> Vec<Finding> {
    const MODULES: &str =
        "use a kernel with the module, as Debian's linux-image-amd64 has it, not the -cloud one";
    let probe = match &facts.network {
        Ok(probe) => probe,
        Err(error) => {
            let found = format!("cannot be tried without a network namespace: {error}");
            return vec![missing("network", found, "run this as root")];
        }
    };
    let links = [("bridge", &probe.bridge), ("veth", &probe.veth)].map(|(subject, works)| match works {
        Ok(()) => ok(subject, "works"),
        Err(error) => missing(subject, error, MODULES),
    });
    let vxlan = match &probe.vxlan {
        Ok(()) => ok("vxlan", "works"),
        Err(error) => {
            degraded("vxlan", format!("{error}: Pods of other machines cannot be reached"), MODULES)
        }
    };
    let rules = match &probe.rules {
        Ok(()) => ok("nftables", "works"),
        Err(error) if error.contains("not found: install") => {
            missing("nftables", "there is no `nft` on the PATH", "apt install nftables")
        }
        Err(error) => missing(
            "nftables",
            error.lines().next().unwrap_or_default(),
            "use a kernel with CONFIG_NF_TABLES and CONFIG_NFT_MASQ, NAT, CT, FIB, as Debian's have it",
        ),
    };
    links.into_iter().chain([vxlan, rules]).collect()
}

fn ip_forward(state: IpForward) -> Finding {
    const SUBJECT: &str = "ip_forward";
    match state {
        IpForward::On => ok(SUBJECT, "on"),
        IpForward::Off => ok(SUBJECT, "off; the cluster turns it on"),
        IpForward::OffForGood => missing(
            SUBJECT,
            "off, and cannot be turned on from here",
            "`sysctl -w net.ipv4.ip_forward=1` where /proc/sys can be written",
        ),
    }
}

fn inotify(facts: &Facts) -> Finding {
    const SUBJECT: &str = "inotify";
    let (Some(instances), Some(watches)) = (facts.inotify.instances, facts.inotify.watches) else {
        return missing(SUBJECT, "the kernel has none", "use a kernel with CONFIG_INOTIFY_USER");
    };
    let found = format!("{instances} instances, {watches} watches");
    if instances < INOTIFY_INSTANCES || watches < INOTIFY_WATCHES {
        let mut settings = Vec::new();
        if instances < INOTIFY_INSTANCES {
            settings.push(format!("fs.inotify.max_user_instances={}", 2 * INOTIFY_INSTANCES));
        }
        if watches < INOTIFY_WATCHES {
            settings.push(format!("fs.inotify.max_user_watches={}", 16 * INOTIFY_WATCHES));
        }
        let found = format!(
            "{found}: programs in Pods that watch files take instances, and so do others of this user"
        );
        return degraded(SUBJECT, found, format!("`sysctl -w {}`", settings.join(" ")));
    }
    ok(SUBJECT, found)
}

fn open_files(limit: u64) -> Finding {
    const SUBJECT: &str = "open files";
    const CHANGE: &str = "`ulimit -n 65536`, or `LimitNOFILE=65536` of the service";
    if limit == u64::MAX {
        return ok(SUBJECT, "unlimited");
    }
    let found = format!("at most {limit}");
    match limit {
        ..LEAST_OPEN_FILES => missing(SUBJECT, found, CHANGE),
        LEAST_OPEN_FILES..GOOD_OPEN_FILES => {
            degraded(SUBJECT, format!("{found}, which many watchers use up"), CHANGE)
        }
        _ => ok(SUBJECT, found),
    }
}

fn data(data: &DataDirectory) -> Finding {
    const SUBJECT: &str = "data directory";
    let DataDirectory { path, kind, read_only, free_bytes, free_files } = data;
    let elsewhere = "choose a --data-dir on a local disk";
    if *read_only {
        return missing(SUBJECT, format!("{path} is read-only"), elsewhere);
    }
    match kind {
        FileSystem::Overlay => {
            return missing(
                SUBJECT,
                format!("{path} is on an overlay, which cannot hold the overlays of containers"),
                "choose a --data-dir on a volume",
            );
        }
        FileSystem::Network => {
            return missing(
                SUBJECT,
                format!("{path} is on a network file system, which promises too little"),
                elsewhere,
            );
        }
        FileSystem::Memory | FileSystem::Other => {}
    }
    let files = free_files.map_or_else(String::new, |files| format!(", {files} files"));
    let found = format!("{path} has {} MB{files} free", free_bytes / MEGABYTE);
    let files = free_files.unwrap_or(u64::MAX);
    if *free_bytes < LEAST_SPACE || files < LEAST_FILES {
        return missing(SUBJECT, found, "free some, or choose another --data-dir");
    }
    if *free_bytes < GOOD_SPACE || files < GOOD_FILES {
        return degraded(SUBJECT, format!("{found}, which images use up"), "free some");
    }
    if *kind == FileSystem::Memory {
        return degraded(
            SUBJECT,
            format!("{path} is in memory: the cluster is gone with the next boot"),
            elsewhere,
        );
    }
    ok(SUBJECT, found)
}

fn proc(mount: ProcMount) -> Finding {
    match mount {
        ProcMount::Whole => ok("/proc", "whole"),
        ProcMount::ReadOnly => missing("/proc", "is mounted read-only", "`mount -o remount,rw /proc`"),
        ProcMount::Restricted => missing(
            "/proc",
            "does not show everything (hidepid or subset)",
            "`mount -o remount,hidepid=0 /proc`, and no subset=pid",
        ),
    }
}

fn sys(writable: bool) -> Finding {
    if writable {
        ok("/sys", "can be written")
    } else {
        missing(
            "/sys",
            "is mounted read-only",
            "`mount -o remount,rw /sys`; in a container, run it privileged",
        )
    }
}

fn ports(taken: &[(u16, &str)]) -> Finding {
    const SUBJECT: &str = "ports";
    if taken.is_empty() {
        return ok(SUBJECT, "free");
    }
    let found: Vec<String> = taken
        .iter()
        .map(|(port, what)| format!("{port}, for {what}, is in use by another program"))
        .collect();
    let numbers: Vec<String> = taken.iter().map(|(port, _)| format!("sport = {port}")).collect();
    missing(SUBJECT, found.join("; "), format!("stop it (`ss -ltnp '{}'` names it)", numbers.join(" or ")))
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
