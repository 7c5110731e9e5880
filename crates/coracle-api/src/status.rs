//! `Status`: the answer of the API to a request that failed, or that has nothing else to say.
//!
//! Codes, reasons, details and words are upstream's. What a client must not see (paths, inner errors) never
//! enters a `Status`.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::field::{FieldError, go_quote};

/// The machine-readable reason of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the API's own words")]
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

impl Reason {
    /// The reason as it stands in the answer; empty for [`Reason::Unknown`].
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Unknown => "",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Invalid => "Invalid",
            Reason::ServerTimeout => "ServerTimeout",
            Reason::Timeout => "Timeout",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::BadRequest => "BadRequest",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::InternalError => "InternalError",
            Reason::Expired => "Expired",
            Reason::ServiceUnavailable => "ServiceUnavailable",
        }
    }
}

/// One cause of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable; may be empty.
    pub reason: String,
    /// In words.
    pub message: String,
    /// The field it is about; may be empty.
    pub field: String,
}

/// What a failure or success is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The object's name.
    pub name: String,
    /// The API group.
    pub group: String,
    /// The kind, or the resource where upstream puts the resource here.
    pub kind: String,
    /// The object's UID.
    pub uid: String,
    /// One entry for each cause.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: u32,
}

/// An answer of the API that is not an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// Why it failed; [`Reason::Unknown`] on success.
    pub reason: Reason,
    /// In words.
    pub message: String,
    /// What it is about. Boxed, because this type is the error of nearly every function.
    pub details: Option<Box<Details>>,
    /// The list revision of a `Status` that answers a list or carries a continue token.
    pub continue_token: Option<String>,
}

/// `pods` or `deployments.apps`: how upstream names a resource in a sentence.
#[must_use]
pub fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

impl Status {
    fn failure(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None, continue_token: None }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = self.details.get_or_insert_default();
        details.name = name.to_owned();
        details.group = group.to_owned();
        details.kind = kind.to_owned();
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// The answer to a request that succeeded and has no object to show; `code` is 200 or 201.
    #[must_use]
    pub fn success(code: u16, details: Option<Details>) -> Self {
        Status {
            code,
            reason: Reason::Unknown,
            message: String::new(),
            details: details.map(Box::new),
            continue_token: None,
        }
    }

