//! The server: connections, their limits, and the end of both.

use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;
use coracle_cri::RuntimeService;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::routes::{self, Shared};
use super::tls::{self, Caller};
use super::{PodSource, ServerConfig};
use crate::logs::LogWatcher;

/// More connections wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// After a failed accept (no descriptors left, usually).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A certificate or key is not usable.
    #[error("{what} is not usable: {problem}")]
    Credentials {
        /// Which.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// Changes of logs cannot be watched.
    #[error("cannot watch logs: {0}")]
    Watch(#[source] std::io::Error),
}

/// The kubelet's HTTPS API.
#[derive(Debug)]
pub struct KubeletServer;

impl KubeletServer {
    /// Serves until `shutdown`, then ends open requests within the configured grace: followed logs end after
    /// what is there, commands are told that the server goes away.
    ///
    /// # Errors
    /// See [`ServerError`]; only before the first connection.
    pub async fn serve(
        listener: TcpListener,
        config: ServerConfig,
        runtime: Arc<dyn RuntimeService>,
        pods: Arc<dyn PodSource>,
        clock: Clock,
        shutdown: CancellationToken,
    ) -> Result<(), ServerError> {
        let acceptor = tls::acceptor(&config, &clock)?;
        let watcher = LogWatcher::new().map_err(ServerError::Watch)?;
        let shared = Arc::new(Shared {
            runtime,
            pods,
            clock: clock.clone(),
            pods_log_dir: config.pods_log_dir.clone(),
            watcher: Arc::clone(&watcher),
            shutdown: shutdown.clone(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));

        let accept = accept_all(&listener, &acceptor, &config, &shared, &slots);
        let watch = async {
            if let Err(error) = watcher.run().await {
                tracing::error!(%error, "logs can no longer be watched");
            }
            std::future::pending::<()>().await;
        };
        coracle_clock::select! {
            () = shutdown.cancelled() => {}
            () = accept => {}
            () = watch => {}
        }
        drop(listener);
        shared.tasks.close();
        if clock.timeout(config.shutdown_grace, shared.tasks.wait()).await.is_none() {
            tracing::warn!(requests = shared.tasks.len(), "ending requests that outlast the shutdown");
            shared.abort.cancel();
            shared.tasks.wait().await;
        }
        Ok(())
    }
}

async fn accept_all(
    listener: &TcpListener,
    acceptor: &TlsAcceptor,
    config: &ServerConfig,
    shared: &Arc<Shared>,
    slots: &Arc<Semaphore>,
) {
    loop {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                shared.clock.sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let connection = connection(stream, acceptor.clone(), config.header_timeout, Arc::clone(shared));
        let abort = shared.abort.clone();
        shared.tasks.spawn(async move {
            abort.run_until_cancelled(connection).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, header_timeout: Duration, shared: Arc<Shared>) {
    if let Err(error) = tls::keep_alive(&stream) {
        tracing::debug!(%error, "cannot set options of a connection");
    }
    let stream = match shared.clock.timeout(header_timeout, acceptor.accept(stream)).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        None => return tracing::debug!("a TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = certificate.and_then(Caller::from_certificate).map(Arc::new);

    let service = service_fn(|request| routes::answer(Arc::clone(&shared), caller.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = coracle_clock::select! {
        result = connection.as_mut() => result,
        () = shared.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}
