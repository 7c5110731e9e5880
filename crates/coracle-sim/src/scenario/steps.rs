//! `steps`: what happens when, and the manifests that come after the scenario.

use std::collections::BTreeSet;
use std::time::Duration;

use super::expect::kind_of;
use super::faults::{self, FAULTS};
use super::fields::{Field, Fields};
use super::model::{Action, Manifest, Step, Target};
use super::problem::{Problem, Problems, nearest};
use super::read::{Load, manifests};
use super::seen::Id;
use super::time;
use super::yaml::{Content, Mark, Node};
use coracle_api::catalogue;

/// What a step can do, besides the faults; each step does exactly one thing.
const ACTIONS: [&str; 7] = ["apply", "applyFile", "delete", "patch", "scale", "rolloutRestart", "crash"];

/// The manifests after the scenario, and which of them a step names.
pub(super) struct Documents {
    manifests: Vec<(Manifest, bool)>,
}

impl Documents {
    pub(super) fn new(nodes: &[Node], problems: &mut Problems) -> Self {
        let mut manifests: Vec<(Manifest, bool)> = Vec::new();
        for node in nodes {
            match target_of(node) {
                Ok(target) => manifests.push((Manifest { file: None, node: node.clone(), target }, false)),
                Err((mark, field, reason)) => problems.add(mark, field, reason),
            }
        }
        Documents { manifests }
    }

    /// The manifest that `kind/name` means.
    fn take(&mut self, text: &str) -> Result<Manifest, String> {
        let Some((kind, name)) = text.split_once('/') else {
            return Err(format!("{text:?} names no manifest: write KIND/NAME, as deployment/web"));
        };
        let resource = kind_of(kind).ok_or_else(|| no_kind(kind))?;
        let is_it = |manifest: &Manifest| {
            manifest.target.resource.kind == resource.kind && manifest.target.name == name
        };
        match self.manifests.iter_mut().find(|(manifest, _)| is_it(manifest)) {
            Some((manifest, used)) => {
                *used = true;
                Ok(manifest.clone())
            }
            None => Err(format!("no manifest in this file is a {} named {name:?}", resource.kind)),
        }
    }

    /// A step at the start that applies what no other step names.
    pub(super) fn left_over(self) -> Option<Step> {
        let left: Vec<Manifest> =
            self.manifests.into_iter().filter(|(_, used)| !used).map(|(manifest, _)| manifest).collect();
        let mark = left.first()?.node.mark;
        let action = Action::Apply(left);
        Some(Step { at: Duration::ZERO, name: None, mark, path: String::new(), action })
    }
}

