//! Attaching: who reads slowly, who does not read, terminals, a daemon that goes away.

use std::time::Duration;

use bytes::Bytes;
use coracle_cri::{
    AttachRequest, ContainerConfig, ContainerId, ContainerState, RuntimeService, StreamSession, TerminalSize,
};
use coracle_runtime::EmbeddedRuntime;

use crate::host::{Host, run, shell};

const LIMIT: Duration = Duration::from_secs(30);

async fn attach(runtime: &EmbeddedRuntime, id: &ContainerId) -> StreamSession {
    let request = AttachRequest { container: id.clone(), stdin: true, stdout: true, stderr: true };
    runtime.attach(&request).await.unwrap()
}

async fn type_in(session: &StreamSession, text: &str) {
    session.stdin.as_ref().unwrap().send(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
}

async fn until(host: &Host, session: &mut StreamSession, text: &str) {
    let mut seen = String::new();
    let wait = async {
        while !seen.contains(text) {
            let chunk = session.stdout.recv().await.expect("the attachment lasts");
            seen.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    assert!(host.clock.timeout(LIMIT, wait).await.is_some(), "waited in vain for {text:?}");
}

async fn ended(host: &Host, runtime: &EmbeddedRuntime, id: &ContainerId) -> i32 {
    let wait = async {
        loop {
            let status = runtime.container_status(id).await.unwrap();
            if let Some(code) = status.exit_code {
                return code;
            }
            host.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    host.clock.timeout(LIMIT, wait).await.expect("the container ends")
}

fn interactive(script: &str, once: bool) -> ContainerConfig {
    ContainerConfig { stdin: true, stdin_once: once, ..shell(script) }
}

/// Waits for a line, then writes 20 MB and a last word to standard error.
const FLOOD: &str = "read go; busybox yes 1234567 | head -c 20000000; echo over >&2";

#[tokio::test(flavor = "multi_thread")]
async fn an_attacher_that_does_not_read_holds_up_neither_the_container_nor_its_log() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &interactive(FLOOD, false)).await;
    let (lazy, mut eager) = (attach(&runtime, &id).await, attach(&runtime, &id).await);
    type_in(&lazy, "go\n").await;
    let mut received = 0;
    let reads = async {
        while let Some(chunk) = eager.stdout.recv().await {
            received += chunk.len();
        }
    };
    host.clock.timeout(LIMIT, reads).await.expect("the eager one is told of everything");
    assert_eq!((received, eager.exit.await.unwrap()), (20_000_000, Ok(0)));
    assert_eq!(ended(&host, &runtime, &id).await, 0);
    let log = runtime.container_status(&id).await.unwrap().log_path;
    assert!(std::fs::read_to_string(&log).unwrap().contains(" stderr F over\n"));

    // What lies in between is still there to read; then it hears why there is no more.
    let StreamSession { mut stdout, exit, stdin, stderr, .. } = lazy;
    let reads = async { while stdout.recv().await.is_some() {} };
    host.clock.timeout(LIMIT, reads).await.expect("it has an end");
    let why = exit.await.unwrap().unwrap_err().to_string();
    assert!(why.contains("was not read fast enough; its log has all of it"), "{why}");
    drop((stdin, stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_attacher_misses_nothing() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &interactive(FLOOD, false)).await;
    let mut session = attach(&runtime, &id).await;
    type_in(&session, "go\n").await;
    let (mut received, mut pieces) = (0, 0);
    let reads = async {
        while let Some(chunk) = session.stdout.recv().await {
            received += chunk.len();
            pieces += 1;
            if pieces % 64 == 0 {
                host.clock.sleep(Duration::from_millis(20)).await;
            }
        }
    };
    host.clock.timeout(LIMIT, reads).await.expect("it is told of everything");
    assert_eq!(received, 20_000_000);
    assert_eq!(session.stderr.recv().await.unwrap(), "over\n");
    assert_eq!(session.exit.await.unwrap(), Ok(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn much_input_arrives_whole_and_ends_the_program_that_has_it_once() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &interactive("busybox wc -c", true)).await;
    let mut session = attach(&runtime, &id).await;
    let stdin = session.stdin.take().unwrap();
    for _ in 0..1000 {
        stdin.send(Bytes::from(vec![b'x'; 10_000])).await.unwrap();
    }
    drop(stdin);
    until(&host, &mut session, "10000000\n").await;
    assert_eq!(session.exit.await.unwrap(), Ok(0));
    assert_eq!(ended(&host, &runtime, &id).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_attached_to_resized_and_left() {
    let host = Host::new();
    let runtime = host.open().await;
    // Once: but a terminal's input is not closed.
    let id = run(&host, &runtime, &ContainerConfig { tty: true, ..interactive("exec sh -i", true) }).await;
    for turn in 1..=2 {
        let mut session = attach(&runtime, &id).await;
        let resize = session.resize.clone().unwrap();
        resize.send(TerminalSize { width: 90 + turn, height: 33 }).await.unwrap();
        // A size comes on a way of its own.
        let script = format!(
            "while [ \"$(stty size)\" != '33 {}' ]; do sleep 0.05; done; echo turn-$((1+1))\n",
            90 + turn
        );
        type_in(&session, &script).await;
        until(&host, &mut session, "turn-2").await;
    }
    assert_eq!(runtime.container_status(&id).await.unwrap().container.state, ContainerState::Running);
    let mut session = attach(&runtime, &id).await;
    type_in(&session, "exit 6\n").await;
    let reads = async { while session.stdout.recv().await.is_some() {} };
    host.clock.timeout(LIMIT, reads).await.expect("the attachment ends with the container");
    assert_eq!(ended(&host, &runtime, &id).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_of_a_container_that_has_none_goes_nowhere() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("while :; do echo tick; sleep 0.05; done")).await;
    let mut session = attach(&runtime, &id).await;
    assert!(session.stdin.is_none() && session.resize.is_none());
    until(&host, &mut session, "tick\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_goes_away_detaches_and_another_attaches() {
    let host = Host::new();
    let script = "while read line; do echo got-$line; done; echo end";
    let runtime = host.open().await;
    let id = run(&host, &runtime, &interactive(script, false)).await;
    let mut session = attach(&runtime, &id).await;
    type_in(&session, "one\n").await;
    until(&host, &mut session, "got-one").await;
    drop((session, runtime));
    let runtime = host.open().await;
    let mut session = attach(&runtime, &id).await;
    type_in(&session, "two\n").await;
    until(&host, &mut session, "got-two").await;
    assert_eq!(runtime.container_status(&id).await.unwrap().container.state, ContainerState::Running);
}
