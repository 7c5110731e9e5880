//! /openapi/v2 and /openapi/v3: documents of the object model, with tags, so that clients keep what they have.

use coracle_api::openapi::{self, Document};
use coracle_api::status::Status;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, Response};

use crate::body::Body;
use crate::discovery::with_etag;
use crate::request::Query;

/// Answers a path below `/openapi`.
pub(crate) fn answer(parts: &[&str], headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Status> {
    if !accepts_json(headers) {
        return Err(Status::not_acceptable(&["application/json"]));
    }
    let document = match *parts {
        ["v2"] => Some(openapi::v2()),
        ["v3"] => Some(openapi::v3_index()),
        ["v3", ref rest @ ..] => openapi::v3(&rest.join("/")),
        _ => None,
    };
    let Document { json, hash } = document.ok_or_else(Status::unknown_resource)?;
    let mut response = with_etag(headers, &format!("\"{hash}\""), "application/json", json);
    // Under its own hash a document never changes.
    if query.get("hash") == hash {
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(response)
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let mut offers = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    offers.peek().is_none()
        || offers.flat_map(|value| value.split(',')).any(|offer| {
            matches!(
                offer.split(';').next().map(str::trim),
                Some("application/json" | "application/*" | "*/*")
            )
        })
}
