use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_900_000_000;
const ISSUER: &str = "https://login.example";

struct Signer {
    key: EcdsaKeyPair,
    jwks: String,
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn signer(id: &str) -> Signer {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = key.public_key().as_ref();
    let (x, y) = (encode(&point[1..33]), encode(&point[33..]));
    let jwk = json!({"kty": "EC", "crv": "P-256", "kid": id, "alg": "ES256", "x": x, "y": y});
    Signer { key, jwks: json!({ "keys": [jwk] }).to_string() }
}

impl Signer {
    fn sign(&self, id: Option<&str>, claims: &Value) -> String {
        self.sign_as(&json!({"alg": "ES256", "kid": id}), claims)
    }

    fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(signature))
    }
}

fn tokens(jwks: &str, audiences: &[&str]) -> Tokens {
    let rule = TokenIssuer {
        issuer: ISSUER.to_owned(),
        audiences: audiences.iter().map(|a| (*a).to_owned()).collect(),
        jwks: Some(jwks.to_owned()),
        leeway_secs: 60,
        ..TokenIssuer::default()
    };
    Tokens::new("orders", &[rule], &Certificates::default(), &Sources::default()).unwrap()
}

fn claims(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = json!({"iss": ISSUER, "sub": "alice", "exp": NOW + 100, "aud": ["orders", "web"]});
    change(&mut claims);
    claims
}

fn ask(tokens: &Tokens, field: &str) -> Result<Option<Verified>, TokenError> {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, field.parse().unwrap())]);
    tokens.verify(&headers, NOW)
}

#[test]
fn a_token_that_holds_says_who_calls() {
    let signer = signer("1");
    let tokens = tokens(&signer.jwks, &["orders"]);
    let token = signer.sign(Some("1"), &claims(|_| {}));
    let verified = Verified { principal: format!("{ISSUER}/alice"), forward: false };
    for scheme in ["Bearer", "bearer", "BEARER "] {
        assert_eq!(ask(&tokens, &format!("{scheme} {token}")), Ok(Some(verified_again(&verified))));
    }
    let unnamed = signer.sign(None, &claims(|c| c["aud"] = "orders".into()));
    assert!(
        ask(&tokens, &format!("Bearer {unnamed}")).unwrap().is_some(),
        "without a key id all keys are tried"
    );
    assert_eq!(ask(&tokens, "Basic YTpi"), Ok(None), "another scheme is the app's");
    assert_eq!(tokens.verify(&HeaderMap::new(), NOW), Ok(None));
}

fn verified_again(v: &Verified) -> Verified {
    Verified { principal: v.principal.clone(), forward: v.forward }
}

#[test]
fn a_token_that_does_not_hold_is_refused_for_its_reason() {
    let (signer, other) = (signer("1"), signer("1"));
    let tokens = tokens(&signer.jwks, &["orders"]);
    let with = |change: fn(&mut Value)| signer.sign(Some("1"), &claims(change));
    for (token, error) in [
        (with(|c| c["exp"] = (NOW - 60).into()), TokenError::Expired),
        (with(|c| c["exp"] = 0.into()), TokenError::Expired),
        (with(|c| drop(c.as_object_mut().unwrap().remove("exp"))), TokenError::Malformed),
        (with(|c| c["nbf"] = (NOW + 61).into()), TokenError::NotYet),
        (with(|c| c["aud"] = json!(["web"])), TokenError::Audience),
        (with(|c| drop(c.as_object_mut().unwrap().remove("aud"))), TokenError::Audience),
        (with(|c| c["iss"] = "https://other.example".into()), TokenError::Issuer),
        (signer.sign(Some("2"), &claims(|_| {})), TokenError::NoKey),
        (other.sign(Some("1"), &claims(|_| {})), TokenError::Signature),
        ("x.y.z".to_owned(), TokenError::Malformed),
        ("x".repeat(TOKEN_BYTES_MAX + 1), TokenError::TooLong),
        (String::new(), TokenError::Malformed),
    ] {
        assert_eq!(ask(&tokens, &format!("Bearer {token}")), Err(error), "{token:.80}");
    }
    assert!(
        ask(&tokens, &format!("Bearer {}", with(|c| c["exp"] = (NOW - 59).into()))).is_ok(),
        "clocks differ"
    );
    let twice = [(AUTHORIZATION, "Bearer a".parse().unwrap()), (AUTHORIZATION, "Bearer b".parse().unwrap())];
    let mut headers = HeaderMap::new();
    for (name, value) in twice {
        headers.append(name, value);
    }
    assert_eq!(tokens.verify(&headers, NOW), Err(TokenError::Several));
}

