//! Pods as service accounts: what a program in a container finds there is what the API server takes.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Cluster, IMAGE, check};

const PLACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn pod(name: &str, spec: Value) -> String {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0,
                 "containers": [{"name": "c", "image": IMAGE, "command": ["sleep", "3600"]}]},
    });
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    pod.to_string()
}

fn server(cluster: &Cluster) -> String {
    cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])
}

/// What the API server answers a program that has nothing but what is in the container: code and body.
fn ask(cluster: &Cluster, path: &str, token: &str, authority: &str) -> (String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.crt");
    std::fs::write(&file, authority).unwrap();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"])
        .args(["--cacert", file.to_str().unwrap(), "--header", &format!("Authorization: Bearer {token}")])
        .arg(format!("{}{path}", server(cluster)))
        .output()
        .unwrap();
    check(&output, "curl");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.to_owned(), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn a_program_in_a_pod_is_its_service_account() {
    let cluster = Cluster::start();
    cluster.kubectl(&["create", "serviceaccount", "robot"]);
    cluster.apply(&pod("me", json!({"serviceAccountName": "robot"})));
    cluster.apply(&pod("silent", json!({"automountServiceAccountToken": false})));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/me", "pod/silent", "--timeout=30s"]);

    let read = |file: &str| cluster.kubectl(&["exec", "me", "--", "cat", &format!("{PLACE}/{file}")]);
    let (token, authority) = (read("token"), read("ca.crt"));
    assert_eq!(read("namespace"), "default");
    let variable = cluster.kubectl(&["exec", "me", "--", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST"]);
    let service = cluster.get(&["service", "kubernetes"]);
    assert_eq!(variable.trim(), service["spec"]["clusterIP"].as_str().unwrap());

    let review = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (code, _) = ask(&cluster, "/api/v1", &token, &authority);
    assert_eq!(code, "200", "the authority in the container is the server's");
    let (code, status) = ask(&cluster, "/api/v1/namespaces/default/secrets", &token, &authority);
    assert_eq!(code, "403");
    assert_eq!(
        status["message"],
        "secrets is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"secrets\" in API \
         group \"\" in the namespace \"default\""
    );
    let (code, _) = ask(&cluster, "/api/v1", &format!("{token}x"), &authority);
    assert_eq!(code, "401");
    let who =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviewed = || -> Value {
        let arguments = ["create", "--raw", review, "-f", "-"];
        let output = cluster.run_kubectl(crate::support::Kubectl::V37, &arguments, &who.to_string());
        check(&output, "kubectl create --raw");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let uid = cluster.get(&["pod", "me"])["metadata"]["uid"].clone();
    let user = reviewed()["status"]["user"].clone();
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-uid"], json!([uid]));

    // It ends with its Pod.
    cluster.kubectl(&["delete", "pod", "me"]);
    assert_eq!(ask(&cluster, "/api/v1", &token, &authority).0, "401");
    assert_eq!(reviewed()["status"]["authenticated"], Value::Null);

    let missing = cluster.kubectl_fails(&["exec", "silent", "--", "ls", PLACE], "");
    assert!(missing.contains("No such file or directory"), "{missing}");
    let refused =
        cluster.kubectl_fails(&["apply", "-f", "-"], &pod("x", json!({"serviceAccountName": "nobody"})));
    let words = "pods \"x\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" \
                 not found";
    assert!(refused.contains(words), "{refused}");
}
