//! Amounts of resources as whole numbers: cpu in thousandths, everything else in its unit, rounded up.

use std::collections::BTreeMap;

use coracle_api::pod::{ResourceList, effective_requests_by};
use coracle_api::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as QuantityText;

/// How much of each resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// What a node offers. What is no number is not offered.
    #[must_use]
    pub fn offered(list: &BTreeMap<String, QuantityText>) -> Self {
        list.iter().filter_map(|(name, text)| Some((name.clone(), text.0.parse().ok()?))).collect()
    }

    /// What a Pod needs at the worst moment of its life.
    #[must_use]
    pub fn requested(pod: &Pod) -> Self {
        effective_requests_by(pod, requests).into_iter().collect()
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
}

impl FromIterator<(String, Quantity)> for Amounts {
    fn from_iter<I: IntoIterator<Item = (String, Quantity)>>(list: I) -> Self {
        let whole = |(name, quantity): (String, Quantity)| {
            let amount = if name == "cpu" { quantity.milli_value() } else { quantity.value() };
            (name, amount)
        };
        Amounts(list.into_iter().map(whole).collect())
    }
}

/// Requests of a container. What is no number is more than any node has: unknown never means nothing.
fn requests(container: &Container) -> ResourceList {
    let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let most = || Quantity::units(i64::MAX, Format::DecimalSi);
    list.into_iter()
        .flatten()
        .map(|(name, text)| (name.clone(), text.0.parse().unwrap_or_else(|_| most())))
        .collect()
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
        let amounts: Amounts = effective_requests_by(pod, |container| {
            let mut counted = requests(container);
            counted.entry("cpu".to_owned()).or_insert(Quantity::millis(DEFAULT_CPU_MILLIS));
            counted
                .entry("memory".to_owned())
                .or_insert(Quantity::units(DEFAULT_MEMORY_BYTES, Format::BinarySi));
            counted
        })
        .into_iter()
        .collect();
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
