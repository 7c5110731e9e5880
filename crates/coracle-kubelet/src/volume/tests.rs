//! Files of volumes: which there are, and how they change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use serde_json::{Value, json};

use super::kernel::{VolumeHost, is_mount_point};
use super::payload::{FileContent, Payload, Sources, TokenWanted, payload};
use super::sub_path::SubPath;
use super::tear_down::remove_volumes;
use super::write::{Writing, write};
use super::{references, used};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "web", "tier": "1"}}, "spec": spec,
    }))
    .unwrap()
}

fn sources() -> Sources {
    let read = |value: Value| Ok(Some(Arc::new(serde_json::from_value(value).unwrap())));
    let secret = |value: Value| Ok(Some(Arc::new(serde_json::from_value(value).unwrap())));
    Sources {
        config_maps: BTreeMap::from([
            ("cm".to_owned(), read(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "/w=="}}))),
            ("none".to_owned(), Ok(None)),
            (
                "slow".to_owned(),
                Err("failed to sync configmap cache: timed out waiting for the condition".into()),
            ),
        ]),
        secrets: BTreeMap::from([
            ("s".to_owned(), secret(json!({"data": {"key": "c2VjcmV0"}}))),
            ("none".to_owned(), Ok(None)),
        ]),
        tokens: BTreeMap::from([
            (TokenWanted { audience: None, seconds: 3607 }, Ok("jwt".to_owned())),
            (
                TokenWanted { audience: Some("vault".into()), seconds: 600 },
                Err("failed to fetch token: no".into()),
            ),
        ]),
        allocatable: serde_json::from_value(json!({"cpu": "4"})).unwrap(),
    }
}

/// The files of a volume: path, text, mode.
fn files_in(spec: Value, volume: Value) -> Result<Vec<(String, String, u32)>, String> {
    let volume: Volume = serde_json::from_value(volume).unwrap();
    let files = payload(&pod(spec), &volume, &sources())?;
    let shown = |(path, file): (String, FileContent)| {
        (path, String::from_utf8_lossy(&file.data).into_owned(), file.mode)
    };
    Ok(files.into_iter().map(shown).collect())
}

fn files(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
    files_in(json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]}), volume)
}

fn list(expected: &[(&str, &str, u32)]) -> Result<Vec<(String, String, u32)>, String> {
    Ok(expected.iter().map(|(path, text, mode)| ((*path).to_owned(), (*text).to_owned(), *mode)).collect())
}

#[test]
fn config_maps_and_secrets_show_all_keys_or_the_items_that_are_asked_for() {
    let all = files(json!({"name": "v", "configMap": {"name": "cm"}}));
    assert_eq!(all, list(&[("a", "1", 0o644), ("b", "2", 0o644), ("bin", "\u{fffd}", 0o644)]));
    let items = json!([{"key": "b", "path": "deep/er/b", "mode": 0o400}, {"key": "a", "path": "x"}]);
    let some = files(json!({"name": "v", "configMap": {"name": "cm", "items": items, "defaultMode": 0o600}}));
    assert_eq!(some, list(&[("deep/er/b", "2", 0o400), ("x", "1", 0o600)]));
    let secret = files(json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 0o400}}));
    assert_eq!(secret, list(&[("key", "secret", 0o400)]));
}

#[test]
fn what_is_missing_is_an_error_in_upstreams_words_unless_it_is_optional() {
    let items = json!([{"key": "none", "path": "x"}]);
    for (source, why) in [
        (json!({"configMap": {"name": "none"}}), "configmap \"none\" not found"),
        (json!({"secret": {"secretName": "none"}}), "secret \"none\" not found"),
        (
            json!({"configMap": {"name": "slow", "optional": true}}),
            "failed to sync configmap cache: timed out waiting for the condition",
        ),
        (
            json!({"configMap": {"name": "cm", "items": items}}),
            "configmap references non-existent config key: none",
        ),
        (json!({"secret": {"secretName": "s", "items": items}}), "references non-existent secret key: none"),
        (
            json!({"downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": "spec.nodeName"}}]}}),
            "unsupported fieldPath: spec.nodeName",
        ),
    ] {
        let mut volume = source;
        volume["name"] = json!("v");
        assert_eq!(files(volume).unwrap_err(), why);
    }
    for source in [
        json!({"configMap": {"name": "none", "optional": true}}),
        json!({"secret": {"secretName": "none", "optional": true}}),
        json!({"configMap": {"name": "cm", "items": items, "optional": true}}),
        json!({"secret": {"secretName": "s", "items": items, "optional": true}}),
        json!({"projected": {"sources": [{"configMap": {"name": "none", "optional": true}}]}}),
    ] {
        let mut volume = source;
        volume["name"] = json!("v");
        assert_eq!(files(volume), Ok(Vec::new()));
    }
}

