//! How scripted images and containers behave: data, from a test, a scenario file or a Pod's annotations.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::{CriError, CriResult};

/// The annotation of a Pod that says how its containers behave; with `.NAME` behind it, how that one does. The value is
/// one [`RunScript`] or a list of them, in YAML.
pub const ANNOTATION: &str = "sim.coracle.dev/script";

/// How an image, and the containers that run it, behave.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ImageScript {
    /// It is in the store from the start.
    pub present: bool,
    /// How long a pull takes.
    #[serde(with = "span")]
    pub pull_time: Duration,
    /// Pulls that fail, one entry each, before they succeed. The last entry repeats if `pull_never_succeeds`.
    pub pull_failures: Vec<CriError>,
    /// No pull ever succeeds.
    pub pull_never_succeeds: bool,
    /// Only who shows this may fetch it.
    pub login: Option<Login>,
    /// Successive runs of one container; the last one repeats. Without any, containers run until they are stopped.
    pub runs: Vec<RunScript>,
}

/// Who may fetch an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

/// How one run of a container goes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RunScript {
    /// Creating the container fails.
    pub create_error: Option<String>,
    /// The program cannot be executed.
    pub start_error: Option<String>,
    /// The program ends by itself.
    pub exit: Option<Exit>,
    /// What the stop signal does.
    pub on_stop: OnStop,
    /// Commands in the container, and probes, fail for so long after the start.
    #[serde(with = "span")]
    pub ready_after: Duration,
    /// What commands in the container answer. Without any, they succeed without a word.
    pub answers: Vec<Answer>,
    /// How much memory the program takes.
    pub memory: Option<Memory>,
    /// What the program writes.
    pub output: Vec<Line>,
    /// The program writes what it reads from its standard input, and ends with code 0 at the end of it.
    pub echo: bool,
    /// Ports at which the program listens: what comes in goes out again.
    pub ports: Vec<u16>,
}

/// A program that ends by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Exit {
    /// How long after its start.
    #[serde(with = "span")]
    pub after: Duration,
    /// Exit code.
    pub code: i32,
    /// Killed for want of memory.
    pub oom_killed: bool,
}

/// What the stop signal does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum OnStop {
    /// The program dies of the signal.
    #[default]
    Dies,
    /// The program ends with this code after this time.
    Exits {
        /// How long after the signal.
        #[serde(with = "span")]
        after: Duration,
        /// Exit code.
        #[serde(default)]
        code: i32,
    },
    /// The program ignores the signal.
    Ignores,
}

/// What a command in a container answers, from some time after the container's start on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Answer {
    /// Program and arguments; any command without.
    pub command: Vec<String>,
    /// From when on, counted from the start of the container. Of several that apply the one that begins last counts.
    #[serde(with = "span")]
    pub from: Duration,
    /// How long the command takes.
    #[serde(with = "span")]
    pub takes: Duration,
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// How much memory a program takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Memory {
    /// At the start.
    pub bytes: u64,
    /// More with every second. What exceeds the container's limit is its end.
    pub bytes_per_second: u64,
}

impl Memory {
    /// When the program has taken more than `limit`; `None` if never.
    pub(super) fn exceeds(self, limit: u64) -> Option<Duration> {
        if self.bytes > limit {
            return Some(Duration::ZERO);
        }
        if self.bytes_per_second == 0 {
            return None;
        }
        let millis = (limit - self.bytes).saturating_mul(1000) / self.bytes_per_second;
        Some(Duration::from_millis(millis.saturating_add(1)))
    }
}

/// What a program writes at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Line {
    /// How long after the start.
    #[serde(with = "span")]
    pub after: Duration,
    /// To standard error.
    pub stderr: bool,
    /// Without a line end.
    pub text: String,
}

/// What is wrong with the runtime itself.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Trouble {
    /// Only these calls, by the names that they have in the contract; all without.
    pub calls: Vec<String>,
    /// So much longer they take.
    #[serde(with = "span")]
    pub slow: Duration,
    /// They fail with this.
    pub fails: Option<CriError>,
    /// Nobody hears of events.
    pub events_lost: bool,
    /// Events are heard so much later.
    #[serde(with = "span")]
    pub events_late: Duration,
}

impl Trouble {
    pub(super) fn concerns(&self, call: &str) -> bool {
        self.calls.is_empty() || self.calls.iter().any(|name| name == call)
    }
}

/// The runs that a Pod's annotations ask for; `None` if they do not.
pub(super) fn annotated(
    annotations: &BTreeMap<String, String>,
    container: &str,
) -> CriResult<Option<Vec<RunScript>>> {
    let own = format!("{ANNOTATION}.{container}");
    let Some((name, text)) =
        [own.as_str(), ANNOTATION].into_iter().find_map(|name| Some((name, annotations.get(name)?)))
    else {
        return Ok(None);
    };
    let wrong = |why: String| CriError::InvalidArgument(format!("annotation {name}: {why}"));
    // By way of JSON, where variants with fields are maps of one entry and need no YAML tag.
    let value: Value = serde_yaml_ng::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let runs = match value {
        Value::Array(list) => list,
        one => vec![one],
    };
    let runs = runs.into_iter().map(serde_json::from_value).collect::<Result<_, _>>();
    runs.map(Some).map_err(|error| wrong(error.to_string()))
}

/// Durations as people write them: `1m30s`, `250ms`.
mod span {
    use std::time::Duration;

    use jiff::SignedDuration;
    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let given = SignedDuration::deserialize(from)?;
        Duration::try_from(given).map_err(|_| D::Error::custom("a duration cannot be negative"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> CriResult<Option<Vec<RunScript>>> {
        annotated(&BTreeMap::from([(ANNOTATION.to_owned(), text.to_owned())]), "app")
    }

    #[test]
    fn annotations_say_how_containers_behave() {
        let runs = of("{exit: {after: 1m30s, code: 3}, onStop: {exits: {after: 250ms}}}").unwrap().unwrap();
        let exit = Exit { after: Duration::from_secs(90), code: 3, oom_killed: false };
        let on_stop = OnStop::Exits { after: Duration::from_millis(250), code: 0 };
        assert_eq!(runs, [RunScript { exit: Some(exit), on_stop, ..RunScript::default() }]);
        let runs = of("[{startError: nope}, {onStop: ignores, answers: [{code: 1}]}]").unwrap().unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[1].on_stop, OnStop::Ignores);
        let own = BTreeMap::from([
            (ANNOTATION.to_owned(), "{startError: all}".to_owned()),
            (format!("{ANNOTATION}.app"), "{startError: own}".to_owned()),
        ]);
        assert_eq!(annotated(&own, "app").unwrap().unwrap()[0].start_error.as_deref(), Some("own"));
        assert_eq!(annotated(&own, "side").unwrap().unwrap()[0].start_error.as_deref(), Some("all"));
        assert_eq!(annotated(&BTreeMap::new(), "app").unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("{exti: {}}", "unknown field `exti`"),
            ("{exit: {after: -3s}}", "negative"),
            ("{exit: {after: soon}}", "duration"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(ANNOTATION), "{text}: {error}");
        }
    }

    #[test]
    fn memory_grows_to_the_limit() {
        let memory = Memory { bytes: 10, bytes_per_second: 10 };
        assert_eq!(memory.exceeds(30), Some(Duration::from_millis(2001)));
        assert_eq!(memory.exceeds(5), Some(Duration::ZERO));
        assert_eq!(Memory { bytes: 10, bytes_per_second: 0 }.exceeds(30), None);
    }
}
