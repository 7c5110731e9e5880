//! Terminals of further processes: keys that are signals, job control, sizes, ends, and nothing left behind.

use std::time::Duration;

use bytes::Bytes;
use coracle_cri::{ContainerId, CriResult, ExecRequest, RuntimeService, StreamSession, TerminalSize};
use coracle_runtime::EmbeddedRuntime;
use nix::sys::signal::{SigHandler, Signal, signal};
use tokio::sync::mpsc;

use crate::host::{Host, run, shell};

/// What a person at a terminal sees and types.
struct Terminal {
    session: StreamSession,
    stdin: Option<mpsc::Sender<Bytes>>,
    seen: String,
    host_clock: coracle_clock::Clock,
}

impl Terminal {
    async fn open(host: &Host, runtime: &EmbeddedRuntime, container: &ContainerId, command: &[&str]) -> Self {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecRequest { container: container.clone(), command, tty: true, stdin: true };
        let mut session = runtime.exec(&request).await.unwrap();
        let stdin = session.stdin.take();
        Terminal { session, stdin, seen: String::new(), host_clock: host.clock.clone() }
    }

    async fn keys(&self, keys: &str) {
        let stdin = self.stdin.as_ref().unwrap();
        stdin.send(Bytes::copy_from_slice(keys.as_bytes())).await.unwrap();
    }

    /// Waits until the text is on the screen, and gives what came up to its end.
    async fn until(&mut self, text: &str) -> String {
        let clock = self.host_clock.clone();
        let waited = clock.timeout(Duration::from_secs(30), async {
            loop {
                if let Some(at) = self.seen.find(text) {
                    return self.seen.drain(..at + text.len()).collect();
                }
                let chunk = self.session.stdout.recv().await;
                self.seen.push_str(&String::from_utf8_lossy(&chunk.expect("the terminal lives")));
            }
        });
        let found = waited.await;
        found.unwrap_or_else(|| panic!("waited in vain for {text:?} in {:?}", self.seen))
    }

    /// Waits for the end of the program, and gives the rest of the screen.
    async fn end(mut self) -> (String, CriResult<i32>) {
        let clock = self.host_clock.clone();
        let ended = clock.timeout(Duration::from_secs(30), async {
            while let Some(chunk) = self.session.stdout.recv().await {
                self.seen.push_str(&String::from_utf8_lossy(&chunk));
            }
            self.session.exit.await.unwrap()
        });
        let exit = ended.await.expect("the program ends");
        (self.seen, exit)
    }
}