#[test]
fn the_downward_api_shows_the_pod_and_its_resources() {
    let items = json!([
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "who/name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 0o440},
        {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
    ]);
    let shown = files(json!({"name": "v", "downwardAPI": {"items": items}}));
    assert_eq!(
        shown,
        list(&[
            ("cpu", "2000", 0o644),
            ("labels", "app=\"web\"\ntier=\"1\"", 0o644),
            ("who/name", "p", 0o440)
        ])
    );
}

#[test]
fn a_projected_volume_shows_its_sources_together() {
    let token = json!({"path": "token", "expirationSeconds": 3607});
    let projected = json!({"name": "v", "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": token},
        {"configMap": {"name": "cm", "items": [{"key": "a", "path": "ca.crt"}]}},
        {"secret": {"name": "s"}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"configMap": {"name": "cm", "items": [{"key": "b", "path": "key", "mode": 0o600}]}},
    ]}});
    let expected =
        [("ca.crt", "1", 0o644), ("key", "2", 0o600), ("namespace", "ns", 0o644), ("token", "jwt", 0o644)];
    assert_eq!(files(projected.clone()), list(&expected), "a later source replaces an earlier one's file");
    // A token that is meant for one user or group is nobody else's.
    for spec in [
        json!({"containers": [{"name": "c"}], "securityContext": {"fsGroup": 7}}),
        json!({"containers": [{"name": "c"}, {"name": "d", "securityContext": {"runAsUser": 5}}], "securityContext": {"runAsUser": 5}}),
    ] {
        let token = files_in(spec, projected.clone()).unwrap().pop().unwrap();
        assert_eq!(token.2, 0o600);
    }
    let two = json!({"containers": [{"name": "c", "securityContext": {"runAsUser": 4}}, {"name": "d", "securityContext": {"runAsUser": 5}}]});
    assert_eq!(files_in(two, projected).unwrap().pop().unwrap().2, 0o644, "two users have to share it");
    let broken = json!({"name": "v", "projected": {"sources": [
        {"configMap": {"name": "none"}}, {"serviceAccountToken": {"path": "t", "audience": "vault", "expirationSeconds": 600}}]}});
    assert_eq!(files(broken).unwrap_err(), "[configmap \"none\" not found, failed to fetch token: no]");
}

#[test]
fn only_what_containers_use_is_set_up_and_followed() {
    let pod = pod(json!({
        "volumes": [
            {"name": "used", "configMap": {"name": "cm-used"}}, {"name": "unused", "configMap": {"name": "cm-unused"}},
            {"name": "init", "secret": {"secretName": "s-init"}}, {"name": "file", "emptyDir": {}},
            {"name": "all", "projected": {"sources": [{"secret": {"name": "s-proj"}}, {"configMap": {"name": "cm-proj"}}]}},
        ],
        "initContainers": [{"name": "i", "volumeMounts": [{"name": "init", "mountPath": "/x"}]}],
        "containers": [{"name": "c", "volumeMounts": [{"name": "used", "mountPath": "/x"}, {"name": "all", "mountPath": "/y"}],
            "envFrom": [{"configMapRef": {"name": "cm-from"}}, {"secretRef": {"name": "s-from"}}],
            "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm-key", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-key", "key": "k"}}},
                {"name": "C", "valueFrom": {"fileKeyRef": {"volumeName": "file", "path": "p", "key": "k"}}}]}],
    }));
    let spec = pod.spec.as_ref().unwrap();
    let names: Vec<_> = used(spec).into_iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["used", "init", "file", "all"]);
    let found = references(spec);
    assert_eq!(
        found.config_maps.into_iter().collect::<Vec<_>>(),
        ["cm-from", "cm-key", "cm-proj", "cm-used"]
    );
    assert_eq!(found.secrets.into_iter().collect::<Vec<_>>(), ["s-from", "s-init", "s-key", "s-proj"]);
}

// === On the disk ===

fn content(entries: &[(&str, &str)]) -> Payload {
    let file = |text: &str| FileContent { data: text.as_bytes().to_vec(), mode: 0o644, owner: None };
    entries.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
}

