//! Further processes in a running container.

use std::time::Duration;

use bytes::Bytes;
use coracle_cri::{ContainerId, CriError, ExecRequest, RuntimeService, TerminalSize};
use coracle_runtime::EmbeddedRuntime;

use crate::host::{Host, run, shell};

async fn sync(runtime: &EmbeddedRuntime, id: &ContainerId, script: &str) -> (i32, String, String) {
    let command = ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let result = runtime.exec_sync(id, &command, None).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (result.exit_code, text(result.stdout), text(result.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_sync_gives_output_and_exit_code() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    assert_eq!(
        sync(&runtime, &id, "echo out; echo err >&2; exit 5").await,
        (5, "out\n".into(), "err\n".into())
    );
    // A descendant that keeps the streams open does not keep the caller.
    assert_eq!(sync(&runtime, &id, "sleep 1000 & echo gone").await, (0, "gone\n".into(), String::new()));
    let big = sync(&runtime, &id, "busybox yes | head -c 300000").await;
    assert_eq!(big.1.len(), 300_000);

    let error = runtime.exec_sync(&id, &["nope".to_owned()], None).await.unwrap_err();
    assert!(error.to_string().contains("exec: \"nope\": executable file not found in $PATH"), "{error}");
    let slow = ["sleep".to_owned(), "777".to_owned()];
    let error = runtime.exec_sync(&id, &slow, Some(Duration::from_millis(200))).await.unwrap_err();
    assert!(matches!(error, CriError::DeadlineExceeded(_)), "{error}");
    let killed = async {
        while sync(&runtime, &id, "cat /proc/[0-9]*/cmdline | busybox tr '\\0' ' '")
            .await
            .1
            .contains("sleep 777")
        {}
    };
    host.clock.timeout(Duration::from_secs(30), killed).await.expect("a command over its time is killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descendant_that_goes_on_writing_does_not_keep_an_exec() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let command = ["sh", "-c", "echo first; busybox yes & exit 3"].map(str::to_owned);
    let result = host.clock.timeout(Duration::from_secs(60), runtime.exec_sync(&id, &command, None)).await;
    let result = result.expect("the command has ended").unwrap();
    assert_eq!(result.exit_code, 3);
    assert!(result.stdout.starts_with(b"first\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_streamed() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let request = ExecRequest { container: id, command: vec!["cat".into()], tty: false, stdin: true };
    let mut session = runtime.exec(&request).await.unwrap();
    let stdin = session.stdin.take().unwrap();
    stdin.send(Bytes::from_static(b"ping")).await.unwrap();
    assert_eq!(session.stdout.recv().await.unwrap(), Bytes::from_static(b"ping"));
    drop(stdin);
    assert_eq!(session.exit.await.unwrap(), Ok(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_an_end() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let request = ExecRequest { container: id, command: vec!["sh".into()], tty: true, stdin: true };
    let mut session = runtime.exec(&request).await.unwrap();
    session.resize.as_ref().unwrap().send(TerminalSize { width: 101, height: 37 }).await.unwrap();
    let stdin = session.stdin.take().unwrap();
    let mut seen = String::new();
    // Until the new size has arrived, which is not in step with the input.
    while !seen.contains("37 101") {
        stdin.send(Bytes::from_static(b"stty size\n")).await.unwrap();
        seen.push_str(&String::from_utf8_lossy(&session.stdout.recv().await.unwrap()));
    }
    stdin.send(Bytes::from_static(b"tty; exit 9\n")).await.unwrap();
    while let Some(chunk) = session.stdout.recv().await {
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(seen.contains("/dev/pts/"), "{seen}");
    assert_eq!(session.exit.await.unwrap(), Ok(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_may_have_a_terminal() {
    let host = Host::new();
    let runtime = host.open().await;
    let mut config = shell("tty; exit 4");
    config.tty = true;
    let id = run(&host, &runtime, &config).await;
    let status = crate::host::wait_for_exit(&runtime, &id).await;
    assert_eq!(status.exit_code, Some(4));
    assert!(crate::host::log(&status)[0].contains("stdout F /dev/pts/0"), "{:?}", crate::host::log(&status));
}
