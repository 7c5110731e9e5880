//! What the client wants the answer to look like.

use std::convert::Infallible;
use std::io::Write;

use bytes::Bytes;
use coracle_api::status::Status;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;

use crate::body::{Body, full};
use crate::request::Query;

/// Compressed bytes sent at a time.
const ZIPPED_PIECE_BYTES: usize = 16 * 1024;
/// Answers smaller than this are not worth compressing, as upstream has it.
const GZIP_THRESHOLD_BYTES: usize = 128 * 1024;

/// The serialization of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
}

/// The shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The object or list itself.
    Object,
    /// A `Table` of meta.k8s.io, of this version.
    Table(&'static str),
    /// Metadata alone, of this version of meta.k8s.io.
    PartialObject(&'static str),
}

/// How one answer is to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) shape: Shape,
    pub(crate) encoding: Encoding,
    pretty: bool,
    gzip: bool,
}

/// One entry of an Accept header.
struct Offer<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Offer<'_> {
    fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }
}

fn offers(headers: &HeaderMap) -> Vec<Offer<'_>> {
    let mut offers: Vec<Offer<'_>> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|entry| !entry.trim().is_empty())
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|parameter| parameter.split_once('=')).collect();
            let quality = parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok());
            Offer { media_type, parameters, quality: quality.unwrap_or(1.0) }
        })
        .collect();
    offers.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    offers
}

/// Which shapes an endpoint can answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transforms {
    /// Objects: tables and metadata as well.
    Object,
    /// Nothing but the thing itself.
    None,
}

impl Format {
    /// Plain JSON, for answers that are not negotiated.
    pub(crate) fn json() -> Self {
        Format { shape: Shape::Object, encoding: Encoding::Json, pretty: false, gzip: false }
    }

    /// Settles what to send; 406 if the client accepts nothing that is offered.
    pub(crate) fn negotiate(
        headers: &HeaderMap,
        query: &Query,
        transforms: Transforms,
    ) -> Result<Self, Status> {
        let mut format =
            Format { pretty: wants_pretty(headers, query), gzip: accepts_gzip(headers), ..Format::json() };
        let offers = offers(headers);
        if offers.is_empty() {
            return Ok(format);
        }
        for offer in &offers {
            format.encoding = match offer.media_type {
                "application/json" | "application/*" | "*/*" => Encoding::Json,
                "application/yaml" => Encoding::Yaml,
                _ => continue,
            };
            let version = match offer.parameter("v") {
                "v1" => "v1",
                "v1beta1" => "v1beta1",
                _ => "",
            };
            let meta = offer.parameter("g") == "meta.k8s.io" && !version.is_empty();
            format.shape = match offer.parameter("as") {
                "" => Shape::Object,
                "Table" if meta && transforms == Transforms::Object => Shape::Table(version),
                "PartialObjectMetadata" | "PartialObjectMetadataList"
                    if meta && transforms == Transforms::Object =>
                {
                    Shape::PartialObject(version)
                }
                _ => continue,
            };
            return Ok(format);
        }
        Err(Status::not_acceptable(&["application/json", "application/yaml"]))
    }

    /// Sends bytes of JSON.
    pub(crate) fn bytes(self, code: StatusCode, json: Vec<u8>) -> Response<Body> {
        if self.encoding == Encoding::Json && !self.pretty {
            return self.finish(code, "application/json", json);
        }
        match serde_json::from_slice::<Value>(&json) {
            Ok(value) => self.value(code, &value),
            // What is sent here was made here; if it does not parse, it goes out as it is.
            Err(_) => self.finish(code, "application/json", json),
        }
    }

    /// Sends a tree.
    pub(crate) fn value(self, code: StatusCode, value: &Value) -> Response<Body> {
        match self.encoding {
            Encoding::Yaml => {
                let text = serde_yaml_ng::to_string(value).unwrap_or_default();
                self.finish(code, "application/yaml", text.into_bytes())
            }
            Encoding::Json if self.pretty => {
                let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
                text.push(b'\n');
                self.finish(code, "application/json", text)
            }
            Encoding::Json => self.finish(code, "application/json", value.to_string().into_bytes()),
        }
    }

