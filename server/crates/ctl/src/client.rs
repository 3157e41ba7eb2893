//! The connection to a member: endpoints, TLS, tokens, deadlines.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use metastore_proto::etcdserverpb as pb;
use metastore_proto::etcdserverpb::auth_client::AuthClient;
use metastore_proto::etcdserverpb::cluster_client::ClusterClient;
use metastore_proto::etcdserverpb::kv_client::KvClient;
use metastore_proto::etcdserverpb::lease_client::LeaseClient;
use metastore_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use metastore_proto::etcdserverpb::watch_client::WatchClient;
use metastore_service_records::client_endpoints;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Uri};

use crate::failover::{Repeating, Rotation};
use crate::failure::{ExitCode, Failure};
use crate::flags::Arguments;
use crate::terminal;

/// The version of the API that this client speaks, as clientv3 3.7 announces it.
const API_VERSION: &str = "3.7";
/// Go's `math.MaxInt32`, the limit of answers unless `--max-recv-bytes` sets one.
const RECEIVE_BYTES_MAX: usize = i32::MAX as usize;

/// What the global flags say about connections.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The members to speak to: URLs, or `host:port`.
    pub endpoints: Vec<String>,
    /// How long a connection may take.
    pub dial_timeout: Duration,
    /// How long a short command may take.
    pub command_timeout: Duration,
    keep_alive_time: Duration,
    keep_alive_timeout: Duration,
    receive_bytes_max: usize,
    tls: TlsOptions,
    credentials: Credentials,
}

/// Files and switches of TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Certificate authorities in PEM; empty: the system's.
    pub ca_file: String,
    /// The client's certificate in PEM; empty: none.
    pub cert_file: String,
    /// Its key.
    pub key_file: String,
    /// Whether the server's certificate is not checked.
    pub skip_verify: bool,
    /// Whether a plain `host:port` means no TLS.
    pub insecure_transport: bool,
    /// The name that certificates must have, whatever the endpoints say; empty: the endpoint's own.
    pub server_name: String,
}

/// Who the client says it is.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Nobody.
    None,
    /// By a token.
    Token(String),
    /// By a password.
    Password {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
}

impl ClientOptions {
    /// Reads the global flags.
    ///
    /// # Errors
    /// Empty names of files, or a password that cannot be asked for.
    pub fn from_flags(arguments: &Arguments) -> Result<Self, Failure> {
        for name in ["cert", "key", "cacert"] {
            if arguments.is_set(name) && arguments.text(name).is_empty() {
                return Err(Failure::arguments(format!(
                    "empty string is passed to --{name} option"
                )));
            }
        }
        Ok(Self {
            endpoints: arguments.list("endpoints"),
            dial_timeout: arguments.duration("dial-timeout"),
            command_timeout: arguments.duration("command-timeout"),
            keep_alive_time: arguments.duration("keepalive-time"),
            keep_alive_timeout: arguments.duration("keepalive-timeout"),
            receive_bytes_max: match usize::try_from(arguments.number("max-recv-bytes")) {
                Ok(0) | Err(_) => RECEIVE_BYTES_MAX,
                Ok(bytes) => bytes,
            },
            tls: TlsOptions {
                ca_file: arguments.text("cacert").to_owned(),
                cert_file: arguments.text("cert").to_owned(),
                key_file: arguments.text("key").to_owned(),
                skip_verify: arguments.boolean("insecure-skip-tls-verify"),
                insecure_transport: arguments.boolean("insecure-transport"),
                server_name: match arguments.boolean("insecure-discovery") {
                    true => String::new(),
                    false => arguments.text("discovery-srv").to_owned(),
                },
            },
            credentials: Credentials::from_flags(
                arguments.text("user"),
                arguments.text("password"),
                arguments.text("auth-jwt-token"),
            )?,
        })
    }

    /// Takes the endpoints from the SRV records of `--discovery-srv`, if it is given and has any that may be
    /// used.
    ///
    /// # Errors
    /// The domain has no records.
    pub async fn discover(&mut self, arguments: &Arguments) -> Result<(), Failure> {
        let domain = arguments.text("discovery-srv");
        if domain.is_empty() {
            return Ok(());
        }
        let mut found = client_endpoints(domain, arguments.text("discovery-srv-name"))
            .await
            .map_err(Failure::error)?;
        if !arguments.boolean("insecure-discovery") {
            found.retain(|endpoint| {
                let is_secure = !endpoint.starts_with("http://");
                if !is_secure {
                    eprintln!("ignoring discovered insecure endpoint {endpoint:?}");
                }
                is_secure
            });
        }
        if !found.is_empty() {
            self.endpoints = found;
        }
        Ok(())
    }

    /// The same, for one endpoint.
    #[must_use]
    pub fn at(&self, endpoint: &str) -> Self {
        Self {
            endpoints: vec![endpoint.to_owned()],
            ..self.clone()
        }
    }

    /// The same with other TLS files and another identity: the destination of a mirror.
    #[must_use]
    pub fn with(&self, endpoint: &str, tls: TlsOptions, credentials: Credentials) -> Self {
        Self {
            tls,
            credentials,
            ..self.at(endpoint)
        }
    }
}

