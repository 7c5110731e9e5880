//! Request bodies in the protobuf form, which `kubectl create configmap` and other typed clients send.
//!
//! A body is turned into the same tree that JSON gives and goes the same way from there. What the numbers on the wire
//! mean stands in `fields.txt`, one line for each message. Answers are JSON: every client that sends this
//! form accepts it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::{Timestamp, Value};
use serde_json::{Map, Number, json};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting; no kind comes near it.
const DEPTH_MAX: usize = 32;

/// Why a body is not what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoPrefix,
    #[error("unexpected EOF")]
    CutShort,
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WrongType { field: String, wire: u64 },
    #[error("proto: illegal wireType {0}")]
    IllegalType(u64),
    #[error("proto: field {0} is not valid UTF-8")]
    NotText(String),
    #[error("proto: messages are nested too deeply")]
    TooDeep,
    #[error("no kind {0:?} is registered")]
    UnknownKind(String),
    #[error("embedded JSON: {0}")]
    Json(String),
}

/// How a field repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    /// Always sent: its zero means that nothing was said.
    Plain,
    /// Sent only if it was said, also if it is zero.
    Optional,
    Repeated,
    Map,
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    count: Count,
    kind: &'static str,
}

type Messages = BTreeMap<&'static str, BTreeMap<u64, Field>>;

static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let lines = include_str!("protobuf/fields.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (message, fields) = line.split_once(':')?;
            let fields = fields.split(';').filter_map(|field| {
                let mut words = field.split_whitespace();
                let number = words.next()?.parse().ok()?;
                let name = words.next()?;
                let kind = words.next()?;
                let count = match kind.as_bytes().first()? {
                    b'?' => Count::Optional,
                    b'*' => Count::Repeated,
                    b'%' => Count::Map,
                    _ => Count::Plain,
                };
                Some((number, Field { name, count, kind: kind.trim_start_matches(['?', '*', '%']) }))
            });
            Some((message, fields.collect()))
        })
        .collect()
});

/// Decodes a body with its envelope; `message` is what it should hold, such as `Pod`.
pub(crate) fn decode(body: &[u8], message: &str) -> Result<Value, Malformed> {
    let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(Malformed::NoPrefix)?);
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = Default::default();
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => {
                let mut reader = Reader(wire.bytes("typeMeta")?);
                while let Some((number, wire)) = reader.next()? {
                    match number {
                        1 => api_version = wire.text("apiVersion")?,
                        2 => kind = wire.text("kind")?,
                        _ => {}
                    }
                }
            }
            2 => raw = wire.bytes("raw")?,
            _ => {}
        }
    }
    let (name, _) =
        MESSAGES.get_key_value(message).ok_or_else(|| Malformed::UnknownKind(message.to_owned()))?;
    // A body of another kind is read as far as its type, which the caller refuses in words of its own.
    let same = kind.is_empty() || message.rsplit('.').next() == Some(kind.as_str());
    let mut object = Map::new();
    for (key, said) in [("kind", kind), ("apiVersion", api_version)] {
        if !said.is_empty() {
            object.insert(key.to_owned(), said.into());
        }
    }
    if same && let Value::Object(fields) = read_message(name, raw, 0)? {
        object.extend(fields);
    }
    Ok(Value::Object(object))
}

/// A value as it stands on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn wrong(&self, field: &str) -> Malformed {
        let wire = match self {
            Wire::Varint(_) => 0,
            Wire::Fixed64(_) => 1,
            Wire::Bytes(_) => 2,
            Wire::Fixed32 => 5,
        };
        Malformed::WrongType { field: field.to_owned(), wire }
    }

    fn bytes(self, field: &str) -> Result<&'a [u8], Malformed> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            other => Err(other.wrong(field)),
        }
    }

    fn text(self, field: &str) -> Result<String, Malformed> {
        let bytes = self.bytes(field)?.to_vec();
        String::from_utf8(bytes).map_err(|_| Malformed::NotText(field.to_owned()))
    }

    fn integer(self, field: &str) -> Result<i64, Malformed> {
        match self {
            // Negative numbers are sent as the 64 bits of their two's complement.
            Wire::Varint(bits) => Ok(i64::from_le_bytes(bits.to_le_bytes())),
            other => Err(other.wrong(field)),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed::CutShort)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            other => return Err(Malformed::IllegalType(other)),
        };
        Ok(Some((tag >> 3, wire)))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::CutShort)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed::CutShort)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Reads a message; null if it says nothing.
