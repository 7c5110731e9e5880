//! The events of a watch: one a line of the answer's body, decoded where they arrive.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, HeaderValue};
use http_body_util::BodyExt as _;
use kube::api::WatchEvent;
use kube::client::Body;
use kube::core::watch::{Bookmark, BookmarkMeta};
use kube::core::{Status, TypeMeta};
use kube::{Client, Error};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The body of a watch's answer.
pub(super) struct Lines {
    body: Body,
    /// The end of the last piece, whose line is not complete yet.
    begun: BytesMut,
    piece: Bytes,
}

impl Lines {
    /// Asks for a watch.
    pub(super) async fn of(client: &Client, mut request: http::Request<Vec<u8>>) -> Result<Self, Error> {
        // Compressed, events would wait for each other.
        request.headers_mut().entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
        let answer = client.send(request.map(Body::from)).await?;
        let code = answer.status();
        let body = answer.into_body();
        if code.is_success() {
            return Ok(Lines { body, begun: BytesMut::new(), piece: Bytes::new() });
        }
        let said = body.collect().await?.to_bytes();
        let status = serde_json::from_slice(&said).unwrap_or_else(|_| {
            Status::failure(String::from_utf8_lossy(&said).trim(), "").with_code(code.as_u16())
        });
        Err(Error::Api(status.boxed()))
    }

    /// The next event; `None` when the watch has ended.
    pub(super) async fn next<K: DeserializeOwned>(&mut self) -> Result<Option<WatchEvent<K>>, Error> {
        loop {
            while let Some(end) = self.piece.iter().position(|byte| *byte == b'\n') {
                let line = self.piece.split_to(end);
                self.piece.advance(1);
                if !self.begun.is_empty() {
                    self.begun.extend_from_slice(&line);
                    let whole = self.begun.split();
                    return event(&whole);
                }
                if !line.is_empty() {
                    return event(&line);
                }
            }
            self.begun.extend_from_slice(&self.piece);
            self.piece.clear();
            // What is left without its end was cut off with the watch, and comes again with the next one.
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame?.into_data() {
                self.piece = data;
            }
        }
    }
}

/// A bookmark, but for what says of which kind it is.
#[derive(Deserialize)]
struct Mark {
    object: Marked,
}

#[derive(Deserialize)]
struct Marked {
    metadata: BookmarkMeta,
}

/// Most lines of most quiet watches are bookmarks, and all that is asked of them is where they are: the type that knows
/// more of them keeps a copy of every field before it decodes one.
fn bookmark(line: &[u8]) -> Option<Bookmark> {
    if !line.starts_with(br#"{"type":"BOOKMARK","#) {
        return None;
    }
    let Mark { object } = serde_json::from_slice(line).ok()?;
    let types = TypeMeta { api_version: String::new(), kind: String::new() };
    Some(Bookmark { types, metadata: object.metadata })
}

fn event<K: DeserializeOwned>(line: &[u8]) -> Result<Option<WatchEvent<K>>, Error> {
    if let Some(bookmark) = bookmark(line) {
        return Ok(Some(WatchEvent::Bookmark(bookmark)));
    }
    serde_json::from_slice(line).map(Some).map_err(|error| match serde_json::from_slice::<Status>(line) {
        Ok(status) if status.is_failure() => Error::Api(status.boxed()),
        _ => Error::SerdeError(error),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn revision(line: &str) -> String {
        match event::<Pod>(line.as_bytes()).unwrap() {
            Some(WatchEvent::Bookmark(bookmark)) => bookmark.metadata.resource_version,
            other => panic!("{other:?} of {line}"),
        }
    }

    #[test]
    fn bookmarks_are_read_in_every_form() {
        let short = r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7"}}}"#;
        let end = r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"8","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"spec":{"containers":null},"status":{}}}"#;
        let spaced = r#"{"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}}"#;
        assert_eq!([short, end, spaced].map(revision), ["7", "8", "9"]);
        assert!(
            event::<Pod>(br#"{"type":"BOOKMARK","object":{"metadata":{}}}"#).is_err(),
            "it says where it is"
        );
    }
}
