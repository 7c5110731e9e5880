//! The table: one fact is changed on a machine that has everything, and one finding changes.

use coracle_net::probe::Probe;
use coracle_runtime::MachineCgroups;

use super::super::facts::Inotify;
use super::*;

fn everything() -> Facts {
    Facts {
        kernel: "6.12.9-amd64".to_owned(),
        capabilities: (1 << 41) - 1,
        namespaces_missing: Vec::new(),
        overlayfs: true,
        seccomp: true,
        pidfd: true,
        network: Ok(Probe { bridge: Ok(()), veth: Ok(()), vxlan: Ok(()), rules: Ok(()) }),
        cgroups: Some(MachineCgroups {
            version: CgroupVersion::V2,
            controllers: ["cpu", "cpuset", "memory", "pids"].map(str::to_owned).into(),
            read_only: Vec::new(),
        }),
        ip_forward: IpForward::On,
        inotify: Inotify { instances: Some(1024), watches: Some(100_000) },
        open_files: 1 << 20,
        data: DataDirectory {
            path: "/var/lib".to_owned(),
            kind: FileSystem::Other,
            read_only: false,
            free_bytes: 100 << 30,
            free_files: Some(1 << 20),
        },
        proc: ProcMount::Whole,
        sys_writable: true,
        ports_taken: Vec::new(),
    }
}

fn network(change: impl FnOnce(&mut Probe)) -> Result<Probe, String> {
    let mut probe = everything().network.unwrap();
    change(&mut probe);
    Ok(probe)
}

fn cgroups(change: impl FnOnce(&mut MachineCgroups)) -> Option<MachineCgroups> {
    let mut cgroups = everything().cgroups.unwrap();
    change(&mut cgroups);
    Some(cgroups)
}

#[test]
fn a_machine_with_everything_has_nothing_to_change() {
    for finding in judge(&everything()) {
        assert_eq!((finding.verdict, finding.change.as_str()), (Verdict::Ok, ""), "{finding}");
    }
}

