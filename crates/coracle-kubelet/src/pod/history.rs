//! What past attempts left behind: back-offs and the last failure of each container.
//!
//! What can be derived from the runtime or from the published status is not kept here. What cannot, and would change
//! what is done, outlives the node agent in the Pod's record on disk.

use std::collections::{BTreeMap, BTreeSet};

use coracle_clock::later;
use coracle_cri::{ContainerId, PodSandboxId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::PodAction;
use super::backoff::{self, Backoff};
use super::volumes::VolumesRound;
use super::{image_name, reasons};

/// Pause before what failed for no back-off of its own is tried again.
pub(crate) const RETRY: SignedDuration = SignedDuration::from_secs(10);
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(1);
const TOLD_ONCE: [&str; 3] =
    [reasons::NETWORK_NOT_READY, reasons::EXCEEDED_GRACE_PERIOD, reasons::HOST_IPS_FAMILY_MISMATCH];

/// The memory of one Pod's attempts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// By container name.
    pub containers: BTreeMap<String, ContainerHistory>,
    /// After a sandbox could not be made.
    pub sandbox_retry: Option<Retry>,
    /// After something could not be stopped or removed.
    pub teardown_retry: Option<Retry>,
    /// After the API server did not take the final delete.
    pub delete_retry: Option<Retry>,
    /// Sandboxes that have been stopped, whatever state the runtime reports.
    pub stopped_sandboxes: BTreeSet<PodSandboxId>,
    /// Instances of which the user has been told that they are being stopped.
    pub announced_stops: BTreeSet<ContainerId>,
    /// Instances whose preStop hook has run before their turn to be stopped.
    pub pre_stopped: BTreeSet<ContainerId>,
    /// Reasons of events that are told once: of a network that is not ready, a runtime that overruns, a node whose
    /// addresses are of another kind than before.
    pub told: BTreeSet<&'static str>,
    /// The API server has taken the final delete.
    pub delete_sent: bool,
    /// The Pod's directories are gone.
    pub cleaned_up: bool,
}

/// The memory of one container's attempts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerHistory {
    /// Why the last start did not happen.
    pub failure: Option<StartFailure>,
    /// What was fetched for the next start: the reference that each image was given.
    pub pulled: BTreeMap<String, String>,
    /// Delay of pulls, with the image it is about.
    pub pull_backoff: Option<(String, Backoff)>,
    /// Delay of restarts, with the hash of the definition it is about.
    pub restart_backoff: Option<(String, Backoff)>,
    /// The exited instance whose delayed restart the user has been told of.
    pub announced: Option<ContainerId>,
    /// Instances stopped in order to be started again, however they end, and when they are killed.
    pub must_restart: BTreeMap<ContainerId, Timestamp>,
    /// The restart count of the instance whose postStart hook has not ended, if a start has one.
    pub post_start: Option<u32>,
}

/// A start that did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// The waiting reason that tells of it.
    pub reason: String,
    /// The waiting message that tells of it.
    pub message: String,
    /// The image that the spec asked for.
    pub image: String,
    /// The image that was to be fetched: this one, or that of a volume.
    pub pulling: Option<String>,
    /// When.
    pub at: Timestamp,
    /// When to try again; `None` when the spec has to change first.
    pub retry_at: Option<Timestamp>,
    /// The failure itself has been shown: what follows from it may be shown and done.
    pub backing_off: bool,
}

impl StartFailure {
    /// Whether this is a failed pull, which has a waiting reason for its back-off.
    pub(crate) fn is_pull(&self) -> bool {
        matches!(
            self.reason.as_str(),
            reasons::ERR_IMAGE_PULL | reasons::REGISTRY_UNAVAILABLE | "SignatureValidationFailed"
        )
    }

    /// Whether this is the failure of a container that was made, and has ended: it could not be executed, or its
    /// postStart hook failed.
    pub(crate) fn left_an_instance(&self) -> bool {
        matches!(self.reason.as_str(), reasons::RUN_CONTAINER_ERROR | reasons::POST_START_HOOK_ERROR)
    }

