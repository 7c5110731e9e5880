//! /openapi/v2 and /openapi/v3: documents of the object model, with tags, so that clients keep what they have.

use coracle_api::openapi::{self, Document};
use coracle_api::status::Status;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, Response};

use crate::body::Body;
use crate::discovery::with_etag;
use crate::request::Query;

/// The protobuf form of the v2 document.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// Its older name, which kubectl asks for. It is no valid media type, so that nobody can read it in an answer.
const V2_PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Answers a path below `/openapi`.
pub(crate) fn answer(parts: &[&str], headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Status> {
    let Some(kind) = accepted(headers, parts == ["v2"]) else {
        return Err(Status::not_acceptable(&["application/json"]));
    };
    let document = match *parts {
        ["v2"] if kind != JSON => Some(openapi::v2_protobuf()),
        ["v2"] => Some(openapi::v2()),
        ["v3"] => Some(openapi::v3_index()),
        ["v3", ref rest @ ..] => openapi::v3(&rest.join("/")),
        _ => None,
    };
    let Document { bytes, hash } = document.ok_or_else(Status::unknown_resource)?;
    let mut response = with_etag(headers, &format!("\"{hash}\""), kind, bytes);
    // Under its own hash a document never changes.
    if query.get("hash") == hash {
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(response)
}

const JSON: &str = "application/json";

/// The first media type that the client accepts and that there is: JSON, and for some documents protobuf.
fn accepted(headers: &HeaderMap, has_protobuf: bool) -> Option<&'static str> {
    let mut offers = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if offers.peek().is_none() {
        return Some(JSON);
    }
    offers.flat_map(|value| value.split(',')).find_map(|offer| {
        match offer.split(';').next().unwrap_or_default().trim() {
            JSON | "application/*" | "*/*" => Some(JSON),
            V2_PROTOBUF | V2_PROTOBUF_OLD if has_protobuf => Some(V2_PROTOBUF),
            _ => None,
        }
    })
}
