//! What the mesh says about the clusters this proxy uses, as one immutable value.
