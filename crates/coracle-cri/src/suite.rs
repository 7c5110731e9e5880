//! One suite of tests for any runtime: what the node agent relies on.
//!
//! [`runtime_suite!`](crate::runtime_suite) makes one test of each function here. The embedded engine runs it with real
//! containers and the scripted runtime with scripts, so that the script does not drift from reality.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests, each named after what holds")]

mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;

use crate::{
    ContainerConfig, ContainerEvent, ContainerEventKind, ContainerFilter, ContainerId, ContainerState,
    ContainerStatus, CriError, PodSandboxConfig, PodSandboxFilter, PodSandboxId, PodSandboxState,
    RuntimeService,
};

/// Makes a module with the suite: `runtime_suite!(name, #[tokio::test], open)`, where `open` is an async function that
/// returns a [`Subject`] of its own each time.
#[macro_export]
macro_rules! runtime_suite {
    ($name:ident, #[$attribute:meta], $open:path) => {
        $crate::runtime_suite!(@ $name, $attribute, $open,
            making_twice_makes_one,
            a_program_that_ends_leaves_its_code_and_a_hint,
            what_cannot_be_executed_fails_at_the_start,
            stopping_asks_first,
            a_shorter_grace_takes_effect_at_once,
            what_is_over_or_unknown_can_be_stopped_and_removed,
            removing_ends_what_runs,
            stopping_a_sandbox_ends_what_runs_in_it,
            a_removed_sandbox_takes_its_containers_along,
            lists_are_filtered,
            a_container_needs_a_sandbox_that_is_ready,
            what_has_run_does_not_run_again,
            commands_run_in_containers_that_run,
            a_command_over_its_time_is_ended,
            too_much_memory_is_told_as_such,
            all_who_attach_see_what_comes_and_the_log_has_it_too,
            input_that_is_open_once_ends_with_its_first_attacher,
            other_input_stays_open_for_the_next_attacher,
            only_what_runs_can_be_attached_to,
            a_port_is_reached_inside_the_pods_network,
        );
    };
    (@ $name:ident, $attribute:meta, $open:path, $($test:ident,)*) => {
        mod $name {
            $(
                #[$attribute]
                async fn $test() {
                    let subject = $open().await;
                    $crate::suite::$test(&subject).await;
                }
            )*
        }
    };
}

pub use streams::{
    a_port_is_reached_inside_the_pods_network, all_who_attach_see_what_comes_and_the_log_has_it_too,
    input_that_is_open_once_ends_with_its_first_attacher, only_what_runs_can_be_attached_to,
    other_input_stays_open_for_the_next_attacher,
};

/// What the containers of the suite do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Writes `up` and runs until it is killed; it does not mind being asked to stop.
    Deaf,
    /// Writes `up`, and ends with 7 when it is asked to stop.
    Polite,
    /// Ends by itself with this code.
    Ends(i32),
    /// Cannot be executed.
    Broken,
    /// Takes more memory than 32 MiB.
    Hungry,
    /// Writes `up`, then what it reads from standard input, which it has; ends with 0 at the end of it.
    Echo,
    /// Writes `up`, listens at port 4242, and sends back what comes in there.
    Serves,
}

/// A runtime under test.
pub trait Subject: Send + Sync {
    fn runtime(&self) -> Arc<dyn RuntimeService>;
    fn clock(&self) -> Clock;
    /// A Pod of this name, UID `uid-NAME`.
    fn pod(&self, name: &str) -> PodSandboxConfig;
    /// A container that runs this program and logs to `main/0.log`.
    fn container(&self, program: Program) -> ContainerConfig;
    /// A command that writes `out` to standard output, `err` to standard error and ends with 5.
    fn command(&self) -> Vec<String>;
    /// A command that takes for ever.
    fn slow_command(&self) -> Vec<String>;
}

const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

async fn make(subject: &impl Subject, pod: &str, program: Program) -> (PodSandboxId, ContainerId) {
    let (runtime, pod) = (subject.runtime(), subject.pod(pod));
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let id = runtime.create_container(&sandbox, &subject.container(program), &pod).await.unwrap();
    (sandbox, id)
}

