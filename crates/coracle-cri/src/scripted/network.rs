//! What scripted containers answer over the network.
//!
//! A probe is asked by its own words in place of a command: `[httpGet, PORT, PATH]`, `[tcpSocket, PORT]` or
//! `[grpc, PORT, SERVICE]`. Code 0 is what a healthy program answers; for HTTP, codes from 100 are status codes, and
//! others mean that nobody listens.

use std::time::Duration;

use async_trait::async_trait;

use super::{Answer, ScriptedRuntime};
use crate::probe::{
    BODY_BYTES_MAX, GrpcHealth, HttpAnswer, HttpError, HttpGet, ProbeNetwork, TcpConnect, join_host_port,
};
use crate::{ContainerId, ContainerState};

impl ScriptedRuntime {
    /// The answer when its time has come. `None` if nobody listens (any more), `Err` if time is up before.
    async fn network_answer(
        &self,
        id: &ContainerId,
        words: &[String],
        timeout: Option<Duration>,
    ) -> Result<Option<Answer>, ()> {
        let Ok(answer) = self.answer(id, words) else { return Ok(None) };
        let ended = {
            let state = self.state();
            let running =
                state.containers.get(id).filter(|run| run.status.container.state == ContainerState::Running);
            running.map(|run| run.ended.subscribe())
        };
        let Some(mut ended) = ended else { return Ok(None) };
        let limit = timeout.filter(|limit| *limit < answer.takes);
        coracle_clock::select! {
            _ = ended.wait_for(|ended| *ended) => Ok(None),
            () = self.0.clock.sleep(limit.unwrap_or(answer.takes)) => {
                if limit.is_some() { Err(()) } else { Ok(Some(answer)) }
            }
        }
    }
}

fn refused(host: &str, port: u16) -> String {
    format!("dial tcp {}: connect: connection refused", join_host_port(host, port))
}

#[async_trait]
impl ProbeNetwork for ScriptedRuntime {
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer, HttpError> {
        let words = ["httpGet".to_owned(), request.port.to_string(), request.path.clone()];
        let answer = self.network_answer(&request.container, &words, request.timeout).await;
        match answer.map(|answer| answer.map(|answer| (u16::try_from(answer.code).unwrap_or(0), answer))) {
            Err(()) => Err(HttpError::NoAnswer(
                request.failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)"),
            )),
            Ok(Some((code, answer))) if answer.code == 0 || code >= 100 => {
                let mut body = answer.stdout.into_bytes();
                body.truncate(BODY_BYTES_MAX);
                Ok(HttpAnswer { status: if code == 0 { 200 } else { code }, body })
            }
            Ok(_) => Err(HttpError::NoAnswer(request.failed(&refused(&request.host, request.port)))),
        }
    }

    async fn tcp_connect(&self, request: &TcpConnect) -> Result<(), String> {
        let words = ["tcpSocket".to_owned(), request.port.to_string()];
        let address = join_host_port(&request.host, request.port);
        match self.network_answer(&request.container, &words, Some(request.timeout)).await {
            Err(()) => Err(format!("dial tcp {address}: i/o timeout")),
            Ok(Some(answer)) if answer.code == 0 => Ok(()),
            Ok(_) => Err(refused(&request.host, request.port)),
        }
    }

    async fn grpc_health(&self, request: &GrpcHealth) -> Result<(), String> {
        let words = ["grpc".to_owned(), request.port.to_string(), request.service.clone()];
        let limit = request.timeout;
        match self.network_answer(&request.container, &words, Some(limit)).await {
            Err(()) => Err(format!("timeout: health rpc did not complete within {limit:?}")),
            Ok(Some(answer)) if answer.code == 0 => Ok(()),
            Ok(Some(answer)) => {
                let said = if answer.stdout.is_empty() { "NOT_SERVING" } else { answer.stdout.as_str() };
                Err(format!("service unhealthy (responded with {said:?})"))
            }
            Ok(None) => {
                self.0.clock.sleep(limit).await;
                let address = join_host_port(&request.host, request.port);
                Err(format!(
                    "timeout: failed to connect service {address:?} within {limit:?}: context deadline exceeded"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_clock::Clock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_listens_in_a_container_that_is_not_there() {
        let runtime = ScriptedRuntime::new(Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap()));
        let container = ContainerId("gone".to_owned());
        let connect = TcpConnect {
            container: container.clone(),
            host: "10.0.0.1".to_owned(),
            port: 80,
            timeout: Duration::from_secs(1),
        };
        let refused = "dial tcp 10.0.0.1:80: connect: connection refused";
        assert_eq!(runtime.tcp_connect(&connect).await, Err(refused.to_owned()));
        let get = HttpGet {
            container,
            https: false,
            host: "10.0.0.1".to_owned(),
            port: 80,
            path: "/".to_owned(),
            headers: Vec::new(),
            timeout: None,
        };
        let text = format!("Get \"http://10.0.0.1:80/\": {refused}");
        assert_eq!(runtime.http_get(&get).await, Err(HttpError::NoAnswer(text)));
    }
}
