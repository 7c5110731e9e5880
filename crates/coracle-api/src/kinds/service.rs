//! Services.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata::{self, validate_labels};
use crate::names;
use crate::table::Column;
use crate::tree::{self, entries_at, int_at, list_at, object_in, set_default, str_at};

/// What is special about Services.
pub(crate) struct ServiceStrategy;

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Type", "type determines how the Service is exposed."),
    Column::text(
        "Cluster-IP",
        "clusterIP is the IP address of the service and is usually assigned randomly.",
    ),
    Column::text(
        "External-IP",
        "externalIPs is a list of IP addresses for which nodes in the cluster will also accept traffic for this service.",
    ),
    Column::text("Port(s)", "The list of ports that are exposed by this service."),
    Column::AGE,
    Column::wide(
        "Selector",
        "Route service traffic to pods with label keys and values matching this selector.",
    ),
];

impl Strategy for ServiceStrategy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object_in(object, "spec") else { return };
        defaults(spec);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set_or_remove(object, "status", Some(json!({ "loadBalancer": {} })));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::set_or_remove(new, "status", old.get("status").cloned());
        // Who leaves out what was allocated means to keep it.
        let needs_address = |service: &Value| str_at(service, &["spec", "type"]) != "ExternalName";
        let Some(old_spec) = old.get("spec").filter(|_| needs_address(new) && needs_address(old)) else {
            return;
        };
        let Some(spec) = object_in(new, "spec") else { return };
        if tree::is_empty(spec.get("clusterIP")) && tree::is_empty(spec.get("clusterIPs")) {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old_spec.get(field) {
                    spec.insert(field.into(), value.clone());
                }
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if tree::is_empty(spec.get(field))
                && let Some(value) = old_spec.get(field)
            {
                spec.insert(field.into(), value.clone());
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let address = |service: &Value| str_at(service, &["spec", "clusterIP"]).to_owned();
        let external = |service: &Value| str_at(service, &["spec", "type"]) == "ExternalName";
        if !external(new) && !external(old) && !address(old).is_empty() && address(new) != address(old) {
            errors.push(FieldError::invalid(
                &Path::new("spec").child("clusterIPs").index(0),
                tree::at(new, &["spec", "clusterIPs"]).cloned().unwrap_or_default(),
                "may not change once set",
            ));
        }
        errors.extend(validate(new));
        errors
    }

    fn warnings(&self, service: &Value, old: Option<&Value>) -> Vec<String> {
        let external = str_at(service, &["spec", "type"]) == "ExternalName";
        if old.is_some() || external || str_at(service, &["spec", "clusterIP"]) == "None" {
            return Vec::new();
        }
        // It changes nothing about any container, so it is taken; who asked for it must know.
        vec!["spec: Coracle gives this Service its address but carries no traffic to it yet".to_owned()]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![
            ("spec.clusterIP", str_at(object, &["spec", "clusterIP"]).to_owned()),
            ("spec.type", str_at(object, &["spec", "type"]).to_owned()),
        ]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, service: &Value, now: Timestamp) -> Vec<Value> {
        let none_if_empty =
            |text: String| -> Value { if text.is_empty() { "<none>".into() } else { text.into() } };
        let ports: Vec<String> = list_at(service, &["spec", "ports"])
            .iter()
            .map(|port| {
                let (number, protocol) = (int_at(port, &["port"]).unwrap_or(0), str_at(port, &["protocol"]));
                match int_at(port, &["nodePort"]).filter(|n| *n != 0) {
                    Some(node) => format!("{number}:{node}/{protocol}"),
                    None => format!("{number}/{protocol}"),
                }
            })
            .collect();
        let mut selector: Vec<String> = entries_at(service, &["spec", "selector"])
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        selector.sort();
        vec![
            metadata::name(service).into(),
            str_at(service, &["spec", "type"]).into(),
            none_if_empty(str_at(service, &["spec", "clusterIP"]).to_owned()),
            none_if_empty(external_ip(service)),
            none_if_empty(ports.join(",")),
            super::age(service, now),
            none_if_empty(selector.join(",")),
        ]
    }
}

