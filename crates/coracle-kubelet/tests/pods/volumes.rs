//! Volumes and variables of Pods: the node agent against the real API server and store, with a scripted runtime, on
//! virtual time. What the kernel has to do with it is shown on real containers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use coracle_client::request::{self, PatchBody};
use coracle_client::{Deletion, ObjectKey};
use coracle_cri::scripted::{Exit, ImageScript, OnStop, RunScript};
use coracle_cri::{ContainerFilter, ImageContent, ImageService as _, ImageSpec, Mount, RuntimeService as _};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, ServiceAccount};
use serde_json::{Value, json};

use crate::cluster::{Cluster, NODE, key};

const RUNNING: &str = "MODIFIED Running | c Running 0";

async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    let on_stop = OnStop::Exits { after: Duration::from_millis(100), code: 0 };
    cluster.image(
        "app:1",
        ImageScript { runs: vec![RunScript { on_stop, ..RunScript::default() }], ..Default::default() },
    );
    cluster
}

/// A Pod with one container that has each of the volumes mounted at `/NAME`.
fn with(volumes: Value) -> Value {
    let mounts: Vec<_> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().unwrap())}))
        .collect();
    json!({"containers": [{"name": "c", "image": "app:1", "volumeMounts": mounts}], "volumes": volumes})
}

fn config_map(data: Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": "cm", "namespace": "default"}, "data": data})).unwrap()
}

async fn set_config_map(cluster: &Cluster, data: Value) {
    let key = key("cm");
    let patch = PatchBody::Merge(json!({ "data": data }));
    request::patch::<ConfigMap>(&cluster.admin, &key, &patch).await.unwrap();
}

async fn uid(cluster: &Cluster, name: &str) -> String {
    cluster.pod(name).await.metadata.uid.unwrap()
}

/// What the container has mounted at a path.
async fn mounted(cluster: &Cluster, path: &str) -> Mount {
    let containers = cluster.runtime.list_containers(&ContainerFilter::default()).await.unwrap();
    let newest = containers.iter().max_by_key(|c| c.created_at).unwrap();
    let status = cluster.runtime.container_status(&newest.id).await.unwrap();
    status.mounts.into_iter().find(|mount| mount.container_path.to_str() == Some(path)).expect(path)
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Waits until a file says something, at most two virtual minutes. Returns how long it took.
async fn until_file(cluster: &Cluster, path: PathBuf, expected: &str) -> Duration {
    let begun = cluster.clock.elapsed();
    while std::fs::read_to_string(&path).unwrap_or_default() != expected {
        assert!(cluster.clock.elapsed() - begun < Duration::from_secs(120), "{}", text(path));
        cluster.clock.sleep(Duration::from_millis(10)).await;
    }
    cluster.clock.elapsed() - begun
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_volumes_and_goes_on_as_soon_as_they_can_be_made() {
    let cluster = start().await;
    cluster.run("p", with(json!([{"name": "v", "configMap": {"name": "cm"}}]))).await;
    cluster.until_step("p", "MODIFIED Pending | c ContainerCreating 0").await;
    cluster.clock.sleep(Duration::from_secs(20)).await;
    assert_eq!(cluster.runtime.calls(), Vec::<String>::new(), "not even a sandbox");
    let events = cluster.events("p").await;
    assert_eq!(
        events,
        ["Warning FailedMount MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found"]
    );
    let ready = cluster.history("p").last().unwrap().1.clone();
    let conditions = ready["status"]["conditions"].as_array().unwrap();
    let sandbox = conditions.iter().find(|c| c["type"] == "PodReadyToStartContainers").unwrap();
    assert_eq!(sandbox["status"], "False");

    let begun = cluster.clock.elapsed();
    request::create(&cluster.admin, &config_map(json!({"a": "1"}))).await.unwrap();
    cluster.until_step("p", RUNNING).await;
    assert!(cluster.clock.elapsed() - begun < Duration::from_secs(1), "nobody waits for the next try");
    let mount = mounted(&cluster, "/v").await;
    assert!(mount.readonly);
    assert!(mount.host_path.ends_with("volumes/kubernetes.io~configmap/v"), "{mount:?}");
    assert_eq!(text(mount.host_path.join("a")), "1");
    let pod = cluster.path("pods").join(uid(&cluster, "p").await);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&mount.host_path), mode(&pod)),
        (0o777, 0o750),
        "for containers, not for other users of the machine"
    );
}

