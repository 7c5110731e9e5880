//! Strategic merge patches: lists merge element by element where the API says so, and directives say what a
//! merge alone cannot.
//!
//! | directive | where | meaning |
//! | --- | --- | --- |
//! | `$patch: replace`, `delete`, `merge` | in an object | the object is replaced, removed, merged (the default) |
//! | `- $patch: replace` | an element of a list | the list is replaced by the other elements |
//! | `- $patch: delete` with the merge key | an element of a list | the element of that key is removed |
//! | `$deleteFromPrimitiveList/f` | beside `f` | these values are removed from `f` |
//! | `$setElementOrder/f` | beside `f` | the order of the elements that the patch knows of |
//! | `$retainKeys` | in an object | all other keys are removed before merging |

use serde_json::{Map, Value};

use crate::schema::merge_rules::MergeRule;
use crate::schema::{Graph, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// Why a patch cannot be applied; the words are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StrategicError {
    #[error("unknown patch type: {0}")]
    UnknownDirective(String),
    #[error("delete patch type with no merge key defined")]
    NoMergeKey,
    #[error("map: {element} does not contain declared merge key: {key}")]
    MissingMergeKey { element: String, key: String },
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    #[error("invalid patch format of setElementOrder list")]
    SetElementOrder,
    #[error("lists of lists are not supported")]
    ListOfLists,
}

type Result<T> = std::result::Result<T, StrategicError>;

pub(super) fn apply(graph: &Graph, kind: &Type, target: &Value, patch: &Map<String, Value>) -> Result<Value> {
    let target = target.as_object().cloned().unwrap_or_default();
    merge_object(graph, kind, target, patch).map(Value::Object)
}

/// What is known of the field `name` of an object of type `kind`.
fn field<'g>(graph: &'g Graph, kind: &'g Type, name: &str) -> (&'g Type, Option<&'static MergeRule>) {
    match kind {
        Type::Struct(index) => {
            graph.structs[*index].fields.get(name).map_or((&Type::Any, None), |f| (&f.kind, f.merge))
        }
        Type::Map(inner) => (inner, None),
        _ => (&Type::Any, None),
    }
}

