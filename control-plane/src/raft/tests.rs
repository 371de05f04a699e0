//! Groups of servers in this process. [`harness`] starts them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Endpoint;
use weft_core::id::NodeId;
use weft_state::{
    command::{Command, Event, EventKind, LeaseCheckpoint, Put, Range, Response},
    error::StoreError,
    machine::Machine,
    retention::HistoryLimits,
};
use weft_xds_proto::peer::ask;

use super::*;
use crate::gate::{self, Gate, Tokens};

mod agreement;
mod harness;
mod joining;
mod leases;
mod membership;
mod reads;
mod recovered;
mod snapshots;
mod writes;

use harness::*;
