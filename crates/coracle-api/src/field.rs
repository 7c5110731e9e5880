//! Errors about one field of an object, and the paths that name fields.
//!
//! The wording is upstream's: users, and the tools they wrote, read these texts.

use std::fmt;

use serde_json::Value;

/// The path of a field, as `spec.containers[0].name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

impl Path {
    /// The path of a top-level field.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    /// The field `name` of the object at this path.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Path(name.to_owned()) } else { Path(format!("{}.{name}", self.0)) }
    }

    /// The element `index` of the list at this path.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }

    /// The entry `key` of the map at this path.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }

    /// The path as it is printed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// A value that is referred to does not exist.
    NotFound,
    /// The field must be set.
    Required,
    /// The value must be unique and is not.
    Duplicate,
    /// The value is malformed or out of range.
    Invalid,
    /// The value is none of those the field may have.
    NotSupported,
    /// The value is well-formed and not allowed here.
    Forbidden,
    /// The value is too long to be repeated.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// The check itself failed.
    Internal,
    /// The value has the wrong type.
    TypeInvalid,
}

impl FieldErrorKind {
    /// The reason in a Status' causes.
    #[must_use]
    pub fn cause(self) -> &'static str {
        match self {
            FieldErrorKind::NotFound => "FieldValueNotFound",
            FieldErrorKind::Required => "FieldValueRequired",
            FieldErrorKind::Duplicate => "FieldValueDuplicate",
            FieldErrorKind::Invalid => "FieldValueInvalid",
            FieldErrorKind::NotSupported => "FieldValueNotSupported",
            FieldErrorKind::Forbidden => "FieldValueForbidden",
            FieldErrorKind::TooLong => "FieldValueTooLong",
            FieldErrorKind::TooMany => "FieldValueTooMany",
            FieldErrorKind::Internal => "InternalError",
            FieldErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            FieldErrorKind::NotFound => "Not found",
            FieldErrorKind::Required => "Required value",
            FieldErrorKind::Duplicate => "Duplicate value",
            FieldErrorKind::Invalid | FieldErrorKind::TypeInvalid => "Invalid value",
            FieldErrorKind::NotSupported => "Unsupported value",
            FieldErrorKind::Forbidden => "Forbidden",
            FieldErrorKind::TooLong => "Too long",
            FieldErrorKind::TooMany => "Too many",
            FieldErrorKind::Internal => "Internal error",
        }
    }
}

/// An error about one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Where.
    pub field: Path,
    /// What.
    pub kind: FieldErrorKind,
    /// The offending value, for the kinds that show it.
    pub value: Option<Value>,
    /// Why, in words; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(field: &Path, kind: FieldErrorKind, value: Option<Value>, detail: impl Into<String>) -> Self {
        FieldError { field: field.clone(), kind, value, detail: detail.into() }
    }

    /// The field must be set.
    #[must_use]
    pub fn required(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Required, None, detail)
    }

    /// The value is malformed or out of range.
    #[must_use]
    pub fn invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Invalid, Some(value.into()), detail)
    }

    /// The value is none of `supported`.
    #[must_use]
    pub fn not_supported(field: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| go_quote(s)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(field, FieldErrorKind::NotSupported, Some(value.into()), detail)
    }

    /// The value is not allowed here.
    #[must_use]
    pub fn forbidden(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Forbidden, None, detail)
    }

    /// The value must be unique.
    #[must_use]
    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::Duplicate, Some(value.into()), "")
    }

    /// The value that is referred to does not exist.
    #[must_use]
    pub fn not_found(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::NotFound, Some(value.into()), "")
    }

    /// The value is longer than `max_bytes`.
    #[must_use]
    pub fn too_long(field: &Path, max_bytes: usize) -> Self {
        let unit = if max_bytes == 1 { "byte" } else { "bytes" };
        Self::new(field, FieldErrorKind::TooLong, None, format!("may not be more than {max_bytes} {unit}"))
    }

    /// The list has `actual` items, more than `max`.
    #[must_use]
    pub fn too_many(field: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {unit}");
        Self::new(field, FieldErrorKind::TooMany, Some(Value::from(actual)), detail)
    }

    /// The value has the wrong type.
    #[must_use]
    pub fn type_invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::TypeInvalid, Some(value.into()), detail)
    }

    /// The check itself failed.
    #[must_use]
    pub fn internal(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Internal, None, detail)
    }

    /// The error without the field's path, as it stands in a Status' causes.
    #[must_use]
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        let shows_value = !matches!(
            self.kind,
            FieldErrorKind::Required
                | FieldErrorKind::Forbidden
                | FieldErrorKind::TooLong
                | FieldErrorKind::Internal
        );
        if let Some(value) = self.value.as_ref().filter(|_| shows_value) {
            let shown = match value {
                Value::String(s) => go_quote(s),
                Value::Null => "\"null\"".to_owned(),
                other => other.to_string(),
            };
            text.push_str(": ");
            text.push_str(&shown);
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// `s` between double quotes with Go's escapes, as `%q` prints it.
#[must_use]
pub fn go_quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_prints_them() {
        let name = Path::new("spec").child("containers").index(0).child("name");
        let table = [
            (FieldError::required(&name, ""), "spec.containers[0].name: Required value"),
            (
                FieldError::required(&name, "must be set"),
                "spec.containers[0].name: Required value: must be set",
            ),
            (
                FieldError::invalid(&name, "A\"b", "bad"),
                "spec.containers[0].name: Invalid value: \"A\\\"b\": bad",
            ),
            (FieldError::invalid(&name, -1, "bad"), "spec.containers[0].name: Invalid value: -1: bad"),
            (
                FieldError::not_supported(&name, "x", &["a", "b"]),
                "spec.containers[0].name: Unsupported value: \"x\": supported values: \"a\", \"b\"",
            ),
            (FieldError::duplicate(&name, "a"), "spec.containers[0].name: Duplicate value: \"a\""),
            (FieldError::forbidden(&name, "no"), "spec.containers[0].name: Forbidden: no"),
            (
                FieldError::too_long(&name, 63),
                "spec.containers[0].name: Too long: may not be more than 63 bytes",
            ),
            (FieldError::not_found(&name, "v"), "spec.containers[0].name: Not found: \"v\""),
            (
                FieldError::too_many(&name, 9, 3),
                "spec.containers[0].name: Too many: 9: must have at most 3 items",
            ),
            (
                FieldError::invalid(&Path::new("data").key("a b"), "a b", "x"),
                "data[a b]: Invalid value: \"a b\": x",
            ),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }
}
