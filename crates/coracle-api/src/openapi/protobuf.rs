//! The v2 document in the protobuf form of gnostic's `openapi.v2.Document`, which is the only one that kubectl asks for.
//!
//! Only what the documents of this crate contain is encoded; a test holds that nothing is left out.

use serde_json::{Map, Value};

/// Encodes a document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    each(document, |key, value| match key {
        "swagger" => out.text(1, value),
        "info" => out.message(2, info(value)),
        "paths" => out.message(8, paths(value)),
        "definitions" => out.message(9, named_schemas(value)),
        _ => out.left_out(key),
    });
    out.0
}

/// The fields of one message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        loop {
            let low = u8::try_from(value & 0x7f).unwrap_or_default();
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }

    fn bytes(&mut self, number: u64, bytes: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, number: u64, value: &Value) {
        self.bytes(number, value.as_str().unwrap_or_default().as_bytes());
    }

    fn texts(&mut self, number: u64, values: &Value) {
        for value in values.as_array().into_iter().flatten() {
            self.text(number, value);
        }
    }

    fn flag(&mut self, number: u64, value: &Value) {
        self.varint(number << 3);
        self.varint(u64::from(value.as_bool().unwrap_or_default()));
    }

    fn message(&mut self, number: u64, message: Message) {
        self.bytes(number, &message.0);
    }

    /// A message that has a name beside it, as entries of maps are sent.
    fn named(&mut self, number: u64, name: &str, message: Message) {
        let mut entry = Message::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, message);
        self.message(number, entry);
    }

    /// A vendor extension: its value goes as YAML, which JSON is.
    fn extension(&mut self, number: u64, key: &str, value: &Value) {
        let mut any = Message::default();
        any.bytes(2, value.to_string().as_bytes());
        self.named(number, key, any);
    }

    /// Called for what this encoder does not know: a mistake of this crate, found by its tests.
    #[expect(clippy::unused_self, reason = "reads as what happens to the message")]
    fn left_out(&mut self, key: &str) {
        debug_assert!(false, "{key} has no place in the protobuf form");
    }
}

fn each<'a>(value: &'a Value, mut visit: impl FnMut(&'a str, &'a Value)) {
    for (key, value) in value.as_object().into_iter().flat_map(Map::iter) {
        visit(key, value);
    }
}

/// A message that holds another one as its only field, such as a choice of several.
fn wrapped(number: u64, inner: Message) -> Message {
    let mut out = Message::default();
    out.message(number, inner);
    out
}

fn info(value: &Value) -> Message {
    let mut out = Message::default();
    each(value, |key, value| match key {
        "title" => out.text(1, value),
        "version" => out.text(2, value),
        _ => out.left_out(key),
    });
    out
}

fn paths(value: &Value) -> Message {
    let mut out = Message::default();
    each(value, |path, item| {
        let mut operations = Message::default();
        each(item, |method, value| {
            let number = match method {
                "get" => 2,
                "put" => 3,
                "post" => 4,
                "delete" => 5,
                "options" => 6,
                "head" => 7,
                "patch" => 8,
                _ => return operations.left_out(method),
            };
            operations.message(number, operation(value));
        });
        out.named(2, path, operations);
    });
    out
}

fn operation(value: &Value) -> Message {
    let mut out = Message::default();
    each(value, |key, value| match key {
        "description" => out.text(3, value),
        "operationId" => out.text(5, value),
        "produces" => out.texts(6, value),
        "consumes" => out.texts(7, value),
        "parameters" => {
            for value in value.as_array().into_iter().flatten() {
                // A parameter that is written out, not a reference to one.
                out.message(8, wrapped(1, parameter(value)));
            }
        }
        "responses" => out.message(9, responses(value)),
        _ if key.starts_with("x-") => out.extension(13, key, value),
        _ => out.left_out(key),
    });
    out
}

fn parameter(value: &Value) -> Message {
    let mut out = Message::default();
    let place = value.get("in").and_then(Value::as_str).unwrap_or_default();
    if place == "body" {
        each(value, |key, value| match key {
            "description" => out.text(1, value),
            "name" => out.text(2, value),
            "in" => out.text(3, value),
            "required" => out.flag(4, value),
            "schema" => out.message(5, schema(value)),
            _ => out.left_out(key),
        });
        return wrapped(1, out);
    }
    // Query parameters have one field more, `allowEmptyValue`, before the type.
    let (choice, kind, unique) = if place == "query" { (3, 6, 20) } else { (4, 5, 19) };
    each(value, |key, value| match key {
        "required" => out.flag(1, value),
        "in" => out.text(2, value),
        "description" => out.text(3, value),
        "name" => out.text(4, value),
        "type" => out.text(kind, value),
        "uniqueItems" => out.flag(unique, value),
        _ => out.left_out(key),
    });
    wrapped(2, wrapped(choice, out))
}

fn responses(value: &Value) -> Message {
    let mut out = Message::default();
    each(value, |code, value| {
        let mut response = Message::default();
        each(value, |key, value| match key {
            "description" => response.text(1, value),
            "schema" => response.message(2, wrapped(1, schema(value))),
            _ => response.left_out(key),
        });
        out.named(1, code, wrapped(1, response));
    });
    out
}

