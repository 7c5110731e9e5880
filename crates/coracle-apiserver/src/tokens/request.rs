//! `POST serviceaccounts/NAME/token`.

use coracle_api::catalogue;
use coracle_api::field::{FieldError, Path, go_quote};
use coracle_api::status::Status;
use coracle_api::{Value, metadata};
use http::{Response, StatusCode};
use jiff::SignedDuration;

use super::{Bound, ISSUER, Named, Wanted, claims};
use crate::body::{self, Body};
use crate::call::{Call, FieldValidation};
use crate::negotiate::content_type;
use crate::prepare;
use crate::server::{Core, add_warnings};

impl Core {
    pub(crate) async fn create_token(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let row = call.subresource.and_then(catalogue::carried_by).ok_or_else(Status::unknown_resource)?;
        let format = call.format()?;
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        call.dry_run()?;
        let bytes = body::read(body, &self.clock).await?;
        let (mut request, warnings) =
            prepare::decode_body(row, &content_type(&call.headers), &bytes, validation)?;
        let namespace = call.namespace.clone().unwrap_or_default();
        for (field, is, said) in [
            ("name", &call.name, metadata::name(&request)),
            ("namespace", &namespace, metadata::namespace(&request)),
        ] {
            if !said.is_empty() && said != is {
                let path = Path::new("metadata").child(field);
                let why = format!("must match the service account {field} if specified");
                let error = FieldError::invalid(&path, said, why);
                return Err(Status::invalid(row.group, row.kind, &call.name, &[error]));
            }
        }
        let account = self.object("serviceaccounts", &namespace, &call.name).await?;
        let account = account.ok_or_else(|| call.not_found())?;
        let now = self.clock.now();
        row.default(&mut request);
        let asked_for = audiences(&request);
        if asked_for.is_empty() {
            request["spec"]["audiences"] = [ISSUER].as_slice().into();
        }
        prepare::set(&mut request, "name", call.name.as_str().into());
        prepare::set(&mut request, "namespace", namespace.as_str().into());
        prepare::set(&mut request, "creationTimestamp", metadata::rfc3339(now).into());
        let errors = row.strategy.validate_create(&request);
        if !errors.is_empty() {
            return Err(Status::invalid(row.group, row.kind, "", &errors));
        }
        if let Some(node) = call.user.node_name() {
            self.admit_token_of_node(call, node, &request, &asked_for).await?;
        }
        let bound = self.bound_to(call, &namespace, &request).await?;
        let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or_default();
        let wanted = Wanted {
            namespace,
            account: Named::of(&account),
            bound,
            audiences: audiences(&request),
            seconds,
            id: self.ids.uid(),
        };
        let token = self.config.account_key.sign(&claims(&wanted, now));
        let token = token.ok_or_else(|| Status::internal("failed to generate token"))?;
        let end = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
        request["status"] =
            serde_json::json!({ "token": token, "expirationTimestamp": metadata::rfc3339(end) });
        let answering = Call { row, subresource: None, ..call.clone() };
        let mut response = self.answer(&answering, format, StatusCode::CREATED, &request)?;
        add_warnings(response.headers_mut(), &warnings);
        Ok(response)
    }

    /// Finds the object that a token is to end with.
    async fn bound_to(&self, call: &Call, namespace: &str, request: &Value) -> Result<Bound, Status> {
        let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|value| value.is_object())
        else {
            return Ok(Bound::Account);
        };
        let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
        let (version, kind, name, uid) = (text("apiVersion"), text("kind"), text("name"), text("uid"));
        let core = matches!(version, "" | "v1");
        let plural = match kind {
            "Pod" if core => "pods",
            "Secret" if core => "secrets",
            "Node" if core => "nodes",
            _ => {
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {} to object of type {group}/{version}, Kind={kind}",
                    go_quote(&call.name)
                )));
            }
        };
        let place = if kind == "Node" { "" } else { namespace };
        let found = self.object(plural, place, name).await?;
        let object = found.ok_or_else(|| Status::not_found("", plural, name))?;
        if kind == "Pod" && account_of(&object) != call.name {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                go_quote(&call.name)
            )));
        }
        let named = Named::of(&object);
        if !uid.is_empty() && uid != named.uid {
            return Err(Status::conflict("", kind, name, &other_uid(uid)));
        }
        Ok(match kind {
            "Secret" => Bound::Secret(named),
            "Node" => Bound::Node(named),
            _ => {
                let node = match object.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default()
                {
                    "" => None,
                    // A node that is not there any more is told by name.
                    node => Some(match self.object("nodes", "", node).await? {
                        Some(node) => Named::of(&node),
                        None => Named { name: node.to_owned(), uid: String::new() },
                    }),
                };
                Bound::Pod(named, node)
            }
        })
    }

    /// A node agent gets tokens only for Pods that run on it, and only for those whom its Pod wants to talk to.
    async fn admit_token_of_node(
        &self,
        call: &Call,
        node: &str,
        request: &Value,
        audiences: &[String],
    ) -> Result<(), Status> {
        let refuse = |why: &str| Err(Status::forbidden("", "serviceaccounts", &call.name, why));
        let text = |field: &str| {
            let at = format!("/spec/boundObjectRef/{field}");
            request.pointer(&at).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let (name, uid) = (text("name"), text("uid"));
        if text("apiVersion") != "v1" || text("kind") != "Pod" || name.is_empty() {
            return refuse("node requested token not bound to a pod");
        }
        if uid.is_empty() {
            return refuse("node requested token with a pod binding without a uid");
        }
        let namespace = call.namespace.as_deref().unwrap_or_default();
        let found = self.object("pods", namespace, &name).await?;
        let pod = found.ok_or_else(|| Status::not_found("", "pods", &name))?;
        if prepare::text(&pod, "uid") != uid {
            return refuse(&other_uid(&uid));
        }
        if pod.pointer("/spec/nodeName").and_then(Value::as_str) != Some(node) {
            return refuse("node requested token bound to a pod scheduled on a different node");
        }
        let audience = match audiences {
            [] => "",
            [audience] => audience.as_str(),
            _ => return refuse("node may only request 0 or 1 audiences"),
        };
        if !wants_audience(&pod, audience) {
            return refuse(&format!("audience {} not found in pod spec volume", go_quote(audience)));
        }
        Ok(())
    }
}

fn other_uid(uid: &str) -> String {
    format!(
        "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
         deleted and then recreated"
    )
}

/// The account that a Pod runs as. Pods that are older than their cluster's service accounts name none.
pub(crate) fn account_of(pod: &Value) -> &str {
    let name = pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() { "default" } else { name }
}

/// Whether a volume of the Pod asks for a token for `audience`.
fn wants_audience(pod: &Value, audience: &str) -> bool {
    let list =
        |value: &Value, at: &str| value.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let volumes = list(pod, "/spec/volumes");
    let mut sources = volumes.iter().flat_map(|volume| list(volume, "/projected/sources"));
    sources.any(|source| {
        source.get("serviceAccountToken").is_some_and(|token| {
            token.get("audience").and_then(Value::as_str).unwrap_or_default() == audience
        })
    })
}

fn audiences(request: &Value) -> Vec<String> {
    let said = request.pointer("/spec/audiences").and_then(Value::as_array).into_iter().flatten();
    said.filter_map(Value::as_str).map(str::to_owned).collect()
}
