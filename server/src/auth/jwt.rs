//! JSON web tokens: signed by the member that answers, read by every member with the key.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::{DecodePublicKey as _, EncodePrivateKey as _};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use metastore_auth::Identity;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::pkcs8::DecodePrivateKey as _;
use rsa::pkcs1::{
    DecodeRsaPrivateKey as _, DecodeRsaPublicKey as _, EncodeRsaPrivateKey as _,
    EncodeRsaPublicKey as _,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use x509_parser::pem::parse_x509_pem;

use super::es512::Es512;
use super::token_provider::TokenOptionsError;
use crate::config::parse_duration;

/// Life of a token when `ttl` is not given; etcd's.
const DEFAULT_TTL: Duration = Duration::from_secs(5 * 60);
/// Options that mean something; others are ignored with a warning, as in etcd.
const KNOWN_OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

/// Length of the lines of a PEM file.
const PEM_LINE_BYTES: usize = 64;

/// What a token says. Numbers are floats as in every JSON reader of Go.
#[derive(Deserialize)]
struct Claims {
    username: String,
    revision: f64,
}

/// Signs and checks tokens.
pub struct JwtProvider {
    method: Method,
    ttl: Duration,
}

/// How tokens are signed.
enum Method {
    Library {
        algorithm: Algorithm,
        /// Nothing with a public key only: this member can check tokens and not make any.
        signing_key: Option<EncodingKey>,
        checking_key: DecodingKey,
        validation: Box<Validation>,
    },
    Es512(Box<Es512>),
}

/// A pair of keys; the first is missing when only the public one was given.
type Keys = (Option<EncodingKey>, DecodingKey);

fn algorithm(name: &str) -> Result<Algorithm, TokenOptionsError> {
    name.parse().map_err(|_| {
        TokenOptionsError::invalid(format!(
            "sign-method is one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, \
             EdDSA, HS256, HS384, HS512, not {name:?}"
        ))
    })
}

fn read(options: &BTreeMap<&str, &str>, name: &str) -> Result<Option<Vec<u8>>, TokenOptionsError> {
    let Some(path) = options.get(name).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    std::fs::read(path)
        .map(Some)
        .map_err(|error| TokenOptionsError::invalid(format!("{name} {path}: {error}")))
}

fn pem(file: Option<&[u8]>) -> Result<Option<&str>, TokenOptionsError> {
    file.map(std::str::from_utf8)
        .transpose()
        .map_err(|_| TokenOptionsError::invalid("a key file is no PEM file"))
}

/// The PEM text of a public key, which may stand inside a certificate.
fn public_pem(file: Option<&[u8]>) -> Result<Option<Cow<'_, str>>, TokenOptionsError> {
    let Some(text) = pem(file)? else {
        return Ok(None);
    };
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(Some(Cow::Borrowed(text)));
    }
    let no_certificate = |error: &dyn std::fmt::Display| {
        TokenOptionsError::invalid(format!("pub-key holds a certificate that is none: {error}"))
    };
    let (_, block) = parse_x509_pem(text.as_bytes()).map_err(|error| no_certificate(&error))?;
    let certificate = block.parse_x509().map_err(|error| no_certificate(&error))?;
    let key = BASE64.encode(certificate.public_key().raw);
    let lines: Vec<&str> = (0..key.len())
        .step_by(PEM_LINE_BYTES)
        .map(|start| &key[start..key.len().min(start + PEM_LINE_BYTES)])
        .collect();
    Ok(Some(Cow::Owned(format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        lines.join("\n")
    ))))
}

fn wrong_key(name: &str, error: impl std::fmt::Display) -> TokenOptionsError {
    TokenOptionsError::invalid(format!("{name} does not fit the sign-method: {error}"))
}

fn rsa_keys(private: Option<&str>, public: Option<&str>) -> Result<Keys, TokenOptionsError> {
    let private = private
        .map(|pem| {
            rsa::RsaPrivateKey::from_pkcs8_pem(pem)
                .or_else(|_| rsa::RsaPrivateKey::from_pkcs1_pem(pem))
                .map_err(|error| wrong_key("priv-key", error))
        })
        .transpose()?;
    let public = public
        .map(|pem| {
            rsa::RsaPublicKey::from_public_key_pem(pem)
                .or_else(|_| rsa::RsaPublicKey::from_pkcs1_pem(pem))
                .map_err(|error| wrong_key("pub-key", error))
        })
        .transpose()?;
    let own = private.as_ref().map(rsa::RsaPrivateKey::to_public_key);
    let public = matching(own, public)?
        .to_pkcs1_der()
        .map_err(|error| wrong_key("pub-key", error))?;
    let private = private
        .map(|key| key.to_pkcs1_der())
        .transpose()
        .map_err(|error| wrong_key("priv-key", error))?;
    Ok((
        private.map(|der| EncodingKey::from_rsa_der(der.as_bytes())),
        DecodingKey::from_rsa_der(public.as_bytes()),
    ))
}

