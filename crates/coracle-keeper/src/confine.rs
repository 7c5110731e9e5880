//! The last steps before a container's program: the system call filter, and only then the last capabilities.
//!
//! A filter can be installed with `CAP_SYS_ADMIN` or with no way to new privileges. The latter is the Pod's to
//! choose, so the OCI library is told to leave two capabilities more than the container gets; they are given up
//! here, after the filter is in place and before anything of the container runs.
//!
//! The filter refuses what the default profiles of Docker and containerd refuse: calls that reach the kernel
//! beyond namespaces, unless the container was given the capability that they are for. Calls that are newer
//! than this list do not exist (`ENOSYS`), so that programs fall back to older ones.

use std::collections::BTreeSet;
use std::io;

use libcontainer::oci_spec::runtime::Spec;

/// Annotation of a specification with the capabilities that the container really gets, by number, with commas.
const CAPABILITIES: &str = coracle_keeper::CAPABILITIES_ANNOTATION;
/// Annotation of a specification that wants the default filter.
const FILTER: &str = coracle_keeper::FILTER_ANNOTATION;

const DAC_READ_SEARCH: u8 = 2;
const SYS_MODULE: u8 = 16;
const SYS_RAWIO: u8 = 17;
const SYS_PTRACE: u8 = 19;
const SYS_PACCT: u8 = 20;
const SYS_ADMIN: u8 = 21;
const SYS_BOOT: u8 = 22;
const SYS_NICE: u8 = 23;
const SYS_TIME: u8 = 25;
const SYS_TTY_CONFIG: u8 = 26;
const SYSLOG: u8 = 34;
const PERFMON: u8 = 38;
const BPF: u8 = 39;

/// Calls that are refused, and the capabilities each of which allows them; none allows those with an empty list.
const REFUSED: &[(&[libc::c_long], &[u8])] = &[
    (
        &[
            libc::SYS_add_key,
            libc::SYS_keyctl,
            libc::SYS_request_key,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_pivot_root,
            libc::SYS_nfsservctl,
        ],
        &[],
    ),
    #[cfg(target_arch = "x86_64")]
    (&[libc::SYS__sysctl, libc::SYS_sysfs, libc::SYS_uselib, libc::SYS_ustat, libc::SYS_vserver], &[]),
    (
        &[
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_lookup_dcookie,
        ],
        &[SYS_ADMIN],
    ),
    (&[libc::SYS_bpf], &[SYS_ADMIN, BPF]),
    (&[libc::SYS_perf_event_open], &[SYS_ADMIN, PERFMON]),
    (&[libc::SYS_syslog], &[SYS_ADMIN, SYSLOG]),
    (&[libc::SYS_open_by_handle_at], &[DAC_READ_SEARCH]),
    (&[libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module], &[SYS_MODULE]),
    #[cfg(target_arch = "x86_64")]
    (&[libc::SYS_iopl, libc::SYS_ioperm], &[SYS_RAWIO]),
    (&[libc::SYS_kcmp, libc::SYS_pidfd_getfd], &[SYS_PTRACE]),
    (&[libc::SYS_acct], &[SYS_PACCT]),
    (&[libc::SYS_reboot, libc::SYS_kexec_load, libc::SYS_kexec_file_load], &[SYS_BOOT]),
    (
        &[
            libc::SYS_get_mempolicy,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_set_mempolicy_home_node,
            libc::SYS_migrate_pages,
            libc::SYS_move_pages,
        ],
        &[SYS_NICE],
    ),
    (&[libc::SYS_settimeofday, libc::SYS_clock_settime], &[SYS_TIME]),
    (&[libc::SYS_vhangup], &[SYS_TTY_CONFIG]),
];

/// The latest call that this list has an opinion on (`mseal`, Linux 6.10).
const LAST_KNOWN: u32 = 462;

/// `CLONE_NEW*`: new namespaces of any kind.
const NEW_NAMESPACES: u32 = 0x7E02_0000;
/// Personalities that change nothing that matters: Linux, Linux32, both with old uname, and asking.
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Filters and gives up, as the specification says. One without annotations is left as the library made it.
pub(crate) fn confine(spec: &Spec) -> io::Result<()> {
    let annotations = spec.annotations().clone().unwrap_or_default();
    let Some(list) = annotations.get(CAPABILITIES) else { return Ok(()) };
    let kept: BTreeSet<u8> = list.split(',').filter_map(|number| number.parse().ok()).collect();
    if annotations.contains_key(FILTER) {
        install(&filter(&kept))?;
    }
    give_up(&kept)
}

struct Program(Vec<libc::sock_filter>);

impl Program {
    fn load(&mut self, offset: u32) {
        self.0.push(instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset));
    }
    fn give(&mut self, action: u32) {
        self.0.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action));
    }
    /// Gives `action` if the comparison holds, and goes on behind otherwise.
    fn give_if(&mut self, comparison: u32, value: u32, action: u32) {
        self.0.push(instruction(libc::BPF_JMP | comparison | libc::BPF_K, 0, 1, value));
        self.give(action);
    }
    /// Runs `body` for one call only.
    fn for_call(&mut self, call: libc::c_long, body: impl FnOnce(&mut Program)) {
        let mut inner = Program(Vec::new());
        body(&mut inner);
        let skip = u8::try_from(inner.0.len()).expect("the bodies below are short");
        self.0.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, number(call)));
        self.0.extend(inner.0);
    }
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("codes have 16 bits"), jt, jf, k }
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("numbers of system calls are small")
}

