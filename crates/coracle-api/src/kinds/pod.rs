//! Pods.

mod binding;
mod defaults;
#[cfg(test)]
mod full;
#[cfg(test)]
mod rules;
mod supported;
mod table;
pub(super) mod template;
mod update;
mod validate;
mod warnings;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize as _;
use serde_json::{Value, json};

pub(crate) use binding::{bind, validate_binding};

use crate::catalogue::{Grace, Strategy};
use crate::field::FieldError;
use crate::names;
use crate::pod::qos_class;
use crate::table::{Column, RowCondition};
use crate::{metadata, tree};

/// The annotation of a Pod that stands for one that a node runs of its own accord.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is special about Pods.
pub(crate) struct PodStrategy;

impl Strategy for PodStrategy {
    fn default(&self, pod: &mut Value) {
        defaults::apply(pod);
    }

    fn prepare_for_create(&self, pod: &mut Value) {
        defaults::admit(pod);
        // The type of every value is right after normalization, so a Pod that has no typed view has none to
        // judge either.
        let class = Pod::deserialize(&*pod).map(|pod| qos_class(&pod));
        let mut status = json!({ "phase": "Pending" });
        if let Ok(class) = class {
            status["qosClass"] = class.as_str().into();
        }
        if !tree::list_at(pod, &["spec", "schedulingGates"]).is_empty() {
            let since = tree::at(pod, &["metadata", "creationTimestamp"]).cloned().unwrap_or_default();
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "lastProbeTime": null, "lastTransitionTime": since,
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        tree::set_or_remove(pod, "status", Some(status));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        update::prepare_status(new, old);
    }

    fn validate_create(&self, pod: &Value) -> Vec<FieldError> {
        let mut errors = validate::new_pod(pod);
        errors.extend(supported::refuse(pod));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        update::validate(new, old)
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        update::validate_status(new, old)
    }

    fn prepare_for_ephemeral_containers(&self, new: &mut Value, old: &Value) {
        update::prepare_ephemeral_containers(new, old);
    }

    fn validate_ephemeral_containers(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        update::validate_ephemeral_containers(new, old)
    }

    fn warnings(&self, pod: &Value, old: Option<&Value>) -> Vec<String> {
        // Updates of Pods are frequent and made by machines.
        if old.is_some() { Vec::new() } else { warnings::warnings(pod) }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }

    fn indexed_field(&self) -> Option<&'static str> {
        Some("spec.nodeName")
    }

    fn selectable_fields(&self, pod: &Value) -> Vec<(&'static str, String)> {
        let text = |path: &[&str]| tree::str_at(pod, path).to_owned();
        let ips: Vec<&str> =
            tree::list_at(pod, &["status", "podIPs"]).iter().map(|ip| tree::str_at(ip, &["ip"])).collect();
        vec![
            ("spec.nodeName", text(&["spec", "nodeName"])),
            ("spec.restartPolicy", text(&["spec", "restartPolicy"])),
            ("spec.schedulerName", text(&["spec", "schedulerName"])),
            ("spec.serviceAccountName", text(&["spec", "serviceAccountName"])),
            ("spec.hostNetwork", tree::true_at(pod, &["spec", "hostNetwork"]).to_string()),
            ("status.phase", text(&["status", "phase"])),
            ("status.podIP", text(&["status", "podIP"])),
            ("status.podIPs", ips.join(",")),
            ("status.nominatedNodeName", text(&["status", "nominatedNodeName"])),
        ]
    }

    fn columns(&self) -> &'static [Column] {
        table::COLUMNS
    }

    fn row(&self, pod: &Value, now: Timestamp) -> Vec<Value> {
        table::row(pod, now)
    }

    fn row_conditions(&self, pod: &Value) -> Vec<RowCondition> {
        table::conditions(pod)
    }

    fn graceful_deletion(&self, pod: &Value, requested: Option<i64>) -> Grace {
        grace(pod, requested)
    }
}

