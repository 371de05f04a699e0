//! Tokens of callers (JWT, RFC 7519): whose they are, and whether they hold now. Pure but for the keys, which are made anew
//! when their source changes; `crate::jwks` fetches those that a service publishes.
//!
//! Only signatures by keys of which the other half stays with the issuer are taken (RS, PS, ES, EdDSA), and of these only what the
//! key is for: a token does not choose how it is verified (RFC 8725 §3.1). It must end (`exp`), and come from an issuer that
//! is named.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use weft_xds_proto::resource::guard::{JwksUri, TokenIssuer};

use crate::jwks::{self, Sources};
use crate::tls::live::{Certificates, InUse, Live, Made};

mod jwk;
mod told;

pub(crate) use jwk::{JWKS_BYTES_MAX, Keys};

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Whose tokens are taken.
#[derive(Debug)]
pub(crate) struct Tokens {
    issuers: Box<[Issuer]>,
}

#[derive(Debug)]
struct Issuer {
    rule: TokenIssuer,
    keys: Source,
}

#[derive(Debug)]
enum Source {
    /// A text or a file.
    Here(Arc<Live<Keys>>),
    /// A service of the mesh.
    Fetched(Arc<jwks::Source>),
}

impl Source {
    fn current(&self) -> Arc<InUse<Keys>> {
        match self {
            Self::Here(live) => live.current(),
            Self::Fetched(source) => source.keys.current(),
        }
    }
}

/// A token that holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    /// `ISSUER/SUBJECT`.
    pub principal: String,
    /// The app is to see it.
    pub forward: bool,
}

/// Why a token does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("several tokens are given")]
    Several,
    #[error("the token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is no JWT")]
    Malformed,
    #[error("its issuer is not trusted here")]
    Issuer,
    #[error("there is no key for it")]
    NoKey,
    #[error("the keys of its issuer are not known yet")]
    NoKeys,
    #[error("its signature does not hold")]
    Signature,
    #[error("it has ended")]
    Expired,
    #[error("it does not hold yet")]
    NotYet,
    #[error("it is for another audience")]
    Audience,
}

/// Of a token, before its signature is looked at (RFC 7515 §4.1).
#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// What must be understood, and is not.
    crit: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    sub: String,
    /// NumericDate, which may have a fraction.
    exp: f64,
    nbf: Option<f64>,
    aud: Option<Audience>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Tokens {
    /// None if no tokens are taken.
    pub fn new(
        service: &str,
        rules: &[TokenIssuer],
        certificates: &Certificates,
        sources: &Sources,
    ) -> Option<Self> {
        let issuer = |rule: &TokenIssuer| {
            if let Some(uri) = rule.jwks_uri.as_deref().and_then(|uri| JwksUri::parse(uri).ok()) {
                let refresh = Duration::from_secs(rule.jwks_refresh_secs.max(1));
                let source = sources.source(uri, refresh, certificates);
                return Issuer { rule: rule.clone(), keys: Source::Fetched(source) };
            }
            let files = rule.jwks_file.iter().map(PathBuf::from).collect();
            let (what, source) = (format!("tokens of {} for {service}", rule.issuer), rule.clone());
            let keys = certificates.live(what, files, Vec::new(), move |_| keys(&source));
            Issuer { rule: rule.clone(), keys: Source::Here(keys) }
        };
        (!rules.is_empty()).then(|| Self { issuers: rules.iter().map(issuer).collect() })
    }

    /// The token of a request, if it has one. `now` in seconds of the Unix epoch.
    ///
    /// # Errors
    /// If it has one that does not hold.
    pub fn verify(&self, headers: &HeaderMap, now: u64) -> Result<Option<Verified>, TokenError> {
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        let Some(field) = fields.next() else { return Ok(None) };
        if fields.next().is_some() {
            return Err(TokenError::Several);
        }
        // Other schemes are the app's.
        let Some(token) = bearer(field.as_bytes()) else { return Ok(None) };
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        self.verify_token(token, now).map(Some)
    }

    fn verify_token(&self, token: &[u8], now: u64) -> Result<Verified, TokenError> {
        self.judge(&Parts::of(token)?, now).map_err(|(error, _)| error)
    }

    /// With an error comes the issuer by whose rule it is one, if there is one.
    fn judge(&self, token: &Parts<'_>, now: u64) -> Result<Verified, (TokenError, Option<&Issuer>)> {
        let Parts { header, claims, signed, signature } = token;
        // Whose it says it is decides which keys are tried, and nothing else until the signature holds.
        let mut failed = (TokenError::Issuer, None);
        for issuer in self.issuers.iter().filter(|issuer| issuer.rule.issuer == claims.iss) {
            let keys = issuer.keys.current();
            let verified = match &keys.value {
                Ok(keys) => keys.verify(&header.alg, header.kid.as_deref(), signed, signature),
                Err(_) => Err(TokenError::NoKeys),
            };
            match verified {
                Ok(()) => return judge(&issuer.rule, claims, now).map_err(|error| (error, Some(issuer))),
                Err(error) => failed = (error, Some(issuer)),
            }
        }
        Err(failed)
    }
}

/// A token that is not verified yet.
struct Parts<'a> {
    header: Header,
    claims: Claims,
    /// What its signature is of.
    signed: &'a [u8],
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(token: &'a [u8]) -> Result<Self, TokenError> {
        let signed = token.iter().rposition(|b| *b == b'.').ok_or(TokenError::Malformed)?;
        let (signed, signature) = (&token[..signed], decode(&token[signed + 1..])?);
        let dot = signed.iter().position(|b| *b == b'.').ok_or(TokenError::Malformed)?;
        let header: Header = json(&signed[..dot])?;
        let claims: Claims = json(&signed[dot + 1..])?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        Ok(Self { header, claims, signed, signature })
    }
}

/// Base64 for URLs, without padding (RFC 7515 §2).
fn decode(text: &[u8]) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)
}

fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(text)?).map_err(|_| TokenError::Malformed)
}

/// What stands behind `Bearer`, in any case (RFC 6750 §2.1, RFC 9110 §11.1).
pub(crate) fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = field.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

/// Whether what a token says holds, once it is known who says it.
fn judge(rule: &TokenIssuer, claims: &Claims, now: u64) -> Result<Verified, TokenError> {
    #[allow(clippy::cast_precision_loss)]
    let (now, leeway) = (now as f64, rule.leeway_secs as f64);
    if now >= claims.exp + leeway {
        return Err(TokenError::Expired);
    }
    if claims.nbf.is_some_and(|from| from > now + leeway) {
        return Err(TokenError::NotYet);
    }
    let is_wanted = |aud: &String| rule.audiences.contains(aud);
    let fits = match &claims.aud {
        _ if rule.audiences.is_empty() => true,
        None => false,
        Some(Audience::One(one)) => is_wanted(one),
        Some(Audience::Several(all)) => all.iter().any(is_wanted),
    };
    if !fits {
        return Err(TokenError::Audience);
    }
    Ok(Verified { principal: format!("{}/{}", claims.iss, claims.sub), forward: rule.forward })
}

fn keys(rule: &TokenIssuer) -> Made<Keys> {
    let text = match (&rule.jwks, &rule.jwks_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?,
        (None, None) => return Err("they do not stand in the document".to_owned()),
    };
    let at = rule.jwks_file.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
    Ok((Keys::parse(&text).map_err(|why| format!("{at}{why}"))?, Vec::new()))
}

#[cfg(test)]
mod tests;
