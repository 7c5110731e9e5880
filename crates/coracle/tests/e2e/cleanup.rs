//! After any crash `up` repairs and `down --purge` leaves nothing; many Pods that come and go leave the machine as it
//! was.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coracle_clock::Clock;
use rustix::process::{Pid, Signal, kill_process};

use crate::bad_input::left;
use crate::cli::traces;
use crate::lifecycle::pod;
use crate::support::{Cluster, busybox_archive, check, patience};

/// Ends when it is told to.
const SLEEPER: &str = "trap exit TERM; while :; do sleep 0.1; done";

/// How often processes are killed in the middle of making Pods.
const KILLS: u64 = 6;

fn wait_until_ready(cluster: &Cluster) {
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=50s"]);
}

/// The process ids of a Pod's keeper and of its container.
fn keeper_and_container(cluster: &Cluster, name: &str) -> (Pid, Pid) {
    let runtime = cluster.data().join("runtime/containers");
    let uid = cluster.get(&["pod", name])["metadata"]["uid"].as_str().unwrap().to_owned();
    let started = fs::read_dir(runtime).unwrap().find_map(|entry| {
        let directory = entry.unwrap().path();
        let record = fs::read_to_string(directory.join("container.json")).ok()?;
        record.contains(&uid).then(|| fs::read(directory.join("start.json")).unwrap())
    });
    let started: serde_json::Value = serde_json::from_slice(&started.unwrap()).unwrap();
    let container = i32::try_from(started["pid"].as_i64().unwrap()).unwrap();
    let status = fs::read_to_string(format!("/proc/{container}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    (Pid::from_raw(parent).unwrap(), Pid::from_raw(container).unwrap())
}

/// How many sandboxes the node has, by their network namespaces.
fn sandboxes(cluster: &Cluster) -> usize {
    let directory = Path::new("/tmp/coracle-e2e/run").join(cluster.name()).join("sandboxes");
    fs::read_dir(directory).map_or(0, Iterator::count)
}

#[test]
fn whatever_is_killed_up_repairs_it_and_purge_leaves_nothing() {
    let cluster = Cluster::start();
    for name in ["keeper", "container", "both", "neither"] {
        cluster.apply(&pod(name, "Always", SLEEPER));
    }
    wait_until_ready(&cluster);
    let untouched = cluster.get(&["pod", "neither"])["status"]["containerStatuses"].clone();
    let kill = |pid: Pid| kill_process(pid, Signal::KILL).unwrap();
    // While the cluster runs, and while it does not.
    kill(keeper_and_container(&cluster, "keeper").0);
    kill(keeper_and_container(&cluster, "container").1);
    let (keeper, container) = keeper_and_container(&cluster, "both");
    cluster.kill();
    kill(container);
    kill(keeper);
    cluster.must(&["up"]);
    for name in ["keeper", "container", "both"] {
        cluster.wait("its restart", &["pod", name], |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            status["ready"] == true && status["restartCount"] == 1
        });
    }
    assert_eq!(cluster.get(&["pod", "neither"])["status"]["containerStatuses"], untouched);

    // In the middle of making Pods, each time a little later.
    for turn in 0..KILLS {
        let manifests: Vec<_> = (0..4).map(|i| pod(&format!("p-{turn}-{i}"), "Always", SLEEPER)).collect();
        cluster.apply(&manifests.join("---\n"));
        pause(Duration::from_millis(40 * turn));
        cluster.kill();
        cluster.must(&["up"]);
    }
    wait_until_ready(&cluster);
    let pods = cluster.kubectl(&["get", "pods", "-o", "name"]).lines().count();
    assert_eq!(pods, 4 + 4 * usize::try_from(KILLS).unwrap());
    eventually("one sandbox for each Pod", || sandboxes(&cluster) == pods);

    // In the middle of deleting them.
    cluster.kubectl(&["delete", "pod", "--all", "--wait=false", "--grace-period=1"]);
    pause(Duration::from_millis(200));
    cluster.kill();
    cluster.must(&["up"]);
    eventually("all Pods to go", || cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty());
    eventually("all sandboxes to go", || sandboxes(&cluster) == 0);

    // A crash that nobody repairs.
    let manifests: Vec<_> = (0..8).map(|i| pod(&format!("last-{i}"), "Always", SLEEPER)).collect();
    cluster.apply(&manifests.join("---\n"));
    pause(Duration::from_millis(150));
    cluster.kill();
    for _ in 0..2 {
        cluster.must(&["down", "--purge"]);
        assert_eq!(left(&cluster), Vec::<String>::new());
    }
}

#[test]
fn a_cluster_of_the_same_name_elsewhere_leaves_this_one_alone() {
    let cluster = Cluster::start();
    cluster.apply(&pod("p", "Always", SLEEPER));
    wait_until_ready(&cluster);
    // Where images have room: a machine's /tmp may be memory.
    fs::create_dir_all("/var/tmp").unwrap();
    let other = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = other.path().join("data");
    let coracle = |arguments: &[&str]| {
        let mut command = Command::new(&cluster.program);
        command.args(["--name", cluster.name(), "--run-dir", "/tmp/coracle-e2e/run", "--data-dir"]);
        command.arg(&data).args(arguments).output().unwrap()
    };
    let before = inventory(&cluster);
    let refused = coracle(&["up"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("with another --data-dir"), "{refused:?}");
    assert!(!refused.status.success() && !data.exists());
    // The same where something is already: images may be imported before the first start.
    check(&coracle(&["image", "import", busybox_archive().to_str().unwrap()]), "coracle image import");
    assert!(!coracle(&["up"]).status.success() && data.join(cluster.name()).join("images").exists());
    check(&coracle(&["down", "--purge"]), "coracle down --purge");
    assert!(!data.exists());
    assert_eq!(inventory(&cluster), before);
    let running = cluster.get(&["pod", "p"]);
    assert_eq!(running["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(cluster.kubectl(&["exec", "p", "--", "echo", "here"]), "here\n");
}

/// What Pods could leave on the machine and in the cluster's directories.
fn inventory(cluster: &Cluster) -> BTreeSet<String> {
    let mut found: BTreeSet<String> =
        traces(cluster.name()).into_iter().filter(|trace| !trace.starts_with("link")).collect();
    let settings = fs::read(cluster.data().join("cluster.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
    let bridge = Path::new("/sys/class/net").join(settings["bridge"].as_str().unwrap()).join("brif");
    found.extend(entries(&bridge).map(|port| format!("port {port}")));
    let table = format!("coracle-{}", cluster.name());
    let rules = Command::new("nft").args(["list", "table", "ip", &table]).output().unwrap();
    found.extend(String::from_utf8(rules.stdout).unwrap().lines().map(|rule| format!("rule {rule}")));
    // The store grows and shrinks by segments; a log is a log.
    let of_their_own = ["store", "coracle.log", "kubectl-home"];
    let run = Path::new("/tmp/coracle-e2e/run").join(cluster.name());
    walk(&run, &mut found);
    for name in entries(&cluster.data()).filter(|name| !of_their_own.contains(&name.as_str())) {
        walk(&cluster.data().join(name), &mut found);
    }
    for hierarchy in ["memory", "cpu", "pids", "unified", "."] {
        walk(&Path::new("/sys/fs/cgroup").join(hierarchy).join(&table), &mut found);
    }
    found
}

fn entries(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Everything below a directory; the files of layers are not of interest.
fn walk(path: &Path, found: &mut BTreeSet<String>) {
    found.insert(format!("file {}", path.display()));
    if path.is_dir() && !path.is_symlink() && !path.ends_with("layers") {
        entries(path).for_each(|name| walk(&path.join(name), found));
    }
}

fn descriptors(cluster: &Cluster) -> usize {
    let lock = fs::read_to_string(cluster.data().join("lock")).unwrap();
    fs::read_dir(format!("/proc/{}/fd", lock.split_whitespace().next().unwrap())).unwrap().count()
}

/// Makes Pods in batches, and deletes them.
fn come_and_go(pods: usize, batch: usize) {
    let cluster = Cluster::start();
    let batch_of = |turn: usize| {
        let manifests: Vec<_> =
            (0..batch).map(|i| pod(&format!("p-{turn}-{i}"), "Always", SLEEPER)).collect();
        cluster.apply(&manifests.join("---\n"));
        wait_until_ready(&cluster);
        cluster.kubectl(&["delete", "pod", "--all", "--grace-period=1", "--timeout=50s"]);
    };
    // The first Pods make what stays.
    batch_of(0);
    eventually("all sandboxes to go", || sandboxes(&cluster) == 0);
    let (before, descriptors_before) = (inventory(&cluster), descriptors(&cluster));
    for turn in 1..=pods.div_ceil(batch) {
        batch_of(turn);
    }
    let mut difference = Vec::new();
    for _ in 0..50 * patience() {
        let after = inventory(&cluster);
        difference = before.symmetric_difference(&after).cloned().collect();
        if difference.is_empty() {
            break;
        }
        pause(Duration::from_millis(100));
    }
    assert_eq!(difference, Vec::<String>::new(), "as it was before");
    // Connections of the last requests may be open yet.
    let descriptors_after = descriptors(&cluster);
    assert!(descriptors_after <= descriptors_before + 8, "{descriptors_before} became {descriptors_after}");
    cluster.must(&["down", "--purge"]);
    assert_eq!(left(&cluster), Vec::<String>::new());
}

#[test]
fn pods_that_come_and_go_leave_the_machine_as_it_was() {
    come_and_go(40, 20);
}

#[test]
#[ignore = "takes minutes: `make soak`"]
fn soak_a_thousand_pods_leave_the_machine_as_it_was() {
    come_and_go(1000, 50);
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::system();
    while !holds() {
        assert!(clock.elapsed() < Duration::from_secs(60) * patience(), "waited in vain for {what}");
        pause(Duration::from_millis(50));
    }
}

/// For what happens outside of this process, at a moment that is not to be met exactly.
#[allow(clippy::disallowed_methods, reason = "the condition is outside of this process")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
