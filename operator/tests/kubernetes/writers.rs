//! Clients of a cluster: how it is reached, and one that writes all the time and remembers what was
//! acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use metastore_proto::etcdserverpb as pb;
use metastore_proto::etcdserverpb::auth_client::AuthClient;
use metastore_tests::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tonic::{Request, Status};

use crate::stage::{NAMESPACE, Stage, pods_of};

/// A call that takes longer is given up, and another member is asked.
const CALL_LIMIT: Duration = Duration::from_secs(1);

/// How a cluster is reached.
#[derive(Clone, Default)]
pub struct Access {
    tls: Option<Arc<ClientConfig>>,
    password: Option<String>,
}

impl Access {
    /// In plain text, without users.
    pub fn plain() -> Self {
        Self::default()
    }

    /// With the certificates and the password that the operator made, as a program in a Pod would.
    pub async fn secure(stage: &Stage, cluster: &str) -> Self {
        let secrets: Api<Secret> = Api::namespaced(stage.client.clone(), NAMESPACE);
        let secret = secrets.get(&format!("{cluster}-root")).await.unwrap();
        let password = secret.data.unwrap()["password"].0.clone();
        Self {
            password: Some(String::from_utf8(password).unwrap()),
            ..Self::encrypted(stage, cluster).await
        }
    }

    /// With certificates, and as nobody.
    pub async fn encrypted(stage: &Stage, cluster: &str) -> Self {
        let secrets: Api<Secret> = Api::namespaced(stage.client.clone(), NAMESPACE);
        let read = async |name: String, key: &str| {
            let secret = secrets.get(&name).await.unwrap();
            secret.data.unwrap()[key].0.clone()
        };
        let certificates = format!("{cluster}-client-tls");
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&read(certificates.clone(), "ca.crt").await)
        {
            roots.add(authority.unwrap()).unwrap();
        }
        let chain = CertificateDer::pem_slice_iter(&read(certificates.clone(), "tls.crt").await)
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(&read(certificates, "tls.key").await).unwrap();
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            tls: Some(Arc::new(config)),
            password: None,
        }
    }

    /// The same without a password.
    pub fn as_nobody(&self) -> Self {
        Self {
            tls: self.tls.clone(),
            password: None,
        }
    }

    /// A client of one member.
    pub async fn store(&self, member: &str, address: &str, cluster: &str) -> Result<Store, Status> {
        let client = match &self.tls {
            None => Client::with_timeout(&format!("http://{address}:2379"), CALL_LIMIT),
            Some(config) => Client::secure_as(
                &format!("{address}:2379"),
                &format!("{member}-0.{cluster}-peer.{NAMESPACE}.svc"),
                config.clone(),
            ),
        };
        let token = match &self.password {
            None => None,
            Some(password) => {
                let message = pb::AuthenticateRequest {
                    name: "root".into(),
                    password: password.clone(),
                };
                let mut auth = AuthClient::new(client.channel.clone());
                Some(limited(auth.authenticate(message)).await?.token)
            }
        };
        Ok(Store { client, token })
    }
}

/// A client of one member that is logged in where that is needed.
pub struct Store {
    client: Client,
    token: Option<String>,
}

async fn limited<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(CALL_LIMIT * 3, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}

impl Store {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("token", token.parse().unwrap());
        }
        request
    }

    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<(), Status> {
        let message = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.into().into(),
            ..Default::default()
        };
        limited(self.client.kv.clone().put(self.request(message))).await?;
        Ok(())
    }

    /// All pairs below a prefix, read linearizably.
    pub async fn pairs(&self, prefix: &str) -> Result<BTreeMap<String, String>, Status> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("a prefix is not empty") += 1;
        let message = pb::RangeRequest {
            key: prefix.to_owned().into(),
            range_end: end.into(),
            ..Default::default()
        };
        let answer = limited(self.client.kv.clone().range(self.request(message))).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(answer
            .kvs
            .iter()
            .map(metastore_tests::client::decode)
            .map(|pair| (text(&pair.key), text(&pair.value)))
            .collect())
    }
}

/// A client of any member that answers.
pub async fn any_store(stage: &Stage, access: &Access, cluster: &str) -> Store {
    metastore_tests::eventually("a member answers", crate::stage::LIMIT, || async {
        let mut last = "no Pod".to_owned();
        for (member, address) in stage.pods(cluster).await {
            match access.store(&member, &address, cluster).await {
                Ok(store) => match store.pairs("nothing/").await {
                    Ok(_) => return Ok(store),
                    Err(error) => last = error.to_string(),
                },
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    })
    .await
}

/// An API server that has not answered by then does not.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// A client that writes all the time.
pub struct Writer {
    prefix: String,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    longest_gap_ms: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

/// What was acknowledged to a writer: it must never be missing again.
pub struct Acknowledged {
    prefix: String,
    keys: Vec<String>,
}

impl Writer {
    /// A writer that tries the members in turn, finding them as the client Service would. Its keys begin
    /// with `prefix`, which no other writer uses.
    pub fn start(stage: &Stage, access: &Access, cluster: &str, prefix: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let longest_gap_ms = Arc::new(AtomicU64::new(0));
        let task = write(
            stage.client.clone(),
            access.clone(),
            (cluster.to_owned(), prefix.to_owned()),
            stop.clone(),
            acknowledged.clone(),
            longest_gap_ms.clone(),
        );
        Self {
            prefix: prefix.to_owned(),
            stop,
            acknowledged,
            longest_gap_ms,
            task: tokio::spawn(task),
        }
    }

    /// The longest time without an acknowledged write since the last call.
    pub fn take_gap(&self, what: &str) {
        let gap_ms = self.longest_gap_ms.swap(0, Ordering::Relaxed);
        eprintln!("  {what}: no write was acknowledged for at most {gap_ms} ms");
    }

    /// Ends it; returns what was acknowledged.
    pub async fn stop(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let keys = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        assert!(keys.len() > 20, "the writer hardly wrote: {}", keys.len());
        Acknowledged {
            prefix: self.prefix,
            keys,
        }
    }
}

async fn write(
    client: kube::Client,
    access: Access,
    (cluster, prefix): (String, String),
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    longest_gap_ms: Arc<AtomicU64>,
) {
    let mut number = 0u64;
    let mut last = Instant::now();
    let mut pods = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // As the Service does it, clients keep what they had while the API server is gone.
        let found = tokio::time::timeout(LOOK_LIMIT, pods_of(&client, &cluster)).await;
        match found {
            Ok(found) if !found.is_empty() => pods = found,
            _ => {}
        }
        for (member, address) in pods.clone() {
            let Ok(store) = access.store(&member, &address, &cluster).await else {
                continue;
            };
            for _ in 0..5 {
                number += 1;
                let key = format!("{prefix}{number:08}");
                if store.put(&key, key.clone()).await.is_err() {
                    break;
                }
                let passed = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
                longest_gap_ms.fetch_max(passed, Ordering::Relaxed);
                last = Instant::now();
                acknowledged.lock().unwrap().push(key);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Acknowledged {
    /// Looks for every acknowledged write.
    pub async fn check(&self, stage: &Stage, access: &Access, cluster: &str) {
        let store = any_store(stage, access, cluster).await;
        let found = store.pairs(&self.prefix).await.unwrap();
        let missing: Vec<_> = self
            .keys
            .iter()
            .filter(|key| found.get(*key) != Some(*key))
            .collect();
        assert!(
            missing.is_empty(),
            "acknowledged writes are lost: {missing:?}"
        );
        eprintln!("  {} acknowledged writes, all there", self.keys.len());
    }
}
