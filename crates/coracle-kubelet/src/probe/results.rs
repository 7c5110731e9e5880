//! What probes have found, as the decisions about a Pod are told it.

use std::fmt;

use k8s_openapi::api::core::v1::{Container, Probe};

/// What is asked about a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Has it started? Until it has, nothing else is asked.
    Startup,
    /// Is it alive, or is it to be restarted?
    Liveness,
    /// May it be sent work?
    Readiness,
}

impl ProbeKind {
    /// All of them, in the order in which they are asked.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// The probe of this kind that a container has, if it has one.
    #[must_use]
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }

    /// What holds of a new container before anything has been asked.
    #[must_use]
    pub fn initial(self) -> Verdict {
        match self {
            ProbeKind::Startup => Verdict::Unknown,
            ProbeKind::Liveness => Verdict::Success,
            ProbeKind::Readiness => Verdict::Failure,
        }
    }

    /// As the texts of events name it: `Liveness`.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

impl fmt::Display for ProbeKind {
    /// As the texts of kills name it: `liveness`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeKind::Startup => "startup",
            ProbeKind::Liveness => "liveness",
            ProbeKind::Readiness => "readiness",
        })
    }
}

/// What holds by the answers so far, thresholds applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is as asked.
    Success,
    /// It is not.
    Failure,
    /// Nobody knows yet.
    Unknown,
}

/// What the probes of one container instance have found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeResults {
    /// Of the startup probe, if there is one.
    pub startup: Option<Verdict>,
    /// Of the liveness probe, if there is one.
    pub liveness: Option<Verdict>,
    /// Of the readiness probe, if there is one.
    pub readiness: Option<Verdict>,
}

impl ProbeResults {
    /// The verdict of one kind of probe.
    #[must_use]
    pub fn get(&self, kind: ProbeKind) -> Option<Verdict> {
        match kind {
            ProbeKind::Startup => self.startup,
            ProbeKind::Liveness => self.liveness,
            ProbeKind::Readiness => self.readiness,
        }
    }

    /// Sets the verdict of one kind of probe.
    pub fn set(&mut self, kind: ProbeKind, verdict: Verdict) {
        let place = match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        };
        *place = Some(verdict);
    }

    /// Whether a running instance of `container` has started: it has no startup probe, or the probe succeeded.
    #[must_use]
    pub fn is_started(&self, container: &Container) -> bool {
        container.startup_probe.is_none() || self.startup == Some(Verdict::Success)
    }

    /// Whether a running instance of `container` is ready: it has started, and its readiness probe, if it has one,
    /// succeeded last.
    #[must_use]
    pub fn is_ready(&self, container: &Container) -> bool {
        self.is_started(container)
            && (container.readiness_probe.is_none() || self.readiness == Some(Verdict::Success))
    }

    /// The probe for whose failure a running instance of `container` is to be killed.
    #[must_use]
    pub fn kills(&self, container: &Container) -> Option<ProbeKind> {
        [ProbeKind::Startup, ProbeKind::Liveness]
            .into_iter()
            .find(|kind| kind.of(container).is_some() && self.get(*kind) == Some(Verdict::Failure))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(probes: &[&str]) -> Container {
        let mut container = json!({"name": "c"});
        for probe in probes {
            container[format!("{probe}Probe")] = json!({"tcpSocket": {"port": 1}});
        }
        serde_json::from_value(container).unwrap()
    }

    #[test]
    fn a_container_without_probes_is_started_and_ready() {
        let none = ProbeResults::default();
        let plain = container(&[]);
        assert!(none.is_started(&plain) && none.is_ready(&plain) && none.kills(&plain).is_none());
        let probed = container(&["startup", "liveness", "readiness"]);
        assert!(!none.is_started(&probed) && !none.is_ready(&probed) && none.kills(&probed).is_none());
    }

    #[test]
    fn what_was_found_decides_on_started_ready_and_killed() {
        let probed = container(&["startup", "liveness", "readiness"]);
        let found = |startup, liveness, readiness| ProbeResults {
            startup: Some(startup),
            liveness: Some(liveness),
            readiness: Some(readiness),
        };
        use Verdict::{Failure, Success, Unknown};
        for (results, started, ready, kills) in [
            (found(Unknown, Success, Failure), false, false, None),
            (found(Success, Success, Failure), true, false, None),
            (found(Success, Success, Success), true, true, None),
            (found(Unknown, Success, Success), false, false, None),
            (found(Success, Failure, Success), true, true, Some(ProbeKind::Liveness)),
            (found(Failure, Success, Failure), false, false, Some(ProbeKind::Startup)),
        ] {
            assert_eq!(results.is_started(&probed), started, "{results:?}");
            assert_eq!(results.is_ready(&probed), ready, "{results:?}");
            assert_eq!(results.kills(&probed), kills, "{results:?}");
        }
    }
}
