//! From `WHEN: WHAT` to data. The grammar is in the head of the parent module.

use std::collections::BTreeSet;

use coracle_api::catalogue::{self, Resource};
use coracle_api::selector::LabelSelector;

use super::super::problem::nearest;
use super::super::yaml::Mark;
use super::words::Words;
use super::{Amount, Anchor, Claim, Expectation, Filter, Moment, Predicate, When, claims};

/// What the parser has to know of the rest of the scenario.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The names of its steps.
    pub steps: BTreeSet<String>,
}

/// Parses one expectation.
///
/// # Errors
/// What is wrong with it, in words.
pub fn expectation(when: &str, what: &str, mark: Mark, context: &Context) -> Result<Expectation, String> {
    let text = format!("{}: {}", when.trim(), what.trim());
    let when = complete(when, |words| moment_of_expectation(words, context))?;
    let what = complete(what, predicate)?;
    Ok(Expectation { text, mark, when, what })
}

/// Runs a parser over a text of which nothing may be left over.
fn complete<T>(text: &str, parse: impl FnOnce(&mut Words) -> Result<T, String>) -> Result<T, String> {
    let mut words = Words::of(text)?;
    let parsed = parse(&mut words)?;
    match words.peek() {
        None if words.is_done() => Ok(parsed),
        Some(left) => Err(format!("{left:?} is not understood here")),
        None => Err("a quoted text is not understood here".to_owned()),
    }
}

fn moment_of_expectation(words: &mut Words, context: &Context) -> Result<When, String> {
    let first = words.take("at, within, between, always or never")?;
    match first.as_str() {
        "at" => Ok(When::At(moment(words, context)?)),
        "within" => {
            let span = words.span()?;
            let of = if words.accept("of") {
                moment(words, context)?
            } else {
                Moment::after_start(std::time::Duration::ZERO)
            };
            Ok(When::Within { span, of })
        }
        "between" => {
            let from = words.span()?;
            words.expect("and")?;
            let to = words.span()?;
            if to < from {
                return Err("the later time has to come second".to_owned());
            }
            let after = if words.accept("after") {
                moment(words, context)?
            } else {
                Moment::after_start(std::time::Duration::ZERO)
            };
            Ok(When::Between { from, to, after })
        }
        "always" | "never" => {
            let from = if words.accept("from") {
                moment(words, context)?
            } else {
                Moment::after_start(std::time::Duration::ZERO)
            };
            let until = if words.accept("until") { moment(words, context)? } else { Moment::end() };
            if let (Anchor::Start, Anchor::Start) = (&from.anchor, &until.anchor)
                && until.plus < from.plus
            {
                return Err("the later time has to come second".to_owned());
            }
            Ok(if first == "always" { When::Always { from, until } } else { When::Never { from, until } })
        }
        other => Err(format!("{other:?} says no time: begin with at, within, between, always or never")),
    }
}

fn moment(words: &mut Words, context: &Context) -> Result<Moment, String> {
    if words.accept("end") {
        return Ok(Moment::end());
    }
    let starts_with_digit =
        words.peek().is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit() || c == '-'));
    if starts_with_digit {
        let plus = words.span()?;
        if words.accept("after") {
            let from = moment(words, context)?;
            return Ok(Moment { plus: plus.saturating_add(from.plus), ..from });
        }
        return Ok(Moment::after_start(plus));
    }
    if let Some(word) = words.peek().filter(|word| context.steps.contains(*word)).map(str::to_owned) {
        words.take("")?;
        return Ok(Moment { anchor: Anchor::Step(word), plus: std::time::Duration::ZERO });
    }
    let word = words.peek().unwrap_or_default().to_owned();
    let what = predicate(words).map_err(|error| {
        if kind_of(&word).is_some() || claims::begins_claim(&word) {
            return error;
        }
        match nearest(&word, context.steps.iter().map(String::as_str)) {
            Some(name) => format!("no step is named {word:?}; did you mean {name:?}?"),
            None => {
                format!("{word:?} is neither a time, nor the name of a step, nor something that can be seen")
            }
        }
    })?;
    Ok(Moment { anchor: Anchor::First(Box::new(what)), plus: std::time::Duration::ZERO })
}

/// `or` binds least.
pub(super) fn predicate(words: &mut Words) -> Result<Predicate, String> {
    let mut parts = vec![conjunction(words)?];
    while words.accept("or") {
        parts.push(conjunction(words)?);
    }
    Ok(only(parts, Predicate::Any))
}

fn conjunction(words: &mut Words) -> Result<Predicate, String> {
    let mut parts = vec![negation(words)?];
    while words.accept("and") {
        parts.push(negation(words)?);
    }
    Ok(only(parts, Predicate::All))
}

