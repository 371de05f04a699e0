//! Sockets that accept, and what stands in front of the HTTP parser.