fn merge_object(
    graph: &Graph,
    kind: &Type,
    mut target: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>> {
    match patch.get(PATCH) {
        None => {}
        Some(directive) => match directive.as_str() {
            Some("replace") => {
                let mut replacement = patch.clone();
                replacement.shift_remove(PATCH);
                return Ok(replacement);
            }
            Some("delete") => return Ok(Map::new()),
            Some("merge") => {}
            other => return Err(StrategicError::UnknownDirective(other.unwrap_or_default().to_owned())),
        },
    }
    if let Some(retained) = patch.get(RETAIN_KEYS) {
        let retained = retained.as_array().ok_or(StrategicError::RetainKeys)?;
        // A patch may not set what it does not retain.
        let retains = |key: &String| retained.iter().any(|k| k == key);
        if patch.iter().any(|(key, value)| !key.starts_with('$') && !value.is_null() && !retains(key)) {
            return Err(StrategicError::RetainKeys);
        }
        target.retain(|key, _| retains(key));
    }
    for (key, value) in patch {
        if key == PATCH || key == RETAIN_KEYS {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE_FROM) {
            let removed = value.as_array().ok_or(StrategicError::PrimitiveList)?;
            if let Some(Value::Array(list)) = target.get_mut(name) {
                list.retain(|element| !removed.contains(element));
            }
            continue;
        }
        if let Some(name) = key.strip_prefix(SET_ORDER) {
            let order = value.as_array().ok_or(StrategicError::SetElementOrder)?;
            // With the list itself in the patch too, ordering is part of merging it.
            if !patch.contains_key(name)
                && let Some(Value::Array(list)) = target.get_mut(name)
            {
                let (_, rule) = field(graph, kind, name);
                let server = list.clone();
                *list = in_order(std::mem::take(list), &server, order, merge_key(rule));
            }
            continue;
        }
        let (field_kind, rule) = field(graph, kind, key);
        match value {
            Value::Null => {
                target.shift_remove(key);
            }
            Value::Object(patch) => {
                let current = match target.get_mut(key) {
                    Some(Value::Object(current)) => std::mem::take(current),
                    _ => Map::new(),
                };
                let merged = merge_object(graph, field_kind, current, patch)?;
                if patch.get(PATCH).is_some_and(|d| d == "delete") {
                    target.shift_remove(key);
                } else {
                    target.insert(key.clone(), Value::Object(merged));
                }
            }
            Value::Array(patch_list) => {
                let order = match patch.get(&format!("{SET_ORDER}{key}")) {
                    Some(order) => Some(order.as_array().ok_or(StrategicError::SetElementOrder)?),
                    None => None,
                };
                let current = match target.get_mut(key) {
                    Some(Value::Array(list)) => std::mem::take(list),
                    _ => Vec::new(),
                };
                let element_kind = match field_kind {
                    Type::List(inner) => inner,
                    _ => &Type::Any,
                };
                let merged = merge_list(graph, element_kind, rule, current, patch_list, order)?;
                target.insert(key.clone(), Value::Array(merged));
            }
            scalar => {
                target.insert(key.clone(), scalar.clone());
            }
        }
    }
    Ok(target)
}

fn merge_key(rule: Option<&'static MergeRule>) -> &'static str {
    rule.map_or("", |rule| rule.patch_merge_key)
}

fn merge_list(
    graph: &Graph,
    kind: &Type,
    rule: Option<&'static MergeRule>,
    current: Vec<Value>,
    patch: &[Value],
    order: Option<&Vec<Value>>,
) -> Result<Vec<Value>> {
    if !rule.is_some_and(|rule| rule.patch_strategy.split(',').any(|s| s == "merge")) {
        return without_directives(graph, kind, patch);
    }
    if patch.iter().any(Value::is_array) {
        return Err(StrategicError::ListOfLists);
    }
    let key = merge_key(rule);
    if patch.iter().all(|element| !element.is_object()) && key.is_empty() {
        let server = current.clone();
        let mut merged = current;
        for element in patch {
            if !merged.contains(element) {
                merged.push(element.clone());
            }
        }
        return Ok(match order {
            Some(order) => in_order(merged, &server, order, key),
            None => merged,
        });
    }
    let replaces = |element: &Value| element.get(PATCH).is_some_and(|d| d == "replace");
    if patch.iter().any(replaces) {
        let rest: Vec<Value> = patch.iter().filter(|element| !replaces(element)).cloned().collect();
        return without_directives(graph, kind, &rest);
    }
    let server = current.clone();
    let mut merged = current;
    for element in patch {
        let Value::Object(element) = element else { return Err(StrategicError::NoMergeKey) };
        if key.is_empty() {
            return Err(StrategicError::NoMergeKey);
        }
        let identity = element.get(key).ok_or_else(|| StrategicError::MissingMergeKey {
            element: Value::Object(element.clone()).to_string(),
            key: key.to_owned(),
        })?;
        if element.get(PATCH).is_some_and(|d| d == "delete") {
            merged.retain(|other| other.get(key) != Some(identity));
            continue;
        }
        match merged.iter_mut().find(|other| other.get(key) == Some(identity)) {
            Some(Value::Object(other)) => {
                *other = merge_object(graph, kind, std::mem::take(other), element)?;
            }
            _ => merged.push(Value::Object(merge_object(graph, kind, Map::new(), element)?)),
        }
    }
    Ok(match order {
        Some(order) => in_order(merged, &server, order, key),
        None => merged,
    })
}

/// The elements of a list that a patch sets as a whole.
fn without_directives(graph: &Graph, kind: &Type, patch: &[Value]) -> Result<Vec<Value>> {
    patch
        .iter()
        .filter(|element| element.get(PATCH).is_none_or(|d| d != "delete"))
        .map(|element| match element {
            Value::Object(element) => merge_object(graph, kind, Map::new(), element).map(Value::Object),
            other => Ok(other.clone()),
        })
        .collect()
}

/// `merged`, with the elements named by `order` in that order, and those that only the server knows before
/// the element that they stood before.
fn in_order(merged: Vec<Value>, server: &[Value], order: &[Value], key: &str) -> Vec<Value> {
    let identity = |value: &Value| -> Option<Value> {
        if key.is_empty() { Some(value.clone()) } else { value.get(key).cloned() }
    };
    let position = |list: &[Value], value: &Value| {
        let wanted = identity(value);
        list.iter().position(|other| identity(other) == wanted)
    };
    let (mut named, server_only): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|value| position(order, value).is_some());
    named.sort_by_key(|value| position(order, value));
    let mut out = Vec::with_capacity(named.len() + server_only.len());
    let (mut left, mut right) = (server_only.into_iter().peekable(), named.into_iter().peekable());
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => {
                matches!((position(server, l), position(server, r)), (Some(l), Some(r)) if l < r)
            }
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::catalogue::find;
    use crate::patch::strategic;
    use serde_json::Value;

    fn pod() -> Value {
        json!({
            "metadata": {"labels": {"a": "1"}, "finalizers": ["x/a", "x/b"]},
            "spec": {
                "containers": [
                    {"name": "a", "image": "a:1", "env": [{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]},
                    {"name": "b", "image": "b:1", "args": ["1", "2"]},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [{"key": "t"}],
            }
        })
    }

    fn patched(patch: &Value) -> Value {
        strategic(find("", "v1", "pods").unwrap(), &pod(), patch).unwrap()
    }

    fn refused(patch: &Value) -> String {
        strategic(find("", "v1", "pods").unwrap(), &pod(), patch).unwrap_err().message
    }

    #[test]
    fn elements_merge_by_their_key() {
        let out = patched(&json!({"spec": {"containers": [
            {"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}
        ]}}));
        let names: Vec<&str> = out["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["image"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["a:1", "b:2", "c:1"]);
        assert_eq!(out["spec"]["containers"][1]["args"], json!(["1", "2"]));
    }

    #[test]
    fn atomic_lists_and_args_are_replaced() {
        let out = patched(&json!({"spec": {
            "tolerations": [{"key": "u"}], "containers": [{"name": "b", "args": ["3"]}]
        }}));
        assert_eq!(out["spec"]["tolerations"], json!([{"key": "u"}]));
        assert_eq!(out["spec"]["containers"][1]["args"], json!(["3"]));
    }

    #[test]
    fn directives_delete_and_replace() {
        let out = patched(&json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}));
        assert_eq!(out["spec"]["containers"].as_array().unwrap().len(), 1);
        let out = patched(&json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}));
        assert_eq!(out["spec"]["containers"], json!([{"name": "z"}]));
        let out = patched(&json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}));
        assert_eq!(out["metadata"]["labels"], json!({"b": "2"}));
        let out = patched(&json!({"metadata": {"labels": {"a": null, "b": "2"}}}));
        assert_eq!(out["metadata"]["labels"], json!({"b": "2"}));
        let out = patched(&json!({"spec": {"containers": [
            {"name": "a", "env": [{"name": "E", "$patch": "delete"}, {"name": "G", "value": "3"}]}
        ]}}));
        assert_eq!(
            out["spec"]["containers"][0]["env"],
            json!([{"name": "F", "value": "2"}, {"name": "G", "value": "3"}])
        );
    }

    #[test]
    fn lists_of_values_merge_and_shrink() {
        let out = patched(&json!({"metadata": {
            "finalizers": ["x/b", "x/c"], "$deleteFromPrimitiveList/finalizers": ["x/a"]
        }}));
        assert_eq!(out["metadata"]["finalizers"], json!(["x/b", "x/c"]));
    }

    #[test]
    fn order_is_that_of_the_patch_and_the_servers_own_keep_their_place() {
        let out = patched(&json!({"spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}],
            "containers": [{"name": "c", "image": "c:1"}]
        }}));
        let names: Vec<&str> = out["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["c", "a", "b"]);
        let out = patched(&json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}));
        assert_eq!(out["spec"]["containers"][0]["name"], "b");
    }

    #[test]
    fn retain_keys_switch_a_union() {
        let out = patched(&json!({"spec": {"volumes": [
            {"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}
        ]}}));
        assert_eq!(out["spec"]["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
    }

    #[test]
    fn malformed_patches_are_refused() {
        assert!(
            refused(&json!({"spec": {"containers": [{"image": "x"}]}}))
                .ends_with("does not contain declared merge key: name")
        );
        assert_eq!(refused(&json!({"spec": {"$patch": "x"}})), "unknown patch type: x");
        assert_eq!(
            refused(&json!({"metadata": {"$deleteFromPrimitiveList/finalizers": 1}})),
            "invalid patch format of primitive list"
        );
    }
}
