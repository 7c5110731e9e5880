//! Reading real files: options, rotation while following, and paths that are refused.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;
use futures::FutureExt;
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::decode::Decoder;
use super::*;

struct Log {
    root: tempfile::TempDir,
    path: PathBuf,
}

impl Log {
    fn new(text: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ns_pod_uid/app/0.log");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        Log { root, path }
    }

    fn append(&self, text: &str) {
        OpenOptions::new().append(true).open(&self.path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn options(query: &str) -> LogOptions {
        LogOptions::parse(query, "2026-11-21T12:00:00Z".parse().unwrap()).unwrap()
    }

    async fn read(&self, query: &str) -> Result<String, LogError> {
        let watcher = LogWatcher::new().unwrap();
        let ended = std::future::ready(()).boxed();
        let options = Self::options(query);
        let mut reader = LogReader::open(self.root.path(), &self.path, &options, &watcher, ended).await?;
        let mut output = Vec::new();
        while let Some(chunk) = reader.next_chunk().await {
            output.extend_from_slice(&chunk?);
        }
        Ok(String::from_utf8(output).unwrap())
    }
}

const FIVE: &str = "\
2026-11-21T11:00:00.1Z stdout F one
2026-11-21T11:10:00.123456789Z stderr F two
2026-11-21T11:20:00Z stdout P thr
2026-11-21T11:20:00.000000001Z stdout F ee
2026-11-21T11:59:30Z stdout F 
";

#[tokio::test]
async fn options_select_lines_as_upstream_does() {
    let torn = format!("{FIVE}2026-11-21T11:59:50Z stdout F to");
    let torn_head = format!("{FIVE}2026-11-21T11:59:50Z stdo");
    let garbage = format!("no log line\n{{\"log\":\"docker\"}}\n{}\n{FIVE}", "x".repeat(100_000));
    let table: &[(&str, &str, &str)] = &[
        (FIVE, "", "one\ntwo\nthree\n\n"),
        ("", "", ""),
        ("", "tailLines=5", ""),
        // A part of a line counts as a line, and may be cut off from its beginning.
        (FIVE, "tailLines=0", ""),
        (FIVE, "tailLines=1", "\n"),
        (FIVE, "tailLines=2", "ee\n\n"),
        (FIVE, "tailLines=3", "three\n\n"),
        (FIVE, "tailLines=5", "one\ntwo\nthree\n\n"),
        (FIVE, "tailLines=6", "one\ntwo\nthree\n\n"),
        (FIVE, "tailLines=9223372036854775807", "one\ntwo\nthree\n\n"),
        (FIVE, "sinceSeconds=3000", "two\nthree\n\n"),
        (FIVE, "sinceTime=2026-11-21T11:10:00.123456789Z", "two\nthree\n\n"),
        (FIVE, "sinceTime=2026-11-21T11:10:00.12345679Z", "three\n\n"),
        (FIVE, "sinceTime=2026-11-21T11:20:00.000000001Z", "ee\n\n"),
        (FIVE, "sinceTime=2026-11-21T12:20:00%2B01:00", "three\n\n"),
        (FIVE, "sinceTime=2027-01-01T00:00:00Z", ""),
        (FIVE, "limitBytes=1", "o"),
        (FIVE, "limitBytes=4", "one\n"),
        (FIVE, "limitBytes=5", "one\nt"),
        (FIVE, "limitBytes=10", "one\ntwo\nth"),
        (FIVE, "limitBytes=1000", "one\ntwo\nthree\n\n"),
        (FIVE, "tailLines=3&limitBytes=4", "thre"),
        (FIVE, "sinceSeconds=3000&tailLines=5&limitBytes=5", "two\nt"),
        (FIVE, "stream=Stderr", "two\n"),
        (FIVE, "stream=Stdout", "one\nthree\n\n"),
        (
            FIVE,
            "timestamps=true",
            "2026-11-21T11:00:00.100000000Z one\n2026-11-21T11:10:00.123456789Z two\n\
             2026-11-21T11:20:00.000000000Z three\n2026-11-21T11:59:30.000000000Z \n",
        ),
        (FIVE, "timestamps=true&limitBytes=33", "2026-11-21T11:00:00.100000000Z on"),
        (
            "2026-11-21T11:00:00+02:00 stdout F a\n",
            "timestamps=true",
            "2026-11-21T11:00:00.000000000+02:00 a\n",
        ),
        (&torn, "", "one\ntwo\nthree\n\nto"),
        (&torn, "tailLines=1", "\n"),
        (&torn, "tailLines=0&follow=true", "to"),
        (&torn_head, "", "one\ntwo\nthree\n\n"),
        (&garbage, "", "one\ntwo\nthree\n\n"),
        ("2026-11-21T11:00:00Z stdout F:x:y a\n", "", "a\n"),
        ("2026-11-21T11:00:00Z stdout P:x a\n2026-11-21T11:00:00Z stdout F b\n", "", "ab\n"),
        ("2026-11-21T11:00:00Z stdin F a\n2026-11-21T11:00:00Z stdout F\nyesterday stdout F c\n", "", ""),
        ("2026-11-21T11:00:00Z stdout F   two blanks\r\n", "", "  two blanks\r\n"),
    ];
    for (text, query, expected) in table {
        let log = Log::new(text);
        assert_eq!(
            log.read(query).await.unwrap(),
            *expected,
            "{query:?} of {:?}",
            &text[..text.len().min(400)]
        );
    }
}

#[tokio::test]
async fn a_long_log_is_read_from_near_its_end() {
    let mut text = String::new();
    for number in 0..50_000 {
        use std::fmt::Write as _;
        writeln!(text, "2026-11-21T11:00:00Z stdout F line {number}").unwrap();
    }
    let log = Log::new(&text);
    let last: String = (40_000..50_000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(log.read("tailLines=10000").await.unwrap(), last);
    let end = last_output(log.root.path(), &log.path, 80, 20).unwrap();
    assert_eq!(end, b"ne 49998\nline 49999\n");
    assert_eq!(last_output(log.root.path(), &log.path, 1, 2048).unwrap(), b"line 49999\n");
}

/// A follower in a task, and what it has read so far.
struct Follower {
    output: coracle_clock::watch::Receiver<Vec<u8>>,
    end: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<Result<(), LogError>>,
    watcher: Arc<LogWatcher>,
    driver: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Follower {
    async fn start(log: &Log, query: &str) -> Self {
        let watcher = LogWatcher::new().unwrap();
        let driver = tokio::spawn({
            let watcher = Arc::clone(&watcher);
            async move { watcher.run().await }
        });
        let (end, ended) = oneshot::channel();
        let (sender, output) = coracle_clock::watch::channel(Vec::new());
        let ended = ended.map(drop).boxed();
        let options = Log::options(query);
        let mut reader =
            LogReader::open(log.root.path(), &log.path, &options, &watcher, ended).await.unwrap();
        let task = tokio::spawn(async move {
            while let Some(chunk) = reader.next_chunk().await {
                let chunk = chunk?;
                sender.send_modify(|output| output.extend_from_slice(&chunk));
            }
            Ok(())
        });
        Follower { output, end: Some(end), task, watcher, driver }
    }

    async fn wait_for(&mut self, text: &str) {
        let seen = Clock::system()
            .timeout(Duration::from_secs(10), self.output.wait_for(|output| output == text.as_bytes()))
            .await
            .is_some();
        assert!(seen, "{:?} instead of {text:?}", String::from_utf8_lossy(&self.output.borrow()));
    }

    async fn finish(mut self) -> String {
        self.end.take().unwrap().send(()).unwrap();
        Clock::system().timeout(Duration::from_secs(10), &mut self.task).await.unwrap().unwrap().unwrap();
        assert_eq!(self.watcher.watched(), 0, "the follower leaves no watch behind");
        self.driver.abort();
        String::from_utf8(self.output.borrow().clone()).unwrap()
    }
}

fn line(text: &str) -> String {
    format!("2026-11-21T11:30:00Z stdout F {text}\n")
}

#[tokio::test]
async fn a_follower_sees_what_is_written_later() {
    let log = Log::new(FIVE);
    let mut follower = Follower::start(&log, "follow=true&tailLines=1").await;
    follower.wait_for("\n").await;
    log.append(&line("six"));
    follower.wait_for("\nsix\n").await;
    log.append("2026-11-21T11:30:00Z stdout F sev");
    follower.wait_for("\nsix\nsev").await;
    log.append("en\n2026-11-21T11:3");
    follower.wait_for("\nsix\nseven\n").await;
    log.append("0:00Z stdout F eight\n");
    follower.wait_for("\nsix\nseven\neight\n").await;
    assert_eq!(follower.finish().await, "\nsix\nseven\neight\n");
}

#[tokio::test]
async fn a_follower_goes_through_rotations() {
    let log = Log::new(&line("one"));
    let mut follower = Follower::start(&log, "follow=true").await;
    follower.wait_for("one\n").await;

    // Renamed; the writer goes on with the old file until it is told to open its log again.
    let old = log.path.with_file_name("0.log.20261121-113000");
    fs::rename(&log.path, &old).unwrap();
    let mut writer = OpenOptions::new().append(true).open(&old).unwrap();
    writer.write_all(line("two").as_bytes()).unwrap();
    follower.wait_for("one\ntwo\n").await;
    writer.write_all(line("three").as_bytes()).unwrap();
    fs::write(&log.path, line("four")).unwrap();
    follower.wait_for("one\ntwo\nthree\nfour\n").await;

    // Replaced by another file of the same name.
    log.append(&line("five"));
    let new = log.path.with_file_name("new");
    fs::write(&new, line("six")).unwrap();
    fs::rename(&new, &log.path).unwrap();
    follower.wait_for("one\ntwo\nthree\nfour\nfive\nsix\n").await;

    // Truncated in place.
    fs::write(&log.path, "").unwrap();
    log.append(&line("7"));
    follower.wait_for("one\ntwo\nthree\nfour\nfive\nsix\n7\n").await;
    follower.finish().await;
}

/// A busy container fills several logs while a follower reads one; the oldest are removed.
#[tokio::test]
async fn a_follower_misses_no_log_that_is_kept() {
    let log = Log::new(&line("one"));
    let rotate = |second: u32| {
        fs::rename(&log.path, log.path.with_file_name(format!("0.log.20261121-11300{second}"))).unwrap();
    };
    fs::write(log.path.with_file_name("0.log.20261121-112959"), line("before")).unwrap();
    let mut reader = LogReader::open(
        log.root.path(),
        &log.path,
        &Log::options("follow=true"),
        &LogWatcher::new().unwrap(),
        async {}.boxed(),
    )
    .await
    .unwrap();
    let mut output = reader.next_chunk().await.unwrap().unwrap().to_vec();
    for (second, text) in ["two", "three", "four", "five"].into_iter().enumerate() {
        rotate(u32::try_from(second).unwrap());
        fs::write(&log.path, line(text)).unwrap();
    }
    fs::remove_file(log.path.with_file_name("0.log.20261121-113000")).unwrap();
    fs::remove_file(log.path.with_file_name("0.log.20261121-113001")).unwrap();
    while let Some(chunk) = reader.next_chunk().await {
        output.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(String::from_utf8(output).unwrap(), "one\nthree\nfour\nfive\n");
}

#[test]
fn rotated_logs_go_with_their_log() {
    let log = Log::new("");
    for name in ["0.log.20261121-113000", "0.log.other", "10.log", "1.log.20261121-113000"] {
        fs::write(log.path.with_file_name(name), "").unwrap();
    }
    remove_logs(&log.path);
    let entries = fs::read_dir(log.path.parent().unwrap()).unwrap();
    let mut left: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["0.log.other", "1.log.20261121-113000", "10.log"]);
}

#[tokio::test]
async fn what_was_written_before_the_end_is_read() {
    let log = Log::new("");
    let follower = Follower::start(&log, "follow=true").await;
    log.append(&line("one"));
    fs::rename(&log.path, log.path.with_file_name("0.log.1")).unwrap();
    fs::write(&log.path, line("two")).unwrap();
    assert_eq!(follower.finish().await, "one\ntwo\n");
}

#[tokio::test]
async fn a_limit_ends_a_follower_whose_container_runs_on() {
    let log = Log::new(&line("one"));
    let follower = Follower::start(&log, "follow=true&limitBytes=6").await;
    log.append(&line("two"));
    follower.task.await.unwrap().unwrap();
    assert_eq!(*follower.output.borrow(), b"one\ntw");
    follower.driver.abort();
}

#[tokio::test]
async fn followers_of_one_directory_share_its_watch() {
    let log = Log::new("");
    let watcher = LogWatcher::new().unwrap();
    let options = Log::options("follow=true");
    let open = || async {
        let never = std::future::pending().boxed();
        LogReader::open(log.root.path(), &log.path, &options, &watcher, never).await.unwrap()
    };
    let (first, second) = (open().await, open().await);
    assert_eq!(watcher.watched(), 1);
    drop(first);
    assert_eq!(watcher.watched(), 1);
    drop(second);
    assert_eq!(watcher.watched(), 0);
}

#[tokio::test]
async fn only_regular_files_below_the_root_are_read() {
    let log = Log::new(FIVE);
    let read = async |root: &Path, path: &Path| {
        let watcher = LogWatcher::new().unwrap();
        let ended = std::future::ready(()).boxed();
        LogReader::open(root, path, &LogOptions::default(), &watcher, ended).await
    };
    let root = log.root.path();
    let directory = log.path.parent().unwrap();

    std::os::unix::fs::symlink("/etc/passwd", directory.join("1.log")).unwrap();
    std::os::unix::fs::symlink(directory, directory.join("../link")).unwrap();
    let fifo = directory.join("2.log");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();

    for path in ["ns_pod_uid/app/1.log", "ns_pod_uid/link/0.log", "ns_pod_uid/app/2.log", "ns_pod_uid/app"] {
        let error = read(root, &root.join(path)).await.unwrap_err();
        assert!(matches!(error, LogError::NotRegular { .. }), "{path}: {error}");
    }
    let outside = ["ns_pod_uid/../../etc/passwd", ""].map(|path| root.join(path));
    for path in
        outside.iter().map(PathBuf::as_path).chain([Path::new("/etc/passwd"), Path::new("etc/passwd")])
    {
        let error = read(root, path).await.unwrap_err();
        assert!(matches!(error, LogError::Outside { .. }), "{}: {error}", path.display());
    }
    let missing = root.join("ns_pod_uid/app/9.log");
    let error = read(root, &missing).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("failed to open log file {missing:?}: ")), "{error}");
}

proptest! {
    /// Where the file is cut into pieces makes no difference.
    #[test]
    fn pieces_of_any_size_give_the_same_output(
        lines in proptest::collection::vec("(2026-11-21T11:00:0[0-9](\\.[0-9]{1,9})?Z (stdout|stderr) (F|P)( [a-z ]{0,9})?|[a-z ]{0,300})", 0..12),
        cuts in proptest::collection::vec(1_usize..40, 0..80),
        query in "(timestamps=true)?(&sinceTime=2026-11-21T11:00:05Z)?(&limitBytes=[1-9][0-9]?)?",
    ) {
        let text = lines.join("\n");
        let decode = |pieces: &[&[u8]]| {
            let mut decoder = Decoder::new(&Log::options(&query));
            let mut output = Vec::new();
            for piece in pieces {
                if decoder.push(piece, &mut output).is_break() {
                    break;
                }
            }
            output
        };
        let whole = decode(&[text.as_bytes()]);
        let (mut rest, mut pieces) = (text.as_bytes(), Vec::new());
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(decode(&pieces), whole);
    }
}