    /// Sends a `Status`.
    pub(crate) fn status(self, status: &Status) -> Response<Body> {
        let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = self.value(code, &status.to_json());
        let retry_after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        if retry_after > 0 {
            response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(retry_after));
        }
        response
    }

    /// Sends bytes of any type.
    pub(crate) fn finish(self, code: StatusCode, content_type: &str, bytes: Vec<u8>) -> Response<Body> {
        let large = bytes.len() > GZIP_THRESHOLD_BYTES;
        let (bytes, small) = match (self.gzip && large).then(|| gzip(&bytes)).flatten() {
            Some(zipped) => (zipped, true),
            None => (bytes, false),
        };
        let mut response = Response::new(full(bytes));
        *response.status_mut() = code;
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(content_type) {
            headers.insert(CONTENT_TYPE, value);
        }
        headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if small {
            zipped(headers);
        }
        response
    }

    /// Whether stored bytes can be sent piece by piece, if there are so many that it is worth it.
    pub(crate) fn in_pieces(self, size: usize) -> bool {
        size > GZIP_THRESHOLD_BYTES && self.encoding == Encoding::Json && !self.pretty
    }

    /// Sends a large JSON document whose pieces are made when the client has room for them: what it does not read
    /// is not held for it.
    pub(crate) fn pieces(self, pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Response<Body> {
        let frames: Box<dyn Iterator<Item = Vec<u8>> + Send> = if self.gzip {
            Box::new(Zipped { pieces, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) })
        } else {
            Box::new(pieces)
        };
        let frames = stream::iter(frames.map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(piece)))));
        let body = StreamBody::new(frames).map_err(|never| match never {}).boxed_unsync();
        let mut response = self.finish(StatusCode::OK, "application/json", Vec::new());
        *response.body_mut() = body;
        if self.gzip {
            zipped(response.headers_mut());
        }
        response
    }

    /// Whether a large answer may be compressed.
    pub(crate) fn with_gzip(mut self, headers: &HeaderMap) -> Self {
        self.gzip = accepts_gzip(headers);
        self
    }
}

fn zipped(headers: &mut HeaderMap) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// Pieces, compressed as they come.
struct Zipped<I> {
    pieces: I,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Vec<u8>>> Iterator for Zipped<I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let encoder = self.encoder.as_mut()?;
        for piece in self.pieces.by_ref() {
            // Writing to memory does not fail.
            encoder.write_all(&piece).ok()?;
            if encoder.get_ref().len() >= ZIPPED_PIECE_BYTES {
                return Some(std::mem::take(encoder.get_mut()));
            }
        }
        self.encoder.take()?.finish().ok()
    }
}

fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().split(';').next() == Some("gzip"))
}

fn wants_pretty(headers: &HeaderMap, query: &Query) -> bool {
    if query.has("pretty") {
        return query.flag("pretty");
    }
    // People look at what these fetch.
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))
}

/// The shape of discovery that the client wants: `Some(version)` for the aggregated form.
pub(crate) fn aggregated_discovery(headers: &HeaderMap) -> Option<&'static str> {
    for offer in offers(headers) {
        if !matches!(offer.media_type, "application/json" | "application/*" | "*/*") {
            continue;
        }
        match (offer.parameter("as"), offer.parameter("g"), offer.parameter("v")) {
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Some("v2"),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => return Some("v2beta1"),
            ("", _, _) => return None,
            _ => {}
        }
    }
    None
}

/// The media type of a request body, without parameters; JSON if none is given.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    if media_type.is_empty() { "application/json".to_owned() } else { media_type.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &str) -> Result<(Shape, Encoding), Status> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, value.parse().unwrap());
        Format::negotiate(&headers, &Query::default(), Transforms::Object).map(|f| (f.shape, f.encoding))
    }

    #[test]
    fn the_first_offer_that_can_be_met_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(kubectl).unwrap(), (Shape::Table("v1"), Encoding::Json));
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(protobuf).unwrap(), (Shape::Object, Encoding::Json));
        let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(accept(partial).unwrap(), (Shape::PartialObject("v1"), Encoding::Json));
        assert_eq!(accept("application/yaml").unwrap(), (Shape::Object, Encoding::Yaml));
        assert_eq!(accept("application/json;q=0.1, application/yaml").unwrap().1, Encoding::Yaml);
        assert_eq!(accept("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
        assert_eq!(accept("application/json;as=Nonsense").unwrap_err().code, 406);
    }

    #[test]
    fn large_answers_are_compressed_for_those_who_accept_it() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, "deflate, gzip;q=1.0".parse().unwrap());
        let format = Format::json().with_gzip(&headers);
        let large = format.finish(StatusCode::OK, "application/json", vec![b' '; 200_000]);
        assert_eq!(large.headers()[CONTENT_ENCODING], "gzip");
        assert!(http_body::Body::size_hint(large.body()).exact().unwrap() < 2000);
        let small = format.finish(StatusCode::OK, "application/json", vec![b' '; 100_000]);
        assert!(!small.headers().contains_key(CONTENT_ENCODING));
    }
}
