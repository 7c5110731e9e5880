//! What this machine has and lacks for a cluster: [`facts`] are probed, [`verdict`] is a function of them.

mod facts;
mod verdict;

use anyhow::bail;

use crate::cluster::Cluster;
pub(crate) use facts::Facts;
pub(crate) use verdict::{Finding, Verdict, judge};

/// Tells the process in the background that the machine was looked at, and what makes it worse, a line each.
pub(crate) const CHECKED: &str = "CORACLE_CHECKED";

/// What makes this machine worse for a cluster, as whoever started this process in the background found, or as is
/// found now.
pub(crate) fn degraded(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    match std::env::var(CHECKED) {
        Ok(lines) => Ok(lines.lines().map(str::to_owned).collect()),
        Err(_) => Ok(require(cluster)?.iter().map(ToString::to_string).collect()),
    }
}

/// Refuses a machine that lacks something that a cluster cannot do without. Returns what only makes it worse.
pub(crate) fn require(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let findings = judge(&Facts::probe(cluster)?);
    let (missing, rest): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|finding| finding.verdict == Verdict::Missing);
    if !missing.is_empty() {
        let lines: Vec<String> = missing.iter().map(|finding| format!("\n  {finding}")).collect();
        bail!("this machine cannot run a cluster:{}", lines.concat());
    }
    Ok(rest.into_iter().filter(|finding| finding.verdict == Verdict::Degraded).collect())
}
