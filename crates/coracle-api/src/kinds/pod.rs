//! Pods.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::table::Column;
use crate::tree;

/// What is special about Pods.
pub(crate) struct PodStrategy;

impl Strategy for PodStrategy {
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
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}
