//! The environment of a container: `envFrom` in order, then `env` in order with `$(NAME)` expanded, then service
//! variables for names that are not set.

use std::collections::BTreeMap;

use coracle_cri::EnvVar;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvFromSource, EnvVarSource, Pod, PodSpec, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::fields::{metadata_field, resource_field};
use crate::objects::{Referable, not_found};
use crate::volume::env_file;
use crate::volume::payload::Found;

/// Replaces each `$(NAME)` that `value_of` knows; `$$` is a literal `$`, anything else stays as it is.
#[must_use]
pub(crate) fn expand<'a>(text: &str, value_of: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value_of(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

/// The same, but a name that is not known is an error.
///
/// # Errors
/// The first such name, in upstream's words.
pub(crate) fn expand_known<'a>(
    text: &str,
    value_of: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let expanded = expand(text, |name| {
        let value = value_of(name);
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for \"{name}\"")),
        None => Ok(expanded),
    }
}

/// What variables of a container may refer to.
#[derive(Debug)]
pub(crate) struct EnvContext<'a> {
    /// The Pod.
    pub(crate) pod: &'a Pod,
    /// Name of the node.
    pub(crate) node_name: &'a str,
    /// Addresses of the node.
    pub(crate) host_ips: &'a [String],
    /// Addresses of the Pod.
    pub(crate) pod_ips: &'a [String],
    /// Service variables.
    pub(crate) services: BTreeMap<String, String>,
    /// The ConfigMaps that the container refers to.
    pub(crate) config_maps: BTreeMap<String, Found<ConfigMap>>,
    /// The Secrets that the container refers to.
    pub(crate) secrets: BTreeMap<String, Found<Secret>>,
    /// Files with variables: volume and path to text, or why there is none.
    pub(crate) files: BTreeMap<(String, String), Result<String, String>>,
    /// What the node has for Pods.
    pub(crate) allocatable: BTreeMap<String, Quantity>,
}

/// The variables of a container, each once, and what was left out: texts of events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) variables: Vec<EnvVar>,
    pub(crate) skipped: Vec<String>,
}

impl Environment {
    fn set(&mut self, key: &str, value: String) {
        match self.variables.iter_mut().find(|earlier| earlier.key == key) {
            Some(earlier) => earlier.value = value,
            None => self.variables.push(EnvVar { key: key.to_owned(), value }),
        }
    }

    fn value_of(&self, key: &str) -> Option<&str> {
        self.variables.iter().find(|variable| variable.key == key).map(|variable| variable.value.as_str())
    }

    /// Takes over everything that a ConfigMap or Secret holds.
    fn import<'a>(
        &mut self,
        prefix: &str,
        source: &str,
        entries: impl Iterator<Item = (&'a String, String)>,
    ) {
        let mut invalid = Vec::new();
        for (key, value) in entries {
            let key = format!("{prefix}{key}");
            if is_name(&key) { self.set(&key, value) } else { invalid.push(key) }
        }
        if !invalid.is_empty() {
            invalid.sort();
            self.skipped.push(format!(
                "Keys [{}] from the EnvFrom {source} were skipped since they are considered invalid environment variable names.",
                invalid.join(", ")
            ));
        }
    }
}

/// Printable characters but `=`.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

/// The environment of a container.
///
/// # Errors
/// The waiting message of `CreateContainerConfigError`.
pub(crate) fn environment(container: &Container, context: &EnvContext<'_>) -> Result<Environment, String> {
    let mut made = Environment::default();
    for source in container.env_from.iter().flatten() {
        import(source, context, &mut made)?;
    }
    for variable in container.env.iter().flatten() {
        let literal = variable.value.as_deref().unwrap_or_default();
        let value = match &variable.value_from {
            Some(source) if literal.is_empty() => match from_source(source, container, context)? {
                Some(value) => value,
                None => continue,
            },
            _ => expand(literal, |name| {
                made.value_of(name).or_else(|| context.services.get(name).map(String::as_str))
            }),
        };
        made.set(&variable.name, value);
    }
    for (key, value) in &context.services {
        if made.value_of(key).is_none() {
            made.set(key, value.clone());
        }
    }
    Ok(made)
}

