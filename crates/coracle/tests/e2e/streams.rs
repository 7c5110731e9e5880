//! Streams in and out of Pods, with both kubectls: attach, run, port-forward, cp, exec with much input, logs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Cluster, IMAGE, Kubectl, check, patience, root};

pub(crate) const BOTH: [(Kubectl, &str); 2] = [(Kubectl::V37, "v37"), (Kubectl::V32, "v32")];

fn pod(name: &str, fields: &str, script: &str) -> String {
    let script = serde_json::Value::from(script);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - name: main\n    image: {IMAGE}\n    command: [sh, -c, {script}]\n    {fields}\n"
    )
}

pub(crate) fn start(cluster: &Cluster, name: &str, fields: &str, script: &str) {
    cluster.apply(&pod(name, fields, script));
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=30s"]);
}

/// A process that is killed when it is not needed any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// kubectl at a terminal: what is typed goes in, what is on the screen comes out.
pub(crate) struct Terminal {
    process: Running,
    stdin: std::process::ChildStdin,
    screen: std::process::ChildStdout,
    seen: String,
}

impl Terminal {
    pub(crate) fn open(cluster: &Cluster, version: Kubectl, arguments: &[&str]) -> Self {
        let kubectl = cluster.kubectl_command(version);
        let words = kubectl.get_args().chain(arguments.iter().map(std::ffi::OsStr::new));
        let quoted: Vec<String> =
            words.map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"))).collect();
        // By its path: a shell that is busybox would run its own.
        let mut child = Command::new("script")
            .args(["-qec", &format!("exec /usr/bin/timeout --foreground {}", quoted.join(" ")), "/dev/null"])
            .envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Terminal { process: Running(child), stdin, screen, seen: String::new() }
    }

    pub(crate) fn keys(&mut self, keys: &str) {
        self.stdin.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the text is on the screen. `timeout` ends the program if it never is.
    pub(crate) fn until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let mut buffer = [0; 1024];
            let length = self.screen.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "the end instead of {text:?} after {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    /// What came to the end, and the exit code.
    pub(crate) fn end(mut self) -> (String, Option<i32>) {
        let mut rest = Vec::new();
        self.screen.read_to_end(&mut rest).unwrap();
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        (self.seen.clone(), self.process.0.wait().unwrap().code())
    }
}

#[test]
fn attaching_and_running_with_input() {
    let cluster = Cluster::start();
    for (version, name) in BOTH {
        // Input that is piped in, a container that has it once, and its Pod removed afterwards.
        let arguments =
            ["run", name, "-i", "--rm", "--restart=Never", "--image", IMAGE, "--quiet", "--", "sh", "-c"];
        let count = [&arguments[..], &["echo; wc -c"]].concat();
        let million = "x".repeat(1_000_000);
        let output = cluster.run_kubectl(version, &count, &million);
        check(&output, "kubectl run -i --rm");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("1000000\n"), "{said}");
        let gone = cluster.kubectl_fails(&["get", "pod", name], "");
        assert!(gone.contains("not found"), "{gone}");

        // What the program ends with is what kubectl ends with.
        let fails = [&arguments[..], &["read line; echo got-$line; exit 3"]].concat();
        let output = cluster.run_kubectl(version, &fails, "this\n");
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));

        // A person at a shell, who leaves it.
        let shell = ["run", name, "-it", "--rm", "--restart=Never", "--image", IMAGE, "--", "sh"];
        let mut terminal = Terminal::open(&cluster, version, &shell);
        terminal.keys("\n");
        terminal.until("/ # ");
        terminal.keys("tty; echo sum-$((40 + 2))\n");
        terminal.until("/dev/pts/");
        terminal.until("sum-42");
        terminal.keys("exit 4\n");
        let (screen, code) = terminal.end();
        assert_eq!(code, Some(4), "{screen}");
        assert!(screen.contains(&format!("pod \"{name}\" deleted")), "{screen}");
        let gone = cluster.kubectl_fails(&["get", "pod", name], "");
        assert!(gone.contains("not found"), "{gone}");

        // Attaching to what runs, leaving it, and attaching again.
        let example = root().join("examples/pods").join("interactive").with_extension("yaml");
        cluster.kubectl(&["apply", "-f", example.to_str().unwrap()]);
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=30s"]);
        for word in ["one", "two"] {
            let mut child = Running(
                cluster
                    .kubectl_command(version)
                    .args(["attach", "-i", "reader"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap(),
            );
            let mut stdin = child.0.stdin.take().unwrap();
            writeln!(stdin, "{word}").unwrap();
            let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == format!("you said: {word}")), "{word}");
        }
        let said = cluster.kubectl_with(version, &["logs", "reader"], "");
        assert_eq!(said, "you said: one\nyou said: two\n");
        cluster.kubectl(&["delete", "pod", "reader", "--now"]);
        let refused = cluster.run_kubectl(version, &["attach", "absent"], "");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("pods \"absent\" not found"));
    }
}

