//! A cluster: its endpoints, their health, and the choice among them.
