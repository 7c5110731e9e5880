//! Volumes in the plan of a Pod.

use coracle_cri::{ContainerState, PodSandboxState};
use serde_json::json;

use super::{at, container, inputs, pod, publish, sandbox};
use crate::pod::inputs::{Lifecycle, Operation, OperationKey, PodInputs, TerminationCause};
use crate::pod::volumes::VolumesState;
use crate::pod::{PodAction, WaitingOn, plan};

fn with(volumes: VolumesState) -> PodInputs {
    let mut i = inputs(pod(json!({"containers": [{"name": "c", "image": "x:1"}]})));
    i.volumes = volumes;
    i
}

const fn state(ready: bool, due: Option<jiff::Timestamp>, present: bool) -> VolumesState {
    VolumesState { ready, due, present }
}

fn in_flight(i: &mut PodInputs, key: OperationKey) {
    i.operations.insert(key, Operation { since: i.now, deadline: None });
}

#[test]
fn nothing_is_made_before_the_volumes_are_there() {
    let mut i = with(state(false, Some(at(0)), false));
    let first = plan(&i);
    assert_eq!((first.actions, first.waiting_on), (vec![PodAction::MountVolumes], vec![WaitingOn::Volumes]));
    in_flight(&mut i, OperationKey::MountVolumes);
    let second = plan(&i);
    assert_eq!((second.actions, second.waiting_on), (vec![], vec![WaitingOn::Volumes]));
    i.operations.clear();
    i.volumes = state(false, Some(at(5)), true);
    let failed = plan(&i);
    assert_eq!((failed.actions, failed.wake_at), (vec![], Some(at(5))));
    i.volumes = state(true, None, true);
    assert_eq!(plan(&i).actions, [PodAction::CreateSandbox { attempt: 0 }]);
}

#[test]
fn volumes_of_a_running_pod_are_written_anew_beside_everything_else() {
    let mut i = with(state(true, Some(at(0)), true));
    i.sandboxes.push(sandbox(0, PodSandboxState::Ready));
    i.containers.push(container(&i, "c", 0, ContainerState::Running));
    publish(&mut i);
    let renewed = plan(&i);
    assert_eq!(renewed.actions, [PodAction::MountVolumes]);
    assert_eq!(renewed.waiting_on, [WaitingOn::ContainerExit { container: "c".into() }]);
    i.volumes.due = Some(at(9));
    assert_eq!((plan(&i).actions, plan(&i).wake_at), (vec![], Some(at(9))));
}

#[test]
fn volumes_go_when_nothing_runs_any_more_and_before_the_object_does() {
    let mut i = with(state(true, None, true));
    i.lifecycle = Lifecycle::Terminated { cause: TerminationCause::Completed };
    let first = plan(&i);
    assert_eq!(first.actions, [PodAction::UnmountVolumes]);
    assert_eq!(first.waiting_on, [WaitingOn::VolumesTeardown]);
    in_flight(&mut i, OperationKey::UnmountVolumes);
    assert_eq!(plan(&i).actions, []);
    i.operations.clear();
    i.object_gone = true;
    assert_eq!(plan(&i).actions, [PodAction::UnmountVolumes]);
    i.volumes.present = false;
    assert_eq!(plan(&i).actions, [PodAction::CleanUp]);
}

#[test]
fn a_pod_that_ends_waits_for_no_volume() {
    let mut i = with(state(false, Some(at(0)), true));
    in_flight(&mut i, OperationKey::MountVolumes);
    i.object_gone = true;
    let ending = plan(&i);
    assert_eq!(ending.lifecycle, Lifecycle::Terminated { cause: TerminationCause::Orphaned });
    assert!(ending.actions.contains(&PodAction::UnmountVolumes), "{:?}", ending.actions);
}

#[test]
fn the_status_names_what_is_mounted() {
    let mounts = json!([
        {"name": "a", "mountPath": "/a"},
        {"name": "b", "mountPath": "/b", "readOnly": true},
        {"name": "c", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "IfPossible"},
    ]);
    let i = inputs(pod(json!({"containers": [{"name": "c", "image": "x:1", "volumeMounts": mounts}]})));
    let status = crate::pod::status(&i);
    let shown = serde_json::to_value(&status.container_statuses.unwrap()[0].volume_mounts).unwrap();
    assert_eq!(
        shown,
        json!([
            {"name": "a", "mountPath": "/a"},
            {"name": "b", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "c", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"},
        ])
    );
}
