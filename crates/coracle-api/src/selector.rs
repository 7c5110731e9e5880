//! Label and field selectors: `labelSelector` and `fieldSelector` of a query, with upstream's complaints.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use crate::catalogue::Resource;
use crate::names;
use crate::status::Status;

/// A conjunction of requirements on labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

/// One requirement on labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: BTreeSet<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the API's own words")]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Operator {
    fn as_str(self) -> &'static str {
        match self {
            Operator::In => "in",
            Operator::NotIn => "notin",
            Operator::Equals => "=",
            Operator::DoubleEquals => "==",
            Operator::NotEquals => "!=",
            Operator::Exists => "exists",
            Operator::DoesNotExist => "!",
            Operator::GreaterThan => "gt",
            Operator::LessThan => "lt",
        }
    }
}

impl LabelSelector {
    /// Parses the text of a query; the empty text selects everything.
    ///
    /// # Errors
    /// 400 with upstream's words.
    pub fn parse(text: &str) -> Result<Self, Status> {
        Parser::new(text)
            .parse()
            .map(|requirements| LabelSelector { requirements })
            .map_err(Status::bad_request)
    }

    /// From the `matchLabels`/`matchExpressions` form that stands in objects.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn from_object(selector: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in crate::tree::entries_at(selector, &["matchLabels"]) {
            let values = [value.as_str().unwrap_or_default().to_owned()].into();
            requirements.push(Requirement::new(key.clone(), Operator::Equals, values)?);
        }
        for expression in crate::tree::list_at(selector, &["matchExpressions"]) {
            let operator = match crate::tree::str_at(expression, &["operator"]) {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = crate::tree::list_at(expression, &["values"])
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            requirements.push(Requirement::new(
                crate::tree::str_at(expression, &["key"]).to_owned(),
                operator,
                values,
            )?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements })
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object is selected, by its `metadata.labels`.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels = crate::tree::at(object, &["metadata", "labels"]);
        self.matches_labels(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Whether labels given as a look-up are selected.
    #[must_use]
    pub fn matches_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }
}

impl Requirement {
    fn new(key: String, operator: Operator, values: BTreeSet<String>) -> Result<Self, String> {
        check_key(&key)?;
        let shown = || {
            let values: Vec<String> = values.iter().map(|v| crate::field::go_quote(v)).collect();
            format!("[]string{{{}}}", values.join(", "))
        };
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return Err(format!(
                    "values: Invalid value: {}: for 'in', 'notin' operators, values set can't be empty",
                    shown()
                ));
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                return Err(format!(
                    "values: Invalid value: {}: exact-match compatibility requires one single value",
                    shown()
                ));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return Err(format!(
                    "values: Invalid value: {}: values set must be empty for exists and does not exist",
                    shown()
                ));
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    return Err(format!(
                        "values: Invalid value: {}: for 'Gt', 'Lt' operators, exactly one value is required",
                        shown()
                    ));
                }
                for value in &values {
                    if value.parse::<i64>().is_err() {
                        return Err(format!(
                            "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                            crate::field::go_quote(value)
                        ));
                    }
                }
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            let complaints = names::label_value(value);
            if !complaints.is_empty() {
                return Err(format!(
                    "values[{index}][{key}]: Invalid value: {}: {}",
                    crate::field::go_quote(value),
                    complaints.join("; ")
                ));
            }
        }
        Ok(Requirement { key, operator, values })
    }

    fn matches(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => {
                value.is_some_and(|v| self.values.contains(v))
            }
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
                let value = value.and_then(|v| v.parse::<i64>().ok());
                match (value, bound) {
                    (Some(value), Some(bound)) if self.operator == Operator::GreaterThan => value > bound,
                    (Some(value), Some(bound)) => value < bound,
                    _ => false,
                }
            }
        }
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let complaints = names::qualified_name(key);
    if complaints.is_empty() {
        return Ok(());
    }
    // Upstream checks the key without a path, which prints as <nil>.
    Err(format!("<nil>: Invalid value: {}: {}", crate::field::go_quote(key), complaints.join("; ")))
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let values = requirement.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            let key = &requirement.key;
            match requirement.operator {
                Operator::In | Operator::NotIn => {
                    write!(f, "{key} {} ({values})", requirement.operator.as_str())?;
                }
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan => write!(f, "{key}>{values}")?,
                Operator::LessThan => write!(f, "{key}<{values}")?,
                other => write!(f, "{key}{}{values}", other.as_str())?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Error,
    End,
    ClosedPar,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    OpenPar,
}