impl Credentials {
    /// By the values of `--user`, `--password` and a token.
    ///
    /// # Errors
    /// There is no password and no terminal to ask for it.
    pub fn from_flags(user: &str, password: &str, token: &str) -> Result<Self, Failure> {
        if !token.is_empty() {
            return Ok(Self::Token(token.to_owned()));
        }
        if user.is_empty() {
            return Ok(Self::None);
        }
        let (user, password) = match (password, user.split_once(':')) {
            ("", Some((user, password))) => (user.to_owned(), password.to_owned()),
            ("", None) => (user.to_owned(), terminal::ask_password("Password: ")?),
            (password, _) => (user.to_owned(), password.to_owned()),
        };
        Ok(Self::Password { user, password })
    }
}

/// Puts etcd's headers on each request.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    token: Option<MetadataValue<Ascii>>,
    require_leader: bool,
}

impl Interceptor for Headers {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        let headers = request.metadata_mut();
        headers.insert(
            "client-api-version",
            MetadataValue::from_static(API_VERSION),
        );
        if self.require_leader {
            headers.insert("hasleader", MetadataValue::from_static("true"));
        }
        if let Some(token) = &self.token {
            headers.insert("token", token.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Repeating, Headers>;

/// A connection to one member, and to another one when that is lost.
#[derive(Clone)]
pub struct Client {
    endpoints: Arc<Rotation>,
    /// How long a short command may take.
    pub command_timeout: Duration,
    channel: Repeating,
    headers: Headers,
    receive_bytes_max: usize,
}

impl Client {
    /// Connects to the first endpoint that answers, and authenticates there.
    ///
    /// # Errors
    /// No endpoint answers within the dial timeout, or the password is wrong.
    pub async fn connect(options: &ClientOptions) -> Result<Self, Failure> {
        let mut targets = Vec::new();
        let mut last = Failure::arguments("no endpoint is given");
        for endpoint in &options.endpoints {
            match Target::parse(endpoint, &options.tls) {
                Ok(target) => targets.push((endpoint.clone(), target)),
                Err(failure) => last = failure,
            }
        }
        let Some((endpoint, first)) = targets.first() else {
            return Err(last);
        };
        // The authority says nothing to a server; the names in certificates are those of the targets.
        let uri = Uri::builder()
            .scheme("http")
            .authority(first.authority())
            .path_and_query("/")
            .build()
            .map_err(|error| Failure::arguments(format!("endpoint {endpoint}: {error}")))?;
        let endpoints = Arc::new(Rotation::new(targets, options.dial_timeout));
        Self::connect_to(uri, endpoints, options).await
    }

    /// The endpoint that answered last.
    pub fn endpoint(&self) -> String {
        self.endpoints.current()
    }

    /// The same connection with another limit of a command's time.
    #[must_use]
    pub fn patient(self, command_timeout: Duration) -> Self {
        Self {
            command_timeout,
            ..self
        }
    }

    async fn connect_to(
        uri: Uri,
        endpoints: Arc<Rotation>,
        options: &ClientOptions,
    ) -> Result<Self, Failure> {
        let mut transport = Endpoint::from(uri);
        if !options.keep_alive_time.is_zero() {
            transport = transport
                .http2_keep_alive_interval(metastore_proto::ping_interval(options.keep_alive_time))
                .keep_alive_timeout(options.keep_alive_timeout)
                .keep_alive_while_idle(false);
        }
        let rotation = Arc::clone(&endpoints);
        let connector = tower::service_fn(move |_: Uri| {
            let rotation = Arc::clone(&rotation);
            async move { rotation.connect().await.map(TokioIo::new) }
        });
        let channel = transport
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::error(root_cause(&error)))?;
        let mut client = Self {
            endpoints,
            command_timeout: options.command_timeout,
            channel: Repeating(channel),
            headers: Headers::default(),
            receive_bytes_max: options.receive_bytes_max,
        };
        client
            .authenticate(&options.credentials)
            .await
            .map_err(|failure| Failure::new(ExitCode::BadConnection, failure.message))?;
        Ok(client)
    }

    async fn authenticate(&mut self, credentials: &Credentials) -> Result<(), Failure> {
        let token = match credentials {
            Credentials::None => return Ok(()),
            Credentials::Token(token) => token.clone(),
            Credentials::Password { user, password } => {
                let request = pb::AuthenticateRequest {
                    name: user.clone(),
                    password: password.clone(),
                };
                match self.auth().authenticate(request).await {
                    Ok(answer) => answer.into_inner().token,
                    // As clientv3: a server without authentication needs no token.
                    Err(status)
                        if status.message() == "etcdserver: authentication is not enabled" =>
                    {
                        return Ok(());
                    }
                    Err(status) => return Err(status.into()),
                }
            }
        };
        let value = token
            .parse()
            .map_err(|_| Failure::arguments("the token has characters that no header takes"))?;
        self.headers.token = Some(value);
        Ok(())
    }

    fn service(&self, require_leader: bool) -> Service {
        let headers = Headers {
            require_leader,
            ..self.headers.clone()
        };
        InterceptedService::new(self.channel.clone(), headers)
    }

    /// The KV service.
    pub fn kv(&self) -> KvClient<Service> {
        KvClient::new(self.service(false)).max_decoding_message_size(self.receive_bytes_max)
    }

    /// The Watch service; it answers only while there is a leader.
    pub fn watch(&self) -> WatchClient<Service> {
        WatchClient::new(self.service(true)).max_decoding_message_size(self.receive_bytes_max)
    }

    /// The Lease service.
    pub fn lease(&self) -> LeaseClient<Service> {
        LeaseClient::new(self.service(false))
    }

    /// The Lease service for renewals, which need a leader.
    pub fn lease_keep_alive(&self) -> LeaseClient<Service> {
        LeaseClient::new(self.service(true))
    }

    /// The Cluster service.
    pub fn cluster(&self) -> ClusterClient<Service> {
        ClusterClient::new(self.service(false))
    }

    /// The Maintenance service.
    pub fn maintenance(&self) -> MaintenanceClient<Service> {
        MaintenanceClient::new(self.service(false))
            .max_decoding_message_size(self.receive_bytes_max)
    }

    /// The Auth service.
    pub fn auth(&self) -> AuthClient<Service> {
        AuthClient::new(self.service(false))
    }

    /// Bounds a short command by `--command-timeout`.
    ///
    /// # Errors
    /// The call's, or the time is over.
    pub async fn within<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.command_timeout, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Failure::error("context deadline exceeded")),
        }
    }
}

