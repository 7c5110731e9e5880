//! What a Pod may learn about itself: fields of its object, and resources of its containers.

use std::collections::BTreeMap;

use coracle_api::field::go_quote;
use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::pod::containers;

/// A field of the Pod's metadata, as a volume or a variable shows it; `None` for a path that neither knows.
#[must_use]
pub fn metadata_field(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let subscript =
        |map: &str| Some(path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?.to_owned());
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
    };
    if let Some(key) = subscript("metadata.labels") {
        return Some(entry(&meta.labels, &key));
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Some(entry(&meta.annotations, &key));
    }
    match path {
        "metadata.name" => Some(text(&meta.name)),
        "metadata.namespace" => Some(text(&meta.namespace)),
        "metadata.uid" => Some(text(&meta.uid)),
        "metadata.labels" => Some(lines(meta.labels.as_ref())),
        "metadata.annotations" => Some(lines(meta.annotations.as_ref())),
        _ => None,
    }
}

/// A map in a file: a line for each entry, in order of the keys, with the value between quotes.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}", go_quote(value));
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

/// The amount of a resource, in units of the divisor and rounded up. A limit that is not set is what the Pod as a
/// whole may use, or what the node has for Pods (`allocatable`).
///
/// `container` is the one that asks; the reference may name another one.
///
/// # Errors
/// What is wrong with the reference, in upstream's words.
pub fn resource_field(
    field: &ResourceFieldSelector,
    spec: &PodSpec,
    container: Option<&Container>,
    allocatable: &BTreeMap<String, Text>,
) -> Result<String, String> {
    let named = field.container_name.as_deref().filter(|name| !name.is_empty());
    let found = named.map(|name| {
        let member = containers::find(spec, name);
        member.map(|member| member.container.into_owned()).ok_or(format!("container {name} not found"))
    });
    let container = match (found, container) {
        (Some(found), _) => found?,
        (None, Some(container)) => container.clone(),
        (None, None) => return Err("container  not found".to_owned()),
    };
    let unsupported = || format!("unsupported container resource : {}", field.resource);
    let (side, resource) = field.resource.split_once('.').ok_or_else(unsupported)?;
    let known =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    let resources = container.resources.as_ref();
    let said = match side {
        "limits" if known => resources.and_then(|r| r.limits.as_ref()),
        "requests" if known => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let amount = |list: Option<&BTreeMap<String, Text>>| {
        list?.get(resource)?.0.parse::<Quantity>().ok().filter(|amount| !amount.is_zero())
    };
    let defaulted = || {
        let of_pod = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
        let has_default = side == "limits" && !resource.starts_with("hugepages-");
        has_default.then(|| amount(of_pod).or_else(|| amount(Some(allocatable)))).flatten()
    };
    let Some(amount) = amount(said).or_else(defaulted) else { return Ok("0".to_owned()) };
    let divisor: Option<Quantity> = field.divisor.as_ref().and_then(|divisor| divisor.0.parse().ok());
    let divisor = divisor.filter(|divisor| !divisor.is_zero());
    let (amount, unit) = if resource == "cpu" {
        (amount.milli_value(), divisor.map_or(1000, Quantity::milli_value))
    } else {
        (amount.value(), divisor.map_or(1, Quantity::value))
    };
    let unit = i128::from(unit.max(1));
    Ok(((i128::from(amount) + unit - 1) / unit).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn maps_are_lines_with_quoted_values() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {
            "name": "p", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a/x": "1"},
            "annotations": {"note": "two\nlines \"and\" quotes"}}}))
        .unwrap();
        for (path, value) in [
            ("metadata.labels", "a/x=\"1\"\nb=\"2\""),
            ("metadata.annotations", "note=\"two\\nlines \\\"and\\\" quotes\""),
            ("metadata.labels['a/x']", "1"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['note']", "two\nlines \"and\" quotes"),
            ("metadata.name", "p"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
        ] {
            assert_eq!(metadata_field(&pod, path).as_deref(), Some(value), "{path}");
        }
        assert_eq!(metadata_field(&pod, "spec.hostNetwork"), None);
    }

    fn value(container: Value, field: Value) -> Result<String, String> {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [
            {"name": "other", "resources": {"limits": {"cpu": "3"}}}, {"name": "sized", "resources": container},
        ]}))
        .unwrap();
        let allocatable =
            serde_json::from_value(json!({"cpu": "4", "memory": "8Gi", "ephemeral-storage": "1G"}));
        let field = serde_json::from_value(field).unwrap();
        resource_field(&field, &spec, Some(&spec.containers[1]), &allocatable.unwrap())
    }

    #[test]
    fn amounts_are_divided_and_rounded_up_and_default_to_what_the_node_has() {
        let sized = json!({"limits": {"cpu": "1500m", "memory": "100Mi", "hugepages-2Mi": "4Mi"}, "requests": {"cpu": "1m"}});
        for (resource, divisor, expected) in [
            ("limits.cpu", "0", "2"),
            ("limits.cpu", "1m", "1500"),
            ("limits.cpu", "400m", "4"),
            ("limits.memory", "1Mi", "100"),
            ("limits.memory", "1Gi", "1"),
            ("limits.memory", "0", "104857600"),
            ("limits.hugepages-2Mi", "1Mi", "4"),
            ("requests.cpu", "1", "1"),
            ("requests.memory", "1", "0"),
        ] {
            let field = json!({"resource": resource, "divisor": divisor});
            assert_eq!(value(sized.clone(), field).as_deref(), Ok(expected), "{resource} {divisor}");
        }
        for (resource, expected) in [
            ("limits.cpu", "4"),
            ("limits.memory", "8589934592"),
            ("limits.ephemeral-storage", "1000000000"),
            ("limits.hugepages-2Mi", "0"),
            ("requests.cpu", "0"),
        ] {
            assert_eq!(
                value(json!({}), json!({"resource": resource})).as_deref(),
                Ok(expected),
                "{resource}"
            );
        }
        let other = json!({"containerName": "other", "resource": "limits.cpu"});
        assert_eq!(value(json!({}), other).as_deref(), Ok("3"));
        let nobody = json!({"containerName": "nobody", "resource": "limits.cpu"});
        assert_eq!(value(json!({}), nobody).unwrap_err(), "container nobody not found");
        let strange = value(json!({}), json!({"resource": "limits.pods"}));
        assert_eq!(strange.unwrap_err(), "unsupported container resource : limits.pods");
    }
}
