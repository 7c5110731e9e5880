//! The three kinds of patches: JSON (RFC 6902), merge (RFC 7386), strategic merge.

mod strategic;

use serde_json::{Map, Value};

use crate::catalogue::Resource;
use crate::schema;
use crate::status::{Reason, Status};

/// Most operations in one JSON patch.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Applies a JSON patch.
///
/// # Errors
/// 400 if it is no JSON patch, 413 if it is too long, 422 if it does not apply.
pub fn json(target: &Value, patch: &Value) -> Result<Value, Status> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(Status {
            code: 413,
            reason: Reason::RequestEntityTooLarge,
            message: format!(
                "Request entity too large: The allowed maximum operations in a JSON patch is \
                 {JSON_PATCH_OPERATIONS_MAX}, got {}",
                patch.0.len()
            ),
            details: None,
            continue_token: None,
        });
    }
    let mut patched = target.clone();
    // The same words for every cause are upstream's; the cause is added where it helps.
    json_patch::patch(&mut patched, &patch).map_err(|error| Status {
        code: 422,
        reason: Reason::Invalid,
        message: format!("the server rejected our request due to an error in our request: {error}"),
        details: Some(Box::default()),
        continue_token: None,
    })?;
    Ok(patched)
}

/// Applies a merge patch.
///
/// # Errors
/// 400 if the patch is not an object.
pub fn merge(target: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::Object(patch) = patch else { return Err(Status::bad_request("Invalid JSON Patch")) };
    let mut patched = target.clone();
    merge_into(&mut patched, patch);
    Ok(patched)
}

fn merge_into(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.shift_remove(key);
            }
            Value::Object(patch) => merge_into(target.entry(key).or_insert(Value::Null), patch),
            value => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Applies a strategic merge patch to an object of `resource`.
///
/// # Errors
/// 400 if the patch is malformed.
pub fn strategic(resource: &Resource, target: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request(
            "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}",
        ));
    };
    let graph = schema::graph();
    let root = graph.root(resource).unwrap_or(schema::Type::Any);
    strategic::apply(graph, &root, target, patch).map_err(|error| Status::bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches_follow_the_examples_of_rfc_7386() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(merge(&target, &patch).unwrap(), result);
        }
        assert_eq!(merge(&json!({}), &json!([])).unwrap_err().code, 400);
    }

    #[test]
    fn json_patches_apply_or_say_why_not() {
        let target = json!({"a": {"b": 1}});
        let patched = json_ok(&target, &json!([{"op": "replace", "path": "/a/b", "value": 2}]));
        assert_eq!(patched, json!({"a": {"b": 2}}));
        let error = json(&target, &json!([{"op": "test", "path": "/a/b", "value": 2}])).unwrap_err();
        assert_eq!((error.code, error.reason), (422, Reason::Invalid));
        let error = json(&target, &json!([{"op": "remove", "path": "/x"}])).unwrap_err();
        assert_eq!(error.code, 422);
        assert_eq!(json(&target, &json!({"op": "remove"})).unwrap_err().code, 400);
        assert_eq!(json(&target, &json!([{"op": "nonsense", "path": "/a"}])).unwrap_err().code, 400);
    }

    fn json_ok(target: &Value, patch: &Value) -> Value {
        json(target, patch).unwrap()
    }
}
