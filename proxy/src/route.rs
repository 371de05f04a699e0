//! Host and path to cluster.
