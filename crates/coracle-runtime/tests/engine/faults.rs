//! Keepers that are silent, hang up, die between steps, cannot write, or say what nobody understands.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri::{
    ContainerId, ContainerState, CriError, CriResult, PodNetwork, PodNetworkRequest, PodNetworkStatus,
    PodSandboxId, PodSandboxState, RuntimeService,
};
use coracle_keeper::{Envelope, ExitRecord, PROTOCOL_VERSION, Reply, Request, SOCKET_FILE, wire};
use coracle_runtime::Patience;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use crate::host::{Host, block_on, run, sandbox_state, shell, until_not_ready, wait_for, wait_for_exit};
use crate::restart::first_daemon;

/// A keeper whose answers are the test's. It takes the place of the true one, which goes on unheard.
struct Scripted {
    requests: mpsc::UnboundedReceiver<(Request, OwnedFd)>,
    stop: Arc<OwnedFd>,
}

impl Scripted {
    fn at(run: &Path) -> Self {
        std::fs::remove_file(run.join(SOCKET_FILE)).unwrap();
        let dir = std::fs::File::open(run).unwrap();
        // The path itself is too long for an address.
        let address = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd());
        let flags = SocketFlags::CLOEXEC;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(address).unwrap()).unwrap();
        rustix::net::listen(&listener, 64).unwrap();
        let stop = Arc::new(listener);
        let (sender, requests) = mpsc::unbounded_channel();
        let listener = Arc::clone(&stop);
        std::thread::spawn(move || {
            while let Ok(socket) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
                if let Ok(Some((envelope, _))) = wire::receive::<Envelope>(&socket)
                    && sender.send((envelope.request, socket)).is_err()
                {
                    return;
                }
            }
        });
        Scripted { requests, stop }
    }

    async fn next(&mut self, host: &Host) -> (Request, OwnedFd) {
        let next = host.clock.timeout(Duration::from_secs(60), self.requests.recv()).await;
        next.expect("the engine asks").expect("the listener lives")
    }

    /// Answers a subscription.
    async fn subscribed(&mut self, host: &Host, running: &[&str]) -> OwnedFd {
        let (request, socket) = self.next(host).await;
        assert_eq!(request, Request::Subscribe);
        say(&socket, &hello(running));
        socket
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.stop, rustix::net::Shutdown::Both);
    }
}

fn say(socket: &OwnedFd, reply: &Reply) {
    wire::send(socket, reply, &[]).unwrap();
}

fn hello(running: &[&str]) -> Reply {
    let running = running.iter().map(|&id| id.to_owned()).collect();
    Reply::Hello { version: PROTOCOL_VERSION, pid: 1, running }
}

fn exited(id: &str, exit_code: i32) -> Reply {
    let record = ExitRecord { exit_code, finished_at: 1, ..Default::default() };
    Reply::Exited { container: id.to_owned(), record: Some(record) }
}

/// Runs a container under a first daemon that goes: its id, and its sandbox.
fn left_running(host: &Host, script: &str) -> (ContainerId, PodSandboxId) {
    first_daemon(
        async |runtime| {
            let id = run(host, runtime, &shell(script)).await;
            (id, runtime.list_pod_sandboxes(&Default::default()).await.unwrap()[0].id.clone())
        },
        host,
    )
}

/// Processes that have the sandbox's run directory as an argument: its keeper.
pub(crate) fn keepers(run: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if cmdline.trim_end_matches('\0').ends_with(run) && !run.is_empty() {
            found.extend(entry.file_name().to_string_lossy().parse::<i32>());
        }
    }
    found
}

#[test]
fn a_keeper_takes_nothing_of_which_a_user_has_few() {
    let host = Host::new();
    let (_, sandbox) = left_running(&host, "exec sleep 1000");
    let run = host.config.run_dir.join("sandboxes").join(&sandbox.0);
    let keeper = keepers(&run.display().to_string())[0];
    let open = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().flatten();
    let open: Vec<_> = open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
    assert!(open.iter().any(|fd| fd.ends_with("anon_inode:[timerfd]")), "{open:?}");
    assert!(!open.iter().any(|fd| fd.ends_with("anon_inode:inotify")), "128 Pods would take all: {open:?}");
}

