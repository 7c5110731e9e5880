//! Which Secrets a Pod names, and which of them its account lets it have.

use std::collections::BTreeSet;

use coracle_api::Value;

/// An account with this annotation lets its Pods have only the Secrets that it lists.
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

/// The elements of a list.
pub(super) fn list<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn name(object: &Value) -> &str {
    object.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn names<'a>(object: &'a Value, field: &str) -> BTreeSet<&'a str> {
    list(object, field).map(name).collect()
}

/// Says of a variable of a container which Secret it comes from.
struct Use<'a> {
    /// The variable; `None` if all of the Secret become variables.
    variable: Option<&'a str>,
    secret: &'a str,
}

fn uses(container: &Value) -> impl Iterator<Item = Use<'_>> {
    let variables = list(container, "env").filter_map(|variable| {
        let secret = name(variable.pointer("/valueFrom/secretKeyRef").filter(|found| found.is_object())?);
        Some(Use { variable: Some(name(variable)), secret })
    });
    let all = list(container, "envFrom").filter_map(|source| {
        let secret = name(source.get("secretRef").filter(|found| found.is_object())?);
        Some(Use { variable: None, secret })
    });
    variables.chain(all)
}

/// Whether the Pod names any Secret.
pub(super) fn any(spec: &Value) -> bool {
    let volume = |volume: &Value| {
        let projected = volume.get("projected").into_iter().flat_map(|projected| list(projected, "sources"));
        let mut projected = projected.filter_map(|source| source.get("secret"));
        volume.get("secret").is_some_and(Value::is_object) || projected.any(Value::is_object)
    };
    let kinds = ["initContainers", "containers", "ephemeralContainers"];
    list(spec, "imagePullSecrets").next().is_some()
        || kinds.into_iter().flat_map(|kind| list(spec, kind)).any(|c| uses(c).next().is_some())
        || list(spec, "volumes").any(volume)
}

/// Whether the account's list of Secrets is all that its Pods may have.
fn enforces(account: &Value) -> bool {
    let said = account.pointer("/metadata/annotations").and_then(|all| all.get(ENFORCE)?.as_str());
    matches!(said, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Refuses a new Pod that names a Secret which its account does not list, if the account insists on that.
pub(super) fn limit(account: &Value, spec: &Value) -> Result<(), String> {
    if !enforces(account) {
        return Ok(());
    }
    let of = account.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let mountable = names(account, "secrets");
    let named =
        |volume: &Value| volume.pointer("/secret/secretName").and_then(Value::as_str).map(str::to_owned);
    for volume in list(spec, "volumes").filter(|volume| volume.get("secret").is_some_and(Value::is_object)) {
        let secret = named(volume).unwrap_or_default();
        if !mountable.contains(secret.as_str()) {
            return Err(format!(
                "volume with secret.secretName=\"{secret}\" is not allowed because service account {of} does not \
                 reference that secret"
            ));
        }
    }
    limit_variables(account, spec, &[("initContainers", "init container"), ("containers", "container")])?;
    let pull = names(account, "imagePullSecrets");
    for (place, secret) in list(spec, "imagePullSecrets").map(name).enumerate() {
        if !pull.contains(secret) {
            return Err(format!(
                "imagePullSecrets[{place}].name=\"{secret}\" is not allowed because service account {of} does not \
                 reference that imagePullSecret"
            ));
        }
    }
    Ok(())
}

/// The same for containers that are added to a Pod.
pub(super) fn limit_ephemeral(account: &Value, spec: &Value) -> Result<(), String> {
    if !enforces(account) {
        return Ok(());
    }
    limit_variables(account, spec, &[("ephemeralContainers", "ephemeral container")])
}

fn limit_variables(account: &Value, spec: &Value, kinds: &[(&str, &str)]) -> Result<(), String> {
    let of = account.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let mountable = names(account, "secrets");
    for (kind, what) in kinds {
        for container in list(spec, kind) {
            let refused = uses(container).find(|found| !mountable.contains(found.secret));
            if let Some(Use { variable, secret }) = refused {
                let by =
                    variable.map_or_else(|| "envFrom".to_owned(), |variable| format!("envVar {variable}"));
                return Err(format!(
                    "{what} {} with {by} referencing secret.secretName=\"{secret}\" is not allowed because service \
                     account {of} does not reference that secret",
                    name(container)
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn account(enforce: &str) -> Value {
        json!({
            "metadata": {"name": "me", "annotations": {ENFORCE: enforce}},
            "secrets": [{"name": "ok"}], "imagePullSecrets": [{"name": "pull"}],
        })
    }

    fn variable(secret: &str) -> Value {
        json!([{"name": "E", "valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}}])
    }

    #[test]
    fn an_account_may_insist_on_its_own_secrets() {
        let from = json!([{"secretRef": {"name": "no"}}]);
        let refused = "is not allowed because service account me does not reference that secret";
        for (spec, who) in [
            (json!({"volumes": [{"name": "v", "secret": {"secretName": "no"}}]}), "volume with"),
            (
                json!({"initContainers": [{"name": "i", "env": variable("no")}]}),
                "init container i with envVar E referencing",
            ),
            (
                json!({"initContainers": [{"name": "i", "envFrom": from}]}),
                "init container i with envFrom referencing",
            ),
            (
                json!({"containers": [{"name": "c", "env": variable("no")}]}),
                "container c with envVar E referencing",
            ),
            (json!({"containers": [{"name": "c", "envFrom": from}]}), "container c with envFrom referencing"),
        ] {
            let expected = format!("{who} secret.secretName=\"no\" {refused}");
            assert_eq!(limit(&account("true"), &spec), Err(expected));
            for (enforce, allowed) in [("1", false), ("T", false), ("false", true), ("yes", true), ("", true)]
            {
                assert_eq!(limit(&account(enforce), &spec).is_ok(), allowed, "{enforce}");
            }
        }
        let spec = json!({"imagePullSecrets": [{"name": "pull"}, {"name": "no"}]});
        assert_eq!(
            limit(&account("true"), &spec).unwrap_err(),
            "imagePullSecrets[1].name=\"no\" is not allowed because service account me does not reference that \
             imagePullSecret"
        );
        let spec = json!({
            "volumes": [{"name": "v", "secret": {"secretName": "ok"}}, {"name": "w", "emptyDir": {}}],
            "containers": [{"name": "c", "env": variable("ok")}], "imagePullSecrets": [{"name": "pull"}],
        });
        assert_eq!(limit(&account("true"), &spec), Ok(()));
    }

    #[test]
    fn added_containers_are_held_to_it_too() {
        let spec = json!({"ephemeralContainers": [{"name": "e", "env": variable("no")}]});
        assert_eq!(
            limit_ephemeral(&account("true"), &spec).unwrap_err(),
            "ephemeral container e with envVar E referencing secret.secretName=\"no\" is not allowed because service \
             account me does not reference that secret"
        );
        assert_eq!(limit_ephemeral(&account("false"), &spec), Ok(()));
    }

    #[test]
    fn secrets_are_found_wherever_they_are_named() {
        assert!(!any(&json!({"containers": [{"name": "c", "env": [{"name": "A", "value": "b"}]}]})));
        for spec in [
            json!({"imagePullSecrets": [{"name": "s"}]}),
            json!({"containers": [{"env": variable("s")}]}),
            json!({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}),
            json!({"volumes": [{"secret": {"secretName": "s"}}]}),
            json!({"volumes": [{"projected": {"sources": [{"secret": {"name": "s"}}]}}]}),
        ] {
            assert!(any(&spec), "{spec}");
        }
    }
}
