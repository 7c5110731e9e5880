//! What is wrong with probes and lifecycle hooks.

use serde_json::Value;

use super::{Within, invalid_each, not_supported_unless};
use crate::field::{FieldError, Path};
use crate::names;
use crate::tree::{int_at, is_empty, list_at, str_at};

/// The handlers of a probe, in the order in which they are judged.
const PROBE_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
/// The handlers of a hook.
const HOOK_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

/// Signals that a container may be stopped with, as they are listed.
const STOP_SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];
const WINDOWS_STOP_SIGNALS: &[&str] = &["SIGKILL", "SIGTERM"];

/// What is wrong with the hooks, the stop signal and the probes of the container at `path`.
pub(super) fn handlers(container: &Value, within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(said) = container.get("lifecycle") {
        errors.extend(lifecycle(said, within, &path.child("lifecycle")));
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(said) = container.get(field) {
            errors.extend(probe(field, said, within, &path.child(field)));
        }
    }
    errors
}

fn lifecycle(lifecycle: &Value, within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for hook in ["postStart", "preStop"] {
        if let Some(said) = lifecycle.get(hook) {
            errors.extend(handler(said, HOOK_HANDLERS, within, &path.child(hook)));
        }
    }
    if let Some(signal) = lifecycle.get("stopSignal").and_then(Value::as_str) {
        let path = path.child("stopSignal");
        errors.extend(match within.os {
            "" => {
                Some(FieldError::forbidden(&path, "may not be set for containers with empty `spec.os.name`"))
            }
            "windows" => not_supported_unless(signal, &path, WINDOWS_STOP_SIGNALS),
            "linux" => not_supported_unless(signal, &path, STOP_SIGNALS),
            // An unknown system is complained about where it stands.
            _ => None,
        });
    }
    errors
}

fn probe(field: &str, probe: &Value, within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = handler(probe, PROBE_HANDLERS, within, path);
    for number in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(value) = int_at(probe, &[number]).filter(|value| *value < 0) {
            let why = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(&path.child(number), value, why));
        }
    }
    let grace = int_at(probe, &["terminationGracePeriodSeconds"]);
    let grace_path = path.child("terminationGracePeriodSeconds");
    if let Some(grace) = grace.filter(|grace| *grace <= 0) {
        errors.push(FieldError::invalid(&grace_path, grace, "must be greater than 0"));
    }
    if field == "readinessProbe" {
        if let Some(grace) = grace {
            errors.push(FieldError::invalid(&grace_path, grace, "must not be set for readinessProbes"));
        }
    } else {
        let threshold = int_at(probe, &["successThreshold"]).unwrap_or(0);
        if threshold != 1 {
            errors.push(FieldError::invalid(&path.child("successThreshold"), threshold, "must be 1"));
        }
    }
    errors
}

/// Exactly one of the handlers must be there.
fn handler(said: &Value, known: &[&str], within: &Within<'_>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut found = false;
    for name in known {
        let Some(handler) = said.get(*name) else { continue };
        let path = path.child(name);
        if found {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match *name {
            "exec" => {
                if is_empty(handler.get("command")) {
                    errors.push(FieldError::required(&path.child("command"), ""));
                }
            }
            "httpGet" => errors.extend(http_get(handler, &path)),
            "sleep" => errors.extend(sleep(handler, within, &path)),
            _ => errors.extend(port(handler, &path.child("port"))),
        }
    }
    if !found {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    errors
}

fn http_get(http: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if str_at(http, &["path"]).is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    errors.extend(port(http, &path.child("port")));
    errors.extend(not_supported_unless(str_at(http, &["scheme"]), &path.child("scheme"), &["HTTP", "HTTPS"]));
    for header in list_at(http, &["httpHeaders"]) {
        let name = str_at(header, &["name"]);
        errors.extend(invalid_each(&path.child("httpHeaders"), name, names::http_header(name)));
    }
    errors
}

/// The port of a handler: a number, or the name of one.
fn port(handler: &Value, path: &Path) -> Vec<FieldError> {
    match handler.get("port").and_then(Value::as_str) {
        Some(name) => invalid_each(path, name, names::port_name(name)).collect(),
        None => {
            let number = int_at(handler, &["port"]).unwrap_or(0);
            names::port_number(number).into_iter().map(|c| FieldError::invalid(path, number, c)).collect()
        }
    }
}

/// What is no grace period is complained about where it stands, not here as well.
fn sleep(sleep: &Value, within: &Within<'_>, path: &Path) -> Option<FieldError> {
    let seconds = int_at(sleep, &["seconds"]).unwrap_or(0);
    let grace = within.grace?;
    (seconds < 0 || seconds > grace).then(|| {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        FieldError::invalid(path, seconds, why)
    })
}
