//! Questions about identities and rights, which are answered and not kept: TokenReview, SelfSubjectReview, and the
//! kinds of `authorization.k8s.io`.
//!
//! What is asked about rights is decided by the same functions as requests are.

use std::collections::BTreeMap;

use coracle_api::Value;
use coracle_api::catalogue::Resource;
use coracle_api::status::Status;
use http::{Response, StatusCode};
use serde_json::{Map, json};

use crate::auth::UserInfo;
use crate::body::{self, Body};
use crate::call::{Call, FieldValidation};
use crate::negotiate::content_type;
use crate::policy::{self, Attributes};
use crate::prepare;
use crate::request::{ResourcePath, Verb};
use crate::server::{Core, add_warnings};
use crate::tokens::{ISSUER, Refusal};

/// Whether objects of this kind are questions.
pub(crate) fn is_question(row: &Resource) -> bool {
    matches!(row.group, "authentication.k8s.io" | "authorization.k8s.io")
}

impl Core {
    pub(crate) async fn review(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let row = call.row;
        let format = call.format()?;
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        call.dry_run()?;
        let bytes = body::read(body, &self.clock).await?;
        let (mut object, warnings) =
            prepare::decode_body(row, &content_type(&call.headers), &bytes, validation)?;
        prepare::place(row, &mut object, call.namespace.as_deref(), "")?;
        let errors = row.strategy.validate_create(&object);
        if !errors.is_empty() {
            return Err(Status::invalid(row.group, row.kind, "", &errors));
        }
        let spec = object.get("spec").cloned().unwrap_or_default();
        let status = match row.kind {
            "TokenReview" => self.review_token(&spec).await?,
            "SelfSubjectReview" => json!({ "userInfo": told(&call.user) }),
            "SelfSubjectRulesReview" => rules(&spec, &call.user)?,
            "SelfSubjectAccessReview" => self.review_access(&spec, &call.user).await?,
            _ => self.review_access(&spec, &named(&spec)).await?,
        };
        if let Some(object) = object.as_object_mut() {
            object.entry("metadata").or_insert_with(|| json!({}));
            object.insert("status".to_owned(), status);
        }
        if row.kind == "SelfSubjectReview" {
            let now = coracle_api::metadata::rfc3339(self.clock.now());
            prepare::set(&mut object, "creationTimestamp", now.into());
        }
        let mut response = self.answer(call, format, StatusCode::CREATED, &object)?;
        add_warnings(response.headers_mut(), &warnings);
        Ok(response)
    }

    async fn review_token(&self, spec: &Value) -> Result<Value, Status> {
        let token = text(spec, "token");
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let mut audiences = texts(spec, "audiences");
        if audiences.is_empty() {
            audiences.push(ISSUER.to_owned());
        }
        match self.authenticate_token(token, &audiences).await {
            Ok(shown) => {
                Ok(json!({ "authenticated": true, "user": told(&shown.user), "audiences": shown.audiences }))
            }
            Err(Refusal::Token(why)) => Ok(json!({ "user": {}, "error": why })),
            Err(Refusal::Unknown(status)) => Err(status),
        }
    }

