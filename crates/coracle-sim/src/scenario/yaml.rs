//! YAML as a tree in which every value knows its line, so that a complaint can name it.
//!
//! Scalars mean what YAML 1.2's core schema says: `yes` is a text, `0x10` a number. A key that stands twice is a
//! mistake, as is a key that is no text. Aliases are expanded, within a bound.

use std::collections::BTreeMap;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Number, Value};

use super::problem::Problem;

/// How deep a document may be nested, and how many values it may have with its aliases written out.
const MAX_DEPTH: usize = 100;
const MAX_NODES: usize = 200_000;

/// A place in a file. Lines and columns count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub mark: Mark,
    /// What it is.
    pub content: Content,
}

/// What a YAML value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number; with the text it was written as, because `1.10` may have been meant as one.
    Number(Number, String),
    /// A text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where it begins.
    pub mark: Mark,
    /// The key.
    pub name: String,
}

impl Node {
    /// What kind of value it is, for a complaint.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.content {
            Content::Null => "nothing",
            Content::Bool(_) => "a truth value",
            Content::Number(..) => "a number",
            Content::Text(_) => "a text",
            Content::List(_) => "a list",
            Content::Map(_) => "a mapping",
        }
    }

    /// The value of a key, if this is a mapping that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The tree without its marks.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number, _) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => items.iter().map(Node::to_json).collect(),
            Content::Map(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.name.clone(), node.to_json()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// Where the value stands that an API field path names, as `spec.containers[0].image`; for a field that is not
    /// there, the place of the nearest one around it.
    #[must_use]
    pub fn locate(&self, path: &str) -> Mark {
        let mut here = self;
        let mut mark = self.mark;
        for step in PathSteps(path) {
            let next = match &here.content {
                Content::Map(entries) => {
                    entries.iter().find(|(key, _)| key.name == step).map(|(key, node)| (key.mark, node))
                }
                Content::List(items) => step
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get(index))
                    .map(|node| (node.mark, node)),
                _ => None,
            };
            let Some((place, node)) = next else { return mark };
            (mark, here) = (place, node);
        }
        mark
    }
}

/// The parts of `a.b[c].d`, where brackets may hold dots.
struct PathSteps<'a>(&'a str);

impl<'a> Iterator for PathSteps<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start_matches('.');
        if rest.is_empty() {
            return None;
        }
        if let Some(inside) = rest.strip_prefix('[') {
            let end = inside.find(']').unwrap_or(inside.len());
            self.0 = inside.get(end + 1..).unwrap_or_default();
            return Some(&inside[..end]);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        self.0 = &rest[end..];
        Some(&rest[..end])
    }
}

/// Reads all documents of a text. Documents without content are left out.
///
/// # Errors
/// What is wrong with the text as YAML, and where.
pub fn parse(text: &str) -> Result<Vec<Node>, Problem> {
    let mut builder =
        Builder { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), budget: MAX_NODES };
    let mut documents = Vec::new();
    loop {
        let (event, _) = builder.next()?;
        match event {
            Event::StreamEnd => return Ok(documents),
            Event::DocumentStart(_) => {
                let (event, span) = builder.next()?;
                let node = builder.node(event, span, 0)?;
                if node.content != Content::Null {
                    documents.push(node);
                }
            }
            _ => {}
        }
    }
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    budget: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => {
                let at = error.marker();
                Err(problem(
                    Mark { line: at.line(), column: at.col() + 1 },
                    format_args!("not YAML: {}", error.info()),
                ))
            }
            None => Err(problem(Mark::default(), "not YAML: the text ends too early")),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        let mark = Mark { line: span.start.line(), column: span.start.col() + 1 };
        self.spend(1, mark)?;
        if depth > MAX_DEPTH {
            return Err(problem(mark, format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        let (content, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (scalar(&text, style, tag.as_deref()).map_err(|reason| problem(mark, reason))?, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                no_tag(tag.as_deref(), mark)?;
                (Content::List(self.list(depth)?), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                no_tag(tag.as_deref(), mark)?;
                (Content::Map(self.map(depth)?), anchor)
            }
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).cloned() else {
                    return Err(problem(mark, "an alias of a value that is not complete"));
                };
                self.spend(count(&target), mark)?;
                return Ok(target);
            }
            _ => return Err(problem(mark, "not YAML: a value is missing")),
        };
        let node = Node { mark, content };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, Problem> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                found => found,
            };
            let key = self.node(event, span, depth + 1)?;
            let name = match key.content {
                Content::Text(name) | Content::Number(_, name) => name,
                Content::Bool(value) => value.to_string(),
                _ => {
                    return Err(problem(
                        key.mark,
                        format_args!("a key has to be a text, this is {}", key.kind()),
                    ));
                }
            };
            if let Some((first, _)) = entries.iter().find(|(key, _)| key.name == name) {
                return Err(problem(
                    key.mark,
                    format_args!("{name:?} stands twice, first in line {}", first.mark.line),
                ));
            }
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            entries.push((Key { mark: key.mark, name }, value));
        }
    }

    fn spend(&mut self, nodes: usize, mark: Mark) -> Result<(), Problem> {
        match self.budget.checked_sub(nodes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(problem(mark, format_args!("more than {MAX_NODES} values"))),
        }
    }
}