/// A recursive-descent parser whose errors are those of upstream's, token by token.
struct Parser {
    tokens: Vec<(Token, String)>,
    position: usize,
}

fn special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::ClosedPar,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        "!=" => Token::NotEquals,
        "(" => Token::OpenPar,
        ">" => Token::Greater,
        "<" => Token::Less,
        _ => return None,
    })
}

fn scan(text: &str) -> Vec<(Token, String)> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    while let Some(first) = rest.chars().next() {
        let taken = if special(first) {
            let run: usize = rest.chars().take_while(|c| special(*c)).count();
            // All symbols are ASCII and at most two characters long: the longest that matches wins.
            let longest = (1..=run.min(2)).rev().find_map(|n| symbol(&rest[..n]).map(|token| (token, n)));
            match longest {
                Some((token, n)) => {
                    tokens.push((token, rest[..n].to_owned()));
                    n
                }
                None => {
                    tokens.push((Token::Error, format!("error expected: keyword found '{}'", &rest[..run])));
                    run
                }
            }
        } else {
            let end = rest
                .find(|c: char| special(c) || matches!(c, ' ' | '\t' | '\r' | '\n'))
                .unwrap_or(rest.len());
            let word = &rest[..end];
            let token = match word {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Identifier,
            };
            tokens.push((token, word.to_owned()));
            end
        };
        rest = rest[taken..].trim_start_matches([' ', '\t', '\r', '\n']);
    }
    tokens.push((Token::End, String::new()));
    tokens
}

impl Parser {
    fn new(text: &str) -> Self {
        Parser { tokens: scan(text), position: 0 }
    }

    fn raw(&self) -> (Token, &str) {
        let (token, text) = &self.tokens[self.position.min(self.tokens.len() - 1)];
        (token.clone(), text)
    }

    /// The next token where values and keys are expected: `in` and `notin` are plain words there.
    fn peek(&self) -> (Token, &str) {
        match self.raw() {
            (Token::In | Token::NotIn, text) => (Token::Identifier, text),
            other => other,
        }
    }

    fn take(&mut self) -> (Token, String) {
        let (token, text) = self.peek();
        let out = (token, text.to_owned());
        self.position += 1;
        out
    }