    /// The image that a failed pull is about.
    pub(crate) fn pulled_image(&self) -> &str {
        self.pulling.as_deref().unwrap_or(&self.image)
    }

    /// Whether a failed pull is about the content of a volume, which is the Pod's more than the container's.
    pub(crate) fn is_of_volume(&self) -> bool {
        let own = image_name::with_default_tag(&self.image);
        self.pulling.as_ref().is_some_and(|pulling| own.as_ref() != Ok(pulling))
    }

    /// Reason and message to show.
    pub(crate) fn shown(&self) -> (String, String) {
        if self.backing_off && self.is_pull() {
            let image = self.pulled_image();
            let text = format!("Back-off pulling image \"{image}\": {}: {}", self.reason, self.message);
            (reasons::IMAGE_PULL_BACK_OFF.to_owned(), text)
        } else {
            (self.reason.clone(), self.message.clone())
        }
    }
}

/// A failed step and when to try it again: after 1 s, then twice as long each time, at most 10 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// When to try again.
    pub at: Timestamp,
    delay: SignedDuration,
}

impl Retry {
    /// After one more failure at `now`.
    #[must_use]
    pub fn after(previous: Option<Retry>, now: Timestamp) -> Retry {
        let delay = previous.map_or(FIRST_RETRY, |p| (p.delay * 2).min(RETRY));
        Retry { at: now + delay, delay }
    }
}

/// How a piece of work ended, as far as later decisions need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A sandbox was made.
    SandboxCreated,
    /// A sandbox could not be made.
    SandboxFailed,
    /// A sandbox was stopped.
    SandboxStopped(PodSandboxId),
    /// Something could not be stopped or removed.
    TeardownFailed,
    /// A stop or removal is done.
    TeardownDone,
    /// An image was fetched.
    Pulled {
        /// For which container.
        container: String,
        /// The image, as it was asked for.
        image: String,
        /// Its reference.
        image_ref: String,
    },
    /// An image could not be fetched.
    PullFailed {
        /// For which container.
        container: String,
        /// The image that the spec asked the container to run.
        image: String,
        /// The image that was asked for: this one, or that of a volume.
        pulling: String,
        /// Waiting reason.
        reason: String,
        /// Waiting message.
        message: String,
    },
    /// A start failed before there was anything to start.
    StartFailed {
        /// Which container.
        container: String,
        /// The image that the spec asked for.
        image: String,
        /// Waiting reason.
        reason: String,
        /// Waiting message.
        message: String,
    },
    /// A container was started.
    Started {
        /// Which container.
        container: String,
    },
    /// Volumes were set up, as far as they could be.
    VolumesSetUp(Box<VolumesRound>),
    /// The preStop hook of an instance that must not be stopped yet has ended.
    PreStopped(ContainerId),
    /// The API server took the final delete.
    DeleteSent,
    /// The API server did not take the final delete.
    DeleteFailed,
    /// The Pod's directories are gone.
    CleanedUp,
}

impl History {
    /// Takes note of an outcome.
    pub fn apply(&mut self, outcome: &Outcome, now: Timestamp) {
        match outcome {
            Outcome::SandboxCreated => self.sandbox_retry = None,
            Outcome::SandboxFailed => self.sandbox_retry = Some(Retry::after(self.sandbox_retry, now)),
            Outcome::SandboxStopped(id) => {
                self.stopped_sandboxes.insert(id.clone());
                self.teardown_retry = None;
            }
            Outcome::TeardownFailed => self.teardown_retry = Some(Retry::after(self.teardown_retry, now)),
            Outcome::TeardownDone => self.teardown_retry = None,
            Outcome::Pulled { container, image, image_ref } => {
                let history = self.container(container);
                history.pulled.insert(image.clone(), image_ref.clone());
                history.pull_backoff = None;
            }
            Outcome::PullFailed { container, image, pulling, reason, message } => {
                self.container(container).start_failed(image, Some(pulling), reason, message, now);
            }
            Outcome::StartFailed { container, image, reason, message } => {
                self.container(container).start_failed(image, None, reason, message, now);
            }
            Outcome::Started { container } => {
                let history = self.container(container);
                history.post_start = None;
                history.failure = None;
                history.pulled.clear();
            }
            // What the worker keeps of volumes is gathered anew for each turn.
            Outcome::VolumesSetUp(_) => {}
            Outcome::PreStopped(id) => {
                self.pre_stopped.insert(id.clone());
            }
            Outcome::DeleteSent => {
                self.delete_sent = true;
                self.delete_retry = None;
            }
            Outcome::DeleteFailed => self.delete_retry = Some(Retry::after(self.delete_retry, now)),
            Outcome::CleanedUp => self.cleaned_up = true,
        }
    }

