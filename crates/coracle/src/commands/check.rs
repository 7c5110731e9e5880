//! `coracle check`: what this machine has and lacks for a cluster, and what to change.

use std::ffi::OsString;
use std::process::ExitCode;

use serde_json::json;

use crate::check::{CHECKED, Facts, Finding, Verdict, judge, require};
use crate::cli::Form;
use crate::cluster::Cluster;
use crate::output;

pub(crate) fn run(cluster: &Cluster, form: Form) -> anyhow::Result<ExitCode> {
    let findings = judge(&Facts::probe(cluster)?);
    let fits = findings.iter().all(|finding| finding.verdict != Verdict::Missing);
    match form {
        Form::Json => {
            output::result(serde_json::to_string_pretty(&json!({ "ready": fits, "findings": findings }))?);
        }
        Form::Text => output::result(table(&findings)),
    }
    Ok(if fits { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn table(findings: &[Finding]) -> String {
    let rows: Vec<_> = findings
        .iter()
        .map(|finding| vec![finding.subject.to_owned(), finding.verdict.to_string(), finding.found.clone()])
        .collect();
    let mut text = output::columns(&["WHAT", "VERDICT", "FOUND"], &rows);
    let changes = findings.iter().filter(|finding| !finding.change.is_empty());
    let changes: Vec<_> =
        changes.map(|finding| vec![finding.subject.to_owned(), finding.change.clone()]).collect();
    if !changes.is_empty() {
        text.push_str("\n\n");
        text.push_str(&output::columns(&["WHAT", "CHANGE"], &changes));
    }
    text
}

/// Before a start in the background, whose process is told what is only degraded, and logs it. A cluster that somebody
/// runs, starts or stops has been judged: should it be started after all, that process looks itself.
pub(super) fn before_launch(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, OsString)>> {
    if cluster.holder()?.is_some() {
        return Ok(Vec::new());
    }
    let lines: Vec<String> = require(cluster)?.iter().map(ToString::to_string).collect();
    Ok(vec![(CHECKED, lines.join("\n").into())])
}
