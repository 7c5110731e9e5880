//! One connection to a port of a Pod, and the two streams to the client that belong to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_clock::Clock;
use coracle_cri::{PodSandboxId, PortStream, RuntimeService};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What is read of a port at a time.
const CHUNK_BYTES: usize = 32 * 1024;
/// How long what is still on its way to a Pod that has closed its side may take, as upstream.
const LAST_BYTES: Duration = Duration::from_millis(500);
/// Pieces of a stream that wait for the Pod to take them. Then nothing more is read from the client.
pub(super) const PIECES_IN_FLIGHT: usize = 8;
/// Frames that wait for the client to take them.
pub(super) const FRAMES_IN_FLIGHT: usize = 8;

/// How a piece of a stream is put into a frame; with `fin` the last.
pub(super) type Frame = fn(stream: u32, data: &[u8], fin: bool) -> Bytes;

pub(super) struct Connection {
    pub(super) runtime: Arc<dyn RuntimeService>,
    pub(super) clock: Clock,
    pub(super) sandbox: PodSandboxId,
    pub(super) port: u16,
    /// That of errors, and that of data.
    pub(super) streams: [u32; 2],
    pub(super) frame: Frame,
    pub(super) frames: mpsc::Sender<Bytes>,
}

impl Connection {
    /// Serves it to its end, and gives its streams back.
    pub(super) async fn run(self, from_client: mpsc::Receiver<Bytes>, reset: CancellationToken) -> [u32; 2] {
        let [error_stream, data_stream] = self.streams;
        let work = async {
            let connected = self.runtime.port_forward(&self.sandbox, self.port).await;
            let error = match connected {
                Err(error) => Some(error.to_string()),
                Ok(stream) => self.join(stream, from_client).await.err().map(|error| error.to_string()),
            };
            if let Some(error) = error {
                let Connection { sandbox, port, .. } = &self;
                let words = format!("error forwarding port {port} to pod {sandbox}, uid : {error}");
                tracing::debug!(words, "a connection to a port failed");
                let _ = self.frames.send((self.frame)(error_stream, words.as_bytes(), false)).await;
            }
        };
        reset.run_until_cancelled(work).await;
        for stream in [error_stream, data_stream] {
            let _ = self.frames.send((self.frame)(stream, &[], true)).await;
        }
        self.streams
    }

    /// Passes bytes on in both directions, until both have ended.
    async fn join(
        &self,
        stream: PortStream,
        mut from_client: mpsc::Receiver<Bytes>,
    ) -> Result<(), std::io::Error> {
        let (mut read, mut write) = tokio::io::split(stream);
        let to_client = async {
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                let length = read.read(&mut buffer).await?;
                let frame = (self.frame)(self.streams[1], &buffer[..length], false);
                if length == 0 || self.frames.send(frame).await.is_err() {
                    return Ok::<_, std::io::Error>(());
                }
            }
        };
        let to_pod = async {
            while let Some(bytes) = from_client.recv().await {
                write.write_all(&bytes).await?;
            }
            write.shutdown().await
        };
        let (mut to_client, mut to_pod) = (std::pin::pin!(to_client), std::pin::pin!(to_pod));
        coracle_clock::select! {
            result = &mut to_client => {
                result?;
                // What the client has sent may still be of interest, but nothing will come back.
                self.clock.timeout(LAST_BYTES, to_pod).await;
                Ok(())
            }
            // A Pod that takes no more may still have something to say.
            _ = &mut to_pod => to_client.await,
        }
    }
}
