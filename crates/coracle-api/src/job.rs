//! Sets of indexes of an indexed Job, as `status.completedIndexes` has them: `1,3-5,7`.

use std::collections::BTreeSet;
use std::fmt;

use crate::field::go_quote;

/// A set of indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(BTreeSet<i64>);

impl Indexes {
    /// Reads a list of numbers and ranges in ascending order, each below `completions`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str, completions: i64) -> Result<Self, String> {
        let number = |text: &str| -> Result<i64, String> {
            let number: i64 = text
                .parse()
                .map_err(|_| format!("cannot convert string to integer for index: {}", go_quote(text)))?;
            if number >= completions {
                return Err(format!("too large index: {}", go_quote(text)));
            }
            Ok(number)
        };
        let mut indexes = BTreeSet::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = match part.split_once('-') {
                None => {
                    let index = number(part)?;
                    (index, index)
                }
                Some((first, last)) if !last.contains('-') => (number(first)?, number(last)?),
                Some(_) => {
                    return Err(format!(
                        "the fragment {} violates the requirement that an index interval can have at most two parts separated by '-'",
                        go_quote(part)
                    ));
                }
            };
            if indexes.last().is_some_and(|last| *last >= first) {
                return Err(format!(
                    "non-increasing order, previous: {}, current: {first}",
                    indexes.last().copied().unwrap_or_default()
                ));
            }
            if last < first {
                return Err(format!("non-increasing order, previous: {first}, current: {last}"));
            }
            indexes.extend(first..=last);
        }
        Ok(Indexes(indexes))
    }

    /// Reads what a status says; what is no set of indexes below `completions` counts for nothing.
    #[must_use]
    pub fn of_status(text: Option<&str>, completions: i64) -> Self {
        let bounds = |part: &str| -> Option<(i64, i64)> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        let parts = text.unwrap_or_default().split(',').filter_map(bounds);
        Indexes(parts.flat_map(|(first, last)| first..=last.min(completions - 1)).collect())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> i64 {
        i64::try_from(self.0.len()).unwrap_or(i64::MAX)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `index` is one of them.
    #[must_use]
    pub fn contains(&self, index: i64) -> bool {
        self.0.contains(&index)
    }

    /// Adds an index.
    pub fn insert(&mut self, index: i64) {
        self.0.insert(index);
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<i64> for Indexes {
    fn from_iter<I: IntoIterator<Item = i64>>(indexes: I) -> Self {
        Indexes(indexes.into_iter().collect())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(i64, i64)> = Vec::new();
        for index in self.iter() {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => runs.push((index, index)),
            }
        }
        for (position, (first, last)) in runs.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_go_round_and_bad_ones_are_refused() {
        for text in ["", "0", "1,3-5,7", "0,1,3"] {
            assert_eq!(Indexes::parse(text, 8).unwrap().to_string(), text);
            assert_eq!(Indexes::of_status(Some(text), 8).to_string(), text);
        }
        assert_eq!(Indexes::parse("3-5", 8).unwrap().len(), 3);
        for text in ["x", "1,1", "3-2", "8", "1-2-3", "2,1"] {
            assert!(Indexes::parse(text, 8).is_err(), "{text}");
        }
        assert_eq!(Indexes::of_status(Some("1,6-20,x"), 8).to_string(), "1,6,7");
    }
}
