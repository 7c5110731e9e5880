//! What users see of probes.

mod hooks;

use std::time::Duration;

use coracle_client::Deletion;
use coracle_cri::scripted::{Answer, Exit, ImageScript, OnStop, RunScript};
use serde_json::{Value, json};

use crate::cluster::Cluster;

pub(crate) const S: Duration = Duration::from_secs(1);

/// What is answered to these words, from so many seconds after the start on.
pub(crate) fn answer(words: &[&str], from: u64, code: i32) -> Answer {
    let command = words.iter().map(|word| (*word).to_owned()).collect();
    Answer { command, from: Duration::from_secs(from), code, ..Answer::default() }
}

fn run(answers: Vec<Answer>) -> RunScript {
    RunScript { answers, ..RunScript::default() }
}

fn image(cluster: &Cluster, runs: Vec<RunScript>) {
    cluster.image("app:1", ImageScript { runs, ..ImageScript::default() });
}

fn spec(probes: Value) -> Value {
    let mut container = json!({"name": "app", "image": "app:1"});
    for (name, value) in probes.as_object().unwrap() {
        container[name] = value.clone();
    }
    json!({"containers": [container], "terminationGracePeriodSeconds": 5})
}

/// Events about a Pod that concern its life, with how often each was told.
pub(crate) async fn told(cluster: &Cluster, pod: &str) -> Vec<String> {
    cluster.settle().await;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let mut events: Vec<_> = cluster.events.list();
    events.retain(|e| e.involved_object.name.as_deref() == Some(pod));
    events.sort_by_key(|e| e.first_timestamp.clone().map(|at| at.0));
    let usual = ["MissingClusterDNS", "Pulled", "Created", "Started"];
    let told = events.iter().filter(|e| !usual.contains(&text(&e.reason).as_str())).map(|e| {
        let path = e.involved_object.field_path.as_deref().unwrap_or("-");
        let (kind, reason, message) = (text(&e.type_), text(&e.reason), text(&e.message));
        format!("{kind} {reason} {message} ({path}) x{}", e.count.unwrap_or(1))
    });
    told.collect()
}

/// When the container was shown ready or not, in whole seconds since it first ran.
fn ready_changes(cluster: &Cluster, pod: &str) -> Vec<(u64, bool)> {
    let history = cluster.history(pod);
    let shown = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    let begun = history.iter().find(|(_, pod, _)| shown(pod)["state"]["running"].is_object());
    let begun = begun.map_or(0.0, |(_, _, at)| *at);
    let mut changes: Vec<(u64, bool)> = history
        .iter()
        .filter(|(_, pod, _)| shown(pod)["state"]["running"].is_object())
        .map(|(_, pod, at)| ((at - begun).round() as u64, shown(pod)["ready"] == true))
        .collect();
    changes.dedup_by_key(|(_, ready)| *ready);
    changes
}

async fn until_restarts(cluster: &Cluster, pod: &str, count: u64) {
    let wait = async {
        loop {
            let shown = cluster.last(pod).map(|(_, pod, _)| pod).unwrap_or_default();
            let status = &shown["status"]["containerStatuses"][0];
            if status["restartCount"].as_u64() >= Some(count) && status["state"]["running"].is_object() {
                return;
            }
            cluster.clock.sleep(S / 10).await;
        }
    };
    let done = cluster.clock.timeout(4000 * S, wait).await;
    assert!(done.is_some(), "waited for {count} restarts, saw {:#?}", cluster.steps(pod));
}

