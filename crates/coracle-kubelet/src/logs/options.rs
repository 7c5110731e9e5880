//! What a request for logs asks for: the query parameters of `PodLogOptions`.

use coracle_api::field::{FieldError, Path};
use jiff::{SignedDuration, Timestamp};
use url::form_urlencoded;

/// Which of a container's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogStream {
    /// Both.
    #[default]
    All,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What to read of a log. The default is everything there is, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Go on with what is written later, until the container has ended.
    pub follow: bool,
    /// The container before the current one.
    pub previous: bool,
    /// Only so many lines from the end. A line is a line of the file: a long line that the runtime split counts
    /// for each part, as upstream.
    pub tail_lines: Option<u64>,
    /// Only lines written at this time or later, by the log's own timestamps.
    pub since: Option<Timestamp>,
    /// Begin each line with its timestamp.
    pub timestamps: bool,
    /// Stop after so many bytes, in the middle of a line if need be.
    pub limit_bytes: Option<u64>,
    /// Only this stream.
    pub stream: LogStream,
}

/// Why a query for logs is refused. The texts are the kubelet's.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LogOptionsError {
    /// A parameter is not of its type: 400.
    #[error("{{\"message\": \"Unable to decode query.\"}}")]
    Undecodable {
        /// Which parameter.
        parameter: String,
    },
    /// A parameter has a value that is not allowed: 422.
    #[error("{{\"message\": \"Invalid request.\"}}")]
    Invalid(Vec<FieldError>),
}