async fn run(subject: &impl Subject, pod: &str, program: Program) -> (PodSandboxId, ContainerId) {
    let (sandbox, id) = make(subject, pod, program).await;
    subject.runtime().start_container(&id).await.unwrap();
    if matches!(program, Program::Deaf | Program::Polite | Program::Echo | Program::Serves) {
        let is_up = async || {
            let log = status(subject, &id).await.log_path;
            std::fs::read_to_string(log).is_ok_and(|log| log.contains("up\n"))
        };
        let wait = async {
            while !is_up().await {
                subject.clock().sleep(LOOK).await;
            }
        };
        subject.clock().timeout(LIMIT, wait).await.expect("the program says that it is up");
    }
    (sandbox, id)
}

async fn status(subject: &impl Subject, id: &ContainerId) -> ContainerStatus {
    subject.runtime().container_status(id).await.unwrap()
}

async fn end_of(subject: &impl Subject, id: &ContainerId) -> ContainerStatus {
    let wait = async {
        loop {
            let status = status(subject, id).await;
            if status.container.state == ContainerState::Exited {
                return status;
            }
            subject.clock().sleep(LOOK).await;
        }
    };
    subject.clock().timeout(LIMIT, wait).await.expect("the program ends")
}

async fn clean(subject: &impl Subject, sandbox: &PodSandboxId) {
    subject.runtime().remove_pod_sandbox(sandbox).await.unwrap();
}

pub async fn making_twice_makes_one(subject: &impl Subject) {
    let (runtime, pod) = (subject.runtime(), subject.pod("twice"));
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    assert_eq!(runtime.run_pod_sandbox(&pod).await.unwrap(), sandbox);
    let config = subject.container(Program::Deaf);
    let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
    assert_eq!(runtime.create_container(&sandbox, &config, &pod).await.unwrap(), id);
    assert_eq!(status(subject, &id).await.container.state, ContainerState::Created);
    runtime.start_container(&id).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let running = status(subject, &id).await;
    assert_eq!(running.container.state, ContainerState::Running);
    assert!(running.started_at.is_some() && running.finished_at.is_none() && running.exit_code.is_none());
    let another = ContainerConfig { attempt: 1, log_path: "main/1.log".into(), ..config };
    assert_ne!(runtime.create_container(&sandbox, &another, &pod).await.unwrap(), id);
    clean(subject, &sandbox).await;
}

pub async fn a_program_that_ends_leaves_its_code_and_a_hint(subject: &impl Subject) {
    let runtime = subject.runtime();
    let mut events = runtime.container_events().await.unwrap();
    for (code, reason, pod) in [(0, "Completed", "well"), (3, "Error", "badly")] {
        let (sandbox, id) = run(subject, pod, Program::Ends(code)).await;
        let heard = async {
            let wanted = ContainerEvent {
                kind: ContainerEventKind::Stopped,
                pod_uid: format!("uid-{pod}"),
                container: Some(id.clone()),
            };
            while events.recv().await.expect("the runtime tells of events") != wanted {}
        };
        subject.clock().timeout(LIMIT, heard).await.expect("the end is told of");
        // By then it is known.
        let status = status(subject, &id).await;
        assert_eq!(status.container.state, ContainerState::Exited);
        assert_eq!((status.exit_code, status.reason.as_str()), (Some(code), reason));
        assert!(status.started_at.unwrap() <= status.finished_at.unwrap());
        assert_eq!(status.pid, None);
        clean(subject, &sandbox).await;
    }
}

pub async fn what_cannot_be_executed_fails_at_the_start(subject: &impl Subject) {
    let (sandbox, id) = make(subject, "broken", Program::Broken).await;
    let error = subject.runtime().start_container(&id).await.unwrap_err();
    assert!(matches!(&error, CriError::Internal(_)), "{error:?}");
    let status = status(subject, &id).await;
    assert_eq!(status.container.state, ContainerState::Exited);
    assert_eq!((status.exit_code, status.reason.as_str()), (Some(128), "StartError"));
    assert_eq!(status.message, error.to_string());
    clean(subject, &sandbox).await;
}

pub async fn stopping_asks_first(subject: &impl Subject) {
    let (sandbox, polite) = run(subject, "polite", Program::Polite).await;
    subject.runtime().stop_container(&polite, LIMIT).await.unwrap();
    let ended = status(subject, &polite).await;
    assert_eq!((ended.container.state, ended.exit_code), (ContainerState::Exited, Some(7)));
    clean(subject, &sandbox).await;
    let (sandbox, deaf) = run(subject, "deaf", Program::Deaf).await;
    subject.runtime().stop_container(&deaf, Duration::from_millis(50)).await.unwrap();
    let ended = status(subject, &deaf).await;
    assert_eq!((ended.container.state, ended.exit_code), (ContainerState::Exited, Some(137)));
    clean(subject, &sandbox).await;
}

