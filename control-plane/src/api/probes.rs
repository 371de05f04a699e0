//! `/livez`, `/readyz` and `/metrics`.