    fn parse(mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {
                    let requirement =
                        self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                    out.push(requirement);
                    match self.take() {
                        (Token::End, _) => return Ok(out),
                        (Token::Comma, _) => {
                            let (next, text) = self.peek();
                            if !matches!(next, Token::Identifier | Token::Not) {
                                return Err(format!("found '{text}', expected: identifier after ','"));
                            }
                        }
                        (_, text) => {
                            return Err(format!("found '{text}', expected: ',' or 'end of string'"));
                        }
                    }
                }
                (Token::End, _) => return Ok(out),
                (_, text) => {
                    return Err(format!("found '{text}', expected: !, identifier, or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.take();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.take();
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        check_key(&key)?;
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, BTreeSet::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        Requirement::new(key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, String> {
        let (token, text) = self.raw();
        let operator = match token {
            Token::In => Operator::In,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            Token::NotIn => Operator::NotIn,
            Token::NotEquals => Operator::NotEquals,
            _ => return Err(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        self.position += 1;
        Ok(operator)
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let (token, text) = self.take();
        if token != Token::OpenPar {
            return Err(format!("found '{text}' expected: '('"));
        }
        let (token, text) = self.peek();
        match token {
            Token::Identifier | Token::Comma => {
                let first = text.to_owned();
                let values = self.value_list()?;
                if self.take().0 != Token::ClosedPar {
                    return Err(format!("found '{first}', expected: ')'"));
                }
                Ok(values)
            }
            Token::ClosedPar => {
                self.position += 1;
                Ok(BTreeSet::new())
            }
            _ => Err(format!("found '{text}', expected: ',', ')' or identifier")),
        }
    }

    fn value_list(&mut self) -> Result<BTreeSet<String>, String> {
        let mut values = BTreeSet::new();
        loop {
            match self.take() {
                (Token::Identifier, text) => {
                    values.insert(text);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::ClosedPar, _) => return Ok(values),
                        (_, text) => return Err(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek().0 {
                        Token::ClosedPar => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.position += 1;
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, text) => return Err(format!("found '{text}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok([String::new()].into());
        }
        match self.take() {
            (Token::Identifier, text) => Ok([text].into()),
            (_, text) => Err(format!("found '{text}', expected: identifier")),
        }
    }
}

/// A conjunction of requirements on fields that a resource makes selectable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: &'static str,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Parses the text of a query about `resource`; the empty text selects everything.
    ///
    /// # Errors
    /// 400 with upstream's words: bad syntax, or a field that is not selectable.
    pub fn parse(text: &str, resource: &Resource) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, equal, value)) = split_term(part) else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            let value = unescape(value).map_err(Status::bad_request)?;
            terms.push(FieldTerm { field: known_field(resource, field)?, equal, value });
        }
        Ok(FieldSelector { terms })
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must have, if the selector fixes one.
    #[must_use]
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    /// Takes out the requirement that `field` has one value, and returns that value.
    pub fn take_exact(&mut self, field: &str) -> Option<String> {
        let at = self.terms.iter().position(|term| term.equal && term.field == field)?;
        Some(self.terms.remove(at).value)
    }

    /// Whether an object with these values of its fields is selected.
    #[must_use]
    pub fn matches_values<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (value(term.field).unwrap_or_default() == term.value) == term.equal)
    }

    /// Whether an object of `resource` is selected.
    #[must_use]
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            let value = resource.selectable_field(object, term.field).unwrap_or_default();
            (value == term.value) == term.equal
        })
    }
}

fn known_field(resource: &Resource, field: &str) -> Result<&'static str, Status> {
    // The name of spec.nodeName before v1.
    let field = if resource.kind == "Pod" && field == "spec.host" { "spec.nodeName" } else { field };
    resource.field_selector_names().find(|known| *known == field).ok_or_else(|| {
        Status::bad_request(if resource.strategy.selectable_field_names().is_empty() {
            format!(
                "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                crate::field::go_quote(field)
            )
        } else {
            format!("field label not supported: {field}")
        })
    })
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    for (index, _) in part.char_indices() {
        let rest = &part[index..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&part[..index], equal, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalogue::find;

    #[test]
    fn label_selectors_select() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "n": "5", "empty": ""}}});
        for (selector, selected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("! missing", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app != web", false),
            ("app in (a, web)", true),
            ("app notin (a,web)", false),
            ("missing notin (a)", true),
            ("missing != a", true),
            ("missing=a", false),
            ("n>4", true),
            ("n<5", false),
            ("empty=", true),
            ("empty in (,x)", true),
            ("in in (in)", false),
            ("app , tier", true),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&object), selected, "{selector}");
        }
    }

    #[test]
    fn complaints_about_label_selectors_are_upstreams() {
        for (selector, message) in [
            ("a,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a=b)", "found ')', expected: ',' or 'end of string'"),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []string{}: for 'in', 'notin' operators, \
                 values set can't be empty",
            ),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().message, message, "{selector}");
        }
        let bad_key = LabelSelector::parse("-a=b").unwrap_err().message;
        assert!(bad_key.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part"));
    }

    #[test]
    fn field_selectors_know_their_kinds_fields() {
        let pods = find("", "v1", "pods").unwrap();
        let config_maps = find("", "v1", "configmaps").unwrap();
        let pod =
            json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {}, "status": {"phase": "Running"}});
        for (selector, selected) in [
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("metadata.namespace==n,status.phase=Running", true),
            ("spec.nodeName=", true),
        ] {
            assert_eq!(
                FieldSelector::parse(selector, pods).unwrap().matches(pods, &pod),
                selected,
                "{selector}"
            );
        }
        let message = |text, resource| FieldSelector::parse(text, resource).unwrap_err().message;
        assert_eq!(message("spec.x=1", pods), "field label not supported: spec.x");
        assert_eq!(message("a", pods), "invalid selector: 'a'; can't understand 'a'");
        assert_eq!(
            message("data=1", config_maps),
            "\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }
}
