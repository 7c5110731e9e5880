//! What is special about each kind: one module with its [`crate::catalogue::Strategy`].

use jiff::Timestamp;
use serde_json::Value;

use crate::metadata;
use crate::table::{Column, age_of};
use crate::tree;

pub(crate) mod binding;
pub(crate) mod config_map;
pub(crate) mod cron_job;
pub(crate) mod custom_resource_definition;
pub(crate) mod deployment;
pub(crate) mod endpoint_slice;
pub(crate) mod endpoints;
pub(crate) mod event;
pub(crate) mod job;
pub(crate) mod lease;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod pod_disruption_budget;
pub mod priority_class;
pub(crate) mod replica_set;
pub(crate) mod review;
pub(crate) mod scale;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod service_account;
pub(crate) mod token_request;
mod workload;

/// The table of kinds that have nothing else to show.
static NAME_AND_AGE: &[Column] = &[Column::NAME, Column::AGE];

fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![metadata::name(object).into(), age(object, now)]
}

fn age(object: &Value, now: Timestamp) -> Value {
    age_of(now, tree::at(object, &["metadata", "creationTimestamp"])).into()
}
