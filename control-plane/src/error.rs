//! Why a server would not start.
