//! Which labels routes tell instances of a cluster apart by: Envoy's `lb_subset_config`, without which it would pass over
//! the `metadata_match` of routes. A proxy of ours needs no such list.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use pb::cluster::LbSubsetConfig;
use pb::cluster::lb_subset_config::{LbSubsetFallbackPolicy as Fallback, LbSubsetSelector};
use serde::Serialize;

use super::{InvalidResource, Validator};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Subsets {
    /// Sets of labels.
    pub selectors: BTreeSet<BTreeSet<String>>,
    /// A request for a subset without a usable instance goes to any; else it is answered 503.
    pub or_any: bool,
}

pub(super) fn decode(v: &Validator<'_>, p: &pb::Cluster) -> Result<Subsets, InvalidResource> {
    let Some(config) = &p.lb_subset_config else { return Ok(Subsets::default()) };
    let or_any = match Fallback::try_from(config.fallback_policy) {
        Ok(Fallback::NoFallback) => false,
        Ok(Fallback::AnyEndpoint) => true,
        other => {
            let seen = other.map_or_else(
                |_| config.fallback_policy.to_string(),
                |policy| policy.as_str_name().to_owned(),
            );
            return Err(v.error("lb_subset_config.fallback_policy", seen, "NO_FALLBACK or ANY_ENDPOINT"));
        }
    };
    let keys = |s: &LbSubsetSelector| s.keys.iter().cloned().collect();
    Ok(Subsets { selectors: config.subset_selectors.iter().map(keys).collect(), or_any })
}

pub(super) fn encode(subsets: &Subsets) -> Option<LbSubsetConfig> {
    let selector = |keys: &BTreeSet<String>| LbSubsetSelector {
        keys: keys.iter().cloned().collect(),
        ..LbSubsetSelector::default()
    };
    (*subsets != Subsets::default()).then(|| LbSubsetConfig {
        fallback_policy: if subsets.or_any { Fallback::AnyEndpoint } else { Fallback::NoFallback } as i32,
        subset_selectors: subsets.selectors.iter().map(selector).collect(),
        ..LbSubsetConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_subset_is_refused_not_passed_over() {
        let v = Validator { kind: "Cluster", name: "orders" };
        let config =
            LbSubsetConfig { fallback_policy: Fallback::DefaultSubset as i32, ..LbSubsetConfig::default() };
        let cluster = pb::Cluster { lb_subset_config: Some(config), ..pb::Cluster::default() };
        let error = decode(&v, &cluster).unwrap_err();
        assert_eq!(
            (error.field.as_str(), error.seen.as_str()),
            ("lb_subset_config.fallback_policy", "DEFAULT_SUBSET")
        );
    }
}
