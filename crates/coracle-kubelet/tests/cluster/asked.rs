//! Who was asked what over the network, and when.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coracle_clock::Clock;
use coracle_cri::ContainerId;
use coracle_cri::probe::{GrpcHealth, HttpAnswer, HttpError, HttpGet, ProbeNetwork, TcpConnect};
use coracle_cri::scripted::ScriptedRuntime;

/// One question.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Seconds since the start.
    pub(crate) at: f64,
    pub(crate) container: ContainerId,
    pub(crate) port: u16,
}

/// The network of the scripted runtime, with a memory.
#[derive(Clone)]
pub(crate) struct Asked {
    runtime: ScriptedRuntime,
    clock: Clock,
    questions: Arc<Mutex<Vec<Question>>>,
}

impl Asked {
    pub(crate) fn new(runtime: ScriptedRuntime, clock: Clock) -> Self {
        Asked { runtime, clock, questions: Arc::default() }
    }

    /// The questions that were put to a port since then.
    pub(crate) fn since(&self, seconds: f64, port: u16) -> Vec<Question> {
        let questions = self.questions.lock().unwrap();
        questions.iter().filter(|q| q.at >= seconds && q.port == port).cloned().collect()
    }

    fn note(&self, container: &ContainerId, port: u16) {
        let at = self.clock.elapsed().as_secs_f64();
        self.questions.lock().unwrap().push(Question { at, container: container.clone(), port });
    }
}

#[async_trait]
impl ProbeNetwork for Asked {
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer, HttpError> {
        self.note(&request.container, request.port);
        self.runtime.http_get(request).await
    }

    async fn tcp_connect(&self, request: &TcpConnect) -> Result<(), String> {
        self.note(&request.container, request.port);
        self.runtime.tcp_connect(request).await
    }

    async fn grpc_health(&self, request: &GrpcHealth) -> Result<(), String> {
        self.note(&request.container, request.port);
        self.runtime.grpc_health(request).await
    }
}