impl LogOptions {
    /// Reads the options from a query string; `now` is what `sinceSeconds` counts back from.
    ///
    /// Parameters that are not about logs are left alone. Of a repeated parameter the first counts.
    ///
    /// # Errors
    /// See [`LogOptionsError`].
    pub fn parse(query: &str, now: Timestamp) -> Result<Self, LogOptionsError> {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let first = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let undecodable = |name: &str| LogOptionsError::Undecodable { parameter: name.to_owned() };
        // Only absence, "false" and "0" mean no; an empty value means yes.
        let flag = |name: &str| first(name).is_some_and(|v| !v.eq_ignore_ascii_case("false") && v != "0");
        let number = |name: &str| match first(name) {
            None => Ok(None),
            Some(text) => text.parse::<i64>().map(Some).map_err(|_| undecodable(name)),
        };

        // `tail` is an old name for `tailLines`, and stronger.
        let tail_lines = match first("tail").filter(|tail| !tail.is_empty()) {
            Some("all") => None,
            Some(_) => number("tail")?,
            None => number("tailLines")?,
        };
        let since_seconds = number("sinceSeconds")?;
        let since_time = match first("sinceTime") {
            // Old clients send "null" for no time.
            None | Some("" | "null") => None,
            Some(text) => Some(text.parse::<Timestamp>().map_err(|_| undecodable("sinceTime"))?),
        };
        let limit_bytes = number("limitBytes")?;
        let stream = first("stream");

        let mut errors = Vec::new();
        if let Some(lines) = tail_lines.filter(|lines| *lines < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(&Path::new("tailLines"), lines, detail));
        }
        if let Some(bytes) = limit_bytes.filter(|bytes| *bytes < 1) {
            errors.push(FieldError::invalid(&Path::new("limitBytes"), bytes, "must be greater than 0"));
        }
        if since_seconds.is_some() && since_time.is_some() {
            let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden(&Path::new(""), detail));
        } else if let Some(seconds) = since_seconds.filter(|seconds| *seconds < 1) {
            errors.push(FieldError::invalid(&Path::new("sinceSeconds"), seconds, "must be greater than 0"));
        }
        let stream = match stream {
            None | Some("All") => LogStream::All,
            Some("Stdout") => LogStream::Stdout,
            Some("Stderr") => LogStream::Stderr,
            Some(other) => {
                let supported = ["All", "Stderr", "Stdout"];
                errors.push(FieldError::not_supported(&Path::new("stream"), other, &supported));
                LogStream::All
            }
        };
        if stream != LogStream::All && tail_lines.is_some() {
            let detail = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(FieldError::forbidden(&Path::new(""), detail));
        }
        if !errors.is_empty() {
            return Err(LogOptionsError::Invalid(errors));
        }

        let back = |seconds| now.saturating_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        Ok(LogOptions {
            follow: flag("follow"),
            previous: flag("previous"),
            tail_lines: tail_lines.and_then(|lines| u64::try_from(lines).ok()),
            since: since_time.or(since_seconds.map(back)),
            timestamps: flag("timestamps"),
            limit_bytes: limit_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            stream,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn parse(query: &str) -> Result<LogOptions, LogOptionsError> {
        LogOptions::parse(query, now())
    }

    #[test]
    fn queries_are_read_as_upstream_reads_them() {
        let none = LogOptions::default();
        let table: &[(&str, LogOptions)] = &[
            ("", none.clone()),
            ("pretty=true&container=x", none.clone()),
            (
                "follow=true&previous=1&timestamps=",
                LogOptions { follow: true, previous: true, timestamps: true, ..none.clone() },
            ),
            ("follow=false&previous=0&timestamps=False", none.clone()),
            ("tailLines=0", LogOptions { tail_lines: Some(0), ..none.clone() }),
            ("tailLines=7&tail=3", LogOptions { tail_lines: Some(3), ..none.clone() }),
            ("tailLines=7&tail=all", none.clone()),
            ("limitBytes=1", LogOptions { limit_bytes: Some(1), ..none.clone() }),
            (
                "sinceSeconds=60",
                LogOptions { since: Some("2026-11-21T11:59:00Z".parse().unwrap()), ..none.clone() },
            ),
            ("sinceSeconds=9223372036854775807", LogOptions { since: Some(Timestamp::MIN), ..none.clone() }),
            (
                "sinceTime=2026-11-21T13:00:00.5%2B02:00",
                LogOptions { since: Some("2026-11-21T11:00:00.5Z".parse().unwrap()), ..none.clone() },
            ),
            ("sinceTime=null", none.clone()),
            ("stream=Stderr", LogOptions { stream: LogStream::Stderr, ..none }),
        ];
        for (query, expected) in table {
            assert_eq!(parse(query).as_ref(), Ok(expected), "{query}");
        }
    }

    #[test]
    fn what_is_no_number_cannot_be_decoded() {
        for query in
            ["tailLines=x", "tailLines=", "tail=x", "limitBytes=1.5", "sinceSeconds=1s", "sinceTime=today"]
        {
            let error = parse(query).unwrap_err();
            assert!(matches!(error, LogOptionsError::Undecodable { .. }), "{query}");
            assert_eq!(error.to_string(), r#"{"message": "Unable to decode query."}"#);
        }
    }

    #[test]
    fn values_that_are_not_allowed_are_refused_in_upstreams_words() {
        let table = [
            ("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes=0", "limitBytes: Invalid value: 0: must be greater than 0"),
            ("sinceSeconds=0", "sinceSeconds: Invalid value: 0: must be greater than 0"),
            ("sinceSeconds=-5", "sinceSeconds: Invalid value: -5: must be greater than 0"),
            (
                "sinceSeconds=5&sinceTime=2026-11-21T11:00:00Z",
                ": Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
            ),
            (
                "stream=both",
                r#"stream: Unsupported value: "both": supported values: "All", "Stderr", "Stdout""#,
            ),
            (
                "stream=Stdout&tailLines=1",
                ": Forbidden: `tailLines` and specific `stream` are mutually exclusive for now",
            ),
        ];
        for (query, expected) in table {
            let error = parse(query).unwrap_err();
            assert_eq!(error.to_string(), r#"{"message": "Invalid request."}"#);
            let LogOptionsError::Invalid(errors) = error else { panic!("{query}") };
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected], "{query}");
        }
    }
}
