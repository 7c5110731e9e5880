//! Every kind of kubectl call that the README promises, with the oldest and the newest kubectl that it names.

use crate::support::{Cluster, IMAGE, Kubectl};

const BOTH: [(Kubectl, &str); 2] = [(Kubectl::V37, "v37"), (Kubectl::V32, "v32")];

fn sleeper(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  containers:\n  \
         - name: main\n    image: {IMAGE}\n    command: [\"sh\", \"-c\", \"echo started; exec sleep 3600\"]\n"
    )
}

#[test]
fn pods_from_apply_to_delete() {
    let cluster = Cluster::start();
    for (version, name) in BOTH {
        let run = |arguments: &[&str], input: &str| cluster.kubectl_with(version, arguments, input);
        let pod = format!("pod/{name}");
        assert_eq!(run(&["apply", "-f", "-"], &sleeper(name)), format!("{pod} created\n"));
        assert_eq!(run(&["apply", "-f", "-"], &sleeper(name)), format!("{pod} unchanged\n"));
        run(&["wait", "--for=condition=Ready", &pod, "--timeout=30s"], "");

        let table = run(&["get", "pods", name, "-o", "wide"], "");
        let lines: Vec<&str> = table.lines().collect();
        let header: Vec<&str> = lines[0].split_whitespace().collect();
        assert_eq!(
            header,
            [
                "NAME",
                "READY",
                "STATUS",
                "RESTARTS",
                "AGE",
                "IP",
                "NODE",
                "NOMINATED",
                "NODE",
                "READINESS",
                "GATES"
            ]
        );
        let row: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(row[..4], [name, "1/1", "Running", "0"]);
        assert!(run(&["get", "pods", name, "-o", "yaml"], "").contains("qosClass: BestEffort"));

        let described = run(&["describe", "pod", name], "");
        for part in
            ["Status:           Running", "Successfully assigned default/", "Container started", "QoS Class:"]
        {
            assert!(described.contains(part), "{part:?} in\n{described}");
        }
        assert!(run(&["get", "events"], "").contains("Scheduled"));
        assert_eq!(run(&["logs", name], ""), "started\n");
        assert_eq!(run(&["logs", name, "--tail=1"], ""), "started\n");

        assert_eq!(run(&["exec", name, "--", "echo", "hello"], ""), "hello\n");
        assert_eq!(run(&["exec", "-i", name, "--", "cat"], "through stdin"), "through stdin");
        let failing = cluster.run_kubectl(version, &["exec", name, "--", "sh", "-c", "exit 5"], "");
        assert_eq!(failing.status.code(), Some(5), "{}", String::from_utf8_lossy(&failing.stderr));

        assert_eq!(run(&["label", "pod", name, "tier=web"], ""), format!("{pod} labeled\n"));
        assert_eq!(run(&["annotate", "pod", name, "note=x"], ""), format!("{pod} annotated\n"));
        assert_eq!(run(&["get", "pods", "-l", "tier=web", "-o", "name"], ""), format!("{pod}\n"));
        let patch = "{\"metadata\":{\"labels\":{\"tier\":\"db\"}}}";
        for kind in ["strategic", "merge"] {
            run(&["patch", "pod", name, "--type", kind, "-p", patch], "");
        }
        let patch = "[{\"op\":\"replace\",\"path\":\"/metadata/labels/tier\",\"value\":\"app\"}]";
        run(&["patch", "pod", name, "--type", "json", "-p", patch], "");
        assert_eq!(run(&["get", "pods", "-l", "tier=app", "-o", "name"], ""), format!("{pod}\n"));

        // It does not listen to the signal: there is time to look.
        run(&["delete", "pod", name, "--wait=false", "--grace-period=20"], "");
        let described = run(&["describe", "pod", name], "");
        let grace = described.lines().find(|line| line.starts_with("Termination Grace Period:"));
        assert!(described.contains("Terminating (lasts "), "{described}");
        assert!(grace.is_some_and(|line| line.ends_with(" 20s")), "{described}");
        run(&["delete", "pod", name, "--now"], "");
        let gone = cluster.kubectl_fails(&["get", "pod", name], "");
        assert_eq!(gone, format!("Error from server (NotFound): pods \"{name}\" not found\n"));

        run(&["run", &format!("run-{name}"), "--image", IMAGE, "--", "sleep", "3600"], "");
        run(&["wait", "--for=condition=Ready", &format!("pod/run-{name}"), "--timeout=30s"], "");
        run(&["delete", "pod", &format!("run-{name}"), "--grace-period=0", "--force"], "");
    }
}

