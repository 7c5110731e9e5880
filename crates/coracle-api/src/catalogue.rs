//! The catalogue: one row for each resource the API serves.
//!
//! Discovery, routes, OpenAPI, tables and storage keys all come from these rows. Adding a kind is adding a row
//! and a [`Strategy`]; nothing else in the API server knows kinds.

mod rows;

use jiff::Timestamp;
use serde_json::Value;

use crate::field::FieldError;
use crate::metadata;
use crate::table::{Column, RowCondition};
use rows::{EVICTION, RESOURCES, SCALE, TOKEN_REQUEST};

/// The name rule of a resource.
pub type NameCheck = fn(&str) -> Vec<String>;

/// One resource of the API.
#[derive(Clone, Copy)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// The kind of its objects.
    pub kind: &'static str,
    /// The name in paths, as `pods`.
    pub plural: &'static str,
    /// As `pod`.
    pub singular: &'static str,
    /// As `po`.
    pub short_names: &'static [&'static str],
    /// As `all`.
    pub categories: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What may be asked of it, sorted as discovery shows it. `deletecollection` is one word, as there.
    pub verbs: &'static [&'static str],
    /// What hangs below one object.
    pub subresources: &'static [Subresource],
    /// The key prefix of its objects in the store, as `/registry/pods`; no slash at the end. Two rows that
    /// share a prefix share their objects.
    pub storage_prefix: &'static str,
    /// The rule for `metadata.name`.
    pub name_check: NameCheck,
    /// What is special about this kind.
    pub strategy: &'static dyn Strategy,
    /// Adds the schema of this kind, and of all that it is made of, to a generator.
    pub(crate) schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
}

/// A part of one object that has a path of its own, as `pods/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// As `status`.
    pub name: &'static str,
    /// The kind that is sent and answered.
    pub kind: &'static str,
    /// The group of that kind, where it is not the resource's.
    pub group: &'static str,
    /// The version of that kind; empty if it is the resource's own group and version.
    pub version: &'static str,
    /// What may be asked of it.
    pub verbs: &'static [&'static str],
}

/// How long a deleted object may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// It goes at once (when no finalizer holds it).
    Immediate,
    /// It stays, marked, for this long, and somebody else removes it earlier or at that time.
    Seconds(i64),
    /// It is marked already, and this request changes nothing.
    Unchanged,
}

/// What becomes of the objects that a deleted object owns when the request does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependents {
    /// They go after it.
    Delete,
    /// They stay: kinds that are older than garbage collection.
    Orphan {
        /// What a client that does not say what it wants is told.
        warning: &'static str,
    },
    /// It cannot own anything, whatever a request says.
    None,
}

/// What is special about one kind.
///
/// All methods take whole objects of the version that the row serves, with metadata, and never look at
/// anything else. Call the methods of [`Resource`] rather than these: they add what holds for every kind.
pub trait Strategy: Sync {
    /// Fills in what the user left open, as the API documents it.
    fn default(&self, _object: &mut Value) {}

    /// Clears what a user may not say at creation, and sets what only the server may.
    fn prepare_for_create(&self, _object: &mut Value) {}

    /// Puts back what an update of the main resource may not touch (the status), and counts the generation.
    fn prepare_for_update(&self, _new: &mut Value, _old: &Value) {}

