//! Which service account a new Pod runs as, and what it gets from it: pull secrets, and a token for talking to the API
//! server.

mod secrets;

use std::time::Duration;

use coracle_api::Value;
use coracle_api::catalogue::Resource;
use coracle_api::field::go_quote;
use coracle_api::metadata;
use coracle_api::status::Status;
use serde_json::json;

use crate::prepare;
use crate::server::Core;

const ACCOUNT_FIELDS: [&str; 2] = ["serviceAccountName", "serviceAccount"];
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Where containers find token, authority and namespace.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Volumes with this name and a suffix hold these three.
const VOLUME: &str = "kube-api-access-";
/// What asks for exactly this lifetime may not know yet that tokens end.
const TOKEN_SECONDS: u32 = 3607;

/// The account of Pods that name none. It is made a moment after its namespace.
const DEFAULT: &str = "default";
const LOOKS: usize = 10;
const PAUSE: Duration = Duration::from_millis(150);

impl Core {
    /// Finds the account of a new Pod and gives the Pod what it has from it.
    pub(crate) async fn admit_account(&self, row: &Resource, pod: &mut Value) -> Result<(), Status> {
        if !(row.group.is_empty() && row.plural == "pods") {
            return Ok(());
        }
        if is_mirror(pod) {
            return admit_mirror(pod).map_err(|why| refused(pod, why));
        }
        let name = account_of(pod).to_owned();
        let account = self.account(pod, &name).await?;
        let volume = format!("{VOLUME}{}", self.ids.name_suffix());
        admit(pod, &name, &account, volume);
        let said = pod.get("spec").map_or(Ok(()), |spec| secrets::limit(&account, spec));
        said.map_err(|why| refused(pod, &why))
    }

    /// Holds what is added to a Pod to what its account lets it have.
    pub(crate) async fn admit_ephemeral(&self, pod: &Value) -> Result<(), Status> {
        let account = self.account(pod, account_of(pod)).await?;
        let said = pod.get("spec").map_or(Ok(()), |spec| secrets::limit_ephemeral(&account, spec));
        said.map_err(|why| refused(pod, &why))
    }

    async fn account(&self, pod: &Value, name: &str) -> Result<Value, Status> {
        let namespace = metadata::namespace(pod);
        let mut looks = if name == DEFAULT { LOOKS } else { 1 };
        loop {
            if let Some(account) = self.object("serviceaccounts", namespace, name).await? {
                return Ok(account);
            }
            looks -= 1;
            if looks == 0 {
                let why = format!(
                    "error looking up service account {namespace}/{name}: serviceaccount {} not found",
                    go_quote(name)
                );
                return Err(refused(pod, &why));
            }
            self.clock.sleep(PAUSE).await;
        }
    }
}

/// A Pod that has no name yet is told by the beginning of the name that it will get.
fn refused(pod: &Value, why: &str) -> Status {
    let name = [metadata::name(pod), prepare::text(pod, "generateName"), "Unknown"];
    let name = name.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    Status::forbidden("", "pods", name, why)
}

/// Whether a Pod only shows what a node runs by itself.
fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations").is_some_and(|all| all.get(MIRROR).is_some())
}

/// What a node runs by itself has nothing from the cluster.
fn admit_mirror(pod: &Value) -> Result<(), &'static str> {
    let Some(spec) = pod.get("spec") else { return Ok(()) };
    if ACCOUNT_FIELDS.iter().any(|field| spec[field].as_str().is_some_and(|name| !name.is_empty())) {
        return Err("a mirror pod may not reference service accounts");
    }
    if secrets::any(spec) {
        return Err("a mirror pod may not reference secrets");
    }
    let projected = secrets::list(spec, "volumes").filter_map(|volume| volume.get("projected"));
    let mut sources = projected.flat_map(|projected| secrets::list(projected, "sources"));
    if sources.any(|source| source.get("serviceAccountToken").is_some_and(Value::is_object)) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// The name of the account that a Pod asks for, in the field that says so now or in the one that did.
fn account_of(pod: &Value) -> &str {
    let said = |field: &str| pod.get("spec").and_then(|spec| spec.get(field)).and_then(Value::as_str);
    let mut names = ACCOUNT_FIELDS.into_iter().filter_map(said);
    names.find(|name| !name.is_empty()).unwrap_or(DEFAULT)
}

/// Gives a Pod what it has from its account. `volume` is the name of the volume with the token, if it needs one.
fn admit(pod: &mut Value, name: &str, account: &Value, volume: String) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec.insert("serviceAccountName".to_owned(), name.into());
    let says_nothing = spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if says_nothing
        && let Some(secrets) = account.get("imagePullSecrets").and_then(Value::as_array)
        && !secrets.is_empty()
    {
        let named = secrets.iter().map(|secret| json!({ "name": secret["name"] }));
        spec.insert("imagePullSecrets".to_owned(), named.collect());
    }
    let field = "automountServiceAccountToken";
    let says = |object: Option<&Value>| object.and_then(Value::as_bool);
    if says(spec.get(field)).or(says(account.get(field))).unwrap_or(true) {
        mount(spec, volume);
    }
}

