//! What is wrong with a scenario: the line, the field, the reason.

use std::fmt;

use super::yaml::Mark;

/// One mistake in a scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub mark: Mark,
    /// The path of the field, as `steps[2].at`; empty for what is wrong with the file as a whole.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.mark.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// All that is wrong with a scenario file, in the order of its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    found: Vec<Problem>,
}

impl Problems {
    /// Notes a mistake.
    pub fn add(&mut self, mark: Mark, field: impl Into<String>, reason: impl Into<String>) {
        self.found.push(Problem { mark, field: field.into(), reason: reason.into() });
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The mistakes, in the order of their lines.
    #[must_use]
    pub fn list(&self) -> Vec<&Problem> {
        let mut sorted: Vec<&Problem> = self.found.iter().collect();
        sorted.sort_by_key(|problem| problem.mark);
        sorted
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems { found: vec![problem] }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list().into_iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The name among `known` that somebody who wrote `word` most likely meant.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let close = known.into_iter().map(|name| (distance(&word, &name.to_ascii_lowercase()), name));
    let (distance, name) = close.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + name.len() / 3).then_some(name)
}

/// How many letters have to be put in, taken out or replaced to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_another_word_is_not() {
        let known = ["apply", "delete", "powerOff", "powerOn"];
        assert_eq!(nearest("aply", known), Some("apply"));
        assert_eq!(nearest("poweroff", known), Some("powerOff"));
        assert_eq!(nearest("explode", known), None);
    }

    #[test]
    fn problems_are_shown_by_line() {
        let mut problems = Problems::default();
        problems.add(Mark { line: 9, column: 1 }, "until", "late");
        problems.add(Mark { line: 2, column: 1 }, "", "early");
        assert_eq!(problems.to_string(), "line 2: early\nline 9: until: late");
    }
}
