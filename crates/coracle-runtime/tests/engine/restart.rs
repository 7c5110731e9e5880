//! The daemon goes, the containers stay.

use std::time::Duration;

use coracle_cri::{ContainerState, RuntimeService};
use coracle_runtime::EmbeddedRuntime;

use crate::host::{Host, block_on, run, shell, until_not_ready, wait_for_exit};

/// Runs a first daemon on a Tokio runtime of its own and then drops all of it: nothing of it is told.
pub(crate) fn first_daemon<T>(work: impl AsyncFnOnce(&EmbeddedRuntime) -> T, host: &Host) -> T {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let result = tokio.block_on(async {
        let runtime = host.open().await;
        work(&runtime).await
    });
    tokio.shutdown_background();
    result
}

#[test]
fn containers_and_their_ends_outlive_the_daemon() {
    let host = Host::new();
    let (lasting, ending) = first_daemon(
        async |runtime| {
            let lasting = run(&host, runtime, &shell("exec sleep 1000")).await;
            let gate = host.dir.path().join("gate");
            std::fs::create_dir(&gate).unwrap();
            let mut config = shell("while [ ! -e /gate/open ]; do sleep 0.01; done; exit 42");
            config.mounts = vec![coracle_cri::Mount {
                container_path: "/gate".into(),
                host_path: gate,
                readonly: false,
                recursive_readonly: false,
                image: None,
                propagation: coracle_cri::MountPropagation::Private,
            }];
            let ending = run(&host, runtime, &config).await;
            let pid = |id: coracle_cri::ContainerId| async move {
                (runtime.container_status(&id).await.unwrap().pid.unwrap(), id)
            };
            (pid(lasting).await, pid(ending).await)
        },
        &host,
    );
    std::fs::write(host.dir.path().join("gate/open"), "").unwrap();
    let record = host.config.data_dir.join("containers").join(&ending.1.0).join("exit.json");

    block_on(async {
        let written = async {
            while !record.exists() {
                host.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        host.clock.timeout(Duration::from_secs(30), written).await.expect("the keeper writes the end down");
        let runtime = host.open().await;
        let status = runtime.container_status(&ending.1).await.unwrap();
        assert_eq!(status.exit_code, Some(42));
        let status = runtime.container_status(&lasting.1).await.unwrap();
        assert_eq!(status.container.state, ContainerState::Running);
        assert_eq!(status.pid, Some(lasting.0));
        let echo = ["echo".to_owned(), "hello".to_owned()];
        assert_eq!(runtime.exec_sync(&lasting.1, &echo, None).await.unwrap().stdout, b"hello\n");
        runtime.stop_container(&lasting.1, Duration::ZERO).await.unwrap();
        assert_eq!(runtime.container_status(&lasting.1).await.unwrap().exit_code, Some(137));
        for sandbox in runtime.list_pod_sandboxes(&Default::default()).await.unwrap() {
            runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
    });
}

#[test]
fn the_content_of_an_image_stays_with_its_container_and_goes_with_it() {
    let host = Host::new();
    let (sandbox, id) = first_daemon(
        async |runtime| {
            let pod = host.pod("content");
            let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
            let mut config = shell("cat /content/etc/group");
            config.mounts = vec![coracle_cri::Mount {
                container_path: "/content".into(),
                host_path: Default::default(),
                image: Some(Default::default()),
                readonly: true,
                recursive_readonly: false,
                propagation: coracle_cri::MountPropagation::Private,
            }];
            let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
            (sandbox, id)
        },
        &host,
    );
    let mounted = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(&format!("{}-0/", id.0))).count()
    };
    block_on(async {
        let runtime = host.open().await;
        assert_eq!(mounted(), 1);
        runtime.start_container(&id).await.unwrap();
        assert_eq!(wait_for_exit(&runtime, &id).await.exit_code, Some(0));
        runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        assert_eq!(mounted(), 0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_keeper_ends_its_pod() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let pid = runtime.container_status(&id).await.unwrap().pid.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let keeper: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(keeper).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let status = wait_for_exit(&runtime, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (Some(255), "Unknown"));
    let sandboxes = runtime.list_pod_sandboxes(&Default::default()).await.unwrap();
    until_not_ready(&host, &runtime, &sandboxes[0].id).await;
    runtime.remove_pod_sandbox(&sandboxes[0].id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_pods_old_sandbox_goes_without_the_new_one() {
    let host = Host::new();
    let runtime = host.open().await;
    // Both have the control group of their Pod.
    let mut config = host.pod("again");
    let old = runtime.run_pod_sandbox(&config).await.unwrap();
    runtime.create_container(&old, &shell("exec sleep 1000"), &config).await.unwrap();
    runtime.stop_pod_sandbox(&old).await.unwrap();
    config.metadata.attempt = 1;
    let new = runtime.run_pod_sandbox(&config).await.unwrap();
    let id = runtime.create_container(&new, &shell("exec sleep 1000"), &config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    runtime.remove_pod_sandbox(&old).await.unwrap();
    assert_eq!(runtime.container_status(&id).await.unwrap().container.state, ContainerState::Running);
    let echo = ["echo".to_owned(), "here".to_owned()];
    assert_eq!(runtime.exec_sync(&id, &echo, None).await.unwrap().stdout, b"here\n");
    runtime.remove_pod_sandbox(&new).await.unwrap();
    assert_eq!(host.pod_cgroups(), Vec::<String>::new());
}
