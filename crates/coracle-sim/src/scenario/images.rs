//! `images`: how containers of an image behave. The words are those of the annotations of Pods (see
//! [`coracle_cri::scripted`]), with some for what is usual.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_cri::CriError;
use coracle_cri::scripted::{Answer, Exit, ImageScript, Line, Memory, OnStop, RunScript};

use super::fields::{Field, Fields};
use super::problem::Problems;
use super::yaml::Content;

/// What a program does with SIGTERM if nothing is said.
const POLITE: OnStop = OnStop::Exits { after: Duration::from_millis(100), code: 143 };

/// Reads the mapping from image names to behaviours.
pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> BTreeMap<String, ImageScript> {
    let Some(fields) = field.mapping(problems) else { return BTreeMap::new() };
    let mut images = BTreeMap::new();
    for (key, field) in fields.all() {
        if let Some(script) = image(&field, problems) {
            images.insert(with_tag(&key.name), script);
        }
    }
    images
}

/// The name under which the node agent asks for an image: without a tag or digest it is the latest.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

fn image(field: &Field<'_>, problems: &mut Problems) -> Option<ImageScript> {
    let known = ["present", "pullTime", "pullFailures", "runs", "onStop", "readyAfter", "probes"];
    let fields = field.fields(&known, problems)?;
    let mut script = ImageScript::default();
    if let Some(present) = fields.get("present") {
        script.present = present.truth(problems)?;
    }
    if let Some(time) = fields.get("pullTime") {
        script.pull_time = time.duration(problems)?;
    }
    if let Some(failures) = fields.get("pullFailures") {
        pull_failures(&failures, &mut script, problems);
    }
    let usual = RunScript {
        on_stop: fields.get("onStop").map_or(Some(POLITE), |field| on_stop(&field, problems))?,
        ready_after: ready_after(&fields, Duration::ZERO, problems)?,
        answers: answers(&fields, &[], problems)?,
        ..RunScript::default()
    };
    if let Some(runs) = fields.get("runs") {
        for item in runs.items(problems)? {
            let (run, times) = run(&item, &usual, problems)?;
            script.runs.extend(std::iter::repeat_n(run, times));
        }
    }
    if script.runs.is_empty() {
        script.runs.push(usual);
    }
    Some(script)
}

/// A number of failures, `always`, or their messages one by one.
fn pull_failures(field: &Field<'_>, script: &mut ImageScript, problems: &mut Problems) {
    const MESSAGE: &str = "the registry does not answer";
    let failure = |message: &str| CriError::Internal(message.to_owned());
    match &field.node.content {
        Content::Number(..) => {
            let count = field.integer(0, 10_000, problems).unwrap_or(0);
            script.pull_failures = (0..count).map(|_| failure(MESSAGE)).collect();
        }
        Content::List(_) => {
            for item in field.items(problems).unwrap_or_default() {
                script.pull_failures.extend(item.text(problems).map(failure));
            }
        }
        _ => match field.text(problems) {
            Some("always") => {
                script.pull_failures = vec![failure(MESSAGE)];
                script.pull_never_succeeds = true;
            }
            Some(_) => field.wrong(problems, "has to be a number, a list of messages, or `always`"),
            None => {}
        },
    }
}

/// For how long after a start probes and commands fail.
fn ready_after(fields: &Fields<'_>, usual: Duration, problems: &mut Problems) -> Option<Duration> {
    fields.get("readyAfter").map_or(Some(usual), |field| field.duration(problems))
}

/// `probes`: what probes, hooks and other commands are answered, from some time after the start on.
fn answers(fields: &Fields<'_>, usual: &[Answer], problems: &mut Problems) -> Option<Vec<Answer>> {
    let Some(field) = fields.get("probes") else { return Some(usual.to_vec()) };
    field.items(problems)?.iter().map(|item| answer(item, problems)).collect()
}

/// `{httpGet: {port: 80, path: /live}, from: 30s, code: 500}`: the words of a Pod's probe, if it is about one; `code` is
/// an exit code, a status code of HTTP, or other than 0 where nobody is to answer.
fn answer(field: &Field<'_>, problems: &mut Problems) -> Option<Answer> {
    let whom = ["exec", "httpGet", "tcpSocket", "grpc"];
    let known = ["exec", "httpGet", "tcpSocket", "grpc", "from", "takes", "code", "output"];
    let fields = field.fields(&known, problems)?;
    let span = |name: &str, problems: &mut Problems| {
        fields.get(name).map_or(Some(Duration::ZERO), |field| field.duration(problems))
    };
    let mut answer = Answer {
        from: span("from", problems)?,
        takes: span("takes", problems)?,
        stdout: text(&fields, "output", problems).unwrap_or_default(),
        ..Answer::default()
    };
    let code = fields.get("code").map_or(Some(0), |field| field.integer(0, 999, problems))?;
    answer.code = i32::try_from(code).ok()?;
    let mut named = whom.iter().filter_map(|name| Some((*name, fields.get(name)?)));
    let Some((kind, asked)) = named.next() else { return Some(answer) };
    if named.next().is_some() {
        field.wrong(problems, "one of exec, httpGet, tcpSocket and grpc is enough");
        return None;
    }
    if kind == "exec" {
        for word in asked.items(problems)? {
            answer.command.push(word.text(problems)?.to_owned());
        }
        return Some(answer);
    }
    let asked = asked.fields(&["port", "path", "service"], problems)?;
    let port = asked.require("port", problems)?.integer(1, 65_535, problems)?;
    answer.command = vec![kind.to_owned(), port.to_string()];
    match kind {
        "httpGet" => answer.command.push(text(&asked, "path", problems).unwrap_or_else(|| "/".to_owned())),
        "grpc" => answer.command.push(text(&asked, "service", problems).unwrap_or_default()),
        _ => {}
    }
    Some(answer)
}