/// Interrupts are ignored, as in what a shell starts in the background, while a keeper is started.
async fn run_in_background(host: &Host, runtime: &EmbeddedRuntime) -> ContainerId {
    // SAFETY: no handler runs code.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.unwrap();
    let id = run(host, runtime, &shell("exec sleep 1000")).await;
    // SAFETY: likewise.
    unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_program_and_not_the_shell() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run_in_background(&host, &runtime).await;

    let script = "echo ready; exec sleep 1000";
    let mut alone = Terminal::open(&host, &runtime, &id, &["sh", "-c", script]).await;
    alone.until("ready").await;
    alone.keys("\u{3}").await;
    assert_eq!(alone.end().await.1, Ok(130));

    // What is typed before the shell has given the terminal to a command is not a signal but input: so each
    // key waits for what comes before it.
    let sleep = "sh -c 'echo slee\"\"ps; exec sleep 1000'\n";
    let mut terminal = Terminal::open(&host, &runtime, &id, &["sh"]).await;
    let start = terminal.until("# ").await;
    assert!(!start.contains("job control turned off"), "{start}");
    terminal.keys(sleep).await;
    terminal.until("sleeps").await;
    terminal.keys("\u{3}").await;
    terminal.until("# ").await;
    terminal.keys("echo code-$?\n").await;
    terminal.until("code-130").await;

    // Stopped, continued in the background, brought back, and ended.
    terminal.until("# ").await;
    terminal.keys(sleep).await;
    terminal.until("sleeps").await;
    terminal.keys("\u{1a}").await;
    terminal.until("Stopped").await;
    terminal.until("# ").await;
    terminal.keys("bg; jobs\n").await;
    terminal.until("Running").await;
    terminal.until("# ").await;
    terminal.keys("echo fore\"\"ground; fg\n").await;
    terminal.until("foreground").await;
    // `fg` shows the command when it has the terminal.
    terminal.until("sleep 1000").await;
    terminal.keys("\u{3}").await;
    terminal.until("# ").await;
    terminal.keys("echo again-$?\n").await;
    terminal.until("again-130").await;
    terminal.until("# ").await;
    terminal.keys("\u{4}").await;
    let (seen, exit) = terminal.end().await;
    assert_eq!(exit, Ok(0), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_input_and_the_shells_own_code() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let mut terminal = Terminal::open(&host, &runtime, &id, &["sh"]).await;
    terminal.keys("tty\n").await;
    terminal.until("\n/dev/pts/").await;
    terminal.until("# ").await;
    terminal.keys("\u{4}").await;
    assert_eq!(terminal.end().await.1, Ok(0));
    let terminal = Terminal::open(&host, &runtime, &id, &["sh"]).await;
    terminal.keys("exit 7\n").await;
    assert_eq!(terminal.end().await.1, Ok(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_size_is_a_signal() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let script = "trap 'stty size' WINCH; echo ready; while :; do read line; done";
    let mut terminal = Terminal::open(&host, &runtime, &id, &["sh", "-c", script]).await;
    terminal.until("ready").await;
    for (width, height) in [(101, 37), (80, 24)] {
        terminal.session.resize.as_ref().unwrap().send(TerminalSize { width, height }).await.unwrap();
        terminal.until(&format!("{height} {width}")).await;
    }
}

/// How many descriptors the keepers have open.
fn descriptors(host: &Host) -> usize {
    let mut open = 0;
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        if !cmdline.contains(&*host.config.run_dir.to_string_lossy()) {
            continue;
        }
        let Ok(list) = std::fs::read_dir(process.path().join("fd")) else { continue };
        open += list.flatten().count();
    }
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_leaves_leaves_nothing() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let inside = async |script: &str| {
        let command = ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let result = runtime.exec_sync(&id, &command, None).await.unwrap();
        String::from_utf8(result.stdout).unwrap()
    };
    let before = descriptors(&host);
    for _ in 0..5 {
        let mut terminal = Terminal::open(&host, &runtime, &id, &["sh"]).await;
        terminal.keys("echo here-$((1 + 1)); sleep 1000 & sleep 2000\n").await;
        terminal.until("here-2").await;
        drop(terminal);
    }
    let gone = async {
        loop {
            let terminals = inside("cd /dev/pts; echo *").await;
            // Background jobs go on, as they do when a terminal's window is closed: only without a terminal.
            if terminals.trim() == "ptmx" && inside("ps").await.matches("sleep 2000").count() == 0 {
                return;
            }
        }
    };
    let ended = host.clock.timeout(Duration::from_secs(30), gone).await;
    assert!(ended.is_some(), "{} {}", inside("cd /dev/pts; echo *").await, inside("ps").await);
    let closed = async { while descriptors(&host) > before {} };
    host.clock.timeout(Duration::from_secs(30), closed).await.expect("the keeper closes what it opened");
    for sandbox in std::fs::read_dir(host.config.run_dir.join("sandboxes")).unwrap().flatten() {
        for file in std::fs::read_dir(sandbox.path()).unwrap().flatten() {
            assert!(!file.file_name().to_string_lossy().starts_with("exec-"), "{file:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn much_output_through_a_terminal_is_whole() {
    let host = Host::new();
    let runtime = host.open().await;
    let id = run(&host, &runtime, &shell("exec sleep 1000")).await;
    let script = "busybox yes | head -c 5000000";
    let terminal = Terminal::open(&host, &runtime, &id, &["sh", "-c", script]).await;
    let (seen, exit) = terminal.end().await;
    assert_eq!(exit, Ok(0));
    // A terminal puts a carriage return before every line feed.
    assert_eq!(seen.len(), 7_500_000);
}