    /// The memory of one container, made if there is none.
    pub fn container(&mut self, name: &str) -> &mut ContainerHistory {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// Takes note of what is about to be done, before it is: a node agent that starts anew goes on from there.
    pub fn intend(&mut self, action: &PodAction) {
        match action {
            PodAction::StartContainer(start) => {
                let history = self.container(&start.container);
                history.post_start = start.post_start.then_some(start.attempt);
                if let Some(backoff) = start.backoff {
                    history.restart_backoff = Some((start.hash.clone(), backoff));
                }
            }
            PodAction::AnnounceStop { id, .. } => {
                self.announced_stops.insert(id.clone());
            }
            PodAction::Report(event) if TOLD_ONCE.contains(&event.reason) => {
                self.told.insert(event.reason);
            }
            PodAction::StopContainer { id, deadline, restarts: Some(container), .. } => {
                self.container(container).must_restart.insert(id.clone(), *deadline);
            }
            _ => {}
        }
    }

    /// The calendar was set by so much. The delay of restarts stays: it counts from when the runtime saw an instance end.
    pub(crate) fn shift(&mut self, by: SignedDuration) {
        let retries = [&mut self.sandbox_retry, &mut self.teardown_retry, &mut self.delete_retry];
        let retries = retries.into_iter().flatten().map(|retry| &mut retry.at);
        let containers = self.containers.values_mut().flat_map(|container| {
            let failure = container
                .failure
                .iter_mut()
                .flat_map(|f| std::iter::once(&mut f.at).chain(f.retry_at.as_mut()));
            let pulls = container.pull_backoff.iter_mut().map(|(_, backoff)| &mut backoff.updated);
            failure.chain(pulls).chain(container.must_restart.values_mut())
        });
        for at in retries.chain(containers) {
            *at = later(*at, by);
        }
    }

    /// Forgets instances that the runtime has forgotten.
    pub fn retain(&mut self, known: impl Fn(&ContainerId) -> bool) {
        self.announced_stops.retain(&known);
        self.pre_stopped.retain(&known);
        for container in self.containers.values_mut() {
            container.must_restart.retain(|id, _| known(id));
        }
    }

    /// When the instance is killed that was stopped in order to be started again.
    pub(crate) fn restart_by(&self, container: &str, id: &ContainerId) -> Option<Timestamp> {
        self.containers.get(container)?.must_restart.get(id).copied()
    }

    /// The instance was stopped in order to be started again.
    pub(crate) fn must_restart(&self, container: &str, id: &ContainerId) -> bool {
        self.restart_by(container, id).is_some()
    }
}

impl ContainerHistory {
    fn start_failed(
        &mut self,
        image: &str,
        pulling: Option<&String>,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        let mut failure = StartFailure {
            reason: reason.to_owned(),
            message: message.to_owned(),
            image: image.to_owned(),
            pulling: pulling.cloned(),
            at: now,
            retry_at: (reason != reasons::INVALID_IMAGE_NAME).then(|| now + RETRY),
            backing_off: false,
        };
        if failure.is_pull() {
            let pulled = failure.pulled_image().to_owned();
            let previous = self.pull_backoff.as_ref().filter(|(of, _)| *of == pulled).map(|(_, b)| *b);
            let backoff = Backoff::next(previous, now, now, backoff::MAX);
            failure.retry_at = Some(now + backoff.delay);
            self.pull_backoff = Some((pulled, backoff));
        }
        self.pulled.clear();
        self.post_start = None;
        self.failure = Some(failure);
    }
}