#[tokio::test(start_paused = true)]
async fn failed_mounts_are_tried_again_with_doubling_pauses() {
    let cluster = start().await;
    cluster.run("p", with(json!([{"name": "v", "secret": {"secretName": "none"}}]))).await;
    cluster.clock.sleep(Duration::from_secs(600)).await;
    let events = cluster.events.list();
    let failed = events.iter().find(|e| e.reason.as_deref() == Some("FailedMount")).unwrap();
    // At 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 127.5, 249.5, 371.5 and 493.5 seconds.
    assert_eq!(failed.count, Some(12));
    assert_eq!(
        failed.message.as_deref(),
        Some("MountVolume.SetUp failed for volume \"v\" : secret \"none\" not found")
    );
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_source_is_seen_in_the_volume_and_restarts_nothing() {
    let cluster = start().await;
    request::create(&cluster.admin, &config_map(json!({"a": "1", "b": "x"}))).await.unwrap();
    let labels = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
    cluster
        .run(
            "p",
            with(json!([
                {"name": "map", "configMap": {"name": "cm"}},
                {"name": "both", "projected": {"sources": [{"configMap": {"name": "cm"}}, {"downwardAPI": {"items": labels}}]}},
            ])),
        )
        .await;
    cluster.until_step("p", RUNNING).await;
    let (map, both) = (mounted(&cluster, "/map").await.host_path, mounted(&cluster, "/both").await.host_path);
    set_config_map(&cluster, json!({"a": "2", "b": null, "c": "3"})).await;
    let took = until_file(&cluster, map.join("a"), "2").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    until_file(&cluster, both.join("c"), "3").await;
    assert!(map.join("b").symlink_metadata().is_err());
    let patch = PatchBody::Merge(json!({"metadata": {"labels": {"new": "yes"}}}));
    cluster.patch("p", &patch).await;
    until_file(&cluster, both.join("labels"), "new=\"yes\"").await;

    // A source that goes away leaves what it has given; users hear of it.
    request::delete::<ConfigMap>(&cluster.admin, &key("cm"), &Deletion::default()).await.unwrap();
    cluster.settle().await;
    assert_eq!(text(map.join("a")), "2");
    assert!(
        cluster.events("p").await.iter().any(|e| e.contains("volume \"map\" : configmap \"cm\" not found"))
    );
    assert_eq!(cluster.steps("p").last().map(String::as_str), Some(RUNNING));
    assert_eq!(cluster.runtime.calls(), ["run sandbox p 0", "create c 0", "start c"]);
}

#[tokio::test(start_paused = true)]
async fn what_says_that_it_never_changes_is_not_looked_at_again() {
    let cluster = start().await;
    let mut fixed = config_map(json!({"a": "1"}));
    fixed.immutable = Some(true);
    request::create(&cluster.admin, &fixed).await.unwrap();
    cluster.run("p", with(json!([{"name": "v", "configMap": {"name": "cm"}}]))).await;
    cluster.until_step("p", RUNNING).await;
    let volume = mounted(&cluster, "/v").await.host_path;
    let key = key("cm");
    request::delete::<ConfigMap>(&cluster.admin, &key, &Deletion::default()).await.unwrap();
    request::create(&cluster.admin, &config_map(json!({"a": "2"}))).await.unwrap();
    cluster.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(text(volume.join("a")), "1");
}

#[tokio::test(start_paused = true)]
async fn volumes_live_as_long_as_the_pod_and_not_longer() {
    let mut cluster = start().await;
    cluster.run("p", with(json!([{"name": "data", "emptyDir": {}}, {"name": "quick", "emptyDir": {"medium": "Memory"}}]))).await;
    cluster.until_step("p", RUNNING).await;
    let mount = mounted(&cluster, "/data").await;
    assert!(!mount.readonly);
    std::fs::write(mount.host_path.join("kept"), "by the container").unwrap();
    let pods = cluster.path("pods");
    let directory = pods.join(uid(&cluster, "p").await);
    // Of a Pod that went while nobody looked, and of one that never had a sandbox.
    std::fs::create_dir_all(pods.join("long-gone/volumes/kubernetes.io~empty-dir/v")).unwrap();
    cluster.kill_agent().await;
    cluster.start_agent();
    cluster.settle().await;
    assert_eq!(text(mount.host_path.join("kept")), "by the container");
    assert!(!pods.join("long-gone").exists());

    cluster.delete("p", &Deletion::default()).await;
    cluster.settle().await;
    assert_eq!(cluster.steps("p").last().unwrap().split(' ').next(), Some("DELETED"));
    assert!(!directory.exists());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_completed_keeps_no_volumes_but_its_log() {
    let cluster = start().await;
    let exit = Some(Exit { after: Duration::from_secs(1), code: 0, oom_killed: false });
    cluster.image(
        "job:1",
        ImageScript { runs: vec![RunScript { exit, ..RunScript::default() }], ..Default::default() },
    );
    let mut spec = with(json!([{"name": "data", "emptyDir": {}}]));
    spec["restartPolicy"] = json!("Never");
    spec["containers"][0]["image"] = json!("job:1");
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Succeeded | c Completed:0 0").await;
    cluster.settle().await;
    let directory = cluster.path("pods").join(uid(&cluster, "p").await);
    assert!(directory.exists() && !directory.join("volumes").exists());
}

#[tokio::test(start_paused = true)]
async fn variables_come_from_objects_and_what_is_missing_is_said() {
    let cluster = start().await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1",
    "envFrom": [{"prefix": "ALL_", "configMapRef": {"name": "cm"}}],
    "env": [
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "TEXT", "value": "$(ALL_a) on $(NODE)"},
    ]}]});
    cluster.run("p", spec).await;
    cluster.until_step("p", "MODIFIED Pending | c CreateContainerConfigError 0").await;
    let waiting =
        cluster.history("p").last().unwrap().1["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting["message"], "configmap \"cm\" not found");
    request::create(&cluster.admin, &config_map(json!({"a": "1"}))).await.unwrap();
    let secret = json!({"metadata": {"name": "s", "namespace": "default"}, "stringData": {"other": "x"}});
    request::create::<Secret>(&cluster.admin, &serde_json::from_value(secret).unwrap()).await.unwrap();
    let key_missing = "couldn't find key k in Secret default/s";
    let message = |cluster: &Cluster| {
        cluster.history("p").last().unwrap().1["status"]["containerStatuses"][0]["state"]["waiting"]["message"].clone()
    };
    let begun = cluster.clock.elapsed();
    while message(&cluster) != key_missing {
        assert!(cluster.clock.elapsed() - begun < Duration::from_secs(60), "{}", message(&cluster));
        cluster.clock.sleep(Duration::from_millis(100)).await;
    }
    let patch = PatchBody::Merge(json!({"stringData": {"k": "secret"}}));
    request::patch::<Secret>(&cluster.admin, &key("s"), &patch).await.unwrap();
    cluster.until_step("p", RUNNING).await;
    let variables = cluster.runtime.environment("c");
    let value = |name: &str| variables.iter().find(|v| v.key == name).map_or("", |v| v.value.as_str());
    assert_eq!(value("ALL_a"), "1");
    assert_eq!(value("KEY"), "secret");
    assert_eq!((value("NODE"), value("IP"), value("CPUS")), (NODE, "10.244.0.1", "4"));
    assert_eq!(value("TEXT"), format!("1 on {NODE}"));
    assert_eq!(value("KUBERNETES_SERVICE_HOST"), "10.96.0.1");
    let events = cluster.events("p").await;
    for text in ["Error: configmap \"cm\" not found", "Error: couldn't find key k in Secret default/s"] {
        let line = format!("Warning Failed {text} (spec.containers{{c}})");
        assert!(events.contains(&line), "{line}: {events:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn parts_of_volumes_and_files_of_the_machine_are_mounted_or_refused() {
    let cluster = start().await;
    std::fs::create_dir_all(cluster.path("host/srv")).unwrap();
    let volumes = json!([{"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/srv", "type": "Directory"}}]);
    let spec = |sub_path: &str| {
        json!({"volumes": volumes, "containers": [{"name": "c", "image": "app:1",
        "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "volumeMounts": [
            {"name": "e", "mountPath": "/part", "subPathExpr": sub_path}, {"name": "h", "mountPath": "/h", "readOnly": true},
        ]}]})
    };
    cluster.run("p", spec("logs/$(POD)")).await;
    cluster.until_step("p", RUNNING).await;
    let part = mounted(&cluster, "/part").await.host_path;
    assert!(
        part.ends_with("volumes/kubernetes.io~empty-dir/e/logs/p") && part.is_dir(),
        "{}",
        part.display()
    );
    let host = mounted(&cluster, "/h").await;
    assert_eq!((host.host_path, host.readonly), (cluster.path("host/srv"), true));

    cluster.run("q", spec("$(NONE)")).await;
    cluster.until_step("q", "MODIFIED Pending | c CreateContainerConfigError 0").await;
    let events = cluster.events("q").await;
    assert!(events.iter().any(|e| e.contains("Error: missing value for \"NONE\"")), "{events:#?}");

    let file = json!([{"name": "h", "hostPath": {"path": "/srv", "type": "File"}}]);
    cluster.run("r", with(file)).await;
    cluster.until_step("r", "MODIFIED Pending | c ContainerCreating 0").await;
    let text = "MountVolume.SetUp failed for volume \"h\" : hostPath type check failed: /srv is not a file";
    assert!(cluster.events("r").await.contains(&format!("Warning FailedMount {text}")));
}