    /// 404: there is no object of this name.
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, resource), go_quote(name));
        Self::failure(404, Reason::NotFound, message).about(group, resource, name)
    }

    /// 404: this path serves nothing.
    #[must_use]
    pub fn unknown_resource() -> Self {
        let mut status =
            Self::failure(404, Reason::NotFound, "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// 409: an object of this name exists.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, resource), go_quote(name));
        Self::failure(409, Reason::AlreadyExists, message).about(group, resource, name)
    }

    /// 409: no free name was found for `generateName`.
    #[must_use]
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource),
            go_quote(name)
        );
        Self::failure(409, Reason::AlreadyExists, message).about(group, resource, name).retry_after(1)
    }

    /// 409: the write was based on an older revision, or another precondition failed; `why` says which.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {why}",
            qualified(group, resource),
            go_quote(name)
        );
        Self::failure(409, Reason::Conflict, message).about(group, resource, name)
    }

    /// 409 in the words for a stale `resourceVersion`.
    #[must_use]
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422: the object does not validate. `kind` is the kind, not the resource.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let subject = format!("{} {} is invalid", qualified(group, kind), go_quote(name));
        let message = match texts.as_slice() {
            [] => subject,
            [one] => format!("{subject}: {one}"),
            many => format!("{subject}: [{}]", many.join(", ")),
        };
        let mut status = Self::failure(422, Reason::Invalid, message).about(group, kind, name);
        status.details.get_or_insert_default().causes = errors
            .iter()
            .map(|error| Cause {
                reason: error.kind.cause().to_owned(),
                message: error.body(),
                field: error.field.to_string(),
            })
            .collect();
        status
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, Reason::BadRequest, message)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::failure(401, Reason::Unauthorized, "Unauthorized")
    }

    /// 403 from admission or a rule about one object: `pods "x" is forbidden: why`.
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let resource_name = qualified(group, resource);
        let message = if resource_name.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{resource_name} is forbidden: {why}")
        } else {
            format!("{resource_name} {} is forbidden: {why}", go_quote(name))
        };
        Self::failure(403, Reason::Forbidden, message).about(group, resource, name)
    }

    /// 403 from authorization.
    #[must_use]
    pub fn not_authorized(denied: &Denied<'_>) -> Self {
        let user = go_quote(denied.user);
        let why = match denied.attempt {
            Attempt::Path { path } => {
                format!("User {user} cannot {} path {}", denied.verb, go_quote(path))
            }
            Attempt::Resource { group, resource, subresource, namespace, .. } => {
                let shown = if subresource.is_empty() {
                    resource.to_owned()
                } else {
                    format!("{resource}/{subresource}")
                };
                let scope = if namespace.is_empty() {
                    "at the cluster scope".to_owned()
                } else {
                    format!("in the namespace {}", go_quote(namespace))
                };
                format!(
                    "User {user} cannot {} resource {} in API group {} {scope}",
                    denied.verb,
                    go_quote(&shown),
                    go_quote(group)
                )
            }
        };
        let why = if denied.reason.is_empty() { why } else { format!("{why}: {}", denied.reason) };
        match denied.attempt {
            Attempt::Path { .. } => Self::forbidden("", "", "", &why),
            Attempt::Resource { group, resource, name, .. } => Self::forbidden(group, resource, name, &why),
        }
    }

    /// 410: what was asked for is gone and will not come back.
    #[must_use]
    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, Reason::Gone, message)
    }

    /// 410: the revision asked for has been compacted.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, Reason::Expired, message)
    }

    /// 405: `verb` is not offered by this resource.
    #[must_use]
    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind {}", go_quote(&qualified(group, resource)));
        Self::failure(405, Reason::MethodNotAllowed, message).about(group, resource, "")
    }

    /// 406: none of the media types that the client accepts is offered.
    #[must_use]
    pub fn not_acceptable(offered: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", offered.join(", "));
        Self::failure(406, Reason::NotAcceptable, message)
    }

    /// 415: the body is in none of the formats that are understood.
    #[must_use]
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, Reason::UnsupportedMediaType, message)
    }

    /// 413.
    #[must_use]
    pub fn too_large(limit_bytes: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit_bytes}");
        Self::failure(413, Reason::RequestEntityTooLarge, message)
    }

    /// 429.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(429, Reason::TooManyRequests, message).retry_after(retry_after_seconds)
    }

    /// 504: the request did not finish in time.
    #[must_use]
    pub fn timeout(message: &str, retry_after_seconds: u32) -> Self {
        Self::failure(504, Reason::Timeout, format!("Timeout: {message}")).retry_after(retry_after_seconds)
    }

    /// 500: a component that the request needs did not answer in time.
    #[must_use]
    pub fn server_timeout(group: &str, resource: &str, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        Self::failure(500, Reason::ServerTimeout, message)
            .about(group, resource, operation)
            .retry_after(retry_after_seconds)
    }

    /// 503.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, Reason::ServiceUnavailable, message)
    }

    /// 500 without a reason: what upstream answers when its store says something that it has no word for.
    #[must_use]
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::failure(500, Reason::Unknown, message)
    }

    /// 500. `cause` is shown to the client: pass words, not an error with paths in it.
    #[must_use]
    pub fn internal(cause: &str) -> Self {
        let mut status =
            Self::failure(500, Reason::InternalError, format!("Internal error occurred: {cause}"));
        status.details = Some(Box::new(Details {
            causes: vec![Cause { reason: String::new(), message: cause.to_owned(), field: String::new() }],
            ..Details::default()
        }));
        status
    }

    /// The object as it is sent.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let failed = self.code >= 400;
        let mut metadata = Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".into(), token.as_str().into());
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": if failed { "Failure" } else { "Success" },
        });
        if !self.message.is_empty() {
            status["message"] = self.message.as_str().into();
        }
        if !self.reason.as_str().is_empty() {
            status["reason"] = self.reason.as_str().into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.to_json();
        }
        // Upstream writes no code into the Status of a success.
        if failed || self.code == 201 {
            status["code"] = self.code.into();
        }
        status
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (key, value) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !value.is_empty() {
                out.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|cause| {
                let mut out = Map::new();
                for (key, value) in
                    [("reason", &cause.reason), ("message", &cause.message), ("field", &cause.field)]
                {
                    if !value.is_empty() {
                        out.insert(key.into(), value.as_str().into());
                    }
                }
                Value::Object(out)
            });
            out.insert("causes".into(), causes.collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(out)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// A request that authorization refused.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    /// Who asked.
    pub user: &'a str,
    /// The request's verb, as `list`.
    pub verb: &'a str,
    /// For what.
    pub attempt: Attempt<'a>,
    /// Why not, if the authorizer said; may be empty.
    pub reason: &'a str,
}

