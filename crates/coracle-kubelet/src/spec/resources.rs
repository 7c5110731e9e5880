//! Requests and limits as the kernel gets them: shares, quota, memory, OOM scores and cgroup parents.

use std::collections::BTreeMap;

use coracle_api::quantity;
use coracle_cri::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::PodIdentity;

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const PERIOD_MICROS: i64 = 100_000;
const MIN_QUOTA_MICROS: i64 = 1_000;
const POD_PIDS_MIN: i64 = 1024;

/// A Pod's quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests everywhere.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// Reads `status.qosClass`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Qos> {
        match text {
            "Guaranteed" => Some(Qos::Guaranteed),
            "Burstable" => Some(Qos::Burstable),
            "BestEffort" => Some(Qos::BestEffort),
            _ => None,
        }
    }
}

/// The Pod's parent cgroup.
#[must_use]
pub fn cgroup_parent(root: &str, qos: Qos, pod: &PodIdentity) -> String {
    let class = match qos {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("{}/kubepods{class}/pod{}", root.trim_end_matches('/'), pod.uid)
}

/// Milli-units of a resource, rounded up; `None` if it is not named.
#[must_use]
pub fn milli(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i64> {
    amount(list, resource).map(quantity::Quantity::milli_value)
}

/// Whole units of a resource, rounded up; `None` if it is not named.
#[must_use]
pub fn whole(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i64> {
    amount(list, resource).map(quantity::Quantity::value)
}

fn amount(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<quantity::Quantity> {
    list?.get(resource)?.0.parse().ok()
}

fn requests(container: &Container) -> Option<&BTreeMap<String, Quantity>> {
    container.resources.as_ref()?.requests.as_ref()
}

fn limits(container: &Container) -> Option<&BTreeMap<String, Quantity>> {
    container.resources.as_ref()?.limits.as_ref()
}

/// What one container asks for, limits standing in for missing requests: CPU in milli-units, or whole units.
#[must_use]
pub fn request(container: &Container, resource: &str) -> i64 {
    let read = if resource == "cpu" { milli } else { whole };
    read(requests(container), resource).or_else(|| read(limits(container), resource)).unwrap_or(0)
}

/// What the containers of a Pod ask for together.
#[must_use]
pub fn pod_request(spec: &PodSpec, resource: &str) -> i64 {
    spec.containers.iter().fold(0, |sum, container| sum.saturating_add(request(container, resource)))
}

/// Limits of one container.
#[must_use]
pub fn container_resources(
    spec: &PodSpec,
    container: &Container,
    qos: Qos,
    node_memory: u64,
) -> LinuxContainerResources {
    LinuxContainerResources {
        oom_score_adj: Some(oom_score_adj(spec, container, qos, node_memory)),
        // Out of memory, a container ends as a whole: half of one is no use to anybody.
        unified: BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())]),
        ..limits_of(
            request(container, "cpu"),
            milli(limits(container), "cpu"),
            whole(limits(container), "memory"),
        )
    }
}

/// Limits of the Pod's cgroup, on a node that can have `node_pids` processes: sums, and a limit only where every container has one.
#[must_use]
pub fn pod_resources(spec: &PodSpec, node_pids: u64) -> LinuxContainerResources {
    let cpu_request = pod_request(spec, "cpu");
    let total = |read: &dyn Fn(&Container) -> Option<i64>| -> Option<i64> {
        spec.containers.iter().try_fold(0, |sum: i64, container| Some(sum.saturating_add(read(container)?)))
    };
    let cpu = total(&|c| milli(limits(c), "cpu").filter(|v| *v > 0));
    let memory = total(&|c| whole(limits(c), "memory").filter(|v| *v > 0));
    LinuxContainerResources { pids_limit: pod_pids(node_pids), ..limits_of(cpu_request, cpu, memory) }
}

/// A quarter of the node's processes (upstream's `podPidsLimit`): a Pod whose processes multiply without end takes
/// neither the node's nor the other Pods'.
fn pod_pids(node_pids: u64) -> Option<i64> {
    let share = i64::try_from(node_pids / 4).unwrap_or(i64::MAX);
    (share > 0).then(|| share.max(POD_PIDS_MIN))
}

fn limits_of(cpu_request: i64, cpu_limit: Option<i64>, memory_limit: Option<i64>) -> LinuxContainerResources {
    let quota = cpu_limit.filter(|m| *m > 0).map(|m| scaled(m, PERIOD_MICROS).max(MIN_QUOTA_MICROS));
    LinuxContainerResources {
        cpu_shares: u64::try_from(scaled(cpu_request, 1024).clamp(MIN_SHARES, MAX_SHARES)).ok(),
        cpu_period: quota.and_then(|_| u64::try_from(PERIOD_MICROS).ok()),
        cpu_quota: quota,
        memory_limit_in_bytes: memory_limit.filter(|bytes| *bytes > 0),
        ..LinuxContainerResources::default()
    }
}

/// So many thousandths of `unit`, at most what the kernel's files can hold.
fn scaled(milli: i64, unit: i64) -> i64 {
    i64::try_from(i128::from(milli) * i128::from(unit) / 1000).unwrap_or(i64::MAX)
}

/// How readily the kernel kills a container when memory runs out.
fn oom_score_adj(spec: &PodSpec, container: &Container, qos: Qos, node_memory: u64) -> i32 {
    const NODE_CRITICAL: i32 = 2_000_000_000;
    if spec.priority.is_some_and(|p| p >= NODE_CRITICAL) {
        return -997;
    }
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let memory = i128::from(node_memory).max(1);
            let share = i128::from(request(container, "memory")) * 1000 / memory;
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(containers: &serde_json::Value) -> PodSpec {
        serde_json::from_value(json!({ "containers": containers })).unwrap()
    }

    #[test]
    fn shares_quota_and_memory_follow_requests_and_limits() {
        let spec = spec(&json!([
            {"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "0.5", "memory": "128Mi"}}},
            {"name": "b"}
        ]));
        let a = container_resources(&spec, &spec.containers[0], Qos::Burstable, 1 << 30);
        assert_eq!((a.cpu_shares, a.cpu_period, a.cpu_quota), (Some(256), Some(100_000), Some(50_000)));
        assert_eq!(a.memory_limit_in_bytes, Some(128 << 20));
        assert_eq!(a.oom_score_adj, Some(938));
        assert_eq!(a.unified["memory.oom.group"], "1");
        let b = container_resources(&spec, &spec.containers[1], Qos::BestEffort, 1 << 30);
        assert_eq!(
            (b.cpu_shares, b.cpu_quota, b.memory_limit_in_bytes, b.oom_score_adj),
            (Some(2), None, None, Some(1000))
        );
        let pod = pod_resources(&spec, 40_000);
        assert_eq!((pod.cpu_shares, pod.cpu_quota, pod.memory_limit_in_bytes), (Some(256), None, None));
        assert!(pod.unified.is_empty(), "one container's end is not that of the Pod");
        assert_eq!(pod.pids_limit, Some(10_000), "nobody asks for it");
        assert_eq!(pod_resources(&spec, 100).pids_limit, Some(1024));
        assert_eq!(pod_resources(&spec, 0).pids_limit, None, "a node that says nothing");
    }

    #[test]
    fn tiny_limits_are_raised_to_what_the_kernel_takes() {
        let spec = spec(&json!([{"name": "a", "resources": {"limits": {"cpu": "1m", "memory": "1G"}}}]));
        let a = container_resources(&spec, &spec.containers[0], Qos::Guaranteed, 1 << 30);
        assert_eq!((a.cpu_shares, a.cpu_quota, a.oom_score_adj), (Some(2), Some(1000), Some(-997)));
        assert_eq!(a.memory_limit_in_bytes, Some(1_000_000_000));
    }

    #[test]
    fn amounts_beyond_any_machine_are_no_small_ones() {
        for cpu in ["9e12", "9e15", "9223372036854775807"] {
            let limits = json!({"cpu": cpu, "memory": "8Ei"});
            let spec = spec(&json!([
                {"name": "a", "resources": {"requests": {"cpu": cpu}, "limits": limits}},
                {"name": "b", "resources": {"limits": limits}},
            ]));
            let whole_cpu = 1_000_000_000_000 * PERIOD_MICROS;
            let a = container_resources(&spec, &spec.containers[0], Qos::Burstable, 1 << 30);
            assert!(a.cpu_quota.is_some_and(|quota| quota > whole_cpu), "{cpu}: {a:?}");
            assert_eq!(a.cpu_shares, u64::try_from(MAX_SHARES).ok(), "{cpu}");
            let pod = pod_resources(&spec, 40_000);
            assert!(pod.cpu_quota.is_some_and(|quota| quota > whole_cpu), "{cpu}: {pod:?}");
            assert_eq!(pod.memory_limit_in_bytes, Some(i64::MAX), "{cpu}");
        }
    }

    #[test]
    fn qos_decides_the_cgroup() {
        let pod = PodIdentity { namespace: "n".into(), name: "p".into(), uid: "u-1".into() };
        assert_eq!(cgroup_parent("/coracle-a/", Qos::Guaranteed, &pod), "/coracle-a/kubepods/podu-1");
        assert_eq!(cgroup_parent("", Qos::BestEffort, &pod), "/kubepods/besteffort/podu-1");
    }
}
