//! What is wrong with a new Pod, in upstream's words.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::metadata::validate_labels;
use crate::names;
use crate::quantity::Quantity;
use crate::tree::{self, entries_at, int_at, list_at, str_at, true_at};

/// The resources that containers may name without a domain.
const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn one_of(value: &str, path: &Path, supported: &[&str]) -> Option<FieldError> {
    if value.is_empty() {
        Some(FieldError::required(path, ""))
    } else if supported.contains(&value) {
        None
    } else {
        Some(FieldError::not_supported(path, value, supported))
    }
}

fn invalid_each(path: &Path, value: &str, complaints: Vec<String>) -> impl Iterator<Item = FieldError> {
    complaints.into_iter().map(move |c| FieldError::invalid(path, value, c))
}

pub(super) fn pod(pod: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let said = pod.get("spec").unwrap_or(&Value::Null);
    let mut errors = spec(said, &path);
    // What admission has set by now; a template leaves it open.
    let priority = int_at(said, &["priority"]).unwrap_or(0);
    if priority != 0 {
        errors.push(FieldError::forbidden(
            &path.child("priority"),
            format!(
                "the integer value of priority ({priority}) must not be provided in pod spec; priority \
                 admission controller computed 0 from the given PriorityClass name"
            ),
        ));
    }
    if str_at(said, &["preemptionPolicy"]).is_empty() {
        errors.push(FieldError::required(&path.child("preemptionPolicy"), ""));
    }
    errors
}

