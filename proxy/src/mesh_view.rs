//! What one request reads: routes, clusters, endpoints and health of one moment.
