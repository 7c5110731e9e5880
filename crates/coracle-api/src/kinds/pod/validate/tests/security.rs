//! Who a container is, and its names and addresses.

use super::*;

#[test]
fn security_contexts_do_not_contradict_themselves() {
    check(security());
}

pub(super) fn security() -> Vec<Row> {
    let both = json!({"allowPrivilegeEscalation": false, "privileged": true});
    let all = json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}});
    let profile = |profile: Value| json!({ "seccompProfile": profile });
    let sysctls = |names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        json!({ "sysctls": list })
    };
    let in_network = |field: &str, name: &str| {
        let mut spec = right();
        spec[field] = true.into();
        spec["securityContext"] = sysctls(&[name]);
        let error = format!(
            "spec.securityContext.sysctls[0].name: Invalid value: \"{name}\": may not be specified when '{field}' \
             is true"
        );
        ("", spec, vec![error])
    };
    vec![
        in_container(
            "securityContext",
            json!({"runAsUser": -1}),
            [&format!("securityContext.runAsUser: Invalid value: -1: {ID}")],
        ),
        in_container(
            "securityContext",
            json!({"runAsGroup": 4_294_967_296_i64}),
            [&format!("securityContext.runAsGroup: Invalid value: 4294967296: {ID}")],
        ),
        in_container(
            "securityContext",
            both.clone(),
            [&format!(
                "securityContext: Invalid value: {both}: cannot set `allowPrivilegeEscalation` to false and \
                 `privileged` to true"
            )],
        ),
        in_container(
            "securityContext",
            all.clone(),
            [&format!(
                "securityContext: Invalid value: {all}: cannot set `allowPrivilegeEscalation` to false and \
                 `capabilities.Add` CAP_SYS_ADMIN"
            )],
        ),
        in_container(
            "securityContext",
            json!({"procMount": "Bare"}),
            [
                "securityContext.procMount: Unsupported value: \"Bare\": supported values: \"Default\", \"Unmasked\"",
            ],
        ),
        in_container(
            "securityContext",
            json!({"procMount": "Unmasked"}),
            ["securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use \
              `Unmasked`"],
        ),
        in_container(
            "securityContext",
            profile(json!({})),
            [
                "securityContext.seccompProfile.type: Required value: type is required when seccompProfile is set",
            ],
        ),
        in_container(
            "securityContext",
            profile(json!({"type": "Localhost"})),
            [
                "securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is \
              Localhost",
            ],
        ),
        row(
            "/securityContext",
            profile(json!({"type": "Own"})),
            ["spec.securityContext.seccompProfile.type: Unsupported value: \"Own\": supported values: \
              \"Localhost\", \"RuntimeDefault\", \"Unconfined\""],
        ),
        row(
            "/securityContext",
            profile(json!({"type": "Localhost", "localhostProfile": "../x"})),
            [
                "spec.securityContext.seccompProfile.localhostProfile: Invalid value: \"../x\": must not contain \
              '..'",
            ],
        ),
        row(
            "/securityContext",
            json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": " x"}}),
            [
                "spec.securityContext.appArmorProfile.localhostProfile: Invalid value: \" x\": must not be padded \
              with whitespace",
            ],
        ),
        row(
            "/securityContext",
            json!({"fsGroup": -1}),
            [&format!("spec.securityContext.fsGroup: Invalid value: -1: {ID}")],
        ),
        row(
            "/securityContext",
            json!({"supplementalGroups": [1, -1]}),
            [&format!("spec.securityContext.supplementalGroups[1]: Invalid value: -1: {ID}")],
        ),
        row(
            "/securityContext",
            json!({"fsGroupChangePolicy": "Never"}),
            ["spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Never\": supported values: \
              \"Always\", \"OnRootMismatch\""],
        ),
        row(
            "/securityContext",
            json!({"supplementalGroupsPolicy": "Loose"}),
            [
                "spec.securityContext.supplementalGroupsPolicy: Unsupported value: \"Loose\": supported values: \
              \"Merge\", \"Strict\"",
            ],
        ),
        row("/securityContext", sysctls(&[""]), ["spec.securityContext.sysctls[0].name: Required value"]),
        row(
            "/securityContext",
            sysctls(&["a..b"]),
            [
                "spec.securityContext.sysctls[0].name: Invalid value: \"a..b\": must have at most 253 characters and \
              match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ],
        ),
        row(
            "/securityContext",
            sysctls(&["net.core.somaxconn", "net.core.somaxconn"]),
            ["spec.securityContext.sysctls[1].name: Duplicate value: \"net.core.somaxconn\""],
        ),
        in_network("hostNetwork", "net.core.somaxconn"),
        in_network("hostIPC", "kernel.shmmax"),
    ]
}