/// What a refused request was for.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'a> {
    /// A resource of the API.
    Resource {
        /// API group; empty for the core group.
        group: &'a str,
        /// Plural name.
        resource: &'a str,
        /// May be empty.
        subresource: &'a str,
        /// Empty for cluster scope.
        namespace: &'a str,
        /// Empty for requests about a collection.
        name: &'a str,
    },
    /// Any other path.
    Path {
        /// As `/metrics`.
        path: &'a str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn messages_are_upstreams() {
        let denied = |namespace: &'static str, subresource: &'static str| {
            Status::not_authorized(&Denied {
                user: "u",
                verb: "list",
                attempt: Attempt::Resource { group: "", resource: "pods", subresource, namespace, name: "" },
                reason: "",
            })
        };
        let a = FieldError::required(&Path::new("a"), "");
        let b = FieldError::required(&Path::new("b"), "");
        let table = [
            (Status::not_found("", "pods", "x"), 404, "NotFound", r#"pods "x" not found"#),
            (
                Status::not_found("apps", "deployments", "x"),
                404,
                "NotFound",
                r#"deployments.apps "x" not found"#,
            ),
            (Status::already_exists("", "pods", "x"), 409, "AlreadyExists", r#"pods "x" already exists"#),
            (
                Status::modified("", "pods", "x"),
                409,
                "Conflict",
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply \
                 your changes to the latest version and try again",
            ),
            (
                Status::invalid("", "Pod", "x", std::slice::from_ref(&a)),
                422,
                "Invalid",
                r#"Pod "x" is invalid: a: Required value"#,
            ),
            (
                Status::invalid("", "Pod", "x", &[a.clone(), b, a]),
                422,
                "Invalid",
                r#"Pod "x" is invalid: [a: Required value, b: Required value]"#,
            ),
            (
                denied("default", ""),
                403,
                "Forbidden",
                r#"pods is forbidden: User "u" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                denied("", "log"),
                403,
                "Forbidden",
                r#"pods is forbidden: User "u" cannot list resource "pods/log" in API group "" at the cluster scope"#,
            ),
            (
                Status::not_authorized(&Denied {
                    user: "u",
                    verb: "get",
                    attempt: Attempt::Path { path: "/metrics" },
                    reason: "",
                }),
                403,
                "Forbidden",
                r#"forbidden: User "u" cannot get path "/metrics""#,
            ),
            (Status::unknown_resource(), 404, "NotFound", "the server could not find the requested resource"),
            (Status::internal("x"), 500, "InternalError", "Internal error occurred: x"),
            (
                Status::too_large(3 * 1024 * 1024),
                413,
                "RequestEntityTooLarge",
                "Request entity too large: limit is 3145728",
            ),
        ];
        for (status, code, reason, message) in table {
            let json = status.to_json();
            assert_eq!(json["message"], message);
            assert_eq!(json["reason"], reason);
            assert_eq!(json["code"], code);
            assert_eq!(json["status"], "Failure");
        }
    }

    #[test]
    fn an_invalid_object_lists_each_cause() {
        let error = FieldError::not_supported(&Path::new("spec").child("restartPolicy"), "X", &["Always"]);
        let json = Status::invalid("", "Pod", "p", &[error]).to_json();
        assert_eq!(
            json["details"],
            serde_json::json!({
                "name": "p", "kind": "Pod", "causes": [{
                    "reason": "FieldValueNotSupported",
                    "message": "Unsupported value: \"X\": supported values: \"Always\"",
                    "field": "spec.restartPolicy"
                }]
            })
        );
    }
}
