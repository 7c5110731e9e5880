//! The binding of a Pod to a node.

use coracle_api::catalogue;
use coracle_api::metadata;
use coracle_api::pod;
use coracle_api::status::Status;
use coracle_store::Op;
use http::{Response, StatusCode};

use crate::body::{self, Body};
use crate::call::{Call, FieldValidation};
use crate::negotiate::content_type;
use crate::prepare;
use crate::server::{Core, add_warnings};
use crate::write::{Along, Attempt};

/// How often a binding is tried again when somebody else changes the Pod at the same time.
const TRIES: usize = 64;

impl Core {
    /// `POST pods/NAME/binding` and `POST bindings`.
    pub(crate) async fn bind(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let (Some(row), Some(pods)) =
            (catalogue::by_kind("", "v1", "Binding"), catalogue::find("", "v1", "pods"))
        else {
            return Err(Status::unknown_resource());
        };
        let format = call.format()?;
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        let dry_run = call.dry_run()?;
        let bytes = body::read(body, &self.clock).await?;
        let (mut binding, warnings) =
            prepare::decode_body(row, &content_type(&call.headers), &bytes, validation)?;
        prepare::place(row, &mut binding, call.namespace.as_deref(), &call.name)?;
        let name = metadata::name(&binding).to_owned();
        let errors = row.strategy.validate_create(&binding);
        if !errors.is_empty() {
            return Err(Status::invalid("", "Binding", &name, &errors));
        }
        let pod_call = Call { row: pods, name: name.clone(), ..call.clone() };
        for _ in 0..TRIES {
            let Some((current, kv)) = self.current(&pod_call).await? else {
                return Err(Status::not_found("", "pods", &name));
            };
            let pod = pod::bind(&current, &binding, self.clock.now())?;
            let done = dry_run || {
                let op = Op::Put { key: kv.key.clone(), value: Self::encode(pods, &pod) };
                matches!(self.commit(&kv.key, kv.mod_revision, op, Along::default()).await?, Attempt::Done(_))
            };
            if done {
                let mut response = format.value(StatusCode::CREATED, &Status::success(201, None).to_json());
                add_warnings(response.headers_mut(), &warnings);
                return Ok(response);
            }
        }
        Err(Status::conflict(
            "",
            "pods/binding",
            &name,
            "the object has been modified; please apply your changes to the latest version and try again",
        ))
    }
}
