//! Registry and gossip merged with provenance.
