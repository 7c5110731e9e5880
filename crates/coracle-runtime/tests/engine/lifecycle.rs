//! Run, log, end, stop, remove.

use std::time::Duration;

use coracle_cri::{
    ContainerConfig, ContainerFilter, ContainerState, CriError, EnvVar, ImageContent, Mount,
    MountPropagation, NamespaceMode, NamespaceOptions, PodSandboxState, RuntimeService,
};
use coracle_runtime::LogLimit;

use crate::host::{Host, container, log, output, run, shell, wait_for_exit};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_and_ends() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("echo one; echo two >&2; printf three; exit 3")).await;
    let status = wait_for_exit(&runtime, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (Some(3), "Error"));
    assert!(status.started_at.unwrap() <= status.finished_at.unwrap());
    let mut lines = log(&status);
    lines.sort();
    assert_eq!(lines, ["stderr F two", "stdout F one", "stdout P three"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_does_not_grow_without_end() {
    let mut host = Host::new();
    host.config.log_limit = LogLimit { bytes: 8192, files: 3 };
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done")).await;
    let status = wait_for_exit(&runtime, &id).await;
    let mut logs: Vec<_> = std::fs::read_dir(status.log_path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    logs.sort();
    // The name of the newest is a prefix of the others'.
    logs.rotate_left(1);
    assert_eq!(logs.len(), 3, "{logs:?}");
    let mut numbers = Vec::new();
    for path in &logs {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.len() <= 8192 && !text.is_empty(), "{}", path.display());
        numbers.extend(text.lines().map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()));
    }
    let first = numbers[0];
    assert_eq!(numbers, (first..2000).collect::<Vec<_>>(), "nothing is lost of what is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_sees() {
    let host = Host::new();
    let runtime = host.open().await;
    let volume = host.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "from the volume\n").unwrap();
    let mut config = shell(
        "hostname; cat /etc/hostname; echo $A; readlink /proc/self; cat /data/file; touch /data/x 2>/dev/null || echo readonly; \
         id -u; id -g; ls /proc/self/fd | head -n 9; cat /proc/sys/kernel/random/uuid >/dev/null; echo x > /dev/shm/x; \
         touch /proc/sys/x 2>/dev/null || echo masked; ls /sys/class/net",
    );
    config.envs = vec![EnvVar { key: "A".into(), value: "b c".into() }];
    config.security_context.run_as_user = Some(101);
    config.mounts = vec![Mount {
        container_path: "/data".into(),
        host_path: volume,
        readonly: true,
        recursive_readonly: false,
        image: None,
        propagation: MountPropagation::Private,
    }];
    let text = output(&host, &runtime, &config).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], lines[1], "{text}");
    assert_eq!(&lines[2..8], ["b c", "4", "from the volume", "readonly", "101", "102"], "{text}");
    // 3 is the directory that `ls` reads.
    assert_eq!(&lines[8..12], ["0", "1", "2", "3"], "no descriptor of the engine leaks: {text}");
    assert_eq!(&lines[12..], ["masked", "lo"], "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_content_of_an_image_can_be_read_and_nothing_else() {
    let host = Host::new();
    std::os::unix::fs::symlink("/etc/passwd", host.image().join("root/link")).unwrap();
    let runtime = host.open().await;
    let content = |path: &str, sub_path: &str| Mount {
        container_path: path.into(),
        host_path: std::path::PathBuf::new(),
        image: Some(ImageContent { image: Default::default(), sub_path: sub_path.into() }),
        readonly: true,
        recursive_readonly: false,
        propagation: MountPropagation::Private,
    };
    let mut config = shell(
        "cat /content/etc/group; cat /part/passwd; cat /file; touch /content/x 2>/dev/null || echo unchanged; \
         /content/bin/busybox true 2>/dev/null || echo inert; busybox grep -c ' /content .*nosuid,nodev,noexec' /proc/mounts",
    );
    config.mounts = vec![content("/content", ""), content("/part", "etc"), content("/file", "root/link")];
    let text = output(&host, &runtime, &config).await;
    let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n";
    let expected = format!("root:x:0:\nweb:x:102:\n{passwd}{passwd}unchanged\ninert\n1\n");
    assert_eq!(text, expected);

    let pod = host.pod("missing");
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    config.mounts = vec![content("/content", "no/such/part")];
    let refused = runtime.create_container(&sandbox, &config, &pod).await.unwrap_err().to_string();
    assert!(refused.contains("failed to find \"no/such/part\" in the content of an image"), "{refused}");
    runtime.remove_pod_sandbox(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_an_error_of_the_start() {
    let host = Host::new();
    let runtime = host.open().await;
    let pod = host.pod("nope");
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    for (name, command, message) in [
        ("a", "nope", "exec: \"nope\": executable file not found in $PATH"),
        ("b", "/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("c", "/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ] {
        let config = ContainerConfig { name: name.into(), ..container(&[command]) };
        let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
        let error = runtime.start_container(&id).await.unwrap_err();
        assert_eq!(error, CriError::Internal(message.into()));
        let status = runtime.container_status(&id).await.unwrap();
        assert_eq!(status.container.state, ContainerState::Exited);
        assert_eq!((status.exit_code, status.reason.as_str()), (Some(128), "StartError"));
        assert_eq!(status.message, message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_asks_first_and_a_shorter_grace_wins() {
    let host = Host::new();
    let runtime = host.open().await;
    let polite =
        run(&host, &runtime, &shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"))
            .await;
    while log(&runtime.container_status(&polite).await.unwrap()).is_empty() {
        host.clock.sleep(Duration::from_millis(5)).await;
    }
    runtime.stop_container(&polite, Duration::from_secs(60)).await.unwrap();
    let status = runtime.container_status(&polite).await.unwrap();
    assert_eq!(status.exit_code, Some(7), "{:?}", log(&status));

    let deaf =
        run(&host, &runtime, &shell("trap 'echo asked' TERM; echo up; while :; do sleep 0.05; done")).await;
    let lines = async |wanted: usize| {
        while log(&runtime.container_status(&deaf).await.unwrap()).len() < wanted {
            host.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    lines(1).await;
    let before = host.clock.elapsed();
    let long = runtime.stop_container(&deaf, Duration::from_secs(600));
    let short = async {
        // The long one has asked, and waits.
        lines(2).await;
        runtime.stop_container(&deaf, Duration::from_millis(50)).await
    };
    let (long, short) = futures::join!(long, short);
    long.unwrap();
    short.unwrap();
    assert!(host.clock.elapsed() - before < Duration::from_secs(60));
    let status = runtime.container_status(&deaf).await.unwrap();
    assert_eq!(status.exit_code, Some(137));
    assert_eq!(log(&status).len(), 2, "it is asked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_stopped_with_the_signal_that_it_asks_for() {
    let host = Host::new();
    let runtime = host.open().await;
    let traps = "trap 'exit 5' TERM; trap 'exit 6' USR1; echo up; while :; do sleep 0.05; done";
    for (signal, code) in [("", 5), ("SIGUSR1", 6)] {
        let id = run(&host, &runtime, &ContainerConfig { stop_signal: signal.into(), ..shell(traps) }).await;
        while log(&runtime.container_status(&id).await.unwrap()).is_empty() {
            host.clock.sleep(Duration::from_millis(5)).await;
        }
        runtime.stop_container(&id, Duration::from_secs(60)).await.unwrap();
        assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(code), "{signal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_exit_of_a_fast_program_is_lost() {
    let host = Host::new();
    let runtime = host.open().await;
    let pod = host.pod("fast");
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    for attempt in 0..200 {
        let config = ContainerConfig {
            attempt,
            log_path: format!("main/{attempt}.log").into(),
            ..shell(&format!("echo {attempt}; exit {}", attempt % 7))
        };
        let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        let status = wait_for_exit(&runtime, &id).await;
        assert_eq!(status.exit_code, Some((attempt % 7).cast_signed()));
        assert_eq!(log(&status), [format!("stdout F {attempt}")]);
        runtime.remove_container(&id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_over_the_limit_is_told_as_such() {
    let host = Host::new();
    let runtime = host.open().await;
    // The shell takes what it reads without a line end into memory.
    let mut config =
        shell("x=$(dd if=/dev/zero bs=1M count=200 2>/dev/null | busybox tr '\\0' a); echo survived");
    config.resources.memory_limit_in_bytes = Some(32 << 20);
    let id = run(&host, &runtime, &config).await;
    let status = wait_for_exit(&runtime, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (Some(137), "OOMKilled"), "{:?}", log(&status));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_killed_for_memory_is_told_of_when_the_container_ends() {
    let host = Host::new();
    let runtime = host.open().await;
    let hungry = "x=$(dd if=/dev/zero bs=1M count=200 2>/dev/null | busybox tr '\\0' a)";
    let mut config = shell(&format!("(sh -c \"{hungry}\"); echo child $?; exit 3"));
    config.resources.memory_limit_in_bytes = Some(32 << 20);
    let id = run(&host, &runtime, &config).await;
    let status = wait_for_exit(&runtime, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (Some(3), "OOMKilled"), "{:?}", log(&status));
    assert!(log(&status).contains(&"stdout F child 137".to_owned()), "{:?}", log(&status));
}

#[tokio::test(flavor = "multi_thread")]
async fn making_is_idempotent_and_removing_leaves_nothing() {
    let host = Host::new();
    let runtime = host.open().await;
    let pod = host.pod("twice");
    let (a, b) = futures::join!(runtime.run_pod_sandbox(&pod), runtime.run_pod_sandbox(&pod));
    let sandbox = a.unwrap();
    assert_eq!(sandbox, b.unwrap());
    let config = shell("while :; do sleep 1; done");
    let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
    assert_eq!(id, runtime.create_container(&sandbox, &config, &pod).await.unwrap());
    runtime.start_container(&id).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    let status = runtime.pod_sandbox_status(&sandbox).await.unwrap();
    assert_eq!(status.sandbox.state, PodSandboxState::NotReady);
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(137));
    runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    assert!(matches!(runtime.container_status(&id).await, Err(CriError::NotFound(_))));
    assert!(runtime.list_containers(&ContainerFilter::default()).await.unwrap().is_empty());
    let leftovers: Vec<String> = host.leftovers().into_iter().filter(|l| !l.starts_with("cgroup")).collect();
    assert!(leftovers.is_empty(), "{leftovers:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_process_namespace_shows_the_others() {
    let host = Host::new();
    let runtime = host.open().await;
    let mut pod = host.pod("shared");
    pod.namespaces.pid = NamespaceMode::Pod;
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let mut ids = Vec::new();
    for (name, script) in [
        ("a", "exec sleep 4321"),
        ("b", "cat /proc/[0-9]*/cmdline | busybox tr '\\0' ' '; echo; sleep 4322 &"),
    ] {
        let mut config = shell(script);
        config.name = name.into();
        config.log_path = format!("{name}.log").into();
        config.security_context.namespaces.pid = NamespaceMode::Pod;
        let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        ids.push(id);
    }
    let status = wait_for_exit(&runtime, &ids[1]).await;
    assert!(log(&status)[0].contains("sleep 4321"), "{:?}", log(&status));
    runtime.remove_pod_sandbox(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_have_the_namespaces_of_the_node() {
    let host = Host::new();
    let runtime = host.open().await;
    let mut pod = host.pod("node");
    let node = || NamespaceMode::Node;
    pod.namespaces = NamespaceOptions { network: node(), pid: node(), ipc: node() };
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    assert_eq!(runtime.pod_sandbox_status(&sandbox).await.unwrap().ips, Vec::<std::net::IpAddr>::new());
    let mut config =
        shell("for n in net uts ipc pid; do readlink /proc/self/ns/$n; done; sleep 4323 & sleep 4324 &");
    config.security_context.namespaces = pod.namespaces.clone();
    let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let status = wait_for_exit(&runtime, &id).await;
    let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let expected: Vec<_> = ["net", "uts", "ipc", "pid"].map(|name| format!("stdout F {}", own(name))).into();
    assert_eq!(log(&status), expected);
    runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    let left = std::process::Command::new("pgrep").args(["-f", "sleep 432[34]"]).output().unwrap();
    assert!(left.stdout.is_empty(), "processes of the container that lost their parent are gone, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_at_once() {
    let host = Host::new();
    let runtime = host.open().await;
    let configs: Vec<_> = (0..40).map(|_| shell("echo here; exec sleep 1000")).collect();
    let ids = futures::future::join_all(configs.iter().map(|config| run(&host, &runtime, config))).await;
    for id in &ids {
        assert_eq!(runtime.container_status(id).await.unwrap().container.state, ContainerState::Running);
    }
    let sandboxes = runtime.list_pod_sandboxes(&coracle_cri::PodSandboxFilter::default()).await.unwrap();
    assert_eq!(sandboxes.len(), 40);
    let removed =
        futures::future::join_all(sandboxes.iter().map(|s| runtime.remove_pod_sandbox(&s.id))).await;
    assert!(removed.iter().all(Result::is_ok), "{removed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_its_own_control_group_and_cannot_change_it() {
    let host = Host::new();
    let runtime = host.open().await;
    let limit = if std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    } else {
        "/sys/fs/cgroup/memory.max"
    };
    let mut config = shell(&format!(
        "cat {limit}; echo 50000000 > {limit} || echo kept; touch /sys/fs/cgroup/x || echo kept; cat {limit}"
    ));
    config.resources.memory_limit_in_bytes = Some(64 << 20);
    assert_eq!(output(&host, &runtime, &config).await, "67108864\nkept\nkept\n67108864\n");
}
