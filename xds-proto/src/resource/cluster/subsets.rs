//! Parts of a cluster: which labels routes tell its instances apart by, and where a request goes whose part has no usable
//! instance. Envoy's `lb_subset_config`, without whose selectors it would pass over the `metadata_match` of routes; a proxy
//! of ours needs no such list.
//!
//! In Envoy the policy of the cluster is also for requests that ask for no part. These go to all instances here, so that ours
//! stands at the selectors, and beside them `ANY_ENDPOINT`.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use pb::cluster::LbSubsetConfig;
use pb::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as OfSelector;
use pb::cluster::lb_subset_config::{LbSubsetFallbackPolicy as OfCluster, LbSubsetSelector};
use serde::Serialize;

use super::{InvalidResource, Validator};
use crate::resource::subset::Subset;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Subsets {
    /// Sets of labels.
    pub selectors: BTreeSet<BTreeSet<String>>,
    /// For requests whose part has no usable instance.
    pub fallback: SubsetFallback,
}

/// Where a request goes whose part of a cluster has no usable instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub enum SubsetFallback {
    /// It is answered 503.
    #[default]
    None,
    /// To any instance.
    Any,
    /// To this part, which has no ranges of versions.
    Default(Arc<Subset>),
}

const POLICIES: &str = "NO_FALLBACK, ANY_ENDPOINT or DEFAULT_SUBSET";

pub(super) fn decode(v: &Validator<'_>, p: &pb::Cluster) -> Result<Subsets, InvalidResource> {
    let Some(config) = &p.lb_subset_config else { return Ok(Subsets::default()) };
    let keys = |s: &LbSubsetSelector| s.keys.iter().cloned().collect();
    let selectors = config.subset_selectors.iter().map(keys).collect();
    let mut said: BTreeSet<i32> = config.subset_selectors.iter().map(|s| s.fallback_policy).collect();
    let (at, policy) = match (said.pop_first(), said.is_empty()) {
        (None, _) => ("lb_subset_config.fallback_policy", of_cluster(config.fallback_policy)),
        (Some(unsaid), true) if unsaid == OfSelector::NotDefined as i32 => {
            ("lb_subset_config.fallback_policy", of_cluster(config.fallback_policy))
        }
        (Some(one), true) => ("lb_subset_config.subset_selectors.fallback_policy", of_selector(one)),
        (Some(_), false) => {
            let at = "lb_subset_config.subset_selectors.fallback_policy";
            return Err(v.error(at, "different ones", "one for all selectors"));
        }
    };
    let fallback = match policy {
        Ok(OfCluster::NoFallback) => SubsetFallback::None,
        Ok(OfCluster::AnyEndpoint) => SubsetFallback::Any,
        Ok(OfCluster::DefaultSubset) => match default_subset(v, config)? {
            // Every instance is of it.
            default if default.is_empty() => SubsetFallback::Any,
            default => SubsetFallback::Default(Arc::new(default)),
        },
        Err(seen) => return Err(v.error(at, seen, POLICIES)),
    };
    Ok(Subsets { selectors, fallback })
}

fn of_cluster(policy: i32) -> Result<OfCluster, String> {
    OfCluster::try_from(policy).map_err(|_| policy.to_string())
}

fn of_selector(policy: i32) -> Result<OfCluster, String> {
    match OfSelector::try_from(policy) {
        Ok(OfSelector::NoFallback) => Ok(OfCluster::NoFallback),
        Ok(OfSelector::AnyEndpoint) => Ok(OfCluster::AnyEndpoint),
        Ok(OfSelector::DefaultSubset) => Ok(OfCluster::DefaultSubset),
        Ok(other) => Err(other.as_str_name().to_owned()),
        Err(_) => Err(policy.to_string()),
    }
}

fn default_subset(v: &Validator<'_>, config: &LbSubsetConfig) -> Result<Subset, InvalidResource> {
    let fields = config.default_subset.iter().flat_map(|labels| &labels.fields);
    let mut texts = Vec::new();
    for (key, value) in fields {
        let at = || format!("lb_subset_config.default_subset.{key}");
        let Some(Kind::StringValue(text)) = &value.kind else {
            return Err(v.error(at(), "no text", "a text"));
        };
        texts.push((key.as_str(), text.as_str()));
    }
    let subset = Subset::new(texts);
    let subset = subset
        .map_err(|e| v.error(format!("lb_subset_config.default_subset.{}", e.key), e.seen, e.allowed))?;
    if let Some((key, text, _)) = subset.texts().find(|(.., range)| *range) {
        let at = format!("lb_subset_config.default_subset.{key}");
        return Err(v.error(at, text, "a value, not a range of versions"));
    }
    Ok(subset)
}

