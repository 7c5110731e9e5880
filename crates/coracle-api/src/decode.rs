//! From bytes to a tree: JSON and YAML bodies, with their duplicate keys noticed.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::catalogue::Resource;
use crate::field::go_quote;
use crate::status::Status;

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The tree; of a key that stands twice, the last value.
    pub value: Value,
    /// A complaint for each key that stands twice, in the words `duplicate field "spec.foo"`.
    pub duplicates: Vec<String>,
}

/// Decodes JSON.
///
/// # Errors
/// What is wrong with the text, in upstream's words where they are the same for every decoder.
pub fn json(bytes: &[u8]) -> Result<Decoded, String> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { duplicates: &mut duplicates, path: Path::Root }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| json_complaint(bytes, &error))?;
    Ok(Decoded { value, duplicates })
}

/// Decodes one YAML document.
///
/// # Errors
/// What is wrong with the text.
pub fn yaml(bytes: &[u8]) -> Result<Decoded, String> {
    if flow_depth(bytes) > YAML_DEPTH {
        return Err(format!("error converting YAML to JSON: yaml: exceeded max depth of {YAML_DEPTH}"));
    }
    let mut duplicates = Vec::new();
    let deserializer = serde_yaml_ng::Deserializer::from_slice(bytes);
    let value = Seed { duplicates: &mut duplicates, path: Path::Root }
        .deserialize(deserializer)
        .map_err(|error| format!("error converting YAML to JSON: yaml: {error}"))?;
    Ok(Decoded { value, duplicates })
}

/// How deep the brackets of a YAML text may be: far beyond any object. The parser looks at all open brackets for
/// each token, so that the time it takes grows with their square.
const YAML_DEPTH: usize = 1000;

/// The most brackets that are open at once. Those in strings count too, which is the safe side.
fn flow_depth(bytes: &[u8]) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in bytes {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

fn json_complaint(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    // Columns count bytes of a line, from one; lines count from one.
    let offset: usize =
        bytes.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let at = (offset + error.column()).saturating_sub(1);
    match bytes.get(at) {
        Some(byte) if error.is_syntax() && byte.is_ascii_graphic() => {
            format!("invalid character '{}' looking for beginning of value", *byte as char)
        }
        _ => error.to_string(),
    }
}

/// The refusal of a body that could not be decoded at all.
#[must_use]
pub fn unrecognized(resource: &Resource, body: &[u8], complaint: &str) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse \
         error: {complaint} ({})",
        resource.kind,
        summary(body)
    ))
}

fn summary(body: &[u8]) -> String {
    const MAX: usize = 30;
    let shown = &body[..body.len().min(MAX)];
    let dots = if body.len() > MAX { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{dots}", String::from_utf8_lossy(shown)),
        Some(_) => format!("{}{dots}", shown.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

/// Checks `apiVersion` and `kind` of a body sent to `resource` and writes them where they were left out.
///
/// # Errors
/// 400 if they say something else.
pub fn check_type(resource: &Resource, object: &mut Value) -> Result<(), Status> {
    let expected = resource.api_version();
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse \
             error: json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \
             \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            resource.kind,
            match object {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                _ => "number",
            }
        )));
    };
    let said = |map: &Map<String, Value>, key: &str| {
        map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (api_version, kind) = (said(map, "apiVersion"), said(map, "kind"));
    if !kind.is_empty() && kind != resource.kind {
        let version = if api_version.is_empty() { expected } else { api_version };
        let short = version.rsplit('/').next().unwrap_or_default().to_owned();
        return Err(Status::bad_request(format!(
            "{kind} in version {} cannot be handled as a {}: converting ({short}.{kind}) to ({}.{}): unknown \
             conversion",
            go_quote(&short),
            resource.kind,
            if resource.group.is_empty() { "core" } else { resource.version },
            resource.kind,
        )));
    }
    if !api_version.is_empty() && api_version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    // Type first, as everyone writes objects.
    let rest = std::mem::take(map);
    map.insert("kind".into(), resource.kind.into());
    map.insert("apiVersion".into(), expected.into());
    map.extend(rest.into_iter().filter(|(key, _)| key != "kind" && key != "apiVersion"));
    Ok(())
}

/// Where in the tree a value stands, spelled out only when a key is doubled.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Seed<'a> {
    duplicates: &'a mut Vec<String>,
    path: Path<'a>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let path = Path::Index(&self.path, out.len());
            match seq.next_element_seed(Seed { duplicates: self.duplicates, path })? {
                Some(value) => out.push(value),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(Key(key)) = map.next_key()? {
            let path = Path::Field(&self.path, &key);
            if out.contains_key(&key) {
                let complaint = format!("duplicate field {}", go_quote(&path.to_string()));
                if !self.duplicates.contains(&complaint) {
                    self.duplicates.push(complaint);
                }
            }
            let value = map.next_value_seed(Seed { duplicates: self.duplicates, path })?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// A key; YAML has numbers and truth values there too.
struct Key(String);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, value: &str) -> Result<Key, E> {
                Ok(Key(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Key, E> {
                Ok(Key(value))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Key, E> {
                Err(E::custom("a key may not be null"))
            }
        }

        deserializer.deserialize_any(KeyVisitor).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalogue::find;

    #[test]
    fn duplicate_keys_are_named_by_their_paths() {
        let decoded = json(br#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": 3}"#).unwrap();
        assert_eq!(decoded.value, json!({"a": 3, "b": [{"c": 2}]}));
        assert_eq!(decoded.duplicates, ["duplicate field \"b[0].c\"", "duplicate field \"a\""]);
        let decoded = yaml(b"a: 1\nb:\n- c: 1\n  c: 2\n1: x\n").unwrap();
        assert_eq!(decoded.value, json!({"a": 1, "b": [{"c": 2}], "1": "x"}));
        assert_eq!(decoded.duplicates, ["duplicate field \"b[0].c\""]);
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in ["", "{", "{\"a\":}", "nul", "{} {}", "\u{1}", "[1,]"] {
            assert!(json(text.as_bytes()).is_err(), "{text}");
        }
        assert!(json(b"\"\xff\"").is_err());
        assert!(json("[".repeat(100_000).as_bytes()).is_err());
        assert!(yaml(b"a: [").is_err());
        let deep = yaml("{a: ".repeat(200_000).as_bytes()).unwrap_err();
        assert_eq!(deep, "error converting YAML to JSON: yaml: exceeded max depth of 1000");
        assert_eq!(json(b"{").unwrap_err(), "unexpected end of JSON input");
        assert_eq!(json(b"{\"a\": x}").unwrap_err(), "invalid character 'x' looking for beginning of value");
    }

    #[test]
    fn the_type_of_a_body_must_be_the_resources() {
        let pods = find("", "v1", "pods").unwrap();
        let mut object = json!({"metadata": {}});
        check_type(pods, &mut object).unwrap();
        assert_eq!(object.to_string(), r#"{"kind":"Pod","apiVersion":"v1","metadata":{}}"#);
        let message = |mut object: Value| check_type(pods, &mut object).unwrap_err().message;
        assert_eq!(
            message(json!({"apiVersion": "v2", "kind": "Pod"})),
            "the API version in the data (v2) does not match the expected API version (v1)"
        );
        assert!(
            message(json!({"kind": "Service"}))
                .starts_with("Service in version \"v1\" cannot be handled as a Pod")
        );
        assert!(message(json!([])).starts_with("the object provided is unrecognized (must be of type Pod)"));
    }
}
