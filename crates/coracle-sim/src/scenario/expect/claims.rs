//! From words to the tests that objects pass.

use std::time::Duration;

use coracle_api::catalogue::Resource;

use super::super::problem::nearest;
use super::words::Words;
use super::{ContainerTest, FieldPath, FieldTest, Operator, PathStep, Test};

/// How exact a delay between restarts is by itself: statuses tell whole seconds.
const GIVE_OR_TAKE: Duration = Duration::from_secs(1);

const TESTS: [&str; 16] = [
    "exists",
    "gone",
    "terminating",
    "ready",
    "complete",
    "phase",
    "reason",
    "condition",
    "on",
    "taint",
    "replaced",
    "event",
    "restarts",
    "container",
    "field",
    "not",
];

/// Whether a claim may begin with this word, though it is no kind.
pub(super) fn begins_claim(word: &str) -> bool {
    matches!(word, "every" | "some" | "no" | "exactly" | "at" | "not" | "(")
}

/// All tests that follow, joined by `and`; none if the next word begins no test.
pub(super) fn tests(words: &mut Words, resource: &Resource) -> Result<Vec<(bool, Test)>, String> {
    let mut tests = Vec::new();
    if !words.peek().is_some_and(|word| TESTS.contains(&word)) {
        return Ok(tests);
    }
    loop {
        let as_said = !words.accept("not");
        tests.push((as_said, test(words, resource)?));
        // `and` joins either another test of this object or another claim.
        let mut ahead = words.clone();
        if ahead.accept("and") && ahead.peek().is_some_and(|word| TESTS.contains(&word)) && !is_claim(&ahead)
        {
            *words = ahead;
        } else {
            return Ok(tests);
        }
    }
}

/// Whether `not` is followed by a claim and not by a test.
fn is_claim(ahead: &Words) -> bool {
    let mut ahead = ahead.clone();
    ahead.accept("not") && !ahead.peek().is_some_and(|word| TESTS.contains(&word))
}

/// The complaint that no test follows.
pub(super) fn missing(words: &Words, resource: &Resource) -> String {
    let subject = resource.singular;
    match words.peek() {
        None => format!(
            "what of the {subject}? A test is missing at the end, as exists, ready or field .spec.x = 1"
        ),
        Some(word) => match nearest(word, TESTS) {
            Some(name) => format!("there is no test {word:?}; did you mean {name:?}?"),
            None => format!("there is no test {word:?}; there are {}", TESTS.join(", ")),
        },
    }
}

fn test(words: &mut Words, resource: &Resource) -> Result<Test, String> {
    let word = words.take("a test")?;
    let of = |kinds: &[&str]| {
        if kinds.contains(&resource.singular) {
            Ok(())
        } else {
            Err(format!("{word:?} is a test of a {}, not of a {}", kinds.join(" or a "), resource.singular))
        }
    };
    Ok(match word.as_str() {
        "exists" => Test::Exists,
        "gone" => Test::Gone,
        "terminating" => Test::Terminating,
        "ready" => {
            of(&["pod", "node"])?;
            Test::Ready
        }
        "complete" => {
            of(&["deployment", "job"])?;
            Test::Complete
        }
        "phase" => Test::Phase(words.one_of("a phase")?),
        "reason" => Test::Reason(words.one_of("a reason")?),
        "condition" => condition(words)?,
        "on" => {
            of(&["pod"])?;
            Test::On(words.take("the name of a node")?)
        }
        "taint" => {
            of(&["node"])?;
            let taint = words.take("a taint, as KEY:EFFECT,")?;
            let (key, effect) = match taint.split_once(':') {
                Some((key, effect)) => (key.to_owned(), Some(effect.to_owned())),
                None => (taint, None),
            };
            Test::Taint { key, effect }
        }
        "replaced" => {
            of(&["pod"])?;
            words.expect("on another node")?;
            Test::Replaced
        }
        "event" => {
            let reason = words.one_of("the reason of the event")?;
            let at_least_one = super::Compare { operator: Operator::AtLeast, number: 1 };
            let count = if words.peek().is_some_and(|word| word.starts_with(['=', '!', '<', '>'])) {
                words.compare()?
            } else {
                at_least_one
            };
            Test::Event { reason, count }
        }
        "restarts" => {
            of(&["pod"])?;
            Test::Restarts(words.compare()?)
        }
        "container" => {
            of(&["pod"])?;
            let name = words.take("the name of a container")?;
            Test::Container { name, test: container(words)? }
        }
        "field" => field(words)?,
        _ => return Err(format!("there is no test {word:?}; there are {}", TESTS.join(", "))),
    })
}

