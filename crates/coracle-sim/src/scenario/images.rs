//! `images`: how containers of an image behave.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_cri::CriError;
use coracle_cri::scripted::{Exit, ImageScript, OnStop, RunScript};

use super::fields::Field;
use super::problem::Problems;

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
    let fields = field.fields(&["present", "pullTime", "pullFailures", "runs", "onSigterm"], problems)?;
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
    let on_stop = fields.get("onSigterm").and_then(|field| on_sigterm(&field, problems));
    if let Some(runs) = fields.get("runs") {
        for item in runs.items(problems)? {
            let (run, times) = run(&item, on_stop, problems)?;
            script.runs.extend(std::iter::repeat_n(run, times));
        }
    }
    if script.runs.is_empty() {
        script.runs.push(RunScript { on_stop: on_stop.unwrap_or(POLITE), ..RunScript::default() });
    }
    Some(script)
}

/// What a program does with SIGTERM if nothing is said.
const POLITE: OnStop = OnStop::Exits { after: Duration::from_millis(100), code: 0 };

/// A number of failures, `always`, or their messages one by one.
fn pull_failures(field: &Field<'_>, script: &mut ImageScript, problems: &mut Problems) {
    let failure = |message: &str| CriError::NotFound(message.to_owned());
    const MESSAGE: &str = "the registry does not answer";
    match &field.node.content {
        super::yaml::Content::Number(..) => {
            let count = field.integer(0, 10_000, problems).unwrap_or(0);
            script.pull_failures = (0..count).map(|_| failure(MESSAGE)).collect();
        }
        super::yaml::Content::List(_) => {
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

/// One entry of `runs`, and for how many runs it stands.
fn run(field: &Field<'_>, on_stop: Option<OnStop>, problems: &mut Problems) -> Option<(RunScript, usize)> {
    let known = ["exit", "after", "oom", "createError", "startError", "onSigterm", "times"];
    let fields = field.fields(&known, problems)?;
    let text = |name: &str, problems: &mut Problems| {
        fields.get(name).and_then(|field| field.text(problems).map(str::to_owned))
    };
    let code = fields.get("exit").and_then(|field| field.integer(0, 255, problems));
    let after = fields.get("after").and_then(|field| field.duration(problems));
    let oom_killed = fields.get("oom").is_some_and(|field| field.truth(problems).unwrap_or(false));
    if let (Some(field), None, false) = (fields.get("after"), fields.get("exit"), oom_killed) {
        field.wrong(problems, "says when the run ends, but not how: give `exit` too, or `oom: true`");
    }
    let ends = fields.get("exit").is_some() || oom_killed;
    let code = code.unwrap_or(if oom_killed { 137 } else { 0 });
    let exit = ends.then(|| Exit {
        after: after.unwrap_or_default(),
        code: i32::try_from(code).unwrap_or(255),
        oom_killed,
    });
    let own = fields.get("onSigterm").and_then(|field| on_sigterm(&field, problems));
    let times = fields.get("times").map_or(Some(1), |field| field.integer(1, 10_000, problems))?;
    let script = RunScript {
        create_error: text("createError", problems),
        start_error: text("startError", problems),
        exit,
        on_stop: own.or(on_stop).unwrap_or(POLITE),
        ..RunScript::default()
    };
    Some((script, usize::try_from(times).unwrap_or(1)))
}

/// `ignore`, `die`, or `{exit: 0, after: 20s}`.
fn on_sigterm(field: &Field<'_>, problems: &mut Problems) -> Option<OnStop> {
    match field.node.text() {
        Some("ignore") => return Some(OnStop::Ignores),
        Some("die") => return Some(OnStop::Dies),
        Some(_) => {
            field.wrong(problems, "has to be `ignore`, `die`, or a mapping with `exit` and `after`");
            return None;
        }
        None => {}
    }
    let fields = field.fields(&["exit", "after"], problems)?;
    let code = fields.get("exit").map_or(Some(0), |field| field.integer(0, 255, problems))?;
    let after = fields.get("after").map_or(Some(Duration::ZERO), |field| field.duration(problems))?;
    Some(OnStop::Exits { after, code: i32::try_from(code).unwrap_or(255) })
}