fn negation(words: &mut Words) -> Result<Predicate, String> {
    if words.accept("not") {
        return Ok(Predicate::Not(Box::new(negation(words)?)));
    }
    if words.accept("(") {
        let inner = predicate(words)?;
        words.expect(")")?;
        return Ok(inner);
    }
    claim(words).map(Predicate::Claim)
}

fn only(mut parts: Vec<Predicate>, join: fn(Vec<Predicate>) -> Predicate) -> Predicate {
    if parts.len() == 1 { parts.remove(0) } else { join(parts) }
}

fn claim(words: &mut Words) -> Result<Claim, String> {
    let amount = amount(words)?;
    let (resource, slash_name) = subject_kind(words)?;
    let mut filter = Filter {
        kind: resource.singular,
        name: slash_name,
        labels: LabelSelector::default(),
        namespace: resource.namespaced.then(|| "default".to_owned()),
        node: None,
    };
    if amount == Amount::The {
        if filter.name.is_none() {
            filter.name = Some(words.take(&format!("the name of the {}", resource.singular))?);
        }
        let name = filter.name.as_deref().unwrap_or_default();
        if name.contains(['*', '=']) {
            return Err(format!(
                "{name:?} may be several: begin with every, some, no, exactly N, at least N or at most N"
            ));
        }
        namespace(words, resource, &mut filter)?;
        let tests = claims::tests(words, resource)?;
        if tests.is_empty() {
            return Err(claims::missing(words, resource));
        }
        return Ok(Claim { amount, filter, tests });
    }
    selection(words, resource, &mut filter)?;
    let mut tests = claims::tests(words, resource)?;
    if tests.is_empty() {
        // "every pod on node-1": what else could be said of every one of them than that they are there?
        let said = match filter.node.take() {
            Some(node) if amount == Amount::Every => super::Test::On(node),
            node => {
                filter.node = node;
                super::Test::Exists
            }
        };
        tests.push((true, said));
    }
    Ok(Claim { amount, filter, tests })
}

fn amount(words: &mut Words) -> Result<Amount, String> {
    let count = |words: &mut Words| words.number().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok(if words.accept("every") {
        Amount::Every
    } else if words.accept("some") {
        Amount::Some
    } else if words.accept("no") {
        Amount::No
    } else if words.accept("exactly") {
        Amount::Exactly(count(words)?)
    } else if words.accept("at least") {
        Amount::AtLeast(count(words)?)
    } else if words.accept("at most") {
        Amount::AtMost(count(words)?)
    } else {
        Amount::The
    })
}

/// The kind, and the name if both stand in one word with a slash between.
fn subject_kind(words: &mut Words) -> Result<(&'static Resource, Option<String>), String> {
    let word = words.take("a kind of object, as pod or deployment,")?;
    let (kind, name) = match word.split_once('/') {
        Some((kind, name)) if !name.is_empty() => (kind, Some(name.to_owned())),
        _ => (word.as_str(), None),
    };
    let Some(resource) = kind_of(kind) else {
        let known = catalogue::resources().iter().map(|resource| resource.singular);
        return Err(match nearest(kind, known) {
            Some(name) => format!("there is no kind {kind:?}; did you mean {name:?}?"),
            None => format!("there is no kind {kind:?}"),
        });
    };
    Ok((resource, name))
}

/// Labels, a pattern for the name, the namespace, the node, in any order.
fn selection(words: &mut Words, resource: &'static Resource, filter: &mut Filter) -> Result<(), String> {
    loop {
        if namespace(words, resource, filter)? {
            continue;
        }
        if resource.singular == "pod" && words.accept("on") {
            filter.node = Some(words.take("the name of a node")?);
            continue;
        }
        match words.peek() {
            Some(word) if word.contains('*') => filter.name = Some(words.take("")?),
            Some(word) if word.contains('=') && word.len() > 2 => {
                let text = words.take("")?;
                filter.labels =
                    LabelSelector::parse(&text).map_err(|status| format!("{text:?}: {}", status.message))?;
            }
            _ => return Ok(()),
        }
    }
}

fn namespace(words: &mut Words, resource: &Resource, filter: &mut Filter) -> Result<bool, String> {
    if !words.accept("in") {
        return Ok(false);
    }
    if !resource.namespaced {
        return Err(format!("a {} is in no namespace", resource.singular));
    }
    filter.namespace =
        if words.accept("any namespace") { None } else { Some(words.take("the name of a namespace")?) };
    Ok(true)
}

/// The resource that a word means: its kind, its name in paths, or a short name.
#[must_use]
pub fn kind_of(word: &str) -> Option<&'static Resource> {
    let lower = word.to_ascii_lowercase();
    let means = |resource: &&Resource| {
        resource.singular == lower
            || resource.plural == lower
            || resource.kind.eq_ignore_ascii_case(&lower)
            || resource.short_names.contains(&lower.as_str())
    };
    catalogue::resources().iter().find(means)
}
