//! The OCI specification of a container: what it sees and what it may do. Pure; nothing here touches the host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coracle_cri::{
    ContainerConfig, ContainerUser, CriError, CriResult, ImageRunConfig, MountPropagation, SecurityContext,
};
use coracle_keeper::{CAPABILITIES_ANNOTATION, FILTER_ANNOTATION};
use serde_json::{Value, json};

/// The usual set, as containerd and Docker have it.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// By number, as in `linux/capability.h`.
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What the keeper's child needs until just before the program, to install the system call filter and to give
/// capabilities up: see `confine.rs` of the keeper.
const CAPABILITIES_TO_THE_END: &[&str] = &["SETPCAP", "SYS_ADMIN"];

const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where containers see control groups.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the process namespace of a container comes from: `None` is the node's, an empty path is a new one.
///
/// Those of the network, of the names and of communication between processes are the keeper's own, which are the
/// Pod's or the node's, so a container has them from its parent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Namespaces {
    pub(crate) pid: Option<PathBuf>,
}

/// A bind mount whose two ends have been checked.
#[derive(Debug, Clone)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) recursive_readonly: bool,
    /// Nothing in it is a device or can be executed.
    pub(crate) inert: bool,
    pub(crate) propagation: MountPropagation,
}

/// A device node of the host, for a privileged container.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What goes into a specification.
pub(crate) struct Input<'a> {
    pub(crate) config: &'a ContainerConfig,
    pub(crate) image: &'a ImageRunConfig,
    pub(crate) user: &'a ContainerUser,
    pub(crate) rootfs: &'a Path,
    pub(crate) cwd: &'a Path,
    pub(crate) hostname: &'a str,
    pub(crate) binds: &'a [Bind],
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) cgroup: &'a Path,
    pub(crate) cgroup_v2: bool,
    /// The container's group in each hierarchy of v1, by the name that it has below `/sys/fs/cgroup`.
    pub(crate) cgroup_views: &'a [(String, PathBuf)],
    /// Whether the control group keeps the container from devices that are not its own.
    pub(crate) devices_restricted: bool,
    /// Capabilities that the daemon may hand on, as a bit set.
    pub(crate) held_capabilities: u64,
    pub(crate) devices: &'a [Device],
}

/// The specification of a container.
pub(crate) fn specification(input: &Input<'_>) -> CriResult<Value> {
    let security = &input.config.security_context;
    let capabilities = held(input)?;
    let process = process(input, &arguments(input.config, input.image)?, &capabilities);
    let numbers: Vec<String> = capabilities.iter().map(usize::to_string).collect();
    let mut annotations = json!({ CAPABILITIES_ANNOTATION: numbers.join(",") });
    if !security.privileged && !security.seccomp_unconfined {
        annotations[FILTER_ANNOTATION] = "default".into();
    }
    let mut readonly = paths(security.readonly_paths.as_ref(), READONLY_PATHS);
    if !input.cgroup_views.is_empty()
        && let Some(list) = readonly.as_array_mut()
    {
        // What holds the views; they themselves are mounted so.
        list.push(CGROUP_ROOT.into());
    }
    let mut linux = json!({
        "namespaces": namespaces(input),
        "cgroupsPath": input.cgroup,
    });
    if !security.privileged {
        linux["maskedPaths"] = paths(security.masked_paths.as_ref(), MASKED_PATHS);
        linux["readonlyPaths"] = readonly;
    }
    if !input.devices.is_empty() {
        linux["devices"] = input.devices.iter().map(device).collect();
    }
    if input.binds.iter().any(|b| b.propagation == MountPropagation::Bidirectional) {
        linux["rootfsPropagation"] = "shared".into();
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        // The engine makes it read-only: the library's remount would take back that its device nodes are dead.
        "root": { "path": input.rootfs, "readonly": false },
        "mounts": mounts(input),
        "linux": linux,
        "annotations": annotations,
    }))
}

/// The process of an exec: the container's own with another command.
pub(crate) fn exec_process(specification: &Value, command: &[String], tty: bool) -> Value {
    let mut process = specification["process"].clone();
    process["args"] = command.into();
    process["terminal"] = tty.into();
    if tty && !has_env(&process, "TERM") {
        push_env(&mut process, "TERM=xterm");
    }
    process
}

fn has_env(process: &Value, name: &str) -> bool {
    let entries = process["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(Value::as_str).any(|e| e.split_once('=').is_some_and(|(n, _)| n == name))
}

fn push_env(process: &mut Value, entry: &str) {
    if let Some(env) = process["env"].as_array_mut() {
        env.push(entry.into());
    }
}

/// Program and arguments: the rules of `command` and `args` over `ENTRYPOINT` and `CMD`.
fn arguments(config: &ContainerConfig, image: &ImageRunConfig) -> CriResult<Vec<String>> {
    let (first, rest) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let arguments: Vec<String> = first.iter().chain(rest).cloned().collect();
    if arguments.is_empty() {
        return Err(CriError::InvalidArgument("no command specified".to_owned()));
    }
    Ok(arguments)
}

fn environment(input: &Input<'_>) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    let mut put = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match entries.iter_mut().find(|e| e.split('=').next() == Some(name.as_str())) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
    };
    put(DEFAULT_PATH.to_owned());
    if !input.hostname.is_empty() {
        put(format!("HOSTNAME={}", input.hostname));
    }
    if input.config.tty {
        put("TERM=xterm".to_owned());
    }
    for entry in &input.image.env {
        put(entry.clone());
    }
    for variable in &input.config.envs {
        put(format!("{}={}", variable.key, variable.value));
    }
    entries
}

