//! How far a Pod's init containers have come, and whether all containers are to start anew.
//!
//! Only instances in the sandbox that counts tell: in a new sandbox everything begins with the first init container.

use coracle_cri::{ContainerState, ContainerStatus};

use super::containers::{self, Kind, Member};
use super::inputs::{PodInputs, UNKNOWN_EXIT_CODE, statuses};
use super::phase;
use crate::probe::ProbeResults;

/// How far the init containers have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The one at this place has to end well, or to be started if it is a sidecar, before anything after it begins.
    At(usize),
    /// Regular containers may start, and plain init containers never run again in this sandbox.
    Done,
}

/// The last one that has an instance tells: what stands before it has passed, even if the runtime has forgotten it.
pub(crate) fn progress(i: &PodInputs) -> Progress {
    let begun = |member: &Member<'_>| i.newest_here(member.name()).is_some();
    let inits: Vec<_> = containers::init(i.spec()).collect();
    if inits.is_empty() || containers::regular(i.spec()).any(|member| begun(&member)) {
        return Progress::Done;
    }
    let Some(last) = inits.iter().rposition(begun) else { return Progress::At(0) };
    let passed = i.newest_here(inits[last].name()).is_some_and(|newest| has_passed(i, &inits[last], newest));
    match last + usize::from(passed) {
        next if next == inits.len() => Progress::Done,
        next => Progress::At(next),
    }
}

fn has_passed(i: &PodInputs, member: &Member<'_>, newest: &ContainerStatus) -> bool {
    match (member.kind, newest.container.state) {
        (Kind::Sidecar, ContainerState::Running) => is_started(i, member, newest),
        (Kind::Init, ContainerState::Exited) => newest.exit_code == Some(0),
        _ => false,
    }
}

/// Whether the init container of this name is the one whose turn it is.
pub(crate) fn is_due(i: &PodInputs, name: &str) -> bool {
    match progress(i) {
        Progress::At(place) => containers::init(i.spec()).nth(place).is_some_and(|due| due.name() == name),
        Progress::Done => false,
    }
}

/// Whether nothing has to pass before this container may start.
pub(crate) fn has_turn(i: &PodInputs, member: &Member<'_>) -> bool {
    match (member.kind, progress(i)) {
        (Kind::Ephemeral, _) | (_, Progress::Done) => true,
        (Kind::Regular, Progress::At(_)) => false,
        (Kind::Init | Kind::Sidecar, Progress::At(due)) => {
            containers::init(i.spec()).take(due + 1).any(|until| until.name() == member.name())
        }
    }
}

/// A plain init container has failed and is not started again: so has the Pod.
pub(crate) fn has_failed(i: &PodInputs) -> bool {
    containers::init(i.spec()).filter(|member| member.kind == Kind::Init).any(|member| {
        i.newest(member.name()).is_some_and(|newest| {
            let exit = newest.exit_code.unwrap_or(UNKNOWN_EXIT_CODE);
            newest.container.state == ContainerState::Exited
                && exit != 0
                && !i.history.must_restart(member.name(), &newest.container.id)
                && !i.restarts(&member, exit)
                && !i.was_restarting_all()
        })
    })
}

/// Whether a running instance has started.
pub(crate) fn is_started(i: &PodInputs, member: &Member<'_>, running: &ContainerStatus) -> bool {
    let kept = |c: &k8s_openapi::api::core::v1::ContainerStatus| c.started == Some(true);
    by_probes(i, member, running, ProbeResults::is_started, kept)
}

/// Whether a running instance is ready.
pub(crate) fn is_ready(i: &PodInputs, member: &Member<'_>, running: &ContainerStatus) -> bool {
    by_probes(i, member, running, ProbeResults::is_ready, |c| c.ready)
}

/// What its probes say of an instance; as long as they say nothing, what was shown of it last: a node agent that
/// starts anew changes nothing.
fn by_probes(
    i: &PodInputs,
    member: &Member<'_>,
    running: &ContainerStatus,
    say: impl Fn(&ProbeResults, &k8s_openapi::api::core::v1::Container) -> bool,
    shown: impl Fn(&k8s_openapi::api::core::v1::ContainerStatus) -> bool,
) -> bool {
    if let Some(results) = i.probes.get(&running.container.id) {
        return say(results, &member.container);
    }
    let id = i.container_id(&running.container.id);
    let before = statuses(&i.previous_status).find(|c| c.container_id.as_deref() == Some(id.as_str()));
    say(&ProbeResults::default(), &member.container) || before.is_some_and(shown)
}

/// Whether all containers are to be removed and started anew: one has ended as a rule with that action says, or the
/// removal has begun and is not over.
pub(crate) fn restarts_all(i: &PodInputs) -> bool {
    if i.was_restarting_all() {
        return removable(i).next().is_some();
    }
    restart_triggers(i).next().is_some()
}

/// The instances that have ended as a rule says that restarts all containers.
pub(crate) fn restart_triggers(i: &PodInputs) -> impl Iterator<Item = &ContainerStatus> {
    containers::all(i.spec()).filter_map(|member| {
        let newest = i.newest_here(member.name())?;
        let exit = newest.exit_code.unwrap_or(UNKNOWN_EXIT_CODE);
        let matches = newest.container.state == ContainerState::Exited
            && phase::matching_rule(&member.container, exit).is_some_and(phase::restarts_all);
        matches.then_some(newest)
    })
}

/// The instances that go when all containers start anew: all but those of ephemeral containers.
pub(crate) fn removable(i: &PodInputs) -> impl Iterator<Item = &ContainerStatus> {
    let stays = |name: &str| containers::ephemeral(i.spec()).any(|member| member.name() == name);
    i.containers.iter().filter(move |c| !stays(&c.container.name))
}
