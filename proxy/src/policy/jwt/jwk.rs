//! Keys of an issuer (JWKS, RFC 7517), and signatures by them (JWS, RFC 7515 and RFC 7518 §3).

use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;

use super::{TokenError, decode};

/// Most keys of an issuer.
const KEYS_MAX: usize = 64;
/// Longest text of keys, in bytes.
pub(crate) const JWKS_BYTES_MAX: usize = 256 * 1024;

/// Keys of an issuer.
#[derive(Debug, Clone)]
pub(crate) struct Keys(Arc<[Key]>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The one algorithm that it is for, if it says so.
    algorithm: Option<String>,
    half: Half,
}

/// The public half.
#[derive(Debug)]
enum Half {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point, uncompressed.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > JWKS_BYTES_MAX {
            return Err(format!("{} bytes of keys; at most {JWKS_BYTES_MAX} are allowed", text.len()));
        }
        let set: Set = serde_json::from_slice(text).map_err(|error| format!("no JWKS: {error}"))?;
        if set.keys.len() > KEYS_MAX {
            return Err(format!("{} keys; at most {KEYS_MAX} are allowed", set.keys.len()));
        }
        let keys: Vec<_> = set.keys.into_iter().filter_map(Key::of).collect();
        if keys.is_empty() {
            return Err("no key that signs: allowed are RSA, EC (P-256, P-384) and Ed25519".to_owned());
        }
        Ok(Self(keys.into()))
    }

    /// Whether one of them has made the signature.
    ///
    /// # Errors
    /// If none has, or none is for that.
    pub fn verify(
        &self,
        algorithm: &str,
        id: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), TokenError> {
        let mut failed = TokenError::NoKey;
        for key in self.0.iter() {
            let is_it = id.is_none() || key.id.is_none() || key.id.as_deref() == id;
            let is_for_it = key.algorithm.as_ref().is_none_or(|only| only == algorithm);
            if !is_it || !is_for_it {
                continue;
            }
            match key.half.verify(algorithm, signed, signature) {
                Some(true) => return Ok(()),
                Some(false) => failed = TokenError::Signature,
                None => {}
            }
        }
        Err(failed)
    }
}

impl Key {
    /// None for a key that signs no tokens, or in a way that is not taken. A secret that this proxy knew could be used to
    /// make tokens here.
    fn of(jwk: Jwk) -> Option<Self> {
        if jwk.purpose.as_ref().is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| decode(text.as_ref()?.as_bytes()).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
            (x.len() == length && y.len() == length).then(|| [&[4], &x[..], &y[..]].concat())
        };
        let half = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => Half::Rsa { n: bytes(&jwk.n)?, e: bytes(&jwk.e)? },
            ("EC", Some("P-256")) => Half::P256(point(32)?),
            ("EC", Some("P-384")) => Half::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Half::Ed25519(bytes(&jwk.x)?),
            _ => return None,
        };
        Some(Self { id: jwk.kid, algorithm: jwk.alg, half })
    }
}

impl Half {
    /// None if the key is not for this algorithm.
    fn verify(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> Option<bool> {
        let by = |with: &'static dyn VerificationAlgorithm, point: &[u8]| {
            Some(UnparsedPublicKey::new(with, point).verify(signed, signature).is_ok())
        };
        match (self, algorithm) {
            (Self::Rsa { n, e }, algorithm) => {
                let key = RsaPublicKeyComponents { n, e };
                Some(key.verify(rsa(algorithm)?, signed, signature).is_ok())
            }
            (Self::P256(point), "ES256") => by(&ECDSA_P256_SHA256_FIXED, point),
            (Self::P384(point), "ES384") => by(&ECDSA_P384_SHA384_FIXED, point),
            (Self::Ed25519(key), "EdDSA" | "Ed25519") => by(&ED25519, key),
            _ => None,
        }
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &RSA_PSS_2048_8192_SHA256,
        "PS384" => &RSA_PSS_2048_8192_SHA384,
        "PS512" => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}