/// Numbers of the capabilities that the container gets.
fn held(input: &Input<'_>) -> CriResult<BTreeSet<usize>> {
    let security = &input.config.security_context;
    let mut capabilities = capabilities(security)?;
    if !input.devices_restricted && !security.privileged && !names_capability(security, "MKNOD") {
        capabilities.remove("MKNOD");
    }
    let held = |bit: &usize| input.held_capabilities >> bit & 1 == 1;
    Ok((0..CAPABILITIES.len()).filter(held).filter(|bit| capabilities.contains(CAPABILITIES[*bit])).collect())
}

fn process(input: &Input<'_>, arguments: &[String], capabilities: &BTreeSet<usize>) -> Value {
    let security = &input.config.security_context;
    let to_the_end =
        CAPABILITIES_TO_THE_END.iter().filter_map(|name| CAPABILITIES.iter().position(|c| c == name));
    let with_those: BTreeSet<usize> = capabilities
        .iter()
        .copied()
        .chain(to_the_end.filter(|bit| input.held_capabilities >> bit & 1 == 1))
        .collect();
    let names: Vec<String> = with_those.iter().map(|bit| format!("CAP_{}", CAPABILITIES[*bit])).collect();
    let mut process = json!({
        "terminal": input.config.tty,
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": input.user.supplemental_groups,
        },
        "args": arguments,
        "env": environment(input),
        "cwd": input.cwd,
        "capabilities": {
            "bounding": names,
            "effective": names,
            "permitted": names,
            "inheritable": [],
            "ambient": [],
        },
    });
    if security.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    process
}

fn names_capability(security: &SecurityContext, name: &str) -> bool {
    security.add_capabilities.iter().any(|c| normalized(c) == name || normalized(c) == "ALL")
}

fn normalized(capability: &str) -> String {
    let upper = capability.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
}

fn capabilities(security: &SecurityContext) -> CriResult<BTreeSet<String>> {
    let all = || CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
    if security.privileged {
        return Ok(all());
    }
    let add: Vec<String> = security.add_capabilities.iter().map(|c| normalized(c)).collect();
    let drop: Vec<String> = security.drop_capabilities.iter().map(|c| normalized(c)).collect();
    if let Some(unknown) =
        add.iter().chain(&drop).find(|c| *c != "ALL" && !CAPABILITIES.contains(&c.as_str()))
    {
        return Err(CriError::InvalidArgument(format!("unknown capability \"CAP_{unknown}\"")));
    }
    let mut set: BTreeSet<String> = DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
    if add.iter().any(|c| c == "ALL") {
        set = all();
    }
    if drop.iter().any(|c| c == "ALL") {
        set.clear();
    }
    set.extend(add.into_iter().filter(|c| c != "ALL"));
    for dropped in drop {
        set.remove(&dropped);
    }
    Ok(set)
}

fn namespaces(input: &Input<'_>) -> Value {
    let mut list = vec![json!({ "type": "mount" })];
    match &input.namespaces.pid {
        Some(path) if path.as_os_str().is_empty() => list.push(json!({ "type": "pid" })),
        Some(path) => list.push(json!({ "type": "pid", "path": path })),
        None => {}
    }
    if input.cgroup_v2 {
        list.push(json!({ "type": "cgroup" }));
    }
    list.into()
}

