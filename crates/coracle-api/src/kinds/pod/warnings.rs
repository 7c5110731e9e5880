//! What is not wrong with a Pod and still worth knowing, in upstream's words.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::quantity::Quantity;
use crate::tree::{entries_at, int_at, list_at, str_at};

/// What is not wrong with a new Pod and still worth knowing.
pub(super) fn warnings(pod: &Value) -> Vec<String> {
    let mut out: Vec<String> = super::label_warning(crate::metadata::name(pod)).into_iter().collect();
    out.extend(spec_warnings(pod.get("spec").unwrap_or(&Value::Null), "spec"));
    out
}

/// What is worth knowing of the spec that stands at `at`.
pub(super) fn spec_warnings(spec: &Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (label, _) in entries_at(spec, &["nodeSelector"]) {
        let replacement = match label.as_str() {
            "beta.kubernetes.io/arch" => "v1.14; use \"kubernetes.io/arch\"",
            "beta.kubernetes.io/os" => "v1.14; use \"kubernetes.io/os\"",
            "failure-domain.beta.kubernetes.io/region" => "v1.17; use \"topology.kubernetes.io/region\"",
            "failure-domain.beta.kubernetes.io/zone" => "v1.17; use \"topology.kubernetes.io/zone\"",
            _ => continue,
        };
        out.push(format!("{at}.nodeSelector[{label}]: deprecated since {replacement} instead"));
    }
    if int_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|grace| grace < 0) {
        out.push(format!(
            "{at}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    for (index, container) in list_at(spec, &["containers"]).iter().enumerate() {
        let path = format!("{at}.containers[{index}]");
        let mut seen = BTreeSet::new();
        for (index, variable) in list_at(container, &["env"]).iter().enumerate() {
            let name = str_at(variable, &["name"]);
            // A value that builds on the earlier one hides nothing.
            let builds_on_it = str_at(variable, &["value"]).contains(&format!("$({name})"));
            if !seen.insert(name) && !builds_on_it {
                out.push(format!(
                    "{path}.env[{index}]: hides previous definition of {}, which may be dropped when using apply",
                    crate::field::go_quote(name)
                ));
            }
        }
        let ports = list_at(container, &["ports"]);
        for (index, port) in ports.iter().enumerate() {
            let same = |other: &Value| {
                ["containerPort", "hostPort", "hostIP", "protocol"]
                    .iter()
                    .all(|f| other.get(*f) == port.get(*f))
            };
            if let Some(earlier) = ports[..index].iter().position(same) {
                out.push(format!(
                    "{path}.ports[{index}]: duplicate port definition with {path}.ports[{earlier}]"
                ));
            }
        }
        for list in ["limits", "requests"] {
            for name in ["memory", "ephemeral-storage"] {
                let text = str_at(container, &["resources", list, name]);
                if text.parse::<Quantity>().is_ok_and(|quantity| !quantity.is_whole()) {
                    out.push(format!(
                        "{path}.resources.{list}[{name}]: fractional byte value {} is invalid, must be an integer",
                        crate::field::go_quote(text)
                    ));
                }
            }
        }
    }
    out
}
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn warnings_point_at_what_surprises() {
        let pod = json!({"metadata": {"name": "a.b"}, "spec": {
            "terminationGracePeriodSeconds": -1,
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "containers": [{
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
                "ports": [{"containerPort": 1}, {"containerPort": 1}],
                "resources": {"limits": {"memory": "100m"}},
            }]
        }});
        assert_eq!(
            warnings(&pod),
            [
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a \
                 DNS label is recommended: [must not contain dots]",
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be \
                 treated as 1",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using \
                 apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be \
                 an integer",
            ]
        );
    }
}
