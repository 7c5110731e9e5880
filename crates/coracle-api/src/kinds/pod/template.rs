//! The template of Pods within a workload: completed and judged as the Pods that will be made of it.

use jiff::Timestamp;
use serde_json::Value;

use super::validate::{self, Whose};
use super::{defaults, supported, warnings as warn};
use crate::field::{FieldError, Path};
use crate::metadata::{validate_annotations, validate_labels};
use crate::table::Column;
use crate::tree::{self, list_at, object_in, str_at};

/// The wide columns that every workload has.
pub(in crate::kinds) const CONTAINERS: Column =
    Column::wide("Containers", "Names of each container in the template.");
pub(in crate::kinds) const IMAGES: Column =
    Column::wide("Images", "Images referenced by each container in the template.");

/// Fills in the documented defaults of a template.
pub(in crate::kinds) fn default(template: &mut Value) {
    if let Some(spec) = object_in(template, "spec") {
        defaults::apply_to_spec(spec);
    }
}

/// What is wrong with a template: its metadata, its Pods, and what of them this release does not honour.
pub(in crate::kinds) fn validate(template: &Value, path: &Path) -> Vec<FieldError> {
    let metadata = path.child("metadata");
    let mut errors = validate_labels(tree::at(template, &["metadata", "labels"]), &metadata.child("labels"));
    errors.extend(validate_annotations(
        tree::at(template, &["metadata", "annotations"]),
        &metadata.child("annotations"),
    ));
    let spec = template.get("spec").unwrap_or(&Value::Null);
    errors.extend(validate::spec(spec, &path.child("spec"), Whose::Template));
    if !tree::is_empty(spec.get("ephemeralContainers")) {
        let path = path.child("spec").child("ephemeralContainers");
        errors.push(FieldError::forbidden(&path, "ephemeral containers not allowed in pod template"));
    }
    errors.extend(supported::refuse_spec(spec, &path.child("spec")));
    errors
}

/// What is worth knowing of a template although nothing is wrong.
pub(in crate::kinds) fn warnings(template: &Value, path: &Path) -> Vec<String> {
    warn::of(template, path)
}

/// The cells of [`CONTAINERS`] and [`IMAGES`].
pub(in crate::kinds) fn cells(template: Option<&Value>) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let containers = template.map_or(&[][..], |template| list_at(template, &["spec", "containers"]));
        let texts: Vec<&str> = containers.iter().map(|container| str_at(container, &[field])).collect();
        texts.join(",").into()
    })
}

/// How long ago a time of a status was, or `<none>`.
pub(in crate::kinds) fn since(now: Timestamp, then: Option<&Value>) -> Value {
    match then {
        Some(_) => crate::table::age_of(now, then).into(),
        None => "<none>".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::catalogue;

    #[test]
    fn every_workload_completes_judges_and_warns_of_its_template_at_its_own_path() {
        let template = json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {"restartPolicy": "Always", "containers": [{
                "name": "c", "image": "i", "livenessProbe": {"httpGet": {"port": 0}},
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            }]},
        });
        let selector = json!({"matchLabels": {"a": "b"}});
        let mut once = template.clone();
        once["spec"]["restartPolicy"] = "Never".into();
        let spec = json!({"selector": selector, "template": template});
        let job = json!({"template": once});
        let cron = json!({"schedule": "* * * * *", "jobTemplate": {"spec": {"template": once}}});
        for (group, plural, spec, pointer) in [
            ("apps", "deployments", &spec, "spec.template"),
            ("apps", "replicasets", &spec, "spec.template"),
            ("batch", "jobs", &job, "spec.template"),
            ("batch", "cronjobs", &cron, "spec.jobTemplate.spec.template"),
        ] {
            let resource = catalogue::find(group, "v1", plural).unwrap();
            let mut object =
                json!({"metadata": {"name": "a", "namespace": "default", "uid": "u"}, "spec": spec});
            resource.default(&mut object);
            resource.prepare_for_create(&mut object);
            let json_pointer = format!("/{}/spec/containers/0", pointer.replace('.', "/"));
            let container = object.pointer(&json_pointer).unwrap();
            assert_eq!(
                container["livenessProbe"]["httpGet"],
                json!({"port": 0, "path": "/", "scheme": "HTTP"}),
                "{plural}"
            );
            let errors: Vec<String> =
                resource.validate_create(&object).iter().map(ToString::to_string).collect();
            for expected in [
                "volumeMounts[0].name: Not found: \"v\"",
                "livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ] {
                let expected = format!("{pointer}.spec.containers[0].{expected}");
                assert!(errors.contains(&expected), "{plural}: {errors:?}");
            }
            assert_eq!(
                resource.strategy.warnings(&object, None),
                [format!(
                    "{pointer}.spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped \
                     when using apply"
                )],
                "{plural}"
            );
        }
    }
}
