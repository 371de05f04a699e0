//! Why a proxy does not start.
