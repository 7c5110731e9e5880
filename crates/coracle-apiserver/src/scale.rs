//! The subresource `scale`: read as a Scale, written as an update of the object's replicas.

use coracle_api::scale;
use coracle_api::status::Status;
use coracle_api::{Value, decode, metadata};
use http::{Response, StatusCode};

use crate::body::{self, Body};
use crate::call::{Call, FieldValidation};
use crate::negotiate::content_type;
use crate::prepare::{self, Part};
use crate::request::Verb;
use crate::server::{Core, add_warnings};
use crate::write::{CONFLICT_TRIES, PATCH_TRIES, PATCH_TYPES, patched};

impl Core {
    /// `GET`, `PUT` and `PATCH` of `scale`.
    pub(crate) async fn scale(&self, call: &Call, body: Body) -> Result<Response<Body>, Status> {
        let format = call.format()?;
        // Answers are Scales, in whatever shape the client asks for.
        let answering = Call { row: scale::row(), subresource: None, ..call.clone() };
        if call.verb == Verb::Get {
            let (current, _) = self.current(call).await?.ok_or_else(|| call.not_found())?;
            return self.answer(&answering, format, StatusCode::OK, &scale::of(&current));
        }
        let validation: FieldValidation = call.query.get("fieldValidation").parse()?;
        let dry_run = call.dry_run()?;
        let media_type = content_type(&call.headers);
        let bytes = body::read(body, &self.clock).await?;
        let wanted = if call.verb == Verb::Patch {
            if !PATCH_TYPES.contains(&media_type.as_str()) {
                return Err(Status::unsupported_media_type(&PATCH_TYPES));
            }
            let patch = decode::json(&bytes)
                .map_err(|complaint| Status::bad_request(format!("error decoding patch: {complaint}")))?;
            Wanted::Patch(media_type, patch)
        } else {
            let (mut scale, warnings) = prepare::decode_body(scale::row(), &media_type, &bytes, validation)?;
            prepare::place(scale::row(), &mut scale, call.namespace.as_deref(), &call.name)?;
            Wanted::Scale(scale, warnings)
        };
        let tries = if call.verb == Verb::Patch { PATCH_TRIES } else { CONFLICT_TRIES };
        for _ in 0..tries {
            let Some((current, kv)) = self.current(call).await? else { return Err(call.not_found()) };
            let (scale, warnings) = match &wanted {
                Wanted::Scale(scale, warnings) => (scale.clone(), warnings.clone()),
                Wanted::Patch(media_type, patch) => {
                    let mut new = patched(scale::row(), media_type, &scale::of(&current), &patch.value)?;
                    decode::check_type(scale::row(), &mut new)?;
                    let duplicates = patch.duplicates.clone();
                    let warnings = prepare::check_fields(scale::row(), &mut new, duplicates, validation)?;
                    prepare::place(scale::row(), &mut new, call.namespace.as_deref(), &call.name)?;
                    (new, warnings)
                }
            };
            let scaled = scale::apply(&current, &scale).map_err(|errors| {
                Status::invalid("autoscaling", "Scale", metadata::name(&current), &errors)
            })?;
            if let Some(written) = self.replace(call, Part::Main, scaled, &current, &kv, dry_run).await? {
                let scale = scale::of(&written.object);
                let mut response = self.answer(&answering, format, StatusCode::OK, &scale)?;
                add_warnings(response.headers_mut(), &warnings);
                return Ok(response);
            }
        }
        Err(Status::modified(call.row.group, call.row.plural, &call.name))
    }
}

/// What a request makes of a Scale.
enum Wanted {
    /// This one, with what is to be said about it.
    Scale(Value, Vec<String>),
    /// What a patch of this media type makes of the current one.
    Patch(String, decode::Decoded),
}