fn import(source: &EnvFromSource, context: &EnvContext<'_>, made: &mut Environment) -> Result<(), String> {
    let namespace = context.pod.metadata.namespace.as_deref().unwrap_or_default();
    let prefix = source.prefix.as_deref().unwrap_or_default();
    if let Some(all) = &source.config_map_ref {
        if let Some(map) = found(&context.config_maps, &all.name, all.optional == Some(true))? {
            let entries = map.data.iter().flatten().map(|(key, value)| (key, value.clone()));
            made.import(prefix, &format!("configMap {namespace}/{}", all.name), entries);
        }
    } else if let Some(all) = &source.secret_ref
        && let Some(secret) = found(&context.secrets, &all.name, all.optional == Some(true))?
    {
        let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
        let entries = secret.data.iter().flatten().map(|(key, value)| (key, text(&value.0)));
        made.import(prefix, &format!("secret {namespace}/{}", all.name), entries);
    }
    Ok(())
}

fn found<'a, T: Referable>(
    all: &'a BTreeMap<String, Found<T>>,
    name: &str,
    optional: bool,
) -> Result<Option<&'a T>, String> {
    match all.get(name) {
        Some(Ok(Some(object))) => Ok(Some(object)),
        Some(Err(why)) => Err(why.clone()),
        Some(Ok(None)) | None if optional => Ok(None),
        Some(Ok(None)) | None => Err(not_found::<T>(name)),
    }
}

/// The value; `None` if the variable is not set at all.
fn from_source(
    source: &EnvVarSource,
    container: &Container,
    context: &EnvContext<'_>,
) -> Result<Option<String>, String> {
    let namespace = context.pod.metadata.namespace.as_deref().unwrap_or_default();
    let missing = |key: &str, kind: &str, name: &str| {
        Err(format!("couldn't find key {key} in {kind} {namespace}/{name}"))
    };
    if let Some(field) = &source.field_ref {
        let value = field_value(&field.field_path, context);
        value.map(Some).ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))
    } else if let Some(field) = &source.resource_field_ref {
        let empty = PodSpec::default();
        let spec = context.pod.spec.as_ref().unwrap_or(&empty);
        resource_field(field, spec, Some(container), &context.allocatable).map(Some)
    } else if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = found(&context.config_maps, &key.name, optional)? else { return Ok(None) };
        match map.data.as_ref().and_then(|data| data.get(&key.key)) {
            None if !optional => missing(&key.key, "ConfigMap", &key.name),
            value => Ok(value.cloned()),
        }
    } else if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = found(&context.secrets, &key.name, optional)? else { return Ok(None) };
        match secret.data.as_ref().and_then(|data| data.get(&key.key)) {
            None if !optional => missing(&key.key, "Secret", &key.name),
            value => Ok(value.map(|value| String::from_utf8_lossy(&value.0).into_owned())),
        }
    } else if let Some(key) = &source.file_key_ref {
        let text = context.files.get(&(key.volume_name.clone(), key.path.clone()));
        let no_volume = || format!("cannot find the volume \"{}\" referenced by FileKeyRef", key.volume_name);
        // What is wrong with the file may be none of the user's business: that stays in the log.
        const UNREADABLE: &str = "couldn't parse env file";
        let text = text.ok_or_else(no_volume)?.as_ref().map_err(|_| UNREADABLE)?;
        let value = env_file::value(text, &key.key).map_err(|_| UNREADABLE)?;
        match (value.is_empty(), key.optional == Some(true)) {
            (false, _) => Ok(Some(value)),
            (true, true) => Ok(None),
            (true, false) => {
                Err(format!("environment variable key \"{}\" not found in file \"{}\"", key.key, key.path))
            }
        }
    } else {
        Err("this source of an environment variable is not supported by this node".to_owned())
    }
}

