//! Options of requests that node agents answer: checked, and in the agents' own words.

use coracle_api::field::{FieldError, Path};
use coracle_api::status::Status;
use url::form_urlencoded;

use crate::call::Call;

/// The options of a log request, checked, as the node agent wants them.
pub(super) fn log_query(call: &Call) -> Result<String, Status> {
    let query = &call.query;
    let mut errors = Vec::new();
    let mut out = form_urlencoded::Serializer::new(String::new());
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            out.append_pair(flag, "true");
        }
    }
    if query.flag("insecureSkipTLSVerifyBackend") {
        let path = Path::new("insecureSkipTLSVerifyBackend");
        errors.push(FieldError::forbidden(&path, "node agents are always verified"));
    }
    for (field, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(number) = query.number(field)? {
            if number < least {
                errors.push(FieldError::invalid(&Path::new(field), number, why));
            }
            out.append_pair(field, &number.to_string());
        }
    }
    let since = query.get("sinceTime");
    if !since.is_empty() {
        if query.has("sinceSeconds") {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden(&Path::new(""), why));
        }
        if since.parse::<coracle_api::Timestamp>().is_err() {
            return Err(Status::bad_request(format!("parsing time {since:?}: not a time in RFC 3339")));
        }
        out.append_pair("sinceTime", since);
    }
    match query.get("stream") {
        "" | "All" => {}
        stream @ ("Stdout" | "Stderr") => {
            if query.has("tailLines") {
                let why = "`tailLines` and specific `stream` are mutually exclusive for now";
                errors.push(FieldError::forbidden(&Path::new(""), why));
            }
            out.append_pair("stream", stream);
        }
        other => {
            errors.push(FieldError::not_supported(&Path::new("stream"), other, &["All", "Stdout", "Stderr"]));
        }
    }
    if errors.is_empty() { Ok(out.finish()) } else { Err(Status::invalid("", "PodLogOptions", "", &errors)) }
}

/// The streams that are asked for, as the node agent wants them.
pub(super) fn stream_query(call: &Call) -> Result<form_urlencoded::Serializer<'static, String>, Status> {
    let query = &call.query;
    let streams = [("stdin", "input"), ("stdout", "output"), ("stderr", "error")];
    if !streams.iter().any(|(name, _)| query.flag(name)) {
        let why = "at least one of stdin, stdout or stderr must be specified";
        return Err(Status::bad_request(why));
    }
    let mut out = form_urlencoded::Serializer::new(String::new());
    let tty = query.flag("tty");
    for (name, onward) in streams {
        // A terminal has one output.
        if query.flag(name) && !(tty && name == "stderr") {
            out.append_pair(onward, "1");
        }
    }
    if tty {
        out.append_pair("tty", "1");
    }
    Ok(out)
}

/// The options of an exec request, as the node agent wants them.
pub(super) fn exec_query(call: &Call) -> Result<String, Status> {
    let mut out = stream_query(call)?;
    let commands = call.query.all("command");
    if commands.is_empty() {
        let errors = [FieldError::required(&Path::new("command"), "")];
        return Err(Status::invalid("", "PodExecOptions", "", &errors));
    }
    for command in commands {
        out.append_pair("command", command);
    }
    Ok(out.finish())
}