fn read_message(message: &'static str, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed::TooDeep);
    }
    if let Some(value) = read_special(message, bytes)? {
        return Ok(value);
    }
    let fields = MESSAGES.get(message).ok_or_else(|| Malformed::UnknownKind(message.to_owned()))?;
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        // Fields of newer versions are dropped, as upstream's server drops them.
        let Some(field) = fields.get(&number) else { continue };
        match field.count {
            Count::Repeated => {
                let value = read_value(field, wire, depth)?;
                let value = if value.is_null() { json!({}) } else { value };
                let list = object.entry(field.name).or_insert_with(|| json!([]));
                list.as_array_mut().into_iter().for_each(|list| list.push(value.clone()));
            }
            Count::Map => {
                let (key, value) = read_entry(field, wire.bytes(field.name)?, depth)?;
                object.entry(field.name).or_insert_with(|| json!({}))[key] = value;
            }
            Count::Optional | Count::Plain => {
                let value = read_value(field, wire, depth)?;
                if field.name == "@" {
                    if let Value::Object(inner) = value {
                        object.extend(inner);
                    }
                } else if field.count == Count::Optional && value.is_null() {
                    object.insert(field.name.to_owned(), json!({}));
                } else if field.count == Count::Optional || !is_zero(&value) {
                    object.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(if object.is_empty() { Value::Null } else { Value::Object(object) })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty(),
    }
}

fn read_value(field: &Field, wire: Wire<'_>, depth: usize) -> Result<Value, Malformed> {
    Ok(match field.kind {
        "s" => wire.text(field.name)?.into(),
        "b" => (wire.integer(field.name)? != 0).into(),
        "i" => wire.integer(field.name)?.into(),
        "y" => STANDARD.encode(wire.bytes(field.name)?).into(),
        "d" => match wire {
            Wire::Fixed64(bits) => Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number),
            other => return Err(other.wrong(field.name)),
        },
        message => read_message(message, wire.bytes(field.name)?, depth + 1)?,
    })
}

/// An entry of a map is a message of a key and a value.
fn read_entry(field: &Field, bytes: &[u8], depth: usize) -> Result<(String, Value), Malformed> {
    let mut reader = Reader(bytes);
    let (mut key, mut value) = (String::new(), Value::Null);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => key = wire.text(field.name)?,
            2 => value = read_value(field, wire, depth)?,
            _ => {}
        }
    }
    if value.is_null() && matches!(field.kind, "s" | "y") {
        value = "".into();
    }
    Ok((key, value))
}

