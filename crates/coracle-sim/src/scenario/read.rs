//! From the text of a scenario file to data, with everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coracle_api::names;
use jiff::Timestamp;

use super::expect::{Context, expectation};
use super::fields::{Field, Fields};
use super::images;
use super::model::{Manifest, Scenario};
use super::problem::{Problem, Problems};
use super::steps::{self, Documents};
use super::yaml::{self, Content, Mark, Node};
use super::{expect, time};
use crate::NodeSettings;

/// Reads another file that a scenario names.
pub type Load<'a> = &'a dyn Fn(&str) -> std::io::Result<String>;

/// The fields of a scenario.
const FIELDS: [&str; 8] = ["scenario", "seed", "until", "start", "nodes", "images", "steps", "expect"];

/// The most nodes that a scenario may have.
const MAX_NODES: i64 = 10_000;

/// When a run starts, if the scenario does not say: a Tuesday.
const START: &str = "2030-01-01T00:00:00Z";

/// Reads a scenario file. `load` reads the files that it names.
///
/// # Errors
/// All that is wrong with it.
pub fn scenario(text: &str, load: Load<'_>) -> Result<Scenario, Problems> {
    let documents = yaml::parse(text)?;
    let Some((head, rest)) = documents.split_first() else {
        return Err(empty().into());
    };
    let mut problems = Problems::default();
    let found = read(head, rest, load, &mut problems);
    match found {
        Some(scenario) if problems.is_empty() => Ok(scenario),
        _ => Err(problems),
    }
}

fn empty() -> Problem {
    let reason = "the file is empty: a scenario has at least `until`, `nodes` and `expect`".to_owned();
    Problem { mark: Mark { line: 1, column: 1 }, field: String::new(), reason }
}

fn read(head: &Node, rest: &[Node], load: Load<'_>, problems: &mut Problems) -> Option<Scenario> {
    let root = Field::root(head);
    if head.get("apiVersion").is_some() && head.get("kind").is_some() {
        root.wrong(problems, "the first document has to be the scenario, and the manifests come after it");
        return None;
    }
    let fields = root.fields(&FIELDS, problems)?;
    let title = fields.get("scenario").and_then(|field| field.text(problems)).unwrap_or_default().to_owned();
    let seed = fields.get("seed").and_then(|field| field.integer(0, i64::MAX, problems)).unwrap_or(1);
    let until = fields.require("until", problems).and_then(|field| field.duration(problems));
    let start = start(&fields, problems);
    let nodes = fields.get("nodes").map_or_else(|| default_nodes(1), |field| nodes(&field, problems));
    let images = fields.get("images").map(|field| images::read(&field, problems)).unwrap_or_default();

    let mut documents = Documents::new(rest, problems);
    let limit = until.unwrap_or(Duration::MAX);
    let names: BTreeSet<String> = nodes.iter().map(|node| node.name.clone()).collect();
    let mut reader = steps::Reader { documents: &mut documents, nodes: &names, until: limit, load };
    let mut steps = fields.get("steps").map(|field| reader.steps(&field, problems)).unwrap_or_default();
    steps.splice(0..0, documents.left_over());
    steps.sort_by_key(|step| step.at);

    let context = Context { steps: steps.iter().filter_map(|step| step.name.clone()).collect() };
    let expectations = fields.get("expect").map(|field| expectations(&field, &context, limit, problems));
    Some(Scenario {
        title,
        seed: seed.unsigned_abs(),
        until: until?,
        start,
        start_is_given: fields.get("start").is_some(),
        nodes,
        images,
        steps,
        expectations: expectations.unwrap_or_default(),
    })
}

fn start(fields: &Fields<'_>, problems: &mut Problems) -> Timestamp {
    let default = START.parse().expect("the constant is a time");
    let Some(field) = fields.get("start") else { return default };
    let Some(text) = field.text(problems) else { return default };
    // Whatever is added to it in a run has to be a time as well.
    let within = "1970-01-01T00:00:00Z".parse::<Timestamp>().expect("a time")
        .."9000-01-01T00:00:00Z".parse::<Timestamp>().expect("a time");
    match text.parse::<Timestamp>() {
        Ok(time) if within.contains(&time) => time,
        Ok(_) => {
            field.wrong(problems, "has to be a time from the year 1970 to the year 9000");
            default
        }
        Err(_) => {
            field.wrong(problems, format!("{text:?} is no time of the calendar: write {START}"));
            default
        }
    }
}

