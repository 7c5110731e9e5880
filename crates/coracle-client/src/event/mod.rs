//! Events: what `kubectl describe` shows below an object.
//!
//! `correlate` decides what becomes of an occurrence (a new Event, a higher count, nothing); `recorder` carries that
//! out without ever making its caller wait.

mod correlate;
mod recorder;

use k8s_openapi::api::core::v1::ObjectReference;

use crate::Object;

pub use recorder::EventRecorder;

/// Whether an Event tells of something expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventType {
    /// It does.
    Normal,
    /// Somebody may want to look at it.
    Warning,
}

impl EventType {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// A reference to `object`, as Events carry it. Set `field_path` for a part of it, as `spec.containers{c}`.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}