/// What is wrong with the spec of a Pod, or of one to be made of a template, that stands at `path`.
pub(super) fn spec(spec: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = containers(spec, &path.child("containers"));
    errors.extend(one_of(
        str_at(spec, &["restartPolicy"]),
        &path.child("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    ));
    errors.extend(one_of(
        str_at(spec, &["dnsPolicy"]),
        &path.child("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    ));
    errors.extend(validate_labels(spec.get("nodeSelector"), &path.child("nodeSelector")));
    if let Some(context) = spec.get("securityContext") {
        let context_path = path.child("securityContext");
        errors.extend(ids(context, &context_path));
        for (index, group) in list_at(context, &["supplementalGroups"]).iter().enumerate() {
            let group = group.as_i64().unwrap_or(0);
            let path = context_path.child("supplementalGroups").index(index);
            errors.extend(names::unix_id(group).into_iter().map(|c| FieldError::invalid(&path, group, c)));
        }
    }
    for (field, check) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
    ] {
        let value = str_at(spec, &[field]);
        if !value.is_empty() {
            errors.extend(invalid_each(&path.child(field), value, check(value)));
        }
    }
    errors.extend(tolerations(list_at(spec, &["tolerations"]), &path.child("tolerations")));
    let preemption = str_at(spec, &["preemptionPolicy"]);
    if !preemption.is_empty() {
        errors.extend(one_of(
            preemption,
            &path.child("preemptionPolicy"),
            &["PreemptLowerPriority", "Never"],
        ));
    }
    let scheduler = str_at(spec, &["schedulerName"]);
    errors.extend(invalid_each(&path.child("schedulerName"), scheduler, names::dns1123_subdomain(scheduler)));
    errors
}

fn containers(spec: &Value, path: &Path) -> Vec<FieldError> {
    let containers = list_at(spec, &["containers"]);
    if containers.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errors = Vec::new();
    let mut container_names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        let name = str_at(container, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            errors.extend(invalid_each(&path.child("name"), name, names::dns1123_label(name)));
            if !container_names.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        errors.extend(image(container, &path));
        errors.extend(one_of(
            str_at(container, &["terminationMessagePolicy"]),
            &path.child("terminationMessagePolicy"),
            &["File", "FallbackToLogsOnError"],
        ));
        errors.extend(ports(list_at(container, &["ports"]), &path.child("ports")));
        errors.extend(env(list_at(container, &["env"]), &path.child("env")));
        errors.extend(one_of(
            str_at(container, &["imagePullPolicy"]),
            &path.child("imagePullPolicy"),
            &["Always", "IfNotPresent", "Never"],
        ));
        errors.extend(resources(container.get("resources"), &path.child("resources")));
        errors.extend(security_context(container.get("securityContext"), &path.child("securityContext")));
        for (port_index, port) in list_at(container, &["ports"]).iter().enumerate() {
            let Some(number) = int_at(port, &["hostPort"]).filter(|n| *n != 0) else { continue };
            let protocol = str_at(port, &["protocol"]);
            let endpoint = format!("{protocol}/{}/{number}", str_at(port, &["hostIP"]));
            if !host_ports.insert(endpoint.clone()) {
                let path = path.child("ports").index(port_index).child("hostPort");
                errors.push(FieldError::duplicate(&path, endpoint));
            }
        }
    }
    errors
}

/// What is wrong with the image of the container at `path`.
pub(super) fn image(container: &Value, path: &Path) -> Option<FieldError> {
    let image = str_at(container, &["image"]);
    let path = path.child("image");
    if image.is_empty() {
        Some(FieldError::required(&path, ""))
    } else if image != image.trim() {
        Some(FieldError::invalid(&path, image, "must not have leading or trailing whitespace"))
    } else {
        None
    }
}

fn ports(ports: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut port_names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = str_at(port, &["name"]);
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() {
                if !port_names.insert(name) {
                    errors.push(FieldError::duplicate(&path.child("name"), name));
                }
            } else {
                errors.extend(invalid_each(&path.child("name"), name, complaints));
            }
        }
        let number = int_at(port, &["containerPort"]).unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(&path.child("containerPort"), ""));
        } else {
            let path = path.child("containerPort");
            errors.extend(
                names::port_number(number).into_iter().map(|c| FieldError::invalid(&path, number, c)),
            );
        }
        let number = int_at(port, &["hostPort"]).unwrap_or(0);
        if number != 0 {
            let path = path.child("hostPort");
            errors.extend(
                names::port_number(number).into_iter().map(|c| FieldError::invalid(&path, number, c)),
            );
        }
        errors.extend(one_of(str_at(port, &["protocol"]), &path.child("protocol"), &["SCTP", "TCP", "UDP"]));
    }
    errors
}

fn env(variables: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, variable) in variables.iter().enumerate() {
        let path = path.index(index).child("name");
        let name = str_at(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else {
            errors.extend(invalid_each(&path, name, names::env_var_name(name)));
        }
    }
    errors
}

fn resources(resources: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let Some(resources) = resources else { return Vec::new() };
    let mut errors = Vec::new();
    let amount = |value: &Value| value.as_str().and_then(|text| text.parse::<Quantity>().ok());
    for list in ["limits", "requests"] {
        for (name, value) in entries_at(resources, &[list]) {
            let path = path.child(list).key(name);
            errors.extend(resource_name(name, &path));
            let Some(quantity) = amount(value) else { continue };
            if quantity.is_negative() {
                errors.push(FieldError::invalid(
                    &path,
                    quantity.to_string(),
                    "must be greater than or equal to 0",
                ));
            }
            if name.contains('/') && !quantity.is_whole() {
                errors.push(FieldError::invalid(&path, quantity.to_string(), "must be an integer"));
            }
        }
    }
    for (name, value) in entries_at(resources, &["requests"]) {
        let (Some(request), limit) = (amount(value), tree::at(resources, &["limits", name]).and_then(amount))
        else {
            continue;
        };
        // Only what a node can lend out twice may be asked for without a limit.
        let overcommit = !name.contains('/');
        match limit {
            Some(limit) if overcommit && request > limit => errors.push(FieldError::invalid(
                &path.child("requests"),
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            )),
            Some(limit) if !overcommit && request != limit => errors.push(FieldError::invalid(
                &path.child("requests"),
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            )),
            None if !overcommit => errors.push(FieldError::required(
                &path.child("limits"),
                "Limit must be set for non overcommitable resources",
            )),
            _ => {}
        }
    }
    errors
}

fn resource_name(name: &str, path: &Path) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = invalid_each(path, name, names::qualified_name(name)).collect();
    if errors.is_empty() && !name.contains('/') {
        if !CONTAINER_RESOURCES.contains(&name) && !name.starts_with("hugepages-") {
            errors.push(FieldError::invalid(
                path,
                name,
                "must be a standard resource type or fully qualified",
            ));
            errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if errors.is_empty() && name.starts_with("kubernetes.io/") {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
    errors
}

fn ids(context: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(id) = int_at(context, &[field]) {
            let path = path.child(field);
            errors.extend(names::unix_id(id).into_iter().map(|c| FieldError::invalid(&path, id, c)));
        }
    }
    errors
}

fn security_context(context: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let Some(context) = context else { return Vec::new() };
    let mut errors = ids(context, path);
    if context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        if true_at(context, &["privileged"]) {
            errors.push(FieldError::invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        if list_at(context, &["capabilities", "add"]).iter().any(|c| c == "CAP_SYS_ADMIN" || c == "SYS_ADMIN")
        {
            errors.push(FieldError::invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            ));
        }
    }
    errors
}

/// What is wrong with a list of tolerations.
pub(super) fn tolerations(tolerations: &[Value], path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let [key, operator, value, effect] =
            ["key", "operator", "value", "effect"].map(|field| str_at(toleration, &[field]));
        if !key.is_empty() {
            errors.extend(invalid_each(&path.child("key"), key, names::qualified_name(key)));
        }
        if key.is_empty() && operator != "Exists" {
            errors.push(FieldError::invalid(
                &path.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.push(FieldError::invalid(
                &path.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "" | "Equal" => {
                let complaints = names::label_value(value);
                if !complaints.is_empty() {
                    errors.push(FieldError::invalid(&path.child("operator"), value, complaints.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.push(FieldError::invalid(
                        &path.child("operator"),
                        toleration.clone(),
                        "value must be empty when `operator` is 'Exists'",
                    ));
                }
            }
            other => {
                errors.push(FieldError::not_supported(&path.child("operator"), other, &["Equal", "Exists"]));
            }
        }
        if !effect.is_empty() && !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            errors.push(FieldError::not_supported(
                &path.child("effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
        }
    }
    errors
}

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

    fn errors_of(mutate: impl Fn(&mut Value)) -> Vec<String> {
        let mut object =
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        mutate(&mut object["spec"]);
        super::super::defaults::apply(&mut object);
        super::super::defaults::admit(&mut object);
        pod(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn complaints_are_upstreams() {
        type Mutation = fn(&mut Value);
        let table: [(&str, Mutation, &[&str]); 19] = [
            ("nothing", |_| {}, &[]),
            ("no containers", |s| s["containers"] = json!([]), &["spec.containers: Required value"]),
            (
                "nameless",
                |s| s["containers"][0] = json!({}),
                &["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
            ),
            (
                "same name",
                |s| s["containers"].as_array_mut().unwrap().push(json!({"name": "c", "image": "i"})),
                &["spec.containers[1].name: Duplicate value: \"c\""],
            ),
            (
                "spaces",
                |s| s["containers"][0]["image"] = " i".into(),
                &[
                    "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
                ],
            ),
            (
                "restart policy",
                |s| s["restartPolicy"] = "Sometimes".into(),
                &["spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                   \"OnFailure\", \"Never\""],
            ),
            (
                "pull policy",
                |s| s["containers"][0]["imagePullPolicy"] = "X".into(),
                &[
                    "spec.containers[0].imagePullPolicy: Unsupported value: \"X\": supported values: \"Always\", \
                   \"IfNotPresent\", \"Never\"",
                ],
            ),
            (
                "port out of range",
                |s| s["containers"][0]["ports"] = json!([{"containerPort": 70000}]),
                &[
                    "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, \
                   inclusive",
                ],
            ),
            (
                "no port",
                |s| s["containers"][0]["ports"] = json!([{"name": "x"}]),
                &["spec.containers[0].ports[0].containerPort: Required value"],
            ),
            (
                "protocol",
                |s| s["containers"][0]["ports"] = json!([{"containerPort": 1, "protocol": "tcp"}]),
                &[
                    "spec.containers[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \
                   \"TCP\", \"UDP\"",
                ],
            ),
            (
                "host ports collide",
                |s| {
                    s["containers"][0]["ports"] =
                        json!([{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]);
                },
                &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//9\""],
            ),
            (
                "env",
                |s| s["containers"][0]["env"] = json!([{"name": ""}, {"name": "a=b"}]),
                &[
                    "spec.containers[0].env[0].name: Required value",
                    "spec.containers[0].env[1].name: Invalid value: \"a=b\": a valid environment variable name \
                     must consist only of printable ASCII characters other than '='",
                ],
            ),
            (
                "request over limit",
                |s| {
                    s["containers"][0]["resources"] =
                        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}});
                },
                &[
                    "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu \
                   limit of 1",
                ],
            ),
            (
                "negative",
                |s| s["containers"][0]["resources"] = json!({"requests": {"cpu": "-1"}}),
                &[
                    "spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater than or \
                   equal to 0",
                ],
            ),
            (
                "resource nobody knows",
                |s| s["containers"][0]["resources"] = json!({"requests": {"gpu": "1"}}),
                &[
                    "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard \
                     resource type or fully qualified",
                    "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard \
                     resource for containers",
                ],
            ),
            (
                "toleration",
                |s| s["tolerations"] = json!([{"operator": "Equal", "tolerationSeconds": 1}]),
                &[
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is \
                     empty, which means \"match all values and all keys\"",
                    "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when \
                     `tolerationSeconds` is set",
                ],
            ),
            (
                "hostname",
                |s| s["hostname"] = "a.b".into(),
                &["spec.hostname: Invalid value: \"a.b\": must not contain dots"],
            ),
            (
                "priority",
                |s| s["priority"] = 5.into(),
                &[
                    "spec.priority: Forbidden: the integer value of priority (5) must not be provided in pod spec; \
                   priority admission controller computed 0 from the given PriorityClass name",
                ],
            ),
            (
                "user",
                |s| s["containers"][0]["securityContext"] = json!({"runAsUser": -1}),
                &["spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and \
                   4294967295, inclusive"],
            ),
        ];
        for (name, mutate, expected) in table {
            assert_eq!(errors_of(mutate), expected, "{name}");
        }
    }

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
