//! Whether this node takes a Pod: the node-wide decision made once, before anything of the Pod starts.

use std::collections::BTreeMap;

use coracle_api::placement::{allows_node, host_ports, tolerates};
use coracle_api::pod::{ResourceList, effective_requests};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use crate::pod::inputs::Rejection;
use crate::pod::phase::Phase;
use crate::spec::resources::{milli, whole};
use crate::sysctl;

/// One thing that speaks against a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is too little of something. More of it may become free.
    Insufficient(Shortage),
    /// Anything else.
    Other(Rejection),
}

/// Too little of one resource: CPU in milli-units, anything else whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Which.
    pub resource: String,
    /// What the Pod asks for.
    pub requested: i64,
    /// What others have.
    pub used: i64,
    /// What the node has.
    pub capacity: i64,
}

impl Shortage {
    /// How much has to become free.
    #[must_use]
    pub fn missing(&self) -> i64 {
        self.requested.saturating_sub(self.capacity.saturating_sub(self.used))
    }
}

impl Refusal {
    /// In upstream's words.
    #[must_use]
    pub fn rejection(&self) -> Rejection {
        match self {
            Refusal::Insufficient(Shortage { resource, requested, used, capacity }) => rejection(
                &format!("OutOf{resource}"),
                &format!(
                    "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, \
                     capacity: {capacity}"
                ),
            ),
            Refusal::Other(other) => other.clone(),
        }
    }
}

/// Decides whether `pod` fits beside `admitted`. Pods that have ended take up nothing.
///
/// # Errors
/// Why not, in upstream's words.
pub fn admit(pod: &Pod, node: &Node, admitted: &[&Pod]) -> Result<(), Rejection> {
    refusals(pod, node, admitted).first().map_or(Ok(()), |refusal| Err(refusal.rejection()))
}

/// Everything that speaks against `pod` beside `admitted`; the first is what is told.
#[must_use]
pub fn refusals(pod: &Pod, node: &Node, admitted: &[&Pod]) -> Vec<Refusal> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    // What no room can mend comes first and alone.
    let forbidden = sysctl::forbidden(spec).map(|why| rejection("SysctlForbidden", &why));
    if let Some(wrong) = forbidden.or_else(|| wrong_system(spec)) {
        return vec![Refusal::Other(wrong)];
    }
    let others: Vec<&Pod> = admitted.iter().filter(|p| !has_ended(p)).copied().collect();
    let mut refusals: Vec<_> = shortages(pod, node, &others).into_iter().map(Refusal::Insufficient).collect();
    let mut refuse = |name: &str, why: &str| refusals.push(Refusal::Other(predicate(name, why)));
    if !matches_node(spec, node) {
        refuse("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    if spec.node_name.as_ref().is_some_and(|name| Some(name) != node.metadata.name.as_ref()) {
        refuse("NodeName", "node(s) didn't match the requested node name");
    }
    let taken: Vec<_> = others.iter().filter_map(|p| p.spec.as_ref()).flat_map(host_ports).collect();
    if host_ports(spec).iter().any(|port| taken.iter().any(|other| port.conflicts(other))) {
        refuse("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    let tolerated = |taint| tolerates(spec.tolerations.as_deref().unwrap_or_default(), taint);
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    if taints.any(|taint| taint.effect == "NoExecute" && !tolerated(taint)) {
        refuse("TaintToleration", "node(s) had untolerated taint(s)");
    }
    refusals
}

fn wrong_system(spec: &PodSpec) -> Option<Rejection> {
    let selected = spec.node_selector.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if selected.is_some_and(|name| name != "linux") {
        let why = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Some(rejection("PodOSSelectorNodeLabelDoesNotMatch", why));
    }
    let why = "Failed to admit pod as the OS field doesn't match node OS";
    spec.os.as_ref().filter(|os| os.name != "linux").map(|_| rejection("PodOSNotSupported", why))
}

/// Succeeded or Failed.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).and_then(Phase::parse);
    phase.is_some_and(Phase::is_terminal)
}

fn rejection(reason: &str, message: &str) -> Rejection {
    Rejection { reason: reason.to_owned(), message: message.to_owned() }
}

fn predicate(name: &str, why: &str) -> Rejection {
    rejection(name, &format!("Predicate {name} failed: {why}"))
}

fn shortages(pod: &Pod, node: &Node, others: &[&Pod]) -> Vec<Shortage> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let mut shortages = Vec::new();
    let mut check = |resource: &str, requested: i64, used: i64, capacity: i64| {
        let shortage = Shortage { resource: resource.to_owned(), requested, used, capacity };
        if shortage.missing() > 0 {
            shortages.push(shortage);
        }
    };
    let pods = whole(allocatable, "pods").unwrap_or(0);
    check("pods", 1, i64::try_from(others.len()).unwrap_or(i64::MAX), pods);
    let asked = effective_requests(pod);
    let taken: Vec<ResourceList> = others.iter().map(|other| effective_requests(other)).collect();
    let own = ["cpu", "memory", "ephemeral-storage"];
    // Other resources count if the node has them: whoever provides them may be away for a while.
    let has = |name: &&String| allocatable.is_some_and(|list| list.contains_key(*name));
    let others = asked.keys().filter(has).map(String::as_str).filter(|name| !own.contains(name));
    for resource in own.into_iter().chain(others) {
        let requested = amount(&asked, resource);
        if requested > 0 {
            let used = taken.iter().fold(0, |sum: i64, other| sum.saturating_add(amount(other, resource)));
            let read = if resource == "cpu" { milli } else { whole };
            check(resource, requested, used, read(allocatable, resource).unwrap_or(0));
        }
    }
    shortages
}