fn mounts(input: &Input<'_>) -> Value {
    let security = &input.config.security_context;
    let sys_access = if security.privileged { "rw" } else { "ro" };
    let mut defaults = vec![
        ("/proc", "proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", vec!["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", vec!["nosuid", "noexec", "nodev", sys_access]),
    ];
    if input.cgroup_v2 {
        defaults.push((
            CGROUP_ROOT,
            "cgroup",
            "cgroup",
            vec!["nosuid", "noexec", "nodev", "relatime", sys_access],
        ));
    } else if !input.cgroup_views.is_empty() {
        let options = vec!["nosuid", "noexec", "nodev", "relatime", "mode=755", "size=64k"];
        defaults.push((CGROUP_ROOT, "tmpfs", "tmpfs", options));
    }
    let bound: BTreeSet<&Path> = input.binds.iter().map(|b| b.destination.as_path()).collect();
    let mut list: Vec<Value> = defaults
        .into_iter()
        .filter(|(destination, ..)| !bound.contains(Path::new(destination)))
        .map(|(destination, kind, source, options)| {
            json!({ "destination": destination, "type": kind, "source": source, "options": options })
        })
        .collect();
    if !bound.contains(Path::new(CGROUP_ROOT)) {
        // Not by the OCI library's own way, which mounts hierarchies writable.
        list.extend(input.cgroup_views.iter().map(|(name, group)| {
            json!({
                "destination": Path::new(CGROUP_ROOT).join(name),
                "type": "bind",
                "source": group,
                "options": ["bind", "rprivate", "nosuid", "noexec", "nodev", sys_access],
            })
        }));
    }
    // A mount point inside another mount comes after it.
    let mut binds: Vec<&Bind> = input.binds.iter().collect();
    binds.sort_by_key(|b| b.destination.components().count());
    list.extend(binds.into_iter().map(|bind| {
        let propagation = match bind.propagation {
            MountPropagation::Private => "rprivate",
            MountPropagation::HostToContainer => "rslave",
            MountPropagation::Bidirectional => "rshared",
        };
        let access = match (bind.readonly, bind.recursive_readonly) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        let mut options = vec!["rbind", propagation, access];
        if bind.inert {
            // What is not said again is taken back.
            options.extend(["nosuid", "nodev", "noexec"]);
        }
        json!({
            "destination": bind.destination,
            "type": "bind",
            "source": bind.source,
            "options": options,
        })
    }));
    list.into()
}

fn paths(given: Option<&Vec<String>>, usual: &[&str]) -> Value {
    match given {
        Some(paths) => json!(paths),
        None => json!(usual),
    }
}

fn device(device: &Device) -> Value {
    json!({
        "path": device.path,
        "type": if device.block { "b" } else { "c" },
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    })
}

#[cfg(test)]
mod tests {
    use coracle_cri::EnvVar;

    use super::*;

    fn spec(change: impl FnOnce(&mut ContainerConfig, &mut ImageRunConfig)) -> CriResult<Value> {
        let mut config = ContainerConfig { command: vec!["sh".into()], ..Default::default() };
        let mut image =
            ImageRunConfig { env: vec!["PATH=/bin".into(), "A=image".into()], ..Default::default() };
        change(&mut config, &mut image);
        specification(&Input {
            config: &config,
            image: &image,
            user: &ContainerUser::default(),
            rootfs: "/rootfs".as_ref(),
            cwd: "/".as_ref(),
            hostname: "web-0",
            binds: &[],
            namespaces: &Namespaces { pid: Some(PathBuf::new()) },
            cgroup: "/coracle/x".as_ref(),
            cgroup_v2: false,
            cgroup_views: &[],
            devices_restricted: true,
            held_capabilities: u64::MAX,
            devices: &[],
        })
    }

    fn held(spec: &Value) -> Vec<&str> {
        let list = spec["annotations"][CAPABILITIES_ANNOTATION].as_str().unwrap();
        list.split(',').map(|number| CAPABILITIES[number.parse::<usize>().unwrap()]).collect()
    }

    #[test]
    fn the_library_understands_the_specification() {
        let spec = spec(|_, _| {}).unwrap();
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec).unwrap();
        let process = parsed.process().as_ref().unwrap();
        assert_eq!(process.no_new_privileges(), None);
        assert!(process.rlimits().is_none());
        let capabilities = process.capabilities().as_ref().unwrap();
        // One more until just before the program: SETPCAP is in the usual set.
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), DEFAULT_CAPABILITIES.len() + 1);
        assert_eq!(capabilities.inheritable().as_ref().unwrap().len(), 0);
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd() {
        let args = |command: &[&str], args: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let config = ContainerConfig { command: owned(command), args: owned(args), ..Default::default() };
            let image =
                ImageRunConfig { entrypoint: owned(&["e"]), cmd: owned(&["c"]), ..Default::default() };
            arguments(&config, &image).unwrap().join(" ")
        };
        assert_eq!(args(&[], &[]), "e c");
        assert_eq!(args(&[], &["a"]), "e a");
        assert_eq!(args(&["x"], &[]), "x");
        assert_eq!(args(&["x"], &["a"]), "x a");
        let nothing = arguments(&ContainerConfig::default(), &ImageRunConfig::default());
        assert_eq!(nothing, Err(CriError::InvalidArgument("no command specified".into())));
    }

    #[test]
    fn the_container_has_the_last_word_on_the_environment() {
        let spec =
            spec(|config, _| config.envs = vec![EnvVar { key: "A".into(), value: "pod".into() }]).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOSTNAME=web-0", "A=pod"]));
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let changed = spec(|config, _| {
            config.security_context.drop_capabilities = vec!["ALL".into()];
            config.security_context.add_capabilities = vec!["NET_ADMIN".into()];
        })
        .unwrap();
        assert_eq!(held(&changed), ["NET_ADMIN"]);
        let privileged = spec(|config, _| config.security_context.privileged = true).unwrap();
        assert_eq!(held(&privileged).len(), CAPABILITIES.len());
        assert!(privileged["linux"].get("maskedPaths").is_none());
        assert!(spec(|config, _| config.security_context.add_capabilities = vec!["FLY".into()]).is_err());
    }
}
