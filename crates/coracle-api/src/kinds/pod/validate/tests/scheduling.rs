//! Where a Pod may be.

use super::*;

#[test]
fn places_and_neighbours_are_well_formed() {
    check(scheduling());
}

pub(super) fn scheduling() -> Vec<Row> {
    let required = |requirement: Value| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [requirement]}]
        }}})
    };
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let spread = |more: Value| {
        let mut constraint = json!({
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}
        });
        for (field, value) in more.as_object().unwrap() {
            constraint[field] = value.clone();
        }
        json!([constraint])
    };
    vec![
        row(
            "/tolerations",
            json!([{"operator": "Equal"}]),
            [
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, \
              which means \"match all values and all keys\"",
            ],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "tolerationSeconds": 1}]),
            ["spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when \
              `tolerationSeconds` is set"],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "operator": "Exists", "value": "v"}]),
            ["spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is \
              'Exists'"],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "operator": "Is"}]),
            [
                "spec.tolerations[0].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\"",
            ],
        ),
        row(
            "/tolerations",
            json!([{"key": "k", "operator": "Exists", "effect": "NoWay"}]),
            ["spec.tolerations[0].effect: Unsupported value: \"NoWay\": supported values: \"NoSchedule\", \
              \"PreferNoSchedule\", \"NoExecute\""],
        ),
        row(
            "/tolerations",
            json!([{"key": "a b", "operator": "Exists"}]),
            [&format!("spec.tolerations[0].key: Invalid value: \"a b\": {QUALIFIED}")],
        ),
        row(
            "/nodeSelector",
            json!({"a b": "c"}),
            [&format!("spec.nodeSelector: Invalid value: \"a b\": {QUALIFIED}")],
        ),
        row(
            "/affinity",
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}),
            [&format!("{at}: Required value: must have at least one node selector term")],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "In"})),
            [&format!(
                "{at}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or \
                 'NotIn'"
            )],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "Exists", "values": ["v"]})),
            [&format!(
                "{at}[0].matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or \
                 'DoesNotExist'"
            )],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "Gt", "values": ["1", "2"]})),
            [&format!(
                "{at}[0].matchExpressions[0].values: Required value: must be specified single value when \
                 `operator` is 'Lt' or 'Gt'"
            )],
        ),
        row(
            "/affinity",
            required(json!({"key": "k", "operator": "Has"})),
            [&format!(
                "{at}[0].matchExpressions[0].operator: Invalid value: \"Has\": not a valid selector operator"
            )],
        ),
        row(
            "/affinity",
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 101, "preference": {}
            }]}}),
            [
                "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: \
              101: must be in the range 1-100",
            ],
        ),
        row(
            "/affinity",
            json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}}),
            [
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                 Required value: can not be empty",
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                 Invalid value: \"\": name part must be non-empty",
                &format!(
                    "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                     Invalid value: \"\": {QUALIFIED}"
                ),
            ],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"maxSkew": 0})),
            [&format!("{SPREAD}.maxSkew: Invalid value: 0: must be greater than zero")],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"topologyKey": ""})),
            [&format!("{SPREAD}.topologyKey: Required value: can not be empty")],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"whenUnsatisfiable": "Wait"})),
            [&format!(
                "{SPREAD}.whenUnsatisfiable: Unsupported value: \"Wait\": supported values: \"DoNotSchedule\", \
                 \"ScheduleAnyway\""
            )],
        ),
        row(
            "/topologySpreadConstraints",
            spread(json!({"whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2})),
            [&format!(
                "{SPREAD}.minDomains: Invalid value: 2: can only use minDomains if \
                 whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway"
            )],
        ),
        row(
            "/topologySpreadConstraints",
            json!([spread(json!({}))[0], spread(json!({}))[0]]),
            [&format!(
                "{SPREAD}.{{topologyKey, whenUnsatisfiable}}: Duplicate value: \"{{zone, DoNotSchedule}}\""
            )],
        ),
        row(
            "/readinessGates",
            json!([{"conditionType": "a b"}]),
            [&format!("spec.readinessGates[0].conditionType: Invalid value: \"a b\": {QUALIFIED}")],
        ),
        row(
            "/schedulingGates",
            json!([{"name": "g"}, {"name": "g"}]),
            ["spec.schedulingGates[1]: Duplicate value: \"g\""],
        ),
    ]
}
