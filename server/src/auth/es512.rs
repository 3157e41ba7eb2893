//! Tokens signed with ES512, which the library for the other methods does not know.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use p521::SecretKey;
use p521::ecdsa::signature::{Signer as _, Verifier as _};
use p521::ecdsa::{Signature, SigningKey, VerifyingKey};
use serde::Deserialize;

const ALGORITHM: &str = "ES512";

/// A pair of keys; the first is missing when only the public one was given.
pub struct Es512 {
    signing: Option<SigningKey>,
    checking: VerifyingKey,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// The claims that are checked here. Numbers are floats as in every JSON reader of Go.
#[derive(Deserialize)]
struct Times {
    exp: Option<f64>,
    nbf: Option<f64>,
}

impl Es512 {
    /// Keys on the curve P-521.
    ///
    /// # Errors
    /// When the library does not take a key that it made itself, which does not happen.
    pub fn new(
        private: Option<&SecretKey>,
        public: &p521::PublicKey,
    ) -> Result<Self, p521::ecdsa::Error> {
        let signing = private
            .map(|key| SigningKey::from_slice(&key.to_bytes()))
            .transpose()?;
        let checking = VerifyingKey::from_sec1_bytes(&public.to_sec1_bytes())?;
        Ok(Self { signing, checking })
    }

    /// A token; nothing with a public key only.
    pub fn sign(&self, claims: &serde_json::Value) -> Option<String> {
        let key = self.signing.as_ref()?;
        let header = serde_json::json!({"alg": ALGORITHM, "typ": "JWT"});
        let signed = format!(
            "{}.{}",
            BASE64.encode(header.to_string()),
            BASE64.encode(claims.to_string())
        );
        let signature: Signature = key.sign(signed.as_bytes());
        Some(format!("{signed}.{}", BASE64.encode(signature.to_bytes())))
    }

    /// The claims of a token as JSON.
    ///
    /// # Errors
    /// Why it is none, or not one of now.
    pub fn verify(&self, token: &str) -> Result<Vec<u8>, &'static str> {
        let (signed, signature) = token.rsplit_once('.').ok_or("it has no signature")?;
        let (header, claims) = signed.split_once('.').ok_or("it has no claims")?;
        let read = |part: &str| BASE64.decode(part).map_err(|_| "a part of it is no base64");
        let header: Header =
            serde_json::from_slice(&read(header)?).map_err(|_| "its header is not JSON")?;
        if header.alg != ALGORITHM {
            return Err("it is signed with another method");
        }
        let signature =
            Signature::from_slice(&read(signature)?).map_err(|_| "its signature is none")?;
        self.checking
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| "its signature is wrong")?;
        let claims = read(claims)?;
        let times: Times =
            serde_json::from_slice(&claims).map_err(|_| "its claims are not JSON")?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        if times.exp.is_some_and(|end| now >= end) {
            return Err("its time is over");
        }
        if times.nbf.is_some_and(|start| now < start) {
            return Err("its time has not come");
        }
        Ok(claims)
    }
}
