//! Two machines, one cluster: joining, Pods that reach each other, a link that is cut, nodes that may not join.

use crate::support::{Cluster, IMAGE, Machine, busybox_archive};

/// A Pod on the node `node` that answers every connection with the node's name.
pub(crate) fn greeter(node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: on-{node}}}\nspec:\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
         containers:\n  - name: c\n    image: {IMAGE}\n    \
         command: [sh, -c, 'echo started on {node}; while :; do echo {node} | nc -l -p 80; done']\n"
    )
}

/// The part of a join command that names the token.
pub(crate) fn token(command: &str) -> String {
    command.split_whitespace().last().unwrap().to_owned()
}

#[test]
fn pods_of_two_machines_talk_and_a_cut_link_restarts_nothing() {
    let (first, second) = Machine::pair();
    let (server, node) = (Cluster::embedded_on(&first), Cluster::embedded_on(&second));
    server.must(&["up", "--node-name", "m1"]);
    let command = server.must(&["token", "create"]);
    assert!(command.starts_with("coracle node --server https://192.0.2.1:"), "{command}");
    let url = command.split_whitespace().nth(3).unwrap().to_owned();
    node.must(&["node", "--server", &url, "--token", &token(&command), "--node-name", "m2", "--detach"]);
    for cluster in [&server, &node] {
        cluster.must(&["image", "import", busybox_archive().to_str().unwrap()]);
    }
    server.apply(&greeter("m1"));
    server.apply(&greeter("m2"));
    server.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=30s"]);
    let ask = |from: &str, to: &str| {
        let address = server.get(&["pod", to])["status"]["podIP"].as_str().unwrap().to_owned();
        server.kubectl(&["exec", from, "--", "nc", "-w", "5", &address, "80"])
    };
    assert_eq!(ask("on-m1", "on-m2"), "m2\n");
    assert_eq!(ask("on-m2", "on-m1"), "m1\n");
    // Logs and commands on the other machine go through the server.
    assert_eq!(server.kubectl(&["logs", "on-m2"]), "started on m2\n");

    let statuses = |names: &[&str]| -> Vec<_> {
        names.iter().map(|name| server.get(&["pod", name])["status"]["containerStatuses"].clone()).collect()
    };
    let before = statuses(&["on-m1", "on-m2"]);
    first.ip(&["link", "set", "cable", "down"]);
    let cut = server.kubectl_fails(&["logs", "on-m2"], "");
    assert!(cut.contains("error dialing the kubelet of node \"m2\""), "{cut}");
    // The node notices, goes on by itself, and comes back.
    let log = node.data().join("coracle.log");
    let noticed = || std::fs::read_to_string(&log).unwrap().contains("cannot renew the node's lease");
    wait_for("the node to notice that its server is away", noticed);
    first.ip(&["link", "set", "cable", "up"]);
    first.ip(&["route", "replace", "default", "via", "192.0.2.2"]);
    server.kubectl(&["run", "late", "--image", IMAGE, "--overrides", LATE, "--", "sleep", "3600"]);
    server.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=50s"]);
    assert_eq!(statuses(&["on-m1", "on-m2"]), before);
    assert_eq!(ask("on-m1", "on-m2"), "m2\n");

    // A killed server changes nothing on the node either.
    server.kill();
    server.must(&["up"]);
    assert_eq!(server.kubectl(&["logs", "on-m1"]), "started on m1\n");
    assert_eq!(statuses(&["on-m1", "on-m2"]), before);
    // The node needs neither server nor token to start again.
    node.must(&["down"]);
    node.must(&["node", "--detach"]);
    server.kubectl(&["wait", "--for=condition=Ready", "pod/on-m2", "--timeout=30s"]);

    // Who was deleted is out until somebody asks it back in.
    server.kubectl(&["delete", "node", "m2"]);
    node.must(&["down"]);
    let refused = node.coracle(&["node", "--detach"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("node \"m2\" was deleted from the cluster"), "{said}");
    assert!(said.contains("`coracle token create`"), "{said}");
    let again = token(&server.must(&["token", "create"]));
    node.must(&["node", "--token", &again, "--detach"]);
    server.kubectl(&["wait", "--for=condition=Ready", "node/m2", "--timeout=30s"]);

    node.must(&["down", "--purge"]);
    server.must(&["down", "--purge"]);
    for machine in [&first, &second] {
        assert!(!machine.links().contains("coracle"), "{}", machine.links());
    }
}

const LATE: &str = r#"{"spec":{"nodeSelector":{"kubernetes.io/hostname":"m2"}}}"#;

#[test]
fn machines_that_may_not_join_are_told_why() {
    let (first, second) = Machine::pair();
    let (server, node) = (Cluster::embedded_on(&first), Cluster::embedded_on(&second));
    let join = |cluster: &Cluster, url: &str, token: &str, name: &str| {
        let output =
            cluster.coracle(&["node", "--server", url, "--token", token, "--node-name", name, "--detach"]);
        assert!(!output.status.success());
        cluster.must(&["down", "--purge"]);
        String::from_utf8(output.stderr).unwrap()
    };
    server.must(&["up", "--node-name", "m1"]);
    let command = server.must(&["token", "create", "--reusable"]);
    let (url, good) = (command.split_whitespace().nth(3).unwrap(), token(&command));
    let short = token(&server.must(&["token", "create", "--ttl", "1s"]));

    let nowhere = join(&node, "https://192.0.2.1:1", &good, "m2");
    assert!(nowhere.contains("cannot reach the server at https://192.0.2.1:1"), "{nowhere}");
    let no_url = join(&node, "192.0.2.1", &good, "m2");
    assert!(no_url.contains("it looks like https://192.0.2.1:6443"), "{no_url}");
    let cut_off = join(&node, url, &good[..40], "m2");
    assert!(cut_off.contains("a join token looks like"), "{cut_off}");
    let secret = format!("{}.aaaaaaaaaaaaaaaa.{}", &good[..6], &good[24..]);
    let wrong = join(&node, url, &secret, "m2");
    assert!(wrong.contains("is not one of this cluster's"), "{wrong}");
    let foreign = join(&node, url, &format!("{}{}", &good[..24], "0".repeat(64)), "m2");
    assert!(foreign.contains("is of another cluster than the token"), "{foreign}");
    // Under a name that is taken, so that it joins nobody before.
    wait_for("the token to expire", || join(&node, url, &short, "m1").contains("expired at"));
    let taken = join(&node, url, &good, "m1");
    assert!(taken.contains("another machine has joined as node \"m1\""), "{taken}");

    // A token of one machine only, and a cluster that is no node.
    let once = token(&server.must(&["token", "create"]));
    node.must(&["node", "--server", url, "--token", &once, "--node-name", "m2", "--detach"]);
    let up = node.coracle(&["up"]);
    assert!(String::from_utf8_lossy(&up.stderr).contains("start it with `coracle node`"), "{up:?}");
    let listed = server.must(&["token", "ls"]);
    assert!(listed.contains("used by m2"), "{listed}");
    let third = Cluster::embedded_on(&second);
    let spent = join(&third, url, &once, "m3");
    assert!(spent.contains("already used by node \"m2\""), "{spent}");
    let own = server.coracle(&["node", "--server", url, "--token", &good]);
    assert!(String::from_utf8_lossy(&own.stderr).contains("`coracle up` starts it"), "{own:?}");
    server.must(&["token", "rm", &good]);
    assert!(!server.must(&["token", "ls"]).contains(&good[..6]));
}

/// Looks again and again, for a minute at most.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 * crate::support::patience() {
        if holds() {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "the condition is outside of this process")]
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("waited in vain for {what}");
}