/// CPU in milli-units, anything else whole.
pub(crate) fn amount(list: &ResourceList, resource: &str) -> i64 {
    let Some(quantity) = list.get(resource) else { return 0 };
    if resource == "cpu" { quantity.milli_value() } else { quantity.value() }
}

fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    allows_node(
        spec.node_selector.as_ref().unwrap_or(&empty),
        affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        node.metadata.name.as_deref().unwrap_or_default(),
        node.metadata.labels.as_ref().unwrap_or(&empty),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd", "size": "5"}},
            "status": {"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "2"}}
        }))
        .unwrap()
    }

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn cpu(amount: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}))
    }

    fn refused(pod: &Pod, node: &Node, admitted: &[&Pod]) -> (String, String) {
        let rejection = admit(pod, node, admitted).unwrap_err();
        (rejection.reason, rejection.message)
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_in_upstreams_words() {
        let used = cpu("3");
        assert_eq!(admit(&cpu("1"), &node(), &[&used]), Ok(()));
        assert_eq!(
            refused(&cpu("2"), &node(), &[&used]),
            (
                "OutOfcpu".to_owned(),
                "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"
                    .to_owned()
            )
        );
        let huge = cpu("9e15");
        assert_eq!(refused(&cpu("2"), &node(), &[&huge]).0, "OutOfcpu");
        let mut node_of_many = node();
        node_of_many.status =
            Some(serde_json::from_value(json!({"allocatable": {"cpu": "4", "pods": "9"}})).unwrap());
        assert_eq!(refused(&huge, &node_of_many, &[&huge, &huge]).0, "OutOfcpu");
        // What the Pod as a whole asks for counts, and what it costs to run it.
        let mut whole = cpu("1");
        let spec = whole.spec.as_mut().unwrap();
        spec.resources = Some(serde_json::from_value(json!({"requests": {"cpu": "2"}})).unwrap());
        spec.overhead = Some(serde_json::from_value(json!({"cpu": "100m"})).unwrap());
        assert_eq!(admit(&cpu("1900m"), &node(), &[&whole]), Ok(()));
        assert_eq!(refused(&cpu("2"), &node(), &[&whole]).0, "OutOfcpu");
        let mut done = cpu("3");
        done.status = Some(serde_json::from_value(json!({"phase": "Succeeded"})).unwrap());
        assert_eq!(admit(&cpu("2"), &node(), &[&done]), Ok(()));
        assert_eq!(refused(&pod(json!({})), &node(), &[&used, &used]).0, "OutOfpods");
    }

    #[test]
    fn init_containers_and_sidecars_count_as_they_run() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod = pod(json!({
            "initContainers": [
                {"name": "i", "resources": asks("3")},
                {"name": "s", "restartPolicy": "Always", "resources": asks("1")},
                {"name": "j", "resources": asks("2500m")},
            ],
            "containers": [{"name": "c", "resources": asks("1")}],
        }));
        // The second plain one runs beside the sidecar: 3.5 is the most at any time.
        assert_eq!(admit(&pod, &node(), &[&cpu("500m")]), Ok(()));
        let message = "Node didn't have enough resource: cpu, requested: 3500, used: 501, capacity: 4000";
        assert_eq!(refused(&pod, &node(), &[&cpu("501m")]), ("OutOfcpu".to_owned(), message.to_owned()));
    }

    #[test]
    fn other_resources_count_if_the_node_has_them() {
        let asks =
            pod(json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "2"}}}]}));
        assert_eq!(admit(&asks, &node(), &[]), Ok(()), "whoever provides them may come back");
        let mut has = node();
        has.status = Some(
            serde_json::from_value(json!({"allocatable": {"pods": "9", "example.com/gpu": "3"}})).unwrap(),
        );
        let message = "Node didn't have enough resource: example.com/gpu, requested: 2, used: 2, capacity: 3";
        assert_eq!(refused(&asks, &has, &[&asks]), ("OutOfexample.com/gpu".to_owned(), message.to_owned()));
    }

    #[test]
    fn another_system_or_node_is_refused_before_all_else() {
        let selected = pod(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}));
        assert_eq!(
            refused(&selected, &node(), &[]),
            (
                "PodOSSelectorNodeLabelDoesNotMatch".to_owned(),
                "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label".to_owned()
            )
        );
        let other = pod(json!({"os": {"name": "windows"}}));
        let why = "Failed to admit pod as the OS field doesn't match node OS";
        assert_eq!(refused(&other, &node(), &[]), ("PodOSNotSupported".to_owned(), why.to_owned()));
        let elsewhere = pod(json!({"nodeName": "m"}));
        let why = "Predicate NodeName failed: node(s) didn't match the requested node name";
        assert_eq!(refused(&elsewhere, &node(), &[]), ("NodeName".to_owned(), why.to_owned()));
    }

    #[test]
    fn kernel_parameters_that_are_not_safe_are_refused_before_all_else() {
        let sets = |name: &str| {
            pod(json!({"nodeName": "m", "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}))
        };
        let why = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
        assert_eq!(
            refused(&sets("kernel.msgmax"), &node(), &[]),
            ("SysctlForbidden".to_owned(), why.to_owned())
        );
        assert_eq!(refused(&sets("kernel.shm_rmid_forced"), &node(), &[]).0, "NodeName");
    }

    #[test]
    fn selectors_ports_and_taints_are_checked() {
        let mut node = node();
        let wrong = refused(&pod(json!({"nodeSelector": {"disk": "hdd"}})), &node, &[]);
        assert_eq!(wrong.0, "NodeAffinity");
        assert_eq!(
            wrong.1,
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        );
        let affinity = |operator: &str, values: Value| {
            pod(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]}}}}))
        };
        assert_eq!(admit(&affinity("Gt", json!(["4"])), &node, &[]), Ok(()));
        assert_eq!(refused(&affinity("Lt", json!(["4"])), &node, &[]).0, "NodeAffinity");
        assert_eq!(refused(&affinity("DoesNotExist", json!(null)), &node, &[]).0, "NodeAffinity");

        let port = |ip: &str| {
            pod(
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}),
            )
        };
        assert_eq!(refused(&port("10.0.0.1"), &node, &[&port("")]).0, "NodePorts");
        assert_eq!(admit(&port("10.0.0.1"), &node, &[&port("10.0.0.2")]), Ok(()));

        node.spec =
            Some(serde_json::from_value(json!({"taints": [{"key": "k", "effect": "NoExecute"}]})).unwrap());
        assert_eq!(refused(&pod(json!({})), &node, &[]).0, "TaintToleration");
        assert_eq!(admit(&pod(json!({"tolerations": [{"operator": "Exists"}]})), &node, &[]), Ok(()));
    }
}
