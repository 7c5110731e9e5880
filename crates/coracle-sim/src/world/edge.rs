//! The edge to the real world: clients on sockets, whose time is real, ask a cluster whose time stands still meanwhile.
//!
//! What they ask may come at any moment of real time, so that a run with an open [`Door`] is not repeatable.

use bytes::Bytes;
use coracle_api::status::Status;
use coracle_apiserver::Body;
use coracle_apiserver::auth::UserInfo;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::sync::{mpsc, oneshot};

use super::World;
use crate::wire::Address;

/// Pieces of an answer that are ready before the client takes them.
const PIECES: usize = 16;

/// The way into a world from other threads. Clones are the same way.
#[derive(Clone, Debug)]
pub struct Door(mpsc::UnboundedSender<Asked>);

#[derive(Debug)]
struct Asked {
    request: Request<Body>,
    user: Option<UserInfo>,
    answer: oneshot::Sender<Response<Body>>,
}

impl Door {
    /// Has the API server answer a request of a user; `None` is somebody who did not show who they are.
    pub fn answer(
        &self,
        request: Request<Body>,
        user: Option<UserInfo>,
    ) -> BoxFuture<'static, Response<Body>> {
        let (answer, answered) = oneshot::channel();
        let asked = self.0.send(Asked { request, user, answer });
        async move {
            match (asked, answered.await) {
                (Ok(()), Ok(response)) => response,
                _ => refusal(&Status::unavailable("the simulated cluster has ended")),
            }
        }
        .boxed()
    }
}

/// A refusal in the API's form.
#[must_use]
pub fn refusal(status: &Status) -> Response<Body> {
    let body = Full::new(Bytes::from(status.to_json().to_string()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

impl World {
    /// Opens a door for clients on other threads. They are answered whenever the world runs, be it still or not.
    #[must_use]
    pub fn open_door(&self) -> Door {
        let (door, mut asked) = mpsc::unbounded_channel();
        let address = self.address.clone();
        self.runtime.spawn(async move {
            while let Some(asked) = asked.recv().await {
                tokio::spawn(answer(address.clone(), asked));
            }
        });
        Door(door)
    }

    /// Waits for something of the real world. No virtual time passes, and whoever comes through a door is answered.
    pub fn stand_still<F: Future>(&mut self, future: F) -> F::Output {
        self.runtime.block_on(async {
            // Tokio does not let paused time jump while work that blocks is under way.
            let (release, released) = std::sync::mpsc::channel::<()>();
            let still = tokio::task::spawn_blocking(move || {
                let _ = released.recv();
            });
            let output = future.await;
            drop(release);
            drop(still.await);
            output
        })
    }
}

/// Lets the server answer, and carries the answer piece by piece: its body lives in virtual time, and its reader in real
/// time.
async fn answer(address: Address, asked: Asked) {
    let Asked { request, user, answer } = asked;
    let Some(server) = address.server() else {
        let _ = answer.send(refusal(&Status::unavailable("the simulated API server is down")));
        return;
    };
    let (head, mut body) = server.answer(request, user).await.into_parts();
    let (pieces, mut taken) = mpsc::channel(PIECES);
    let stream = futures::stream::poll_fn(move |context| taken.poll_recv(context));
    let carried = http_body_util::BodyExt::boxed_unsync(StreamBody::new(stream));
    if answer.send(Response::from_parts(head, carried)).is_err() {
        return;
    }
    while let Some(piece) = body.frame().await {
        let piece: Result<Frame<Bytes>, _> = piece;
        if pieces.send(piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Settings, World};

    use super::*;

    #[test]
    fn time_stands_still_while_a_client_of_another_thread_asks() {
        let mut world = World::new(Settings::default()).unwrap();
        world.run_until(Duration::from_secs(5)).unwrap();
        let before = world.elapsed();
        let door = world.open_door();
        let (done, asked) = oneshot::channel();
        let client = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let body = runtime.block_on(async {
                let empty = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
                let request = Request::get("/api/v1/nodes").body(empty).unwrap();
                let user = UserInfo::new("kubernetes-admin", ["system:masters"]);
                let response = door.answer(request, Some(user)).await;
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap().to_bytes()
            });
            done.send(()).unwrap();
            body
        });
        world.stand_still(asked).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&client.join().unwrap()).unwrap();
        assert_eq!(body["kind"], "NodeList");
        assert_eq!(world.elapsed(), before);
        world.run_for(Duration::from_secs(60)).unwrap();
        assert_eq!(world.elapsed(), before + Duration::from_secs(60), "and goes on after");
    }
}