fn external_ip(service: &Value) -> String {
    let mut ips: Vec<&str> =
        list_at(service, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
    match str_at(service, &["spec", "type"]) {
        "ExternalName" => str_at(service, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" => {
            for ingress in list_at(service, &["status", "loadBalancer", "ingress"]) {
                ips.push(match str_at(ingress, &["ip"]) {
                    "" => str_at(ingress, &["hostname"]),
                    ip => ip,
                });
            }
            if ips.is_empty() { "<pending>".to_owned() } else { ips.join(",") }
        }
        _ => ips.join(","),
    }
}

fn defaults(spec: &mut Map<String, Value>) {
    set_default(spec, "type", "ClusterIP");
    set_default(spec, "sessionAffinity", "None");
    match spec.get("sessionAffinity").and_then(Value::as_str) {
        Some("None") => {
            spec.shift_remove("sessionAffinityConfig");
        }
        Some("ClientIP") => {
            spec.entry("sessionAffinityConfig")
                .or_insert_with(|| json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        set_default(port, "protocol", "TCP");
        let unset = match port.get("targetPort") {
            Some(Value::Number(number)) => number.as_i64() == Some(0),
            other => tree::is_empty(other),
        };
        if unset && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".into(), number);
        }
    }
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let reaches_out = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || kind == "ClusterIP" && !tree::is_empty(spec.get("externalIPs"));
    if reaches_out {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
    if kind == "ExternalName" {
        return;
    }
    set_default(spec, "internalTrafficPolicy", "Cluster");
    // The singular field is the first of the plural one, whichever was said.
    let first = spec.get("clusterIPs").and_then(|all| all.get(0)).cloned();
    match (spec.get("clusterIP").filter(|v| !tree::is_empty(Some(v))).cloned(), first) {
        (None, Some(first)) => {
            spec.insert("clusterIP".into(), first);
        }
        (Some(one), None) => {
            spec.insert("clusterIPs".into(), json!([one]));
        }
        _ => {}
    }
    let headless_without_selector =
        spec.get("clusterIP").is_some_and(|ip| ip == "None") && tree::is_empty(spec.get("selector"));
    set_default(
        spec,
        "ipFamilyPolicy",
        if headless_without_selector { "RequireDualStack" } else { "SingleStack" },
    );
    if spec.get("ipFamilies").is_none() {
        let families = if headless_without_selector { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
        spec.insert("ipFamilies".into(), families);
    }
}

fn validate(service: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let spec = service.get("spec").unwrap_or(&Value::Null);
    let kind = str_at(spec, &["type"]);
    let cluster_ip = str_at(spec, &["clusterIP"]);
    let headless = cluster_ip == "None";
    let mut errors = Vec::new();
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported(&path.child("type"), kind, &kinds));
    }
    if matches!(kind, "NodePort" | "LoadBalancer") && headless {
        errors.push(FieldError::invalid(
            &path.child("clusterIPs").index(0),
            cluster_ip,
            format!("may not be set to 'None' for {kind} services"),
        ));
    }
    if list_at(spec, &["ports"]).is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    if kind == "ExternalName" {
        if !cluster_ip.is_empty() {
            errors.push(FieldError::forbidden(
                &path.child("clusterIPs"),
                "may not be set for ExternalName services",
            ));
        }
        let name = str_at(spec, &["externalName"]);
        let name_path = path.child("externalName");
        if name.is_empty() {
            errors.push(FieldError::required(&name_path, ""));
        } else {
            let bare = name.strip_suffix('.').unwrap_or(name);
            errors.extend(
                names::dns1123_subdomain(bare).into_iter().map(|c| FieldError::invalid(&name_path, name, c)),
            );
        }
    } else if !cluster_ip.is_empty() && !headless {
        let path = path.child("clusterIPs").index(0);
        errors.extend(names::ip(cluster_ip).into_iter().map(|c| FieldError::invalid(&path, cluster_ip, c)));
    }
    errors.extend(ports(list_at(spec, &["ports"]), kind, headless, &path.child("ports")));
    errors.extend(validate_labels(spec.get("selector"), &path.child("selector")));
    let affinity = str_at(spec, &["sessionAffinity"]);
    if !["ClientIP", "None"].contains(&affinity) {
        let path = path.child("sessionAffinity");
        errors.push(if affinity.is_empty() {
            FieldError::required(&path, "")
        } else {
            FieldError::not_supported(&path, affinity, &["ClientIP", "None"])
        });
    }
    errors
}

fn ports(ports: &[Value], kind: &str, headless: bool, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut port_names = std::collections::BTreeSet::new();
    let mut numbers = std::collections::BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = str_at(port, &["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
        } else {
            errors.extend(
                names::dns1123_label(name)
                    .into_iter()
                    .map(|c| FieldError::invalid(&path.child("name"), name, c)),
            );
            if !port_names.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        let number = int_at(port, &["port"]).unwrap_or(0);
        errors.extend(
            names::port_number(number)
                .into_iter()
                .map(|c| FieldError::invalid(&path.child("port"), number, c)),
        );
        let protocol = str_at(port, &["protocol"]);
        if protocol.is_empty() {
            errors.push(FieldError::required(&path.child("protocol"), ""));
        } else if !["SCTP", "TCP", "UDP"].contains(&protocol) {
            errors.push(FieldError::not_supported(
                &path.child("protocol"),
                protocol,
                &["SCTP", "TCP", "UDP"],
            ));
        }
        let target = path.child("targetPort");
        match port.get("targetPort") {
            Some(Value::Number(n)) => {
                let n = n.as_i64().unwrap_or(0);
                errors.extend(names::port_number(n).into_iter().map(|c| FieldError::invalid(&target, n, c)));
                if headless && n != number {
                    errors.push(FieldError::invalid(
                        &target,
                        n,
                        "must be equal to the value of 'port' when clusterIP = None",
                    ));
                }
            }
            Some(Value::String(s)) => {
                errors.extend(
                    names::port_name(s).into_iter().map(|c| FieldError::invalid(&target, s.as_str(), c)),
                );
            }
            _ => {}
        }
        if int_at(port, &["nodePort"]).is_some_and(|n| n != 0) && matches!(kind, "ClusterIP" | "ExternalName")
        {
            errors.push(FieldError::forbidden(
                &path.child("nodePort"),
                format!("may not be used when `type` is '{kind}'"),
            ));
        }
        if !numbers.insert((protocol, number)) {
            let same = json!({ "protocol": protocol, "port": number });
            errors.push(FieldError::duplicate(&path, same));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(mut service: Value) -> Vec<String> {
        ServiceStrategy.default(&mut service);
        validate(&service).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_what_is_stored() {
        let mut service = json!({"spec": {"ports": [{"port": 80}], "clusterIP": "10.43.0.1"}});
        ServiceStrategy.default(&mut service);
        assert_eq!(
            service["spec"],
            json!({
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                "clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"], "type": "ClusterIP",
                "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            })
        );
    }

    #[test]
    fn complaints_are_upstreams() {
        assert_eq!(checked(json!({"spec": {}})), ["spec.ports: Required value"]);
        assert_eq!(checked(json!({"spec": {"clusterIP": "None"}})), Vec::<String>::new());
        assert_eq!(
            checked(json!({"spec": {"type": "ExternalName", "externalName": "a.b"}})),
            Vec::<String>::new()
        );
        assert_eq!(
            checked(json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}})),
            Vec::<String>::new()
        );
        assert_eq!(
            checked(json!({"spec": {"ports": [{"port": 1, "nodePort": 30001}]}})),
            ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
        );
        assert_eq!(
            checked(json!({"spec": {"type": "X", "ports": [{"port": 1}]}})),
            ["spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \
              \"LoadBalancer\", \"NodePort\""]
        );
        assert_eq!(
            checked(json!({"spec": {"ports": [{"port": 0}, {"port": 1, "name": "a"}]}})),
            [
                "spec.ports[0].name: Required value",
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }

    #[test]
    fn an_address_is_kept_and_never_changed() {
        let old =
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"]}});
        let mut new = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 1}]}});
        ServiceStrategy.prepare_for_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.1");
        let changed = json!({"spec": {"clusterIP": "10.43.0.2", "clusterIPs": ["10.43.0.2"]}});
        assert_eq!(
            ServiceStrategy.validate_update(&changed, &old)[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.43.0.2\"]: may not change once set"
        );
    }
}
