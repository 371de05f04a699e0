//! Whose certificates are taken: Envoy's `CertificateValidationContext`, alone, with a secret, or as one.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::{DataSource, NAME_BYTES_MAX, NAMES_MAX, PeerName, SYSTEM_CAS, Trust, is_dns_name, secret_name};
use super::{shortened, source};
use crate::resource::InvalidResource;
use crate::resource::cluster::Validator;

/// Who is trusted, what was taken back, and what certificates are for.
type Validation<T = Trust> = (T, Option<DataSource>, Vec<PeerName>);

pub(super) fn decode(
    v: &Validator<'_>,
    at: &str,
    p: Option<tls::common_tls_context::ValidationContextType>,
) -> Result<Validation, InvalidResource> {
    use tls::common_tls_context::ValidationContextType as T;
    let allowed = "validation_context, combined_validation_context or validation_context_sds_secret_config";
    match p {
        Some(T::ValidationContext(context)) => trust(v, &format!("{at}.validation_context"), &context),
        Some(T::ValidationContextSdsSecretConfig(secret)) => {
            let name = secret_name(v, &format!("{at}.validation_context_sds_secret_config"), &secret)?;
            Ok((Trust::Secret(name), None, Vec::new()))
        }
        Some(T::CombinedValidationContext(both)) => {
            let at = format!("{at}.combined_validation_context");
            let own = both.default_validation_context.unwrap_or_default();
            // A CA beside the secret's is overridden by it, as in Envoy.
            let (_, crl, names) = context(v, &format!("{at}.default_validation_context"), &own)?;
            let at = format!("{at}.validation_context_sds_secret_config");
            let secret = both.validation_context_sds_secret_config.unwrap_or_default();
            Ok((Trust::Secret(secret_name(v, &at, &secret)?), crl, names))
        }
        Some(_) => Err(v.error(format!("{at}.validation_context_type"), "a certificate provider", allowed)),
        None => Err(v.error(format!("{at}.validation_context_type"), "nothing", allowed)),
    }
}

/// What has to say who is trusted.
pub(super) fn trust(
    v: &Validator<'_>,
    at: &str,
    p: &tls::CertificateValidationContext,
) -> Result<Validation, InvalidResource> {
    let (trust, crl, names) = context(v, at, p)?;
    let Some(trust) = trust else {
        return Err(v.error(format!("{at}.trusted_ca"), "nothing", "trusted_ca or system_root_certs"));
    };
    Ok((trust, crl, names))
}

/// The same where it need not say who is trusted.
fn context(
    v: &Validator<'_>,
    at: &str,
    p: &tls::CertificateValidationContext,
) -> Result<Validation<Option<Trust>>, InvalidResource> {
    let unsupported = [
        ("verify_certificate_spki", !p.verify_certificate_spki.is_empty()),
        ("verify_certificate_hash", !p.verify_certificate_hash.is_empty()),
        ("custom_validator_config", p.custom_validator_config.is_some()),
        ("ca_certificate_provider_instance", p.ca_certificate_provider_instance.is_some()),
        ("allow_expired_certificate", p.allow_expired_certificate),
        ("trust_chain_verification", p.trust_chain_verification != 0),
        ("max_verify_depth", p.max_verify_depth.is_some()),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, set)| *set) {
        return Err(v.error(format!("{at}.{field}"), "set", "unset"));
    }
    let ca = p.trusted_ca.as_ref();
    let ca = ca.map(|ca| source::decode(v, &format!("{at}.trusted_ca"), Some(ca))).transpose()?;
    let trust = match (ca, &p.system_root_certs) {
        (Some(DataSource::File(path)), Some(_)) if path.as_os_str() == SYSTEM_CAS => Some(Trust::System),
        (Some(ca), _) => Some(Trust::Ca(ca)),
        (None, Some(_)) => Some(Trust::System),
        (None, None) => None,
    };
    let crl = p.crl.as_ref().map(|crl| source::decode(v, &format!("{at}.crl"), Some(crl))).transpose()?;
    Ok((trust, crl, names(v, at, p)?))
}

fn names(
    v: &Validator<'_>,
    at: &str,
    p: &tls::CertificateValidationContext,
) -> Result<Vec<PeerName>, InvalidResource> {
    use tls::subject_alt_name_matcher::SanType;
    #[allow(deprecated)]
    let old = p.match_subject_alt_names.iter().map(|m| (None, Some(m)));
    let typed = p.match_typed_subject_alt_names.iter().map(|m| (Some(m.san_type), m.matcher.as_ref()));
    let mut names = Vec::new();
    for (i, (kind, matcher)) in typed.chain(old).enumerate() {
        let at = format!("{at}.match_typed_subject_alt_names[{i}]");
        let allowed = "exact, or for a URI prefix, without ignore_case";
        let (text, prefix) = match matcher {
            Some(StringMatcher { match_pattern: Some(MatchPattern::Exact(text)), ignore_case: false }) => {
                (text, false)
            }
            Some(StringMatcher { match_pattern: Some(MatchPattern::Prefix(text)), ignore_case: false }) => {
                (text, true)
            }
            _ => return Err(v.error(format!("{at}.matcher"), "another one", allowed)),
        };
        let is_uri = match kind.map(SanType::try_from) {
            Some(Ok(SanType::Uri)) => true,
            Some(Ok(SanType::Dns | SanType::IpAddress)) => false,
            None => text.contains("://"),
            Some(_) => {
                return Err(v.error(format!("{at}.san_type"), "another one", "DNS, URI or IP_ADDRESS"));
            }
        };
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            let seen = format!("{} bytes", text.len());
            return Err(v.error(format!("{at}.matcher"), seen, format!("1 to {NAME_BYTES_MAX} bytes")));
        }
        names.push(match (is_uri, prefix) {
            (true, true) => PeerName::UriPrefix(text.clone()),
            (true, false) => PeerName::Uri(text.clone()),
            (false, false) if is_dns_name(text) => PeerName::Dns(text.clone()),
            (false, _) => {
                let seen = format!("{:?}", shortened(text));
                return Err(v.error(format!("{at}.matcher"), seen, "an exact DNS name or address"));
            }
        });
    }
    if names.len() > NAMES_MAX {
        let at = format!("{at}.match_typed_subject_alt_names");
        return Err(v.error(at, names.len().to_string(), format!("at most {NAMES_MAX}")));
    }
    Ok(names)
}