#[tokio::test(start_paused = true)]
async fn a_token_in_a_volume_is_bound_to_the_pod_and_renewed_in_time() {
    let cluster = start().await;
    let account = json!({
        "metadata": {"name": "robot", "namespace": "default"}, "automountServiceAccountToken": false,
    });
    request::create::<ServiceAccount>(&cluster.admin, &serde_json::from_value(account).unwrap())
        .await
        .unwrap();
    let token =
        json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "vault"}});
    let mut spec = with(json!([{"name": "v", "projected": {"sources": [token]}}]));
    spec["serviceAccountName"] = json!("robot");
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    let file = mounted(&cluster, "/v").await.host_path.join("token");
    let first = text(file.clone());
    let claims = claims(&first);
    assert_eq!(claims["sub"], "system:serviceaccount:default:robot");
    assert_eq!(claims["aud"], json!(["vault"]));
    assert_eq!(claims["kubernetes.io"]["pod"]["uid"], json!(uid(&cluster, "p").await));
    // Four fifths of its life, less at most ten seconds.
    cluster.clock.sleep(Duration::from_secs(465)).await;
    assert_eq!(text(file.clone()), first);
    cluster.clock.sleep(Duration::from_secs(30)).await;
    assert_ne!(text(file), first);
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).expect("a token has three parts");
    let mut bits = 0u32;
    let (mut bytes, mut count) = (Vec::new(), 0);
    for c in part.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'-' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_name_server_too_many_and_a_long_search_list_are_cut_and_told() {
    let cluster = start().await;
    let searches: Vec<_> = (0..32).map(|n| format!("d{n}.example")).collect();
    let mut spec = json!({"containers": [{"name": "c", "image": "app:1"}], "dnsPolicy": "None"});
    spec["dnsConfig"] = json!({"nameservers": ["192.0.2.1"], "searches": searches});
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    assert!(cluster.events("p").await.iter().all(|e| !e.contains("DNSConfigForming")));
    let spec = json!({"containers": [{"name": "c", "image": "app:1"}], "dnsPolicy": "Default",
        "dnsConfig": {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"]}});
    cluster.run("q", spec).await;
    cluster.until_step("q", RUNNING).await;
    let expected = "Warning DNSConfigForming Nameserver limits were exceeded, some nameservers have been omitted, the applied \
                    nameserver line is: 192.0.2.53 192.0.2.1 192.0.2.2";
    assert!(cluster.events("q").await.contains(&expected.to_owned()), "{:#?}", cluster.events("q").await);
    let node = request::get::<Node>(&cluster.admin, &ObjectKey::cluster(NODE)).await.unwrap();
    assert!(node.metadata.uid.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_content_of_an_image_is_fetched_like_the_image_of_a_container() {
    let cluster = start().await;
    let pull_time = Duration::from_secs(2);
    cluster.runtime.script("content:1", ImageScript { pull_time, ..ImageScript::default() });
    cluster.run("p", with(json!([{"name": "v", "image": {"reference": "content:1"}}]))).await;
    cluster.until_step("p", RUNNING).await;
    let mount = mounted(&cluster, "/v").await;
    let id =
        cluster.runtime.image_status(&ImageSpec { image: "content:1".into() }).await.unwrap().unwrap().id;
    assert_eq!(
        mount.image.unwrap(),
        ImageContent { image: ImageSpec { image: id }, sub_path: String::new() }
    );
    assert!(mount.readonly);
    let events = cluster.events("p").await;
    assert_eq!(events.iter().filter(|e| e.contains("Pulling image \"content:1\"")).count(), 1, "{events:#?}");

    // Its container does not start, and says why, when it cannot be had.
    let with_policy =
        |policy: &str| with(json!([{"name": "v", "image": {"reference": "absent:1", "pullPolicy": policy}}]));
    let waiting = |name: &str| {
        let pod = cluster.history(name).pop().unwrap().1;
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_owned()
    };
    cluster.run("never", with_policy("Never")).await;
    cluster.until_step("never", "MODIFIED Pending | c ErrImageNeverPull 0").await;
    let text = "Container image \"absent:1\" is not present with pull policy of Never";
    assert_eq!(waiting("never"), text);
    cluster.run("pulled", with_policy("Always")).await;
    cluster.until_step("pulled", "MODIFIED Pending | c ImagePullBackOff 0").await;
    assert!(cluster.steps("pulled").contains(&"MODIFIED Pending | c ErrImagePull 0".to_owned()));
    let text = waiting("pulled");
    assert!(text.starts_with("Back-off pulling image \"absent:1\": ErrImagePull: "), "{text}");
    let events = cluster.events("pulled").await;
    let told = |event: &str| events.iter().any(|e| e == event);
    assert!(told("Normal BackOff Back-off pulling image \"absent:1\""), "{events:#?}");
    assert!(told("Warning Failed Error: ErrImagePull (spec.containers{c})"), "{events:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_volumes_hold_of_images_is_fetched_before_a_container_starts_and_missed_where_it_is_mounted() {
    let cluster = start().await;
    let exit = Some(Exit { after: Duration::from_secs(5), ..Exit::default() });
    let job = ImageScript { runs: vec![RunScript { exit, ..RunScript::default() }], ..Default::default() };
    cluster.image("job:1", job);
    let pull_time = Duration::from_secs(2);
    cluster.runtime.script("content:1", ImageScript { pull_time, ..ImageScript::default() });
    let spec = |reference: &str| {
        json!({
            "initContainers": [{"name": "i", "image": "job:1"}],
            "containers": [{"name": "c", "image": "app:1"},
                {"name": "d", "image": "app:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "image": {"reference": reference, "pullPolicy": "Always"}}],
        })
    };
    cluster.run("p", spec("content:1")).await;
    cluster.until_step("p", "MODIFIED Running | init i Completed:0 0 | c Running 0 | d Running 0").await;
    let events = cluster.events("p").await;
    let of_content = |e: &String| e.contains("\"content:1\"");
    assert_eq!(events.iter().filter(|e| of_content(e)).count(), 2, "it is fetched once: {events:#?}");
    let place = |what: &dyn Fn(&String) -> bool| events.iter().position(what).unwrap();
    let fetched = place(&|e| e.starts_with("Normal Pulled Successfully") && of_content(e));
    assert!(fetched < place(&|e| e.contains("spec.initContainers{i}")), "{events:#?}");

    cluster.run("q", spec("absent:1")).await;
    cluster
        .until_step("q", "MODIFIED Pending | init i Running 0 | c PodInitializing 0 | d PodInitializing 0")
        .await;
    let events = cluster.events("q").await;
    assert!(
        events.iter().any(|e| e.starts_with("Warning Failed Failed to pull image \"absent:1\"")),
        "{events:#?}"
    );
    let end = "MODIFIED Pending | init i Completed:0 0 | c Running 0 | d ImagePullBackOff 0";
    cluster.until_step("q", end).await;
    let steps = cluster.steps("q");
    assert!(!steps.iter().any(|step| step.contains("Pull") && !step.contains("i Completed")), "{steps:#?}");

    // It is tried again while others run, and holds none of them back.
    cluster.image("absent:1", ImageScript::default());
    cluster.until_step("q", "MODIFIED Running | init i Completed:0 0 | c Running 0 | d Running 0").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_in_the_network_of_the_node_has_its_addresses_and_its_files() {
    let cluster = start().await;
    std::fs::write(cluster.path("hosts"), "127.0.0.1\tlocalhost\n").unwrap();
    let spec = json!({"containers": [{"name": "c", "image": "app:1"}], "hostNetwork": true,
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["far", "away"]}]});
    cluster.run("p", spec).await;
    cluster.until_step("p", RUNNING).await;
    let status = cluster.history("p").last().unwrap().1["status"].clone();
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("192.0.2.10"), &json!("192.0.2.10")));
    assert_eq!(
        text(mounted(&cluster, "/etc/hosts").await.host_path),
        "# Kubernetes-managed hosts file (host network).\n127.0.0.1\tlocalhost\n\n# Entries added by HostAliases.\n\
         192.0.2.7\tfar\taway\n"
    );
    assert!(
        cluster.events("p").await.iter().all(|e| !e.contains("MissingClusterDNS")),
        "ClusterFirst is Default there"
    );
}
