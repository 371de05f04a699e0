//! Whether this proxy should get traffic (P44).

use super::AdminState;

/// `None` if it should.
pub(super) fn why_not(state: &AdminState) -> Option<String> {
    if state.is_draining() {
        return Some("draining: this proxy stops".to_owned());
    }
    let seeks = !state.config.servers.is_empty() || !state.config.join.is_empty();
    if !seeks {
        return None;
    }
    let view = state.outbound.view();
    // Services from the last run or by gossip are enough to serve; a server is not needed for that.
    if view.control_plane.is_connected() || !view.clusters.is_empty() || has_peers(state) {
        return None;
    }
    Some(match &view.control_plane.last_error {
        Some(error) => {
            format!("no control plane and no gossip peer reached yet, and nothing kept from before: {error}")
        }
        None => "no control plane and no gossip peer reached yet, and nothing kept from before".to_owned(),
    })
}

fn has_peers(state: &AdminState) -> bool {
    state.gossip.as_ref().is_some_and(|gossip| gossip.members().len() > 1)
}
