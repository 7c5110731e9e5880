//! Rules about when containers of a Pod run, and about what is said of their probes.

use std::collections::{BTreeMap, BTreeSet};

use coracle_cri::scripted::Instance;
use coracle_cri::{ContainerId, PodSandboxId};

use super::Broken;
use crate::view::{Container, ContainerSpec, Pod, PodSpec};

#[derive(Debug, Default)]
pub(crate) struct Order {
    /// By Pod UID.
    pods: BTreeMap<String, Past>,
}

/// What the containers of one Pod have done.
#[derive(Debug, Default)]
struct Past {
    sandbox: Option<PodSandboxId>,
    /// Containers that have ended well in this sandbox.
    done: BTreeSet<String>,
    /// How often each container has begun to run with an image, since images of the Pod changed last. What was being
    /// started then still runs the image of before.
    starts: BTreeMap<(String, String), u32>,
    /// What instances have answered well.
    healthy: BTreeSet<(ContainerId, Vec<String>)>,
}

impl Order {
    /// A container of a Pod began to run.
    pub(crate) fn started(&mut self, pod: Option<&Pod>, instance: &Instance) -> Broken {
        let past = self.pods.entry(instance.pod_uid.clone()).or_default();
        if past.sandbox.as_ref() != Some(&instance.sandbox) {
            past.sandbox = Some(instance.sandbox.clone());
            past.done.clear();
        }
        let starts = past.starts.entry((instance.container.clone(), instance.image.clone())).or_default();
        *starts += 1;
        let starts = *starts;
        let spec = &pod?.spec;
        let name = format!("{}/{} {}", instance.pod.0, instance.pod.1, instance.container);
        let own = spec.init_containers.iter().position(|init| init.name == instance.container);
        let regular = spec.containers.iter().find(|container| container.name == instance.container);
        if own.is_none() && regular.is_none() {
            return None;
        }
        let before = &spec.init_containers[..own.unwrap_or(spec.init_containers.len())];
        let open = before.iter().find(|init| !init.is_sidecar() && !past.done.contains(&init.name));
        if let Some(open) = open {
            let what = format!("{name} runs, and {} has not ended well", open.name);
            return Some(("containers wait for the init containers before them", what));
        }
        if starts > 1 && regular.is_some_and(|container| runs_once(spec, container)) {
            let what = format!("{name} runs for the {starts}th time");
            return Some(("a container that is never restarted runs once", what));
        }
        None
    }

    /// A container of a Pod ended.
    pub(crate) fn ended(&mut self, instance: &Instance, code: i32) {
        if let Some(past) = self.pods.get_mut(&instance.pod_uid)
            && past.sandbox.as_ref() == Some(&instance.sandbox)
            && code == 0
        {
            past.done.insert(instance.container.clone());
        }
    }

    /// A container was asked something, and answered with this code.
    pub(crate) fn asked(&mut self, instance: &Instance, words: &[String], code: i32) {
        let http = words.first().is_some_and(|word| word == "httpGet");
        if code == 0 || (http && (200..400).contains(&code)) {
            let past = self.pods.entry(instance.pod_uid.clone()).or_default();
            past.healthy.insert((instance.id.clone(), words.to_vec()));
        }
    }

    pub(crate) fn pod_changed(&mut self, old: Option<&Pod>, new: Option<&Pod>) -> Broken {
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.pods.remove(&old.metadata.uid);
        }
        let new = new?;
        let past = self.pods.get_mut(&new.metadata.uid);
        if let (Some(past), Some(old)) = (past, old)
            && images(old) != images(new)
        {
            // What has changed begins anew, whatever the policy says.
            past.starts.clear();
        }
        new.status.all().find_map(|status| self.told(new, status))
    }

    /// What is told of a container's probes has been answered by that very instance.
    fn told(&self, pod: &Pod, status: &Container) -> Broken {
        let mut all = pod.spec.init_containers.iter().chain(&pod.spec.containers);
        let spec = all.find(|spec| spec.name == status.name)?;
        status.state.running.as_ref()?;
        let id = ContainerId(status.id.rsplit('/').next().unwrap_or_default().to_owned());
        let past = self.pods.get(&pod.metadata.uid);
        let answered = |words: &Vec<String>| {
            past.is_some_and(|past| past.healthy.contains(&(id.clone(), words.clone())))
        };
        let ready =
            spec.readiness_probe.as_ref().filter(|_| status.ready).map(|probe| (probe.words(), "ready"));
        // At the end of a Pod nobody asks any more whether it has started, and all of it counts as started.
        let regular = &pod.status.container_statuses;
        let over = !regular.is_empty() && regular.iter().all(|status| status.state.terminated.is_some());
        let asked = !over && !pod.may_be_ending();
        let started = spec.startup_probe.as_ref().filter(|_| asked && status.started == Some(true));
        let started = started.map(|probe| (probe.words(), "started"));
        let (_, what) = [ready, started].into_iter().flatten().find(|(words, _)| !answered(words))?;
        let text = format!(
            "{} {} is {what}, and {} has not answered that it is",
            pod.full_name(),
            status.name,
            status.id
        );
        Some(("what a probe found is about the container that it asked", text))
    }
}

fn images(pod: &Pod) -> Vec<&str> {
    pod.spec.init_containers.iter().chain(&pod.spec.containers).map(|spec| spec.image.as_str()).collect()
}

/// Whether nothing makes a container run again: neither its policy nor a rule of any container.
fn runs_once(spec: &PodSpec, container: &ContainerSpec) -> bool {
    let policy = container.restart_policy.as_deref().unwrap_or(&spec.restart_policy);
    let all = || spec.init_containers.iter().chain(&spec.containers);
    policy == "Never" && all().all(|container| container.restart_policy_rules.is_empty())
}