#[test]
fn each_fact_has_its_verdict_and_says_what_to_change() {
    use Verdict::{Degraded, Missing};
    type Change = fn(&mut Facts);
    let table: &[(Change, &str, Verdict, &str)] = &[
        (|f| f.kernel = "4.19.0-27".into(), "kernel", Missing, "install a newer kernel"),
        (|f| f.kernel = "5.8.19".into(), "kernel", Missing, "older than 5.9"),
        (|f| f.kernel = "5.10.0-30-amd64".into(), "kernel", Degraded, "Debian 12"),
        (|f| f.kernel = "next".into(), "kernel", Degraded, "no known version"),
        (|f| f.capabilities = 0, "capabilities", Missing, "run it with sudo"),
        (|f| f.capabilities &= !(1 << 21), "capabilities", Missing, "without CAP_SYS_ADMIN"),
        (|f| f.capabilities &= !(1 << 24), "capabilities", Degraded, "without CAP_SYS_RESOURCE, limits"),
        (
            |f| f.capabilities &= !(1 << 13 | 1 << 27),
            "capabilities",
            Degraded,
            "give CAP_NET_RAW, CAP_MKNOD to",
        ),
        (|f| f.namespaces_missing = vec!["pid", "net"], "namespaces", Missing, "user.max_net_namespaces"),
        (|f| f.overlayfs = false, "overlayfs", Missing, "CONFIG_OVERLAY_FS"),
        (|f| f.seccomp = false, "seccomp", Missing, "CONFIG_SECCOMP_FILTER"),
        (|f| f.pidfd = false, "pidfd", Missing, "5.3"),
        (|f| f.cgroups = None, "cgroups", Missing, "mount -t cgroup2"),
        (
            |f| f.cgroups = cgroups(|c| c.controllers.retain(|name| name != "memory")),
            "cgroups",
            Missing,
            "v2, without memory: enable them: no `cgroup_disable=` on the kernel's command line, \
             `cgroup_enable=memory`",
        ),
        (
            |f| f.cgroups = cgroups(|c| c.read_only = vec!["/sys/fs/cgroup".into()]),
            "cgroups",
            Missing,
            "`rw`",
        ),
        (
            |f| f.cgroups = cgroups(|c| c.version = CgroupVersion::V1),
            "cgroups",
            Degraded,
            "v1, with cpu, cpuset",
        ),
        (|f| f.network = Err("EPERM".into()), "network", Missing, "EPERM: run this as root"),
        (
            |f| f.network = network(|n| n.bridge = Err("no".into())),
            "bridge",
            Missing,
            "kernel with the module",
        ),
        (|f| f.network = network(|n| n.veth = Err("no".into())), "veth", Missing, "kernel with the module"),
        (
            |f| f.network = network(|n| n.vxlan = Err("no".into())),
            "vxlan",
            Degraded,
            "Pods of other machines",
        ),
        (
            |f| f.network = network(|n| n.rules = Err("nft: not found: install the package nftables".into())),
            "nftables",
            Missing,
            "apt install nftables",
        ),
        (
            |f| f.network = network(|n| n.rules = Err("nft: Error: x\n^^^".into())),
            "nftables",
            Missing,
            "nftables: nft: Error: x: use a kernel with CONFIG_NF_TABLES",
        ),
        (|f| f.ip_forward = IpForward::OffForGood, "ip_forward", Missing, "net.ipv4.ip_forward=1"),
        (
            |f| f.inotify.instances = Some(128),
            "inotify",
            Degraded,
            "`sysctl -w fs.inotify.max_user_instances=512`",
        ),
        (
            |f| f.inotify.watches = Some(100),
            "inotify",
            Degraded,
            "`sysctl -w fs.inotify.max_user_watches=65536`",
        ),
        (|f| f.inotify.watches = None, "inotify", Missing, "CONFIG_INOTIFY_USER"),
        (|f| f.open_files = 256, "open files", Missing, "ulimit -n"),
        (|f| f.open_files = 1024, "open files", Degraded, "LimitNOFILE=65536"),
        (|f| f.data.read_only = true, "data directory", Missing, "/var/lib is read-only"),
        (|f| f.data.kind = FileSystem::Overlay, "data directory", Missing, "on a volume"),
        (|f| f.data.kind = FileSystem::Network, "data directory", Missing, "local disk"),
        (|f| f.data.kind = FileSystem::Memory, "data directory", Degraded, "gone with the next boot"),
        (|f| f.data.free_bytes = 63 << 20, "data directory", Missing, "has 63 MB, 1048576 files free"),
        (|f| f.data.free_bytes = 1 << 30, "data directory", Degraded, "free some"),
        (|f| f.data.free_files = Some(10), "data directory", Missing, "10 files"),
        (|f| f.data.free_files = Some(10_000), "data directory", Degraded, "10000 files"),
        (|f| f.proc = ProcMount::ReadOnly, "/proc", Missing, "remount,rw"),
        (|f| f.proc = ProcMount::Restricted, "/proc", Missing, "hidepid=0"),
        (|f| f.sys_writable = false, "/sys", Missing, "remount,rw"),
        (
            |f| f.ports_taken = vec![(6443, "the API server")],
            "ports",
            Missing,
            "ports: 6443, for the API server, is in use by another program: stop it (`ss -ltnp 'sport = 6443'` \
             names it)",
        ),
    ];
    for (change, subject, verdict, words) in table {
        let mut facts = everything();
        change(&mut facts);
        let findings: Vec<_> = judge(&facts).into_iter().filter(|f| f.verdict != Verdict::Ok).collect();
        let [finding] = findings.as_slice() else { panic!("{subject}: {findings:?}") };
        assert_eq!((finding.subject, finding.verdict), (*subject, *verdict), "{finding}");
        assert!(finding.to_string().contains(words), "{finding}");
        assert!(!finding.change.is_empty(), "{finding}");
    }
}

#[test]
fn what_differs_and_does_no_harm_is_told() {
    let mut facts = everything();
    facts.ip_forward = IpForward::Off;
    facts.data.free_files = None;
    facts.open_files = u64::MAX;
    facts.cgroups = cgroups(|cgroups| cgroups.version = CgroupVersion::Hybrid);
    let findings = judge(&facts);
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok), "{findings:?}");
    let said: Vec<String> = findings.iter().map(ToString::to_string).collect();
    for words in ["ip_forward: off; the cluster turns it on", "open files: unlimited", "an empty v2 (hybrid)"]
    {
        assert!(said.iter().any(|line| line.contains(words)), "{said:?}");
    }
}
