//! One start: the image, what holds the start back, and the start itself.

use coracle_cri::PodSandboxId;
use k8s_openapi::api::core::v1::Container;

use super::containers::Turn;
use super::{PodAction, PodPlan, StartContainer, WaitingOn};
use crate::pod::backoff::Backoff;
use crate::pod::containers::Member;
use crate::pod::history::StartFailure;
use crate::pod::image_name;
use crate::pod::inputs::{ANNOTATION_BACKOFF, ANNOTATION_HASH, ImagePresence, PodInputs, SEEN_PATIENCE};
use crate::pod::reasons::{self, PodEvent};

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
            event: failure.is_pull().then(|| reasons::pull_back_off_event(name, &failure.image)),
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
    let image = match image_name::with_default_tag(&wanted) {
        Ok(image) => image,
        Err(message) => {
            let events = vec![
                PodEvent::warning(&name, "InspectFailed", message.clone()),
                reasons::start_failed_event(&name, reasons::INVALID_IMAGE_NAME),
            ];
            plan.actions.push(fail(reasons::INVALID_IMAGE_NAME, message, events));
            plan.wait(WaitingOn::StatusPublished);
            return Turn::Next;
        }
    };
    let pulled = i.history.containers.get(&name).and_then(|h| h.pulled.clone());
    let present = match i.images.get(&name) {
        Some(ImagePresence::Present(image)) => Some(image.clone()),
        Some(ImagePresence::InspectFailed(why)) => {
            let message = format!("Failed to inspect image \"{image}\": {why}");
            let events = vec![
                PodEvent::warning(&name, "InspectFailed", message.clone()),
                reasons::start_failed_event(&name, reasons::IMAGE_INSPECT_ERROR),
            ];
            plan.actions.push(fail(reasons::IMAGE_INSPECT_ERROR, message, events));
            plan.wait(WaitingOn::StatusPublished);
            return Turn::Next;
        }
        Some(ImagePresence::Absent) | None => None,
    };
    let policy = container.image_pull_policy.as_deref().unwrap_or_else(|| image_name::default_policy(&image));
    match (policy, &pulled, &present) {
        ("Never", _, None) => {
            if let Some(failure) =
                current_failure(i, container).filter(|f| f.reason == reasons::ERR_IMAGE_NEVER_PULL)
            {
                let until = i.now + crate::pod::history::RETRY;
                plan.wake(until);
                let reason = failure.reason.clone();
                plan.wait(WaitingOn::StartRetry { container: name.clone(), reason, until: Some(until) });
                return Turn::Next;
            }
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            let events = vec![
                PodEvent::warning(&name, "ErrImageNeverPull", message.clone()),
                reasons::start_failed_event(&name, reasons::ERR_IMAGE_NEVER_PULL),
            ];
            plan.actions.push(fail(reasons::ERR_IMAGE_NEVER_PULL, message, events));
            plan.wait(WaitingOn::StatusPublished);
            return Turn::Next;
        }
        ("Always", None, _) | (_, None, None) => {
            plan.wait(WaitingOn::ImagePull { container: name.clone() });
            plan.actions.push(PodAction::PullImage { container: name, image });
            return Turn::Busy;
        }
        _ => {}
    }
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
    let event = pulled.is_none().then(|| {
        let text =
            format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
        PodEvent::normal(&name, "Pulled", text)
    });
    plan.wait(WaitingOn::ContainerStart { container: name.clone() });
    plan.actions.push(PodAction::StartContainer(Box::new(StartContainer {
        attempt: i.next_attempt(&name),
        container: name,
        sandbox: frame.sandbox.clone(),
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