/// Messages that JSON writes as something else than an object.
fn read_special(message: &str, bytes: &[u8]) -> Result<Option<Value>, Malformed> {
    if message == "ExtraValue" {
        let (mut reader, mut items) = (Reader(bytes), Vec::new());
        while let Some((number, wire)) = reader.next()? {
            if number == 1 {
                items.push(Value::from(wire.text(message)?));
            }
        }
        return Ok(Some(items.into()));
    }
    if !matches!(
        message,
        "Time" | "MicroTime" | "Quantity" | "IntOrString" | "FieldsV1" | "RawExtension" | "Duration"
    ) {
        return Ok(None);
    }
    let (mut numbers, mut text, mut raw) = ([0i64; 4], String::new(), &[][..]);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1..=3, Wire::Varint(bits)) => {
                numbers[usize::try_from(number).unwrap_or(0)] = i64::from_le_bytes(bits.to_le_bytes());
            }
            (_, Wire::Bytes(bytes)) => {
                raw = bytes;
                if !matches!(message, "FieldsV1" | "RawExtension") {
                    text = Wire::Bytes(bytes).text(message)?;
                }
            }
            (_, other) => return Err(other.wrong(message)),
        }
    }
    let [_, first, second, _] = numbers;
    Ok(Some(match message {
        "Time" | "MicroTime" if bytes.is_empty() => Value::Null,
        "Time" | "MicroTime" => {
            let at = Timestamp::new(first, i32::try_from(second).unwrap_or_default())
                .map_err(|_| Malformed::WrongType { field: message.to_owned(), wire: 0 })?;
            if message == "Time" {
                coracle_api::metadata::rfc3339(at).into()
            } else {
                coracle_api::metadata::rfc3339_micro(at).into()
            }
        }
        "Duration" => format!("{first}ns").into(),
        "IntOrString" if first == 0 => second.into(),
        "FieldsV1" | "RawExtension" if raw.is_empty() => Value::Null,
        "FieldsV1" | "RawExtension" => {
            serde_json::from_slice(raw).map_err(|error| Malformed::Json(error.to_string()))?
        }
        _ => text.into(),
    }))
}

/// The message that holds an object of `row`.
pub(crate) fn message_of(row: &coracle_api::catalogue::Resource) -> String {
    match row.group {
        "events.k8s.io" => format!("events.{}", row.kind),
        _ => row.kind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use coracle_api::catalogue;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn what_kubectl_sends_for_a_config_map() {
        // Captured from `kubectl create configmap a --from-literal=x=y`.
        let raw = b"\x0a\x11\x0a\x01a\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x06\x0a\x01x\x12\x01y";
        let body = [envelope("v1", "ConfigMap", raw), field(3, b""), field(4, b"")].concat();
        let expected = json!({
            "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "a" }, "data": { "x": "y" },
        });
        assert_eq!(decode(&body, "ConfigMap").unwrap(), expected);
    }

    #[test]
    fn zeroes_said_on_purpose_are_kept_and_parts_are_put_into_their_parents() {
        // A volume whose source is an empty emptyDir; a Pod that switches enableServiceLinks off.
        let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
        let mut spec = field(1, &volume);
        spec.extend([0xf0, 0x01, 0x00]); // field 30, varint 0
        let body = envelope("v1", "Pod", &field(2, &spec));
        let expected = json!({ "kind": "Pod", "apiVersion": "v1", "spec": {
            "volumes": [{ "name": "v", "emptyDir": {} }], "enableServiceLinks": false } });
        assert_eq!(decode(&body, "Pod").unwrap(), expected);
    }

    #[test]
    fn bodies_cut_short_anywhere_are_errors() {
        let raw = field(1, &field(1, b"a"));
        let body = envelope("v1", "ConfigMap", &raw);
        for length in 0..body.len() {
            let cut = decode(&body[..length], "ConfigMap");
            assert!(
                cut.is_err() || length == MAGIC.len() || cut.is_ok_and(|o| o["metadata"].is_null()),
                "{length}"
            );
        }
        assert_eq!(decode(b"{}", "ConfigMap"), Err(Malformed::NoPrefix));
    }

    #[test]
    fn the_table_knows_every_kind_and_is_closed() {
        for row in catalogue::resources().iter().filter(|row| row.allows("create")) {
            assert!(MESSAGES.contains_key(message_of(row).as_str()), "{row:?}");
        }
        for (message, fields) in MESSAGES.iter() {
            for field in fields.values() {
                let scalar = matches!(field.kind, "s" | "b" | "i" | "y" | "d");
                let special = read_special(field.kind, &[]).unwrap().is_some();
                assert!(scalar || special || MESSAGES.contains_key(field.kind), "{message}: {field:?}");
            }
        }
    }
}