pub(super) fn encode(subsets: &Subsets) -> Option<LbSubsetConfig> {
    let (of_cluster, of_selector) = match &subsets.fallback {
        SubsetFallback::None => (OfCluster::NoFallback, OfSelector::NoFallback),
        SubsetFallback::Any => (OfCluster::AnyEndpoint, OfSelector::AnyEndpoint),
        SubsetFallback::Default(_) => (OfCluster::DefaultSubset, OfSelector::DefaultSubset),
    };
    let selector = |keys: &BTreeSet<String>| LbSubsetSelector {
        keys: keys.iter().cloned().collect(),
        fallback_policy: of_selector as i32,
        ..LbSubsetSelector::default()
    };
    let text = |(key, text, _): (&str, &str, bool)| {
        (key.to_owned(), Value { kind: Some(Kind::StringValue(text.to_owned())) })
    };
    (*subsets != Subsets::default()).then(|| LbSubsetConfig {
        fallback_policy: if subsets.selectors.is_empty() { of_cluster } else { OfCluster::AnyEndpoint }
            as i32,
        default_subset: match &subsets.fallback {
            SubsetFallback::Default(subset) => Some(Struct { fields: subset.texts().map(text).collect() }),
            _ => None,
        },
        subset_selectors: subsets.selectors.iter().map(selector).collect(),
        ..LbSubsetConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(config: LbSubsetConfig) -> Result<Subsets, (String, String)> {
        let v = Validator { kind: "Cluster", name: "orders" };
        let cluster = pb::Cluster { lb_subset_config: Some(config), ..pb::Cluster::default() };
        decode(&v, &cluster).map_err(|error| (error.field, error.seen))
    }

    fn selector(policy: OfSelector) -> LbSubsetSelector {
        LbSubsetSelector {
            keys: vec!["version".to_owned()],
            fallback_policy: policy as i32,
            ..LbSubsetSelector::default()
        }
    }

    /// What asks for no part goes to all in Envoy too, whatever becomes of the others.
    #[test]
    fn the_policy_is_that_of_parts_alone() {
        let keys: BTreeSet<_> = ["version".to_owned()].into();
        let wire = encode(&Subsets { selectors: [keys].into(), fallback: SubsetFallback::None }).unwrap();
        assert_eq!(wire.fallback_policy, OfCluster::AnyEndpoint as i32);
        assert_eq!(wire.subset_selectors[0].fallback_policy, OfSelector::NoFallback as i32);
    }

    #[test]
    fn the_selectors_policy_wins_over_that_of_the_cluster() {
        let config = |policy, selectors: Vec<_>| LbSubsetConfig {
            fallback_policy: policy as i32,
            subset_selectors: selectors,
            ..LbSubsetConfig::default()
        };
        let fallback = |config| decoded(config).unwrap().fallback;
        let own = vec![selector(OfSelector::NoFallback)];
        assert_eq!(fallback(config(OfCluster::AnyEndpoint, own)), SubsetFallback::None);
        let unsaid = vec![selector(OfSelector::NotDefined)];
        assert_eq!(fallback(config(OfCluster::AnyEndpoint, unsaid)), SubsetFallback::Any);
        assert_eq!(fallback(config(OfCluster::DefaultSubset, vec![])), SubsetFallback::Any, "none is named");
        let two = vec![selector(OfSelector::NoFallback), selector(OfSelector::AnyEndpoint)];
        let (at, seen) = decoded(config(OfCluster::NoFallback, two)).unwrap_err();
        assert_eq!(
            (at.as_str(), seen.as_str()),
            ("lb_subset_config.subset_selectors.fallback_policy", "different ones")
        );
        let keys = vec![selector(OfSelector::KeysSubset)];
        assert_eq!(decoded(config(OfCluster::NoFallback, keys)).unwrap_err().1, "KEYS_SUBSET");
    }

    #[test]
    fn a_default_with_a_range_is_refused_by_its_key() {
        let value = Value { kind: Some(Kind::StringValue(">=2".to_owned())) };
        let config = LbSubsetConfig {
            fallback_policy: OfCluster::DefaultSubset as i32,
            default_subset: Some(Struct { fields: [("version".to_owned(), value)].into() }),
            ..LbSubsetConfig::default()
        };
        let (at, seen) = decoded(config).unwrap_err();
        assert_eq!((at.as_str(), seen.as_str()), ("lb_subset_config.default_subset.version", ">=2"));
    }
}