/// The default filter for a container with these capabilities.
fn filter(capabilities: &BTreeSet<u8>) -> Vec<libc::sock_filter> {
    // Offsets in `struct seccomp_data`; arguments are little-endian 64-bit numbers.
    let (nr, arch, argument) = (0, 4, 16);
    let errno = |error: libc::c_int| libc::SECCOMP_RET_ERRNO | error.cast_unsigned();
    let (denied, unknown) = (errno(libc::EPERM), errno(libc::ENOSYS));
    let mut program = Program(Vec::new());

    program.load(arch);
    // Another architecture's numbers mean other calls.
    program.0.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, ARCHITECTURE));
    program.give(unknown);
    program.load(nr);
    program.give_if(libc::BPF_JGT, LAST_KNOWN, unknown);
    for (calls, allowed_by) in REFUSED {
        if !allowed_by.iter().any(|capability| capabilities.contains(capability)) {
            for call in *calls {
                program.give_if(libc::BPF_JEQ, number(*call), denied);
            }
        }
    }
    if !capabilities.contains(&SYS_ADMIN) {
        program.for_call(libc::SYS_clone, |body| {
            body.load(argument);
            body.give_if(libc::BPF_JSET, NEW_NAMESPACES, denied);
            body.give(libc::SECCOMP_RET_ALLOW);
        });
        // Its flags are in memory, where a filter cannot look; without it libraries use `clone`.
        program.give_if(libc::BPF_JEQ, number(libc::SYS_clone3), unknown);
    }
    program.for_call(libc::SYS_personality, |body| {
        body.load(argument);
        for allowed in PERSONALITIES {
            body.give_if(libc::BPF_JEQ, *allowed, libc::SECCOMP_RET_ALLOW);
        }
        body.give(denied);
    });
    program.for_call(libc::SYS_socket, |body| {
        body.load(argument);
        body.give_if(libc::BPF_JEQ, libc::AF_VSOCK.cast_unsigned(), denied);
        body.give(libc::SECCOMP_RET_ALLOW);
    });
    program.give(libc::SECCOMP_RET_ALLOW);
    program.0
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads the program, which outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0usize, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Leaves the capabilities in `kept` and no others, in every set.
fn give_up(kept: &BTreeSet<u8>) -> io::Result<()> {
    for capability in 0u8..64 {
        if kept.contains(&capability) {
            continue;
        }
        // SAFETY: a plain system call on numbers.
        let held = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
        if held < 0 {
            // The kernel knows no capability of this number, nor of a higher one.
            break;
        }
        // SAFETY: likewise.
        let dropped = |bit| unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(bit), 0, 0, 0) };
        if held == 1 && dropped(capability) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let mut data = [CapabilityData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    for capability in kept.iter().filter(|capability| **capability < 64) {
        let word = &mut data[usize::from(capability / 32)];
        word.permitted |= 1 << (capability % 32);
        word.effective = word.permitted;
    }
    // `_LINUX_CAPABILITY_VERSION_3`: two words of each set.
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    // SAFETY: the kernel reads one header and two words of data, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn verdict(filter: &[libc::sock_filter], call: libc::c_long, argument: u64) -> u32 {
        let word = |offset: u32| match offset {
            0 => number(call),
            4 => ARCHITECTURE,
            16 => u32::try_from(argument & 0xffff_ffff).unwrap(),
            _ => panic!("no such word"),
        };
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let step = filter[at];
            at += 1;
            let code = u32::from(step.code);
            let holds = match code {
                c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    accumulator = word(step.k);
                    continue;
                }
                c if c == libc::BPF_RET | libc::BPF_K => return step.k,
                c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => accumulator == step.k,
                c if c == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => accumulator > step.k,
                c if c == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => accumulator & step.k != 0,
                other => panic!("unexpected code {other}"),
            };
            at += usize::from(if holds { step.jt } else { step.jf });
        }
    }

    #[test]
    fn the_filter_refuses_what_reaches_beyond_namespaces() {
        let plain = filter(&BTreeSet::new());
        let allow = libc::SECCOMP_RET_ALLOW;
        let denied = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
        let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
        for (call, argument, expected) in [
            (libc::SYS_read, 0, allow),
            (libc::SYS_execve, 0, allow),
            (libc::SYS_mount, 0, denied),
            (libc::SYS_keyctl, 0, denied),
            (libc::SYS_clone, libc::CLONE_NEWUSER as u64, denied),
            (libc::SYS_clone, (libc::CLONE_VM | libc::SIGCHLD) as u64, allow),
            (libc::SYS_clone3, 0, unknown),
            (libc::SYS_personality, 0xffff_ffff, allow),
            (libc::SYS_personality, 0x0004_0000, denied),
            (libc::SYS_socket, libc::AF_INET as u64, allow),
            (libc::SYS_socket, libc::AF_VSOCK as u64, denied),
            (9999, 0, unknown),
        ] {
            assert_eq!(verdict(&plain, call, argument), expected, "call {call} with {argument:#x}");
        }
        let admin = filter(&[SYS_ADMIN].into());
        for call in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_unshare] {
            assert_eq!(verdict(&admin, call, 0), allow, "call {call}");
        }
        assert_eq!(verdict(&admin, libc::SYS_keyctl, 0), denied);
    }
}