fn default_nodes(count: i64) -> Vec<NodeSettings> {
    (1..=count).map(|n| NodeSettings::named(format!("node-{n}"))).collect()
}

fn nodes(field: &Field<'_>, problems: &mut Problems) -> Vec<NodeSettings> {
    if matches!(field.node.content, Content::Number(..)) {
        return default_nodes(field.integer(0, MAX_NODES, problems).unwrap_or(1));
    }
    let Some(items) = field.items(problems) else { return Vec::new() };
    let mut nodes: Vec<NodeSettings> = Vec::new();
    for item in &items {
        for node in group(item, problems).unwrap_or_default() {
            if nodes.iter().any(|other| other.name == node.name) {
                item.wrong(problems, format!("a node {:?} is there already", node.name));
            } else if nodes.len() >= usize::try_from(MAX_NODES).unwrap_or(usize::MAX) {
                item.wrong(problems, format!("there are more than {MAX_NODES} nodes"));
                return nodes;
            } else {
                nodes.push(node);
            }
        }
    }
    nodes
}

/// One entry of `nodes`: a node, or several that are alike.
fn group(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<NodeSettings>> {
    let fields = field.fields(&["name", "count", "cpu", "memory", "pods", "labels"], problems)?;
    let name_field = fields.get("name");
    let name = name_field.as_ref().and_then(|field| field.text(problems)).unwrap_or("node");
    if let Some(problem) = names::dns1123_subdomain(name).into_iter().next() {
        name_field
            .as_ref()
            .unwrap_or(field)
            .wrong(problems, format!("{name:?} cannot name a node: {problem}"));
    }
    let count = fields.get("count").map(|field| field.integer(1, MAX_NODES, problems).unwrap_or(1));
    let mut like = NodeSettings::default();
    if let Some(cpus) = fields.get("cpu").and_then(|field| field.integer(1, 10_000, problems)) {
        like.cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    }
    if let Some(memory) = fields.get("memory").and_then(|field| field.quantity(problems)) {
        like.memory_bytes = memory.value().unsigned_abs();
    }
    if let Some(pods) = fields.get("pods").and_then(|field| field.integer(0, 100_000, problems)) {
        like.max_pods = u32::try_from(pods).unwrap_or(u32::MAX);
    }
    if let Some(labels) = fields.get("labels") {
        like.labels = texts(&labels, problems);
    }
    Some(match count {
        None => vec![NodeSettings { name: name.to_owned(), ..like }],
        Some(count) => {
            (1..=count).map(|n| NodeSettings { name: format!("{name}-{n}"), ..like.clone() }).collect()
        }
    })
}

/// A mapping from texts to texts.
fn texts(field: &Field<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let Some(fields) = field.mapping(problems) else { return BTreeMap::new() };
    let text =
        |(key, field): (&yaml::Key, Field<'_>)| Some((key.name.clone(), field.text(problems)?.to_owned()));
    fields.all().into_iter().filter_map(text).collect()
}

fn expectations(
    field: &Field<'_>,
    context: &Context,
    until: Duration,
    problems: &mut Problems,
) -> Vec<expect::Expectation> {
    let mut found = Vec::new();
    for item in field.items(problems).unwrap_or_default() {
        let Some(fields) = item.mapping(problems) else { continue };
        for (when, field) in fields.all() {
            for what in field.one_or_more(problems).unwrap_or_default() {
                let Some(text) = what.text(problems) else { continue };
                match expectation(&when.name, text, what.mark, context) {
                    Ok(parsed) => {
                        if let Some(late) = parsed.when.latest().filter(|late| *late > until) {
                            let reason = format!(
                                "{} is after the end of the run, {}",
                                time::show(late),
                                time::show(until)
                            );
                            problems.add(when.mark, item.path.clone(), reason);
                        }
                        found.push(parsed);
                    }
                    Err(reason) => problems.add(what.mark, item.path.clone(), reason),
                }
            }
        }
    }
    found
}

/// The manifests of another file.
pub(super) fn manifests(name: &str, text: &str) -> Result<Vec<Manifest>, Problem> {
    let mut found = Vec::new();
    for node in yaml::parse(text)? {
        let target =
            steps::target_of(&node).map_err(|(mark, field, reason)| Problem { mark, field, reason })?;
        found.push(Manifest { file: Some(name.to_owned()), node, target });
    }
    Ok(found)
}