/// RFC 8725 §2.1: the public key as a secret, and no signature at all.
#[test]
fn a_token_does_not_choose_how_it_is_verified() {
    let signer = signer("1");
    let tokens = tokens(&signer.jwks, &[]);
    let good = signer.sign(Some("1"), &claims(|_| {}));
    let body = good.split('.').nth(1).unwrap();
    let confused = signer.sign_as(&json!({"alg": "HS256", "kid": "1"}), &claims(|_| {}));
    assert_eq!(ask(&tokens, &format!("Bearer {confused}")), Err(TokenError::NoKey));
    let none = format!("{}.{body}.", encode(r#"{"alg":"none"}"#));
    assert_eq!(ask(&tokens, &format!("Bearer {none}")), Err(TokenError::NoKey));
    let critical = signer.sign_as(&json!({"alg": "ES256", "crit": ["b64"], "b64": false}), &claims(|_| {}));
    assert_eq!(ask(&tokens, &format!("Bearer {critical}")), Err(TokenError::Malformed));
    assert_eq!(ask(&tokens, &format!("Bearer {good}AAAA")), Err(TokenError::Signature));
    let oct = json!({"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]}).to_string();
    assert!(Keys::parse(oct.as_bytes()).unwrap_err().contains("no key that signs"));
}

#[test]
fn keys_are_renewed_from_their_file_and_unreadable_ones_refuse() {
    let (old, new) = (signer("1"), signer("2"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let certificates = Certificates::default();
    let rule = TokenIssuer {
        issuer: ISSUER.to_owned(),
        jwks_file: Some(path.display().to_string()),
        ..TokenIssuer::default()
    };
    let tokens = Tokens::new("orders", &[rule], &certificates, &Sources::default()).unwrap();
    let (by_old, by_new) = (old.sign(Some("1"), &claims(|_| {})), new.sign(Some("2"), &claims(|_| {})));
    assert_eq!(ask(&tokens, &format!("Bearer {by_old}")), Err(TokenError::NoKeys));
    std::fs::write(&path, &old.jwks).unwrap();
    certificates.look();
    assert!(ask(&tokens, &format!("Bearer {by_old}")).is_ok());
    weft_core::fsio::write_atomic(&path, new.jwks.as_bytes()).unwrap();
    certificates.look();
    assert_eq!(ask(&tokens, &format!("Bearer {by_old}")), Err(TokenError::NoKey));
    assert!(ask(&tokens, &format!("Bearer {by_new}")).is_ok());
}

/// The example of RFC 7515, appendix A.3: made by somebody else.
#[test]
fn the_signature_of_the_standards_example_holds() {
    let keys = json!({"keys": [{
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }]});
    let keys = Keys::parse(keys.to_string().as_bytes()).unwrap();
    let signed = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let signature = decode(signature.as_bytes()).unwrap();
    assert_eq!(keys.verify("ES256", None, signed.as_bytes(), &signature), Ok(()));
    assert_eq!(keys.verify("RS256", None, signed.as_bytes(), &signature), Err(TokenError::NoKey));
}

/// A key with the algorithms that it is for, and how it signs by each.
type Sign = Box<dyn Fn(&[u8], &str) -> Vec<u8>>;

fn rsa() -> (Value, Vec<&'static str>, Sign) {
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::{
        KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
        RSA_PSS_SHA512, RsaEncoding,
    };
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    // RSAPublicKey (RFC 8017 §A.1.1) of 2048 bits: two lengths and a zero, then the modulus, then 65537.
    let n = &key.public_key().as_ref()[9..265];
    let jwk = json!({"kty": "RSA", "n": encode(n), "e": encode([1, 0, 1])});
    let sign = move |signed: &[u8], algorithm: &str| {
        let by: &dyn RsaEncoding = match algorithm {
            "RS256" => &RSA_PKCS1_SHA256,
            "RS384" => &RSA_PKCS1_SHA384,
            "RS512" => &RSA_PKCS1_SHA512,
            "PS256" => &RSA_PSS_SHA256,
            "PS384" => &RSA_PSS_SHA384,
            _ => &RSA_PSS_SHA512,
        };
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(by, &SystemRandom::new(), signed, &mut signature).unwrap();
        signature
    };
    (jwk, vec!["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], Box::new(sign))
}

fn p384() -> (Value, Vec<&'static str>, Sign) {
    use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING;
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let point = key.public_key().as_ref().to_vec();
    let jwk = json!({"kty": "EC", "crv": "P-384", "x": encode(&point[1..49]), "y": encode(&point[49..])});
    let sign =
        move |signed: &[u8], _: &str| key.sign(&SystemRandom::new(), signed).unwrap().as_ref().to_vec();
    (jwk, vec!["ES384"], Box::new(sign))
}

fn ed25519() -> (Value, Vec<&'static str>, Sign) {
    use aws_lc_rs::signature::Ed25519KeyPair;
    let key = Ed25519KeyPair::generate().unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key().as_ref())});
    let sign = move |signed: &[u8], _: &str| key.sign(signed).as_ref().to_vec();
    (jwk, vec!["EdDSA", "Ed25519"], Box::new(sign))
}

/// RFC 7518 §3, RFC 8037 §3.1.
#[test]
fn each_algorithm_that_is_promised_is_verified_with_its_own_keys_alone() {
    let all = [rsa(), p384(), ed25519()];
    for (jwk, algorithms, sign) in &all {
        let tokens = tokens(&json!({ "keys": [jwk] }).to_string(), &[]);
        for algorithm in algorithms {
            let header = encode(json!({ "alg": algorithm }).to_string());
            let signed = format!("{header}.{}", encode(claims(|_| {}).to_string()));
            let token = |signature: &[u8]| format!("Bearer {signed}.{}", encode(signature));
            let mut signature = sign(signed.as_bytes(), algorithm);
            assert!(ask(&tokens, &token(&signature)).unwrap().is_some(), "{algorithm}");
            signature[10] ^= 1;
            assert_eq!(ask(&tokens, &token(&signature)), Err(TokenError::Signature), "{algorithm}");
            let foreign = all.iter().filter(|(_, others, _)| !others.contains(algorithm));
            for (_, others, sign) in foreign {
                let forged = sign(signed.as_bytes(), others[0]);
                assert!(ask(&tokens, &token(&forged)).is_err(), "{algorithm} signed by {}", others[0]);
            }
        }
    }
}