fn count(node: &Node) -> usize {
    match &node.content {
        Content::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        Content::Map(entries) => 1 + entries.iter().map(|(_, node)| 1 + count(node)).sum::<usize>(),
        _ => 1,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Content, String> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {
            return Ok(Content::Text(text.to_owned()));
        }
        Some(tag) => return Err(format!("the tag {tag} means nothing here")),
        None => {}
    }
    if style != ScalarStyle::Plain {
        return Ok(Content::Text(text.to_owned()));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "true" | "True" | "TRUE" => Content::Bool(true),
        "false" | "False" | "FALSE" => Content::Bool(false),
        _ => match number(text) {
            Some(number) => Content::Number(number, text.to_owned()),
            None => Content::Text(text.to_owned()),
        },
    })
}

fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().map(Number::from);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok().map(Number::from);
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if plain { text.parse::<f64>().ok().and_then(Number::from_f64) } else { None }
}

fn no_tag(tag: Option<&Tag>, mark: Mark) -> Result<(), Problem> {
    match tag {
        Some(tag) => Err(problem(mark, format_args!("the tag {tag} means nothing here"))),
        None => Ok(()),
    }
}

fn problem(mark: Mark, reason: impl fmt::Display) -> Problem {
    Problem { mark, field: String::new(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Node {
        let mut documents = parse(text).unwrap();
        assert_eq!(documents.len(), 1, "{text}");
        documents.remove(0)
    }

    fn complaint(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn scalars_mean_what_the_core_schema_says() {
        let node =
            one("[1, -2, 0x10, 1.5, 1e3, yes, true, ~, '1', 10.244.0.0, 1.2.3, +7, 1_000, 2024-01-01]");
        assert_eq!(
            node.to_json(),
            json!([
                1,
                -2,
                16,
                1.5,
                1000.0,
                "yes",
                true,
                null,
                "1",
                "10.244.0.0",
                "1.2.3",
                7,
                "1_000",
                "2024-01-01"
            ])
        );
    }

    #[test]
    fn documents_and_lines_are_kept_apart() {
        let documents = parse("# head\na: 1\n---\n---\nb:\n  - c\n  - d: e\n").unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[1].locate("b[1].d").line, 7);
        assert_eq!(documents[1].locate("b[0]"), Mark { line: 6, column: 5 });
        assert_eq!(documents[1].locate("b[1].d.nothing.here").line, 7);
    }

    #[test]
    fn aliases_are_written_out_within_a_bound() {
        assert_eq!(one("a: &x [1]\nb: *x").to_json(), json!({"a": [1], "b": [1]}));
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let p = n - 1;
            text += &format!(
                "a{n}: &a{n} [*a{p}, *a{p}, *a{p}, *a{p}, *a{p}, *a{p}, *a{p}, *a{p}, *a{p}, *a{p}]\n"
            );
        }
        assert!(complaint(&text).ends_with("more than 200000 values"), "{}", complaint(&text));
        assert!(complaint(&"- ".repeat(200)).contains("deeper"), "{}", complaint(&"- ".repeat(200)));
        assert!(complaint(&"[".repeat(5000)).contains("limit"), "{}", complaint(&"[".repeat(5000)));
    }

    #[test]
    fn what_is_no_yaml_is_named_with_its_line() {
        assert_eq!(complaint("a: 1\nb: 2\na: 3"), "line 3: \"a\" stands twice, first in line 1");
        assert!(complaint("a: [1\nb: 2").starts_with("line 2: not YAML: "), "{}", complaint("a: [1\nb: 2"));
        assert_eq!(complaint("a: !secret x"), "line 1: the tag !secret means nothing here");
        assert!(complaint("[1]: 2").contains("a key has to be a text"));
    }
}