/// `kubectl port-forward`, and the port of this machine that it listens at.
fn forward(cluster: &Cluster, version: Kubectl, pod: &str, port: u16, websocket: bool) -> (Running, u16) {
    let mut child = cluster
        .kubectl_command(version)
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket.to_string())
        .args(["port-forward", "--address=127.0.0.1", pod, &format!(":{port}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let local = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    (Running(child), local.unwrap_or_else(|| panic!("{line:?}")))
}

#[test]
fn ports_are_forwarded() {
    let cluster = Cluster::start();
    // A web server, and one that says how many bytes came when there are no more.
    let script = "mkdir /www; head -c 20000000 /dev/zero > /www/big; echo page > /www/index.html; \
                  nc -ll -p 9090 -e wc -c & exec httpd -f -p 8080 -h /www";
    start(&cluster, "server", "ports: [{containerPort: 8080, name: http}]", script);
    let listens = "until wget -qO- http://127.0.0.1:8080/index.html; do sleep 0.1; done";
    cluster.kubectl(&["exec", "server", "--", "timeout", "30", "sh", "-c", listens]);
    for (version, _) in BOTH {
        for websocket in [true, false] {
            let (kubectl, port) = forward(&cluster, version, "pod/server", 8080, websocket);
            let get = |path: &str| {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(30) * patience())).unwrap();
                write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                let body = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
                answer.split_off(body)
            };
            assert_eq!(get("/index.html"), b"page\n");
            let sizes: Vec<usize> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| get("/big").len())).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(sizes, [20_000_000; 3]);
            drop(kubectl);
        }
        let (_kubectl, port) = forward(&cluster, version, "pod/server", 9090, true);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30) * patience())).unwrap();
        stream.write_all(&vec![b'x'; 20_000_000]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut counted = String::new();
        stream.read_to_string(&mut counted).unwrap();
        assert_eq!(counted.trim(), "20000000");

        // Nobody listens there.
        let (mut kubectl, port) = forward(&cluster, version, "pod/server", 7070, true);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _ = stream.read(&mut [0]);
        let mut errors = BufReader::new(kubectl.0.stderr.take().unwrap()).lines();
        let words = "error forwarding port 7070 to pod ";
        let line = errors.find(|line| line.as_ref().is_ok_and(|line| line.contains(words)));
        let line = line.expect("kubectl says what is wrong").unwrap();
        assert!(line.contains("IPv4: dial tcp4 127.0.0.1:7070: connect: connection refused"), "{line}");
    }
}

