//! The suite's part about attaching and ports.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{LIMIT, LOOK, Program, Subject, clean, end_of, make, run, status};
use crate::{
    AttachRequest, ContainerConfig, ContainerId, ContainerState, CriError, PodSandboxId, StreamSession,
};

async fn attach(subject: &impl Subject, id: &ContainerId, stdin: bool) -> StreamSession {
    let request = AttachRequest { container: id.clone(), stdin, stdout: true, stderr: true };
    subject.runtime().attach(&request).await.unwrap()
}

/// Runs the echoing program; its standard input is closed once, or not.
async fn run_echo(subject: &impl Subject, pod: &str, once: bool) -> (PodSandboxId, ContainerId) {
    let (runtime, pod) = (subject.runtime(), subject.pod(pod));
    let sandbox = runtime.run_pod_sandbox(&pod).await.unwrap();
    let config = ContainerConfig { stdin: true, stdin_once: once, ..subject.container(Program::Echo) };
    let id = runtime.create_container(&sandbox, &config, &pod).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    (sandbox, id)
}

/// Waits until `text` has come.
async fn read_until(subject: &impl Subject, session: &mut StreamSession, text: &str) {
    let mut seen = String::new();
    let wait = async {
        while !seen.contains(text) {
            let chunk = session.stdout.recv().await.expect("the attachment lasts");
            seen.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    subject.clock().timeout(LIMIT, wait).await.expect("what is written comes");
}

async fn type_in(session: &StreamSession, text: &str) {
    session.stdin.as_ref().unwrap().send(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
}

async fn over(subject: &impl Subject, session: StreamSession) {
    // Its input stays open: the other side ends.
    let StreamSession { stdin, exit, stdout, stderr, .. } = session;
    let result = subject.clock().timeout(LIMIT, exit).await.expect("the attachment ends").unwrap();
    assert_eq!(result, Ok(0));
    drop((stdin, stdout, stderr));
}

pub async fn all_who_attach_see_what_comes_and_the_log_has_it_too(subject: &impl Subject) {
    let (sandbox, id) = run_echo(subject, "all", false).await;
    let (mut first, mut second) = (attach(subject, &id, true).await, attach(subject, &id, true).await);
    let mut third = attach(subject, &id, false).await;
    assert!(third.stdin.is_none());
    type_in(&first, "from the first\n").await;
    for session in [&mut first, &mut second, &mut third] {
        read_until(subject, session, "from the first\n").await;
    }
    type_in(&second, "from the second\n").await;
    for session in [&mut first, &mut second, &mut third] {
        read_until(subject, session, "from the second\n").await;
    }
    let log = std::fs::read_to_string(status(subject, &id).await.log_path).unwrap();
    for line in [" stdout F from the first\n", " stdout F from the second\n"] {
        assert!(log.contains(line), "{line:?} in {log:?}");
    }
    subject.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
    for session in [first, second, third] {
        over(subject, session).await;
    }
    clean(subject, &sandbox).await;
}

pub async fn input_that_is_open_once_ends_with_its_first_attacher(subject: &impl Subject) {
    // By the end of the input, and by leaving.
    for leaves in [false, true] {
        let pod = if leaves { "leaves" } else { "ends" };
        let (sandbox, id) = run_echo(subject, pod, true).await;
        let mut session = attach(subject, &id, true).await;
        type_in(&session, "last words\n").await;
        read_until(subject, &mut session, "last words\n").await;
        if leaves {
            drop(session);
        } else {
            session.stdin = None;
            over(subject, session).await;
        }
        assert_eq!(end_of(subject, &id).await.exit_code, Some(0));
        clean(subject, &sandbox).await;
    }
}

pub async fn other_input_stays_open_for_the_next_attacher(subject: &impl Subject) {
    let (sandbox, id) = run_echo(subject, "open", false).await;
    for leaves in [false, true, false] {
        let mut session = attach(subject, &id, true).await;
        type_in(&session, "again\n").await;
        read_until(subject, &mut session, "again\n").await;
        if leaves {
            drop(session);
        } else {
            // The end of the input is the end of the attachment.
            session.stdin = None;
            over(subject, session).await;
        }
    }
    assert_eq!(status(subject, &id).await.container.state, ContainerState::Running);
    clean(subject, &sandbox).await;
}

pub async fn only_what_runs_can_be_attached_to(subject: &impl Subject) {
    let runtime = subject.runtime();
    let (sandbox, id) = make(subject, "stopped-stream", Program::Deaf).await;
    let request = AttachRequest { container: id.clone(), stdin: false, stdout: true, stderr: true };
    let refused = runtime.attach(&request).await.unwrap_err();
    assert!(matches!(refused, CriError::FailedPrecondition(_)), "{refused:?}");
    runtime.start_container(&id).await.unwrap();
    drop(runtime.attach(&request).await.unwrap());
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    let refused = runtime.attach(&request).await.unwrap_err();
    assert!(matches!(refused, CriError::FailedPrecondition(_)), "{refused:?}");
    clean(subject, &sandbox).await;
    let refused = runtime.attach(&request).await.unwrap_err();
    assert!(matches!(refused, CriError::NotFound(_)), "{refused:?}");
}

pub async fn a_port_is_reached_inside_the_pods_network(subject: &impl Subject) {
    let runtime = subject.runtime();
    let (sandbox, _) = run(subject, "port", Program::Serves).await;
    // It says that it is up a moment before it listens.
    let connect = async {
        loop {
            match runtime.port_forward(&sandbox, 4242).await {
                Ok(stream) => return stream,
                Err(error) => assert!(error.to_string().contains("connection refused"), "{error}"),
            }
            subject.clock().sleep(LOOK).await;
        }
    };
    let mut stream = subject.clock().timeout(LIMIT, connect).await.expect("it listens");
    stream.write_all(b"there and back").await.unwrap();
    let mut back = [0; 14];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"there and back");
    drop(stream);
    let Err(refused) = runtime.port_forward(&sandbox, 4243).await else { panic!("nobody listens there") };
    let words = "failed to connect to localhost:4243 inside namespace ";
    assert!(refused.to_string().contains(words), "{refused}");
    assert!(refused.to_string().contains("connect: connection refused"), "{refused}");
    runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    let Err(refused) = runtime.port_forward(&sandbox, 4242).await else { panic!("it has no network") };
    assert!(matches!(refused, CriError::FailedPrecondition(_)), "{refused:?}");
    clean(subject, &sandbox).await;
    let Err(refused) = runtime.port_forward(&sandbox, 4242).await else { panic!("it is gone") };
    assert!(matches!(refused, CriError::NotFound(_)), "{refused:?}");
}
