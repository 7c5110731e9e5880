//! The stored form of an object: JSON, encoded once, with a head of known shape.
//!
//! Stored bytes begin `{"apiVersion":A,"kind":K,"metadata":{` and hold no `resourceVersion`: the store assigns it
//! after the bytes are made. Whoever sends the object splices it in right behind the head. Nothing is decoded for
//! that, and metadata is never empty (there is a name), so a comma always follows.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use coracle_store::Revision;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

const METADATA: &[u8] = br#""metadata":{"#;

/// Bytes that do not have the stored form: the store was written by something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stored object is not in the form that this server writes")]
pub(crate) struct NotAnObject;

/// Encodes an object for the store.
pub(crate) fn encode(object: &Value) -> Bytes {
    let empty = Map::new();
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(br#"{"apiVersion":"#);
    write_json(&mut out, object.get("apiVersion").unwrap_or(&Value::Null));
    out.extend_from_slice(br#","kind":"#);
    write_json(&mut out, object.get("kind").unwrap_or(&Value::Null));
    out.push(b',');
    out.extend_from_slice(METADATA);
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut first = true;
    for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
        member(&mut out, key, value, &mut first);
    }
    out.push(b'}');
    for (key, value) in object.as_object().unwrap_or(&empty) {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            member(&mut out, key, value, &mut false);
        }
    }
    out.push(b'}');
    Bytes::from(out)
}

fn member(out: &mut Vec<u8>, key: &str, value: &Value, first: &mut bool) {
    if !*first {
        out.push(b',');
    }
    *first = false;
    write_json(out, key);
    out.push(b':');
    write_json(out, value);
}

fn write_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("texts and trees serialize, and memory takes them");
}

/// Where the head of `stored` ends, which is where the revision goes.
pub(crate) fn head_len(stored: &[u8]) -> Result<usize, NotAnObject> {
    // apiVersion and kind come from the catalogue: the first match is the member, not a text that looks like it.
    stored
        .windows(METADATA.len())
        .take(512)
        .position(|window| window == METADATA)
        .map(|at| at + METADATA.len())
        .ok_or(NotAnObject)
}

/// Appends `stored` as a complete object with its revision.
pub(crate) fn write_object(out: &mut Vec<u8>, stored: &[u8], revision: Revision) -> Result<(), NotAnObject> {
    let head = head_len(stored)?;
    out.extend_from_slice(&stored[..head]);
    write_tail(out, &stored[head..], revision);
    Ok(())
}

