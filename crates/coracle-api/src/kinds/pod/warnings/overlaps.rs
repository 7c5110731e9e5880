//! Files of a volume that cannot all be there: two of one path, or one below the other.

use serde_json::Value;

use crate::field::go_quote;
use crate::tree::{at, is_empty, list_at, str_at};

/// A file, and where it comes from if the volume has several sources.
struct File<'a> {
    path: &'a str,
    source: Option<String>,
}

impl File<'_> {
    fn shown(&self) -> String {
        let path = go_quote(self.path);
        self.source.as_ref().map_or_else(|| path.clone(), |source| format!("{path} ({source})"))
    }
}

/// The warnings about all volumes.
pub(super) fn of(volumes: &[Value]) -> Vec<String> {
    let mut out = Vec::new();
    for volume in volumes {
        let name = go_quote(str_at(volume, &["name"]));
        for (field, what) in [
            ("configMap", named("ConfigMap", at(volume, &["configMap", "name"]))),
            ("secret", named("Secret", at(volume, &["secret", "secretName"]))),
            ("downwardAPI", "DownwardAPI".to_owned()),
        ] {
            let items = list_at(volume, &[field, "items"]).iter();
            let files = items.map(|item| File { path: str_at(item, &["path"]), source: None });
            out.extend(overlapping(files, &format!("volume {name} ({what}): overlapping paths")));
        }
        let sources = list_at(volume, &["projected", "sources"]);
        for _ in sources.iter().filter(|source| is_empty(Some(source))) {
            out.push(format!("volume {name} (Projected) has no sources provided"));
        }
        let files = sources.iter().flat_map(files_of);
        out.extend(overlapping(files, &format!("volume {name} (Projected): overlapping paths")));
    }
    out
}

fn named(kind: &str, name: Option<&Value>) -> String {
    format!("{kind} {}", go_quote(name.and_then(Value::as_str).unwrap_or_default()))
}

fn files_of(source: &Value) -> Vec<File<'_>> {
    let mut files = Vec::new();
    for (field, what) in [("configMap", "ConfigMap"), ("secret", "Secret"), ("downwardAPI", "DownwardAPI")] {
        let Some(said) = source.get(field) else { continue };
        let source = if field == "downwardAPI" { what.to_owned() } else { named(what, said.get("name")) };
        let items = list_at(said, &["items"]).iter();
        files.extend(items.map(|item| File { path: str_at(item, &["path"]), source: Some(source.clone()) }));
    }
    if let Some(token) = source.get("serviceAccountToken") {
        let source = Some("ServiceAccountToken".to_owned());
        files.push(File { path: str_at(token, &["path"]), source });
    }
    if let Some(bundle) = source.get("clusterTrustBundle") {
        let name = bundle.get("name").or_else(|| bundle.get("signerName"));
        let source = Some(named("ClusterTrustBundle", name));
        files.push(File { path: str_at(bundle, &["path"]), source });
    }
    files
}

fn overlapping<'a>(files: impl Iterator<Item = File<'a>>, what: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut before: Vec<File<'_>> = Vec::new();
    for mut file in files {
        file.path = file.path.trim_end_matches('/');
        let met: Vec<String> =
            before.iter().filter(|other| overlap(other.path, file.path)).map(File::shown).collect();
        if !met.is_empty() {
            out.push(format!("{what}: {} with {}", file.shown(), met.join(", ")));
        }
        before.push(file);
    }
    out
}

fn overlap(a: &str, b: &str) -> bool {
    let below = |deep: &str, high: &str| deep.strip_prefix(high).is_some_and(|rest| rest.starts_with('/'));
    !a.is_empty() && !b.is_empty() && (a == b || below(a, b) || below(b, a))
}
