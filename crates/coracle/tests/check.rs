//! `coracle check`, and starts on a machine that lacks something, from outside. They need root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

fn coracle(base: &Path, path: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.arg("--data-dir").arg(base.join("data")).arg("--run-dir").arg(base.join("run"));
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.args(["--name", "check-test"]).args(arguments).output().unwrap()
}

#[test]
fn a_machine_that_runs_these_tests_can_run_a_cluster() {
    let base = tempfile::tempdir().unwrap();
    let output = coracle(base.path(), None, &["check", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["ready"], true);
    assert!(report["findings"].as_array().unwrap().len() > 10, "{report:#}");
    let names = std::fs::read_dir(base.path()).unwrap().count();
    assert_eq!(names, 0, "looking leaves nothing behind");
}

#[test]
fn without_nft_every_start_is_refused_in_the_same_words() {
    let base = tempfile::tempdir().unwrap();
    let words = "nftables: there is no `nft` on the PATH: apt install nftables";
    let empty = base.path().join("bin");
    std::fs::create_dir(&empty).unwrap();
    for arguments in
        [&["up"][..], &["server"], &["node", "--server", "https://192.0.2.1:6443", "--token", "x"]]
    {
        let output = coracle(base.path(), Some(&empty), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("this machine cannot run a cluster:\n") && said.contains(words), "{said}");
        assert!(!base.path().join("data").exists(), "{arguments:?} leaves something behind");
    }
    let output = coracle(base.path(), Some(&empty), &["check"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find(|line| line.starts_with("nftables")).unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>().join(" "),
        "nftables missing there is no `nft` on the PATH"
    );
    assert!(said.contains("apt install nftables"), "{said}");
}