/// Which object a manifest is, or what keeps it from being one.
pub(super) fn target_of(node: &Node) -> Result<Target, (Mark, String, String)> {
    let text = |path: &[&str]| {
        path.iter().try_fold(node, |node, name| node.get(name)).and_then(Node::text).unwrap_or_default()
    };
    let wrong = |path: &str, reason: String| (node.locate(path), path.to_owned(), reason);
    if !matches!(node.content, Content::Map(_)) {
        return Err((
            node.mark,
            String::new(),
            format!("a manifest has to be a mapping, this is {}", node.kind()),
        ));
    }
    let (api_version, kind) = (text(&["apiVersion"]), text(&["kind"]));
    for (field, value) in [("apiVersion", api_version), ("kind", kind)] {
        if value.is_empty() {
            return Err(wrong(field, "is required in a manifest".to_owned()));
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let Some(resource) = catalogue::by_kind(group, version, kind) else {
        let mut known = catalogue::resources().iter().map(|r| format!("{} {}", r.api_version(), r.kind));
        let meant = known.find(|known| known.ends_with(&format!(" {kind}")));
        let hint = meant.map(|known| format!("; there is {known}")).unwrap_or_default();
        return Err(wrong("kind", format!("no matches for kind {kind:?} in version {api_version:?}{hint}")));
    };
    let name = text(&["metadata", "name"]);
    if name.is_empty() {
        return Err(wrong("metadata.name", "is required in a manifest".to_owned()));
    }
    let namespace = match text(&["metadata", "namespace"]) {
        _ if !resource.namespaced => "",
        "" => "default",
        namespace => namespace,
    };
    Ok(Target { resource, namespace: namespace.to_owned(), name: name.to_owned() })
}

fn no_kind(kind: &str) -> String {
    match nearest(kind, catalogue::resources().iter().map(|resource| resource.singular)) {
        Some(name) => format!("there is no kind {kind:?}; did you mean {name:?}?"),
        None => format!("there is no kind {kind:?}"),
    }
}

/// Reads steps.
pub(super) struct Reader<'a> {
    pub(super) documents: &'a mut Documents,
    pub(super) nodes: &'a BTreeSet<String>,
    pub(super) until: Duration,
    pub(super) load: Load<'a>,
}

impl Reader<'_> {
    pub(super) fn steps(&mut self, field: &Field<'_>, problems: &mut Problems) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut before = Duration::ZERO;
        for item in field.items(problems).unwrap_or_default() {
            let Some(step) = self.step(&item, before, problems) else { continue };
            before = step.at;
            if let Some(name) = &step.name
                && steps.iter().any(|other| other.name.as_ref() == Some(name))
            {
                item.wrong(problems, format!("another step is named {name:?} too"));
            }
            steps.push(step);
        }
        steps
    }

    fn step(&mut self, field: &Field<'_>, before: Duration, problems: &mut Problems) -> Option<Step> {
        let actions: Vec<&str> = ACTIONS.into_iter().chain(FAULTS).collect();
        let known: Vec<&str> = ["at", "name"].into_iter().chain(actions.iter().copied()).collect();
        let fields = field.fields(&known, problems)?;
        let at = fields.require("at", problems).and_then(|field| self.at(&field, before, problems));
        let name = fields.get("name").and_then(|field| name(&field, problems));
        let given: Vec<&str> = actions.iter().copied().filter(|name| fields.get(name).is_some()).collect();
        let [action] = given.as_slice() else {
            let reason = match given.as_slice() {
                [] => format!("says when, but not what: there are {}", actions.join(", ")),
                several => {
                    format!("does several things at once ({}): make a step of each", several.join(", "))
                }
            };
            field.wrong(problems, reason);
            return None;
        };
        let action = self.action(action, &fields.get(action)?, problems);
        Some(Step { at: at?, name, mark: field.mark, path: field.path.clone(), action: action? })
    }

    /// `90s` after the start, or `+90s` after the step before.
    fn at(&self, field: &Field<'_>, before: Duration, problems: &mut Problems) -> Option<Duration> {
        let text = match &field.node.content {
            Content::Text(text) | Content::Number(_, text) => text.trim(),
            _ => {
                field.wrong(
                    problems,
                    format!("has to be a time, as 90s or +90s, this is {}", field.node.kind()),
                );
                return None;
            }
        };
        let parsed = match text.strip_prefix('+') {
            Some(later) => time::parse(later).map(|later| before.saturating_add(later)),
            None => time::parse(text),
        };
        match parsed {
            Ok(at) if at <= self.until => Some(at),
            Ok(at) => {
                let (at, until) = (time::show(at), time::show(self.until));
                field.wrong(problems, format!("{at} is after the end of the run, {until}"));
                None
            }
            Err(reason) => {
                field.wrong(problems, reason);
                None
            }
        }
    }

    fn action(&mut self, kind: &str, field: &Field<'_>, problems: &mut Problems) -> Option<Action> {
        Some(match kind {
            "apply" => Action::Apply(self.apply(field, problems)?),
            "applyFile" => Action::Apply(self.apply_file(field, problems)?),
            "delete" => delete(field, problems)?,
            "patch" => patch(field, problems)?,
            "scale" => {
                let fields = field.fields(&["object", "namespace", "replicas"], problems)?;
                let replicas = fields.require("replicas", problems);
                let replicas = replicas.and_then(|field| field.integer(0, 100_000, problems));
                let target = object(&fields, problems)?;
                Action::Scale { target, replicas: u32::try_from(replicas?).unwrap_or(u32::MAX) }
            }
            "rolloutRestart" => Action::RolloutRestart(short_object(field, problems)?),
            "crash" => crash(field, problems)?,
            _ => Action::Fault(faults::read(kind, field, self.nodes, problems)?),
        })
    }

    /// `KIND/NAME` of a manifest in this file, a manifest, or a list of both.
    fn apply(&mut self, field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Manifest>> {
        let mut found = Vec::new();
        for item in field.one_or_more(problems)? {
            match &item.node.content {
                Content::Text(text) => match self.documents.take(text) {
                    Ok(manifest) => found.push(manifest),
                    Err(reason) => item.wrong(problems, reason),
                },
                _ => match target_of(item.node) {
                    Ok(target) => found.push(Manifest { file: None, node: item.node.clone(), target }),
                    Err((mark, path, reason)) => problems.add(mark, join(&item.path, &path), reason),
                },
            }
        }
        Some(found)
    }

    fn apply_file(&self, field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Manifest>> {
        let mut found = Vec::new();
        for item in field.one_or_more(problems)? {
            let name = item.text(problems)?;
            let text = (self.load)(name)
                .map_err(|error| item.wrong(problems, format!("cannot read {name}: {error}")));
            match manifests(name, &text.ok()?) {
                Ok(manifests) => found.extend(manifests),
                Err(Problem { mark, field, reason }) => {
                    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
                    item.wrong(problems, format!("{name} line {}: {field}{reason}", mark.line));
                }
            }
        }
        Some(found)
    }
}

/// The name of a step: one word that can be told from a time and from what begins a claim.
fn name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let name = field.text(problems)?;
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let reserved = ["end", "every", "some", "no", "not", "exactly", "at"];
    if !is_word {
        field.wrong(problems, "has to be one word of letters, digits and hyphens");
    } else if reserved.contains(&name) || kind_of(name).is_some() {
        field.wrong(problems, format!("{name:?} means something else in an expectation: take another word"));
    }
    Some(name.to_owned())
}

fn namespace(fields: &Fields<'_>, problems: &mut Problems) -> String {
    let given = fields.get("namespace").and_then(|field| field.text(problems));
    given.unwrap_or("default").to_owned()
}

/// The object that the fields `object` and `namespace` name.
fn object(fields: &Fields<'_>, problems: &mut Problems) -> Option<Target> {
    let field = fields.require("object", problems)?;
    let mut target = short_object(&field, problems)?;
    if target.resource.namespaced {
        target.namespace = namespace(fields, problems);
    } else if let Some(field) = fields.get("namespace") {
        field.wrong(problems, format!("a {} is in no namespace", target.resource.kind));
    }
    Some(target)
}

/// `KIND/NAME`.
fn short_object(field: &Field<'_>, problems: &mut Problems) -> Option<Target> {
    let text = field.text(problems)?;
    let Some((kind, name)) = text.split_once('/').filter(|(_, name)| !name.is_empty()) else {
        field.wrong(problems, format!("{text:?} names no object: write KIND/NAME, as pod/web-0"));
        return None;
    };
    let Some(resource) = kind_of(kind) else {
        field.wrong(problems, no_kind(kind));
        return None;
    };
    let namespace = if resource.namespaced { "default" } else { "" };
    Some(Target { resource, namespace: namespace.to_owned(), name: name.to_owned() })
}

fn crash(field: &Field<'_>, problems: &mut Problems) -> Option<Action> {
    let fields = field.fields(&["pod", "namespace", "container", "exit"], problems)?;
    let name = fields.require("pod", problems)?.text(problems)?.to_owned();
    let pod = Id { kind: "pod", namespace: namespace(&fields, problems), name };
    let container = fields.require("container", problems)?.text(problems)?.to_owned();
    let code = fields.get("exit").map_or(Some(137), |field| field.integer(0, 255, problems))?;
    Some(Action::Crash { pod, container, code: i32::try_from(code).unwrap_or(255) })
}

fn delete(field: &Field<'_>, problems: &mut Problems) -> Option<Action> {
    if field.node.text().is_some() {
        return Some(Action::Delete { target: short_object(field, problems)?, grace: None });
    }
    let fields = field.fields(&["object", "namespace", "gracePeriod"], problems)?;
    let grace = match fields.get("gracePeriod") {
        Some(field) => Some(field.duration(problems)?),
        None => None,
    };
    Some(Action::Delete { target: object(&fields, problems)?, grace })
}

fn patch(field: &Field<'_>, problems: &mut Problems) -> Option<Action> {
    let fields = field.fields(&["object", "namespace", "type", "patch"], problems)?;
    let target = object(&fields, problems);
    let media_type = match fields.get("type") {
        None => "application/strategic-merge-patch+json",
        Some(field) => match field.text(problems)? {
            "strategic" => "application/strategic-merge-patch+json",
            "merge" => "application/merge-patch+json",
            "json" => "application/json-patch+json",
            _ => {
                field.wrong(problems, "has to be strategic, merge or json");
                return None;
            }
        },
    };
    let body = fields.require("patch", problems)?.node.clone();
    Some(Action::Patch { target: target?, media_type, body })
}

fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (_, true) => a.to_owned(),
        (true, _) => b.to_owned(),
        _ => format!("{a}.{b}"),
    }
}
