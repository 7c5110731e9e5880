//! The store at one revision: `GET /coracle/v1/backup`, for administrators, whatever the engine is.
//!
//! A stream of the form that [`coracle_store::backup`] describes; one that breaks off has no end record.

use std::sync::Arc;

use coracle_api::status::Status;
use coracle_store::backup::{Encoder, export};
use futures::{StreamExt, stream};
use http::{HeaderValue, Method, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::auth::UserInfo;
use crate::body::{Body, BoxError};
use crate::policy;
use crate::server::{Core, store_failed};

impl Core {
    pub(crate) async fn backup(
        &self,
        method: &Method,
        user: Option<UserInfo>,
    ) -> Result<Response<Body>, Status> {
        let user = user.ok_or_else(Status::unauthorized)?;
        let verb = method.as_str().to_ascii_lowercase();
        policy::authorize_path(&user, &verb, &["coracle", "v1", "backup"].map(str::to_owned))?;
        if method != Method::GET {
            return Err(Status::method_not_allowed("", "", &verb));
        }
        let mut records = export(Arc::clone(&self.store));
        // A store that does not answer is told by a status; later on, by the missing end.
        let first = records.next().await.transpose().map_err(|error| store_failed(&error))?;
        tracing::info!(user = user.name, "backing up");
        let mut encoder = Encoder::default();
        let pieces = stream::iter(first.map(Ok))
            .chain(records)
            .map(move |record| match record {
                Ok(record) => Ok(Frame::data(encoder.encode(&record))),
                Err(error) => {
                    tracing::warn!(%error, "a backup breaks off");
                    Err(BoxError::from(error))
                }
            })
            .take_until(self.draining.clone().cancelled_owned());
        let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }
}
