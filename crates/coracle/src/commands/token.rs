//! `coracle token`: the tokens by which other machines join.

use std::process::ExitCode;

use anyhow::{Context, bail};
use coracle_api::join::{NAMESPACE, SECRET_TYPE, Token, TokenRecord, secret_name};
use coracle_apiserver::pki::certificate_fingerprint;
use coracle_client::{Deletion, ErrorExt as _, ObjectKey, connect_with_kubeconfig, request};
use coracle_clock::{Clock, Rng};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Endpoints, Secret};
use serde_json::{Value, json};

use crate::cli::{self, Form};
use crate::cluster::Cluster;
use crate::output;

pub(crate) fn run(cluster: &Cluster, command: cli::Token) -> anyhow::Result<ExitCode> {
    if cluster.running()?.is_none() {
        bail!("cluster {:?} does not run: tokens are made on the server, after `coracle up`", cluster.name);
    }
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig())
        .with_context(|| format!("this is no server: cannot read {}", cluster.kubeconfig().display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = connect_with_kubeconfig(&kubeconfig).await?;
        match command {
            cli::Token::Create { ttl, reusable, output } => {
                create(cluster, &client, ttl, reusable, output.output).await
            }
            cli::Token::Ls { output } => list(&client, output.output).await,
            cli::Token::Rm { ids } => remove(&client, &ids).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn create(
    cluster: &Cluster,
    client: &kube::Client,
    ttl: SignedDuration,
    reusable: bool,
    form: Form,
) -> anyhow::Result<()> {
    let settings = cluster.settings()?.context("the cluster has no settings: is it running?")?;
    let authority =
        std::fs::read_to_string(cluster.pki().join("ca.crt")).context("cannot read the authority")?;
    let fingerprint = certificate_fingerprint(&authority).context("ca.crt holds no certificate")?;
    let server = format!("https://{}:{}", advertised(client).await?, settings.api_port);
    let now = Clock::system().now();
    tidy(client, now).await?;
    let mut random = [0; 22];
    Rng::from_os().fill(&mut random);
    let token = Token::from_random(random, &fingerprint);
    let expires = now.saturating_add(ttl).unwrap_or(Timestamp::MAX);
    let record = TokenRecord {
        id: token.id.clone(),
        secret: token.secret.clone(),
        expires: Some(expires),
        reusable,
        spent_by: None,
    };
    let secret: Secret = serde_json::from_value(record.to_secret())?;
    request::create(client, &secret).await.context("cannot store the token")?;
    let command = format!("coracle node --server {server} --token {token}");
    match form {
        Form::Json => output::result(serde_json::to_string_pretty(&json!({
            "token": token.to_string(), "server": server, "expires": expires, "reusable": reusable,
            "command": command,
        }))?),
        Form::Text => {
            let whom = if reusable { "machines" } else { "one machine" };
            let until = expires.strftime("%Y-%m-%d %H:%M UTC");
            output::note(format_args!("for {whom}, until {until}:"));
            output::result(command);
        }
    }
    Ok(())
}

/// The address that the running server tells everyone: the one behind the Service `kubernetes`.
async fn advertised(client: &kube::Client) -> anyhow::Result<String> {
    let key = ObjectKey::namespaced("default", "kubernetes");
    let endpoints =
        request::get::<Endpoints>(client, &key).await.context("cannot ask for the server's address")?;
    let addresses = endpoints.subsets.into_iter().flatten().filter_map(|subset| subset.addresses).flatten();
    addresses.map(|address| address.ip).next().context(
        "this machine has no address that another one could reach: give one with `coracle up --address`",
    )
}

async fn tokens(client: &kube::Client) -> anyhow::Result<Vec<TokenRecord>> {
    let secrets = request::list::<Secret>(client, Some(NAMESPACE)).await.context("cannot list the tokens")?;
    let tokens = secrets.iter().filter(|secret| secret.type_.as_deref() == Some(SECRET_TYPE));
    let values: Vec<Value> = tokens.map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(values.iter().filter_map(TokenRecord::from_secret).collect())
}

/// Removes tokens that have expired: they say so to whoever tries them, but not for ever.
async fn tidy(client: &kube::Client, now: Timestamp) -> anyhow::Result<()> {
    const TOLD_FOR: SignedDuration = SignedDuration::from_hours(30 * 24);
    for token in tokens(client).await? {
        if token.expires.is_some_and(|expires| now.duration_since(expires) > TOLD_FOR) {
            delete(client, &token.id).await?;
        }
    }
    Ok(())
}

async fn list(client: &kube::Client, form: Form) -> anyhow::Result<()> {
    let now = Clock::system().now();
    let state = |token: &TokenRecord| match (&token.spent_by, token.expires) {
        (Some((node, _)), _) => format!("used by {node}"),
        (None, Some(expires)) if now >= expires => "expired".to_owned(),
        (None, _) if token.reusable => "open, for any number of machines".to_owned(),
        (None, _) => "open".to_owned(),
    };
    let tokens = tokens(client).await?;
    match form {
        Form::Json => {
            let tokens: Vec<_> = tokens
                .iter()
                .map(|token| json!({ "id": token.id, "expires": token.expires, "state": state(token) }))
                .collect();
            output::result(serde_json::to_string_pretty(&tokens)?);
        }
        Form::Text => {
            let expires = |token: &TokenRecord| {
                token.expires.map_or("never".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string())
            };
            let rows: Vec<_> =
                tokens.iter().map(|token| vec![token.id.clone(), expires(token), state(token)]).collect();
            output::result(output::columns(&["ID", "EXPIRES", "STATE"], &rows));
        }
    }
    Ok(())
}

async fn remove(client: &kube::Client, ids: &[String]) -> anyhow::Result<()> {
    for id in ids {
        // A whole token is an id with more behind it.
        let id = id.split('.').next().unwrap_or_default();
        if !delete(client, id).await? {
            bail!("there is no token {id:?}: `coracle token ls` lists them");
        }
        output::note(format_args!("token {id} removed"));
    }
    Ok(())
}

async fn delete(client: &kube::Client, id: &str) -> anyhow::Result<bool> {
    let key = ObjectKey::namespaced(NAMESPACE, secret_name(id));
    match request::delete::<Secret>(client, &key, &Deletion::default()).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error).context("cannot remove the token"),
    }
}
