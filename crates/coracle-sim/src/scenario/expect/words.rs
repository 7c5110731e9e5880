//! The words of an expectation, one after the other.

use std::time::Duration;

use super::super::time;
use super::{Compare, OneOf, Operator};

/// A text taken apart into words. Blanks separate them; what stands in double quotes is one word; a parenthesis around
/// words is a word.
#[derive(Clone, Debug)]
pub(super) struct Words {
    words: Vec<Word>,
    at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

impl Words {
    pub(super) fn of(text: &str) -> Result<Self, String> {
        let mut words = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let first = rest.chars().next().unwrap_or_default();
            let (word, after) = match first {
                '(' | ')' => (plain(&rest[..1]), &rest[1..]),
                '"' => {
                    let Some(end) = rest[1..].find('"') else {
                        return Err(format!("a quotation mark is open: {rest}"));
                    };
                    (Word { text: rest[1..=end].to_owned(), quoted: true }, &rest[end + 2..])
                }
                _ => {
                    let end = word_end(rest);
                    (plain(&rest[..end]), &rest[end..])
                }
            };
            words.push(word);
            rest = after.trim_start();
        }
        Ok(Words { words, at: 0 })
    }

    /// The next word, not taken.
    pub(super) fn peek(&self) -> Option<&str> {
        self.words.get(self.at).filter(|word| !word.quoted).map(|word| word.text.as_str())
    }

    pub(super) fn is_done(&self) -> bool {
        self.at >= self.words.len()
    }

    /// Takes the next word; `what` says what it should have been.
    pub(super) fn take(&mut self, what: &str) -> Result<String, String> {
        match self.words.get(self.at) {
            Some(word) => {
                self.at += 1;
                Ok(word.text.clone())
            }
            None => Err(format!("{what} is missing at the end")),
        }
    }

    /// Takes the words if they come next, all of them.
    pub(super) fn accept(&mut self, expected: &str) -> bool {
        let wanted: Vec<&str> = expected.split(' ').collect();
        let next = self.words.get(self.at..self.at + wanted.len());
        let found = next.is_some_and(|next| {
            next.iter().zip(&wanted).all(|(word, wanted)| !word.quoted && word.text == *wanted)
        });
        if found {
            self.at += wanted.len();
        }
        found
    }

    /// Takes the words, which have to come next.
    pub(super) fn expect(&mut self, expected: &str) -> Result<(), String> {
        if self.accept(expected) {
            return Ok(());
        }
        Err(match self.peek() {
            Some(found) => format!("{expected:?} should stand where {found:?} stands"),
            None => format!("{expected:?} is missing at the end"),
        })
    }

    /// A span of time.
    pub(super) fn span(&mut self) -> Result<Duration, String> {
        time::parse(&self.take("a time, as 90s,")?)
    }

    /// Whether a span of time comes next.
    pub(super) fn span_follows(&self) -> bool {
        self.peek()
            .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()) && time::parse(word).is_ok())
    }

    /// A whole number that is not negative.
    pub(super) fn number(&mut self) -> Result<i64, String> {
        let word = self.take("a number")?;
        word.parse().ok().filter(|n| *n >= 0).ok_or_else(|| format!("{word:?} is no number"))
    }

    /// A comparison sign, if one comes next.
    pub(super) fn operator(&mut self) -> Option<Operator> {
        let operator = match self.peek()? {
            "=" | "==" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::AtMost,
            ">" => Operator::More,
            ">=" => Operator::AtLeast,
            _ => return None,
        };
        self.at += 1;
        Some(operator)
    }

    /// A comparison with a number.
    pub(super) fn compare(&mut self) -> Result<Compare, String> {
        let Some(operator) = self.operator() else {
            let found =
                self.peek().map_or("at the end".to_owned(), |found| format!("where {found:?} stands"));
            return Err(format!("a comparison (=, !=, <, <=, >, >=) should stand {found}"));
        };
        Ok(Compare { operator, number: self.number()? })
    }

    /// Words with a bar between them.
    pub(super) fn one_of(&mut self, what: &str) -> Result<OneOf, String> {
        Ok(OneOf(self.take(what)?.split('|').map(str::to_owned).collect()))
    }
}

fn plain(text: &str) -> Word {
    Word { text: text.to_owned(), quoted: false }
}

/// Where an unquoted word ends: at a blank or a closing parenthesis, but not within brackets, which may hold quotes.
fn word_end(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' if depth > 0 => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth = depth.saturating_sub(1),
            _ if quoted => {}
            ')' if depth == 0 => return at,
            c if c.is_whitespace() && depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}
