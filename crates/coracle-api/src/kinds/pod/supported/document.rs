//! The document that says of each field of a Pod's spec whether it is honoured: made from the schema and from the tables,
//! and compared with the file at the root of the repository.
//!
//! A field that a new API level brings stands in neither table: the test fails until somebody decides.

use std::fmt::Write as _;

use super::{Amounts, Any, Each, EmptyDir, Fields, Honoured, Ipv4, Only, POD, Words};
use crate::catalogue;
use crate::schema::{Graph, Type, graph};

/// Until when a field is refused.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// The next release honours it.
    Next,
    /// It is not planned; what it belongs to.
    Unplanned(&'static str),
    /// The API itself does not allow it.
    Never,
}

use Until::{Never, Next, Unplanned};

const APP_ARMOR: Until = Unplanned("AppArmor");
const SELINUX: Until = Unplanned("SELinux");
const WINDOWS: Until = Unplanned("Windows");
const CLAIMS: Until = Unplanned("dynamic resources");
const CSI: Until = Unplanned("CSI");
const CLOUD: Until = Unplanned("volumes of clouds and storage systems");

/// The fields that are refused, by the type they are of. What the API does not allow comes before the table of
/// honoured fields, which containers of all kinds share; the rest stands there for what that table does not name.
const REFUSED: &[(&str, &str, Until)] = &[
    ("Affinity", "podAffinity", Next),
    ("Affinity", "podAntiAffinity", Next),
    ("ConfigMapVolumeSource", "defaultUser", Next),
    ("Container", "resizePolicy", Next),
    ("Container", "volumeDevices", Next),
    ("DownwardAPIVolumeFile", "user", Next),
    ("DownwardAPIVolumeSource", "defaultUser", Next),
    ("EphemeralContainer", "lifecycle", Never),
    ("EphemeralContainer", "livenessProbe", Never),
    ("EphemeralContainer", "ports", Never),
    ("EphemeralContainer", "readinessProbe", Never),
    ("EphemeralContainer", "resizePolicy", Never),
    ("EphemeralContainer", "resources", Never),
    ("EphemeralContainer", "restartPolicy", Never),
    ("EphemeralContainer", "restartPolicyRules", Never),
    ("EphemeralContainer", "startupProbe", Never),
    ("EphemeralContainer", "volumeDevices", Next),
    ("KeyToPath", "user", Next),
    ("NodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution", Next),
    ("PodSecurityContext", "appArmorProfile", APP_ARMOR),
    ("PodSecurityContext", "seLinuxChangePolicy", SELINUX),
    ("PodSecurityContext", "seLinuxOptions", SELINUX),
    ("PodSecurityContext", "windowsOptions", WINDOWS),
    ("PodSpec", "evictionResponders", Next),
    ("PodSpec", "overhead", Next),
    ("PodSpec", "resourceClaims", CLAIMS),
    ("PodSpec", "resources", Next),
    ("PodSpec", "runtimeClassName", Next),
    ("PodSpec", "schedulingGroup", Next),
    ("PodSpec", "topologySpreadConstraints", Next),
    ("ProjectedVolumeSource", "defaultUser", Next),
    ("ResourceRequirements", "claims", CLAIMS),
    ("SeccompProfile", "localhostProfile", Next),
    ("SecretVolumeSource", "defaultUser", Next),
    ("SecurityContext", "appArmorProfile", APP_ARMOR),
    ("SecurityContext", "seLinuxOptions", SELINUX),
    ("SecurityContext", "windowsOptions", WINDOWS),
    ("ServiceAccountTokenProjection", "user", Next),
    ("Volume", "awsElasticBlockStore", CLOUD),
    ("Volume", "azureDisk", CLOUD),
    ("Volume", "azureFile", CLOUD),
    ("Volume", "cephfs", CLOUD),
    ("Volume", "cinder", CLOUD),
    ("Volume", "csi", CSI),
    ("Volume", "ephemeral", Next),
    ("Volume", "fc", CLOUD),
    ("Volume", "flexVolume", CLOUD),
    ("Volume", "flocker", CLOUD),
    ("Volume", "gcePersistentDisk", CLOUD),
    ("Volume", "gitRepo", CLOUD),
    ("Volume", "glusterfs", CLOUD),
    ("Volume", "iscsi", CLOUD),
    ("Volume", "nfs", CLOUD),
    ("Volume", "persistentVolumeClaim", Next),
    ("Volume", "photonPersistentDisk", CLOUD),
    ("Volume", "portworxVolume", CLOUD),
    ("Volume", "quobyte", CLOUD),
    ("Volume", "rbd", CLOUD),
    ("Volume", "scaleIO", CLOUD),
    ("Volume", "storageos", CLOUD),
    ("Volume", "vsphereVolume", CLOUD),
    ("VolumeMount", "bindMountOptions", Next),
    ("VolumeProjection", "clusterTrustBundle", Next),
    ("VolumeProjection", "podCertificate", Next),
];

