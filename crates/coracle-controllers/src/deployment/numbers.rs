//! The numbers of a rollout: how many Pods there may be too many, and how many may be missing.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How many Pods a Deployment is to have.
pub(super) fn wanted(deployment: &Deployment) -> i64 {
    deployment.spec.replicas.unwrap_or(1).into()
}

/// Whether old Pods go while new ones come.
pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy.is_none_or(|strategy| strategy == "RollingUpdate")
}

/// A number, or a share of `total`, rounded up or down.
fn share(value: Option<&IntOrString>, total: i64, up: bool) -> i64 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => (*number).into(),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.strip_suffix('%').and_then(|text| text.parse().ok()).unwrap_or(0);
            let hundredfold = percent.saturating_mul(total);
            if up { (hundredfold + 99) / 100 } else { hundredfold / 100 }
        }
    }
}

/// How many more than wanted there may be, and how many fewer; not both zero, or nothing could ever move.
pub(super) fn bounds(deployment: &Deployment) -> (i64, i64) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let total = wanted(deployment);
    let surge = share(rolling.and_then(|rolling| rolling.max_surge.as_ref()), total, true);
    let missing = share(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), total, false);
    (surge, if surge == 0 && missing == 0 { 1 } else { missing })
}

/// How many may be missing, never more than there are to be.
pub(super) fn max_unavailable(deployment: &Deployment) -> i64 {
    if is_rolling(deployment) { bounds(deployment).1.min(wanted(deployment)) } else { 0 }
}

pub(super) fn replicas(set: &ReplicaSet) -> i64 {
    set.spec.replicas.unwrap_or(1).into()
}

/// A count of a ReplicaSet's status.
pub(super) fn counted(
    set: &ReplicaSet,
    count: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>,
) -> i64 {
    set.status.as_ref().and_then(count).unwrap_or(0).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shares_round_towards_progress() {
        for (replicas, surge, missing, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (3, json!(0), json!("25%"), (0, 1)),
            (4, json!(2), json!(1), (2, 1)),
            (0, json!("25%"), json!("25%"), (0, 1)),
        ] {
            let deployment: Deployment = serde_json::from_value(json!({
                "metadata": {}, "spec": {"replicas": replicas, "selector": {}, "template": {}, "strategy": {
                    "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": missing}
                }},
            }))
            .unwrap();
            assert_eq!(bounds(&deployment), expected, "{replicas}");
        }
    }
}