fn condition(words: &mut Words) -> Result<Test, String> {
    let text = words.take("a condition, as Ready=False,")?;
    let Some((kind, status)) = text.split_once('=') else {
        return Err(format!("{text:?} is no condition: write {text}=True, {text}=False or {text}=Unknown"));
    };
    if !["True", "False", "Unknown"].contains(&status) {
        return Err(format!("the status of a condition is True, False or Unknown, and not {status:?}"));
    }
    let reason = if words.accept("reason") { Some(words.one_of("a reason")?) } else { None };
    Ok(Test::Condition { kind: kind.to_owned(), status: status.to_owned(), reason })
}

fn container(words: &mut Words) -> Result<ContainerTest, String> {
    const ALL: [&str; 7] =
        ["running", "ready", "waiting", "terminated", "last terminated", "restarts", "restart delays"];
    let last = words.accept("last");
    let word = words.take("what the container does")?;
    if last && word != "terminated" {
        return Err(format!("\"terminated\" should stand where {word:?} stands"));
    }
    Ok(match word.as_str() {
        "running" => ContainerTest::Running,
        "ready" => ContainerTest::Ready,
        "waiting" => ContainerTest::Waiting(reason(words)?),
        "terminated" => {
            let reason = if words.peek() == Some("exit") { None } else { reason(words)? };
            let code = if words.accept("exit") { Some(words.number()?) } else { None };
            ContainerTest::Terminated { last, reason, code }
        }
        "restarts" => ContainerTest::Restarts(words.compare()?),
        "restart" => {
            words.expect("delays")?;
            let mut delays = vec![words.span()?];
            while words.span_follows() {
                delays.push(words.span()?);
            }
            let give_or_take = if words.accept("give or take") { words.span()? } else { GIVE_OR_TAKE };
            ContainerTest::Delays { delays, give_or_take }
        }
        _ => return Err(format!("{word:?} is nothing that a container does; there are {}", ALL.join(", "))),
    })
}

/// The reason that may follow: any word that goes on with nothing else.
fn reason(words: &mut Words) -> Result<Option<super::OneOf>, String> {
    match words.peek() {
        None | Some("and" | "or" | ")" | "until" | "after") => Ok(None),
        Some(_) => words.one_of("a reason").map(Some),
    }
}

fn field(words: &mut Words) -> Result<Test, String> {
    let path = field_path(&words.take("the path of a field, as .status.phase,")?)?;
    let test = if words.accept("exists") {
        FieldTest::Exists
    } else if words.accept("absent") {
        FieldTest::Absent
    } else {
        let Some(operator) = words.operator() else {
            return Err(
                "after the path of a field: a comparison (=, !=, <, <=, >, >=), exists or absent".to_owned()
            );
        };
        FieldTest::Compare(operator, words.take("a value")?)
    };
    Ok(Test::Field { path, test })
}

fn field_path(text: &str) -> Result<FieldPath, String> {
    let mut steps = Vec::new();
    let mut rest = text;
    let wrong = |why: &str| Err(format!("{text:?} is no path of a field: {why}"));
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let quoted = inside.strip_prefix('"').and_then(|inside| inside.split_once("\"]"));
            if let Some((name, after)) = quoted {
                steps.push(PathStep::Name(name.to_owned()));
                rest = after;
                continue;
            }
            let Some((inside, after)) = inside.split_once(']') else { return wrong("a bracket is open") };
            steps.push(match inside.split_once('=') {
                Some((field, value)) => PathStep::Where { field: field.to_owned(), value: value.to_owned() },
                None => match inside.parse() {
                    Ok(index) => PathStep::Index(index),
                    Err(_) => return wrong("in brackets stand 0, name=x or \"a.b/c\""),
                },
            });
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('.').unwrap_or(rest);
        let end = name.find(['.', '[']).unwrap_or(name.len());
        if end == 0 {
            return wrong("a name is missing");
        }
        steps.push(PathStep::Name(name[..end].to_owned()));
        rest = &name[end..];
    }
    if steps.is_empty() { wrong("it is empty") } else { Ok(FieldPath { text: text.to_owned(), steps }) }
}
