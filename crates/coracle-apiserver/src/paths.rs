//! Paths that are no resources: health, version, metrics, discovery, schemas, and how tokens are verified.

use coracle_api::status::Status;
use http::{Response, StatusCode};

use crate::auth::UserInfo;
use crate::body::Body;
use crate::negotiate::{Format, Transforms};
use crate::request::Query;
use crate::server::{Core, store_failed};
use crate::{policy, tokens};

impl Core {
    pub(crate) async fn path(
        &self,
        request: &http::request::Parts,
        segments: &[String],
        query: &Query,
        user: Option<UserInfo>,
    ) -> Result<Response<Body>, Status> {
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let open = matches!(parts.as_slice(), ["healthz" | "livez" | "readyz", ..] | ["version"]);
        let verb = match request.method.as_str() {
            "GET" | "HEAD" => "get".to_owned(),
            other => other.to_ascii_lowercase(),
        };
        if !open || verb != "get" {
            let user = user.ok_or_else(Status::unauthorized)?;
            policy::authorize_path(&user, &verb, segments)?;
        }
        if verb != "get" {
            return Err(Status::method_not_allowed("", "", &verb));
        }
        let headers = &request.headers;
        match parts.as_slice() {
            [kind @ ("healthz" | "livez" | "readyz"), check @ ..] => {
                Ok(self.health(kind, check, query).await)
            }
            ["version"] => Ok(Format::negotiate(headers, query, Transforms::None)?
                .value(StatusCode::OK, &crate::discovery::version())),
            ["metrics"] => {
                let revision = self.store.revision().await.map_err(|error| store_failed(&error))?;
                let text = self.metrics.render(revision.0, &self.hub, &self.guests);
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                Ok(Format::json().finish(StatusCode::OK, kind, text.into_bytes()))
            }
            [".well-known", "openid-configuration"] => {
                Ok(tokens::document("application/json", &tokens::discovery(self.config.advertise)))
            }
            ["openid", "v1", "jwks"] => {
                Ok(tokens::document("application/jwk-set+json", &self.config.account_key.public_set()))
            }
            ["openapi", rest @ ..] => crate::openapi::answer(rest, headers, query),
            ["api" | "apis", ..] => self.discovery.answer(&parts, headers, query, &self.config),
            [] => {
                let paths = crate::discovery::root_paths();
                Ok(Format::negotiate(headers, query, Transforms::None)?.value(StatusCode::OK, &paths))
            }
            _ => Err(Status::unknown_resource()),
        }
    }
}