/// Appends the metadata of `stored` alone, with its revision, as this version of meta.k8s.io has it.
pub(crate) fn write_partial(
    out: &mut Vec<u8>,
    stored: &[u8],
    revision: Revision,
    version: &str,
) -> Result<(), NotAnObject> {
    let tail = &stored[head_len(stored)?..];
    let end = end_of_object(tail).ok_or(NotAnObject)?;
    out.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/"#);
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(br#"","metadata":{"#);
    write_tail(out, &tail[..end], revision);
    out.push(b'}');
    Ok(())
}

/// The length of the rest of a JSON object, up to and with the brace that closes it. What was stored is well-formed.
fn end_of_object(rest: &[u8]) -> Option<usize> {
    let (mut depth, mut in_text, mut escaped) = (1usize, false, false);
    for (index, byte) in rest.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => {
                depth -= 1;
                if depth == 0 {
                    return Some(index + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Appends `stored` as an item of a list, which carries no type of its own, as upstream's typed lists do.
pub(crate) fn write_item(out: &mut Vec<u8>, stored: &[u8], revision: Revision) -> Result<(), NotAnObject> {
    let head = head_len(stored)?;
    out.push(b'{');
    out.extend_from_slice(METADATA);
    write_tail(out, &stored[head..], revision);
    Ok(())
}

fn write_tail(out: &mut Vec<u8>, tail: &[u8], revision: Revision) {
    out.extend_from_slice(format!(r#""resourceVersion":"{revision}""#).as_bytes());
    if tail.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(tail);
}

/// The object as a tree, with its revision.
pub(crate) fn decode(stored: &[u8], revision: Revision) -> Result<Value, NotAnObject> {
    let mut object: Value = serde_json::from_slice(stored).map_err(|_| NotAnObject)?;
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).ok_or(NotAnObject)?;
    metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    Ok(object)
}

/// The text at `path`, whose parts are divided by dots, read without decoding the rest.
pub(crate) fn text_at(stored: &[u8], path: &str) -> Option<String> {
    let mut found = None;
    let mut reader = serde_json::Deserializer::from_slice(stored);
    // Reading stops with an error as soon as the text is found.
    let _ = At { path, found: &mut found }.deserialize(&mut reader);
    found
}

struct At<'a> {
    path: &'a str,
    found: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (first, rest) = self.path.split_once('.').unwrap_or((self.path, ""));
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key != first {
                map.next_value::<IgnoredAny>()?;
            } else if rest.is_empty() {
                *self.found = Some(map.next_value()?);
                return Err(serde::de::Error::custom("found"));
            } else {
                return map.next_value_seed(At { path: rest, found: self.found });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({"kind": "Pod", "metadata": {"resourceVersion": "3", "name": "a\"metadata\":{", "labels": {"x": "y"}},
               "spec": {"metadata": {}}, "apiVersion": "v1"})
    }

    #[test]
    fn the_head_is_fixed_and_the_revision_is_spliced_behind_it() {
        let stored = encode(&pod());
        assert!(stored.starts_with(br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"#), "{stored:?}");
        let mut sent = Vec::new();
        write_object(&mut sent, &stored, Revision(42)).unwrap();
        let decoded: Value = serde_json::from_slice(&sent).unwrap();
        let mut expected = pod();
        expected["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(decoded, expected);
        assert_eq!(decode(&stored, Revision(42)).unwrap(), expected);
    }

    #[test]
    fn items_of_lists_carry_no_type() {
        let mut out = Vec::new();
        write_item(&mut out, &encode(&pod()), Revision(7)).unwrap();
        let item: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(item.get("kind"), None);
        assert_eq!(item["metadata"]["resourceVersion"], "7");
        assert_eq!(item["spec"], pod()["spec"]);
    }

    #[test]
    fn one_text_is_read_without_the_rest() {
        let at = |object: Value, path: &str| text_at(&encode(&object), path);
        let pod = json!({ "metadata": { "nodeName": "no" }, "spec": { "a": [{ "nodeName": "no" }], "nodeName": "n\"1" } });
        assert_eq!(at(pod.clone(), "spec.nodeName").as_deref(), Some("n\"1"));
        assert_eq!(at(pod.clone(), "spec.missing"), None);
        assert_eq!(at(pod.clone(), "spec.a"), None, "not a text");
        assert_eq!(at(pod, "spec.nodeName.deeper"), None);
        assert_eq!(at(json!({ "spec": null }), "spec.nodeName"), None);
        assert_eq!(text_at(b"not json", "spec.nodeName"), None);
    }

    #[test]
    fn metadata_alone_is_cut_out_of_what_is_stored() {
        let mut object = pod();
        object["metadata"]["annotations"] = json!({"a": "}\\\"}{", "b": "\\", "c": ""});
        object["metadata"]["finalizers"] = json!(["x/y"]);
        let stored = encode(&object);
        let mut sent = Vec::new();
        write_partial(&mut sent, &stored, Revision(42), "v1").unwrap();
        let decoded: Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!(decoded, crate::read::partial(&decode(&stored, Revision(42)).unwrap(), "v1"));
        assert!(write_partial(&mut Vec::new(), &stored[..stored.len() - 80], Revision(1), "v1").is_err());
    }

    #[test]
    fn foreign_bytes_are_an_error_not_a_panic() {
        assert_eq!(write_object(&mut Vec::new(), b"not json", Revision(1)), Err(NotAnObject));
        assert_eq!(decode(b"[]", Revision(1)), Err(NotAnObject));
    }
}