#[test]
fn names_and_addresses_are_well_formed() {
    check(network());
}

pub(super) fn network() -> Vec<Row> {
    let servers = json!(["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]);
    let searches: Vec<String> = (0..33).map(|i| format!("d{i}")).collect();
    let long = vec!["a".repeat(63) + "." + &"b".repeat(63) + "." + &"c".repeat(63); 11];
    vec![
        row("/hostname", json!("a.b"), ["spec.hostname: Invalid value: \"a.b\": must not contain dots"]),
        row("/subdomain", json!("A"), [&format!("spec.subdomain: Invalid value: \"A\": {LABEL}")]),
        row(
            "/hostnameOverride",
            json!("A"),
            [&format!("spec.hostnameOverride: Invalid value: \"A\": {SUBDOMAIN}")],
        ),
        row(
            "/hostnameOverride",
            json!("a".repeat(65)),
            ["spec.hostnameOverride: Too long: may not be more than 64 bytes"],
        ),
        row(
            "/dnsPolicy",
            json!("Mine"),
            ["spec.dnsPolicy: Unsupported value: \"Mine\": supported values: \"ClusterFirstWithHostNet\", \
              \"ClusterFirst\", \"Default\", \"None\""],
        ),
        row(
            "/dnsPolicy",
            json!("None"),
            ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        row(
            "",
            json!({
                "containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "None", "dnsConfig": {"searches": ["a"]}
            }),
            ["spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when \
              `dnsPolicy` is None"],
        ),
        row(
            "/dnsConfig",
            json!({"nameservers": ["1.1.1"]}),
            [&format!("spec.dnsConfig.nameservers[0]: Invalid value: \"1.1.1\": {IP}")],
        ),
        row(
            "/dnsConfig",
            json!({"nameservers": servers}),
            [&format!(
                "spec.dnsConfig.nameservers: Invalid value: {servers}: must not have more than 3 nameservers"
            )],
        ),
        row(
            "/dnsConfig",
            json!({"searches": searches}),
            [&format!(
                "spec.dnsConfig.searches: Invalid value: {}: must not have more than 32 search paths",
                json!(searches)
            )],
        ),
        row(
            "/dnsConfig",
            json!({"searches": long}),
            [&format!(
                "spec.dnsConfig.searches: Invalid value: {}: must not have more than 2048 characters (including \
                 spaces) in the search list",
                json!(long)
            )],
        ),
        row(
            "/dnsConfig",
            json!({"searches": ["_a.b.", ".", "a b"]}),
            [
                "spec.dnsConfig.searches[2]: Invalid value: \"a b\": a lowercase RFC 1123 subdomain must consist of \
              lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric \
              character (e.g. 'example.com', regex used for validation is \
              '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
        row(
            "/dnsConfig",
            json!({"options": [{"value": "1"}]}),
            ["spec.dnsConfig.options[0]: Required value: must not be empty"],
        ),
        row(
            "/hostAliases",
            json!([{"ip": "x", "hostnames": ["a"]}]),
            [&format!("spec.hostAliases[0].ip: Invalid value: \"x\": {IP}")],
        ),
        row(
            "/hostAliases",
            json!([{"ip": "::1", "hostnames": ["a", "B"]}]),
            [&format!("spec.hostAliases[0].hostnames[1]: Invalid value: \"B\": {SUBDOMAIN}")],
        ),
        row(
            "",
            json!({
                "hostNetwork": true, "terminationGracePeriodSeconds": 30,
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]
            }),
            ["spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when \
              `hostNetwork` is true"],
        ),
        row(
            "",
            json!({
                "hostNetwork": true, "hostnameOverride": "a", "setHostnameAsFQDN": true,
                "containers": [{"name": "c", "image": "i"}]
            }),
            [
                "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
                "spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true",
            ],
        ),
        row(
            "",
            json!({
                "hostPID": true, "shareProcessNamespace": true, "containers": [{"name": "c", "image": "i"}]
            }),
            [
                "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID \
              cannot both be enabled",
            ],
        ),
        row(
            "",
            json!({
                "hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true,
                "containers": [{"name": "c", "image": "i"}]
            }),
            [
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.HostPID: Forbidden: when `hostUsers` is false",
                "spec.HostIPC: Forbidden: when `hostUsers` is false",
            ],
        ),
    ]
}
