//! The steps that break something, or mend it.

use std::collections::BTreeSet;
use std::time::Duration;

use coracle_api::catalogue;
use coracle_cri::CriError;
use coracle_cri::scripted::Trouble;
use jiff::SignedDuration;

use super::fields::{Field, Fields};
use super::problem::{Problems, nearest};
use super::time;
use crate::{Fault, Leftover};

/// What can break, by the names that steps have for it.
pub(super) const FAULTS: [&str; 18] = [
    "powerLoss",
    "agentCrash",
    "partition",
    "slowLink",
    "networkDown",
    "runtimeTrouble",
    "clockJump",
    "heal",
    "serverRestart",
    "serverCrash",
    "serverPowerLoss",
    "componentsRestart",
    "componentsSlow",
    "componentsStale",
    "meddler",
    "storeCrash",
    "flushFails",
    "diskFull",
];

/// The calls of a runtime that can be slow or fail.
const CALLS: [&str; 23] = [
    "attach",
    "container_events",
    "container_status",
    "create_container",
    "exec",
    "exec_sync",
    "image_status",
    "list_containers",
    "list_images",
    "list_pod_sandboxes",
    "pod_sandbox_status",
    "port_forward",
    "pull_image",
    "remove_container",
    "remove_pod_sandbox",
    "reopen_container_log",
    "run_pod_sandbox",
    "start_container",
    "status",
    "stop_container",
    "stop_pod_sandbox",
    "update_container_resources",
    "update_pod_cidr",
];

/// Reads one of [`FAULTS`].
pub(super) fn read(
    kind: &str,
    field: &Field<'_>,
    nodes: &BTreeSet<String>,
    problems: &mut Problems,
) -> Option<Fault> {
    // The name of a node may stand for a mapping that has nothing else.
    if field.node.text().is_some() {
        let node = node(field, nodes, problems)?;
        return match kind {
            "powerLoss" => Some(Fault::PowerLoss { node, lasts: None }),
            "agentCrash" => Some(Fault::AgentCrash { node, lasts: None }),
            "partition" => Some(Fault::Partition { node, lasts: None }),
            "networkDown" => Some(Fault::NetworkDown { node, lasts: None }),
            "heal" => Some(Fault::Heal { node }),
            _ => {
                field.wrong(problems, "has to be a mapping");
                None
            }
        };
    }
    let known: &[&str] = match kind {
        "powerLoss" | "agentCrash" | "partition" | "networkDown" => &["node", "for"],
        "slowLink" => &["node", "by", "for"],
        "runtimeTrouble" => &["node", "calls", "slow", "fails", "eventsLost", "eventsLate", "for"],
        "componentsSlow" => &["by", "for"],
        "componentsStale" => &["by", "of", "for"],
        "clockJump" => &["node", "by"],
        "heal" => &["node"],
        "serverPowerLoss" => &["for", "leaves"],
        "storeCrash" => &["step"],
        "flushFails" => &["nth"],
        _ => &["for"],
    };
    let fields = field.fields(known, problems)?;
    let one = |name: &str, problems: &mut Problems| {
        let field = fields.require(name, problems)?;
        field.integer(1, 1_000_000_000, problems).map(i64::unsigned_abs)
    };
    Some(match kind {
        "powerLoss" => Fault::PowerLoss {
            node: of_node(&fields, nodes, problems)?,
            lasts: maybe("for", &fields, problems)?,
        },
        "agentCrash" => Fault::AgentCrash {
            node: of_node(&fields, nodes, problems)?,
            lasts: maybe("for", &fields, problems)?,
        },
        "partition" => Fault::Partition {
            node: of_node(&fields, nodes, problems)?,
            lasts: maybe("for", &fields, problems)?,
        },
        "networkDown" => Fault::NetworkDown {
            node: of_node(&fields, nodes, problems)?,
            lasts: maybe("for", &fields, problems)?,
        },
        "runtimeTrouble" => Fault::RuntimeTrouble {
            node: of_node(&fields, nodes, problems)?,
            trouble: trouble(&fields, problems)?,
            lasts: maybe("for", &fields, problems)?,
        },
        "slowLink" => Fault::SlowLink {
            node: of_node(&fields, nodes, problems)?,
            by: signed(fields.require("by", problems)?.duration(problems)?),
            lasts: maybe("for", &fields, problems)?,
        },
        "clockJump" => Fault::ClockJump {
            node: of_node(&fields, nodes, problems)?,
            by: jump(&fields.require("by", problems)?, problems)?,
        },
        "heal" => Fault::Heal { node: of_node(&fields, nodes, problems)? },
        "serverRestart" => Fault::ServerRestart { lasts: lasts(&fields, problems)? },
        "serverCrash" => Fault::ServerCrash { lasts: lasts(&fields, problems)? },
        "serverPowerLoss" => {
            Fault::ServerPowerLoss { lasts: lasts(&fields, problems)?, leaves: leaves(&fields, problems)? }
        }
        "componentsRestart" => Fault::ComponentsRestart { lasts: lasts(&fields, problems)? },
        "componentsSlow" => Fault::ComponentsSlow {
            by: signed(fields.require("by", problems)?.duration(problems)?),
            lasts: lasts(&fields, problems)?,
        },
        "componentsStale" => Fault::ComponentsStale {
            by: signed(fields.require("by", problems)?.duration(problems)?),
            of: kind_of(&fields, problems)?,
            lasts: lasts(&fields, problems)?,
        },
        "meddler" => Fault::Meddler { lasts: lasts(&fields, problems)? },
        "storeCrash" => Fault::StoreCrash { step: one("step", problems)? },
        "flushFails" => Fault::FlushFails { nth: one("nth", problems)? },
        "diskFull" => Fault::DiskFull { lasts: maybe("for", &fields, problems)? },
        _ => return None,
    })
}

