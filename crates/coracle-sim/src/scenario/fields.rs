//! Reading a marked tree field by field: each complaint knows the path and the line.
//!
//! A mapping is opened with the list of all its fields ([`Field::fields`]), so that nobody forgets to look for
//! unknown ones.

use std::time::Duration;

use coracle_api::quantity::Quantity;

use super::problem::{Problems, nearest};
use super::time;
use super::yaml::{Content, Key, Mark, Node};

/// A value at a path.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    /// The value.
    pub node: &'a Node,
    /// Its path, as `steps[2].at`.
    pub path: String,
    /// Where to point: at the key, for the value of one.
    pub mark: Mark,
}

/// A mapping at a path, of which no field is unknown or every unknown one has been complained about.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    entries: &'a [(Key, Node)],
    path: String,
    mark: Mark,
}

impl<'a> Field<'a> {
    /// A whole document.
    #[must_use]
    pub(super) fn root(node: &'a Node) -> Self {
        Field { node, path: String::new(), mark: node.mark }
    }

    /// Notes that something is wrong here.
    pub(super) fn wrong(&self, problems: &mut Problems, reason: impl Into<String>) {
        problems.add(self.mark, self.path.clone(), reason);
    }

    fn unexpected<T>(&self, problems: &mut Problems, wanted: &str) -> Option<T> {
        self.wrong(problems, format!("has to be {wanted}, this is {}", self.node.kind()));
        None
    }

    /// The mapping; its keys must be among `known`.
    pub(super) fn fields(&self, known: &[&str], problems: &mut Problems) -> Option<Fields<'a>> {
        let fields = self.mapping(problems)?;
        for (key, _) in fields.entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            let hint = match nearest(&key.name, known.iter().copied()) {
                Some(name) => format!("did you mean {name:?}?"),
                None => format!("there are {}", known.join(", ")),
            };
            problems.add(key.mark, fields.path_of(&key.name), format!("unknown field; {hint}"));
        }
        Some(fields)
    }

    /// The mapping, with any keys.
    pub(super) fn mapping(&self, problems: &mut Problems) -> Option<Fields<'a>> {
        match &self.node.content {
            Content::Map(entries) => Some(Fields { entries, path: self.path.clone(), mark: self.mark }),
            _ => self.unexpected(problems, "a mapping"),
        }
    }

    /// The items of a list.
    pub(super) fn items(&self, problems: &mut Problems) -> Option<Vec<Field<'a>>> {
        match &self.node.content {
            Content::List(items) => {
                let field = |(index, node): (usize, &'a Node)| Field {
                    node,
                    path: format!("{}[{index}]", self.path),
                    mark: node.mark,
                };
                Some(items.iter().enumerate().map(field).collect())
            }
            _ => self.unexpected(problems, "a list"),
        }
    }

    /// The items of a list, or the one value that stands in place of a list of one.
    pub(super) fn one_or_more(&self, problems: &mut Problems) -> Option<Vec<Field<'a>>> {
        match &self.node.content {
            Content::List(_) => self.items(problems),
            _ => Some(vec![self.clone()]),
        }
    }

    /// A text that is not empty.
    pub(super) fn text(&self, problems: &mut Problems) -> Option<&'a str> {
        match &self.node.content {
            Content::Text(text) if !text.trim().is_empty() => Some(text),
            Content::Text(_) => self.unexpected(problems, "a text that is not empty"),
            Content::Number(_, text) => {
                self.wrong(problems, format!("has to be a text: put it in quotes, \"{text}\""));
                None
            }
            _ => self.unexpected(problems, "a text"),
        }
    }

    /// `true` or `false`.
    pub(super) fn truth(&self, problems: &mut Problems) -> Option<bool> {
        match self.node.content {
            Content::Bool(value) => Some(value),
            _ => self.unexpected(problems, "true or false"),
        }
    }

    /// A whole number between two bounds.
    pub(super) fn integer(&self, from: i64, to: i64, problems: &mut Problems) -> Option<i64> {
        let wanted = format!("a whole number from {from} to {to}");
        match &self.node.content {
            Content::Number(number, text) => match number.as_i64() {
                Some(value) if (from..=to).contains(&value) => Some(value),
                _ => {
                    self.wrong(problems, format!("has to be {wanted}, this is {text}"));
                    None
                }
            },
            _ => self.unexpected(problems, &wanted),
        }
    }

    /// A span of time.
    pub(super) fn duration(&self, problems: &mut Problems) -> Option<Duration> {
        let text = match &self.node.content {
            Content::Text(text) | Content::Number(_, text) => text,
            _ => return self.unexpected(problems, "a time, as 90s"),
        };
        time::parse(text).map_err(|reason| self.wrong(problems, reason)).ok()
    }

    /// A quantity that is not negative, as `500m` or `1Gi`.
    pub(super) fn quantity(&self, problems: &mut Problems) -> Option<Quantity> {
        let text = match &self.node.content {
            Content::Text(text) | Content::Number(_, text) => text,
            _ => return self.unexpected(problems, "a quantity, as 500m or 1Gi"),
        };
        match text.parse::<Quantity>() {
            Ok(quantity) if !quantity.is_negative() => Some(quantity),
            Ok(_) => {
                self.wrong(problems, format!("has to be 0 or more, this is {text}"));
                None
            }
            Err(error) => {
                self.wrong(problems, format!("{text:?} is no quantity: {error}"));
                None
            }
        }
    }
}

impl<'a> Fields<'a> {
    /// The value of a field, if it is there.
    #[must_use]
    pub(super) fn get(&self, name: &str) -> Option<Field<'a>> {
        self.all().into_iter().find(|(key, _)| key.name == name).map(|(_, field)| field)
    }

    /// The value of a field that has to be there.
    pub(super) fn require(&self, name: &str, problems: &mut Problems) -> Option<Field<'a>> {
        let found = self.get(name);
        if found.is_none() {
            problems.add(self.mark, self.path_of(name), "is required");
        }
        found
    }

    /// All fields in the order of the file.
    #[must_use]
    pub(super) fn all(&self) -> Vec<(&'a Key, Field<'a>)> {
        let field = |(key, node): &'a (Key, Node)| {
            (key, Field { node, path: self.path_of(&key.name), mark: key.mark })
        };
        self.entries.iter().map(field).collect()
    }

    /// Where the mapping begins.
    #[must_use]
    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// The path of a field of this mapping.
    #[must_use]
    pub(super) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
