//! An API server by itself: no scheduler, no controllers, no node. For trying `kubectl` against the API alone.
//!
//!     cargo run -p coracle-apiserver --example serve -- DIRECTORY [ADDRESS:PORT]
//!     kubectl --kubeconfig DIRECTORY/admin.conf get namespaces

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_apiserver::auth::SYSTEM_MASTERS;
use coracle_apiserver::kubeconfig::Kubeconfig;
use coracle_apiserver::pki::{AccountKey, CertificateAuthority, CertificateRequest};
use coracle_apiserver::{ApiServer, Config, ServerTls, ServiceRange};
use coracle_clock::{Clock, Ids, Rng};
use coracle_store::embedded::{EmbeddedStore, Options};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("usage: serve DIRECTORY [ADDRESS:PORT]")?);
    let address: SocketAddr = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned()).parse()?;
    let (clock, mut rng) = (Clock::system(), Rng::from_os());

    let pki = directory.join("pki");
    let authority = CertificateAuthority::load_or_create(&pki, clock.now())?;
    let range = ServiceRange::default();
    let request = CertificateRequest::api_server(range.first().into(), &[], &[address.ip()]);
    let serving = authority.load_or_issue(&pki, "apiserver", &request, clock.now())?;
    let request = CertificateRequest::client("kubernetes-admin", Some(SYSTEM_MASTERS));
    let admin = authority.load_or_issue(&pki, "admin", &request, clock.now())?;

    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let (store, _) = EmbeddedStore::open_dir(&directory.join("store"), clock.clone(), Options::default())?;
    let account_key = Arc::new(AccountKey::load_or_create(&pki)?);
    let config =
        Config { service_range: range, advertise: address, kubelet: None, joining: None, account_key };
    let server = ApiServer::start(config, store, clock, Arc::new(Ids::new(rng.fork("ids")))).await?;

    let kubeconfig = directory.join("admin.conf");
    Kubeconfig {
        cluster: "coracle",
        user: "kubernetes-admin",
        server: &format!("https://{address}"),
        authority_pem: authority.certificate_pem(),
        credential: &admin,
    }
    .write(&kubeconfig)?;
    println!("serving https://{address}, kubeconfig {}", kubeconfig.display());

    let shutdown = CancellationToken::new();
    let signal = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            signal.cancel();
        }
    });
    server.serve(listener, ServerTls::new(&serving, &authority)?, shutdown).await;
    server.stop().await;
    Ok(())
}
