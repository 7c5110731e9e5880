//! PriorityClasses: names for how much Pods matter.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::metadata;
use crate::table::Column;
use crate::tree::{self, int_at, str_at, true_at};

/// What is special about PriorityClasses.
pub(crate) struct PriorityClassStrategy;

/// The classes that every cluster has: name, value, and what they are for.
pub const SYSTEM_PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// The names that users may not give begin with this.
const SYSTEM: &str = "system-";
/// The highest value that users may give.
const HIGHEST: i64 = 1_000_000_000;
const PREEMPTS: &str = "PreemptLowerPriority";
const POLICIES: &[&str] = &["Never", PREEMPTS];

static COLUMNS: &[Column] = &[
    Column::NAME,
    Column::number(
        "Value",
        "value represents the integer value of this priority class. This is the actual priority that pods receive when \
         they have the name of this class in their pod spec.",
    ),
    Column {
        kind: "boolean",
        ..Column::text(
            "Global-Default",
            "globalDefault specifies whether this PriorityClass should be considered as the default priority for pods \
             that do not have any priority class. Only one PriorityClass can be marked as `globalDefault`. However, if \
             more than one PriorityClasses exists with their `globalDefault` field set to true, the smallest value of \
             such global default PriorityClasses will be used as the default priority.",
        )
    },
    Column::AGE,
    Column::text(
        "PreemptionPolicy",
        "preemptionPolicy is the Policy for preempting pods with lower priority. One of Never, PreemptLowerPriority. \
         Defaults to PreemptLowerPriority if unset.",
    ),
];

