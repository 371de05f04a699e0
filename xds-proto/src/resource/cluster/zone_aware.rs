//! Whether a proxy prefers endpoints near it: Envoy's `zone_aware_lb_config`, and in the cluster's metadata what it has no
//! fields for.

use envoy_types::pb::envoy::config::cluster::v3::cluster::CommonLbConfig;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::Struct;
use serde::Serialize;

use super::metadata::{self, Numbers};
use super::{InvalidResource, Validator};

/// Endpoints in the proxy's own zone come first, then those of its region, then the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ZoneAware {
    /// Fewer usable endpoints in a zone or region are not preferred; at least 1.
    pub min_endpoints: u32,
    /// An endpoint with so many requests of this proxy under way sends the next one further away; 0: never.
    pub spill_above: u32,
}

impl Default for ZoneAware {
    /// One endpoint is enough for its neighbours, until somebody knows what it bears.
    fn default() -> Self {
        Self { min_endpoints: 1, spill_above: 0 }
    }
}

const NAME: &str = "weft.zone_aware";
const MIN_ENDPOINTS: &str = "min_endpoints";
const SPILL_ABOVE: &str = "spill_above";

/// The metadata of our own servers, else what Envoy's field says. Envoy prefers zones if nobody says anything, and knows
/// its own from its bootstrap; here somebody has to want it.
pub(super) fn decode(
    v: &Validator<'_>,
    metadata: Option<&Metadata>,
    config: Option<&CommonLbConfig>,
) -> Result<Option<ZoneAware>, InvalidResource> {
    let d = ZoneAware::default();
    if let Some(rule) = Numbers::of(v, NAME, metadata) {
        return Ok(Some(ZoneAware {
            min_endpoints: rule.get_or(MIN_ENDPOINTS, d.min_endpoints, (1, u32::MAX))?,
            spill_above: rule.get_or(SPILL_ABOVE, d.spill_above, (0, u32::MAX))?,
        }));
    }
    let Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) =
        config.and_then(|c| c.locality_config_specifier.as_ref())
    else {
        return Ok(None);
    };
    let off = zone.routing_enabled.as_ref().is_some_and(|percent| percent.value <= 0.0);
    let min = zone.min_cluster_size.as_ref().map_or(1, |n| u32::try_from(n.value).unwrap_or(u32::MAX).max(1));
    Ok((!off).then_some(ZoneAware { min_endpoints: min, ..d }))
}

pub(super) fn encode(rule: ZoneAware) -> (String, Struct) {
    metadata::encode(NAME, &[(MIN_ENDPOINTS, rule.min_endpoints), (SPILL_ABOVE, rule.spill_above)])
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::ZoneAwareLbConfig;
    use envoy_types::pb::envoy::r#type::v3::Percent;
    use envoy_types::pb::google::protobuf::UInt64Value;

    use super::*;

    const V: Validator<'static> = Validator { kind: "Cluster", name: "orders" };

    fn envoy(zone: ZoneAwareLbConfig) -> Option<ZoneAware> {
        let config = CommonLbConfig {
            locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)),
            ..CommonLbConfig::default()
        };
        decode(&V, None, Some(&config)).unwrap()
    }

    #[test]
    fn envoys_field_turns_it_on_unless_no_share_of_the_traffic_is_routed_so() {
        assert_eq!(decode(&V, None, Some(&CommonLbConfig::default())).unwrap(), None);
        let six = ZoneAwareLbConfig {
            min_cluster_size: Some(UInt64Value { value: 6 }),
            ..ZoneAwareLbConfig::default()
        };
        assert_eq!(envoy(six), Some(ZoneAware { min_endpoints: 6, spill_above: 0 }));
        let off = ZoneAwareLbConfig {
            routing_enabled: Some(Percent { value: 0.0 }),
            ..ZoneAwareLbConfig::default()
        };
        assert_eq!(envoy(off), None);
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let rule = ZoneAware { min_endpoints: 0, spill_above: 3 };
        let metadata = Metadata { filter_metadata: [encode(rule)].into(), ..Metadata::default() };
        assert!(decode(&V, Some(&metadata), None).unwrap_err().field.ends_with(MIN_ENDPOINTS));
    }
}