    /// Puts back what an update of the status may not touch. Labels and annotations may change with a status:
    /// node agents do that.
    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        crate::tree::set_or_remove(new, "spec", old.get("spec").cloned());
    }

    /// What is wrong with a new object, metadata aside.
    fn validate_create(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with a change, metadata aside.
    fn validate_update(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with a change of the status.
    fn validate_status_update(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What the user should know although nothing is wrong. `old` is there for updates.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Whether a PUT to a name that does not exist creates the object.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether an update may leave out `metadata.resourceVersion`.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Whether spec changes are counted in `metadata.generation`.
    fn has_generation(&self) -> bool {
        false
    }

    /// The fields that field selectors may name, with this object's values, beyond `metadata.name` and
    /// `metadata.namespace`.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The names of those fields.
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// The selectable field of which so many values are watched one by one that events are indexed by it. It is the
    /// path of a text in the stored form, and empty when it is missing.
    fn indexed_field(&self) -> Option<&'static str> {
        None
    }

    /// The columns of the table of these objects.
    fn columns(&self) -> &'static [Column];

    /// The cells of one object, one for each column.
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value>;

    /// What clients should know of this row beyond its cells.
    fn row_conditions(&self, _object: &Value) -> Vec<RowCondition> {
        Vec::new()
    }

    /// How a DELETE that asks for `requested` seconds ends.
    fn graceful_deletion(&self, _object: &Value, _requested: Option<i64>) -> Grace {
        Grace::Immediate
    }

    /// What becomes of the objects that a deleted object owns when the request does not say.
    fn dependents(&self) -> Dependents {
        Dependents::Delete
    }

    /// Puts back what an update of the ephemeral containers may not touch.
    fn prepare_for_ephemeral_containers(&self, _new: &mut Value, _old: &Value) {}

    /// What is wrong with a change of the ephemeral containers.
    fn validate_ephemeral_containers(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with an update by the subresource `finalize`.
    fn validate_finalize(&self, _new: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// The warning that goes with every answer about this resource.
    fn deprecation(&self) -> Option<&'static str> {
        None
    }

    /// From the served form to the stored one.
    fn to_storage(&self, object: Value) -> Value {
        object
    }

    /// From the stored form to the served one.
    #[allow(clippy::wrong_self_convention, reason = "the conversion is the strategy's, not a constructor")]
    fn from_storage(&self, object: Value) -> Value {
        object
    }

    /// Whether stored bytes are served as they are, so that nobody needs to decode them.
    fn stored_as_served(&self) -> bool {
        true
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Resource").field(&self.group).field(&self.version).field(&self.plural).finish()
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.plural) == (other.group, other.version, other.plural)
    }
}

impl Eq for Resource {}

impl Resource {
    /// `v1` or `coordination.k8s.io/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The path of its collection: in a namespace, or, for `None`, in all of them or in none.
    #[must_use]
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.version, self.plural),
            None => format!("{root}/{}/{}", self.version, self.plural),
        }
    }

    /// Whether `verb` may be asked of it.
    #[must_use]
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The subresource of this name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// The key of one object in the store.
    #[must_use]
    pub fn storage_key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}/{namespace}/{name}", self.storage_prefix)
        } else {
            format!("{}/{name}", self.storage_prefix)
        }
    }

    /// The prefix of the keys of a namespace, or of all objects, with the slash at the end.
    #[must_use]
    pub fn storage_list_prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.namespaced => format!("{}/{namespace}/", self.storage_prefix),
            _ => format!("{}/", self.storage_prefix),
        }
    }

    /// Fills in defaults.
    pub fn default(&self, object: &mut Value) {
        self.strategy.default(object);
    }

    /// Clears what a user may not say at creation, sets what only the server may, except for name, uid and
    /// creation time, which come from outside.
    pub fn prepare_for_create(&self, object: &mut Value) {
        metadata::prepare_for_create(object, self.strategy.has_generation());
        self.strategy.prepare_for_create(object);
    }

    /// Puts back what an update of the main resource may not touch, and counts the generation.
    pub fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        metadata::prepare_for_update(new, old);
        self.strategy.prepare_for_update(new, old);
        if self.strategy.has_generation() {
            metadata::count_generation(new, old);
        }
    }

    /// Puts back what an update of the status may not touch.
    pub fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        metadata::prepare_for_update(new, old);
        self.strategy.prepare_for_status_update(new, old);
    }

    /// Puts back what an update of the ephemeral containers may not touch, and counts the generation.
    pub fn prepare_for_ephemeral_containers(&self, new: &mut Value, old: &Value) {
        self.strategy.prepare_for_ephemeral_containers(new, old);
        metadata::count_generation(new, old);
    }

    /// What is wrong with a change of the ephemeral containers.
    #[must_use]
    pub fn validate_ephemeral_containers(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        self.strategy.validate_ephemeral_containers(new, old)
    }

    /// What is wrong with a new object.
    #[must_use]
    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = metadata::validate(object, self.namespaced, self.name_check);
        errors.extend(self.strategy.validate_create(object));
        errors
    }

    /// What is wrong with a change.
    #[must_use]
    pub fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        errors.extend(self.strategy.validate_update(new, old));
        errors
    }

    /// What is wrong with a change of the status.
    #[must_use]
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = metadata::validate_update(new, old);
        errors.extend(self.strategy.validate_status_update(new, old));
        errors
    }

    /// The names that a field selector may use for this resource.
    pub fn field_selector_names(&self) -> impl Iterator<Item = &'static str> + use<'_> {
        let namespace = self.namespaced.then_some("metadata.namespace");
        ["metadata.name"].into_iter().chain(namespace).chain(
            self.strategy
                .selectable_field_names()
                .iter()
                .copied()
                .filter(|name| !name.starts_with("metadata.")),
        )
    }

    /// All fields that field selectors may name, with this object's values.
    #[must_use]
    pub fn selectable_values(&self, object: &Value) -> Vec<(&'static str, String)> {
        let mut values = self.strategy.selectable_fields(object);
        values.retain(|(field, _)| !field.starts_with("metadata."));
        values.push(("metadata.name", metadata::name(object).to_owned()));
        if self.namespaced {
            values.push(("metadata.namespace", metadata::namespace(object).to_owned()));
        }
        values
    }

    /// The value of one selectable field of an object.
    #[must_use]
    pub fn selectable_field(&self, object: &Value, name: &str) -> Option<String> {
        match name {
            "metadata.name" => Some(metadata::name(object).to_owned()),
            "metadata.namespace" if self.namespaced => Some(metadata::namespace(object).to_owned()),
            _ => self
                .strategy
                .selectable_fields(object)
                .into_iter()
                .find_map(|(field, value)| (field == name).then_some(value)),
        }
    }
}

