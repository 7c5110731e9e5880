//! Volumes as a container sees them, with the kernel's mounts, and the namespaces of the node.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Cluster, IMAGE};

/// A directory of the machine for one cluster, gone when the test ends.
struct HostDirectory(PathBuf);

impl HostDirectory {
    fn of(cluster: &Cluster) -> Self {
        HostDirectory(PathBuf::from(format!("/tmp/coracle-e2e/host-{}", cluster.name())))
    }
}

impl Drop for HostDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a command in the Pod's container prints.
fn said(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", script]).trim_end().to_owned()
}

/// Waits until it prints this.
fn until(cluster: &Cluster, pod: &str, script: &str, expected: &str) {
    // The container looks again and again, at most for a minute.
    let wait = format!(
        "for i in $(seq 600); do [ \"$({script})\" = '{expected}' ] && exit 0; sleep 0.1; done; {script}; exit 1"
    );
    said(cluster, pod, &wait);
}

fn everything(host: &HostDirectory) -> Value {
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "everything", "labels": {"app": "web"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["far", "away"]}],
            "hostname": "web", "subdomain": "sub",
            "volumes": [
                {"name": "disk", "emptyDir": {}},
                {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "10Mi"}},
                {"name": "map", "configMap": {"name": "settings"}},
                {"name": "secret", "secret": {"secretName": "hidden", "defaultMode": 256}},
                {"name": "maybe", "configMap": {"name": "nobody", "optional": true}},
                {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"name": "all", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"configMap": {"name": "kube-root-ca.crt"}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}},
                {"name": "host", "hostPath": {"path": host.0, "type": "DirectoryOrCreate"}},
                {"name": "image", "image": {"reference": IMAGE}},
            ],
            "containers": [{
                "name": "main", "image": IMAGE, "command": ["sh", "-c", "exec sleep 3600"],
                "resources": {"limits": {"memory": "64Mi"}},
                "env": [
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "key"}}},
                    {"name": "MIB", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "envFrom": [{"configMapRef": {"name": "settings"}}],
                "volumeMounts": [
                    mount("disk"), mount("mem"), mount("map"), mount("secret"), mount("maybe"), mount("down"),
                    mount("all"), mount("host"), mount("image"),
                    {"name": "map", "mountPath": "/one", "subPath": "level"},
                    {"name": "disk", "mountPath": "/logs", "subPathExpr": "logs/$(POD)"},
                    {"name": "disk", "mountPath": "/map/inside"},
                ],
            }],
        },
    })
}

#[test]
fn a_container_sees_every_kind_of_volume_as_it_should() {
    let cluster = Cluster::start();
    let host = HostDirectory::of(&cluster);
    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=level=1"]);
    cluster.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=key=value"]);
    cluster.apply(&everything(&host).to_string());
    cluster.kubectl(&["wait", "pod/everything", "--for=condition=Ready", "--timeout=60s"]);
    let said = |script: &str| said(&cluster, "everything", script);

    assert_eq!(said("cat /map/level /one; echo; cat /secret/key /all/namespace"), "11\nvaluedefault");
    assert_eq!(said("cat /down/labels"), "app=\"web\"");
    assert_eq!(said("grep -c BEGIN /all/ca.crt"), "1");
    assert_eq!(said("echo $level $KEY $MIB $POD"), "1 value 64 everything");
    assert_eq!(said("ls /maybe; test -s /all/token && echo token"), "token");
    // Who may do what: the group of the Pod reads what only the owner could, and writes where containers may write.
    assert_eq!(said("stat -L -c '%a %u %g' /secret/key"), "440 0 2000");
    assert_eq!(
        said("stat -c '%a %g' /disk; touch /disk/x /mem/x /logs/x /map/inside/x; stat -c '%u %g' /disk/x"),
        "2777 2000\n1000 2000"
    );
    assert_eq!(
        said("for v in map secret down all; do touch /$v/x 2>/dev/null && echo $v; done; echo none"),
        "none"
    );
    assert_eq!(said("ls /disk /disk/logs/everything"), "/disk:\nlogs\nx\n\n/disk/logs/everything:\nx");
    let kind = |path: &str| said(&format!("awk '$2 == \"{path}\" {{print $3}}' /proc/mounts"));
    for (path, memory) in [
        ("/secret", true),
        ("/down", true),
        ("/all", true),
        ("/mem", true),
        ("/map", false),
        ("/disk", false),
    ] {
        assert_eq!(kind(path) == "tmpfs", memory, "{path}");
    }
    assert_eq!(said("df -k /mem | tail -1 | awk '{print $2}'"), "10240");
    assert_eq!(
        said("hostname; grep -c 'web.sub.default.svc.cluster.local.web' /etc/hosts; tail -1 /etc/hosts"),
        "web\n1\n192.0.2.7\tfar\taway"
    );

    let of_image = "cmp /image/bin/busybox /bin/busybox && echo same; touch /image/x 2>/dev/null || echo unchanged; \
                    /image/bin/busybox true 2>/dev/null || echo inert";
    assert_eq!(said(of_image), "same\nunchanged\ninert");

    // Changes are seen, but not where a part is mounted.
    cluster.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data":{"level":"2","new":"3"}}"#]);
    until(&cluster, "everything", "cat /map/level /map/new", "23");
    assert_eq!(said("cat /one; ls /map/inside"), "1logs\nx");
    cluster.kubectl(&["label", "pod", "everything", "more=yes"]);
    until(&cluster, "everything", "cat /down/labels", "app=\"web\"\nmore=\"yes\"");

    // Nothing of it stays, but what is the machine's.
    let uid = cluster.get(&["pod", "everything"])["metadata"]["uid"].as_str().unwrap().to_owned();
    assert!(std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&uid));
    std::fs::write(host.0.join("kept"), "kept").unwrap();
    assert_eq!(said("cat /host/kept"), "kept");
    cluster.kubectl(&["delete", "pod", "everything"]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&uid), "volumes go before the object does");
    assert!(!cluster.data().join("kubelet/pods").join(&uid).join("volumes").exists());
    assert_eq!(std::fs::read_to_string(host.0.join("kept")).unwrap(), "kept");
}

