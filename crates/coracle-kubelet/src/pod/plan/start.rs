//! One start: the image, what holds the start back, and the start itself.

use std::collections::BTreeMap;

use coracle_cri::{Image, PodSandboxId};
use k8s_openapi::api::core::v1::Container;

use super::containers::Turn;
use super::{PodAction, PodPlan, StartContainer, WaitingOn};
use crate::pod::backoff::Backoff;
use crate::pod::containers::Member;
use crate::pod::history::StartFailure;
use crate::pod::image_name;
use crate::pod::inputs::{ANNOTATION_BACKOFF, ANNOTATION_HASH, ImagePresence, PodInputs, SEEN_PATIENCE};
use crate::pod::reasons::{self, PodEvent};
use crate::pod::volumes;

/// The failure that still concerns what the spec asks for.
pub(in crate::pod) fn current_failure<'a>(
    i: &'a PodInputs,
    container: &Container,
) -> Option<&'a StartFailure> {
    let failure = i.history.containers.get(&container.name)?.failure.as_ref()?;
    (container.image.as_deref() == Some(failure.image.as_str())).then_some(failure)
}

pub(super) fn failure_holds_back(
    i: &PodInputs,
    name: &str,
    failure: &StartFailure,
    exited: bool,
    plan: &mut PodPlan,
) -> bool {
    if !failure.backing_off {
        if !failure_is_seen(i, name, failure) {
            plan.wait(WaitingOn::StatusPublished);
            plan.wake(failure.at + SEEN_PATIENCE);
            return true;
        }
        // That it has been shown is noted, for what is shown next no longer tells.
        plan.actions.push(PodAction::BeginBackOff {
            container: name.to_owned(),
            instance: None,
            event: failure.is_pull().then(|| {
                let event = reasons::pull_back_off_event(name, failure.pulled_image());
                if failure.is_of_volume() { PodEvent { container: None, ..event } } else { event }
            }),
        });
        if failure.is_pull() {
            plan.actions
                .push(PodAction::Report(reasons::start_failed_event(name, reasons::IMAGE_PULL_BACK_OFF)));
        }
    }
    if failure.left_an_instance() && exited {
        // What ended is an instance like any other: its restart back-off decides.
        return false;
    }
    if failure.retry_at.is_some_and(|at| i.now >= at) {
        return false;
    }
    if let Some(at) = failure.retry_at {
        plan.wake(at);
    }
    let (reason, _) = failure.shown();
    plan.wait(WaitingOn::StartRetry { container: name.to_owned(), reason, until: failure.retry_at });
    true
}

fn failure_is_seen(i: &PodInputs, name: &str, failure: &StartFailure) -> bool {
    let shown = i.published(name).and_then(|c| c.state.as_ref()?.waiting.as_ref()).is_some_and(|w| {
        w.reason.as_deref() == Some(failure.reason.as_str())
            && w.message.as_deref().unwrap_or_default() == failure.message
    });
    shown || i.now >= failure.at + SEEN_PATIENCE
}

/// The restart back-off that holds for this definition: remembered, or as the newest instance carries it.
pub(in crate::pod) fn restart_backoff(i: &PodInputs, name: &str, hash: &str) -> Option<Backoff> {
    if let Some((of, entry)) = i.history.containers.get(name).and_then(|h| h.restart_backoff.as_ref()) {
        return (of == hash).then_some(*entry);
    }
    let newest = *i.instances(name).first()?;
    if newest.container.annotations.get(ANNOTATION_HASH).is_some_and(|of| of != hash) {
        return None;
    }
    Backoff::from_annotation(newest.container.annotations.get(ANNOTATION_BACKOFF)?)
}

pub(super) struct StartFrame<'a> {
    pub(super) sandbox: &'a PodSandboxId,
    pub(super) hash: String,
    pub(super) backoff: Option<Backoff>,
}

/// An image that a start needs.
struct Wanted<'a> {
    /// As the spec names it.
    name: &'a str,
    policy: Option<&'a str>,
    /// What the image service says of it.
    presence: Option<&'a ImagePresence>,
    /// It is the content of a volume.
    volume: bool,
}

/// What there is of an image that a start needs.
struct Obtained {
    /// Its name, with a tag or digest.
    name: String,
    present: Option<Image>,
    /// The reference that a pull for this start gave.
    pulled: Option<String>,
}