/// All rows: the core group first, then the other groups in the order in which discovery shows them, the
/// resources of a group sorted by name.
#[must_use]
pub fn resources() -> &'static [Resource] {
    RESOURCES
}

/// The kinds that have no collection: they are sent to subresources and answered by them.
pub(crate) fn carried() -> [&'static Resource; 3] {
    [&SCALE, &TOKEN_REQUEST, &EVICTION]
}

/// The row of the kind that `subresource` carries, if that is a kind of another group.
#[must_use]
pub fn carried_by(subresource: &Subresource) -> Option<&'static Resource> {
    let same = |row: &&Resource| (row.group, row.kind) == (subresource.group, subresource.kind);
    carried().into_iter().find(|row| same(row) && row.version == subresource.version)
}

/// The row of a path.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The row of a kind.
#[must_use]
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_within_their_group_and_complete() {
        for pair in resources().windows(2) {
            if pair[0].group == pair[1].group {
                assert!(pair[0].plural < pair[1].plural, "{pair:?}");
            }
        }
        for row in resources() {
            assert_eq!(find(row.group, row.version, row.plural), Some(row));
            assert_eq!(by_kind(row.group, row.version, row.kind), Some(row));
            assert!(row.verbs.is_sorted());
            assert!(row.subresources.is_sorted_by_key(|s| s.name));
            assert!(!row.storage_prefix.ends_with('/'));
        }
    }

    #[test]
    fn cells_match_columns_for_an_almost_empty_object() {
        for row in resources().iter().chain(carried()) {
            let object = serde_json::json!({ "metadata": { "name": "x" } });
            let cells = row.strategy.row(&object, Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), row.strategy.columns().len(), "{row:?}");
        }
    }
}