macro_rules! elliptic_keys {
    ($name:ident, $curve:ident) => {
        fn $name(private: Option<&str>, public: Option<&str>) -> Result<Keys, TokenOptionsError> {
            let private = private
                .map(|pem| {
                    $curve::SecretKey::from_sec1_pem(pem)
                        .or_else(|_| $curve::SecretKey::from_pkcs8_pem(pem))
                        .map_err(|error| wrong_key("priv-key", error))
                })
                .transpose()?;
            let public = public
                .map(|pem| {
                    $curve::PublicKey::from_public_key_pem(pem)
                        .map_err(|error| wrong_key("pub-key", error))
                })
                .transpose()?;
            let own = private.as_ref().map($curve::SecretKey::public_key);
            let public = matching(own, public)?.to_encoded_point(false);
            let private = private
                .map(|key| key.to_pkcs8_der())
                .transpose()
                .map_err(|error| wrong_key("priv-key", error))?;
            Ok((
                private.map(|der| EncodingKey::from_ec_der(der.as_bytes())),
                DecodingKey::from_ec_der(public.as_bytes()),
            ))
        }
    };
}

elliptic_keys!(p256_keys, p256);
elliptic_keys!(p384_keys, p384);

fn p521_keys(private: Option<&str>, public: Option<&str>) -> Result<Es512, TokenOptionsError> {
    let private = private
        .map(|pem| {
            p521::SecretKey::from_sec1_pem(pem)
                .or_else(|_| p521::SecretKey::from_pkcs8_pem(pem))
                .map_err(|error| wrong_key("priv-key", error))
        })
        .transpose()?;
    let public = public
        .map(|pem| {
            p521::PublicKey::from_public_key_pem(pem).map_err(|error| wrong_key("pub-key", error))
        })
        .transpose()?;
    let own = private.as_ref().map(p521::SecretKey::public_key);
    Es512::new(private.as_ref(), &matching(own, public)?)
        .map_err(|error| wrong_key("priv-key", error))
}

fn ed25519_keys(private: Option<&str>, public: Option<&str>) -> Result<Keys, TokenOptionsError> {
    let private = private
        .map(|pem| {
            ed25519_dalek::SigningKey::from_pkcs8_pem(pem)
                .map_err(|error| wrong_key("priv-key", error))
        })
        .transpose()?;
    let public = public
        .map(|pem| {
            ed25519_dalek::VerifyingKey::from_public_key_pem(pem)
                .map_err(|error| wrong_key("pub-key", error))
        })
        .transpose()?;
    let own = private
        .as_ref()
        .map(ed25519_dalek::SigningKey::verifying_key);
    let public = matching(own, public)?;
    let private = private
        .map(|key| key.to_pkcs8_der())
        .transpose()
        .map_err(|error| wrong_key("priv-key", error))?;
    Ok((
        private.map(|der| EncodingKey::from_ed_der(der.as_bytes())),
        DecodingKey::from_ed_der(public.as_bytes()),
    ))
}

fn secret(private: Option<&[u8]>) -> Result<Keys, TokenOptionsError> {
    let secret = private
        .filter(|secret| !secret.is_empty())
        .ok_or_else(|| missing_key("an HMAC secret is given with priv-key"))?;
    Ok((
        Some(EncodingKey::from_secret(secret)),
        DecodingKey::from_secret(secret),
    ))
}

fn missing_key(detail: &str) -> TokenOptionsError {
    TokenOptionsError::new("auth: missing key data", detail)
}

/// The public key: of the private key, or by itself; if both are given they must be the same.
fn matching<K: PartialEq>(own: Option<K>, given: Option<K>) -> Result<K, TokenOptionsError> {
    match (own, given) {
        (Some(own), Some(given)) if own != given => Err(TokenOptionsError::new(
            "auth: public and private keys don't match",
            "",
        )),
        (Some(own), _) => Ok(own),
        (None, Some(given)) => Ok(given),
        (None, None) => Err(missing_key(
            "give priv-key, or pub-key to only check tokens",
        )),
    }
}