/// A field, and what is said of it.
struct Line {
    path: String,
    says: String,
}

struct Walk<'g> {
    graph: &'g Graph,
    lines: Vec<Line>,
    /// Fields of which nothing is decided.
    undecided: Vec<String>,
    /// The rows of [`REFUSED`] that were used.
    used: Vec<bool>,
}

impl Walk<'_> {
    fn fields(&mut self, kind: &Type, rows: &[(&str, Honoured)], path: &str) {
        let Type::Struct(index) = kind else {
            self.undecided.push(format!("{path}: fields are judged, but it has none"));
            return;
        };
        let this = &self.graph.structs[*index];
        let of = this.name.rsplit('.').next().unwrap_or_default();
        let mut names: Vec<&String> = this.fields.keys().collect();
        names.sort();
        for name in names {
            let kind = &this.fields[name].kind;
            let list = if matches!(kind, Type::List(_)) { "[]" } else { "" };
            let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let at = format!("{at}{list}");
            let refused =
                REFUSED.iter().position(|(type_, field, _)| (*type_, *field) == (of, name.as_str()));
            let never = refused.is_some_and(|row| REFUSED[row].2 == Never);
            match (rows.iter().find(|(row, _)| row == name), refused) {
                (Some((_, honoured)), _) if !never => self.honoured(kind, *honoured, &at),
                (_, Some(row)) => {
                    self.used[row] = true;
                    let says = match REFUSED[row].2 {
                        Next => "refused until the next release".to_owned(),
                        Unplanned(what) => format!("refused: {what}"),
                        Never => "refused by the API".to_owned(),
                    };
                    self.lines.push(Line { path: at, says });
                }
                (_, None) => self.undecided.push(format!("{at} (field {name} of {of})")),
            }
        }
    }

    fn honoured(&mut self, kind: &Type, honoured: Honoured, path: &str) {
        let says = match honoured {
            Any => "honoured".to_owned(),
            Ipv4 => "honoured; addresses of IPv6 are refused".to_owned(),
            Words(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                format!("honoured: {}; other values are refused", words.join(", "))
            }
            Only(only) => format!("honoured when `{only}`; `{}` is refused", !only),
            EmptyDir => "honoured; `sizeLimit` only with the medium `Memory`".to_owned(),
            Amounts(_) => "honoured for some resources; others are refused".to_owned(),
            Fields(rows) => return self.fields(kind, rows, path),
            Each(rows) => {
                let Type::List(element) = kind else {
                    self.undecided.push(format!("{path}: elements are judged, but it is no list"));
                    return;
                };
                return self.fields(element, rows, path);
            }
        };
        self.lines.push(Line { path: path.to_owned(), says });
    }
}

fn walk() -> Walk<'static> {
    let pods = catalogue::find("", "v1", "pods").expect("Pods are in the catalogue");
    let graph = graph();
    let Some(Type::Struct(pod)) = graph.root(pods) else { panic!("Pods have fields") };
    let spec = &graph.structs[pod].fields["spec"].kind;
    let mut walk = Walk { graph, lines: Vec::new(), undecided: Vec::new(), used: vec![false; REFUSED.len()] };
    walk.fields(spec, POD, "");
    walk
}

fn document(lines: &[Line]) -> String {
    let mut out = String::from(
        "# What of a Pod is honoured\n\
         \n\
         Every field of a Pod's `spec`, and of the template of every workload, is either honoured or refused with \
         `NAME is not supported by Coracle yet`; none is accepted and ignored.\n\
         A line stands for a field and for all fields in it.\n\
         A field that is refused may be left empty.\n\
         This page is made from the API's schema and from the server's own tables: `make podspec` writes it, and a \
         test compares it.\n\
         \n\
         | field of `spec` | |\n\
         | --- | --- |\n",
    );
    for line in lines {
        // A line that cannot be written to a string does not exist.
        let _ = writeln!(out, "| `{}` | {} |", line.path, line.says);
    }
    out
}

#[test]
fn every_field_of_a_pod_is_honoured_or_refused_by_decision() {
    let walk = walk();
    assert!(walk.undecided.is_empty(), "in neither table:\n{}", walk.undecided.join("\n"));
    let unused: Vec<String> = REFUSED
        .iter()
        .zip(&walk.used)
        .filter(|(_, used)| !**used)
        .map(|((of, field, _), _)| format!("{of}.{field}"))
        .collect();
    assert!(unused.is_empty(), "honoured by now, or gone: {}", unused.join(", "));
}

#[test]
fn the_document_says_what_the_server_does() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../PODSPEC.md");
    let document = document(&walk().lines);
    if std::env::var_os("CORACLE_WRITE_PODSPEC").is_some() {
        std::fs::write(file, &document).unwrap();
    }
    let written = std::fs::read_to_string(file).unwrap_or_default();
    assert!(written == document, "PODSPEC.md is not what the server does: `make podspec` writes it anew");
}