/// Sees to an image that a start of the container needs. The error is that the start has to wait.
fn obtain(
    i: &PodInputs,
    container: &Container,
    wanted: &Wanted<'_>,
    plan: &mut PodPlan,
) -> Result<Obtained, Turn> {
    let name = container.name.clone();
    let fail = |reason, message: String, events| PodAction::FailStart {
        container: name.clone(),
        image: container.image.clone().unwrap_or_default(),
        reason,
        message,
        events,
    };
    let failed = |reason, message: String, event: &'static str, plan: &mut PodPlan| {
        let about = (!wanted.volume).then(|| name.clone());
        let told = PodEvent { container: about, warning: true, reason: event, message: message.clone() };
        let events = vec![told, reasons::start_failed_event(&name, reason)];
        plan.actions.push(fail(reason, message, events));
        plan.wait(WaitingOn::StatusPublished);
        Turn::Next
    };
    let image = match image_name::with_default_tag(wanted.name) {
        Ok(image) => image,
        Err(message) => return Err(failed(reasons::INVALID_IMAGE_NAME, message, "InspectFailed", plan)),
    };
    let history = i.history.containers.get(&name);
    let pulled = history.and_then(|h| h.pulled.get(&image).cloned());
    let inspect_failed = |why: &str, plan: &mut PodPlan| {
        let message = format!("Failed to inspect image \"{image}\": {why}");
        failed(reasons::IMAGE_INSPECT_ERROR, message, "InspectFailed", plan)
    };
    let present = match wanted.presence {
        Some(ImagePresence::Present(image)) => Some(image.clone()),
        Some(ImagePresence::InspectFailed(why)) => return Err(inspect_failed(why, plan)),
        // That it is here is nobody's business who may not have it.
        Some(ImagePresence::Absent | ImagePresence::Unproven) | None => None,
    };
    match (wanted.policy.unwrap_or_else(|| image_name::default_policy(&image)), &pulled, &present) {
        ("Never", _, None) => {
            if let Some(failure) =
                current_failure(i, container).filter(|f| f.reason == reasons::ERR_IMAGE_NEVER_PULL)
            {
                let until = i.now + crate::pod::history::RETRY;
                plan.wake(until);
                let reason = failure.reason.clone();
                plan.wait(WaitingOn::StartRetry { container: name.clone(), reason, until: Some(until) });
                return Err(Turn::Next);
            }
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            Err(failed(reasons::ERR_IMAGE_NEVER_PULL, message, "ErrImageNeverPull", plan))
        }
        ("Always", None, _) | (_, None, None) => {
            plan.wait(WaitingOn::ImagePull { container: name.clone() });
            plan.actions.push(PodAction::PullImage { container: name, image, volume: wanted.volume });
            Err(Turn::Busy)
        }
        // Who runs an image looks for it again; a volume's is named by what was seen of it.
        (_, Some(_), None) if wanted.volume => Err(inspect_failed("no such image", plan)),
        _ => Ok(Obtained { name: image, present, pulled }),
    }
}

fn already_present(image: &str) -> String {
    format!("Container image \"{image}\" already present on machine and can be accessed by the pod")
}

/// Sees to the images whose content a container mounts. Returns them by volume, and what is told at the start. The
/// error is that the start has to wait.
pub(super) fn obtain_volumes(
    i: &PodInputs,
    container: &Container,
    plan: &mut PodPlan,
) -> Result<(BTreeMap<String, String>, Vec<PodAction>), Turn> {
    let (mut volumes, mut told) = (BTreeMap::new(), Vec::new());
    for (volume, source) in volumes::of_images(i.spec(), container) {
        let wanted = Wanted {
            name: source.reference.as_deref().unwrap_or_default(),
            policy: source.pull_policy.as_deref(),
            presence: i.volume_images.get(volume),
            volume: true,
        };
        let Obtained { name, present, pulled } = obtain(i, container, &wanted, plan)?;
        if pulled.is_none() {
            told.push(PodAction::Report(PodEvent::pod("Pulled", already_present(&name))));
        }
        volumes.insert(volume.to_owned(), present.map(|image| image.id).unwrap_or_default());
    }
    Ok((volumes, told))
}

pub(super) fn plan_start(
    i: &PodInputs,
    member: &Member<'_>,
    frame: StartFrame<'_>,
    plan: &mut PodPlan,
) -> Turn {
    let container = member.container.as_ref();
    let name = container.name.clone();
    let wanted = container.image.clone().unwrap_or_default();
    let fail = |reason, message: String, events| PodAction::FailStart {
        container: name.clone(),
        image: wanted.clone(),
        reason,
        message,
        events,
    };
    let (volumes, told) = match obtain_volumes(i, container, plan) {
        Ok(obtained) => obtained,
        Err(turn) => return turn,
    };
    let own = Wanted {
        name: &wanted,
        policy: container.image_pull_policy.as_deref(),
        presence: i.images.get(&name),
        volume: false,
    };
    let Obtained { name: image, present, pulled } = match obtain(i, container, &own, plan) {
        Ok(obtained) => obtained,
        Err(turn) => return turn,
    };
    let target = match member.target.map(|target| (target, i.newest(target))) {
        Some((target, None)) => {
            let message = format!("unable to find target container {target}");
            let events = vec![reasons::start_failed_event(&name, &message)];
            plan.actions.push(fail(reasons::CREATE_CONTAINER_CONFIG_ERROR, message, events));
            plan.wait(WaitingOn::StatusPublished);
            return Turn::Next;
        }
        found => found.and_then(|(_, newest)| newest).map(|newest| newest.container.id.clone()),
    };
    let event = pulled.is_none().then(|| PodEvent::normal(&name, "Pulled", already_present(&image)));
    plan.actions.extend(told);
    plan.wait(WaitingOn::ContainerStart { container: name.clone() });
    plan.actions.push(PodAction::StartContainer(Box::new(StartContainer {
        attempt: i.next_attempt(&name),
        container: name,
        sandbox: frame.sandbox.clone(),
        volumes,
        image: present,
        pulled,
        backoff: frame.backoff,
        hash: frame.hash,
        event,
        target,
        post_start: container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some()),
    })));
    Turn::Busy
}