#[test]
fn a_keeper_whose_directory_is_taken_away_ends() {
    let host = Host::new();
    let (_, sandbox) = left_running(&host, "exec sleep 1000");
    let run = host.config.run_dir.join("sandboxes").join(&sandbox.0);
    let keeper = keepers(&run.display().to_string())[0];
    block_on(async {
        std::fs::rename(&run, run.with_extension("away")).unwrap();
        let gone = async {
            while std::fs::read_to_string(format!("/proc/{keeper}/cmdline"))
                .is_ok_and(|line| !line.is_empty())
            {
                host.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        let gone = host.clock.timeout(Duration::from_secs(30), gone).await;
        std::fs::rename(run.with_extension("away"), &run).unwrap();
        assert!(gone.is_some(), "it runs on for nobody");
    });
}

#[test]
fn an_end_that_cannot_be_written_down_is_told_all_the_same() {
    let host = Host::new();
    let id = first_daemon(
        async |runtime| {
            let id =
                run(&host, runtime, &shell("while [ ! -e /tmp/open ]; do sleep 0.01; done; exit 42")).await;
            // A directory in the way of the file, as a disk that takes nothing.
            std::fs::create_dir(blocker(&host, &id)).unwrap();
            let open = ["touch".to_owned(), "/tmp/open".to_owned()];
            runtime.exec_sync(&id, &open, None).await.unwrap();
            assert_eq!(wait_for_exit(runtime, &id).await.exit_code, Some(42));
            id
        },
        &host,
    );
    block_on(async {
        let runtime = host.open().await;
        assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(42), "the keeper remembers");
        std::fs::remove_dir(blocker(&host, &id)).unwrap();
        let record = host.config.data_dir.join("containers").join(&id.0).join("exit.json");
        let written = async {
            while !record.exists() {
                host.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        host.clock.timeout(Duration::from_secs(30), written).await.expect("it is written when it can be");
        let sandbox = runtime.list_pod_sandboxes(&Default::default()).await.unwrap()[0].id.clone();
        runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    });
}

fn blocker(host: &Host, id: &ContainerId) -> std::path::PathBuf {
    host.config.data_dir.join("containers").join(&id.0).join(".exit.json.new")
}

#[test]
fn a_container_that_its_keeper_does_not_know_has_ended() {
    let host = Host::new();
    let (id, sandbox) = left_running(&host, "exec sleep 1000");
    let mut keeper = Scripted::at(&host.config.run_dir.join("sandboxes").join(&sandbox.0));
    block_on(async {
        let (runtime, _events) = futures::join!(host.open(), keeper.subscribed(&host, &[]));
        let status = runtime.container_status(&id).await.unwrap();
        assert_eq!((status.container.state, status.exit_code), (ContainerState::Exited, Some(255)));
        runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    });
}

#[test]
fn a_launch_that_fails_over_a_restart_ends_the_container() {
    let host = Host::new();
    let (id, sandbox) = first_daemon(
        async |runtime| {
            let pod = host.pod("p");
            let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
            (runtime.create_container(&sandbox, &shell("true"), &pod).await.unwrap(), sandbox)
        },
        &host,
    );
    let mut keeper = Scripted::at(&host.config.run_dir.join("sandboxes").join(&sandbox.0));
    block_on(async {
        let running = [id.0.as_str()];
        let (runtime, events) = futures::join!(host.open(), keeper.subscribed(&host, &running));
        wait_for(&runtime, &id, "being started", |s| s.container.state == ContainerState::Running).await;
        let record = ExitRecord {
            exit_code: 128,
            finished_at: 1,
            start_error: Some("no such file".into()),
            ..Default::default()
        };
        say(&events, &Reply::Exited { container: id.0.clone(), record: Some(record) });
        let status = wait_for_exit(&runtime, &id).await;
        assert_eq!((status.reason.as_str(), status.message.as_str()), ("StartError", "no such file"));
    });
}

#[test]
fn an_unknown_answer_or_a_hang_up_is_not_a_death() {
    let host = Host::new();
    let (id, sandbox) = left_running(&host, "exec sleep 1000");
    let mut keeper = Scripted::at(&host.config.run_dir.join("sandboxes").join(&sandbox.0));
    block_on(async {
        let running = [id.0.as_str()];
        let (runtime, events) = futures::join!(host.open(), keeper.subscribed(&host, &running));
        rustix::net::send(&events, br#"{"weather":{"rain":true}}"#, rustix::net::SendFlags::empty()).unwrap();
        say(&events, &exited("someone else", 1));
        // It did not listen, and is asked again.
        drop(events);
        let events = keeper.subscribed(&host, &[&id.0]).await;
        assert_eq!(sandbox_state(&runtime, &sandbox).await, PodSandboxState::Ready);
        assert_eq!(runtime.container_status(&id).await.unwrap().container.state, ContainerState::Running);
        say(&events, &exited(&id.0, 7));
        assert_eq!(wait_for_exit(&runtime, &id).await.exit_code, Some(7));
        assert_eq!(sandbox_state(&runtime, &sandbox).await, PodSandboxState::Ready);
    });
}

#[test]
fn a_start_that_hangs_is_broken_off_by_a_stop() {
    let host = Host::new();
    let (id, sandbox) = first_daemon(
        async |runtime| {
            let pod = host.pod("p");
            let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
            (runtime.create_container(&sandbox, &shell("true"), &pod).await.unwrap(), sandbox)
        },
        &host,
    );
    let mut keeper = Scripted::at(&host.config.run_dir.join("sandboxes").join(&sandbox.0));
    block_on(async {
        let (runtime, _events) = futures::join!(host.open(), keeper.subscribed(&host, &[]));
        let script = async {
            let (request, starting) = keeper.next(&host).await;
            assert!(matches!(request, Request::Start(_)), "{request:?}");
            let stop = async { runtime.stop_container(&id, Duration::ZERO).await };
            let kill = async {
                let (request, socket) = keeper.next(&host).await;
                assert_eq!(request, Request::Signal { container: id.0.clone(), signal: 9 });
                say(&socket, &Reply::Done);
                say(&starting, &Reply::Failed { message: "killed".into() });
            };
            futures::join!(stop, kill).0
        };
        let (started, stopped) = futures::join!(runtime.start_container(&id), script);
        assert_eq!(started, Err(CriError::Internal("killed".into())));
        stopped.unwrap();
        assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(128));
    });
}

/// The sandbox of a container, as the disk knows it.
fn sandbox_of(host: &Host, id: &ContainerId) -> PodSandboxId {
    let record = std::fs::read(host.config.data_dir.join("containers").join(&id.0).join("container.json"));
    let record: serde_json::Value = serde_json::from_slice(&record.unwrap()).unwrap();
    PodSandboxId(record["sandbox"].as_str().unwrap().to_owned())
}

/// The keeper of a sandbox.
fn keeper_of(host: &Host, sandbox: &PodSandboxId) -> Pid {
    let dir = host.config.run_dir.join("sandboxes").join(&sandbox.0);
    Pid::from_raw(*keepers(&dir.to_string_lossy()).first().expect("the keeper runs")).unwrap()
}

/// A host where a silent keeper is given up soon.
fn impatient(at_end: Duration, ever: Duration) -> Host {
    let mut host = Host::new();
    host.config.patience = Patience { answer: Duration::from_millis(300), at_end, ever };
    host
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn a_keeper_that_is_silent_holds_up_nobody_else() {
    let host = impatient(LONG, LONG);
    let (silent, other) = first_daemon(
        async |runtime| {
            let script = shell("exec sleep 1000");
            (run(&host, runtime, &script).await, run(&host, runtime, &script).await)
        },
        &host,
    );
    let sandbox = sandbox_of(&host, &silent);
    let keeper = keeper_of(&host, &sandbox);
    kill_process(keeper, Signal::STOP).unwrap();
    block_on(async {
        let opened = host.clock.timeout(Duration::from_secs(20), host.open()).await;
        let runtime = opened.expect("the others are served");
        assert_eq!(runtime.container_status(&silent).await.unwrap().container.state, ContainerState::Running);
        assert_eq!(
            sandbox_state(&runtime, &sandbox).await,
            PodSandboxState::Ready,
            "nobody says that it is dead"
        );
        runtime.stop_container(&other, Duration::ZERO).await.unwrap();
        let stopping = runtime.stop_container(&silent, Duration::ZERO);
        let going_on = async {
            host.clock.sleep(Duration::from_secs(1)).await;
            kill_process(keeper, Signal::CONT).unwrap();
        };
        let (stopped, ()) = futures::join!(stopping, going_on);
        stopped.unwrap();
        assert_eq!(wait_for_exit(&runtime, &silent).await.exit_code, Some(137), "what it was told, it does");
        for sandbox in runtime.list_pod_sandboxes(&Default::default()).await.unwrap() {
            runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
    });
}

#[test]
fn a_keeper_that_stays_silent_does_not_keep_its_pod_from_ending() {
    let host = impatient(Duration::from_secs(1), LONG);
    let (id, sandbox) = left_running(&host, "exec sleep 1000");
    kill_process(keeper_of(&host, &sandbox), Signal::STOP).unwrap();
    block_on(async {
        let runtime = host.open().await;
        let removed = host.clock.timeout(Duration::from_secs(30), runtime.remove_pod_sandbox(&sandbox)).await;
        removed.expect("it is ended by force").unwrap();
        assert!(matches!(runtime.container_status(&id).await, Err(CriError::NotFound(_))));
        assert_eq!(host.pod_cgroups(), Vec::<String>::new());
        assert_eq!(host.leftovers().iter().filter(|left| !left.starts_with("cgroup")).count(), 0);
    });
}

#[test]
fn a_keeper_that_never_answers_is_given_up_some_day() {
    let host = impatient(LONG, Duration::from_secs(1));
    let (id, sandbox) = left_running(&host, "exec sleep 1000");
    kill_process(keeper_of(&host, &sandbox), Signal::STOP).unwrap();
    block_on(async {
        let runtime = host.open().await;
        let status = wait_for_exit(&runtime, &id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (Some(255), "Unknown"));
        until_not_ready(&host, &runtime, &sandbox).await;
        runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    });
}

/// What a keeper says to a daemon whose version it does not speak, or that does not speak its own.
fn unsuited() -> [(Reply, &'static str); 2] {
    let newer = "the keeper of this Pod was started by an older coracle and speaks version 1 of the protocol";
    [
        (
            Reply::Hello { version: 0, pid: 1, running: Vec::new() },
            "speaks version 0 of the protocol, which is too old",
        ),
        (Reply::Failed { message: newer.to_owned() }, newer),
    ]
}

#[test]
fn a_keeper_of_a_version_that_is_not_spoken_keeps_its_containers_until_its_pod_ends() {
    for (answer, words) in unsuited() {
        let host = impatient(LONG, LONG);
        let (id, sandbox) = left_running(&host, "exec sleep 1000");
        let mut keeper = Scripted::at(&host.config.run_dir.join("sandboxes").join(&sandbox.0));
        block_on(async {
            let script = async {
                let (request, socket) = keeper.next(&host).await;
                assert_eq!(request, Request::Subscribe);
                say(&socket, &answer);
                socket
            };
            let (runtime, _socket) = futures::join!(host.open(), script);
            assert_eq!(sandbox_state(&runtime, &sandbox).await, PodSandboxState::Ready);
            assert_eq!(runtime.container_status(&id).await.unwrap().container.state, ContainerState::Running);
            let refused = runtime.exec_sync(&id, &["true".to_owned()], None).await.unwrap_err().to_string();
            assert!(refused.contains(words) && refused.contains("kubectl delete pod"), "{refused}");
            let removed =
                host.clock.timeout(Duration::from_secs(30), runtime.remove_pod_sandbox(&sandbox)).await;
            removed.expect("it is ended by force").unwrap();
            assert_eq!(host.pod_cgroups(), Vec::<String>::new());
        });
    }
}

#[test]
fn an_older_keeper_refuses_to_attach_and_its_container_goes_on() {
    let host = impatient(LONG, LONG);
    let (id, sandbox) = left_running(&host, "exec sleep 1000");
    let mut keeper = Scripted::at(&host.config.run_dir.join("sandboxes").join(&sandbox.0));
    block_on(async {
        let words = "the keeper of this Pod was started by an older coracle and speaks version 1 of the protocol; \
                     this needs version 2: make the Pod anew";
        let running = [id.0.as_str()];
        let (runtime, _events) = futures::join!(host.open(), keeper.subscribed(&host, &running));
        let wanted =
            coracle_cri::AttachRequest { container: id.clone(), stdin: true, stdout: true, stderr: true };
        let script = async {
            let (request, socket) = keeper.next(&host).await;
            assert!(matches!(&request, Request::Attach(_)) && request.since() == 2, "{request:?}");
            say(&socket, &Reply::Failed { message: words.to_owned() });
            socket
        };
        let (refused, _socket) = futures::join!(runtime.attach(&wanted), script);
        assert_eq!(refused.unwrap_err().to_string(), words);
        assert_eq!(runtime.container_status(&id).await.unwrap().container.state, ContainerState::Running);
    });
}

#[test]
fn a_sandbox_without_a_readable_record_leaves_nothing() {
    let host = Host::new();
    let (id, sandbox) = left_running(&host, "exec sleep 1000");
    std::fs::write(host.config.data_dir.join("sandboxes").join(&sandbox.0).join("sandbox.json"), "{\"id")
        .unwrap();
    block_on(async {
        let runtime = host.open().await;
        assert!(matches!(runtime.container_status(&id).await, Err(CriError::NotFound(_))));
        // The keeper says that it ends a moment before it has.
        let gone = async {
            while host.leftovers().iter().any(|left| !left.starts_with("cgroup")) {
                host.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        let gone = host.clock.timeout(Duration::from_secs(30), gone).await;
        assert!(gone.is_some(), "{:#?}", host.leftovers());
        assert_eq!(host.pod_cgroups(), Vec::<String>::new());
    });
}

/// Has no address to give; says who asks.
#[derive(Default)]
struct NoAddress {
    keepers: Mutex<Vec<i32>>,
}

#[async_trait]
impl PodNetwork for NoAddress {
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    async fn set_pod_cidr(&self, _: &str) -> CriResult<()> {
        Ok(())
    }
    async fn setup(&self, request: &PodNetworkRequest) -> CriResult<PodNetworkStatus> {
        self.keepers.lock().unwrap().extend(keepers(&request.sandbox.0));
        Err(CriError::Internal("no address is left".into()))
    }
    async fn teardown(&self, _: &PodSandboxId) -> CriResult<()> {
        Ok(())
    }
    async fn reconcile(&self, _: &[PodSandboxId]) -> CriResult<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_cannot_be_made_leaves_no_process() {
    let host = Host::new();
    let network = Arc::new(NoAddress::default());
    let runtime = host.open_with(Arc::<NoAddress>::clone(&network)).await;
    let error = runtime.run_pod_sandbox(&host.pod("p")).await.unwrap_err();
    assert_eq!(error, CriError::Internal("no address is left".into()));
    let keepers = network.keepers.lock().unwrap().clone();
    assert_eq!(keepers.len(), 1);
    // A zombie still has an entry.
    assert!(!Path::new(&format!("/proc/{}", keepers[0])).exists());
}

/// Never gets done with a sandbox.
struct Endless;

#[async_trait]
impl PodNetwork for Endless {
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    async fn set_pod_cidr(&self, _: &str) -> CriResult<()> {
        Ok(())
    }
    async fn setup(&self, _: &PodNetworkRequest) -> CriResult<PodNetworkStatus> {
        std::future::pending().await
    }
    async fn teardown(&self, _: &PodSandboxId) -> CriResult<()> {
        Ok(())
    }
    async fn reconcile(&self, _: &[PodSandboxId]) -> CriResult<()> {
        Ok(())
    }
}

/// Files and directories of what is made of a sandbox, in the order in which they are.
const STEPS: [&str; 5] = ["", "sandbox.json", "run", "run/keeper.json", "run/keeper.sock"];

#[test]
fn a_sandbox_that_was_made_half_is_taken_back() {
    for (step, gone) in STEPS.iter().enumerate().skip(1) {
        let host = impatient(LONG, LONG);
        let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let id = tokio.block_on(async {
            let runtime = host.open_with(Arc::new(Endless)).await;
            let pod = host.pod("p");
            let making = tokio::spawn(async move { runtime.run_pod_sandbox(&pod).await });
            let socket = || {
                let runs = std::fs::read_dir(host.config.run_dir.join("sandboxes")).ok()?;
                runs.flatten().map(|run| run.path()).find(|run| run.join("mounts/ns/net").exists())
            };
            let made = async {
                loop {
                    if let Some(run) = socket() {
                        return run.file_name().unwrap().to_string_lossy().into_owned();
                    }
                    host.clock.sleep(Duration::from_millis(5)).await;
                }
            };
            let id =
                host.clock.timeout(Duration::from_secs(30), made).await.expect("it waits for its network");
            making.abort();
            id
        });
        tokio.shutdown_background();
        // As if the daemon had ended before this step and those after it.
        let (data, run) = (
            host.config.data_dir.join("sandboxes").join(&id),
            host.config.run_dir.join("sandboxes").join(&id),
        );
        let steps_back = if *gone == "run" { &STEPS[step + 1..] } else { &STEPS[step..] };
        for later in steps_back {
            match later.strip_prefix("run/") {
                Some(name) => std::fs::remove_file(run.join(name)).unwrap(),
                None if *later == "run" => {}
                None => std::fs::remove_file(data.join(later)).unwrap(),
            }
        }
        block_on(async {
            let runtime = host.open().await;
            assert_eq!(runtime.list_pod_sandboxes(&Default::default()).await.unwrap(), []);
            let gone = async {
                while host.leftovers().iter().any(|left| !left.starts_with("cgroup")) {
                    host.clock.sleep(Duration::from_millis(5)).await;
                }
            };
            let gone = host.clock.timeout(Duration::from_secs(30), gone).await;
            assert!(gone.is_some(), "step {step}: {:#?}", host.leftovers());
        });
    }
}
