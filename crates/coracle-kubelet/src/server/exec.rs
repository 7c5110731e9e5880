//! Running a command in a container, and attaching to one: what is asked for, up to the upgrade to a WebSocket.

use std::sync::Arc;

use coracle_api::field::go_quote;
use coracle_cri::{AttachRequest, ContainerId, ContainerState, CriError, ExecRequest};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use url::form_urlencoded;

use super::lookup;
use super::routes::{Body, Shared, text};
use super::session::{self, Streams, Work};
use super::upgrade::{self, Refusal};

/// Five channels that the client can close.
pub(super) const V5: &str = "v5.channel.k8s.io";
/// Five channels.
const V4: &str = "v4.channel.k8s.io";

/// The container that a request names.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: Option<String>,
    pub(super) container: String,
}

impl Target {
    /// The Pod that is meant; the inner `None` if it is another of the same name by now.
    fn pod(&self, shared: &Shared) -> Result<Option<Arc<Pod>>, Refusal> {
        let Some(pod) = shared.pods.pod(&self.namespace, &self.pod) else {
            return Err(Box::new(text(StatusCode::NOT_FOUND, "pod does not exist")));
        };
        let is_meant = self.uid.as_ref().is_none_or(|uid| pod.metadata.uid.as_ref() == Some(uid));
        Ok(is_meant.then_some(pod))
    }
}

/// The kubelet's own names of parameters, and those of the API.
fn flag(pairs: &[(String, String)], names: [&str; 2]) -> bool {
    pairs.iter().any(|(key, value)| names.contains(&key.as_str()) && (value == "1" || value == "true"))
}

/// Reads which streams are wanted from a query.
fn streams(pairs: &[(String, String)]) -> Result<Streams, &'static str> {
    let tty = flag(pairs, ["tty", "tty"]);
    let streams = Streams {
        stdin: flag(pairs, ["input", "stdin"]),
        stdout: flag(pairs, ["output", "stdout"]),
        // A terminal has one output.
        stderr: flag(pairs, ["error", "stderr"]) && !tty,
        tty,
    };
    if !streams.stdin && !streams.stdout && !streams.stderr {
        return Err("you must specify at least 1 of stdin, stdout, stderr");
    }
    Ok(streams)
}

fn pairs(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// Reads the command and its streams from a query.
fn parse(query: &str) -> Result<(Vec<String>, Streams), &'static str> {
    let pairs = pairs(query);
    let streams = streams(&pairs)?;
    let command: Vec<String> =
        pairs.into_iter().filter(|(key, _)| key == "command").map(|(_, value)| value).collect();
    if command.is_empty() {
        return Err("you must specify at least one command for the container");
    }
    Ok((command, streams))
}

/// Answers a request to run a command; the command itself runs after the upgrade, in a task of its own.
pub(super) fn exec(shared: &Arc<Shared>, target: &Target, request: Request<Incoming>) -> Response<Body> {
    let begin = || {
        upgrade::check_method(request.method())?;
        let (command, streams) = parse(request.uri().query().unwrap_or_default())
            .map_err(|message| Box::new(text(StatusCode::BAD_REQUEST, message)))?;
        let pod = target.pod(shared)?;
        let Some(container) = pod.and_then(|pod| lookup::running_container(&pod, &target.container)) else {
            // A 500 upstream as well: the runtime's list does not have it.
            let message = format!("container not found ({})", go_quote(&target.container));
            return Err(Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, message)));
        };
        Ok((Work::Exec(ExecRequest { container, command, tty: streams.tty, stdin: streams.stdin }), streams))
    };
    let begun = begin();
    serve(shared, begun, request)
}

/// Answers a request to attach to a container.
pub(super) async fn attach(
    shared: &Arc<Shared>,
    target: &Target,
    request: Request<Incoming>,
) -> Response<Body> {
    let begin = || {
        upgrade::check_method(request.method())?;
        let streams = streams(&pairs(request.uri().query().unwrap_or_default()))
            .map_err(|message| Box::new(text(StatusCode::BAD_REQUEST, message)))?;
        let pod = target.pod(shared)?;
        let Some(container) = pod.and_then(|pod| lookup::container(&pod, &target.container)) else {
            let message = format!(
                "container {} not found in pod {}_{}",
                target.container, target.pod, target.namespace
            );
            return Err(Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, message)));
        };
        Ok((container, streams))
    };
    let begun = match begin() {
        Ok((container, streams)) => match check_running(shared, &container).await {
            Ok(()) => {
                let Streams { stdin, stdout, stderr, .. } = streams;
                Ok((Work::Attach(AttachRequest { container, stdin, stdout, stderr }), streams))
            }
            Err(why) => Err(Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, why.to_string()))),
        },
        Err(refusal) => Err(refusal),
    };
    serve(shared, begun, request)
}

/// Attaching is refused before the upgrade, in containerd's words.
async fn check_running(shared: &Shared, id: &ContainerId) -> Result<(), CriError> {
    let state = match shared.runtime.container_status(id).await?.container.state {
        ContainerState::Running => return Ok(()),
        ContainerState::Created => "CREATED",
        ContainerState::Exited => "EXITED",
        ContainerState::Unknown => "UNKNOWN",
    };
    Err(CriError::FailedPrecondition(format!("container is in CONTAINER_{state} state")))
}

fn serve(
    shared: &Arc<Shared>,
    begun: Result<(Work, Streams), Refusal>,
    request: Request<Incoming>,
) -> Response<Body> {
    let agreed = begun.and_then(|(work, streams)| {
        let (subprotocol, response) = upgrade::websocket(request.headers(), &[V5, V4])?;
        Ok((work, streams, subprotocol, response))
    });
    match agreed {
        Err(refusal) => *refusal,
        Ok((work, streams, subprotocol, response)) => {
            upgrade::after(shared, request, move |shared, upgraded| async move {
                let socket = upgrade::socket(upgraded).await;
                session::run(&shared, socket, subprotocol == V5, streams, &work).await;
            });
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_the_kubelets_names_and_the_apis() {
        let table = [
            ("command=a&output=1", Ok((true, true, false, false))),
            ("command=a&input=1&output=1&error=1", Ok((false, true, true, true))),
            ("command=a&stdin=true&stdout=true&stderr=true", Ok((false, true, true, true))),
            ("command=a&input=1&output=1&error=1&tty=1", Ok((false, true, false, true))),
            ("command=a&stdin=false&stdout=0", Err("you must specify at least 1 of stdin, stdout, stderr")),
            ("command=a", Err("you must specify at least 1 of stdin, stdout, stderr")),
            ("output=1", Err("you must specify at least one command for the container")),
        ];
        for (query, expected) in table {
            let parsed = parse(query).map(|(_, s)| (!s.stdin, s.stdout, s.stderr, s.stdin));
            assert_eq!(parsed, expected, "{query}");
        }
        let (command, _) = parse("command=sh&command=-c&output=1&command=echo+%22a+b%22").unwrap();
        assert_eq!(command, ["sh", "-c", "echo \"a b\""]);
    }
}