#[test]
fn other_kinds_and_their_verbs() {
    let cluster = Cluster::start();
    for (version, name) in BOTH {
        let run = |arguments: &[&str]| cluster.kubectl_with(version, arguments, "");
        run(&["create", "namespace", name]);
        run(&["create", "configmap", "settings", "--from-literal=a=1", "-n", name]);
        run(&["create", "secret", "generic", "key", "--from-literal=password=hunter2", "-n", name]);
        assert_eq!(run(&["get", "configmap", "settings", "-n", name, "-o", "jsonpath={.data.a}"]), "1");
        cluster.wait("its service account", &["serviceaccounts", "-n", name], |account| {
            account["metadata"]["name"] == "default"
        });
        cluster.wait("its CA", &["configmaps", "-n", name], |map| {
            map["metadata"]["name"] == "kube-root-ca.crt" && map["data"]["ca.crt"].is_string()
        });
        for kinds in ["nodes", "ns", "cm", "secrets", "svc", "sa", "leases", "pc"] {
            let table = run(&["get", kinds, "-A"]);
            assert!(table.lines().count() > 1, "{kinds}: {table}");
        }
        run(&["get", "nodes,ns,cm,secrets,svc,endpoints,sa,leases", "-A"]);
        assert!(run(&["explain", "pod.spec"]).contains("containers"));
        assert!(run(&["explain", "pod.spec.containers.image"]).contains("Container image name"));
        assert!(run(&["api-resources"]).contains("configmaps"));
        assert!(run(&["version"]).contains("Server Version: v1.37"));

        cluster.edit(version, &["configmap", "settings", "-n", name], "s/a: \"1\"/a: \"2\"/");
        assert_eq!(run(&["get", "configmap", "settings", "-n", name, "-o", "jsonpath={.data.a}"]), "2");
        run(&["delete", "namespace", name]);
        let gone = cluster.kubectl_fails(&["get", "namespace", name], "");
        assert!(gone.contains("NotFound"), "{gone}");
    }
}

#[test]
fn mistakes_get_upstreams_answers() {
    let cluster = Cluster::start();
    let unknown = sleeper("x").replace("image:", "imagge:");
    let message = cluster.kubectl_fails(&["apply", "-f", "-"], &unknown);
    assert!(message.contains("unknown field \"spec.containers[0].imagge\""), "{message}");
    let message = cluster.kubectl_fails(&["create", "-f", "-"], &sleeper("Upper"));
    assert!(message.contains("The Pod \"Upper\" is invalid"), "{message}");
    assert!(message.contains("metadata.name: Invalid value: \"Upper\""), "{message}");
    cluster.apply(&sleeper("once"));
    let message = cluster.kubectl_fails(&["create", "-f", "-"], &sleeper("once"));
    assert!(message.contains("Error from server (AlreadyExists)"), "{message}");
    let message = cluster.kubectl_fails(&["get", "nothings"], "");
    assert!(message.contains("the server doesn't have a resource type \"nothings\""), "{message}");
    for (version, _) in BOTH {
        // For both, kubectl reads the OpenAPI document in protobuf, and the list of custom kinds.
        let list =
            "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}]";
        let applied = cluster.kubectl_with(version, &["apply", "-f", "-"], list);
        assert!(applied.starts_with("configmap/a "), "{applied}");
        for (kind, api_version) in [("Podd", "v1"), ("StatefulSet", "apps/v1")] {
            let manifest = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}");
            let output = cluster.run_kubectl(version, &["apply", "-f", "-"], &manifest);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let expected = format!("no matches for kind \"{kind}\" in version \"{api_version}\"");
            assert!(message.contains(&expected), "{message}");
        }
    }
    let message = cluster.kubectl_fails(&["logs", "absent"], "");
    assert!(message.contains("pods \"absent\" not found"), "{message}");
}