fn mount(spec: &mut serde_json::Map<String, Value>, volume: String) {
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let there = volumes.filter_map(|volume| volume["name"].as_str()).find(|name| name.starts_with(VOLUME));
    let exists = there.is_some();
    let name = there.map_or(volume, str::to_owned);
    let mut needed = false;
    for kind in ["initContainers", "containers"] {
        for container in spec.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            // Who mounts something there has something else in mind.
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT_PATH }));
            needed = true;
        }
    }
    if exists || !needed {
        return;
    }
    let volume = json!({ "name": name, "projected": { "defaultMode": 0o644, "sources": [
        { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [
            { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
    ] } });
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({ "metadata": { "name": "p" }, "spec": {
            "initContainers": [{ "name": "i" }], "containers": [{ "name": "c" }] } });
        for (field, value) in spec.as_object().unwrap() {
            pod["spec"][field] = value.clone();
        }
        pod
    }

    fn admitted(spec: Value, account: Value) -> Value {
        let mut pod = pod(spec);
        let name = account_of(&pod).to_owned();
        admit(&mut pod, &name, &account, "kube-api-access-abcde".to_owned());
        pod["spec"].clone()
    }

    #[test]
    fn a_pod_gets_a_token_unless_it_or_its_account_says_no() {
        for (pod, account, expected) in [
            (json!(null), json!(null), true),
            (json!(null), json!(true), true),
            (json!(null), json!(false), false),
            (json!(true), json!(null), true),
            (json!(true), json!(true), true),
            (json!(true), json!(false), true),
            (json!(false), json!(null), false),
            (json!(false), json!(true), false),
            (json!(false), json!(false), false),
        ] {
            let field = "automountServiceAccountToken";
            let spec = admitted(json!({ field: pod }), json!({ field: account }));
            assert_eq!(spec.get("volumes").is_some(), expected, "{pod} {account}");
            assert_eq!(spec["containers"][0].get("volumeMounts").is_some(), expected, "{pod} {account}");
        }
    }

    #[test]
    fn the_volume_holds_token_authority_and_namespace_in_every_container() {
        let spec = admitted(json!({}), json!({}));
        assert_eq!(spec["serviceAccountName"], "default");
        let mount = json!([{ "name": "kube-api-access-abcde", "readOnly": true, "mountPath": MOUNT_PATH }]);
        assert_eq!(spec["containers"][0]["volumeMounts"], mount);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
        let sources = &spec["volumes"][0]["projected"]["sources"];
        assert_eq!(
            sources[0],
            json!({ "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } })
        );
        assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
        assert_eq!(sources[2]["downwardAPI"]["items"][0]["path"], "namespace");
    }

    #[test]
    fn what_is_mounted_there_already_stays() {
        let own = json!([{ "name": "v", "mountPath": MOUNT_PATH }]);
        let containers = json!([{ "name": "a", "volumeMounts": own }, { "name": "b" }]);
        let spec = admitted(json!({ "containers": containers, "initContainers": [] }), json!({}));
        assert_eq!(spec["containers"][0]["volumeMounts"], own);
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "kube-api-access-abcde");
        let one = json!([{ "name": "a", "volumeMounts": own }]);
        let spec = admitted(json!({ "containers": one, "initContainers": [] }), json!({}));
        assert_eq!(spec.get("volumes"), None, "nobody needs it");
        let there = json!([{ "name": "kube-api-access-first", "emptyDir": {} }]);
        let spec = admitted(json!({ "volumes": there }), json!({}));
        assert_eq!(spec["volumes"], there);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-first");
    }

    #[test]
    fn the_account_is_named_in_either_field_and_gives_its_pull_secrets() {
        assert_eq!(admitted(json!({ "serviceAccountName": "me" }), json!({}))["serviceAccountName"], "me");
        assert_eq!(admitted(json!({ "serviceAccount": "me" }), json!({}))["serviceAccountName"], "me");
        let account = json!({ "imagePullSecrets": [{ "name": "a" }, { "name": "b" }] });
        let spec = admitted(json!({}), account.clone());
        assert_eq!(spec["imagePullSecrets"], json!([{ "name": "a" }, { "name": "b" }]));
        let own = json!([{ "name": "own" }]);
        assert_eq!(admitted(json!({ "imagePullSecrets": own }), account)["imagePullSecrets"], own);
    }

    #[test]
    fn what_a_node_runs_by_itself_has_nothing_from_the_cluster() {
        let secret = json!([{ "name": "v", "secret": { "secretName": "s" } }]);
        let token = json!([{ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }]);
        for (spec, expected) in [
            (json!({}), Ok(())),
            (json!({ "serviceAccountName": "me" }), Err("a mirror pod may not reference service accounts")),
            (json!({ "serviceAccount": "me" }), Err("a mirror pod may not reference service accounts")),
            (json!({ "volumes": secret }), Err("a mirror pod may not reference secrets")),
            (
                json!({ "volumes": token }),
                Err("a mirror pod may not use ServiceAccountToken volume projections"),
            ),
        ] {
            let mut pod = pod(spec);
            assert!(!is_mirror(&pod));
            pod["metadata"]["annotations"] = json!({ MIRROR: "x" });
            assert!(is_mirror(&pod));
            assert_eq!(admit_mirror(&pod), expected);
        }
    }

    #[test]
    fn a_refusal_names_the_pod_as_far_as_it_has_a_name() {
        for (metadata, expected) in [
            (json!({ "name": "p" }), "p"),
            (json!({ "generateName": "web-" }), "web-"),
            (json!({}), "Unknown"),
        ] {
            let status = refused(&json!({ "metadata": metadata }), "no");
            assert_eq!(status.message, format!("pods {expected:?} is forbidden: no"));
        }
    }
}
