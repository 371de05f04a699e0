//! What proxies subscribe to.
