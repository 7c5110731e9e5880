//! The decisions of a write: decode ▸ default ▸ admit ▸ validate, as pure functions between two I/O points.
//!
//! The shell ([`crate::write`]) reads what these functions need, calls them, commits what they return with
//! compare-and-set, and starts again when somebody else was faster.

use coracle_api::catalogue::Resource;
use coracle_api::decode;
use coracle_api::field::{FieldError, Path};
use coracle_api::metadata;
use coracle_api::schema;
use coracle_api::status::Status;
use coracle_api::{Timestamp, Value};

use crate::auth::UserInfo;
use crate::call::FieldValidation;
use crate::protobuf;

/// Longest name that a generated name may have before its suffix.
const GENERATE_NAME_PREFIX_MAX: usize = 63 - 5;

/// Media types of bodies.
pub(crate) const BODY_TYPES: [&str; 3] = ["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// Which part of an object an update is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the status.
    Main,
    /// The status.
    Status,
    /// `spec.finalizers` of a Namespace.
    Finalize,
    /// `spec.ephemeralContainers` of a Pod.
    EphemeralContainers,
}

/// Turns a body into an object of `row`, with what should be said about it.
pub(crate) fn decode_body(
    row: &Resource,
    media_type: &str,
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let decoded = match media_type {
        "application/json" => decode::json(body),
        "application/yaml" => decode::yaml(body),
        protobuf::MEDIA_TYPE => protobuf::decode(body, &protobuf::message_of(row))
            .map(|value| decode::Decoded { value, duplicates: Vec::new() })
            .map_err(|malformed| malformed.to_string()),
        _ => return Err(Status::unsupported_media_type(&BODY_TYPES)),
    }
    .map_err(|complaint| decode::unrecognized(row, body, &complaint))?;
    let mut object = decoded.value;
    decode::check_type(row, &mut object)?;
    let warnings = check_fields(row, &mut object, decoded.duplicates, validation)?;
    Ok((object, warnings))
}

/// Drops unknown fields, and complains about them as the client wishes.
pub(crate) fn check_fields(
    row: &Resource,
    object: &mut Value,
    mut complaints: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    complaints.extend(schema::normalize(row, object)?);
    match validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            Err(schema::strict_decoding_error(row, &complaints))
        }
        FieldValidation::Ignore => Ok(Vec::new()),
        _ => Ok(complaints),
    }
}

/// Puts an object where the request's path says, if the object does not say something else.
pub(crate) fn place(
    row: &Resource,
    object: &mut Value,
    namespace: Option<&str>,
    name: &str,
) -> Result<(), Status> {
    let said = metadata::namespace(object).to_owned();
    if let Some(namespace) = namespace.filter(|_| row.namespaced) {
        if said.is_empty() {
            set(object, "namespace", namespace.into());
        } else if said != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    let said = metadata::name(object).to_owned();
    if !name.is_empty() {
        if said.is_empty() {
            set(object, "name", name.into());
        } else if said != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({said}) does not match the name on the URL ({name})"
            )));
        }
    }
    Ok(())
}

/// Sets a field of an object's metadata.
pub(crate) fn set(object: &mut Value, field: &str, value: Value) {
    if !object.get("metadata").is_some_and(Value::is_object) {
        object["metadata"] = Value::Object(serde_json::Map::new());
    }
    object["metadata"][field] = value;
}

/// Removes a field of an object's metadata.
pub(crate) fn unset(object: &mut Value, field: &str) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove(field);
    }
}

/// A text of an object's metadata; empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// What chance and time give a new object.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) now: Timestamp,
    pub(crate) uid: String,
    /// Random part of a generated name.
    pub(crate) suffix: String,
}

/// Makes a new object out of what a user sent, or says what is wrong with it.
pub(crate) fn create(row: &Resource, object: &mut Value, birth: Birth) -> Result<(), Status> {
    if !text(object, "resourceVersion").is_empty() && text(object, "resourceVersion") != "0" {
        let mut status = Status::internal("");
        status.message = "resourceVersion should not be set on objects to be created".to_owned();
        status.reason = coracle_api::status::Reason::Unknown;
        status.details = None;
        return Err(status);
    }
    let generate = text(object, "generateName").to_owned();
    if metadata::name(object).is_empty() && !generate.is_empty() {
        let mut end = generate.len().min(GENERATE_NAME_PREFIX_MAX);
        while !generate.is_char_boundary(end) {
            end -= 1;
        }
        set(object, "name", format!("{}{}", &generate[..end], birth.suffix).into());
    }
    // Nobody merges by field managers yet: what a client claims about them is not kept.
    unset(object, "managedFields");
    // A Job's selector is made of its UID.
    set(object, "uid", birth.uid.into());
    set(object, "creationTimestamp", metadata::rfc3339(birth.now).into());
    row.default(object);
    row.prepare_for_create(object);
    let errors = row.validate_create(object);
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(row.group, row.kind, metadata::name(object), &errors))
}

