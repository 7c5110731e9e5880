//! Machines that become nodes: `/coracle/v1/authority`, `/coracle/v1/join` and `/coracle/v1/renew`.
//!
//! Upstream has these in kubeadm, the CertificateSigningRequest API and its approvers and signers, in many steps.
//! Here one request shows the token and the key, and one answer has everything. What decides is in
//! [`coracle_api::join`].

use std::sync::Arc;

use bytes::Bytes;
use coracle_api::Value;
use coracle_api::join::{
    Authority, ClusterNetwork, JoinAnswer, JoinRequest, KEY_ANNOTATION, NAMESPACE, Token, TokenProblem,
    TokenRecord, clock_problem,
};
use coracle_api::names;
use coracle_api::status::Status;
use http::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::auth::UserInfo;
use crate::body::{Body, read};
use crate::bootstrap::send;
use crate::negotiate::Format;
use crate::pki::{CertificateAuthority, CertificateRequest, PublicKey};
use crate::server::Core;

/// Addresses of a node are few.
const ADDRESSES_MAX: usize = 16;
/// Another write came in between so often: somebody is in a loop.
const ATTEMPTS: usize = 5;

/// What is needed to take nodes in.
#[derive(Debug, Clone)]
pub struct Joining {
    /// Signs the nodes' certificates.
    pub authority: Arc<CertificateAuthority>,
    /// What nodes are told.
    pub network: ClusterNetwork,
    /// The server's own certificate: no node gets one for its names and addresses, or it could pass for the server.
    pub own: CertificateRequest,
}

impl Core {
    pub(crate) async fn joining(
        self: &Arc<Self>,
        request: Request<Body>,
        segments: &[&str],
        user: Option<UserInfo>,
    ) -> Result<Response<Body>, Status> {
        let Some(joining) = &self.config.joining else { return Err(Status::unknown_resource()) };
        let method = request.method().clone();
        let answer = match (segments, &method) {
            (["v1", "authority"], &Method::GET) => to_value(&Authority {
                certificate: joining.authority.certificate_pem().to_owned(),
                time: self.clock.now(),
            }),
            (["v1", "join"], &Method::POST) => {
                let asked = self.asked(request).await?;
                to_value(&self.join(joining, &asked).await?)
            }
            (["v1", "renew"], &Method::POST) => {
                let user = user.ok_or_else(Status::unauthorized)?;
                let asked = self.asked(request).await?;
                to_value(&self.renew(joining, &asked, &user).await?)
            }
            (["v1", "authority" | "join" | "renew"], _) => {
                return Err(Status::method_not_allowed("", "", &method.as_str().to_ascii_lowercase()));
            }
            _ => return Err(Status::unknown_resource()),
        };
        Ok(Format::json().value(StatusCode::OK, &answer))
    }

    async fn asked(&self, request: Request<Body>) -> Result<JoinRequest, Status> {
        let bytes: Bytes = read(request.into_body(), &self.clock).await?;
        let asked: JoinRequest = serde_json::from_slice(&bytes)
            .map_err(|error| Status::bad_request(format!("this is no request to join: {error}")))?;
        if asked.addresses.len() > ADDRESSES_MAX {
            return Err(Status::bad_request(format!("a node has at most {ADDRESSES_MAX} addresses")));
        }
        if let Some(problem) = names::dns1123_subdomain(&asked.node).into_iter().next() {
            return Err(Status::bad_request(format!(
                "{:?} cannot be the name of a node: {problem}",
                asked.node
            )));
        }
        if let Some(problem) = clock_problem(asked.time, self.clock.now()) {
            return Err(Status::bad_request(problem));
        }
        Ok(asked)
    }

    async fn join(self: &Arc<Self>, joining: &Joining, asked: &JoinRequest) -> Result<JoinAnswer, Status> {
        let key = PublicKey::of_request(&asked.certificate_request)
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let fingerprint = key.fingerprint();
        let token: Token = asked.token.parse().map_err(|error| refused(&error))?;
        for _ in 0..ATTEMPTS {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{}", token.secret_name());
            let (code, secret) = send(self, Method::GET, &path, &Value::Null).await;
            if !code.is_success() && code != StatusCode::NOT_FOUND {
                return Err(Status::unavailable("the join token cannot be checked now, please try again"));
            }
            let record = code.is_success().then(|| TokenRecord::from_secret(&secret)).flatten();
            let mut record = record.ok_or_else(|| refused(&TokenProblem::Wrong))?;
            record
                .check(&token, &asked.node, &fingerprint, self.clock.now())
                .map_err(|problem| refused(&problem))?;
            // Before the token is spent on it.
            self.check_name(&asked.node, &fingerprint).await?;
            check_not_the_servers(&joining.own, asked)?;
            if !record.reusable && record.spent_by.is_none() {
                record.spent_by = Some((asked.node.clone(), fingerprint.clone()));
                let mut spent = record.to_secret();
                spent["metadata"] = secret["metadata"].clone();
                let (code, _) = send(self, Method::PUT, &path, &spent).await;
                if code == StatusCode::CONFLICT || code == StatusCode::NOT_FOUND {
                    continue;
                }
                if !code.is_success() {
                    return Err(Status::unavailable("the join token cannot be spent now, please try again"));
                }
            }
            self.make_node(&asked.node, &fingerprint).await?;
            tracing::info!(node = asked.node, token = token.id, "a node joins");
            return self.certify(joining, asked, &key);
        }
        Err(Status::unavailable("the join token is being changed, please try again"))
    }