impl JwtProvider {
    /// The provider of `--auth-token jwt,…`; reads the key files.
    ///
    /// # Errors
    /// When an option or a key is wrong.
    pub fn from_options(options: &BTreeMap<&str, &str>) -> Result<Self, TokenOptionsError> {
        let ttl = match options.get("ttl").filter(|ttl| !ttl.is_empty()) {
            // A life that is negative is over at once.
            Some(ttl) => parse_duration(ttl)
                .map(|nanoseconds| Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)))
                .map_err(|_| TokenOptionsError::invalid(format!("ttl {ttl:?} is no duration")))?,
            None => DEFAULT_TTL,
        };
        let public = read(options, "pub-key")?;
        let private = read(options, "priv-key")?;
        let unknown: Vec<&str> = options
            .keys()
            .copied()
            .filter(|name| !KNOWN_OPTIONS.contains(name))
            .collect();
        if !unknown.is_empty() {
            tracing::warn!(keys = ?unknown, "unknown JWT options");
        }
        let (public, private) = (public.as_deref(), private.as_deref());
        let name = options.get("sign-method").copied().unwrap_or_default();
        if name == "ES512" {
            let keys = p521_keys(pem(private)?, public_pem(public)?.as_deref())?;
            return Ok(Self {
                method: Method::Es512(Box::new(keys)),
                ttl,
            });
        }
        let algorithm = algorithm(name)?;
        let (signing_key, checking_key) = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => secret(private)?,
            Algorithm::ES256 => p256_keys(pem(private)?, public_pem(public)?.as_deref())?,
            Algorithm::ES384 => p384_keys(pem(private)?, public_pem(public)?.as_deref())?,
            Algorithm::EdDSA => ed25519_keys(pem(private)?, pem(public)?)?,
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => rsa_keys(pem(private)?, public_pem(public)?.as_deref())?,
            other => {
                return Err(TokenOptionsError::invalid(format!(
                    "sign-method {other:?} is not supported"
                )));
            }
        };
        let mut validation = Validation::new(algorithm);
        // As etcd's library: the times count to the second where they are there.
        validation.required_spec_claims = HashSet::new();
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 0;
        // A token is over in the second that it names, as with Go's library.
        validation.reject_tokens_expiring_in_less_than = 1;
        Ok(Self {
            method: Method::Library {
                algorithm,
                signing_key,
                checking_key,
                validation: Box::new(validation),
            },
            ttl,
        })
    }

    /// A token for a user as of an auth revision. `None`: this member has the public key only.
    pub fn sign(&self, username: &str, revision: u64) -> Option<String> {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let claims = serde_json::json!({
            "username": username,
            "revision": revision,
            "exp": since_epoch.saturating_add(self.ttl).as_secs(),
        });
        let (algorithm, key) = match &self.method {
            Method::Es512(keys) => return keys.sign(&claims),
            Method::Library {
                algorithm,
                signing_key,
                ..
            } => (*algorithm, signing_key.as_ref()?),
        };
        match jsonwebtoken::encode(&Header::new(algorithm), &claims, key) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::error!(%error, "failed to sign a JWT token");
                None
            }
        }
    }

    /// The identity that a token states; `None` when it is no token of ours or its time is over.
    pub fn verify(&self, token: &str) -> Option<Identity> {
        let claims = match &self.method {
            Method::Library {
                checking_key,
                validation,
                ..
            } => jsonwebtoken::decode::<Claims>(token, checking_key, validation)
                .map(|parsed| parsed.claims)
                .map_err(|error| error.to_string()),
            Method::Es512(keys) => keys
                .verify(token)
                .map_err(str::to_owned)
                .and_then(|claims| {
                    serde_json::from_slice(&claims).map_err(|error| error.to_string())
                }),
        };
        match claims {
            Ok(claims) => Some(Identity {
                username: claims.username.into(),
                // Go cuts off the fraction, too.
                revision: claims.revision as u64,
            }),
            Err(error) => {
                tracing::warn!(error, "failed to parse a JWT token");
                None
            }
        }
    }
}