fn named_schemas(value: &Value) -> Message {
    let mut out = Message::default();
    each(value, |name, value| out.named(1, name, schema(value)));
    out
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    each(value, |key, value| match key {
        "$ref" => out.text(1, value),
        "format" => out.text(2, value),
        "title" => out.text(3, value),
        "description" => out.text(4, value),
        "required" => out.texts(19, value),
        "additionalProperties" => out.message(21, wrapped(1, schema(value))),
        "type" => {
            let mut kinds = Message::default();
            kinds.text(1, value);
            out.message(22, kinds);
        }
        "items" => out.message(23, wrapped(1, schema(value))),
        "properties" => out.message(25, named_schemas(value)),
        _ if key.starts_with("x-") => out.extension(31, key, value),
        _ => out.left_out(key),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The fields of a message: number and bytes, or number and varint in its own bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            value
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let length = varint(&mut bytes);
            if tag & 7 == 0 {
                found.push((tag >> 3, length.to_be_bytes().to_vec()));
                continue;
            }
            let (field, rest) = bytes.split_at(usize::try_from(length).unwrap());
            found.push((tag >> 3, field.to_vec()));
            bytes = rest;
        }
        found
    }

    fn field(bytes: &[u8], number: u64) -> Vec<u8> {
        fields(bytes).into_iter().find(|(n, _)| *n == number).map(|(_, bytes)| bytes).unwrap_or_default()
    }

    #[test]
    fn a_document_has_its_fields_under_the_numbers_of_gnostic() {
        let long = "x".repeat(300);
        let encoded = document(&json!({
            "swagger": "2.0",
            "info": {"title": "t", "version": "v"},
            "paths": {"/p": {"patch": {
                "parameters": [
                    {"name": "dryRun", "in": "query", "type": "string", "uniqueItems": true},
                    {"name": "name", "in": "path", "type": "string", "required": true},
                    {"name": "body", "in": "body", "schema": {"$ref": "#/definitions/A"}},
                ],
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/A"}}},
                "x-kubernetes-action": "patch",
            }}},
            "definitions": {"A": {"description": long, "type": "object", "required": ["a"], "properties": {
                "a": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "b": {"additionalProperties": {"type": "string"}},
            }}},
        }));
        assert_eq!(field(&encoded, 1), b"2.0");
        assert_eq!(fields(&field(&encoded, 2)), [(1, b"t".to_vec()), (2, b"v".to_vec())]);
        let path = field(&field(&encoded, 8), 2);
        assert_eq!(field(&path, 1), b"/p");
        let patch = field(&field(&path, 2), 8);
        let parameters: Vec<_> = fields(&patch).into_iter().filter(|(number, _)| *number == 8).collect();
        assert_eq!(parameters.len(), 3);
        let query = field(&field(&field(&parameters[0].1, 1), 2), 3);
        assert_eq!((field(&query, 4), field(&query, 6)), (b"dryRun".to_vec(), b"string".to_vec()));
        let in_path = field(&field(&field(&parameters[1].1, 1), 2), 4);
        assert_eq!((field(&in_path, 4), field(&in_path, 5)), (b"name".to_vec(), b"string".to_vec()));
        let body = field(&field(&parameters[2].1, 1), 1);
        assert_eq!(field(&field(&body, 5), 1), b"#/definitions/A");
        let response = field(&field(&patch, 9), 1);
        assert_eq!(field(&response, 1), b"200");
        let response = field(&field(&response, 2), 1);
        assert_eq!(field(&field(&field(&response, 2), 1), 1), b"#/definitions/A");
        let extension = field(&patch, 13);
        assert_eq!(field(&extension, 1), b"x-kubernetes-action");
        assert_eq!(field(&field(&extension, 2), 2), b"\"patch\"");

        let a = field(&field(&field(&encoded, 9), 1), 2);
        assert_eq!(field(&a, 4), long.as_bytes());
        assert_eq!((field(&a, 19), field(&field(&a, 22), 1)), (b"a".to_vec(), b"object".to_vec()));
        let properties = fields(&field(&a, 25));
        let (list, map) = (field(&properties[0].1, 2), field(&properties[1].1, 2));
        assert_eq!(field(&field(&field(&list, 23), 1), 22), [b"\x0a\x06string".as_slice()].concat());
        assert_eq!(field(&field(&list, 31), 1), b"x-kubernetes-list-type");
        assert_eq!(field(&field(&field(&map, 21), 1), 22), [b"\x0a\x06string".as_slice()].concat());
    }

    #[test]
    fn the_published_document_is_encoded_as_a_whole() {
        let encoded = &super::super::v2_protobuf().bytes;
        let published: Value = serde_json::from_slice(&super::super::v2().bytes).unwrap();
        for (number, count) in [(8, "paths"), (9, "definitions")] {
            let entries = fields(&field(encoded, number)).len();
            assert_eq!(entries, published[count].as_object().unwrap().len(), "{count}");
        }
    }
}
