//! Amounts of resources as whole numbers: cpu in thousandths, everything else in its unit, rounded up.

use std::collections::BTreeMap;

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as QuantityText;

use crate::info::is_sidecar;

/// How much of each resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Amounts(pub BTreeMap<String, i64>);

/// What a resource list says of one resource; `None` if it is no number.
#[must_use]
pub fn amount(resource: &str, quantity: &QuantityText) -> Option<i64> {
    let quantity: Quantity = quantity.0.parse().ok()?;
    Some(if resource == "cpu" { quantity.milli_value() } else { quantity.value() })
}

impl Amounts {
    /// What a node offers. What is no number is not offered.
    #[must_use]
    pub fn offered(list: &BTreeMap<String, QuantityText>) -> Self {
        Amounts(list.iter().filter_map(|(name, text)| Some((name.clone(), amount(name, text)?))).collect())
    }

    /// What a Pod asks for. What is no number is more than any node has: unknown never means nothing.
    #[must_use]
    pub fn requested(list: &BTreeMap<String, QuantityText>) -> Self {
        Amounts(
            list.iter().map(|(name, text)| (name.clone(), amount(name, text).unwrap_or(i64::MAX))).collect(),
        )
    }

    /// Of one resource; 0 if it is not there.
    #[must_use]
    pub fn get(&self, resource: &str) -> i64 {
        self.0.get(resource).copied().unwrap_or(0)
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_insert(0);
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Takes all of `other` away.
    pub fn subtract(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_insert(0);
            *sum = sum.saturating_sub(*amount);
        }
    }

    /// Raises each resource to at least what `other` has.
    fn raise_to(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            let own = self.0.entry(name.clone()).or_insert(0);
            *own = (*own).max(*amount);
        }
    }
}

/// What a Pod needs at the worst moment of its life: its containers and sidecars together, or an init container
/// beside the sidecars started before it, whichever is more; replaced by what is said for the Pod as a whole; with
/// the overhead of its runtime class.
pub(crate) fn effective_requests(pod: &Pod) -> Amounts {
    total(pod, requests)
}

/// What a Pod counts for when load is compared: a container that asks for nothing counts for a little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NonZero {
    /// In thousandths.
    pub cpu: i64,
    /// In bytes.
    pub memory: i64,
}

const DEFAULT_CPU_MILLIS: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

impl NonZero {
    pub(crate) fn of(pod: &Pod) -> Self {
        let amounts = total(pod, |container| {
            let mut amounts = requests(container);
            amounts.0.entry("cpu".to_owned()).or_insert(DEFAULT_CPU_MILLIS);
            amounts.0.entry("memory".to_owned()).or_insert(DEFAULT_MEMORY_BYTES);
            amounts
        });
        NonZero { cpu: amounts.get("cpu"), memory: amounts.get("memory") }
    }

    pub(crate) fn add(&mut self, other: &NonZero) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.memory = self.memory.saturating_add(other.memory);
    }

    pub(crate) fn subtract(&mut self, other: &NonZero) {
        self.cpu = self.cpu.saturating_sub(other.cpu);
        self.memory = self.memory.saturating_sub(other.memory);
    }
}

fn requests(container: &Container) -> Amounts {
    of_requirements(container.resources.as_ref())
}

fn of_requirements(resources: Option<&ResourceRequirements>) -> Amounts {
    resources.and_then(|resources| resources.requests.as_ref()).map(Amounts::requested).unwrap_or_default()
}

fn total(pod: &Pod, requests: impl Fn(&Container) -> Amounts) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let mut running = Amounts::default();
    for container in &spec.containers {
        running.add(&requests(container));
    }
    let mut sidecars = Amounts::default();
    let mut starting = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container);
        if is_sidecar(container) {
            running.add(&own);
            sidecars.add(&own);
            starting.raise_to(&sidecars);
        } else {
            let mut beside = sidecars.clone();
            beside.add(&own);
            starting.raise_to(&beside);
        }
    }
    running.raise_to(&starting);
    running.0.extend(of_requirements(spec.resources.as_ref()).0);
    if let Some(overhead) = &spec.overhead {
        running.add(&Amounts::requested(overhead));
    }
    running
}
