//! A Pod that takes what it can get: processes, log space, arguments. The node and its other Pods go on.

use std::path::Path;

use coracle_cri::{ContainerConfig, EnvVar, RuntimeService};
use coracle_runtime::LogLimit;

use crate::faults::keepers;
use crate::host::{Host, container, log, output, run, shell, wait_for_exit};

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_ends_at_its_limit() {
    let host = Host::new();
    let runtime = host.open().await;
    // The Pod's limit: a container may not have one of its own.
    let mut pod = host.pod("bomb");
    pod.resources.pids_limit = Some(40);
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let script = "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; echo survived";
    let id = runtime.create_container(&sandbox, &shell(script), &pod).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let status = wait_for_exit(&runtime, &id).await;
    let lines = log(&status);
    assert!(lines.iter().any(|line| line.contains("can't fork")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("survived")), "{lines:?}");
    assert_eq!(output(&host, &runtime, &shell("sleep 0 & echo others")).await, "others\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_outside_of_its_limits() {
    let host = Host::new();
    let runtime = host.open().await;
    let pod = host.pod("lost");
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let id = runtime.create_container(&sandbox, &shell("exec sleep 1000"), &pod).await.unwrap();
    let name = host.config.cgroup_root.strip_prefix("/").unwrap();
    let group = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .map(|root| Path::new(root).join(name).join("kubepods/besteffort/podlost").join(&id.0))
        .into_iter()
        .find(|group| group.exists())
        .expect("it has a control group");
    std::fs::remove_dir(group).unwrap();
    let error = runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(error.contains("join the control group by /sys/fs/cgroup/"), "{error}");
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(128));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_too_little_to_start_with_is_told_as_such() {
    let host = Host::new();
    let runtime = host.open().await;
    let pod = host.pod("tiny");
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let mut config = shell("exec sleep 1000");
    config.resources.memory_limit_in_bytes = Some(40_000);
    let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
    let error = runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(error.contains("container init was OOM-killed (memory limit too low?)"), "{error}");
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(128));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pods_together_leave_processes_to_the_node() {
    let host = Host::new();
    let _runtime = host.open().await;
    let group = |root: &str| {
        let path = Path::new(root)
            .join(host.config.cgroup_root.strip_prefix("/").unwrap())
            .join("kubepods/pids.max");
        std::fs::read_to_string(path).ok()
    };
    let limit = group("/sys/fs/cgroup/pids").or_else(|| group("/sys/fs/cgroup")).unwrap();
    let limit: u64 = limit.trim().parse().expect("there is a limit");
    let of_machine: u64 =
        std::fs::read_to_string("/proc/sys/kernel/threads-max").unwrap().trim().parse().unwrap();
    assert!(limit <= of_machine - of_machine / 10, "{limit} of {of_machine}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_logs_takes_neither_disk_nor_memory() {
    let mut host = Host::new();
    host.config.log_limit = LogLimit { bytes: 100_000, files: 3 };
    let runtime = host.open().await;
    // Lines of all lengths, and 5 MB without any end of line.
    let script = "busybox yes 'a line that says nothing' | head -c 5000000; head -c 5000000 /dev/zero; \
                  head -c 3000000 /dev/zero >&2; exec sleep 1000";
    let id = run(&host, &runtime, &shell(script)).await;
    let pid = runtime.container_status(&id).await.unwrap().pid.unwrap();
    let written = async {
        while std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap() != "sleep\x001000\0" {
            host.clock.sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    host.clock.timeout(std::time::Duration::from_secs(60), written).await.expect("the flood ends");
    let status = runtime.container_status(&id).await.unwrap();
    let sizes: Vec<u64> = std::fs::read_dir(status.log_path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect();
    assert!(sizes.len() == 3 && sizes.iter().all(|size| *size <= 100_000), "{sizes:?}");
    let sandbox = std::fs::read_dir(host.config.run_dir.join("sandboxes")).unwrap().next().unwrap().unwrap();
    let keeper = keepers(&sandbox.path().to_string_lossy())[0];
    let memory = std::fs::read_to_string(format!("/proc/{keeper}/status")).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 8 * 1024, "the keeper took {peak} kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_to_be_executed_is_an_error_of_that_start() {
    let host = Host::new();
    let runtime = host.open().await;
    let mut pod = host.pod("large");
    pod.annotations = [("large".to_owned(), "a".repeat(1 << 20))].into();
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let long = "a".repeat(200_000);
    let variables = |count: usize| {
        let value = "v".repeat(100_000);
        (0..count).map(|n| EnvVar { key: format!("V{n}"), value: value.clone() }).collect::<Vec<_>>()
    };
    let table = [
        ("argument", ContainerConfig { args: vec![long.clone()], ..container(&["echo"]) }),
        ("variable", ContainerConfig { envs: variables(100), ..shell("true") }),
        ("program", container(&[&long])),
    ];
    for (attempt, (what, config)) in table.into_iter().enumerate() {
        let config = ContainerConfig { attempt: u32::try_from(attempt).unwrap(), ..config };
        let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
        let error = runtime.start_container(&id).await.unwrap_err().to_string();
        let reason = if what == "program" { "exec: \"aaa" } else { "argument list too long" };
        assert!(error.contains(reason) && error.len() < 8192, "{what}: {}", &error[..error.len().min(300)]);
    }
    let mut config = shell("echo ${#V7}");
    (config.attempt, config.envs) = (9, variables(8));
    config.annotations = [("large".to_owned(), "a".repeat(1 << 20))].into();
    let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let status = wait_for_exit(&runtime, &id).await;
    assert_eq!(log(&status), ["stdout F 100000"]);
    assert!(Path::new(&status.log_path).exists());
}
