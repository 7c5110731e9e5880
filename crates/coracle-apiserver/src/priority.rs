//! Priority admission: Pods get the priority of their class, and only one class is the default.

use bytes::Bytes;
use coracle_api::Value;
use coracle_api::catalogue::{self, Resource};
use coracle_api::metadata;
use coracle_api::priority_class::{admit_default, admit_pod};
use coracle_api::status::Status;
use coracle_store::ListRequest;

use crate::server::{Core, store_failed};

const GROUP: &str = "scheduling.k8s.io";
const CLASSES: &str = "priorityclasses";

fn is_class(row: &Resource) -> bool {
    row.group == GROUP && row.plural == CLASSES
}

fn is_pod(row: &Resource) -> bool {
    row.group.is_empty() && row.plural == "pods"
}

impl Core {
    /// What a new object gets of the priority classes, or why it cannot be.
    pub(crate) async fn admit_priority(&self, row: &Resource, object: &mut Value) -> Result<(), Status> {
        let marked = object.get("globalDefault").and_then(Value::as_bool) == Some(true);
        let concerns = is_pod(row) || is_class(row) && marked;
        if !concerns {
            return Ok(());
        }
        let classes = self.priority_classes().await?;
        let admitted =
            if is_pod(row) { admit_pod(object, &classes) } else { admit_default(object, &classes) };
        admitted.map_err(|why| Status::forbidden(row.group, row.plural, metadata::name(object), &why))
    }

    /// Whether a class that changes may be what it is to be.
    pub(crate) async fn admit_changed_priority(
        &self,
        row: &Resource,
        object: &mut Value,
    ) -> Result<(), Status> {
        if is_class(row) { self.admit_priority(row, object).await } else { Ok(()) }
    }

    async fn priority_classes(&self) -> Result<Vec<Value>, Status> {
        let row = catalogue::find(GROUP, "v1", CLASSES).ok_or_else(Status::unknown_resource)?;
        let prefix = Bytes::from(row.storage_list_prefix(None));
        let request = ListRequest { prefix, ..ListRequest::default() };
        let page = self.store.list(&request).await.map_err(|error| store_failed(&error))?;
        page.items.iter().map(|kv| self.served(row, kv)).collect()
    }
}
