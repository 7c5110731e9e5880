//! What is still on its way to what was asked for.

use serde_json::Value;

use crate::world::World;

/// What has not come to rest, in words.
pub(super) fn unsettled(world: &World) -> Vec<String> {
    if !world.server_is_up() {
        return vec!["the API server is down".to_owned()];
    }
    let mut found = Vec::new();
    for node in world.list("Node") {
        if condition(&node, "Ready") != Some("True") {
            found.push(format!("node {} is not ready", name(&node)));
        }
    }
    let pods = world.list("Pod");
    let is_full =
        |pod: &Value| condition(pod, "PodScheduled") == Some("False") && pod["spec"]["nodeName"].is_null();
    for pod in &pods {
        let status = &pod["status"];
        let ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
        let held = pod["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        let what = if !pod["metadata"]["deletionTimestamp"].is_null() {
            (!held).then_some("is still on its way out")
        } else if ended || is_full(pod) {
            None
        } else if pod["spec"]["nodeName"].is_null() {
            Some("is on no node, and nobody said why")
        } else {
            let list = |list: &Value| list.as_array().cloned().unwrap_or_default();
            let (init, containers) =
                (list(&status["initContainerStatuses"]), list(&status["containerStatuses"]));
            let all = containers.len() == list(&pod["spec"]["containers"]).len()
                && init.len() == list(&pod["spec"]["initContainers"]).len();
            // Those behind one that goes on, or waits, wait for it.
            let behind = init.iter().any(|one| one["ready"] != true);
            let at_rest = |one: &Value| is_at_rest(pod, one) || (behind && has_not_begun(one));
            (!all || !init.iter().chain(&containers).all(at_rest))
                .then_some("has a container that is not at rest")
        };
        if let Some(what) = what {
            found.push(format!("pod {} {what}: {}", name(pod), states(pod)));
        }
    }
    for (kind, asked, has) in [
        ("ReplicaSet", "/spec/replicas", "/status/replicas"),
        ("Deployment", "/spec/replicas", "/status/updatedReplicas"),
        ("Deployment", "/spec/replicas", "/status/replicas"),
    ] {
        for object in world.list(kind) {
            let number = |at: &str| object.pointer(at).and_then(Value::as_i64).unwrap_or(0);
            // What fits nowhere is made room for by nobody, and a rollout waits for it.
            let waits =
                pods.iter().any(|pod| is_full(pod) && pod["metadata"]["labels"]["app"] == name(&object));
            if object["metadata"]["deletionTimestamp"].is_null() && !waits && number(asked) != number(has) {
                found.push(format!(
                    "{kind} {}: {asked} is {}, {has} is {}",
                    name(&object),
                    number(asked),
                    number(has)
                ));
            }
        }
    }
    for job in world.list("Job") {
        let conditions = job["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let over = conditions.iter().any(|c| matches!(c["type"].as_str(), Some("Complete" | "Failed")));
        let waits = pods.iter().any(is_full);
        if job["metadata"]["deletionTimestamp"].is_null() && !over && !waits {
            found.push(format!("Job {} is not over: {}", name(&job), job["status"]));
        }
    }
    found.extend(world.strays());
    found
}

fn has_not_begun(container: &Value) -> bool {
    container["state"]["waiting"]["reason"] == "PodInitializing"
}

/// Whether a container is as it will stay, or in a back-off for good.
fn is_at_rest(pod: &Value, container: &Value) -> bool {
    let state = &container["state"];
    if state["running"].is_object() {
        return true;
    }
    if let Some(reason) = state["waiting"]["reason"].as_str() {
        return matches!(
            reason,
            "CrashLoopBackOff"
                | "ImagePullBackOff"
                | "ErrImagePull"
                | "RunContainerError"
                | "PostStartHookError"
                | "RestartingAllContainers"
        );
    }
    let code = state["terminated"]["exitCode"].as_i64();
    match (pod["spec"]["restartPolicy"].as_str(), code) {
        (Some("Never"), Some(_)) | (Some("OnFailure"), Some(0)) => true,
        // It is about to run again, or already in its back-off.
        (_, Some(_)) => true,
        (_, None) => false,
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let all = object["status"]["conditions"].as_array()?;
    all.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn states(pod: &Value) -> String {
    let containers = pod["status"]["containerStatuses"].as_array().map_or(&[][..], Vec::as_slice);
    let states: Vec<String> = containers.iter().map(|c| format!("{} {}", c["name"], c["state"])).collect();
    format!("{} {}", pod["status"]["phase"], states.join(", "))
}