/// Makes the next version of `current` out of what a user sent, or says what is wrong with it.
pub(crate) fn update(row: &Resource, part: Part, object: &mut Value, current: &Value) -> Result<(), Status> {
    let name = metadata::name(current).to_owned();
    let version = text(object, "resourceVersion").to_owned();
    if version.is_empty() || version == "0" {
        if !row.strategy.allow_unconditional_update() {
            let path = Path::new("metadata").child("resourceVersion");
            let error = FieldError::invalid(&path, 0, "must be specified for an update");
            return Err(Status::invalid(row.group, row.kind, &name, &[error]));
        }
    } else if version != text(current, "resourceVersion") {
        return Err(Status::modified(row.group, row.plural, &name));
    }
    let (said, is) = (text(object, "uid"), text(current, "uid"));
    if !said.is_empty() && said != is {
        let why = format!("Precondition failed: UID in precondition: {said}, UID in object meta: {is}");
        return Err(Status::conflict(row.group, row.plural, &name, &why));
    }
    unset(object, "managedFields");
    let errors = match part {
        Part::Main => {
            row.default(object);
            row.prepare_for_update(object, current);
            row.validate_update(object, current)
        }
        Part::Status => {
            row.default(object);
            row.prepare_for_status_update(object, current);
            row.validate_status_update(object, current)
        }
        Part::EphemeralContainers => {
            row.default(object);
            row.prepare_for_ephemeral_containers(object, current);
            row.validate_ephemeral_containers(object, current)
        }
        Part::Finalize => {
            let finalizers = object.pointer("/spec/finalizers").cloned();
            let mut kept = current.clone();
            if let Some(spec) = kept.get_mut("spec").and_then(Value::as_object_mut) {
                match finalizers.filter(|list| list.as_array().is_some_and(|list| !list.is_empty())) {
                    Some(finalizers) => {
                        spec.insert("finalizers".to_owned(), finalizers);
                    }
                    None => {
                        spec.shift_remove("finalizers");
                    }
                }
            }
            *object = kept;
            row.strategy.validate_finalize(object)
        }
    };
    if errors.is_empty() {
        // The revision is the store's to say.
        set(object, "resourceVersion", text(current, "resourceVersion").into());
        return Ok(());
    }
    Err(Status::invalid(row.group, row.kind, &name, &errors))
}

/// Whether an object that is being deleted has nothing left that holds it.
pub(crate) fn is_finished(row: &Resource, object: &Value) -> bool {
    let empty = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).is_none_or(Vec::is_empty);
    let grace = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    metadata::is_deleting(object)
        && grace.unwrap_or(0) == 0
        && empty("/metadata/finalizers")
        && (!is_namespace(row) || empty("/spec/finalizers"))
}

/// Whether `row` is the row of namespaces.
pub(crate) fn is_namespace(row: &Resource) -> bool {
    row.group.is_empty() && row.plural == "namespaces"
}

/// Refuses new objects in a namespace that is going away. `namespace` is the Namespace object, if it exists.
pub(crate) fn admit_to_namespace(
    row: &Resource,
    object: &Value,
    namespace: Option<&Value>,
    namespace_name: &str,
) -> Result<(), Status> {
    let Some(namespace) = namespace else {
        return Err(Status::not_found("", "namespaces", namespace_name));
    };
    if !metadata::is_deleting(namespace) {
        return Ok(());
    }
    let why =
        format!("unable to create new content in namespace {namespace_name} because it is being terminated");
    let mut status = Status::forbidden(row.group, row.plural, metadata::name(object), &why);
    if let Some(details) = status.details.as_mut() {
        details.causes.push(coracle_api::status::Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace_name} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
    }
    Err(status)
}

/// What a node agent may not write even into its own objects.
pub(crate) fn admit_node(
    row: &Resource,
    user: &UserInfo,
    object: &Value,
    current: Option<&Value>,
) -> Result<(), Status> {
    let Some(node) = user.node_name() else { return Ok(()) };
    let name = metadata::name(object);
    let refuse = |why: &str| Err(Status::forbidden(row.group, row.plural, name, why));
    match (row.group, row.plural) {
        ("", "nodes") if name != node => {
            refuse(&format!("node {node:?} is not allowed to modify node {name:?}"))
        }
        ("", "nodes") => {
            let taints = |object: &Value| object.pointer("/spec/taints").cloned();
            match current {
                Some(current) if taints(current) != taints(object) => {
                    refuse(&format!("node {node:?} is not allowed to modify taints"))
                }
                _ => Ok(()),
            }
        }
        ("coordination.k8s.io", "leases") if name != node => {
            refuse("can only access node lease with the same name as the requesting node")
        }
        _ => Ok(()),
    }
}