/// One entry of `runs`, and for how many runs it stands.
fn run(field: &Field<'_>, usual: &RunScript, problems: &mut Problems) -> Option<(RunScript, usize)> {
    let known =
        ["exit", "onStop", "createError", "startError", "memory", "output", "times", "readyAfter", "probes"];
    let fields = field.fields(&known, problems)?;
    let times = fields.get("times").map_or(Some(1), |field| field.integer(1, 10_000, problems))?;
    let mut script = RunScript {
        create_error: text(&fields, "createError", problems),
        start_error: text(&fields, "startError", problems),
        on_stop: usual.on_stop,
        ready_after: ready_after(&fields, usual.ready_after, problems)?,
        answers: answers(&fields, &usual.answers, problems)?,
        ..RunScript::default()
    };
    if let Some(field) = fields.get("onStop") {
        script.on_stop = on_stop(&field, problems)?;
    }
    if let Some(field) = fields.get("exit") {
        script.exit = Some(exit(&field, problems)?);
    }
    if let Some(field) = fields.get("memory") {
        let fields = field.fields(&["bytes", "bytesPerSecond"], problems)?;
        let mut amount = |name: &str| match fields.get(name) {
            Some(field) => field.quantity(problems).map(|quantity| quantity.value().unsigned_abs()),
            None => Some(0),
        };
        script.memory = Some(Memory { bytes: amount("bytes")?, bytes_per_second: amount("bytesPerSecond")? });
    }
    if let Some(field) = fields.get("output") {
        for item in field.items(problems)? {
            script.output.push(line(&item, problems)?);
        }
    }
    Some((script, usize::try_from(times).unwrap_or(1)))
}

fn text(fields: &Fields<'_>, name: &str, problems: &mut Problems) -> Option<String> {
    fields.get(name)?.text(problems).map(str::to_owned)
}

/// `{code: 1, after: 5s}`; with `oomKilled: true` the code is 137 if none is given.
fn exit(field: &Field<'_>, problems: &mut Problems) -> Option<Exit> {
    let fields = field.fields(&["code", "after", "oomKilled"], problems)?;
    let oom_killed = fields.get("oomKilled").map_or(Some(false), |field| field.truth(problems))?;
    let usual = if oom_killed { 137 } else { 0 };
    Some(Exit { after: after(&fields, problems)?, code: code(&fields, usual, problems)?, oom_killed })
}

fn after(fields: &Fields<'_>, problems: &mut Problems) -> Option<Duration> {
    fields.get("after").map_or(Some(Duration::ZERO), |field| field.duration(problems))
}

fn code(fields: &Fields<'_>, usual: i64, problems: &mut Problems) -> Option<i32> {
    let code = fields.get("code").map_or(Some(usual), |field| field.integer(0, 255, problems))?;
    i32::try_from(code).ok()
}

/// `ignores`, `dies`, or `{exits: {after: 20s, code: 0}}`.
fn on_stop(field: &Field<'_>, problems: &mut Problems) -> Option<OnStop> {
    match field.node.text() {
        Some("ignores") => return Some(OnStop::Ignores),
        Some("dies") => return Some(OnStop::Dies),
        Some(_) => {
            field.wrong(problems, "has to be `ignores`, `dies` or a mapping with `exits`");
            return None;
        }
        None => {}
    }
    let fields = field
        .fields(&["exits"], problems)?
        .require("exits", problems)?
        .fields(&["after", "code"], problems)?;
    Some(OnStop::Exits { after: after(&fields, problems)?, code: code(&fields, 0, problems)? })
}

/// What the program writes: `{after: 1s, text: hello}`.
fn line(field: &Field<'_>, problems: &mut Problems) -> Option<Line> {
    let fields = field.fields(&["after", "text", "stderr"], problems)?;
    let stderr = fields.get("stderr").map_or(Some(false), |field| field.truth(problems))?;
    let text = fields.require("text", problems)?.text(problems)?.to_owned();
    Some(Line { after: after(&fields, problems)?, stderr, text })
}
