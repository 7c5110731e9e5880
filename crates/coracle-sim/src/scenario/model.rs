//! A scenario as data.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_api::catalogue::Resource;
use coracle_cri::scripted::ImageScript;
use jiff::Timestamp;
use serde_json::Value;

use super::expect::Expectation;
use super::seen::Id;
use super::yaml::{Mark, Node};
use crate::{Fault, NodeSettings};

/// Which cluster there is, what happens to it, and what must be seen.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is about.
    pub title: String,
    /// The seed that it is run with if the user gives none.
    pub seed: u64,
    /// How long it lasts.
    pub until: Duration,
    /// The calendar time of its start.
    pub start: Timestamp,
    /// Whether the file says so.
    pub start_is_given: bool,
    /// The nodes of the cluster.
    pub nodes: Vec<NodeSettings>,
    /// How images behave, by their names as the containers name them.
    pub images: BTreeMap<String, ImageScript>,
    /// What happens, in order of time.
    pub steps: Vec<Step>,
    /// What must be seen.
    pub expectations: Vec<Expectation>,
}

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// The name by which expectations know it.
    pub name: Option<String>,
    /// Where it stands.
    pub mark: Mark,
    /// Its path, as `steps[2]`.
    pub path: String,
    /// What happens.
    pub action: Action,
}

/// What happens in a step.
#[derive(Clone, Debug)]
pub enum Action {
    /// Objects are created, or changed to what their manifests say.
    Apply(Vec<Manifest>),
    /// An object is deleted.
    Delete {
        /// Which.
        target: Target,
        /// `gracePeriodSeconds` of the request.
        grace: Option<Duration>,
    },
    /// An object is patched.
    Patch {
        /// Which.
        target: Target,
        /// The media type of the patch.
        media_type: &'static str,
        /// The patch.
        body: Node,
    },
    /// A workload is scaled.
    Scale {
        /// Which.
        target: Target,
        /// To how many.
        replicas: u32,
    },
    /// The Pods of a workload are replaced, as `kubectl rollout restart` does.
    RolloutRestart(Target),
    /// Something breaks, or is mended.
    Fault(Fault),
    /// A container ends, as if by itself.
    Crash {
        /// Its Pod.
        pod: Id,
        /// Its name.
        container: String,
        /// With which exit code.
        code: i32,
    },
}

/// An object to apply, with the lines that it stands in.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The file that it stands in, if that is another than the scenario's.
    pub file: Option<String>,
    /// The object, with its marks.
    pub node: Node,
    /// Which object it is.
    pub target: Target,
}

/// An object by name.
#[derive(Clone)]
pub struct Target {
    /// Its resource.
    pub resource: &'static Resource,
    /// Its namespace; empty for kinds that have none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Target {
    /// The name in full.
    #[must_use]
    pub fn id(&self) -> Id {
        Id { kind: self.resource.singular, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.id())
    }
}

impl Manifest {
    /// The object.
    #[must_use]
    pub fn object(&self) -> Value {
        let mut object = self.node.to_json();
        if !self.target.namespace.is_empty() {
            object["metadata"]["namespace"] = self.target.namespace.clone().into();
        }
        object
    }
}