impl Strategy for PriorityClassStrategy {
    fn default(&self, object: &mut Value) {
        if str_at(object, &["preemptionPolicy"]).is_empty() {
            tree::set_or_remove(object, "preemptionPolicy", Some(PREEMPTS.into()));
        }
        if object.get("value").is_none_or(Value::is_null) {
            tree::set_or_remove(object, "value", Some(json!(0)));
        }
        // Written out only if it says something.
        if !true_at(object, &["globalDefault"]) {
            tree::set_or_remove(object, "globalDefault", None);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if int_at(new, &["value"]) != int_at(old, &["value"]) {
            errors.push(FieldError::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        let (is, was) = (str_at(new, &["preemptionPolicy"]), str_at(old, &["preemptionPolicy"]));
        if is != was {
            errors.push(FieldError::invalid(&Path::new("preemptionPolicy"), is, "field is immutable"));
        }
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let policy = str_at(object, &["preemptionPolicy"]);
        vec![
            metadata::name(object).into(),
            int_at(object, &["value"]).unwrap_or(0).into(),
            true_at(object, &["globalDefault"]).into(),
            super::age(object, now),
            if policy.is_empty() { PREEMPTS } else { policy }.into(),
        ]
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let (name, value) = (metadata::name(object), int_at(object, &["value"]).unwrap_or(0));
    let mut errors = Vec::new();
    if name.starts_with(SYSTEM) {
        if let Err(why) = is_system(name, value, true_at(object, &["globalDefault"])) {
            let text = format!(
                "priority class names with '{SYSTEM}' prefix are reserved for system use only. error: {why}"
            );
            errors.push(FieldError::forbidden(&Path::new("metadata").child("name"), text));
        }
    } else if value > HIGHEST {
        let text = format!("maximum allowed value of a user defined priority is {HIGHEST}");
        errors.push(FieldError::forbidden(&Path::new("value"), text));
    }
    let policy = str_at(object, &["preemptionPolicy"]);
    if !POLICIES.contains(&policy) {
        let supported = [PREEMPTS, "Never"];
        errors.push(FieldError::not_supported(&Path::new("preemptionPolicy"), policy, &supported));
    }
    errors
}

/// Whether this is one of the classes that every cluster has, and if not, why.
fn is_system(name: &str, value: i64, global_default: bool) -> Result<(), String> {
    let Some((_, wanted, _)) = SYSTEM_PRIORITY_CLASSES.iter().find(|(known, ..)| *known == name) else {
        return Err(format!("{name} is not a known system priority class"));
    };
    if value != *wanted {
        return Err(format!("value of {name} PriorityClass must be {wanted}"));
    }
    if global_default {
        return Err(format!("globalDefault of {name} PriorityClass must be false"));
    }
    Ok(())
}

/// The class for Pods that name none: of those that are marked as the default the one with the smallest value.
#[must_use]
pub fn default_priority_class(classes: &[Value]) -> Option<&Value> {
    let marked = classes.iter().filter(|class| true_at(class, &["globalDefault"]));
    marked.min_by_key(|class| int_at(class, &["value"]).unwrap_or(0))
}

/// Why a class that is to be the default cannot be, if it cannot: there is another one.
///
/// # Errors
/// The words for the user.
pub fn admit_default(class: &Value, classes: &[Value]) -> Result<(), String> {
    match default_priority_class(classes).map(metadata::name) {
        Some(other) if true_at(class, &["globalDefault"]) && other != metadata::name(class) => {
            Err(format!("PriorityClass {other} is already marked as default. Only one default can exist"))
        }
        _ => Ok(()),
    }
}

/// Gives a new Pod the priority of its class, or of the default one.
///
/// # Errors
/// The words for the user: there is no such class, or the Pod says another priority.
pub fn admit_pod(pod: &mut Value, classes: &[Value]) -> Result<(), String> {
    let Some(spec) = tree::object_in(pod, "spec") else { return Ok(()) };
    let said = |field: &str| spec.get(field).filter(|value| !value.is_null()).cloned();
    let named =
        said("priorityClassName").and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
    let class = if named.is_empty() {
        default_priority_class(classes)
    } else {
        let found = classes.iter().find(|class| metadata::name(class) == named);
        Some(found.ok_or_else(|| format!("no PriorityClass with name {named} was found"))?)
    };
    let priority = class.and_then(|class| int_at(class, &["value"])).unwrap_or(0);
    if let Some(other) = said("priority").and_then(|said| said.as_i64()).filter(|said| *said != priority) {
        return Err(format!(
            "the integer value of priority ({other}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        ));
    }
    let policy = class.map_or(PREEMPTS, |class| str_at(class, &["preemptionPolicy"]));
    let policy = if policy.is_empty() { PREEMPTS } else { policy };
    let other = said("preemptionPolicy").and_then(|said| said.as_str().map(str::to_owned));
    if let Some(other) = other.filter(|other| other != policy) {
        return Err(format!(
            "the string value of PreemptionPolicy ({other}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        spec.insert("priorityClassName".into(), metadata::name(class).into());
    }
    spec.insert("priority".into(), priority.into());
    spec.insert("preemptionPolicy".into(), policy.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn class(name: &str, value: i64, global_default: bool) -> Value {
        let mut class = json!({"metadata": {"name": name}, "value": value, "globalDefault": global_default});
        PriorityClassStrategy.default(&mut class);
        class
    }

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn users_have_values_up_to_a_thousand_million_and_names_that_are_not_the_systems() {
        let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use \
                        only. error: ";
        for (class, expected) in [
            (class("low", -5, false), vec![]),
            (class("high", 1_000_000_000, true), vec![]),
            (class("system-node-critical", 2_000_001_000, false), vec![]),
            (
                class("higher", 1_000_000_001, false),
                vec![
                    "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"
                        .to_owned(),
                ],
            ),
            (
                class("system-mine", 1, false),
                vec![format!("{reserved}system-mine is not a known system priority class")],
            ),
            (
                class("system-cluster-critical", 7, false),
                vec![format!("{reserved}value of system-cluster-critical PriorityClass must be 2000000000")],
            ),
            (
                class("system-node-critical", 2_000_001_000, true),
                vec![format!("{reserved}globalDefault of system-node-critical PriorityClass must be false")],
            ),
        ] {
            assert_eq!(texts(&validate(&class)), expected);
        }
        let mut sometimes = class("c", 1, false);
        sometimes["preemptionPolicy"] = "Sometimes".into();
        assert_eq!(
            texts(&validate(&sometimes)),
            [
                "preemptionPolicy: Unsupported value: \"Sometimes\": supported values: \"PreemptLowerPriority\", \
                 \"Never\""
            ]
        );
    }

    #[test]
    fn value_and_policy_of_a_class_stay() {
        let old = class("c", 1, false);
        let mut new = class("c", 2, true);
        new["preemptionPolicy"] = "Never".into();
        assert_eq!(
            texts(&PriorityClassStrategy.validate_update(&new, &old)),
            [
                "value: Forbidden: may not be changed in an update.",
                "preemptionPolicy: Invalid value: \"Never\": field is immutable",
            ]
        );
        assert!(PriorityClassStrategy.validate_update(&class("c", 1, true), &old).is_empty());
    }

    #[test]
    fn only_one_class_is_the_default_and_of_two_the_smaller_counts() {
        let others = [class("a", 1, false), class("b", 9, true), class("c", 5, true)];
        assert_eq!(default_priority_class(&others).map(metadata::name), Some("c"));
        assert_eq!(
            admit_default(&class("new", 1, true), &others).unwrap_err(),
            "PriorityClass c is already marked as default. Only one default can exist"
        );
        assert_eq!(admit_default(&class("new", 1, false), &others), Ok(()));
        assert_eq!(admit_default(&class("c", 5, true), &others), Ok(()));
    }

    #[test]
    fn a_pod_gets_the_priority_of_its_class_and_may_say_no_other() {
        let mut never = class("low", -5, false);
        never["preemptionPolicy"] = "Never".into();
        let classes = [class("high", 7, false), never];
        let with_default = [classes.as_slice(), &[class("usual", 3, true)]].concat();
        let admitted = |spec: Value, classes: &[Value]| {
            let mut pod = json!({ "spec": spec });
            admit_pod(&mut pod, classes).map(|()| pod["spec"].clone())
        };
        for (spec, classes, expected) in [
            (json!({}), &classes[..], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"})),
            (
                json!({}),
                &with_default,
                json!({"priorityClassName": "usual", "priority": 3, "preemptionPolicy": "PreemptLowerPriority"}),
            ),
            (
                json!({"priorityClassName": "low", "priority": -5}),
                &with_default,
                json!({"priorityClassName": "low", "priority": -5, "preemptionPolicy": "Never"}),
            ),
        ] {
            assert_eq!(admitted(spec, classes), Ok(expected));
        }
        for (spec, expected) in [
            (json!({"priorityClassName": "none"}), "no PriorityClass with name none was found"),
            (
                json!({"priorityClassName": "high", "priority": 8}),
                "the integer value of priority (8) must not be provided in pod spec; priority admission controller \
                 computed 7 from the given PriorityClass name",
            ),
            (
                json!({"priority": 5}),
                "the integer value of priority (5) must not be provided in pod spec; priority admission controller \
                 computed 0 from the given PriorityClass name",
            ),
            (
                json!({"priorityClassName": "high", "preemptionPolicy": "Never"}),
                "the string value of PreemptionPolicy (Never) must not be provided in pod spec; priority admission \
                 controller computed PreemptLowerPriority from the given PriorityClass name",
            ),
        ] {
            assert_eq!(admitted(spec, &classes), Err(expected.to_owned()));
        }
    }

    #[test]
    fn the_table_shows_value_default_and_policy() {
        let row = catalogue::find("scheduling.k8s.io", "v1", "priorityclasses").unwrap();
        let names: Vec<_> = row.strategy.columns().iter().map(|column| column.name).collect();
        assert_eq!(names, ["Name", "Value", "Global-Default", "Age", "PreemptionPolicy"]);
        let mut object = class("high", 7, true);
        object["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z".into();
        let now = "2030-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(
            row.strategy.row(&object, now),
            [json!("high"), json!(7), json!(true), json!("60s"), json!("PreemptLowerPriority")]
        );
    }
}
