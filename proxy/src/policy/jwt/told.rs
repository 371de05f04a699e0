//! Why a token does not hold, for whoever asks about it (`/admission`): with what was seen and what is taken. Callers themselves
//! are told less.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::{Audience, Issuer, Parts, TokenError, Tokens, bearer};

/// Of what a token says; it may say anything.
const CHARS_MAX: usize = 200;

impl Tokens {
    /// What [`Tokens::verify`] has found, in more words. Of the token itself, what it says of its issuer, its audience and its key
    /// alone.
    pub fn about(&self, error: &TokenError, headers: &HeaderMap, now: u64) -> String {
        let token = headers.get(AUTHORIZATION).and_then(|field| bearer(field.as_bytes()));
        let more = token.and_then(|token| {
            let token = Parts::of(token).ok()?;
            let by = self.judge(&token, now).err().and_then(|(_, issuer)| issuer);
            self.detail(error, &token, by, now)
        });
        more.map_or_else(|| error.to_string(), |more| format!("{error}: {more}"))
    }

    fn detail(&self, error: &TokenError, token: &Parts<'_>, by: Option<&Issuer>, now: u64) -> Option<String> {
        let claims = &token.claims;
        #[allow(clippy::cast_precision_loss)]
        let now = now as f64;
        Some(match error {
            TokenError::Issuer => {
                let taken: Vec<_> = self.issuers.iter().map(|issuer| issuer.rule.issuer.as_str()).collect();
                format!("{:?}; taken are those of {}", short(&claims.iss), taken.join(", "))
            }
            TokenError::NoKeys => {
                let why = by?.keys.current().value.as_ref().err().cloned()?;
                format!("of {}, {why}", by?.rule.issuer)
            }
            TokenError::NoKey => {
                let kid = token
                    .header
                    .kid
                    .as_deref()
                    .map_or("without kid".to_owned(), |kid| format!("kid {:?}", short(kid)));
                format!("alg {:?}, {kid}, of {}", short(&token.header.alg), by?.rule.issuer)
            }
            TokenError::Expired => format!("{:.0} s ago", now - claims.exp),
            TokenError::NotYet => format!("for another {:.0} s", claims.nbf? - now),
            TokenError::Audience => {
                let own = match &claims.aud {
                    None => "none".to_owned(),
                    Some(Audience::One(one)) => short(one),
                    Some(Audience::Several(all)) => short(&all.join(", ")),
                };
                format!("{own:?}; taken are {}", by?.rule.audiences.join(", "))
            }
            _ => return None,
        })
    }
}

fn short(text: &str) -> String {
    text.chars().take(CHARS_MAX).collect()
}
