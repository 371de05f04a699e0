//! The one mapping from our errors to gRPC and HTTP statuses.
