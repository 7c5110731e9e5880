//! /livez, /readyz and /healthz, with a path per check.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Response, StatusCode};

use crate::body::Body;
use crate::request::Query;
use crate::server::{Core, plain};

/// How long the store may take to answer: upstream's limit.
const STORE_LIMIT: Duration = Duration::from_secs(2);

/// The checks behind an endpoint, in the order in which they are shown. The store's has upstream's
/// name, whichever engine it is.
fn checks(endpoint: &str) -> &'static [&'static str] {
    match endpoint {
        "livez" => &["ping"],
        "readyz" => &["ping", "etcd", "poststarthook/bootstrap", "shutdown"],
        _ => &["ping", "etcd", "poststarthook/bootstrap"],
    }
}

impl Core {
    pub(crate) async fn health(&self, endpoint: &str, check: &[&str], query: &Query) -> Response<Body> {
        let wanted = check.join("/");
        if !wanted.is_empty() {
            return match checks(endpoint).iter().find(|name| **name == wanted) {
                None => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
                Some(name) => match self.check(name).await {
                    Ok(()) => plain(StatusCode::OK, "ok"),
                    Err(why) => {
                        plain(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
                    }
                },
            };
        }
        let mut report = String::new();
        let mut failed = false;
        for name in checks(endpoint) {
            if query.all("exclude").iter().any(|excluded| excluded == name) {
                report.push_str(&format!("[+]{name} excluded: ok\n"));
                continue;
            }
            match self.check(name).await {
                Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
                Err(why) => {
                    failed = true;
                    tracing::warn!(endpoint, check = name, why, "health check failed");
                    report.push_str(&format!("[-]{name} failed: reason withheld\n"));
                }
            }
        }
        if failed {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{endpoint} check failed\n"));
        }
        if query.has("verbose") {
            return plain(StatusCode::OK, format!("{report}{endpoint} check passed\n"));
        }
        plain(StatusCode::OK, "ok")
    }

    async fn check(&self, name: &str) -> Result<(), &'static str> {
        match name {
            "etcd" => match self.clock.timeout(STORE_LIMIT, self.store.revision()).await {
                Some(Ok(_)) => Ok(()),
                Some(Err(_)) | None => Err("the store does not answer"),
            },
            "poststarthook/bootstrap"
                if !self.ready.load(Ordering::Acquire) && !self.draining.is_cancelled() =>
            {
                Err("not finished")
            }
            "shutdown" if self.draining.is_cancelled() => Err("process is shutting down"),
            _ => Ok(()),
        }
    }
}