/// What stands in the log for a token: the beginning of its hash.
pub fn fingerprint(token: &[u8]) -> String {
    Sha256::digest(token)
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use p256::pkcs8::{EncodePublicKey, LineEnding};
    use rsa::rand_core::OsRng;

    use super::*;

    /// Writes a pair of keys as `NAME.key` and `NAME.pub`.
    fn write_keys(folder: &Path, name: &str, private: &str, public: &str) {
        std::fs::write(folder.join(format!("{name}.key")), private).unwrap();
        std::fs::write(folder.join(format!("{name}.pub")), public).unwrap();
    }

    fn make_keys(folder: &Path, name: &str) {
        let ending = LineEnding::LF;
        let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let public = rsa.to_public_key();
        write_keys(
            folder,
            &format!("{name}-rsa"),
            &rsa.to_pkcs8_pem(ending).unwrap(),
            &public.to_public_key_pem(ending).unwrap(),
        );
        write_keys(
            folder,
            &format!("{name}-rsa-pkcs1"),
            &rsa.to_pkcs1_pem(ending).unwrap(),
            &public.to_pkcs1_pem(ending).unwrap(),
        );
        let p256 = p256::SecretKey::random(&mut OsRng);
        let public = p256.public_key().to_public_key_pem(ending).unwrap();
        write_keys(
            folder,
            &format!("{name}-p256"),
            &p256.to_sec1_pem(ending).unwrap(),
            &public,
        );
        let p384 = p384::SecretKey::random(&mut OsRng);
        let public = p384.public_key().to_public_key_pem(ending).unwrap();
        write_keys(
            folder,
            &format!("{name}-p384"),
            &p384.to_pkcs8_pem(ending).unwrap(),
            &public,
        );
        let p521 = p521::SecretKey::random(&mut OsRng);
        let public = p521.public_key().to_public_key_pem(ending).unwrap();
        write_keys(
            folder,
            &format!("{name}-p521"),
            &p521.to_sec1_pem(ending).unwrap(),
            &public,
        );
        let seed = name.bytes().fold(0, u8::wrapping_add);
        let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let public = ed25519.verifying_key();
        write_keys(
            folder,
            &format!("{name}-ed"),
            &ed25519.to_pkcs8_pem(ending).unwrap(),
            &public.to_public_key_pem(ending).unwrap(),
        );
        write_keys(folder, &format!("{name}-secret"), name, "");
    }

    fn provider(options: &[(&str, &str)]) -> Result<JwtProvider, String> {
        let options = options.iter().copied().collect();
        JwtProvider::from_options(&options).map_err(|error| error.to_string())
    }

    const METHODS: [(&str, &str); 14] = [
        ("RS256", "rsa"),
        ("RS384", "rsa"),
        ("RS512", "rsa-pkcs1"),
        ("PS256", "rsa"),
        ("PS384", "rsa-pkcs1"),
        ("PS512", "rsa"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("ES512", "p521"),
        ("EdDSA", "ed"),
        ("HS256", "secret"),
        ("HS384", "secret"),
        ("HS512", "secret"),
        ("RS256", "rsa-pkcs1"),
    ];

    #[test]
    fn tokens_are_read_by_who_has_the_key_and_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        make_keys(folder.path(), "own");
        make_keys(folder.path(), "other");
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for (method, kind) in METHODS {
            let private = file(&format!("own-{kind}.key"));
            let public = file(&format!("own-{kind}.pub"));
            let own = provider(&[("sign-method", method), ("priv-key", &private)]).unwrap();
            let token = own.sign("alice", 7).unwrap();
            let alice = Identity {
                username: "alice".into(),
                revision: 7,
            };
            assert_eq!(own.verify(&token), Some(alice.clone()), "{method}");
            let cut = &token[..token.len() - 8];
            assert_eq!(own.verify(cut), None, "{method}");

            let foreign = file(&format!("other-{kind}.key"));
            let other = provider(&[("sign-method", method), ("priv-key", &foreign)]).unwrap();
            assert_eq!(other.verify(&token), None, "{method}");
            if kind == "secret" {
                continue;
            }
            let reader = provider(&[("sign-method", method), ("pub-key", &public)]).unwrap();
            assert_eq!(reader.verify(&token), Some(alice.clone()), "{method}");
            assert_eq!(reader.sign("alice", 7), None, "{method}");
            let both = [
                ("sign-method", method),
                ("priv-key", &private),
                ("pub-key", &public),
            ];
            assert!(provider(&both).is_ok(), "{method}");
            let wrong = [
                ("sign-method", method),
                ("priv-key", &foreign),
                ("pub-key", &public),
            ];
            assert_eq!(
                provider(&wrong).err().as_deref(),
                Some("--auth-token: auth: public and private keys don't match"),
                "{method}"
            );
        }
        // A key of another kind.
        let key = file("own-rsa.key");
        assert!(provider(&[("sign-method", "ES256"), ("priv-key", &key)]).is_err());
        for method in ["RS256", "ES256", "EdDSA", "HS256"] {
            let error = provider(&[("sign-method", method)]).err().unwrap();
            assert!(
                error.starts_with("--auth-token: auth: missing key data"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_public_key_may_stand_in_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for (method, kind) in [
            ("ES256", &rcgen::PKCS_ECDSA_P256_SHA256),
            ("ES384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ] {
            let key = rcgen::KeyPair::generate_for(kind).unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["tokens".to_owned()])
                .unwrap()
                .self_signed(&key)
                .unwrap();
            std::fs::write(file("key"), key.serialize_pem()).unwrap();
            std::fs::write(file("certificate"), certificate.pem()).unwrap();
            let (private, public) = (file("key"), file("certificate"));
            let signs = provider(&[("sign-method", method), ("priv-key", &private)]).unwrap();
            let reads = provider(&[("sign-method", method), ("pub-key", &public)]).unwrap();
            let token = signs.sign("alice", 7).unwrap();
            assert!(reads.verify(&token).is_some(), "{method}");
        }
        let broken = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
        std::fs::write(file("broken"), broken).unwrap();
        let broken = file("broken");
        let error = provider(&[("sign-method", "RS256"), ("pub-key", &broken)]).err();
        assert!(error.unwrap().contains("a certificate that is none"));
    }

    #[test]
    fn a_token_of_es512_counts_in_its_time() {
        let key = p521::SecretKey::random(&mut OsRng);
        let keys = Es512::new(Some(&key), &key.public_key()).unwrap();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        for (claims, counts) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"exp": now + 60, "nbf": now - 60}), true),
            (serde_json::json!({"exp": now}), false),
            (serde_json::json!({"nbf": now + 60}), false),
            (serde_json::json!({"exp": "soon"}), false),
        ] {
            let token = keys.sign(&claims).unwrap();
            assert_eq!(keys.verify(&token).is_ok(), counts, "{claims}");
            // Every part is signed.
            let mut other = token.into_bytes();
            let middle = other.len() / 3;
            other[middle] = if other[middle] == b'a' { b'b' } else { b'a' };
            assert!(keys.verify(std::str::from_utf8(&other).unwrap()).is_err());
        }
        let unsigned = "eyJhbGciOiJub25lIn0.e30.";
        assert_eq!(
            keys.verify(unsigned).err(),
            Some("it is signed with another method")
        );
    }

    #[test]
    fn a_token_of_another_method_or_time_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, b"binary \xff secret").unwrap();
        let secret = secret.to_str().unwrap();
        let of = |method, ttl| {
            provider(&[("sign-method", method), ("priv-key", secret), ("ttl", ttl)]).unwrap()
        };
        let provider = of("HS256", "1h");
        assert!(
            provider
                .verify(&of("HS384", "1h").sign("a", 1).unwrap())
                .is_none()
        );
        assert!(
            provider
                .verify(&of("HS256", "-2s").sign("a", 1).unwrap())
                .is_none()
        );
        let key = EncodingKey::from_secret(b"binary \xff secret");
        let sign = |claims: serde_json::Value| {
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
        };
        let good = serde_json::json!({"username": "a", "revision": 3});
        assert_eq!(
            provider
                .verify(&sign(good))
                .map(|identity| identity.revision),
            Some(3)
        );
        for bad in [
            serde_json::json!({"username": "a"}),
            serde_json::json!({"revision": 3}),
            serde_json::json!({"username": 1, "revision": 3}),
            serde_json::json!({"username": "a", "revision": "3"}),
            serde_json::json!({"username": "a", "revision": 3, "exp": 1}),
        ] {
            assert_eq!(provider.verify(&sign(bad.clone())), None, "{bad}");
        }
        for bad in ["", ".", "a.b", "a.b.c", "abcdefghijklmnop.1"] {
            assert_eq!(provider.verify(bad), None, "{bad}");
        }
    }
}
