//! What of a Pod's worker outlives the node agent: everything that was decided or learned, can be derived neither from
//! the runtime nor from the API server, and would make a difference to what is done next.
//!
//! It is recorded before what follows from it is done, so that an agent that starts anew goes on where the last one ended.

use std::collections::{BTreeMap, BTreeSet};

use coracle_cri::ContainerId;
use k8s_openapi::api::core::v1::PodStatus;
use serde::{Deserialize, Serialize};

use super::history::{ContainerHistory, History};
use super::inputs::{Eviction, Lifecycle, PodInputs, Rejection};
use super::{differs, reasons};

/// What is recorded.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Memo {
    /// Where the Pod is on its way, with the deadline and the cause of its end.
    pub lifecycle: Lifecycle,
    /// Why the node refused it.
    pub rejection: Option<Rejection>,
    /// The node ends it for a critical Pod.
    pub preempted: bool,
    /// Back-offs, failures, marks for restarts, by container.
    pub containers: BTreeMap<String, ContainerHistory>,
    /// Instances of which the user has been told that they are being stopped.
    pub announced_stops: BTreeSet<ContainerId>,
    /// Instances whose preStop hook has run before their turn to be stopped.
    pub pre_stopped: BTreeSet<ContainerId>,
    /// The status since all containers began to start anew, until the API server has it: nothing else may tell what it
    /// counts.
    pub restarting_all: Option<PodStatus>,
}

impl Memo {
    /// What is to be recorded of a Pod after `before`. `i` has the lifecycle and the history that hold from now on.
    #[must_use]
    pub fn of(i: &PodInputs, before: &Memo) -> Memo {
        let unknown = before.restarting_all.is_some() && differs(&i.published, &i.previous_status);
        let restarting_all = (i.was_restarting_all() || unknown).then(|| i.previous_status.clone());
        let containers = i.history.containers.iter();
        let told = containers.filter(|(_, history)| **history != ContainerHistory::default());
        Memo {
            lifecycle: i.lifecycle.clone(),
            rejection: i.rejection.clone(),
            preempted: i.eviction.as_ref().is_some_and(|eviction| eviction.reason == reasons::PREEMPTING),
            containers: told.map(|(name, history)| (name.clone(), history.clone())).collect(),
            announced_stops: i.history.announced_stops.clone(),
            pre_stopped: i.history.pre_stopped.clone(),
            restarting_all,
        }
    }

    /// The memory of attempts to go on with.
    #[must_use]
    pub fn history(&self) -> History {
        History {
            containers: self.containers.clone(),
            announced_stops: self.announced_stops.clone(),
            pre_stopped: self.pre_stopped.clone(),
            ..History::default()
        }
    }

    /// Why the node ends the Pod, if it does.
    #[must_use]
    pub fn eviction(&self) -> Option<Eviction> {
        self.preempted.then(Eviction::preemption)
    }
}
