//! Hooks over the network: what counts, and what a server that speaks no TLS is asked then.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coracle_clock::Clock;
use coracle_cri::ContainerId;
use coracle_cri::probe::{GrpcHealth, HttpAnswer, HttpGet, ProbeNetwork, TcpConnect};
use coracle_cri::scripted::{ScriptedRuntime, Trouble};
use k8s_openapi::api::core::v1::{Container, Probe};
use serde_json::{Value, json};

use super::super::Answer;
use super::*;

/// Speaks plain HTTP alone, and answers this.
struct Plain {
    answer: Result<u16, ()>,
    asked: Mutex<Vec<HttpGet>>,
}

#[async_trait]
impl ProbeNetwork for Plain {
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer, HttpError> {
        self.asked.lock().unwrap().push(request.clone());
        if request.https {
            return Err(HttpError::PlainHttp("no tls".to_owned()));
        }
        let answer = self.answer.map(|status| HttpAnswer { status, body: Vec::new() });
        answer.map_err(|()| HttpError::NoAnswer("nobody".to_owned()))
    }

    async fn tcp_connect(&self, _: &TcpConnect) -> Result<(), String> {
        unreachable!("no hook connects")
    }

    async fn grpc_health(&self, _: &GrpcHealth) -> Result<(), String> {
        unreachable!("no hook asks for health")
    }
}

/// Runs a postStart hook: its outcome, what was asked, and what was told.
async fn hook(hook: Value, answer: Result<u16, ()>) -> (Result<(), String>, Vec<HttpGet>, Vec<String>) {
    let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let network = Arc::new(Plain { answer, asked: Mutex::default() });
    let runtime = Arc::new(ScriptedRuntime::new(clock.clone()));
    let handlers = Handlers { runtime, network: network.clone(), clock };
    let container: Container = serde_json::from_value(json!({
        "name": "c", "ports": [{"name": "web", "containerPort": 8080}], "lifecycle": {"postStart": hook}
    }))
    .unwrap();
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
    let told = Mutex::new(Vec::new());
    let tell = |event: PodEvent| {
        let subject = event.container.as_deref().unwrap_or("pod");
        told.lock().unwrap().push(format!("{subject} {} {}", event.reason, event.message));
    };
    let id = ContainerId("id".to_owned());
    let subject = Subject { container: &container, id: &id, pod_ip: "10.0.0.5" };
    let done = post_start(&handlers, &pod, subject, &tell).await.map_err(|failure| failure.message);
    let asked = network.asked.lock().unwrap().clone();
    (done, asked, told.into_inner().unwrap())
}

#[tokio::test(start_paused = true)]
async fn any_answer_will_do() {
    for status in [200, 302, 404, 500] {
        let (done, asked, told) = hook(json!({"httpGet": {"port": "web", "path": "x"}}), Ok(status)).await;
        assert_eq!((done, told), (Ok(()), Vec::new()), "{status}");
        assert_eq!(asked[0].url(), "http://10.0.0.5:8080/x");
        assert_eq!(asked[0].timeout, None);
        assert!(asked[0].headers.contains(&("User-Agent".to_owned(), "kube-lifecycle/1.37".to_owned())));
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_will_not() {
    let failed = |why: &str| {
        Err(format!("HTTP lifecycle hook (/x) for Container \"c\" in Pod \"p_n(u)\" failed - error: {why}"))
    };
    let (done, _, told) = hook(json!({"httpGet": {"port": 80, "path": "/x"}}), Err(())).await;
    assert_eq!(done, failed("nobody"));
    assert_eq!(told, ["c FailedPostStartHook PostStartHook failed"]);
    let (done, ..) = hook(json!({"httpGet": {"port": "nope", "path": "/x"}}), Ok(200)).await;
    assert_eq!(done, failed("strconv.Atoi: parsing \"nope\": invalid syntax"));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_tls_is_asked_again_without_and_without_secrets() {
    let secret = json!([{"name": "Authorization", "value": "secret"}, {"name": "X", "value": "1"}]);
    let get = json!({"httpGet": {"port": 443, "scheme": "HTTPS", "httpHeaders": secret}});
    let (done, asked, told) = hook(get.clone(), Ok(200)).await;
    assert_eq!(done, Ok(()));
    let names =
        |at: usize| -> Vec<&str> { asked[at].headers.iter().map(|(name, _)| name.as_str()).collect() };
    assert_eq!((asked[0].https, asked[1].https), (true, false));
    assert_eq!(names(0), ["Authorization", "X", "User-Agent", "Accept"]);
    assert_eq!(names(1), ["X", "User-Agent", "Accept"]);
    assert_eq!(
        told,
        [
            "pod LifecycleHTTPFallback request to HTTPS lifecycle hook 10.0.0.5:443 got HTTP response, retry with HTTP succeeded"
        ]
    );
    let (done, _, told) = hook(get, Err(())).await;
    assert!(done.unwrap_err().ends_with("no tls"));
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sleep_lasts_as_long_as_it_says_even_no_time() {
    for seconds in [0, 5] {
        let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
        let (done, ..) = hook(json!({"sleep": {"seconds": seconds}}), Err(())).await;
        assert_eq!((done, clock.elapsed()), (Ok(()), Duration::from_secs(seconds)));
    }
}

/// Each try takes a second: so many seconds, so many tries.
#[tokio::test(start_paused = true)]
async fn what_goes_wrong_in_the_asking_is_tried_three_times_in_a_round() {
    let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let runtime = ScriptedRuntime::new(clock.clone());
    let why = coracle_cri::CriError::Internal("no runtime".to_owned());
    let calls = vec!["exec".to_owned()];
    let slow = Duration::from_secs(1);
    runtime.set_trouble(Trouble { calls, slow, fails: Some(why), ..Trouble::default() });
    let network = Arc::new(Plain { answer: Ok(200), asked: Mutex::default() });
    let handlers = Handlers { runtime: Arc::new(runtime), network, clock: clock.clone() };
    let probe: Probe =
        serde_json::from_value(json!({"exec": {"command": ["true"]}, "timeoutSeconds": 10})).unwrap();
    let (container, id) = (Container::default(), ContainerId("id".to_owned()));
    let subject = Subject { container: &container, id: &id, pod_ip: "10.0.0.5" };
    let answer = handlers.probe(&probe, subject).await;
    assert!(matches!(&answer, Answer::Error { text, .. } if text.contains("no runtime")), "{answer:?}");
    assert_eq!(clock.elapsed(), Duration::from_secs(3));
}
