//! LIFECYCLE.md names the test that holds each rule of the Pod lifecycle: they exist, and its numbers are right.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{root, sources};

/// The rule and what holds it, of every row of the tables of rules.
fn rows(text: &str) -> Vec<(&str, &str)> {
    let (_, sections) = text.split_once("\n## ").unwrap();
    let cells =
        sections.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    cells.filter(|(rule, _)| !matches!(*rule, "rule" | "---")).collect()
}

/// Source files: the path of their module, the crate first, and their text.
fn modules() -> Vec<(String, String)> {
    let crates = root().join("crates");
    let module = |path: &PathBuf| {
        let file = path.strip_prefix(&crates).unwrap().with_extension("");
        let mut parts: Vec<String> = file.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        parts[0] = parts[0].replace('-', "_");
        parts.retain(|part| part != "src");
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts.join("::")
    };
    sources().iter().map(|path| (module(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// Whether there is a test function of this name in the file, within these modules.
fn has_test(text: &str, within: &str, name: &str) -> bool {
    let modules = within.split("::").filter(|module| !module.is_empty());
    let nested = modules.into_iter().all(|module| text.contains(&format!("mod {module} {{")));
    let head = format!("fn {name}(");
    nested
        && text.match_indices(&head).any(|(at, _)| {
            let paragraph = text[..at].rsplit("\n\n").next().unwrap();
            paragraph.contains("#[test]") || paragraph.contains("#[tokio::test")
        })
}

#[test]
fn every_rule_of_the_pod_lifecycle_names_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("LIFECYCLE.md")).unwrap();
    let rows = rows(&text);
    let modules = modules();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let (mut held, mut none_yet, mut not_built, mut foreign) = (0, 0, 0, 0);
    for (rule, tests) in &rows {
        let number = rule.split(' ').next().unwrap();
        if !seen.insert(number) {
            wrong.push(format!("{number} is there twice"));
        }
        let named: Vec<&str> =
            tests.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("::")).collect();
        if tests.starts_with("none yet: ") {
            none_yet += 1;
        } else if tests.starts_with("not built: ") {
            not_built += 1;
        } else if tests.starts_with("does not apply: ") {
            foreign += 1;
        } else if tests.starts_with('`') && !named.is_empty() {
            held += 1;
        } else {
            wrong.push(format!("{number} neither names a test nor says why there is none"));
        }
        for path in named {
            let (place, name) = path.rsplit_once("::").unwrap();
            let exists = modules.iter().any(|(module, text)| {
                let within = place
                    .strip_prefix(module.as_str())
                    .filter(|rest| rest.is_empty() || rest.starts_with("::"));
                within.is_some_and(|within| has_test(text, within, name))
            });
            if !exists {
                wrong.push(format!("{number} names {path}, which is no test"));
            }
        }
    }
    let counts = format!("| {} | {held} | {none_yet} | {not_built} | {foreign} |", rows.len());
    if !text.contains(&counts) {
        wrong.push(format!("the numbers at its head are {counts}"));
    }
    assert!(wrong.is_empty(), "in LIFECYCLE.md\n{}", wrong.join("\n"));
}