/// How a DELETE of a Pod ends. A second one can only shorten what the first one granted.
fn grace(pod: &Value, requested: Option<i64>) -> Grace {
    if metadata::is_deleting(pod) {
        let granted = tree::int_at(pod, &["metadata", "deletionGracePeriodSeconds"]);
        return match (granted, requested) {
            (None, _) | (Some(_), Some(0)) => Grace::Immediate,
            (Some(granted), Some(requested)) if requested.max(1) < granted => {
                Grace::Seconds(requested.max(1))
            }
            _ => Grace::Unchanged,
        };
    }
    let asked =
        requested.or_else(|| tree::int_at(pod, &["spec", "terminationGracePeriodSeconds"])).unwrap_or(0);
    let nobody_to_wait_for = tree::str_at(pod, &["spec", "nodeName"]).is_empty()
        || matches!(tree::str_at(pod, &["status", "phase"]), "Succeeded" | "Failed");
    match asked {
        _ if nobody_to_wait_for => Grace::Immediate,
        0 => Grace::Immediate,
        negative if negative < 0 => Grace::Seconds(1),
        seconds => Grace::Seconds(seconds),
    }
}

/// The default pull policy of an image: `Always` for what may change under its name.
fn default_pull_policy(image: &str) -> &'static str {
    let name = image.split('@').next().unwrap_or_default();
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.rsplit_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

pub(super) fn label_warning(name: &str) -> Option<String> {
    let complaints = names::dns1123_label(name);
    (!complaints.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS \
             label is recommended: [{}]",
            complaints.join(" ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletion_grants_what_the_pod_or_the_user_says_and_only_ever_shortens() {
        let running = json!({
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}
        });
        let mut unscheduled = running.clone();
        unscheduled["spec"]["nodeName"] = "".into();
        let mut done = running.clone();
        done["status"]["phase"] = "Succeeded".into();
        let mut deleting = running.clone();
        deleting["metadata"] =
            json!({"deletionTimestamp": "2020-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30});
        for (name, pod, requested, expected) in [
            ("the pod's own", &running, None, Grace::Seconds(30)),
            ("the user's", &running, Some(5), Grace::Seconds(5)),
            ("forced", &running, Some(0), Grace::Immediate),
            ("negative", &running, Some(-1), Grace::Seconds(1)),
            ("not scheduled", &unscheduled, Some(5), Grace::Immediate),
            ("finished", &done, None, Grace::Immediate),
            ("again", &deleting, None, Grace::Unchanged),
            ("again, longer", &deleting, Some(60), Grace::Unchanged),
            ("again, as long", &deleting, Some(30), Grace::Unchanged),
            ("again, shorter", &deleting, Some(5), Grace::Seconds(5)),
            ("again, forced", &deleting, Some(0), Grace::Immediate),
        ] {
            assert_eq!(grace(pod, requested), expected, "{name}");
        }
    }

    #[test]
    fn marking_sets_and_shortens_the_time_of_deletion() {
        let now: Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
        let mut pod = json!({"metadata": {"name": "a", "generation": 1}});
        metadata::mark_deleted(&mut pod, 30, now);
        assert_eq!(
            pod["metadata"],
            json!({
                "name": "a", "generation": 2,
                "deletionTimestamp": "2020-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30
            })
        );
        metadata::mark_deleted(&mut pod, 5, "2020-01-01T00:00:02Z".parse().unwrap());
        assert_eq!(pod["metadata"]["deletionTimestamp"], "2020-01-01T00:00:05Z");
        assert_eq!(pod["metadata"]["generation"], 2);
        metadata::mark_deleted(&mut pod, 2, "2020-01-01T00:00:04Z".parse().unwrap());
        assert_eq!(pod["metadata"]["deletionTimestamp"], "2020-01-01T00:00:04Z");
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 1);
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1", "IfNotPresent"),
            ("localhost:5000/busybox", "Always"),
            ("localhost:5000/busybox:1", "IfNotPresent"),
            ("busybox@sha256:abc", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_new_pod_is_pending_with_its_class() {
        let resource = crate::catalogue::find("", "v1", "pods").unwrap();
        let mut pod = json!({
            "metadata": {"name": "a", "namespace": "default", "generation": 7, "deletionTimestamp": "x"},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]},
            "status": {"phase": "Running", "podIP": "1.2.3.4"}
        });
        resource.default(&mut pod);
        resource.prepare_for_create(&mut pod);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(pod["metadata"], json!({"name": "a", "namespace": "default", "generation": 1}));
        assert_eq!(resource.validate_create(&pod), []);
    }
}