pub async fn a_shorter_grace_takes_effect_at_once(subject: &impl Subject) {
    let (sandbox, id) = run(subject, "shorter", Program::Deaf).await;
    let (runtime, clock) = (subject.runtime(), subject.clock());
    let before = clock.elapsed();
    let long = runtime.stop_container(&id, Duration::from_secs(600));
    let short = async {
        clock.sleep(Duration::from_millis(100)).await;
        runtime.stop_container(&id, Duration::from_millis(50)).await
    };
    let (long, short) = tokio::join!(long, short);
    long.unwrap();
    short.unwrap();
    assert!(clock.elapsed() - before < LIMIT);
    assert_eq!(status(subject, &id).await.exit_code, Some(137));
    clean(subject, &sandbox).await;
}

pub async fn what_is_over_or_unknown_can_be_stopped_and_removed(subject: &impl Subject) {
    let runtime = subject.runtime();
    let (sandbox, id) = run(subject, "over", Program::Ends(0)).await;
    end_of(subject, &id).await;
    runtime.stop_container(&id, LIMIT).await.unwrap();
    assert_eq!(status(subject, &id).await.exit_code, Some(0), "it stays as it ended");
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    assert!(matches!(runtime.container_status(&id).await, Err(CriError::NotFound(_))));
    clean(subject, &sandbox).await;
    clean(subject, &sandbox).await;
    runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    assert!(matches!(runtime.pod_sandbox_status(&sandbox).await, Err(CriError::NotFound(_))));
    assert!(matches!(runtime.start_container(&id).await, Err(CriError::NotFound(_))));
}

pub async fn removing_ends_what_runs(subject: &impl Subject) {
    let runtime = subject.runtime();
    let (sandbox, id) = run(subject, "removed", Program::Deaf).await;
    runtime.remove_container(&id).await.unwrap();
    assert!(matches!(runtime.container_status(&id).await, Err(CriError::NotFound(_))));
    assert!(runtime.list_containers(&ContainerFilter::default()).await.unwrap().is_empty());
    clean(subject, &sandbox).await;
}

pub async fn stopping_a_sandbox_ends_what_runs_in_it(subject: &impl Subject) {
    let runtime = subject.runtime();
    let (sandbox, id) = run(subject, "stopped", Program::Deaf).await;
    runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    let stopped = runtime.pod_sandbox_status(&sandbox).await.unwrap();
    assert_eq!(stopped.sandbox.state, PodSandboxState::NotReady);
    let ended = status(subject, &id).await;
    assert_eq!((ended.container.state, ended.exit_code), (ContainerState::Exited, Some(137)));
    clean(subject, &sandbox).await;
}

pub async fn a_removed_sandbox_takes_its_containers_along(subject: &impl Subject) {
    let runtime = subject.runtime();
    let (sandbox, id) = run(subject, "gone", Program::Deaf).await;
    clean(subject, &sandbox).await;
    assert!(matches!(runtime.container_status(&id).await, Err(CriError::NotFound(_))));
    assert!(runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await.unwrap().is_empty());
    assert!(runtime.list_containers(&ContainerFilter::default()).await.unwrap().is_empty());
}

