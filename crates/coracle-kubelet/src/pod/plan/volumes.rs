//! The volumes of a Pod: nothing starts before they are there, nothing of them stays after it.

use super::terminating::teardown_waits;
use super::{PodAction, PodPlan, WaitingOn};
use crate::pod::inputs::{OperationKey, PodInputs};

/// Sets up what is due. True if the Pod may go on with its sandbox and containers.
pub(super) fn plan_set_up(i: &PodInputs, plan: &mut PodPlan) -> bool {
    if !i.operations.contains_key(&OperationKey::MountVolumes) {
        match i.volumes.due {
            Some(at) if at <= i.now => plan.actions.push(PodAction::MountVolumes),
            Some(at) => plan.wake(at),
            None => {}
        }
    }
    if !i.volumes.ready {
        plan.wait(WaitingOn::Volumes);
    }
    i.volumes.ready
}

/// Takes down what is there once nothing runs any more. True if nothing is left.
pub(super) fn plan_tear_down(i: &PodInputs, plan: &mut PodPlan) -> bool {
    if i.operations.contains_key(&OperationKey::MountVolumes) {
        plan.actions.push(PodAction::Cancel(OperationKey::MountVolumes));
    }
    if !i.volumes.present {
        return true;
    }
    plan.wait(WaitingOn::VolumesTeardown);
    if !i.operations.contains_key(&OperationKey::UnmountVolumes) && !teardown_waits(i, plan) {
        plan.actions.push(PodAction::UnmountVolumes);
    }
    false
}
