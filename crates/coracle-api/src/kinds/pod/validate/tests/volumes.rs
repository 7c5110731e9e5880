//! Volumes, and where containers have them.

use super::*;

#[test]
fn volumes_are_of_one_kind_each() {
    check(volumes());
}

pub(super) fn volumes() -> Vec<Row> {
    let item = |item: Value| json!({"configMap": {"name": "m", "items": [item]}});
    vec![
        row("/volumes/1", json!({"name": "v"}), ["spec.volumes[1].name: Duplicate value: \"v\""]),
        row("/volumes/0", json!({}), ["spec.volumes[0].name: Required value"]),
        row(
            "/volumes/0",
            json!({"name": "a.b"}),
            ["spec.volumes[0].name: Invalid value: \"a.b\": must not contain dots"],
        ),
        of_volume(
            json!({"emptyDir": {}, "hostPath": {"path": "/"}}),
            [".hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        of_volume(
            json!({"configMap": {"name": "m"}, "secret": {"secretName": "s"}}),
            [".configMap: Forbidden: may not specify more than 1 volume type"],
        ),
        of_volume(
            json!({"emptyDir": {}, "downwardAPI": {}}),
            [".downwarAPI: Forbidden: may not specify more than 1 volume type"],
        ),
        of_volume(
            json!({"emptyDir": {"sizeLimit": "-1"}}),
            [".emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity"],
        ),
        of_volume(json!({"hostPath": {}}), [".hostPath.path: Required value"]),
        of_volume(
            json!({"hostPath": {"path": "/a/../b"}}),
            [".hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
        ),
        of_volume(
            json!({"hostPath": {"path": "/a", "type": "Dir"}}),
            [
                ".hostPath.type: Unsupported value: \"Dir\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \
              \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
            ],
        ),
        of_volume(json!({"configMap": {}}), [".configMap.name: Required value"]),
        of_volume(
            json!({"configMap": {"name": "m", "defaultMode": 512}}),
            [&format!(".configMap.defaultMode: Invalid value: 512: {MODE}")],
        ),
        of_volume(item(json!({"path": "p"})), [".configMap.items[0].key: Required value"]),
        of_volume(item(json!({"key": "k"})), [".configMap.items[0].path: Required value"]),
        of_volume(
            item(json!({"key": "k", "path": "/p"})),
            [".configMap.items[0].path: Invalid value: \"/p\": must be a relative path"],
        ),
        of_volume(
            item(json!({"key": "k", "path": "a/../../p"})),
            [".configMap.items[0].path: Invalid value: \"a/../../p\": must not contain '..'"],
        ),
        of_volume(
            item(json!({"key": "k", "path": "..p"})),
            [".configMap.items[0].path: Invalid value: \"..p\": must not start with '..'"],
        ),
        of_volume(
            item(json!({"key": "k", "path": "p", "mode": -1})),
            [&format!(".configMap.items[0].mode: Invalid value: -1: {MODE}")],
        ),
        of_volume(json!({"secret": {}}), [".secret.secretName: Required value"]),
        of_volume(
            json!({"secret": {"secretName": "s", "defaultMode": -1}}),
            [&format!(".secret.defaultMode: Invalid value: -1: {MODE}")],
        ),
        of_volume(
            json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": ".."}]}}),
            [
                ".secret.items[0].path: Invalid value: \"..\": must not contain '..'",
                ".secret.items[0].path: Invalid value: \"..\": must not start with '..'",
            ],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p"}]}}),
            [".downwardAPI: Required value: one of fieldRef and resourceFieldRef is required"],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"fieldRef": {"fieldPath": "metadata.name"}}]}}),
            [".downwardAPI.path: Required value"],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "status.podIP"}}]}}),
            [".downwardAPI.fieldRef.fieldPath: Unsupported value: \"status.podIP\": supported values: \
              \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \
              \"metadata.uid\""],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}}),
            [".downwardAPI.resourceFieldRef.containerName: Required value"],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{
                "path": "p", "fieldRef": {"fieldPath": "metadata.name"},
                "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}
            }]}}),
            [
                ".downwardAPI: Invalid value: \"resource\": fieldRef and resourceFieldRef can not be specified \
              simultaneously",
            ],
        ),
        of_volume(
            json!({"downwardAPI": {"defaultMode": 1000}}),
            [&format!(".downwardAPI.defaultMode: Invalid value: 1000: {MODE}")],
        ),
        of_volume(
            json!({"downwardAPI": {"items": [{"path": "p", "mode": 1000, "fieldRef": {"fieldPath": "metadata.name"}}]}}),
            [&format!(".downwardAPI.mode: Invalid value: 1000: {MODE}")],
        ),
        of_volume(json!({"persistentVolumeClaim": {}}), [".persistentVolumeClaim.claimName: Required value"]),
        of_volume(
            json!({"image": {"reference": "i", "pullPolicy": "Often"}}),
            [
                ".image.pullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \
              \"Never\"",
            ],
        ),
        of_volume(
            json!({"nfs": {"server": "s", "path": "p"}}),
            [".nfs.path: Invalid value: \"p\": must be an absolute path"],
        ),
        of_volume(json!({"csi": {}}), [".csi.driver: Required value"]),
    ]
}

#[test]
fn projected_volumes_have_one_kind_a_source_and_one_source_a_path() {
    check(projected());
}