fn how(second: i64) -> Writing {
    Writing { now: Timestamp::from_second(1_900_000_000 + second).unwrap(), group: None, owners: false }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_state_is_shown_by_one_rename_and_the_old_one_goes() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path();
    assert!(write(volume, &content(&[("a", "1"), ("d/b", "2"), ("d/e/c", "3")]), how(0)).unwrap());
    assert_eq!(names(volume), ["..2030_03_17_17_46_40.000000000", "..data", "a", "d"]);
    assert_eq!(fs::read_link(volume.join("..data")).unwrap(), Path::new("..2030_03_17_17_46_40.000000000"));
    assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
    assert_eq!(fs::read_link(volume.join("d")).unwrap(), Path::new("..data/d"));
    assert_eq!(fs::read_to_string(volume.join("d/e/c")).unwrap(), "3");
    let mode = |path: &str| fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a"), mode("d"), mode("..data/")), (0o644, 0o755, 0o755));

    let open = fs::File::open(volume.join("a")).unwrap();
    assert!(!write(volume, &content(&[("a", "1"), ("d/b", "2"), ("d/e/c", "3")]), how(1)).unwrap());
    assert_eq!(
        names(volume)[0],
        "..2030_03_17_17_46_40.000000000",
        "what has not changed is not written again"
    );

    assert!(write(volume, &content(&[("a", "new"), ("f", "4")]), how(2)).unwrap());
    assert_eq!(names(volume), ["..2030_03_17_17_46_42.000000000", "..data", "a", "f"]);
    assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "new");
    assert_eq!(std::io::read_to_string(open).unwrap(), "1", "who has a file open keeps it");

    assert!(write(volume, &Payload::new(), how(3)).unwrap(), "an optional source went away");
    assert_eq!(names(volume), ["..2030_03_17_17_46_43.000000000", "..data"]);
}

#[test]
fn modes_and_lengths_count_as_changes() {
    let root = tempfile::tempdir().unwrap();
    let mut payload = content(&[("a", "1")]);
    assert!(write(root.path(), &payload, how(0)).unwrap());
    payload.get_mut("a").unwrap().mode = 0o400;
    assert!(write(root.path(), &payload, how(1)).unwrap());
    assert_eq!(fs::metadata(root.path().join("a")).unwrap().permissions().mode() & 0o777, 0o400);
    payload.get_mut("a").unwrap().data = vec![0xff; 1 << 20];
    assert!(write(root.path(), &payload, how(1)).unwrap(), "within the same second");
    assert_eq!(fs::metadata(root.path().join("a")).unwrap().len(), 1 << 20);
}

#[test]
fn an_agent_that_died_half_way_is_no_harm() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path();
    write(volume, &content(&[("a", "1")]), how(0)).unwrap();
    fs::create_dir(volume.join("..2030_01_01_00_00_00.1")).unwrap();
    fs::write(volume.join("..2030_01_01_00_00_00.1/half"), "").unwrap();
    symlink("..2030_01_01_00_00_00.1", volume.join("..data_tmp")).unwrap();
    assert!(write(volume, &content(&[("a", "2")]), how(1)).unwrap());
    assert_eq!(names(volume), ["..2030_03_17_17_46_41.000000000", "..data", "a"]);
    assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "2");
}

#[test]
fn nothing_outside_of_the_volume_is_written_or_removed() {
    let root = tempfile::tempdir().unwrap();
    let (volume, outside) = (root.path().join("v"), root.path().join("outside"));
    fs::create_dir_all(volume.join("inner")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    for path in ["/etc/x", "../x", "a/../../x", "..data", "..x", "", "a\0b", "./a"] {
        assert!(write(&volume, &content(&[(path, "x")]), how(0)).is_err(), "{path:?}");
    }
    assert!(write(&volume, &content(&[(&"x/".repeat(4000), "x")]), how(0)).is_err());
    assert_eq!(names(&volume), ["inner"]);
    // Somebody who may write here has put links in the way.
    symlink(&outside, volume.join("..data")).unwrap();
    symlink(outside.join("kept"), volume.join("a")).unwrap();
    write(&volume, &content(&[("a", "1"), ("b", "2")]), how(0)).unwrap();
    write(&volume, &content(&[("b", "3")]), how(1)).unwrap();
    assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    assert_eq!(names(&outside), ["kept"]);
    assert_eq!(fs::read_to_string(volume.join("b")).unwrap(), "3");
    assert!(volume.join("inner").is_dir(), "a place for what is mounted inside stays");
    // The volume itself is no link either.
    symlink(&outside, root.path().join("link")).unwrap();
    assert!(write(&root.path().join("link"), &content(&[("a", "1")]), how(0)).is_err());
}

#[test]
fn files_of_a_volume_belong_to_the_group_of_the_pod() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let volume = root.path();
    let mut payload = content(&[("d/a", "1")]);
    payload.get_mut("d/a").unwrap().mode = 0o400;
    payload.get_mut("d/a").unwrap().owner = Some(1234);
    let owned = Writing { group: Some(4321), owners: true, ..how(0) };
    assert!(write(volume, &payload, owned).unwrap());
    let file = fs::metadata(volume.join("d/a")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1234, 4321, 0o440));
    let directory = fs::metadata(volume.join("d")).unwrap();
    assert_eq!((directory.gid(), directory.mode() & 0o7777), (4321, 0o2755));
    assert!(!write(volume, &payload, owned).unwrap(), "it is as it should be");
    assert!(write(volume, &payload, Writing { group: Some(4322), ..owned }).unwrap());
}

