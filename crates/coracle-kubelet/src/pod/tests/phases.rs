//! The phase table.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec};
use serde_json::{Value, json};

use crate::pod::phase::{Phase, phase, restartable};

fn state(text: &str) -> Option<Value> {
    let terminated = |code: i32| json!({"terminated": {"exitCode": code}});
    let status = match text {
        "none" => return None,
        "running" => json!({"state": {"running": {}}, "started": true}),
        "unstarted" => json!({"state": {"running": {}}, "started": false}),
        "waiting" => json!({"state": {"waiting": {}}}),
        "ok" => json!({"state": terminated(0)}),
        "bad" => json!({"state": terminated(1)}),
        "wait-ok" => json!({"state": {"waiting": {}}, "lastState": terminated(0)}),
        "wait-bad" => json!({"state": {"waiting": {}}, "lastState": terminated(1)}),
        "removed" => {
            json!({"state": {"waiting": {"reason": "RestartingAllContainers"}}, "lastState": terminated(137)})
        }
        "removing" => {
            json!({"state": {"terminated": {"exitCode": 137, "reason": "RestartingAllContainers"}}})
        }
        other => panic!("{other}"),
    };
    Some(status)
}

fn statuses(words: &str, prefix: &str) -> Vec<ContainerStatus> {
    let numbered = words.split_whitespace().enumerate();
    let all = numbered.filter_map(|(n, word)| {
        let mut status = state(word.trim_start_matches("sidecar:"))?;
        let base = json!({"name": format!("{prefix}{n}"), "image": "", "imageID": "", "ready": false, "restartCount": 0});
        status.as_object_mut().unwrap().extend(base.as_object().unwrap().clone());
        Some(serde_json::from_value(status).unwrap())
    });
    all.collect()
}

fn spec(policy: &str, regular: &str, init: &str) -> PodSpec {
    let containers: Vec<Value> =
        (0..regular.split_whitespace().count()).map(|n| json!({"name": format!("c{n}")})).collect();
    let init: Vec<Value> = init
        .split_whitespace()
        .enumerate()
        .map(|(n, word)| match word.starts_with("sidecar:") {
            true => json!({"name": format!("i{n}"), "restartPolicy": "Always"}),
            false => json!({"name": format!("i{n}")}),
        })
        .collect();
    serde_json::from_value(json!({"restartPolicy": policy, "containers": containers, "initContainers": init}))
        .unwrap()
}