pub(super) fn projected() -> Vec<Row> {
    let sources = |sources: Value| json!({"projected": {"sources": sources}});
    vec![
        of_volume(
            json!({"projected": {"defaultMode": 511, "sources": [{"configMap": {"name": "m"}, "secret": {"name": "s"}}]}}),
            [".projected.sources[0]: Forbidden: may not specify more than 1 volume type per source"],
        ),
        of_volume(
            json!({"projected": {"defaultMode": 512}}),
            [&format!(".projected.defaultMode: Invalid value: 512: {MODE}")],
        ),
        of_volume(sources(json!([{"secret": {}}])), [".projected.sources[0].secret.name: Required value"]),
        of_volume(
            sources(json!([{"configMap": {}}])),
            [".projected.sources[0].configMap.name: Required value"],
        ),
        of_volume(
            sources(json!([
                {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
                {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}}
            ])),
            [".projected: Invalid value: \"s\": conflicting duplicate paths"],
        ),
        of_volume(
            sources(json!([
                {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
                {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.uid"}}]}}
            ])),
            [".projected: Invalid value: \"p\": conflicting duplicate paths"],
        ),
        of_volume(
            sources(json!([{"serviceAccountToken": {"path": "t", "expirationSeconds": 599}}])),
            [
                ".projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a \
              duration less than 10 minutes",
            ],
        ),
        of_volume(
            sources(json!([{"serviceAccountToken": {"path": "t", "expirationSeconds": 4_294_967_297_i64}}])),
            [
                ".projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 4294967297: may not \
              specify a duration larger than 2^32 seconds",
            ],
        ),
        of_volume(sources(json!([{"serviceAccountToken": {}}])), [".projected.path: Required value"]),
        of_volume(
            sources(json!([{"serviceAccountToken": {"path": "../t"}}])),
            [".projected.path: Invalid value: \"../t\": must not contain '..'"],
        ),
        of_volume(
            sources(
                json!([{"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "spec.x"}}]}}]),
            ),
            [
                ".projected.sources[0].downwardAPI.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting \
              fieldPath: field label not supported: spec.x",
            ],
        ),
        of_volume(
            sources(json!([{"clusterTrustBundle": {"path": "p"}}])),
            [".projected.sources[0].clusterTrustBundle: Required value: either name or signerName must be \
              specified"],
        ),
        of_volume(
            sources(json!([{"podCertificate": {"signerName": "a.b/c", "keyType": "RSA1", "keyPath": "k"}}])),
            [".projected.sources[0].podCertificate.keyType: Unsupported value: \"RSA1\": supported values: \
              \"RSA3072\", \"RSA4096\", \"ECDSAP256\", \"ECDSAP384\", \"ECDSAP521\", \"ED25519\""],
        ),
    ]
}

#[test]
fn mounts_name_a_volume_and_a_place_of_their_own() {
    check(mounts());
}

pub(super) fn mounts() -> Vec<Row> {
    let mount = |more: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v"});
        for (field, value) in more.as_object().unwrap() {
            mount[field] = value.clone();
        }
        json!([mount])
    };
    vec![
        in_container("volumeMounts", mount(json!({"name": "w"})), ["volumeMounts[0].name: Not found: \"w\""]),
        in_container(
            "volumeMounts",
            json!([{"mountPath": "/v"}]),
            ["volumeMounts[0].name: Required value", "volumeMounts[0].name: Not found: \"\""],
        ),
        in_container("volumeMounts", json!([{"name": "v"}]), ["volumeMounts[0].mountPath: Required value"]),
        in_container(
            "volumeMounts",
            json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}]),
            ["volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPath": "/a"})),
            ["volumeMounts.subPath: Invalid value: \"/a\": must be a relative path"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPath": "a/../b"})),
            ["volumeMounts.subPath: Invalid value: \"a/../b\": must not contain '..'"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPath": "a", "subPathExpr": "$(A)"})),
            ["volumeMounts[0].subPathExpr: Invalid value: \"$(A)\": subPathExpr and subPath are mutually \
              exclusive"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPathExpr": "/$(A)"})),
            ["volumeMounts.subPathExpr: Invalid value: \"/$(A)\": must be a relative path"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"subPathExpr": "../$(A)"})),
            ["volumeMounts.subPathExpr: Invalid value: \"../$(A)\": must not contain '..'"],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"mountPropagation": "Up"})),
            [
                "volumeMounts.mountPropagation: Unsupported value: \"Up\": supported values: \"Bidirectional\", \
              \"HostToContainer\", \"None\"",
            ],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"mountPropagation": "Bidirectional"})),
            [
                "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to \
              privileged containers",
            ],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"recursiveReadOnly": "Enabled"})),
            ["volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"],
        ),
        in_container(
            "volumeMounts",
            mount(
                json!({"recursiveReadOnly": "IfPossible", "readOnly": true, "mountPropagation": "HostToContainer"}),
            ),
            [
                "volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or \
              not specified",
            ],
        ),
        in_container(
            "volumeMounts",
            mount(json!({"recursiveReadOnly": "Maybe"})),
            [
                "volumeMounts.recursiveReadOnly: Unsupported value: \"Maybe\": supported values: \"Disabled\", \
              \"Enabled\", \"IfPossible\"",
            ],
        ),
        row(
            "",
            json!({
                "terminationGracePeriodSeconds": 30, "volumes": [{"name": "a.b"}],
                "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "a.b", "mountPath": "/v"}]}],
            }),
            [
                "spec.volumes[0].name: Invalid value: \"a.b\": must not contain dots",
                "spec.containers[0].volumeMounts[0].name: Not found: \"a.b\"",
            ],
        ),
        in_container(
            "volumeDevices",
            json!([{"name": "v", "devicePath": "/dev/x"}]),
            ["volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of \
              PersistentVolumeClaim or Ephemeral for block mode"],
        ),
        in_container(
            "volumeDevices",
            json!([{"name": "w", "devicePath": "/dev/../x"}]),
            [
                "volumeDevices[0].name: Not found: \"w\"",
                "volumeDevices[0].devicePath: Invalid value: \"/dev/../x\": can not contain backsteps ('..')",
            ],
        ),
    ]
}
