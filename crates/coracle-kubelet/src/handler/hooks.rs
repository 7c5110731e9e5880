//! Lifecycle hooks: what a container does right after its start and before its stop.

use std::time::Duration;

use coracle_cri::probe::HttpError;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};

use super::command::{self, CommandError};
use super::request::{self, Purpose};
use super::{Handlers, Subject};
use crate::pod::reasons::PodEvent;
use crate::spec::PodIdentity;

/// A hook that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookFailure {
    /// What the waiting message says. Events do not: an answer of a server may hold secrets.
    pub(crate) message: String,
}

/// What a hook has to tell besides its outcome.
pub(crate) type Tell<'a> = &'a (dyn Fn(PodEvent) + Send + Sync);

/// Runs the hook that follows the start of a container, if it has one. Takes as long as the hook does.
pub(crate) async fn post_start(
    handlers: &Handlers,
    pod: &Pod,
    subject: Subject<'_>,
    tell: Tell<'_>,
) -> Result<(), HookFailure> {
    let hook = subject.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    let Some(hook) = hook else { return Ok(()) };
    let done = run(handlers, pod, subject, hook, tell).await;
    if done.is_err() {
        let name = &subject.container.name;
        tell(PodEvent::warning(name, "FailedPostStartHook", "PostStartHook failed"));
    }
    done
}

/// Runs the hook that precedes the stop of a container, if it has one, for at most `grace`. Returns what is left of it.
pub(crate) async fn pre_stop(
    handlers: &Handlers,
    pod: &Pod,
    subject: Subject<'_>,
    grace: Duration,
    tell: Tell<'_>,
) -> Duration {
    let hook = subject.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let Some(hook) = hook else { return grace };
    let begun = handlers.clock.elapsed();
    let done = handlers.clock.timeout(grace, run(handlers, pod, subject, hook, tell)).await;
    if let Some(Err(_)) = done {
        let name = &subject.container.name;
        tell(PodEvent::warning(name, "FailedPreStopHook", "PreStopHook failed"));
    }
    grace.saturating_sub(handlers.clock.elapsed().saturating_sub(begun))
}

async fn run(
    handlers: &Handlers,
    pod: &Pod,
    subject: Subject<'_>,
    hook: &LifecycleHandler,
    tell: Tell<'_>,
) -> Result<(), HookFailure> {
    let name = &subject.container.name;
    let of = format!("for Container {name:?} in Pod {:?} failed", PodIdentity::of(pod).full_name());
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        let (why, output) = match command::run(handlers, subject.id, command, None).await {
            Ok(ran) if ran.exit_code == 0 => return Ok(()),
            Ok(ran) => {
                let words = command.join(" ");
                (format!("command '{words}' exited with {}: {}", ran.exit_code, ran.errors), ran.output)
            }
            Err(CommandError::NotRun(why) | CommandError::TimedOut(why)) => (why, String::new()),
        };
        let message = format!(
            "Exec lifecycle hook ([{}]) {of} - error: {why}, message: {}",
            command.join(" "),
            coracle_api::field::go_quote(&output)
        );
        return Err(HookFailure { message });
    }
    if let Some(http) = &hook.http_get {
        let done = async {
            if subject.pod_ip.is_empty() && http.host.as_deref().is_none_or(str::is_empty) {
                return Err("failed to find networking container".to_owned());
            }
            let mut ask = request::http_get(http, subject, Purpose::Lifecycle, None)?;
            match handlers.network.http_get(&ask).await {
                // Nobody looks at the status, nor at the body.
                Ok(_) | Err(HttpError::Unreadable(_)) => Ok(()),
                Err(HttpError::NoAnswer(why)) => Err(why),
                Err(HttpError::PlainHttp(why)) => {
                    ask.https = false;
                    ask.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
                    match handlers.network.http_get(&ask).await {
                        Ok(_) | Err(HttpError::Unreadable(_)) => {
                            let host = coracle_cri::probe::join_host_port(&ask.host, ask.port);
                            let text = format!(
                                "request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded"
                            );
                            tell(PodEvent::pod_warning("LifecycleHTTPFallback", text));
                            Ok(())
                        }
                        Err(_) => Err(why),
                    }
                }
            }
        };
        let path = http.path.as_deref().unwrap_or_default();
        let failed =
            |why| HookFailure { message: format!("HTTP lifecycle hook ({path}) {of} - error: {why}") };
        return done.await.map_err(failed);
    }
    if let Some(sleep) = &hook.sleep {
        // One that is cut short is cut short by its caller.
        handlers.clock.sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    // What the API takes for reasons of age, and nobody has ever run.
    Err(HookFailure { message: format!("Cannot run handler: invalid handler: {}", described(hook)) })
}

/// A handler as upstream's debug output shows it.
fn described(hook: &LifecycleHandler) -> String {
    let tcp = hook.tcp_socket.as_ref().map_or_else(
        || "nil".to_owned(),
        |tcp| {
            use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
            let port = match &tcp.port {
                IntOrString::Int(number) => format!("{{0 {number} }}"),
                IntOrString::String(name) => format!("{{1 0 {name}}}"),
            };
            format!("&TCPSocketAction{{Port:{port},Host:{},}}", tcp.host.as_deref().unwrap_or_default())
        },
    );
    format!("&LifecycleHandler{{Exec:nil,HTTPGet:nil,TCPSocket:{tcp},Sleep:nil,}}")
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