#[test]
fn a_part_of_a_volume_never_leads_out_of_it() {
    let cluster = Cluster::start();
    let evil = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "evil"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [{"name": "plant", "image": IMAGE, "command": ["sh", "-c", "ln -s /etc /v/absolute; ln -s ../../../../.. /v/up"],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "containers": [{"name": "main", "image": IMAGE, "command": ["sleep", "3600"],
                "volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "absolute"}]},
                {"name": "other", "image": IMAGE, "command": ["sleep", "3600"],
                "volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "up/etc"}]}],
        },
    });
    cluster.apply(&evil.to_string());
    let waits = |pod: &Value| {
        let containers = pod["status"]["containerStatuses"].as_array();
        containers.is_some_and(|all| {
            all.iter().all(|c| c["state"]["waiting"]["reason"] == "CreateContainerConfigError")
        })
    };
    let pod = cluster.wait("both containers are refused", &["pod", "evil"], waits);
    for container in pod["status"]["containerStatuses"].as_array().unwrap() {
        let expected =
            format!("failed to prepare subPath for volumeMount \"v\" of container {}", container["name"]);
        assert_eq!(container["state"]["waiting"]["message"], Value::from(expected));
    }
}

#[test]
fn a_pod_may_be_in_the_namespaces_of_the_node() {
    let cluster = Cluster::start();
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "hostNetwork": true, "hostPID": true, "hostIPC": true, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": IMAGE, "ports": [{"containerPort": 47_321}],
                    "command": ["sh", "-c", "trap '' TERM; setsid sleep 47321 & while true; do sleep 1; done"]}],
            },
        })
    };
    cluster.apply(&pod("first").to_string());
    cluster.kubectl(&["wait", "pod/first", "--for=condition=Ready", "--timeout=60s"]);
    let status = cluster.get(&["pod", "first"])["status"].take();
    assert_eq!((&status["podIP"], &status["podIPs"]), (&status["hostIP"], &status["hostIPs"]));
    for namespace in ["net", "uts", "ipc", "pid"] {
        let path = format!("/proc/self/ns/{namespace}");
        let own = std::fs::read_link(&path).unwrap();
        assert_eq!(said(&cluster, "first", &format!("readlink {path}")), own.to_string_lossy());
    }
    let hosts = said(&cluster, "first", "head -1 /etc/hosts");
    assert_eq!(hosts, "# Kubernetes-managed hosts file (host network).");

    // Its ports are the node's: there is no second Pod with them, before the first has gone with all its processes.
    cluster.apply(&pod("second").to_string());
    cluster.wait("it waits for the ports", &["pod", "second"], |pod| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.clone().any(|c| {
            c["message"]
                .as_str()
                .is_some_and(|why| why.contains("didn't have free ports for the requested pod ports"))
        })
    });
    let uid = cluster.get(&["pod", "first"])["metadata"]["uid"].as_str().unwrap().to_owned();
    let processes = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let groups = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cgroup")).ok());
        groups.filter(|groups| groups.contains(&uid)).count()
    };
    assert!(processes() >= 2);
    cluster.kubectl(&["delete", "pod", "first"]);
    assert_eq!(processes(), 0, "also those that are in no session of the container's");
    cluster.kubectl(&["wait", "pod/second", "--for=condition=Ready", "--timeout=60s"]);
}