    async fn renew(
        self: &Arc<Self>,
        joining: &Joining,
        asked: &JoinRequest,
        user: &UserInfo,
    ) -> Result<JoinAnswer, Status> {
        if user.node_name() != Some(asked.node.as_str()) {
            let why = format!("User {:?} is not the node agent of {:?}", user.name, asked.node);
            return Err(Status::forbidden("", "nodes", &asked.node, &why));
        }
        let key = PublicKey::of_request(&asked.certificate_request)
            .map_err(|error| Status::bad_request(error.to_string()))?;
        // A machine that was removed, or replaced under its name, does not come back by renewing.
        if !self.check_name(&asked.node, &key.fingerprint()).await? {
            return Err(deleted(&asked.node));
        }
        self.certify(joining, asked, &key)
    }

    /// A node agent makes no Node, unless it is the server's own: one that has joined has one, until somebody deletes
    /// it, who then does not want it back.
    pub(crate) fn check_makes_node(&self, node: &str) -> Result<(), Status> {
        match &self.config.joining {
            Some(joining) if !joining.own.dns_names.iter().any(|own| own == node) => Err(deleted(node)),
            _ => Ok(()),
        }
    }

    /// A name belongs to the key that it first joined with, until its Node is deleted. Whether there is a Node.
    async fn check_name(self: &Arc<Self>, node: &str, fingerprint: &str) -> Result<bool, Status> {
        let (code, found) = send(self, Method::GET, &format!("/api/v1/nodes/{node}"), &Value::Null).await;
        if code == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        if !code.is_success() {
            return Err(Status::unavailable("the nodes cannot be read now, please try again"));
        }
        if found["metadata"]["annotations"][KEY_ANNOTATION] == *fingerprint {
            return Ok(true);
        }
        Err(taken(node))
    }

    async fn make_node(self: &Arc<Self>, node: &str, fingerprint: &str) -> Result<(), Status> {
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": node, "annotations": { (KEY_ANNOTATION): fingerprint } },
        });
        let (code, answer) = send(self, Method::POST, "/api/v1/nodes", &object).await;
        match code {
            StatusCode::CONFLICT => self.check_name(node, fingerprint).await.map(drop),
            code if code.is_success() => Ok(()),
            _ => {
                tracing::error!(node, %answer, "cannot make a Node");
                Err(Status::unavailable("the Node cannot be made now, please try again"))
            }
        }
    }

    fn certify(&self, joining: &Joining, asked: &JoinRequest, key: &PublicKey) -> Result<JoinAnswer, Status> {
        check_not_the_servers(&joining.own, asked)?;
        let now = self.clock.now();
        let sign = |request: &CertificateRequest| {
            joining.authority.certify(request, key, now).map_err(|error| {
                tracing::error!(%error, node = asked.node, "cannot sign a certificate");
                Status::bad_request(error.to_string())
            })
        };
        Ok(JoinAnswer {
            authority: joining.authority.certificate_pem().to_owned(),
            node_certificate: sign(&CertificateRequest::kubelet_client(&asked.node))?,
            serving_certificate: sign(&CertificateRequest::kubelet_server(&asked.node, &asked.addresses))?,
            network_certificate: sign(&CertificateRequest::client(NODE_NETWORK, None))?,
            network: joining.network.clone(),
        })
    }
}

/// Who the part of a node is that moves packets: upstream's name for it.
pub const NODE_NETWORK: &str = "system:kube-proxy";

fn check_not_the_servers(own: &CertificateRequest, asked: &JoinRequest) -> Result<(), Status> {
    if own.dns_names.contains(&asked.node) {
        let why = format!("{:?} is a name of the API server: choose another --node-name", asked.node);
        return Err(Status::bad_request(why));
    }
    match asked.addresses.iter().find(|address| own.ip_addresses.contains(address)) {
        None => Ok(()),
        Some(address) => Err(Status::bad_request(format!(
            "{address} is an address of the API server: give this machine's own with --address"
        ))),
    }
}

fn taken(node: &str) -> Status {
    let mut status = Status::already_exists("", "nodes", node);
    status.message = format!(
        "another machine has joined as node {node:?}: choose another --node-name, or, if that machine is gone for good, \
         `kubectl delete node {node}` first"
    );
    status
}

fn deleted(node: &str) -> Status {
    let why = "it was deleted from this cluster; its machine may join again, with a token of `coracle token create`";
    Status::forbidden("", "nodes", node, why)
}

fn refused(why: &dyn std::fmt::Display) -> Status {
    let mut status = Status::unauthorized();
    status.message = why.to_string();
    status
}

fn to_value<T: serde::Serialize>(answer: &T) -> Value {
    serde_json::to_value(answer).unwrap_or_default()
}