/// A directory in which nothing stays mounted, however a test ends.
pub(super) struct Mounts(pub(super) tempfile::TempDir);

impl Mounts {
    pub(super) fn new() -> Self {
        Mounts(tempfile::tempdir().unwrap())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        VolumeHost::Machine.unmount_below(self.0.path()).unwrap();
    }
}

#[test]
fn mounted_volumes_go_with_everything_but_what_is_the_machines() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mounts = Mounts::new();
    let (machine, host) = (mounts.0.path().join("machine"), VolumeHost::Machine);
    let pod = mounts.0.path().join("pod");
    let (map, memory) = (pod.join("volumes/map/v"), pod.join("volumes/empty-dir/m"));
    for directory in [&machine.join("sub"), &map, &memory] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(machine.join("sub/kept"), "kept").unwrap();

    host.mount_memory(&memory, 1 << 20).unwrap();
    host.mount_memory(&memory, 1 << 20).unwrap();
    assert!(is_mount_point(&memory).unwrap());
    fs::write(memory.join("x"), vec![0; 1 << 19]).unwrap();
    let full = fs::write(memory.join("y"), vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "it is as large as it was asked for");

    write(&map, &content(&[("a", "1")]), how(0)).unwrap();
    let part = |volume: &Path, path: &str, index: &str| SubPath {
        volume: volume.to_owned(),
        path: path.to_owned(),
        target: pod.join("volume-subpaths/v/c").join(index),
    };
    let file = part(&map, "a", "0").mount(&host).unwrap();
    let directory = part(&machine, "sub", "1").mount(&host).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    assert_eq!(fs::read_to_string(directory.join("kept")).unwrap(), "kept");
    write(&map, &content(&[("a", "2")]), how(1)).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "1", "a part that is mounted never changes");
    // The next instance of the container has it mounted anew, and it may be of another kind by then.
    assert_eq!(fs::read_to_string(part(&map, "a", "0").mount(&host).unwrap()).unwrap(), "2");
    assert!(part(&machine, "sub", "0").mount(&host).unwrap().join("kept").exists());
    symlink("/etc", memory.join("out")).unwrap();
    assert!(part(&memory, "out", "2").mount(&host).is_err());

    remove_volumes(&pod, &host).unwrap();
    assert_eq!(names(&pod), Vec::<String>::new());
    assert_eq!(fs::read_to_string(machine.join("sub/kept")).unwrap(), "kept");
    remove_volumes(&pod, &host).unwrap();
}

#[test]
fn what_is_still_mounted_is_not_walked_into() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mounts = Mounts::new();
    let inner = mounts.0.path().join("v/deep/mounted");
    fs::create_dir_all(&inner).unwrap();
    VolumeHost::Machine.mount_memory(&inner, 1 << 20).unwrap();
    fs::write(inner.join("kept"), "kept").unwrap();
    let refused = coracle_tree::remove(&mounts.0.path().join("v")).unwrap_err();
    assert_eq!(refused.to_string(), "something is still mounted at mounted");
    assert_eq!(fs::read_to_string(inner.join("kept")).unwrap(), "kept");
    VolumeHost::Machine.unmount_below(&inner).unwrap();
    coracle_tree::remove(&mounts.0.path().join("v")).unwrap();
    assert!(!mounts.0.path().join("v").exists());
}
