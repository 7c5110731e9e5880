//! Processes that do not want to end, or cannot: their Pod suffers, its neighbours and the node do not.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use coracle_cri::{ContainerId, ContainerState, RuntimeService};
use coracle_runtime::EmbeddedRuntime;

use crate::host::{Host, container, output, run, shell, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

async fn says(host: &Host, runtime: &EmbeddedRuntime, id: &ContainerId, text: &str) {
    let said = async {
        loop {
            let log = runtime.container_status(id).await.unwrap().log_path;
            if std::fs::read_to_string(log).is_ok_and(|log| log.contains(text)) {
                return;
            }
            host.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    host.clock.timeout(LIMIT, said).await.expect("it says that it is up");
}

/// Process ids in a container's group, by one of the hierarchies that there are.
fn members(host: &Host, id: &ContainerId) -> Vec<String> {
    let group = group(host, id, &["pids", "unified", ""]).expect("the container has a group");
    let list = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    list.lines().map(str::to_owned).collect()
}

/// The directory of a container's group in the first of these hierarchies that has one.
fn group(host: &Host, id: &ContainerId, roots: &[&str]) -> Option<PathBuf> {
    let name = host.config.cgroup_root.strip_prefix("/").unwrap();
    let pods =
        |root: &&str| PathBuf::from("/sys/fs/cgroup").join(root).join(name).join("kubepods/besteffort");
    let entries = roots.iter().map(pods).filter_map(|pods| std::fs::read_dir(pods).ok()).flatten().flatten();
    let mut below = entries.filter_map(|pod| std::fs::read_dir(pod.path()).ok()).flatten().flatten();
    below.find(|entry| entry.file_name().to_string_lossy().contains(&id.0)).map(|entry| entry.path())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_ignores_everything_but_a_kill_is_killed_whole() {
    let host = Host::new();
    let runtime = host.open().await;
    // Three generations, one of them in a session of its own, all deaf.
    let script = "deaf() { trap '' HUP INT QUIT TERM USR1 USR2 PIPE; }; deaf; \
                  (deaf; (deaf; while :; do sleep 1000; done) & while :; do sleep 1000; done) & \
                  busybox setsid sh -c \"trap '' HUP INT QUIT TERM; echo up; while :; do sleep 1000; done\" & \
                  while :; do sleep 1000; done";
    let id = run(&host, &runtime, &shell(script)).await;
    says(&host, &runtime, &id, "up\n").await;
    let command = ["sh", "-c", "kill -TERM -1; kill -HUP -1; ps -o args | busybox grep -c '^sleep 1000'"];
    let still = runtime.exec_sync(&id, &command.map(str::to_owned), None).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&still.stdout).trim(), "4", "{still:?}");
    let before = host.clock.elapsed();
    runtime.stop_container(&id, Duration::from_millis(300)).await.unwrap();
    let took = host.clock.elapsed() - before;
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(137));
    let empty = async { while !members(&host, &id).is_empty() {} };
    host.clock.timeout(LIMIT, empty).await.expect("nothing is left of it");
}

/// A program that makes a child by `vfork`, which waits for ever: so does its parent then, in the kernel.
#[cfg(target_arch = "x86_64")]
fn stuck_in_vfork() -> Vec<u8> {
    // vfork(); for (;;) pause();
    let code = [0xb8, 58, 0, 0, 0, 0x0f, 0x05, 0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    let (base, head) = (0x40_0000u64, 64 + 56);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2u16, 62] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1u32.to_le_bytes());
    for word in [base + head, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    // One loadable segment, readable and executable: the whole file.
    let length = head + code.len() as u64;
    for half in [1u32, 5] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    for word in [0, base, base, length, length, 0x1000] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&code);
    elf
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_waits_in_the_kernel_for_its_child_is_killed_after_its_grace() {
    let host = Host::new();
    let program = host.image().join("bin/stuck");
    std::fs::write(&program, stuck_in_vfork()).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &container(&["/bin/stuck"])).await;
    let states = || -> Vec<char> {
        let pids = members(&host, &id);
        let stats = pids.iter().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
    };
    let waits = async {
        while !(states().contains(&'D') && states().contains(&'S')) {
            host.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(host.clock.timeout(LIMIT, waits).await.is_some(), "{:?}", states());

    // Commands run beside it, and its neighbours come and go.
    let beside = runtime.exec_sync(&id, &["echo".to_owned(), "here".to_owned()], None).await.unwrap();
    assert_eq!(beside.stdout, b"here\n");
    assert_eq!(output(&host, &runtime, &shell("echo neighbour")).await, "neighbour\n");
    let before = host.clock.elapsed();
    runtime.stop_container(&id, Duration::from_millis(200)).await.unwrap();
    assert!(host.clock.elapsed() - before < Duration::from_secs(20));
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(137));
}

/// Lets a frozen group go on, whatever becomes of the test.
struct Frozen {
    file: PathBuf,
    thaw: &'static str,
}

impl Frozen {
    fn freeze(host: &Host, id: &ContainerId) -> Self {
        let frozen = match group(host, id, &["freezer"]) {
            Some(v1) => Frozen { file: v1.join("freezer.state"), thaw: "THAWED" },
            None => {
                Frozen { file: group(host, id, &["", "unified"]).unwrap().join("cgroup.freeze"), thaw: "0" }
            }
        };
        std::fs::write(&frozen.file, if frozen.thaw == "0" { "1" } else { "FROZEN" }).unwrap();
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.file, self.thaw);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_no_kill_reaches_holds_up_nobody_else() {
    let host = Host::new();
    let runtime = host.open().await;
    let pod = host.pod("cold");
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let start = async |name: &str| {
        let config = coracle_cri::ContainerConfig {
            name: name.to_owned(),
            log_path: format!("{name}/0.log").into(),
            ..shell("echo up; exec sleep 1000")
        };
        let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        says(&host, &runtime, &id, "up\n").await;
        id
    };
    let (stuck, sibling) = (start("stuck").await, start("sibling").await);
    let frozen = Frozen::freeze(&host, &stuck);
    // Only the older form of groups keeps a kill from what is frozen in it.
    let unreachable = frozen.thaw == "THAWED";

    let stop = runtime.stop_container(&stuck, Duration::ZERO);
    let beside = async {
        let ran = runtime.exec_sync(&sibling, &["echo".to_owned(), "here".to_owned()], None).await.unwrap();
        assert_eq!(ran.stdout, b"here\n", "its sibling is served");
        runtime.stop_container(&sibling, Duration::ZERO).await.unwrap();
        assert_eq!(output(&host, &runtime, &shell("echo neighbour")).await, "neighbour\n");
        if unreachable {
            let state = runtime.container_status(&stuck).await.unwrap().container.state;
            assert_eq!(state, ContainerState::Running, "what is not over is not said to be");
        }
        drop(frozen);
    };
    let both = async { tokio::join!(stop, beside) };
    let (stopped, ()) = host.clock.timeout(LIMIT, both).await.expect("nothing hangs");
    stopped.unwrap();
    let ended = wait_for(&runtime, &stuck, "its end", |status| status.exit_code.is_some()).await;
    assert_eq!(ended.exit_code, Some(137));
}