#[tokio::test(start_paused = true)]
async fn a_container_is_ready_as_long_as_its_readiness_probe_says_so_and_never_restarts_for_it() {
    let cluster = Cluster::start().await;
    let words = ["httpGet", "80", "/index.html"];
    image(&cluster, vec![run(vec![answer(&words, 0, 0), answer(&words, 35, 404), answer(&words, 75, 200)])]);
    let probe = json!({"httpGet": {"port": 80, "path": "index.html"}, "failureThreshold": 2});
    cluster.run("p", spec(json!({"readinessProbe": probe}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    cluster.clock.sleep(120 * S).await;
    // Asked at once, then every ten seconds; two failures in a row make it unready, one success ready again.
    assert_eq!(ready_changes(&cluster, "p"), [(0, false), (0, true), (50, false), (80, true)]);
    assert_eq!(
        told(&cluster, "p").await,
        [
            "Warning Unhealthy Readiness probe failed: HTTP probe failed with statuscode: 404 (spec.containers{app}) x4"
        ]
    );
    assert_eq!(cluster.runtime.calls(), ["run sandbox p 0", "create app 0", "start app"]);
    let unready = cluster.history("p").into_iter().map(|(_, pod, _)| pod);
    let unready = unready.filter(|pod| pod["status"]["containerStatuses"][0]["state"]["running"].is_object());
    let ready = |pod: &Value| crate::condition(pod, "Ready").clone();
    let unready = unready.map(|pod| ready(&pod)).rfind(|ready| ready["status"] == "False").unwrap();
    assert_eq!(unready["reason"], "ContainersNotReady");
    assert_eq!(unready["message"], "containers with unready status: [app]");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_fails_its_liveness_probe_is_restarted_with_no_word_from_the_api() {
    let cluster = Cluster::start().await;
    let refuses = RunScript { ready_after: 1000 * S, ..RunScript::default() };
    image(&cluster, vec![refuses, RunScript::default()]);
    let probe = json!({"httpGet": {"port": 8080}, "periodSeconds": 3});
    cluster.run("p", spec(json!({"livenessProbe": probe}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 1").await;
    assert_eq!(
        told(&cluster, "p").await,
        [
            "Warning Unhealthy Liveness probe failed: Get \"http://10.244.0.1:8080/\": dial tcp 10.244.0.1:8080: \
             connect: connection refused (spec.containers{app}) x3",
            "Normal Killing Container app failed liveness probe, will be restarted (spec.containers{app}) x1",
        ]
    );
    let calls = cluster.runtime.calls();
    let expected =
        ["run sandbox p 0", "create app 0", "start app", "stop app 5s", "create app 1", "start app"];
    assert_eq!(calls, expected);
    let history = cluster.history("p");
    let last = &history.last().unwrap().1["status"]["containerStatuses"][0];
    assert_eq!(last["lastState"]["terminated"]["exitCode"], 143);
    assert_eq!((&last["ready"], &last["started"]), (&json!(true), &json!(true)));
    // The new instance is asked, too, and lives.
    let begun = cluster.clock.elapsed().as_secs_f64();
    cluster.clock.sleep(30 * S).await;
    assert_eq!(cluster.asked.since(begun, 8080).len(), 10);
    assert_eq!(cluster.runtime.calls().len(), expected.len());
}

#[tokio::test(start_paused = true)]
async fn before_the_start_only_the_startup_probe_asks_and_afterwards_readiness_at_once() {
    let cluster = Cluster::start().await;
    image(&cluster, vec![run(vec![answer(&["tcpSocket", "1"], 0, 1), answer(&["tcpSocket", "1"], 25, 0)])]);
    let probes = json!({
        "startupProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 10, "failureThreshold": 5},
        "livenessProbe": {"tcpSocket": {"port": 2}, "periodSeconds": 4},
        "readinessProbe": {"tcpSocket": {"port": 3}},
    });
    cluster.run("p", spec(probes)).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    let begun = cluster.history("p").last().unwrap().2;
    cluster.clock.sleep(45 * S).await;
    let asked = |port| -> Vec<u64> {
        cluster.asked.since(0.0, port).iter().map(|q| (q.at - begun).round() as u64).collect()
    };
    assert_eq!(asked(1), [10, 20, 30]);
    assert_eq!(asked(3), [30, 40]);
    assert_eq!(asked(2), [34, 38, 42]);
    assert_eq!(ready_changes(&cluster, "p"), [(0, false), (30, true)]);
    let started: Vec<bool> = {
        let history = cluster.history("p");
        let shown = history.iter().map(|(_, pod, _)| pod["status"]["containerStatuses"][0].clone());
        let running = shown.filter(|status| status["state"]["running"].is_object());
        running.map(|status| status["started"] == true).collect()
    };
    assert!(!started[0] && started[started.len() - 1]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_startup_probe_restarts_with_the_grace_of_the_probe() {
    let cluster = Cluster::start().await;
    let stubborn = RunScript {
        answers: vec![answer(&["grpc", "9000", "db"], 0, 2)],
        on_stop: OnStop::Ignores,
        ..RunScript::default()
    };
    image(&cluster, vec![stubborn, RunScript::default()]);
    let probe = json!({
        "grpc": {"port": 9000, "service": "db"}, "periodSeconds": 2, "failureThreshold": 2,
        "terminationGracePeriodSeconds": 3,
    });
    cluster.run("p", spec(json!({"startupProbe": probe}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 1").await;
    assert_eq!(
        told(&cluster, "p").await,
        [
            "Warning Unhealthy Startup probe failed: service unhealthy (responded with \"NOT_SERVING\") \
             (spec.containers{app}) x2",
            "Normal Killing Container app failed startup probe, will be restarted (spec.containers{app}) x1",
        ]
    );
    assert!(cluster.runtime.calls().contains(&"stop app 3s".to_owned()));
    let history = cluster.history("p");
    let last = &history.last().unwrap().1["status"]["containerStatuses"][0];
    assert_eq!(last["lastState"]["terminated"]["exitCode"], 137);
}

#[tokio::test(start_paused = true)]
async fn commands_are_probes_whose_words_are_shown_and_whose_time_is_limited() {
    let cluster = Cluster::start().await;
    let cat = ["cat", "/tmp/healthy"];
    let mut gone = answer(&cat, 5, 1);
    gone.stderr = "cat: can't open '/tmp/healthy': No such file or directory\n".to_owned();
    let mut slow = answer(&cat, 15, 0);
    slow.takes = 100 * S;
    image(&cluster, vec![run(vec![answer(&cat, 0, 0), gone, slow])]);
    let container = json!({
        "readinessProbe": {"exec": {"command": ["cat", "$(DIR)/healthy"]}, "failureThreshold": 9},
        "env": [{"name": "DIR", "value": "/tmp"}],
    });
    cluster.run("p", spec(container)).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    cluster.clock.sleep(25 * S).await;
    assert_eq!(
        told(&cluster, "p").await,
        [
            "Warning Unhealthy Readiness probe failed: cat: can't open '/tmp/healthy': No such file or directory\n \
             (spec.containers{app}) x1",
            "Warning Unhealthy Readiness probe failed: command timed out: \"cat /tmp/healthy\" timed out after 1s \
             (spec.containers{app}) x1",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_port_by_a_name_that_nobody_has_counts_for_nothing_and_redirects_are_a_warning() {
    let cluster = Cluster::start().await;
    let mut moved = answer(&["httpGet", "80", "/"], 0, 302);
    moved.stdout = "gone".to_owned();
    image(&cluster, vec![run(vec![moved])]);
    let probes = json!({
        "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 2, "failureThreshold": 1},
        "readinessProbe": {"httpGet": {"port": 80}},
    });
    cluster.run("p", spec(probes)).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    cluster.clock.sleep(9 * S).await;
    assert_eq!(
        told(&cluster, "p").await,
        [
            "Warning ProbeWarning Readiness probe warning: Probe terminated redirects, Response body: gone \
             (spec.containers{app}) x2",
            "Warning Unhealthy Liveness probe errored and resulted in unknown state: strconv.Atoi: parsing \"http\": \
             invalid syntax (spec.containers{app}) x5",
        ]
    );
    assert_eq!(ready_changes(&cluster, "p").last(), Some(&(0, true)));
    assert_eq!(cluster.runtime.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_restarts_leave_one_prober() {
    let mut cluster = Cluster::without_agent().await;
    cluster.restart_backoff_max = 1;
    cluster.start_agent();
    cluster.give_pod_cidr().await;
    cluster.until_ready().await;
    let fails = RunScript { ready_after: 3 * S, exit: None, ..RunScript::default() };
    let mut runs = vec![fails; 100];
    runs.push(RunScript::default());
    image(&cluster, runs);
    let probe = json!({"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1});
    cluster.run("p", spec(json!({"livenessProbe": probe, "readinessProbe": probe}))).await;
    until_restarts(&cluster, "p", 100).await;
    cluster.settle().await;
    let begun = cluster.clock.elapsed().as_secs_f64();
    cluster.clock.sleep(100 * S).await;
    let asked = cluster.asked.since(begun, 1);
    assert_eq!(asked.len(), 200, "a prober for each of the two probes");
    let first = &asked[0].container;
    assert!(asked.iter().all(|question| question.container == *first));
}

#[tokio::test(start_paused = true)]
async fn with_its_pod_everything_ends_that_a_prober_has_begun() {
    let cluster = Cluster::start().await;
    let mut hangs = answer(&["tcpSocket", "1"], 0, 0);
    hangs.takes = 100_000 * S;
    image(&cluster, vec![run(vec![hangs])]);
    let probe = json!({"tcpSocket": {"port": 1}, "timeoutSeconds": 50_000});
    cluster.run("p", spec(json!({"livenessProbe": probe, "readinessProbe": probe}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    cluster.clock.sleep(30 * S).await;
    assert_eq!(cluster.asked.since(0.0, 1).len(), 2);
    cluster.delete("p", &Deletion::default().grace(1)).await;
    let end = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
    let wait = async {
        while !cluster.last("p").is_some_and(|(kind, pod, _)| kind == "DELETED" && end(&pod)) {
            cluster.clock.sleep(S / 10).await;
        }
    };
    assert!(cluster.clock.timeout(10 * S, wait).await.is_some(), "{:#?}", cluster.steps("p"));
    cluster.clock.sleep(60_000 * S).await;
    assert_eq!(cluster.asked.since(0.0, 1).len(), 2);
    assert!(told(&cluster, "p").await.iter().all(|event| !event.contains("Unhealthy")));
}

#[tokio::test(start_paused = true)]
async fn while_a_pod_ends_liveness_is_not_asked_and_readiness_is() {
    let cluster = Cluster::start().await;
    let stubborn = RunScript {
        answers: vec![answer(&["tcpSocket", "3"], 0, 0), answer(&["tcpSocket", "3"], 60, 1)],
        on_stop: OnStop::Ignores,
        ..RunScript::default()
    };
    image(&cluster, vec![stubborn]);
    let probe = |port: u16| json!({"tcpSocket": {"port": port}, "periodSeconds": 5, "failureThreshold": 1});
    cluster.run("p", spec(json!({"livenessProbe": probe(2), "readinessProbe": probe(3)}))).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    cluster.clock.sleep(52 * S).await;
    cluster.delete("p", &Deletion::default().grace(40)).await;
    cluster.settle().await;
    let begun = cluster.clock.elapsed().as_secs_f64();
    cluster.clock.sleep(30 * S).await;
    assert_eq!(cluster.asked.since(begun, 2).len(), 0);
    assert_eq!(cluster.asked.since(begun, 3).len(), 6);
    let history = cluster.history("p");
    let last = &history.last().unwrap().1;
    assert!(last["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(last["status"]["containerStatuses"][0]["ready"], false);
}

#[tokio::test(start_paused = true)]
async fn a_node_agent_that_starts_anew_keeps_ready_and_started_and_goes_on_asking() {
    let mut cluster = Cluster::start().await;
    let dies = vec![answer(&["tcpSocket", "2"], 0, 0), answer(&["tcpSocket", "2"], 200, 1)];
    image(&cluster, vec![run(dies), RunScript::default()]);
    let probe = |port: u16| json!({"tcpSocket": {"port": port}, "periodSeconds": 10, "failureThreshold": 2});
    let probes = json!({"startupProbe": probe(1), "livenessProbe": probe(2), "readinessProbe": probe(3)});
    cluster.run("p", spec(probes)).await;
    cluster.until_step("p", "MODIFIED Running | app Running 0").await;
    cluster.clock.sleep(60 * S).await;
    assert_eq!(ready_changes(&cluster, "p"), [(0, false), (10, true)]);
    cluster.kill_agent().await;
    // What is asked at this very moment was asked by the one before.
    let begun = cluster.clock.elapsed().as_secs_f64() + 0.01;
    cluster.clock.sleep(20 * S).await;
    cluster.start_agent();
    cluster.clock.sleep(60 * S).await;
    assert_eq!(ready_changes(&cluster, "p"), [(0, false), (10, true)]);
    assert_eq!(cluster.asked.since(begun, 1).len(), 0, "it has started");
    for port in [2, 3] {
        let asked = cluster.asked.since(begun, port);
        assert!((5..=7).contains(&asked.len()), "{asked:?}");
        let first = asked[0].at - begun - 20.0;
        assert!((0.0..=10.1).contains(&first), "within a period: {first}");
    }
    cluster.until_step("p", "MODIFIED Running | app Running 1").await;
    assert!(told(&cluster, "p").await[1].contains("failed liveness probe, will be restarted"));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_or_floods_holds_up_nobody_else() {
    let cluster = Cluster::start().await;
    let mut hangs = answer(&["httpGet", "1", "/"], 0, 0);
    hangs.takes = 1_000_000 * S;
    let mut floods = answer(&["flood"], 0, 1);
    floods.stdout = "x".repeat(1 << 20);
    image(&cluster, vec![run(vec![hangs, floods])]);
    let bad = json!({
        "livenessProbe": {"httpGet": {"port": 1}, "periodSeconds": 1, "timeoutSeconds": 30_000},
        "readinessProbe": {"exec": {"command": ["flood"]}, "periodSeconds": 1},
    });
    cluster.run("bad", spec(bad)).await;
    let good = json!({"readinessProbe": {"tcpSocket": {"port": 7}, "periodSeconds": 1}});
    cluster.run("good", spec(good)).await;
    cluster.until_step("good", "MODIFIED Running | app Running 0").await;
    cluster.settle().await;
    let begun = cluster.clock.elapsed().as_secs_f64();
    cluster.clock.sleep(60 * S).await;
    assert_eq!(cluster.asked.since(begun, 7).len(), 60);
    assert_eq!(cluster.asked.since(0.0, 1).len(), 1, "one question at a time");
    let shown = told(&cluster, "bad").await;
    assert_eq!(shown.len(), 1);
    assert!(shown[0].len() < 11 * 1024, "cut to what anybody reads");
}

#[tokio::test(start_paused = true)]
async fn a_crash_and_a_failed_probe_are_restarts_alike_and_never_probes_what_is_dead() {
    let cluster = Cluster::start().await;
    let crashes = RunScript {
        exit: Some(Exit { after: 31 * S / 2, code: 3, oom_killed: false }),
        ..RunScript::default()
    };
    image(&cluster, vec![crashes]);
    let probe = json!({"tcpSocket": {"port": 1}, "periodSeconds": 1});
    cluster.run("p", spec(json!({"readinessProbe": probe, "livenessProbe": probe}))).await;
    until_restarts(&cluster, "p", 3).await;
    let running = cluster.history("p");
    let alive = |at: f64| {
        let before = running.iter().rfind(|(_, _, then)| *then <= at + 0.001);
        before
            .is_some_and(|(_, pod, _)| pod["status"]["containerStatuses"][0]["state"]["running"].is_object())
    };
    let asked = cluster.asked.since(0.0, 1);
    assert!(asked.len() > 60);
    let dead: Vec<_> = asked.iter().filter(|question| !alive(question.at)).collect();
    assert!(dead.is_empty(), "{dead:?}");
    // Once in each run it becomes ready: what was known of one instance is nothing to the next.
    let ready: Vec<bool> = ready_changes(&cluster, "p").into_iter().map(|(_, ready)| ready).collect();
    assert!(ready.chunks(2).all(|pair| !pair[0] && pair.get(1) != Some(&false)), "{ready:?}");
}