    /// Answers whether `user` may do something.
    async fn review_access(&self, spec: &Value, user: &UserInfo) -> Result<Value, Status> {
        let outcome = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
            (Some(resource), _) if resource.is_object() => self.may_reach(resource, user).await,
            (_, Some(other)) => {
                let segments: Vec<String> = text(other, "path")
                    .split('/')
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned)
                    .collect();
                policy::authorize_path(user, text(other, "verb"), &segments).map_err(|_| String::new())
            }
            _ => Err(String::new()),
        };
        Ok(match outcome {
            Ok(()) => json!({ "allowed": true }),
            Err(reason) if reason.is_empty() => json!({ "allowed": false }),
            Err(reason) => json!({ "allowed": false, "reason": reason }),
        })
    }

    async fn may_reach(&self, asked: &Value, user: &UserInfo) -> Result<(), String> {
        let some = |name: &str| Some(text(asked, name)).filter(|text| !text.is_empty()).map(str::to_owned);
        let Some(verb) = Verb::named(text(asked, "verb")) else {
            return if policy::may_do_anything(user) { Ok(()) } else { Err(String::new()) };
        };
        let version = some("version").filter(|version| version != "*").unwrap_or_else(|| "v1".to_owned());
        let path = ResourcePath {
            group: text(asked, "group").to_owned(),
            version,
            namespace: some("namespace"),
            resource: text(asked, "resource").to_owned(),
            name: some("name"),
            subresource: some("subresource"),
        };
        let field_selector = field_selector(asked);
        let attributes = Attributes { user, verb, path: &path, field_selector: &field_selector };
        policy::authorize(&attributes).map_err(|refused| reason(&refused))?;
        match user.node_name() {
            Some(node) => self.authorize_node(node, &attributes).await.map_err(|refused| reason(&refused)),
            None => Ok(()),
        }
    }
}

/// Why, beyond that it is so: what stands behind the scope in a refusal.
fn reason(refused: &Status) -> String {
    let tail =
        refused.message.rsplit_once("in the namespace ").or(refused.message.rsplit_once("at the cluster "));
    tail.and_then(|(_, tail)| tail.split_once(": ")).map(|(_, why)| why.to_owned()).unwrap_or_default()
}

/// A field selector in the form of a query, whichever way it is asked.
fn field_selector(asked: &Value) -> String {
    let Some(selector) = asked.get("fieldSelector") else { return String::new() };
    let raw = text(selector, "rawSelector");
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let requirements = selector.get("requirements").and_then(Value::as_array).into_iter().flatten();
    let parts: Vec<String> = requirements
        .filter_map(|requirement| {
            match (text(requirement, "operator"), texts(requirement, "values").as_slice()) {
                ("In", [value]) => Some(format!("{}={value}", text(requirement, "key"))),
                ("NotIn", [value]) => Some(format!("{}!={value}", text(requirement, "key"))),
                // Wider than what was asked: a right to the narrower is not concluded from it.
                _ => None,
            }
        })
        .collect();
    parts.join(",")
}

fn rules(spec: &Value, user: &UserInfo) -> Result<Value, Status> {
    if text(spec, "namespace").is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    Ok(policy::told(user))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    let list = value.get(field).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A user as the API shows it.
fn told(user: &UserInfo) -> Value {
    let mut told = Map::new();
    told.insert("username".to_owned(), user.name.as_str().into());
    if !user.uid.is_empty() {
        told.insert("uid".to_owned(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        told.insert("groups".to_owned(), user.groups.as_slice().into());
    }
    if !user.extra.is_empty() {
        told.insert("extra".to_owned(), json!(user.extra));
    }
    told.into()
}

/// The user whom a question about somebody else names: nothing is added to what it says.
fn named(spec: &Value) -> UserInfo {
    let extra: BTreeMap<String, Vec<String>> =
        spec.get("extra").and_then(|extra| serde_json::from_value(extra.clone()).ok()).unwrap_or_default();
    UserInfo {
        name: text(spec, "user").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: texts(spec, "groups"),
        extra,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_that_is_asked_in_parts_reads_as_in_a_request() {
        let selector = |value: Value| field_selector(&json!({ "fieldSelector": value }));
        assert_eq!(selector(json!({ "rawSelector": "a=b" })), "a=b");
        let parts = json!({ "requirements": [
            { "key": "spec.nodeName", "operator": "In", "values": ["n"] },
            { "key": "metadata.name", "operator": "NotIn", "values": ["x"] },
            { "key": "metadata.name", "operator": "In", "values": ["x", "y"] },
        ] });
        assert_eq!(selector(parts), "spec.nodeName=n,metadata.name!=x");
        assert_eq!(field_selector(&json!({})), "");
    }
}