pub async fn lists_are_filtered(subject: &impl Subject) {
    let runtime = subject.runtime();
    let label = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
    let mut made = Vec::new();
    for name in ["a", "b"] {
        let pod = PodSandboxConfig { labels: label(name), ..subject.pod(name) };
        let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
        let config = ContainerConfig { labels: label(name), ..subject.container(Program::Deaf) };
        let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
        made.push((sandbox, id));
    }
    runtime.start_container(&made[1].1).await.unwrap();
    let containers = async |filter: ContainerFilter| -> Vec<ContainerId> {
        runtime.list_containers(&filter).await.unwrap().into_iter().map(|c| c.id).collect()
    };
    let any = ContainerFilter::default;
    let (a, b) = (made[0].1.clone(), made[1].1.clone());
    assert_eq!(containers(any()).await.len(), 2);
    assert_eq!(containers(ContainerFilter { id: Some(a.clone()), ..any() }).await, std::slice::from_ref(&a));
    let running = ContainerFilter { state: Some(ContainerState::Running), ..any() };
    assert_eq!(containers(running).await, std::slice::from_ref(&b));
    assert_eq!(containers(ContainerFilter { sandbox: Some(made[0].0.clone()), ..any() }).await, [a]);
    assert_eq!(containers(ContainerFilter { labels: label("b"), ..any() }).await, [b]);
    assert!(containers(ContainerFilter { labels: label("c"), ..any() }).await.is_empty());
    runtime.stop_pod_sandbox(&made[0].0).await.unwrap();
    for filter in [
        PodSandboxFilter { state: Some(PodSandboxState::NotReady), ..PodSandboxFilter::default() },
        PodSandboxFilter { labels: label("a"), ..PodSandboxFilter::default() },
        PodSandboxFilter { id: Some(made[0].0.clone()), ..PodSandboxFilter::default() },
    ] {
        let found = runtime.list_pod_sandboxes(&filter).await.unwrap();
        assert_eq!(found.iter().map(|s| &s.id).collect::<Vec<_>>(), [&made[0].0], "{filter:?}");
        assert_eq!(found[0].metadata.uid, "uid-a");
    }
    for (sandbox, _) in &made {
        clean(subject, sandbox).await;
    }
}

pub async fn a_container_needs_a_sandbox_that_is_ready(subject: &impl Subject) {
    let (runtime, pod) = (subject.runtime(), subject.pod("unready"));
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    let config = subject.container(Program::Deaf);
    let refused = runtime.create_container(&sandbox, &config, &pod).await.unwrap_err();
    assert!(matches!(refused, CriError::FailedPrecondition(_)), "{refused:?}");
    // The next attempt is another sandbox.
    let mut next = pod.clone();
    next.metadata.attempt = 1;
    let second = runtime.run_pod_sandbox(&next).await.unwrap();
    assert_ne!(second, sandbox);
    clean(subject, &sandbox).await;
    let refused = runtime.create_container(&sandbox, &config, &pod).await.unwrap_err();
    assert!(matches!(refused, CriError::NotFound(_)), "{refused:?}");
    clean(subject, &second).await;
}

pub async fn what_has_run_does_not_run_again(subject: &impl Subject) {
    let (sandbox, id) = run(subject, "again", Program::Ends(0)).await;
    end_of(subject, &id).await;
    let refused = subject.runtime().start_container(&id).await.unwrap_err();
    assert!(matches!(refused, CriError::FailedPrecondition(_)), "{refused:?}");
    clean(subject, &sandbox).await;
}

pub async fn commands_run_in_containers_that_run(subject: &impl Subject) {
    let runtime = subject.runtime();
    let (sandbox, id) = run(subject, "commands", Program::Deaf).await;
    let ran = runtime.exec_sync(&id, &subject.command(), Some(LIMIT)).await.unwrap();
    assert_eq!(
        (ran.exit_code, ran.stdout.as_slice(), ran.stderr.as_slice()),
        (5, &b"out\n"[..], &b"err\n"[..])
    );
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    let refused = runtime.exec_sync(&id, &subject.command(), None).await.unwrap_err();
    assert!(matches!(refused, CriError::FailedPrecondition(_)), "{refused:?}");
    clean(subject, &sandbox).await;
    let refused = runtime.exec_sync(&id, &subject.command(), None).await.unwrap_err();
    assert!(matches!(refused, CriError::NotFound(_)), "{refused:?}");
}

pub async fn a_command_over_its_time_is_ended(subject: &impl Subject) {
    let (sandbox, id) = run(subject, "slow", Program::Deaf).await;
    let limit = Some(Duration::from_millis(200));
    let over = subject.runtime().exec_sync(&id, &subject.slow_command(), limit).await.unwrap_err();
    assert!(matches!(over, CriError::DeadlineExceeded(_)), "{over:?}");
    assert_eq!(status(subject, &id).await.container.state, ContainerState::Running);
    clean(subject, &sandbox).await;
}

pub async fn too_much_memory_is_told_as_such(subject: &impl Subject) {
    let (runtime, pod) = (subject.runtime(), subject.pod("hungry"));
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let mut config = subject.container(Program::Hungry);
    config.resources.memory_limit_in_bytes = Some(32 << 20);
    let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let ended = end_of(subject, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (Some(137), "OOMKilled"));
    clean(subject, &sandbox).await;
}
