//! `weft.v1` over gRPC.