fn field_value(path: &str, context: &EnvContext<'_>) -> Option<String> {
    let spec = context.pod.spec.as_ref();
    match path {
        "spec.nodeName" => Some(context.node_name.to_owned()),
        "spec.serviceAccountName" => {
            Some(spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default())
        }
        "status.hostIP" => Some(context.host_ips.first().cloned().unwrap_or_default()),
        "status.hostIPs" => Some(context.host_ips.join(",")),
        "status.podIP" => Some(context.pod_ips.first().cloned().unwrap_or_default()),
        "status.podIPs" => Some(context.pod_ips.join(",")),
        path => metadata_field(context.pod, path),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn references_expand_and_two_dollars_escape() {
        let value = |name: &str| (name == "A").then_some("1");
        for (text, expanded) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$", "$"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
            ("", ""),
        ] {
            assert_eq!(expand(text, value), expanded, "{text}");
        }
        assert_eq!(expand_known("$(A)-$$(B)", value).as_deref(), Ok("1-$(B)"));
        assert_eq!(expand_known("$(A)$(B)$(C)", value).unwrap_err(), "missing value for \"B\"");
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a.b/c": "l"}, "annotations": {"n": "m"}},
            "spec": {"containers": [], "serviceAccountName": "robot"}
        }))
        .unwrap()
    }

    fn made(container: Value, services: BTreeMap<String, String>) -> Result<Environment, String> {
        let container = serde_json::from_value(container).unwrap();
        let pod = pod();
        let object = |value: Value| Ok(Some(Arc::new(serde_json::from_value(value).unwrap())));
        let context = EnvContext {
            pod: &pod,
            node_name: "n",
            host_ips: &["192.0.2.1".to_owned(), "2001:db8::1".to_owned()],
            pod_ips: &["10.0.0.5".to_owned()],
            services,
            config_maps: BTreeMap::from([
                (
                    "cm".to_owned(),
                    object(json!({"data": {"A": "a", "B": "$(A)", "x=y": "bad", "": "worse"}})),
                ),
                ("none".to_owned(), Ok(None)),
                (
                    "slow".to_owned(),
                    Err("failed to sync configmap cache: timed out waiting for the condition".into()),
                ),
            ]),
            secrets: BTreeMap::from([
                (
                    "s".to_owned(),
                    Ok(Some(Arc::new(serde_json::from_value(json!({"data": {"B": "c2VjcmV0"}})).unwrap()))),
                ),
                ("none".to_owned(), Ok(None)),
            ]),
            files: BTreeMap::from([
                (("v".to_owned(), "env".to_owned()), Ok("F='from file'\n".to_owned())),
                (("v".to_owned(), "bad".to_owned()), Ok("F=unquoted\n".to_owned())),
                (("v".to_owned(), "gone".to_owned()), Err("No such file".to_owned())),
            ]),
            allocatable: serde_json::from_value(json!({"cpu": "4"})).unwrap(),
        };
        environment(&container, &context)
    }

    fn env(container: Value, services: &[(&str, &str)]) -> Vec<(String, String)> {
        let services = services.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let variables = made(container, services.collect()).unwrap().variables;
        variables.into_iter().map(|v| (v.key, v.value)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_see_those_before_them_and_the_services() {
        let got = env(
            json!({"name": "c", "env": [
                {"name": "A", "value": "a"},
                {"name": "B", "value": "$(A)-$(S)-$(C)"},
                {"name": "C", "value": "c"},
                {"name": "A", "value": "again $(A)"},
                {"name": "E"},
            ]}),
            &[("S", "svc"), ("B", "lost")],
        );
        let expected = [("A", "again a"), ("B", "a-svc-$(C)"), ("C", "c"), ("E", ""), ("S", "svc")];
        assert_eq!(got, pairs(&expected));
    }

    #[test]
    fn whole_objects_come_first_in_order_and_single_variables_override() {
        let mut sorted = env(
            json!({"envFrom": [
                {"configMapRef": {"name": "cm"}}, {"prefix": "P_", "configMapRef": {"name": "cm"}},
                {"secretRef": {"name": "s"}}, {"secretRef": {"name": "none", "optional": true}},
            ], "env": [{"name": "A", "value": "own $(B)"}]}),
            &[("B", "lost"), ("S", "svc")],
        );
        let expected = [
            ("A", "own secret"),
            ("B", "secret"),
            ("P_", "worse"),
            ("P_A", "a"),
            ("P_B", "$(A)"),
            ("S", "svc"),
        ];
        sorted.sort();
        assert_eq!(sorted, pairs(&expected), "what is imported is not expanded");
        let skipped =
            made(json!({"envFrom": [{"configMapRef": {"name": "cm"}}]}), BTreeMap::new()).unwrap().skipped;
        assert_eq!(
            skipped,
            [
                "Keys [, x=y] from the EnvFrom configMap ns/cm were skipped since they are considered invalid environment \
              variable names."
            ]
        );
    }

    #[test]
    fn every_field_of_the_downward_api_is_a_variable() {
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
            ("metadata.labels['a.b/c']", "l"),
            ("metadata.annotations['n']", "m"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "n"),
            ("spec.serviceAccountName", "robot"),
            ("status.hostIP", "192.0.2.1"),
            ("status.hostIPs", "192.0.2.1,2001:db8::1"),
            ("status.podIP", "10.0.0.5"),
            ("status.podIPs", "10.0.0.5"),
        ] {
            let source = json!({"fieldRef": {"fieldPath": path}});
            assert_eq!(
                env(json!({"env": [{"name": "X", "valueFrom": source}]}), &[]),
                pairs(&[("X", value)]),
                "{path}"
            );
        }
        let source = json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}});
        assert_eq!(env(json!({"env": [{"name": "X", "valueFrom": source}]}), &[]), pairs(&[("X", "4000")]));
    }

    #[test]
    fn keys_of_objects_and_files_are_variables_and_optional_ones_may_be_missing() {
        let one = |source: Value| made(json!({"env": [{"name": "X", "valueFrom": source}]}), BTreeMap::new());
        let value = |source: Value| one(source).unwrap().variables.first().map(|v| v.value.clone());
        let key = |name: &str, key: &str| json!({"name": name, "key": key});
        assert_eq!(value(json!({"configMapKeyRef": key("cm", "B")})).as_deref(), Some("$(A)"));
        assert_eq!(value(json!({"secretKeyRef": key("s", "B")})).as_deref(), Some("secret"));
        let file = |path: &str, key: &str| json!({"volumeName": "v", "path": path, "key": key});
        assert_eq!(value(json!({"fileKeyRef": file("env", "F")})).as_deref(), Some("from file"));
        let optional = |mut reference: Value| {
            reference["optional"] = json!(true);
            reference
        };
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            assert_eq!(value(json!({ kind: optional(key("none", "k")) })), None, "{kind}");
        }
        assert_eq!(value(json!({"configMapKeyRef": optional(key("cm", "none"))})), None);
        assert_eq!(value(json!({"secretKeyRef": optional(key("s", "none"))})), None);
        assert_eq!(value(json!({"fileKeyRef": optional(file("env", "none"))})), None);
        for (source, why) in [
            (json!({"configMapKeyRef": key("none", "k")}), "configmap \"none\" not found"),
            (json!({"secretKeyRef": key("none", "k")}), "secret \"none\" not found"),
            (json!({"configMapKeyRef": key("cm", "none")}), "couldn't find key none in ConfigMap ns/cm"),
            (json!({"secretKeyRef": key("s", "none")}), "couldn't find key none in Secret ns/s"),
            (
                json!({"configMapKeyRef": key("slow", "k")}),
                "failed to sync configmap cache: timed out waiting for the condition",
            ),
            (json!({"fieldRef": {"fieldPath": "spec.x"}}), "unsupported fieldPath: spec.x"),
            (json!({"fileKeyRef": file("bad", "F")}), "couldn't parse env file"),
            (json!({"fileKeyRef": file("gone", "F")}), "couldn't parse env file"),
            (
                json!({"fileKeyRef": file("env", "G")}),
                "environment variable key \"G\" not found in file \"env\"",
            ),
            (
                json!({"fileKeyRef": {"volumeName": "w", "path": "env", "key": "F"}}),
                "cannot find the volume \"w\" referenced by FileKeyRef",
            ),
        ] {
            assert_eq!(one(source).unwrap_err(), why);
        }
        for (source, why) in [
            (json!({"configMapRef": {"name": "none"}}), "configmap \"none\" not found"),
            (json!({"secretRef": {"name": "none"}}), "secret \"none\" not found"),
        ] {
            assert_eq!(made(json!({"envFrom": [source]}), BTreeMap::new()).unwrap_err(), why);
        }
    }
}