fn of_node(fields: &Fields<'_>, nodes: &BTreeSet<String>, problems: &mut Problems) -> Option<String> {
    node(&fields.require("node", problems)?, nodes, problems)
}

/// The name of a node that there is.
fn node(field: &Field<'_>, nodes: &BTreeSet<String>, problems: &mut Problems) -> Option<String> {
    let name = field.text(problems)?;
    if nodes.contains(name) {
        return Some(name.to_owned());
    }
    let reason = match nearest(name, nodes.iter().map(String::as_str)) {
        Some(near) => format!("there is no node {name:?}; did you mean {near:?}?"),
        None => format!("there is no node {name:?}"),
    };
    field.wrong(problems, reason);
    None
}

/// What is wrong with a runtime: `calls` that are `slow` or `fails` (with a message), events that are lost or late.
fn trouble(fields: &Fields<'_>, problems: &mut Problems) -> Option<Trouble> {
    let span = |name: &str, problems: &mut Problems| {
        fields.get(name).map_or(Some(Duration::ZERO), |field| field.duration(problems))
    };
    let mut trouble = Trouble {
        slow: span("slow", problems)?,
        events_late: span("eventsLate", problems)?,
        events_lost: fields.get("eventsLost").map_or(Some(false), |field| field.truth(problems))?,
        ..Trouble::default()
    };
    if let Some(field) = fields.get("fails") {
        trouble.fails = Some(CriError::Internal(field.text(problems)?.to_owned()));
    }
    for call in fields.get("calls").map_or(Some(Vec::new()), |field| field.items(problems))? {
        let name = call.text(problems)?;
        if !CALLS.contains(&name) {
            let hint = nearest(name, CALLS)
                .map_or_else(|| CALLS.join(", "), |near| format!("did you mean {near:?}?"));
            call.wrong(problems, format!("there is no call {name:?}; {hint}"));
        }
        trouble.calls.push(name.to_owned());
    }
    if trouble == (Trouble { calls: trouble.calls.clone(), ..Trouble::default() }) {
        problems.add(fields.mark(), fields.path_of("slow"), "or fails, eventsLost or eventsLate is required");
    }
    Some(trouble)
}

/// The plural of a kind, if one is named. The outer `None` is for what has been complained about.
#[allow(clippy::option_option, reason = "not said, and said wrongly, are two things")]
fn kind_of(fields: &Fields<'_>, problems: &mut Problems) -> Option<Option<String>> {
    let Some(field) = fields.get("of") else { return Some(None) };
    let name = field.text(problems)?;
    let plurals = || catalogue::resources().iter().map(|resource| resource.plural);
    if plurals().any(|plural| plural == name) {
        return Some(Some(name.to_owned()));
    }
    let hint = nearest(name, plurals()).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
    field.wrong(problems, format!("there is no kind with the plural {name:?}{hint}"));
    None
}

fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}

/// How long it lasts, if it is said. The outer `None` is for what has been complained about.
#[allow(clippy::option_option, reason = "not said, and said wrongly, are two things")]
fn maybe(name: &str, fields: &Fields<'_>, problems: &mut Problems) -> Option<Option<SignedDuration>> {
    match fields.get(name) {
        Some(field) => field.duration(problems).map(|span| Some(signed(span))),
        None => Some(None),
    }
}

/// How long it lasts, which has to be said.
fn lasts(fields: &Fields<'_>, problems: &mut Problems) -> Option<SignedDuration> {
    fields.require("for", problems)?.duration(problems).map(signed)
}

/// A span that may go back.
fn jump(field: &Field<'_>, problems: &mut Problems) -> Option<SignedDuration> {
    let text = field.text(problems)?;
    let (back, span) = match text.strip_prefix('-') {
        Some(span) => (true, span),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let span = time::parse(span).map_err(|reason| field.wrong(problems, reason)).ok().map(signed)?;
    Some(if back { -span } else { span })
}

fn leaves(fields: &Fields<'_>, problems: &mut Problems) -> Option<Leftover> {
    let Some(field) = fields.get("leaves") else { return Some(Leftover::default()) };
    match field.text(problems)? {
        "nothing" => Some(Leftover::Nothing),
        "anySectors" => Some(Leftover::AnySectors),
        "allButTheLast" => Some(Leftover::AllButTheLast),
        "all" => Some(Leftover::All),
        _ => {
            field.wrong(problems, "has to be nothing, anySectors, allButTheLast or all");
            None
        }
    }
}
