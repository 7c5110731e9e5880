//! The sandbox: made, made anew when it is lost, and not before the network is there.

use super::{PodAction, PodPlan, WaitingOn, terminating::teardown_waits};
use crate::pod::inputs::{OperationKey, PodInputs};
use crate::pod::reasons::{self, PodEvent};

pub(super) fn plan_sandbox(i: &PodInputs, plan: &mut PodPlan) {
    if i.operations.contains_key(&OperationKey::CreateSandbox) {
        plan.wait(WaitingOn::Sandbox);
        return;
    }
    if let Some(old) = i.sandboxes.first()
        && !i.history.stopped_sandboxes.contains(&old.sandbox.id)
    {
        let id = old.sandbox.id.clone();
        plan.wait(WaitingOn::SandboxTeardown);
        if i.operations.contains_key(&OperationKey::StopSandbox(id.clone())) || teardown_waits(i, plan) {
            return;
        }
        if i.history.teardown_retry.is_none() {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            plan.actions.push(PodAction::Report(PodEvent::pod("SandboxChanged", text)));
        }
        plan.actions.push(PodAction::StopSandbox(id));
        return;
    }
    if let Err(why) = &i.node.network
        && !i.host_network()
    {
        plan.wait(WaitingOn::NetworkReady(why.clone()));
        if !i.history.told.contains(reasons::NETWORK_NOT_READY) {
            let text = format!("network is not ready: {why}");
            plan.actions.push(PodAction::Report(PodEvent::pod_warning(reasons::NETWORK_NOT_READY, text)));
        }
        return;
    }
    if let Some(retry) = i.history.sandbox_retry
        && i.now < retry.at
    {
        plan.wake(retry.at);
        plan.wait(WaitingOn::SandboxRetry(retry.at));
        return;
    }
    let attempt = i.sandboxes.first().map_or(0, |old| old.sandbox.metadata.attempt + 1);
    plan.wait(WaitingOn::Sandbox);
    plan.actions.push(PodAction::CreateSandbox { attempt });
}