#[test]
fn files_and_much_input_go_in_and_out() {
    let cluster = Cluster::start();
    start(&cluster, "box", "", "exec sleep 3600");
    let dir = tempfile();
    let (big, back) = (dir.join("big"), dir.join("back"));
    let bytes: Vec<u8> = (0..30_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&big, &bytes).unwrap();
    for (version, name) in BOTH {
        let run = |arguments: &[&str]| cluster.kubectl_with(version, arguments, "");
        let there = format!("box:/tmp/{name}");
        run(&["cp", big.to_str().unwrap(), &there]);
        let size = run(&["exec", "box", "--", "wc", "-c", &format!("/tmp/{name}")]);
        assert_eq!(size.split(' ').next(), Some("30000000"));
        run(&["cp", &there, back.to_str().unwrap()]);
        assert!(std::fs::read(&back).unwrap() == bytes, "the file is as it was");

        let mut child = Running(
            cluster
                .kubectl_command(version)
                .args(["exec", "-i", "box", "--", "sh", "-c", "md5sum; exit 3"])
                .stdin(std::fs::File::open(&big).unwrap())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let mut sum = String::new();
        child.0.stdout.take().unwrap().read_to_string(&mut sum).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(3));
        let here = Command::new("md5sum").arg(&big).output().unwrap();
        assert_eq!(sum.split(' ').next(), String::from_utf8(here.stdout).unwrap().split(' ').next());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

fn tempfile() -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("coracle-e2e-streams-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn logs_are_selected_and_followed() {
    let cluster = Cluster::start();
    start(&cluster, "steady", "", "echo one; echo two >&2; echo three; printf four; exec sleep 3600");
    cluster.apply(&pod("ends", "", "echo last words; exit 1"));
    cluster.wait("a restart", &["pods"], |pod| {
        pod["metadata"]["name"] == "ends" && pod["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    for (version, _) in BOTH {
        let logs = |arguments: &[&str]| {
            let all = [&["logs", "steady"][..], arguments].concat();
            cluster.kubectl_with(version, &all, "")
        };
        let mut lines: Vec<String> = logs(&[]).lines().map(str::to_owned).collect();
        lines.sort();
        // What has no end yet is not told: it may still grow.
        assert_eq!(lines, ["one", "three", "two"]);
        assert_eq!(logs(&["--tail=1"]).lines().count(), 1);
        assert_eq!(logs(&["--tail=0"]), "");
        assert_eq!(logs(&["--limit-bytes=2"]).len(), 2);
        assert_eq!(logs(&["--since=1h"]).lines().count(), 3);
        assert_eq!(logs(&["--since-time=2100-01-01T00:00:00Z"]), "");
        assert_eq!(logs(&["--since-time=2000-01-01T00:00:00Z"]).lines().count(), 3);
        let stamped = logs(&["--timestamps"]);
        for line in stamped.lines() {
            let (time, _) = line.split_once(' ').unwrap();
            assert!(time.len() == 30 && time.ends_with('Z'), "{line}");
        }
        assert!(logs(&["--all-containers", "--prefix"]).contains("[pod/steady/main] one\n"));
        for previous in [&["logs", "ends", "-p"][..], &["logs", "ends", "--previous", "--tail=5"]] {
            assert_eq!(cluster.kubectl_with(version, previous, ""), "last words\n");
        }
        let output = cluster.run_kubectl(version, &["logs", "steady", "-p"], "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = "Error from server (BadRequest): previous terminated container \"main\" in pod \"steady\" not found";
        assert!(said.contains(words), "{said}");
        let output = cluster.run_kubectl(version, &["logs", "steady", "-c", "other"], "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("container other is not valid for pod steady"), "{said}");
    }

    // Followed to the end of the container, through it being killed.
    let mut child = Running(
        cluster
            .kubectl_command(Kubectl::V37)
            .args(["logs", "-f", "steady", "--tail=1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut followed = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    followed.read_line(&mut line).unwrap();
    cluster.kubectl(&["delete", "pod", "steady", "--now"]);
    followed.read_to_string(&mut line).unwrap();
    assert!(line.ends_with("four"), "{line:?}: the end of the container is the end of its last line");
    assert!(child.0.wait().unwrap().success());
}