#[test]
fn phases_follow_from_container_states() {
    use Phase::{Failed, Pending, Running, Succeeded};
    // Policy, init containers, regular containers, whether nothing will be restarted, and the phase.
    let table: &[(&str, &str, &str, bool, Phase)] = &[
        ("Always", "", "none", false, Pending),
        ("Always", "", "waiting", false, Pending),
        ("Always", "", "running", false, Running),
        ("Always", "", "running waiting", false, Pending),
        ("Always", "", "running none", false, Pending),
        ("Always", "", "running bad", false, Running),
        ("Always", "", "running wait-bad", false, Running),
        ("Always", "", "bad", false, Running),
        ("Always", "", "ok", false, Running),
        ("Always", "", "wait-bad", false, Running),
        ("Always", "", "ok none", false, Pending),
        ("OnFailure", "", "ok", false, Succeeded),
        ("OnFailure", "", "bad", false, Running),
        ("OnFailure", "", "ok bad", false, Running),
        ("OnFailure", "", "wait-ok", false, Succeeded),
        ("Never", "", "ok", false, Succeeded),
        ("Never", "", "bad", false, Failed),
        ("Never", "", "ok bad", false, Failed),
        ("Never", "", "ok running", false, Running),
        ("Never", "", "wait-bad", false, Failed),
        // Nothing will be restarted.
        ("Always", "", "ok", true, Succeeded),
        ("Always", "", "ok bad", true, Failed),
        ("Always", "", "running", true, Running),
        ("Always", "", "waiting", true, Pending),
        // Init containers.
        ("Always", "none", "waiting", false, Pending),
        ("Always", "running", "waiting", false, Pending),
        ("Always", "ok", "running", false, Running),
        ("Always", "bad", "waiting", false, Pending),
        ("Never", "bad", "waiting", false, Failed),
        ("Never", "wait-bad", "waiting", false, Failed),
        ("OnFailure", "bad", "waiting", false, Pending),
        ("OnFailure", "ok bad", "waiting", false, Pending),
        ("Always", "none", "bad", false, Pending),
        ("Always", "running", "wait-bad", false, Pending),
        ("Always", "waiting", "wait-bad", false, Pending),
        ("Always", "wait-bad", "wait-bad", false, Running),
        ("Always", "waiting", "waiting", false, Pending),
        // Removed in order to start anew.
        ("Never", "", "removed running", false, Pending),
        ("Never", "removed", "removed", false, Pending),
        ("Never", "", "removing running", false, Pending),
        // Sidecars.
        ("Always", "sidecar:none", "running", false, Pending),
        ("Always", "sidecar:waiting", "running", false, Pending),
        ("Always", "sidecar:wait-bad", "running", false, Running),
        ("Always", "sidecar:bad", "running", false, Running),
        ("Never", "sidecar:running", "ok", false, Running),
        ("Always", "sidecar:running", "running", false, Running),
        ("Always", "sidecar:unstarted", "waiting", false, Pending),
        ("Always", "sidecar:waiting", "waiting", false, Pending),
        ("Never", "sidecar:bad", "ok", true, Succeeded),
        ("Never", "sidecar:ok", "bad", true, Failed),
    ];
    for (policy, init, regular, terminal, expected) in table {
        let got = phase(
            &spec(policy, regular, init),
            &statuses(regular, "c"),
            &statuses(init, "i"),
            *terminal,
            false,
        );
        assert_eq!(
            got, *expected,
            "policy {policy}, init [{init}], containers [{regular}], terminal {terminal}"
        );
    }
}

#[test]
fn a_sidecar_that_is_not_started_holds_back_only_a_pod_that_has_not_begun() {
    let (regular, init) = ("running", "sidecar:unstarted");
    let of = |initialized| {
        phase(
            &spec("Always", regular, init),
            &statuses(regular, "c"),
            &statuses(init, "i"),
            false,
            initialized,
        )
    };
    assert_eq!((of(false), of(true)), (Phase::Pending, Phase::Running));
}

#[test]
fn restart_policies() {
    let container = |value: Value| -> Container { serde_json::from_value(value).unwrap() };
    let plain = container(json!({"name": "c"}));
    for (policy, init, ok, bad) in [
        (None, false, true, true),
        (Some("Always"), false, true, true),
        (Some("OnFailure"), false, false, true),
        (Some("Never"), false, false, false),
        (Some("Always"), true, false, true),
    ] {
        assert_eq!(restartable(policy, &plain, init, 0), ok, "{policy:?} {init} 0");
        assert_eq!(restartable(policy, &plain, init, 1), bad, "{policy:?} {init} 1");
    }
    let sidecar = container(json!({"name": "c", "restartPolicy": "Always"}));
    assert!(restartable(Some("Never"), &sidecar, true, 0));
    let ruled = container(json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": [
        {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}));
    assert!(restartable(Some("Never"), &ruled, false, 42));
    let not_in = container(json!({"name": "c", "restartPolicy": "Always", "restartPolicyRules": [
        {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 3]}}]}));
    assert!(restartable(Some("Never"), &not_in, true, 1) && restartable(Some("Never"), &not_in, true, 0));
    // Rules count only beside a policy of the container's own; of an init container Always means OnFailure.
    let mut bare = ruled.clone();
    bare.restart_policy = None;
    assert!(!restartable(Some("Never"), &bare, false, 42));
    assert!(!restartable(Some("Always"), &plain, true, 0));
    let own = container(json!({"name": "c", "restartPolicy": "OnFailure"}));
    assert!(restartable(Some("Never"), &own, false, 1) && !restartable(Some("Always"), &own, false, 0));
    assert!(!restartable(Some("Always"), &ruled, false, 1));
}
