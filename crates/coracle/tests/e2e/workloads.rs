//! Workloads by kubectl, as users drive them: Deployments, Jobs, CronJobs.

use crate::support::{Cluster, IMAGE};

fn deployment() -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 3\n  selector: {{matchLabels: \
         {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - {{name: main, image: \"{IMAGE}\", imagePullPolicy: \
         Never, command: [sleep, \"3600\"]}}\n"
    )
}

#[test]
fn a_deployment_is_scaled_rolled_out_undone_and_deleted() {
    let cluster = Cluster::start();
    let run = |arguments: &[&str]| cluster.kubectl(arguments);
    cluster.apply(&deployment());
    let status = run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(status.ends_with("deployment \"web\" successfully rolled out\n"), "{status}");
    let table = run(&["get", "deployments", "-o", "wide"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    assert_eq!(lines[1][..4], ["web", "3/3", "3", "3"]);
    assert_eq!(lines[1][5..], ["main", IMAGE, "app=web"]);

    assert_eq!(run(&["scale", "deployment/web", "--replicas=2"]), "deployment.apps/web scaled\n");
    run(&["wait", "--for=jsonpath={.status.availableReplicas}=2", "deployment/web", "--timeout=60s"]);
    run(&["wait", "--for=jsonpath={.status.terminatingReplicas}=0", "deployment/web", "--timeout=60s"]);
    assert_eq!(run(&["get", "pods", "-l", "app=web", "-o", "name"]).lines().count(), 2);
    assert_eq!(run(&["set", "env", "deployment/web", "VERSION=2"]), "deployment.apps/web env updated\n");
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(
        run(&["set", "image", "deployment/web", "main=localhost/none:1"]),
        "deployment.apps/web image updated\n"
    );
    let stuck = cluster.kubectl_fails(&["rollout", "status", "deployment/web", "--timeout=3s"], "");
    assert!(stuck.contains("timed out waiting for the condition"), "{stuck}");
    let history = run(&["rollout", "history", "deployment/web"]);
    let revisions: Vec<&str> =
        history.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(revisions, ["1", "2", "3"], "{history}");
    assert_eq!(run(&["rollout", "undo", "deployment/web"]), "deployment.apps/web rolled back\n");
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let env =
        run(&["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}"]);
    assert_eq!(env, "2", "the revision before");
    let described = run(&["describe", "deployment", "web"]);
    for part in [
        "Replicas:               2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
        "Available      True    MinimumReplicasAvailable",
        "Progressing    True    NewReplicaSetAvailable",
        "Scaled up replica set web-",
    ] {
        assert!(described.contains(part), "{part:?} in\n{described}");
    }
    assert_eq!(run(&["rollout", "restart", "deployment/web"]), "deployment.apps/web restarted\n");
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    run(&["delete", "deployment", "web", "--cascade=foreground", "--timeout=60s"]);
    assert_eq!(run(&["get", "replicasets,pods", "-o", "name"]), "");
}

#[test]
fn jobs_run_to_their_end_and_cron_jobs_make_them() {
    let cluster = Cluster::start();
    let run = |arguments: &[&str]| cluster.kubectl(arguments);
    run(&["create", "job", "once", "--image", IMAGE, "--", "echo", "done once"]);
    run(&["wait", "--for=condition=complete", "job/once", "--timeout=60s"]);
    assert_eq!(run(&["logs", "job/once"]), "done once\n");
    let table = run(&["get", "jobs"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE"]);
    assert_eq!(lines[1][..3], ["once", "Complete", "1/1"]);

    run(&["create", "cronjob", "yearly", "--image", IMAGE, "--schedule", "@yearly", "--", "echo", "a year"]);
    let table = run(&["get", "cronjobs"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE", "LAST", "SCHEDULE", "AGE"]);
    assert_eq!(lines[1][..6], ["yearly", "@yearly", "<none>", "False", "0", "<none>"]);
    run(&["create", "job", "--from=cronjob/yearly", "now"]);
    run(&["wait", "--for=condition=complete", "job/now", "--timeout=60s"]);
    assert_eq!(run(&["logs", "job/now"]), "a year\n");
    run(&["delete", "cronjob", "yearly"]);
    run(&["wait", "--for=delete", "job/now", "--timeout=60s"]);
    run(&["delete", "job", "once"]);
    for job in ["now", "once"] {
        run(&["wait", "--for=delete", "pods", "-l", &format!("job-name={job}"), "--timeout=60s"]);
    }
    assert_eq!(run(&["get", "pods", "-o", "name"]), "");
}
