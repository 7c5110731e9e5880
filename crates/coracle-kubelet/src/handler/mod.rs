//! Handlers: what probes and hooks do. Commands in a container, requests over the network, waiting.

mod command;
mod grpc;
mod hooks;
mod http;
mod network;
mod request;
mod socket;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;
use coracle_cri::RuntimeService;
use coracle_cri::probe::{HttpAnswer, HttpError, ProbeNetwork};
use k8s_openapi::api::core::v1::Probe;

use command::CommandError;
pub(crate) use hooks::{post_start, pre_stop};
pub use network::HostNetwork;
use request::Purpose;
pub(crate) use request::Subject;

/// Tries within one round, as long as the asking itself goes wrong.
const TRIES: usize = 3;

/// By what handlers reach containers.
#[derive(Clone)]
pub(crate) struct Handlers {
    pub(crate) runtime: Arc<dyn RuntimeService>,
    pub(crate) network: Arc<dyn ProbeNetwork>,
    pub(crate) clock: Clock,
}

/// What a probe was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// All is well.
    Success,
    /// All is well, but for this.
    Warning(String),
    /// It is not, and this is what was said.
    Failure(String),
    /// Nothing can be said: the asking itself went wrong.
    Error {
        /// What upstream takes the container to be in: `unknown` or `failure`. It counts for nothing.
        state: &'static str,
        /// Why.
        text: String,
    },
}

impl Handlers {
    /// Without a way of its own, what goes over the network goes from the node.
    pub(crate) fn new(
        runtime: Arc<dyn RuntimeService>,
        network: Option<Arc<dyn ProbeNetwork>>,
        clock: Clock,
    ) -> Self {
        let network = network.unwrap_or_else(|| Arc::new(HostNetwork::new(clock.clone())));
        Handlers { runtime, network, clock }
    }

    /// Asks once more than upstream's two further times as long as the asking itself goes wrong.
    pub(crate) async fn probe(&self, probe: &Probe, subject: Subject<'_>) -> Answer {
        let mut answer = self.probe_once(probe, subject).await;
        for _ in 1..TRIES {
            if !matches!(answer, Answer::Error { .. }) {
                break;
            }
            answer = self.probe_once(probe, subject).await;
        }
        answer
    }

    async fn probe_once(&self, probe: &Probe, subject: Subject<'_>) -> Answer {
        let seconds = probe.timeout_seconds.unwrap_or(1).max(1);
        let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
        let unknown = |text: String| Answer::Error { state: "unknown", text };
        let done = if let Some(exec) = &probe.exec {
            let command = exec.command.as_deref().unwrap_or_default();
            let command = request::probe_command(command, subject.container);
            return match command::run(self, subject.id, &command, Some(timeout)).await {
                Ok(ran) if ran.exit_code == 0 => Answer::Success,
                Ok(ran) => Answer::Failure(ran.output),
                Err(CommandError::TimedOut(text)) => Answer::Failure(text),
                Err(CommandError::NotRun(text)) => unknown(text),
            };
        } else if let Some(http) = &probe.http_get {
            match request::http_get(http, subject, Purpose::Probe, Some(timeout)) {
                Ok(request) => return judge(self.network.http_get(&request).await),
                Err(text) => return unknown(text),
            }
        } else if let Some(tcp) = &probe.tcp_socket {
            match request::tcp_connect(tcp, subject, timeout) {
                Ok(request) => self.network.tcp_connect(&request).await,
                Err(text) => return unknown(text),
            }
        } else if let Some(grpc) = &probe.grpc {
            match request::grpc_health(grpc, subject, timeout) {
                Ok(request) => self.network.grpc_health(&request).await,
                Err(text) => return unknown(text),
            }
        } else {
            return unknown(format!("missing probe handler for {}", subject.container.name));
        };
        done.map_or_else(Answer::Failure, |()| Answer::Success)
    }
}

fn judge(answer: Result<HttpAnswer, HttpError>) -> Answer {
    match answer {
        Ok(HttpAnswer { status: 200..=299, .. }) => Answer::Success,
        Ok(HttpAnswer { status: 300..=399, body }) => {
            let body = String::from_utf8_lossy(&body);
            Answer::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        Ok(HttpAnswer { status, .. }) => {
            Answer::Failure(format!("HTTP probe failed with statuscode: {status}"))
        }
        Err(HttpError::NoAnswer(text) | HttpError::PlainHttp(text)) => Answer::Failure(text),
        Err(HttpError::Unreadable(text)) => Answer::Error { state: "failure", text },
    }
}