/// What an error comes from.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Where an endpoint is.
#[derive(Clone)]
pub struct Target {
    address: Address,
    tls: Option<(Arc<ClientConfig>, String)>,
}

#[derive(Clone)]
enum Address {
    Tcp(String),
    Unix(String),
}

/// A connection, of whatever kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
/// A connection to an endpoint.
pub type TargetStream = Box<dyn Stream>;

impl Target {
    fn parse(endpoint: &str, options: &TlsOptions) -> Result<Self, Failure> {
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
        // clientv3 uses TLS where files for it are given, also for plain addresses.
        let has_files = !options.ca_file.is_empty() || !options.cert_file.is_empty();
        let secure = match scheme {
            "https" | "unixs" => true,
            "http" | "unix" => false,
            "" => has_files || options.skip_verify || !options.insecure_transport,
            other => {
                return Err(Failure::arguments(format!(
                    "endpoint {endpoint}: the scheme {other} is not known"
                )));
            }
        };
        let rest = rest.trim_end_matches('/');
        let (address, host) = match scheme {
            "unix" | "unixs" => (Address::Unix(rest.to_owned()), "localhost".to_owned()),
            _ => {
                let (host, _) = rest.rsplit_once(':').ok_or_else(|| {
                    Failure::arguments(format!("endpoint {endpoint} has no port"))
                })?;
                let host = host.trim_matches(['[', ']']).to_owned();
                (Address::Tcp(rest.to_owned()), host)
            }
        };
        let host = match options.server_name.as_str() {
            "" => host,
            name => name.to_owned(),
        };
        let tls = match secure {
            true => Some((Arc::new(client_config(options)?), host)),
            false => None,
        };
        Ok(Self { address, tls })
    }

    fn authority(&self) -> &str {
        match &self.address {
            Address::Tcp(authority) => authority,
            Address::Unix(_) => "localhost",
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Those of the network and of TLS.
    pub async fn connect(&self) -> std::io::Result<TargetStream> {
        let stream: TargetStream = match &self.address {
            Address::Tcp(authority) => {
                let stream = tokio::net::TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
        };
        let Some((config, host)) = &self.tls else {
            return Ok(stream);
        };
        let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
        Ok(Box::new(connector.connect(name, stream).await?))
    }
}

/// TLS as the flags ask for it, with HTTP/2.
///
/// # Errors
/// A file cannot be read or holds no certificate or key.
pub fn client_config(options: &TlsOptions) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::error(error.to_string()))?;
    let builder = if options.skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
    } else {
        builder.with_root_certificates(root_certificates(&options.ca_file)?)
    };
    let mut config = if options.cert_file.is_empty() {
        builder.with_no_client_auth()
    } else {
        let key_file = match options.key_file.as_str() {
            "" => &options.cert_file,
            file => file,
        };
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|error| Failure::arguments(format!("{key_file}: {error}")))?;
        builder
            .with_client_auth_cert(certificates(&options.cert_file)?, key)
            .map_err(|error| Failure::arguments(format!("{}: {error}", options.cert_file)))?
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let failed = |error| Failure::arguments(format!("{file}: {error}"));
    CertificateDer::pem_file_iter(file)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)
}

fn root_certificates(file: &str) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    if file.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        for certificate in certificates(file)? {
            roots
                .add(certificate)
                .map_err(|error| Failure::arguments(format!("{file}: {error}")))?;
        }
    }
    Ok(roots)
}

/// Accepts every certificate: `--insecure-skip-tls-verify`.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
